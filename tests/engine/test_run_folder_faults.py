"""The run folder when something goes wrong: damaged files, runs that meet, a full disk."""

import os
import subprocess
import sys
import time

import pytest
from interruptions import (
    ENVIRONMENT,
    MODEL,
    SPEC,
    Wavering,
    assert_same,
    draw_scene,
    interrupted,
    journal,
    litter,
    plain,
    resumed,
)
from rasters import write_raster

import rsgeoseg
from rsgeoseg.engine import run_folder as folder_module
from rsgeoseg.engine.run_folder import run_folder
from rsgeoseg.errors import OutputError
from rsgeoseg.geo.writers import load_frame


@pytest.fixture
def scene(tmp_path):
    """48 chips."""
    return write_raster(tmp_path / "scene.tif", draw_scene(400, 300, count=40))


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.gpkg"


@pytest.fixture(autouse=True)
def short_parts(monkeypatch):
    monkeypatch.setattr(folder_module, "PART_SECONDS", 0.02)


def cut_rows(folder):
    path = folder / "part-000002.parquet"
    path.write_bytes(path.read_bytes()[:-7])


def cut_end(folder):
    path = folder / "part-000002.npz"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(folder):
    path = folder / "part-000002.npz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def lose_rows(folder):
    (folder / "part-000002.parquet").unlink()


def lose_end(folder):
    (folder / "part-000002.npz").unlink()


def swap_two_ends(folder):
    one, other = folder / "part-000002.npz", folder / "part-000003.npz"
    aside = one.rename(folder / "aside")
    other.rename(one)
    aside.rename(other)


def tear_the_last_line(folder):
    path = folder / "journal.jsonl"
    path.write_text(path.read_text()[:-9])


def add_garbage(folder):
    path = folder / "journal.jsonl"
    path.write_bytes(path.read_bytes() + b"\x00\xff\x01nonsense\n")


def add_other_types(folder):
    path = folder / "journal.jsonl"
    text = path.read_text()
    line = text.splitlines()[1]
    path.write_text(text + line.replace('"part": 2', '"part": "2"') + "\n[]\n5\n")


def cut_the_newline(folder):
    path = folder / "journal.jsonl"
    path.write_text(path.read_text()[:-1])


def repeat_a_line(folder):
    path = folder / "journal.jsonl"
    text = path.read_text()
    path.write_text(text + text.splitlines()[1] + "\n")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut_rows, "part 2 was cut short or altered"),
        (cut_end, "part 2 was cut short or altered"),
        (flip_a_bit, "part 2 was cut short or altered"),
        (lose_rows, "part 2 was cut short or altered"),
        (lose_end, "part 2 was cut short or altered"),
        (swap_two_ends, "part 3 was cut short or altered"),
        (tear_the_last_line, "lines of the journal were cut short or altered"),
        (add_garbage, "lines of the journal were cut short or altered"),
        (add_other_types, ": 3 of "),
        (cut_the_newline, None),
        (repeat_a_line, None),
    ],
)
def test_what_is_damaged_is_run_again(scene, output, damage, words, caplog):
    interrupted(scene, output)
    damage(run_folder(output))
    kept = sum(line["chips"] for line in journal(output) if isinstance(line, dict)) if words is None else 0
    with caplog.at_level("WARNING"):
        found = resumed(scene, output)
    assert_same(found, plain(scene))
    assert_same(load_frame(output), plain(scene))
    assert found.attrs["rsgeoseg"]["resumed_pixels"] > 0
    assert litter(output) == []
    if words is None:
        assert kept
        assert "run again" not in caplog.text
    else:
        assert words in caplog.text


@pytest.mark.parametrize("text", ["", '{"format": 1', "[]", '{"format": 1, "identity": null}', "\x00\x00"])
def test_a_manifest_that_cannot_be_read_costs_no_part_unasked(scene, output, text):
    interrupted(scene, output)
    (run_folder(output) / "manifest.json").write_text(text)
    for options in ({"resume": True}, {}):
        with pytest.raises(OutputError, match=r"\d+ chips of a run, but its manifest.json cannot be read.*--overwrite"):
            rsgeoseg.run(scene, MODEL, output, stretch="none", **options)
    assert len(journal(output)) >= 4
    found = rsgeoseg.run(scene, MODEL, output, stretch="none", overwrite=True)
    assert found.attrs["rsgeoseg"]["resumed_pixels"] == 0
    assert_same(load_frame(output), plain(scene))


def test_a_part_that_is_damaged_while_the_run_goes_on(scene, output):
    spoilt = []

    def spoil(event):
        if event.kind == "stage" and event.stage == "polygonize":
            first = run_folder(output) / "part-000001.parquet"
            first.write_bytes(first.read_bytes()[:100])
            spoilt.append(first)

    class Slow(Wavering):
        def segment(self, chips, prompts=None):
            time.sleep(0.005)
            return super().segment(chips)

    with pytest.raises(OutputError, match=r"part-000001.parquet can no longer be read .* with --resume"):
        rsgeoseg.run(scene, Slow(spec=SPEC), output, stretch="none", progress=spoil)
    assert spoilt
    assert not output.exists()
    assert_same(resumed(scene, output), plain(scene))


# ----------------------------------------------------------------------------------- runs that meet, a full disk


RACE = """
import os, sys, time
from pathlib import Path
from rsgeoseg.engine.collect import Drawing
from rsgeoseg.engine.run_folder import RunFolder, run_folder
from rsgeoseg.errors import OutputError
from rsgeoseg.geo.scene import Scene
from interruptions import SPEC

output, mark = Path(sys.argv[2]), Path(sys.argv[3])
with Scene.open(sys.argv[1], stretch="none") as scene:
    drawing = Drawing(scene.grid, SPEC)

def work():
    won, end = 0, time.monotonic() + 2
    while time.monotonic() < end:
        try:
            with RunFolder(output, {}, drawing, resume=True, overwrite=True) as folder:
                handle = os.open(mark, os.O_CREAT | os.O_EXCL)  # fails where another one is here
                for number in range(30):
                    (run_folder(output) / f"part-{number:06d}.parquet").touch()
                time.sleep(0.001)
                assert (run_folder(output) / "manifest.json").exists()
                assert len(list(run_folder(output).glob("part-*"))) == 30
                os.close(handle)
                mark.unlink()
                folder.remove()
                won += 1
        except OutputError as error:
            assert "another run is writing" in str(error), error
    assert won

children = []
for _ in range(4):
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
    children.append(child)
sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
"""


def test_runs_that_begin_while_another_one_ends(scene, output, tmp_path):
    """One at a time, and whoever is refused is told so, at any step of removing folder and lock."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    done = subprocess.run(
        [sys.executable, "-c", RACE, scene, output, tmp_path / "mark"], capture_output=True, text=True, check=False,
        env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert litter(output) == []


@pytest.mark.parametrize("files", ["part", "journal"])
def test_a_disk_that_fills_up_keeps_what_was_done(scene, tmp_path, files):
    """A real full disk: a tiny file system that is filled while the run goes on."""
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("needs a file system of its own")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=False).returncode:
        pytest.skip("cannot mount here")
    output = disk / "out.gpkg"
    wanted = plain(scene)

    def fill():
        with (disk / "filler").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 4096)
            except OSError:
                pass

    class Fills(Wavering):
        def segment(self, chips, prompts=None):
            time.sleep(0.005)
            if len(list(run_folder(output).glob("part-*.npz"))) == 3:
                fill()
            return super().segment(chips)

    try:
        with pytest.raises(OutputError, match=r"disk full .*make room") as caught:
            rsgeoseg.run(scene, Fills(spec=SPEC), output, stretch="none")
        assert "\n" not in str(caught.value)
        assert not output.exists()
        assert len(journal(output)) == 3
        with pytest.raises(OutputError, match=r"disk full .*make room"):
            resumed(scene, output)
        assert len(journal(output)) == 3
        (disk / "filler").unlink()
        found = resumed(scene, output)
        assert found.attrs["rsgeoseg"]["resumed_pixels"] > 0
        assert_same(found, wanted)
        assert_same(load_frame(output), wanted)
        assert litter(output) == []
    finally:
        subprocess.run(["umount", disk], check=False)
