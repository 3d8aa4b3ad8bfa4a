"""A run whose process is killed, at any moment and in any way, and is then resumed: the features are the same."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from interruptions import (
    ENVIRONMENT,
    MODEL,
    assert_same,
    draw_scene,
    finish,
    interrupted,
    journal,
    kill_after,
    kill_at_work,
    litter,
    plain,
    program,
    resumed,
)
from rasters import write_raster

import rsgeoseg
from rsgeoseg.engine import run_folder as folder_module
from rsgeoseg.engine.run_folder import run_folder
from rsgeoseg.errors import OutputError
from rsgeoseg.geo.writers import load_frame
from rsgeoseg.testing.scenes import generate_scene


@pytest.fixture
def scene(tmp_path):
    """210 chips."""
    return write_raster(tmp_path / "scene.tif", draw_scene())


@pytest.fixture(autouse=True)
def short_parts(monkeypatch):
    monkeypatch.setattr(folder_module, "PART_SECONDS", 0.02)


def assert_whole(scene, output):
    """The file is that of a run left alone, the record adds up, and nothing else is left."""
    assert_same(load_frame(output), plain(scene))
    record = json.loads(output.with_name(output.name + ".run.json").read_text())
    chips = record["chips"]
    assert chips["done"] + chips["empty"] + chips["failed"] == chips["total"] == 210
    assert record["pixels"] == 700 * 680
    assert record["objects"]["total"] == len(load_frame(output))
    assert litter(output) == []
    return record


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_a_run_killed_at_random_moments(scene, tmp_path, seed):
    """One, two or three kills of the same run."""
    output = tmp_path / "out.gpkg"
    moments = random.Random(seed)
    kills = 0
    for _ in range(1 + seed % 3):
        with program(scene, output) as process:
            kills += kill_after(process, moments.uniform(0.0, 2.0), signal.SIGKILL)
    kept = journal(output) if (run_folder(output) / "journal.jsonl").exists() else []
    finish(scene, output)
    record = assert_whole(scene, output)
    assert kills
    if kept:  # otherwise the last kill may have come when all was written
        assert record["resumed_pixels"] > 0


def test_a_killed_run_goes_on(scene, tmp_path):
    output = tmp_path / "out.gpkg"
    with program(scene, output) as process:
        kill_at_work(process, output, signal.SIGKILL)
    assert not output.exists()
    found = resumed(scene, output)
    assert 0 < found.attrs["rsgeoseg"]["resumed_pixels"] < 700 * 680
    assert found.attrs["rsgeoseg"]["resumed_seconds"] > 0
    assert_whole(scene, output)


CRASHES = """
import os, signal, sys
import interruptions as i
from pathlib import Path
from rsgeoseg.engine import run_folder
from rsgeoseg.geo.writers import load_frame
import geopandas.io.arrow, geopandas.io._geoarrow, pyarrow.parquet, pyogrio.raw, rasterio.shutil, rsgeoseg.jobs

scene, base, every = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
run_folder.PART_SECONDS = 0.0
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "tempfile.mkdtemp", "open", "os.truncate"}

def in_child(work):
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
    return os.waitpid(child, 0)[1]

def run_until(step, output, count=None):
    "Kill this process at the so many-th change of a file beside the output."
    seen, place = 0, str(output.parent)
    def hook(event, args):
        nonlocal seen
        if event not in CHANGES or (event == "open" and not isinstance(args[2], int)):
            return
        if event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        if not any(isinstance(a, (str, bytes, os.PathLike)) and place in os.fsdecode(a) for a in args):
            return
        seen += 1
        if seen == step:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    i.resumed(scene, output)
    if count is not None:
        count.write_text(str(seen))

if __name__ == "__main__":
    base.mkdir()
    whole = base / "whole"
    whole.mkdir()
    assert in_child(lambda: run_until(0, whole / "out.gpkg", base / "count")) == 0
    steps = int((base / "count").read_text())
    wanted = load_frame(whole / "out.gpkg")
    tail = range(max(1, steps - 12), steps + 1)  # cleaning up
    for step in sorted({*range(1, steps + 1, every), *tail}):
        place = base / f"step{step}"
        place.mkdir()
        output = place / "out.gpkg"
        status = in_child(lambda: run_until(step, output))
        assert os.WIFSIGNALED(status), f"step {step} of {steps} was not reached"
        assert in_child(lambda: i.resumed(scene, output)) == 0, f"resume after step {step} of {steps} failed"
        i.assert_same(load_frame(output), wanted)
        assert i.litter(output) == [], f"step {step} of {steps}: {i.litter(output)}"
    print("steps", steps)
"""


@pytest.mark.parametrize("every", [29, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_killed_at_every_change_of_a_file(tmp_path, every):
    """Between any two steps of keeping parts, of the final write, of the record and of cleaning up."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    scene = write_raster(tmp_path / "scene.tif", draw_scene(112, 160, count=20))
    (tmp_path / "crashes.py").write_text(CRASHES)
    done = subprocess.run(
        [sys.executable, tmp_path / "crashes.py", scene, tmp_path / "runs", str(every)],
        capture_output=True, text=True, check=False,
        env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) > 60, "hardly a file was touched"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_stop(scene, tmp_path, how):
    output = tmp_path / "out.gpkg"
    with program(scene, output) as process:
        kill_at_work(process, output, how)
        errors = process.stderr.read()
    assert (process.returncode == -signal.SIGTERM) if how == signal.SIGTERM else ("--resume goes on" in errors)
    assert not output.exists()
    assert resumed(scene, output).attrs["rsgeoseg"]["resumed_pixels"] > 0
    assert_whole(scene, output)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (2, 2)])
def test_a_run_goes_on_with_other_workers(scene, tmp_path, before, after):
    """Only the process that started the run is killed; its workers lose it and end by themselves."""
    output = tmp_path / "out.gpkg"
    with program(scene, output, delay=0.03, workers=before) as process:
        kill_at_work(process, output, signal.SIGKILL)
        finish(scene, output, workers=after)
        assert_whole(scene, output)
        deadline = time.monotonic() + 60
        while before and _alive_in_group(process.pid):
            assert time.monotonic() < deadline, "workers are left"
            time.sleep(0.2)


def _alive_in_group(group):
    import psutil

    def own(process):
        try:
            return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
        except (ProcessLookupError, psutil.NoSuchProcess):
            return False

    return [process.pid for process in psutil.process_iter() if own(process)]


def test_the_second_of_two_runs_on_one_output_refuses(scene, tmp_path):
    output = tmp_path / "out.gpkg"
    with program(scene, output, delay=0.2) as process:
        for options in ({"resume": True}, {"overwrite": True}, {}):
            with pytest.raises(OutputError, match="another run is writing") as caught:
                rsgeoseg.run(scene, MODEL, output, stretch="none", **options)
            assert "\n" not in str(caught.value)
        assert process.poll() is None
        kill_at_work(process, output, signal.SIGKILL)
    assert resumed(scene, output).attrs["rsgeoseg"]["resumed_pixels"] > 0, "a refused run removed parts"
    assert_whole(scene, output)


def test_clocks_may_jump(scene, tmp_path, monkeypatch):
    """Files from the future and the past, and a time of day that goes back with every question."""
    output = tmp_path / "out.gpkg"
    now = time.time()
    backwards = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: now - 1e6 * next(backwards))
    interrupted(scene, output)
    for number, path in enumerate(run_folder(output).iterdir()):
        when = now + (-1) ** number * 10**8
        os.utime(path, (when, when))
    found = resumed(scene, output)
    assert found.attrs["rsgeoseg"]["resumed_pixels"] > 0
    assert found.attrs["rsgeoseg"]["seconds"] > 0
    assert_same(found, plain(scene))


CLI = """
import sys
from rsgeoseg.cli.main import main
from rsgeoseg.engine import run_folder
run_folder.PART_SECONDS = 0.2
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_the_command_line_resumes_a_killed_run_of_the_bundled_model(tmp_path):
    generate_scene(tmp_path / "scene.tif", height=700, width=700, seed=4)
    options = ["run", "scene.tif", "--chip-size", "256", "--overlap", "64", "-o"]

    def rsgeoseg_run(*arguments):
        command = [sys.executable, "-m", "rsgeoseg.cli.main", *options, *arguments]
        return subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)

    assert rsgeoseg_run("whole.gpkg").returncode == 0
    output = tmp_path / "out.gpkg"
    process = subprocess.Popen([sys.executable, "-c", CLI, *options, output], cwd=tmp_path, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while process.poll() is None and not list(run_folder(output).glob("part-*.npz")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    refused = rsgeoseg_run(output)
    assert refused.returncode == 5
    assert "--resume goes on with it" in refused.stderr
    refused = rsgeoseg_run(output, "--resume", "--nms", "0.7")
    assert refused.returncode == 5
    assert "options.nms: 0.5 then, 0.7 now" in refused.stderr
    assert rsgeoseg_run(output, "--resume").returncode == 0
    assert_same(load_frame(output), load_frame(tmp_path / "whole.gpkg"))
    assert litter(output, "whole.gpkg", "whole.gpkg.run.json") == []
    written = output.stat().st_mtime_ns
    assert rsgeoseg_run(output, "--resume").returncode == 0
    assert output.stat().st_mtime_ns == written
