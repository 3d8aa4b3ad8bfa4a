"""Benchmarks run: each on a small case, to its line of figures."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
SMALL = {
    "engine.py": ("--size", "1024", "--repeat", "1"),
    "reading.py": ("--size", "2560", "--run-size", "2048", "--rounds", "1", "--layouts", "zstd"),
    "scale.py": ("--sizes", "1024", "2048"),
    "capacity.py": ("--real-workers", "2"),
    "writing.py": ("--count", "500", "--repeat", "1"),
    "remote.py": ("--size", "1024", "--windows", "2", "--latency", "0", "--repeat", "1"),
    "workers.py": ("--only", "oracle", "--oracle-size", "2048", "--repeat", "1"),
    "peers/stitching.py": ("--quick",),
    "peers/engine.py": ("--quick",),
    "peers/vectorise.py": ("--quick",),
}


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux", reason="processes are pinned to cores, and their memory is read from /proc"
)
@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_ends_with_its_figures(name):
    command = [sys.executable, str(FOLDER / name), *SMALL[name]]
    done = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith((Path(name).stem, "oracle", "real")), last
    assert any(letter.isdigit() for letter in last)
