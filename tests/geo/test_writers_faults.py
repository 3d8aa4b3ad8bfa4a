"""What goes wrong while writing: nothing half-written, nothing lost, nothing left behind, one line that helps."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS

from rsgeoseg.errors import OutputError
from rsgeoseg.geo import vector_stream, writers
from rsgeoseg.geo.frame import objects_to_frame
from rsgeoseg.geo.grid import GeoGrid
from rsgeoseg.geo.stitch import StitchedObject
from rsgeoseg.geo.windows import Box
from rsgeoseg.geo.writers import FORMATS, check_output, extension_of, load_frame, write_frame, write_record

GRID = GeoGrid(1500, 1500, Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000), CRS.from_epsg(32631))
ALL = list(FORMATS)
VECTORS = [name for name in ALL if not FORMATS[name].on_grid]
ROOT = Path(__file__).parents[2]


def make(count=400):
    rng = np.random.default_rng(3)
    objects = []
    for i in range(count):
        x0, y0 = 35 * (i % 40), 35 * (i // 40)
        mask = np.pad(rng.random((10, 10)) < 0.5, 10).repeat(2, axis=0)[5:35, :]
        objects.append(StitchedObject(Box(x0, y0, x0 + 30, y0 + 30), mask, 0, 0.5, 1, seam=False, truncated=False))
    return objects_to_frame(objects, grid=GRID, classes=("tank",), model="oracle")


FRAME = make()


def names(folder) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def assert_one_line(error: Exception, *parts: str) -> None:
    text = str(error)
    assert "\n" not in text
    for part in parts:
        assert part in text, text


# Before the work starts.


def test_unknown_extension_lists_the_known_ones(tmp_path):
    for check in (check_output, lambda path: write_frame(FRAME, path)):
        with pytest.raises(OutputError) as caught:
            check(tmp_path / "out.kml")
        assert_one_line(caught.value, "out.kml", ".gpkg", ".geojson", ".fgb", ".parquet", ".shp", ".coco.json", ".tif")
    with pytest.raises(OutputError, match="gpkg, geojson"):
        check_output(tmp_path / "out.gpkg", format="kml")
    with pytest.raises(OutputError, match="unknown format"):
        extension_of("kml")


@pytest.mark.parametrize("name", ALL)
def test_an_existing_file_is_kept(tmp_path, name):
    path = tmp_path / f"out{extension_of(name)}"
    path.write_bytes(b"mine")
    for check in (check_output, lambda path: write_frame(FRAME, path, grid=GRID)):
        with pytest.raises(OutputError) as caught:
            check(path)
        assert_one_line(caught.value, str(path), "exists", "--overwrite")
    assert contents(tmp_path) == {path.name: b"mine"}
    check_output(path, overwrite=True)
    assert contents(tmp_path) == {path.name: b"mine"}


def test_a_lone_part_of_a_shapefile_counts_as_existing(tmp_path):
    (tmp_path / "out.dbf").write_bytes(b"my table")
    with pytest.raises(OutputError, match=r"out\.dbf exists"):
        check_output(tmp_path / "out.shp")


def test_places_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "dir.gpkg").mkdir()
    os.mkfifo(tmp_path / "pipe.gpkg")
    for path, part in (
        (tmp_path / "gone" / "out.gpkg", "does not exist"),
        (tmp_path / "file" / "out.gpkg", "does not exist"),
        (tmp_path / "dir.gpkg", "is a folder"),
        (tmp_path / "pipe.gpkg", "not a regular file"),
        (Path("/proc/out.gpkg"), "cannot write"),
        (tmp_path / ("x" * 300 + ".gpkg"), "cannot write"),
    ):
        for check in (check_output, write_frame_of):
            with pytest.raises(OutputError) as caught:
                check(path, overwrite=True)
            assert_one_line(caught.value, str(path), part)
    assert names(tmp_path) == ["dir.gpkg", "file", "pipe.gpkg"]


def write_frame_of(path, **options):
    write_frame(FRAME, path, **options)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MB with 300 kB free."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("needs root to mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=False).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        (disk / "filler").write_bytes(b"x" * 724 * 1024)
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_read_only_disk(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(OutputError) as caught:
        check_output(small_disk / "out.gpkg")
    assert_one_line(caught.value, "out.gpkg", "not writable")


# Disk full.


def test_a_full_disk_is_foreseen(small_disk):
    with pytest.raises(OutputError) as caught:
        write_frame(make(1000), small_disk / "out.gpkg")
    assert_one_line(caught.value, "disk full", "bytes needed", "free")
    (small_disk / "more").write_bytes(b"x" * (270 * 1024))
    with pytest.raises(OutputError, match="disk full"):
        check_output(small_disk / "out.gpkg")
    assert names(small_disk) == ["filler", "more"]


@pytest.mark.parametrize("name", VECTORS)
def test_a_full_disk_that_nobody_foresaw(small_disk, name, monkeypatch):
    monkeypatch.setattr(writers, "needed_bytes", lambda entry, rows, vertices: 0)
    path = small_disk / f"out{extension_of(name)}"
    path.write_bytes(b"mine")
    count = 20_000 if name == "parquet" else 1000
    # Noise, so that nothing compresses well.
    points = shapely.multipoints(np.random.default_rng(0).random((6 * count, 2)), indices=np.arange(6 * count) // 6)
    frame = make(1).loc[[0] * count].reset_index(drop=True).assign(id=np.arange(count))
    frame = frame.set_geometry(list(shapely.convex_hull(points)), crs=GRID.crs)
    if name != "parquet":
        frame = frame.set_geometry(frame.buffer(1, quad_segs=16))
    with pytest.raises(OutputError) as caught:
        write_frame(frame, path, overwrite=True)
    assert_one_line(caught.value, str(path), "choose another")
    assert names(small_disk) == ["filler", path.name]
    assert path.read_bytes() == b"mine"


LIMITED = """
import json, resource, signal, sys
sys.path.insert(0, sys.argv[2])
from tests.geo.test_writers_faults import ALL, FRAME, GRID
from rsgeoseg.errors import OutputError
from rsgeoseg.geo.writers import extension_of, write_frame
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = 6000
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
said = {}
for name in ALL:
    try:
        write_frame(FRAME, f"{sys.argv[1]}/out{extension_of(name)}", grid=GRID, overwrite=True)
        said[name] = "written"
    except OutputError as error:
        said[name] = str(error)
print(json.dumps(said))
"""


def test_files_that_cannot_grow_leave_nothing_in_any_format(tmp_path):
    # Each final name is taken already, but for GeoPackage's.
    mine = {f"out{extension_of(name)}": b"mine" for name in ALL if name != "gpkg"}
    for file, content in mine.items():
        (tmp_path / file).write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path), str(ROOT)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    for name in ALL:
        assert said[name].startswith(f"cannot write {tmp_path}/out{extension_of(name)}"), said[name]
        assert "\n" not in said[name]
    assert contents(tmp_path) == mine


# Faults at each step of the commit.


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_disk_that_fills_up_at_the_last_step(tmp_path, monkeypatch, name, step):
    path = tmp_path / f"out{extension_of(name)}"
    write_frame(make(3), path, grid=GRID)
    before = contents(tmp_path)

    def fail(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OutputError) as caught:
        write_frame(FRAME, path, overwrite=True, grid=GRID)
    assert_one_line(caught.value, "disk full", "bytes needed")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("failing", range(9))
def test_a_shapefile_is_put_back_whole_whichever_rename_fails(tmp_path, monkeypatch, failing):
    path = tmp_path / "out.shp"
    write_frame(make(3), path)
    before = contents(tmp_path)
    real, calls = os.replace, []

    def fail_once(source, target):
        calls.append(target)
        if len(calls) == failing + 1:
            raise OSError(errno.EIO, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "replace", fail_once)
    with pytest.raises(OutputError, match="Input/output error"):
        write_frame(FRAME, path, overwrite=True)
    assert contents(tmp_path) == before
    assert len(load_frame(path)) == 3


@pytest.mark.parametrize("name", ALL)
def test_ctrl_c_leaves_nothing(tmp_path, monkeypatch, name):
    def interrupt(_handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_frame(FRAME, tmp_path / f"out{extension_of(name)}", grid=GRID)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["gpkg", "fgb", "shp", "geojson"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_file_cut_short_in_silence_is_noticed(tmp_path, monkeypatch, name, share):
    real = pyogrio.write_arrow

    def cut(stream, path, **options):
        real(stream, path, **options)
        os.truncate(path, int(path.stat().st_size * share))

    monkeypatch.setattr(vector_stream.pyogrio, "write_arrow", cut)
    with pytest.raises(OutputError) as caught:
        write_frame(FRAME, tmp_path / f"out{extension_of(name)}")
    assert_one_line(caught.value, "cannot write")
    assert names(tmp_path) == []


def test_a_file_that_appears_meanwhile_is_kept(tmp_path, monkeypatch):
    real = pyogrio.write_arrow

    def race(stream, path, **options):
        real(stream, path, **options)
        (tmp_path / "out.gpkg").write_bytes(b"somebody else's")

    monkeypatch.setattr(vector_stream.pyogrio, "write_arrow", race)
    with pytest.raises(OutputError, match="appeared"):
        write_frame(FRAME, tmp_path / "out.gpkg")
    assert contents(tmp_path) == {"out.gpkg": b"somebody else's"}


def test_a_record_that_cannot_be_written_keeps_the_old_one(tmp_path, monkeypatch):
    write_record(tmp_path / "out.gpkg", {"run": 1})
    before = contents(tmp_path)

    def fail(_handle):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError) as caught:
        write_record(tmp_path / "out.gpkg", {"run": 2})
    assert_one_line(caught.value, "out.gpkg.run.json", "Input/output error")
    assert contents(tmp_path) == before


# Death.

ENDLESS = """
import sys
sys.path.insert(0, sys.argv[2])
import pandas as pd
from tests.geo.test_writers_faults import FRAME, GRID
from rsgeoseg.geo.writers import write_frame
frame = pd.concat([FRAME] * 40, ignore_index=True)
print("go", flush=True)
write_frame(frame, sys.argv[1], overwrite=True, grid=GRID)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "existing"),
    [
        ("gpkg", True),
        ("gpkg", False),
        ("fgb", False),
        ("parquet", False),
        ("geojson", True),
        ("shp", False),
        ("pmtiles", True),
        ("coco", False),
        ("tif", True),
    ],
)
def test_a_killed_process_leaves_nothing_under_the_final_name(tmp_path, name, existing):
    path = tmp_path / f"out{extension_of(name)}"
    if existing:
        path.write_bytes(b"mine")
    child = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(path), str(ROOT)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    with child:
        assert child.stdout.readline() == b"go\n", child.stderr.read()
        deadline = time.monotonic() + 60
        # Wait until bytes of the result are on the disk, then kill.
        while time.monotonic() < deadline and not bytes_in(tmp_path):
            time.sleep(0.001)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    left = contents_of_files(tmp_path)
    assert left == ({path.name: b"mine"} if existing else {})
    # The next run is not disturbed by what the dead one left.
    write_frame(make(3), path, overwrite=existing, grid=GRID)
    if name in VECTORS and name != "pmtiles":
        assert len(load_frame(path)) == 3


def bytes_in(folder) -> int:
    total = 0
    with suppress(FileNotFoundError):  # folders and files come and go while they are listed
        for path in Path(folder).glob(".*.part/*"):
            total += path.stat().st_size
    return total


def contents_of_files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}
