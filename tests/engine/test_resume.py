"""A run that is killed, cut off or disturbed, and then resumed, gives the features of a run that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from rasters import write_raster

import rsgeoseg
from rsgeoseg.contract import Instances
from rsgeoseg.engine import run_folder as folder_module
from rsgeoseg.engine.run_folder import differences, run_folder
from rsgeoseg.errors import JobCancelled, OutputError
from rsgeoseg.geo.writers import load_frame
from rsgeoseg.testing.oracle import OracleSegmenter, encode_ids, oracle_spec
from rsgeoseg.testing.scenes import generate_scene

ORACLE = OracleSegmenter(spec=oracle_spec(["a", "b", "c"], chip_size=64, overlap=16))

SCRIPT = """
import sys, time
from rsgeoseg.engine import run_folder
from rsgeoseg.testing.oracle import OracleSegmenter, oracle_spec
import rsgeoseg
run_folder.PART_SECONDS = 0.05
class Slow(OracleSegmenter):
    def segment(self, chips, prompts=None):
        time.sleep(float(sys.argv[3]) * len(chips))
        return super().segment(chips)
if __name__ == "__main__":
    model = Slow(spec=oracle_spec(["a", "b", "c"], chip_size=64, overlap=16))
    workers = int(sys.argv[4]) or None
    print("begun", flush=True)
    rsgeoseg.run(sys.argv[1], model, sys.argv[2], stretch="none", resume=True, workers=workers)
    print("ended", flush=True)
"""


@pytest.fixture
def scene(tmp_path):
    """A scene of 196 chips with objects of all sizes, some across many chips and parts."""
    ids = np.zeros((700, 680), np.int32)
    rng = np.random.default_rng(5)
    for value in range(1, 120):
        y, x = rng.integers(0, [690, 670])
        h, w = rng.integers(4, 40, 2) if value % 6 else rng.integers(60, 260, 2)
        region = ids[y : y + h, x : x + w]
        region[region == 0] = value
    return write_raster(tmp_path / "scene.tif", encode_ids(ids))


@pytest.fixture(autouse=True)
def short_parts(monkeypatch):
    monkeypatch.setattr(folder_module, "PART_SECONDS", 0.02)


def plain(path):
    return rsgeoseg.run(path, ORACLE, stretch="none")


def assert_same(found, wanted):
    assert list(found.columns) == list(wanted.columns)
    assert found.drop(columns="geometry").equals(wanted.drop(columns="geometry"))
    assert found.geometry.geom_equals_exact(wanted.geometry, 0).all()


def assert_clean(output):
    assert not run_folder(output).exists()
    mine = {output.name, output.name + ".run.json", "scene.tif", "script.py"}
    assert {entry.name for entry in output.parent.iterdir()} <= mine, "litter is left"


def start(script, scene, output, delay, workers=0):
    return subprocess.Popen(
        [sys.executable, script, scene, output, str(delay), str(workers)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def kill_after(process, seconds, how=signal.SIGKILL):
    """Kill a process (and its workers) so long after it began to work; False where it had ended by then."""
    assert process.stdout.readline() == "begun\n", process.stderr.read()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, how)
        process.wait(30)
        return True
    return False


def finish(script, scene, output, workers=0):
    process = start(script, scene, output, 0, workers)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_a_run_killed_at_any_moment_resumes_to_the_same_features(scene, tmp_path, seed):
    script, output = tmp_path / "script.py", tmp_path / "out.gpkg"
    script.write_text(SCRIPT)
    rng = random.Random(seed)
    kills = sum(kill_after(start(script, scene, output, 0.01), rng.uniform(0.1, 2.6)) for _ in range(1 + seed % 3))
    finish(script, scene, output)
    assert_same(load_frame(output), plain(scene))
    record = json.loads((tmp_path / "out.gpkg.run.json").read_text())
    chips = record["chips"]
    assert chips["done"] + chips["empty"] + chips["failed"] == chips["total"]
    assert record["pixels"] == 700 * 680
    assert_clean(output)
    assert kills or seed > 2


def interrupted(scene, output, parts=4, model=ORACLE, **options):
    """Leave an unfinished run behind: cancelled when the given number of parts is on disk."""
    import threading

    cancel = threading.Event()

    class Stops(OracleSegmenter):
        def segment(self, chips, prompts=None):
            time.sleep(0.005)
            if len(list(run_folder(output).glob("part-*.npz"))) >= parts:
                cancel.set()
            return super().segment(chips)

    with pytest.raises(JobCancelled):
        rsgeoseg.run(scene, Stops(spec=model.spec), output, stretch="none", cancel=cancel, **options)
    assert len(list(run_folder(output).glob("part-*.npz"))) >= parts
    assert not output.exists()


def resumed(scene, output, model=ORACLE, **options):
    return rsgeoseg.run(scene, model, output, stretch="none", resume=True, **options)


def test_only_what_is_missing_is_done_again(scene, tmp_path):
    output = tmp_path / "out.gpkg"
    interrupted(scene, output)
    kept = sum(json.loads(line)["chips"] for line in (run_folder(output) / "journal.jsonl").read_text().splitlines())
    seen = []

    class Watching(OracleSegmenter):
        def segment(self, chips, prompts=None):
            seen.extend(chips)
            return super().segment(chips)

    found = resumed(scene, output, Watching(spec=ORACLE.spec))
    assert_same(found, plain(scene))
    record = found.attrs["rsgeoseg"]
    assert len(seen) == record["chips"]["total"] - kept
    assert 0 < record["resumed_pixels"] < record["pixels"]
    assert_clean(output)


@pytest.mark.parametrize("damage", ["cut rows", "cut end", "flipped bit", "gone", "torn line", "garbage line", "twice"])
def test_what_is_damaged_is_run_again(scene, tmp_path, damage, caplog):
    output = tmp_path / "out.gpkg"
    interrupted(scene, output)
    folder = run_folder(output)
    rows, end, journal = folder / "part-000002.parquet", folder / "part-000002.npz", folder / "journal.jsonl"
    text = journal.read_text()
    if damage == "cut rows":
        rows.write_bytes(rows.read_bytes()[:-7])
    elif damage == "cut end":
        end.write_bytes(end.read_bytes()[: end.stat().st_size // 2])
    elif damage == "flipped bit":
        data = bytearray(end.read_bytes())
        data[len(data) // 2] ^= 4
        end.write_bytes(data)
    elif damage == "gone":
        rows.unlink()
    elif damage == "torn line":
        journal.write_text(text[:-9])
    elif damage == "garbage line":
        journal.write_text(text + "\x00\x01nonsense\n")
    else:
        journal.write_text(text + text.splitlines()[1] + "\n")
    with caplog.at_level("WARNING"):
        assert_same(resumed(scene, output), plain(scene))
    if damage not in ("torn line", "garbage line"):
        assert "part 2 was cut short or altered" in caplog.text
    assert_clean(output)


def test_clocks_may_jump(scene, tmp_path):
    output = tmp_path / "out.gpkg"
    interrupted(scene, output)
    for number, path in enumerate(run_folder(output).iterdir()):
        when = time.time() + (-1) ** number * 10**8
        os.utime(path, (when, when))
    assert_same(resumed(scene, output), plain(scene))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nms": 0.7}, r"options.nms: 0.5 then, 0.7 now"),
        ({"chip_size": 48, "overlap": 16}, r"options.chip_size: 64 then, 48 now"),
        ({"simplify": 1.0}, r"drawing.simplify: 0.0 then, 1.0 now"),
        ({"bbox": (500_000, 5_399_900, 500_100, 5_400_000)}, r"scene.width: 680 then, 200 now"),
        ({"classes": "a"}, r"options.classes: null then, \[.a.\] now"),
    ],
)
def test_other_options_refuse_to_resume_and_say_what_differs(scene, tmp_path, options, words):
    output = tmp_path / "out.gpkg"
    interrupted(scene, output)
    with pytest.raises(OutputError, match=words) as caught:
        resumed(scene, output, **options)
    assert "\n" not in str(caught.value)
    assert_same(resumed(scene, output), plain(scene))


def test_another_scene_and_other_weights_refuse_too(scene, tmp_path):
    output = tmp_path / "out.gpkg"
    interrupted(scene, output)
    other = OracleSegmenter(spec=replace(ORACLE.spec, weights_id="other-1234"))
    with pytest.raises(OutputError, match=r"model.weights: .* then, .other-1234. now"):
        resumed(scene, output, other)
    data = bytearray(scene.read_bytes())
    data[-1] ^= 1
    scene.write_bytes(data)
    with pytest.raises(OutputError, match="scene.fingerprint"):
        resumed(scene, output)


def test_an_unfinished_run_is_neither_overwritten_nor_gone_on_with_unasked(scene, tmp_path):
    output = tmp_path / "out.gpkg"
    interrupted(scene, output)
    with pytest.raises(OutputError, match=r"unfinished run \(\d+ chips done\): --resume goes on with it, --overwrite"):
        rsgeoseg.run(scene, ORACLE, output, stretch="none")
    found = rsgeoseg.run(scene, ORACLE, output, stretch="none", overwrite=True)
    assert found.attrs["rsgeoseg"]["resumed_pixels"] == 0
    assert_same(found, plain(scene))
    assert_clean(output)


def test_a_finished_run_is_left_as_it_is(scene, tmp_path):
    output = tmp_path / "out.gpkg"
    first = resumed(scene, output)
    before = output.read_bytes()

    class Never(OracleSegmenter):
        def segment(self, chips, prompts=None):
            raise AssertionError

    again = resumed(scene, output, Never(spec=ORACLE.spec))
    assert output.read_bytes() == before
    assert len(again) == len(first)
    with pytest.raises(OutputError, match=r"is finished, but options.nms"):
        resumed(scene, output, nms=0.9)
    (tmp_path / "out.gpkg.run.json").unlink()
    with pytest.raises(OutputError, match="no run record"):
        resumed(scene, output)


def test_a_run_that_ends_early_and_has_nothing_leaves_nothing(scene, tmp_path):
    class Fails(OracleSegmenter):
        def segment(self, chips, prompts=None):
            raise ValueError

    output = tmp_path / "out.gpkg"
    with pytest.raises(rsgeoseg.errors.ModelError):
        rsgeoseg.run(scene, Fails(spec=ORACLE.spec), output, stretch="none")
    assert [entry.name for entry in tmp_path.iterdir()] == ["scene.tif"]


def test_two_runs_on_one_output(scene, tmp_path):
    script, output = tmp_path / "script.py", tmp_path / "out.gpkg"
    script.write_text(SCRIPT)
    first = start(script, scene, output, 0.02)
    assert first.stdout.readline() == "begun\n"
    deadline = time.monotonic() + 30
    while not (run_folder(output) / "journal.jsonl").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(OutputError, match="another run is writing"):
        resumed(scene, output)
    with pytest.raises(OutputError, match="another run is writing"):
        rsgeoseg.run(scene, ORACLE, output, stretch="none", overwrite=True)
    first.communicate(timeout=60)
    assert first.returncode == 0
    assert_same(load_frame(output), plain(scene))


def test_failed_chips_stay_failed_and_recorded(scene, tmp_path):
    class Picky(OracleSegmenter):
        def segment(self, chips, prompts=None):
            if any((chip.image[2] == 9).any() for chip in chips):
                raise ValueError
            return super().segment(chips)

    output = tmp_path / "out.gpkg"
    interrupted(scene, output, on_chip_error="skip")
    wanted = rsgeoseg.run(scene, Picky(spec=ORACLE.spec), stretch="none", on_chip_error="skip")
    assert wanted.attrs["rsgeoseg"]["failed_chips"]
    fresh = tmp_path / "fresh.gpkg"
    found = rsgeoseg.run(scene, Picky(spec=ORACLE.spec), fresh, stretch="none", on_chip_error="skip")
    assert found.attrs["rsgeoseg"]["failed_chips"] == wanted.attrs["rsgeoseg"]["failed_chips"]
    assert_same(found, wanted)


def test_a_disk_that_fills_up_keeps_what_was_done(scene, tmp_path):
    """A real full disk: a tiny file system that is filled while the run goes on."""
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("needs a file system of its own")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=False).returncode:
        pytest.skip("cannot mount here")
    try:
        output = disk / "out.gpkg"

        class Fills(OracleSegmenter):
            def segment(self, chips, prompts=None):
                time.sleep(0.003)
                if len(list(run_folder(output).glob("part-*.npz"))) == 3:
                    with (disk / "filler").open("wb", buffering=0) as file, np.testing.suppress_warnings():
                        try:
                            while True:
                                file.write(b"x" * 4096)
                        except OSError:
                            pass
                return super().segment(chips)

        with pytest.raises(OutputError, match="disk full"):
            rsgeoseg.run(scene, Fills(spec=ORACLE.spec), output, stretch="none")
        assert not output.exists()
        (disk / "filler").unlink()
        assert_same(resumed(scene, output), plain(scene))
    finally:
        subprocess.run(["umount", disk], check=False)


def test_differences_name_the_place():
    then, now = {"a": {"b": 1, "c": [1]}, "d": 0}, {"a": {"b": 2, "c": [1]}, "e": None}
    assert differences(then, now) == ["a.b: 1 then, 2 now", "d: 0 then, null now"]


@pytest.mark.slow
def test_the_command_line_resumes_a_killed_run_of_the_bundled_model(tmp_path):
    generate_scene(tmp_path / "scene.tif", height=1500, width=1500, seed=4)
    command = [sys.executable, "-m", "rsgeoseg.cli.main", "run", "scene.tif", "--chip-size", "256", "--overlap", "64"]
    whole = subprocess.run([*command, "-o", "whole.gpkg"], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "objects" in whole.stdout
    process = subprocess.Popen([*command, "-o", "out.gpkg"], cwd=tmp_path, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while process.poll() is None and not list(run_folder(tmp_path / "out.gpkg").glob("part-*.npz")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    subprocess.run([*command, "-o", "out.gpkg", "--resume"], cwd=tmp_path, check=True, capture_output=True)
    assert_same(load_frame(tmp_path / "out.gpkg"), load_frame(tmp_path / "whole.gpkg"))


def test_empty_scenes_resume_too(tmp_path):
    class Nothing(OracleSegmenter):
        def segment(self, chips, prompts=None):
            time.sleep(0.003)
            return [Instances.empty() for _ in chips]

    path, output = write_raster(tmp_path / "scene.tif", np.ones((3, 500, 500), np.uint8)), tmp_path / "out.gpkg"
    interrupted(path, output, parts=2)
    found = resumed(path, output, Nothing(spec=ORACLE.spec))
    assert len(found) == len(plain(path))
