"""``rsgeoseg info`` of scenes on servers and of STAC items, in a process of its own as users have it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rasters import write_raster

from rsgeoseg.testing.oracle import encode_ids

SERVER = Path(__file__).parents[1] / "geo" / "range_server.py"


@pytest.fixture
def served(tmp_path):
    """Address of a server that has a.tif and item.json."""
    import numpy as np

    write_raster(tmp_path / "a.tif", encode_ids(np.zeros((200, 260), np.int32)))
    assets = {"visual": {"href": "./a.tif", "roles": ["visual"]}, "B02": {"href": "./b.tif", "roles": ["data"]}}
    item = {"type": "Feature", "stac_version": "1.0.0", "id": "x", "assets": assets}
    (tmp_path / "item.json").write_text(json.dumps(item))
    command = [sys.executable, str(SERVER), str(tmp_path / "a.tif"), str(tmp_path / "item.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().strip()
        process.terminate()


def info(*arguments):
    env = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    command = [sys.executable, "-m", "rsgeoseg.cli.main", "info", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=120)


def test_a_scene_on_a_server_and_an_item(served):
    login = served.replace("//", "//me:pa55@")
    shown = info(f"{login}/a.tif?sig=t0ken", "--json")
    assert shown.returncode == 0, shown.stderr
    facts = json.loads(shown.stdout)
    assert (facts["path"], facts["width"], facts["height"]) == (f"{served}/a.tif", 260, 200)
    assert facts["fingerprint"]["etag"] == '"one"'
    assert "pa55" not in shown.stdout + shown.stderr
    assert "t0ken" not in shown.stdout + shown.stderr
    assert json.loads(info(f"{served}/item.json", "--json").stdout)["path"] == f"{served}/a.tif"
    missing = info(f"{served}/item.json", "--asset", "B02")
    assert missing.returncode == 3
    assert missing.stderr.count("\n") == 1
    assert f"{served}/b.tif cannot be opened: there is no such file (404)" in missing.stderr


def test_offline(served):
    result = info(f"{served}/a.tif", "--offline")
    assert result.returncode == 3
    assert "network is switched off" in result.stderr
