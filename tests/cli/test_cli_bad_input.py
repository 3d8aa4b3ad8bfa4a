"""Bad input: one clear line, the right exit code, nothing lost and nothing half-written."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.control import GroundControlPoint
from rasters import draw_ids, write_raster

from rsgeoseg.testing.oracle import encode_ids


def run_ok(cli, scene, *more, output="out.gpkg"):
    result = cli("run", scene, "--stretch", "none", "-o", output, *more)
    assert result.code == 0, result.err
    record = json.loads(Path(f"{output}.run.json").read_text())
    return pyogrio.read_dataframe(output), record, result


def nothing_written(folder):
    left = [path.name for path in Path(folder).iterdir() if path.suffix not in (".tif", ".tiff", ".vrt", ".txt")]
    assert left == []


def test_missing_file(cli, tmp_path):
    cli("run", "nowhere.tif").fails(3, "nowhere.tif")
    nothing_written(tmp_path)


@pytest.mark.parametrize("place", ["scene", "output", "aoi"])
def test_names_longer_than_a_file_system_takes(cli, ids_scene, place):
    path, _ = ids_scene()
    long = "x" * 300
    names = {"scene": str(path), "output": "out.gpkg", "aoi": "a.gpkg"} | {place: f"{long}.gpkg"}
    cli("run", names["scene"], "-o", names["output"], "--aoi", names["aoi"]).fails(2, "a file name is too long")


def test_not_a_raster(cli, tmp_path):
    Path("words.tif").write_text("just words")
    cli("run", "words.tif").fails(3, "words.tif")
    Path("notes.txt").write_text("just words")
    cli("run", "notes.txt").fails(3, "notes.txt")
    nothing_written(tmp_path)


@pytest.fixture
def truncated(tmp_path):
    """A tiled scene whose lower part is missing from the file."""
    ids = draw_ids(400, 300, count=30)
    path = write_raster(tmp_path / "cut.tif", encode_ids(ids))
    os.truncate(path, int(path.stat().st_size * 0.6))
    return path, ids


def test_truncated_file_stops_and_names_the_chip(cli, truncated, tmp_path):
    cli("run", truncated[0], "--stretch", "none").fails(3, "cut.tif", "chip ", "--on-chip-error skip")
    nothing_written(tmp_path)


def test_truncated_file_keeps_the_rest_when_told_to(cli, truncated):
    frame, record, result = run_ok(cli, truncated[0], "--on-chip-error", "skip")
    chips = record["chips"]
    assert chips["failed"] == len(record["failed_chips"]) > 0
    assert chips["done"] > 0
    assert chips["done"] + chips["empty"] + chips["failed"] == chips["total"]
    assert len(frame) > 3
    assert f"{chips['failed']} of {chips['total']} chips failed" in result.err
    assert record["failed_chips"][0]["footprint"]["type"] == "Polygon"


def test_only_failed_chips_is_not_success(cli, tmp_path):
    path = write_raster(tmp_path / "cut.tif", encode_ids(draw_ids(200, 200)))
    os.truncate(path, 3000)
    result = cli("run", path, "--stretch", "none", "--on-chip-error", "skip", "-o", "out.gpkg")
    assert result.code in (3, 6), result.err  # 3 where the file cannot even be opened
    if result.code == 6:
        assert len(pyogrio.read_dataframe("out.gpkg")) == 0


@pytest.mark.parametrize(("bands", "code"), [("1,2,9", 3), ("0,1,2", 2), ("a,b,c", 2), ("1,2", 2)])
def test_wrong_bands(cli, ids_scene, tmp_path, bands, code):
    path, _ = ids_scene()
    result = cli("run", path, "-b", bands)
    assert result.code in (2, 3)
    result.fails(result.code, "band")
    nothing_written(tmp_path)


def test_one_band_is_repeated_and_said(cli, tmp_path):
    band = np.zeros((1, 120, 120), np.uint8)
    band[0, 20:50, 30:60] = 200
    frame, record, result = run_ok(cli, write_raster(tmp_path / "grey.tif", band))
    assert len(frame) == 1
    assert "band" in result.err
    assert record["chips"]["done"] == record["chips"]["total"]


def test_four_bands_take_the_first_three_and_say_so(cli, tmp_path):
    ids = draw_ids(120, 120)
    bands = np.concatenate([encode_ids(ids), np.full((1, 120, 120), 9, np.uint8)])
    frame, _, result = run_ok(cli, write_raster(tmp_path / "four.tif", bands, photometric="minisblack"))
    assert len(frame) == ids.max()
    assert "band" in result.err


def test_sixteen_bits(cli, tmp_path):
    ids = draw_ids(120, 120, count=6)
    bands = encode_ids(ids).astype(np.uint16)
    path = write_raster(tmp_path / "deep.tif", bands)
    result = cli("run", path, "--stretch", "minmax:0,255", "-o", "out.gpkg")
    assert result.code == 0, result.err
    assert len(pyogrio.read_dataframe("out.gpkg")) == ids.max()
    assert cli("run", path, "-o", "auto.gpkg").code == 0


def test_float_with_nan_and_infinity(cli, tmp_path):
    ids = draw_ids(120, 120, count=6)
    bands = encode_ids(ids).astype(np.float32)
    bands[:, :10, :10] = np.nan
    bands[:, 110:, 110:] = np.inf
    path = write_raster(tmp_path / "float.tif", bands)
    result = cli("run", path, "--stretch", "minmax:0,255", "-o", "out.gpkg")
    assert result.code == 0, result.err
    hidden = np.zeros(ids.shape, bool)
    hidden[:10, :10] = hidden[110:, 110:] = True
    frame = pyogrio.read_dataframe("out.gpkg")
    assert len(frame) == len(np.unique(ids[~hidden])) - 1
    assert frame.area_m2.sum() == pytest.approx(((ids > 0) & ~hidden).sum() * 0.25)


def test_nothing_but_nodata(cli, tmp_path):
    path = write_raster(tmp_path / "void.tif", np.full((3, 200, 200), 7, np.uint8), nodata=7)
    frame, record, _ = run_ok(cli, path)
    assert len(frame) == 0
    assert list(frame.columns)[:4] == ["id", "class_id", "class_name", "score"]
    assert record["chips"]["empty"] == record["chips"]["total"] > 0


def test_one_pixel(cli, tmp_path):
    path = write_raster(tmp_path / "dot.tif", encode_ids(np.full((1, 1), 4, np.int32)))
    frame, _, _ = run_ok(cli, path)
    assert len(frame) == 1
    assert frame.area_m2[0] == pytest.approx(0.25)
    assert frame.truncated[0]


def test_scene_smaller_than_a_chip(cli, ids_scene):
    path, ids = ids_scene(50, 300)
    frame, _, _ = run_ok(cli, path)
    assert len(frame) == len(np.unique(ids)) - 1
    assert frame.area_m2.sum() == pytest.approx((ids > 0).sum() * 0.25)


def test_missing_crs_gives_pixel_coordinates_and_a_warning(cli, tmp_path):
    ids = np.zeros((60, 60), np.int32)
    ids[10:20, 30:50] = 1
    with rasterio.open(tmp_path / "bare.tif", "w", driver="GTiff", height=60, width=60, count=3, dtype="uint8") as sink:
        sink.write(encode_ids(ids))
    frame, _, result = run_ok(cli, tmp_path / "bare.tif")
    assert "warning: " in result.err
    assert "CRS" in result.err
    assert frame.crs is None
    assert np.isnan(frame.area_m2[0])
    assert frame.geometry[0].area == 200


def test_geographic_crs_gives_square_metres(cli, tmp_path):
    ids = np.zeros((100, 100), np.int32)
    ids[20:60, 10:90] = 1
    affine = Affine(0.0001, 0, 13.0, 0, -0.0001, 52.0)
    frame, _, _ = run_ok(cli, write_raster(tmp_path / "degrees.tif", encode_ids(ids), crs="EPSG:4326", affine=affine))
    # At 51.996 degrees north a degree is 111,264 m along the meridian and 68,684 m along the parallel (WGS 84).
    assert frame.area_m2[0] == pytest.approx(80 * 68_684e-4 * 40 * 111_264e-4, rel=1e-3)
    assert frame.perimeter_m[0] == pytest.approx(2 * (80 * 68_684e-4 + 40 * 111_264e-4), rel=1e-3)


@pytest.mark.parametrize(
    "affine",
    [
        Affine.translation(500_000, 5_400_000) * Affine.rotation(30) * Affine.scale(0.5, -0.5),
        Affine(0.5, 0, 500_000, 0, 0.5, 5_400_000),
    ],
    ids=["rotated", "south-up"],
)
def test_any_affine_is_kept_whole(cli, tmp_path, affine):
    ids = np.zeros((80, 80), np.int32)
    ids[10:20, 30:70] = 1
    frame, _, _ = run_ok(cli, write_raster(tmp_path / "turned.tif", encode_ids(ids), affine=affine))
    corners = {tuple(round(v, 6) for v in affine * point) for point in [(30, 10), (70, 10), (70, 20), (30, 20)]}
    assert {tuple(round(v, 6) for v in point) for point in shapely.get_coordinates(frame.geometry[0])} == corners
    assert frame.area_m2[0] == pytest.approx(100)


def test_ground_control_points_only(cli, tmp_path):
    ids = np.zeros((80, 80), np.int32)
    ids[10:20, 30:70] = 1
    points = [
        GroundControlPoint(row=r, col=c, x=500_000 + c * 0.5, y=5_400_000 - r * 0.5) for r in (0, 80) for c in (0, 80)
    ]
    path = tmp_path / "gcps.tif"
    with rasterio.open(path, "w", driver="GTiff", height=80, width=80, count=3, dtype="uint8") as sink:
        sink.gcps = (points, rasterio.CRS.from_epsg(32631))
        sink.write(encode_ids(ids))
    frame, _, result = run_ok(cli, path)
    assert "warning: " in result.err
    assert frame.geometry[0].bounds == pytest.approx((500_015, 5_399_990, 500_035, 5_399_995), abs=1e-3)


def test_unwritable_folder(cli, ids_scene, tmp_path):
    path, _ = ids_scene()
    if os.geteuid() == 0:  # permission bits do not stop root: a name below a file does
        Path("file.txt").write_text("")
        cli("run", path, "-o", "file.txt/out.gpkg").fails(5, "out.gpkg")
        cli("run", path, "-o", "/proc/out.gpkg").fails(5, "/proc")
    else:
        Path("locked").mkdir(mode=0o500)
        cli("run", path, "-o", "locked/out.gpkg").fails(5, "locked")
    cli("run", path, "-o", "absent/out.gpkg").fails(5, "absent")


def test_existing_output_is_kept(cli, ids_scene):
    path, ids = ids_scene()
    Path("out.gpkg").write_text("precious")
    cli("run", path, "-o", "out.gpkg").fails(5, "out.gpkg", "--overwrite")
    assert Path("out.gpkg").read_text() == "precious"
    frame, _, _ = run_ok(cli, path, "--overwrite")
    assert len(frame) == len(np.unique(ids)) - 1


def test_unknown_format(cli, ids_scene):
    path, _ = ids_scene()
    cli("run", path, "-o", "out.xyz").fails(5, "out.xyz", ".gpkg")
    cli("run", path, "--format", "xyz").fails(5, "xyz", "gpkg")


def test_unknown_class_lists_the_known(cli, ids_scene, tmp_path):
    path, _ = ids_scene()
    cli("run", path, "--classes", "ship,boat").fails(2, "'boat'", "storage tank, ship, bridge")
    nothing_written(tmp_path)


def test_unknown_model_and_weights(ids_scene, tmp_path, monkeypatch, capsys):
    from rsgeoseg.cli.main import invoke

    path, _ = ids_scene()
    monkeypatch.chdir(tmp_path)
    assert invoke(["run", str(path), "--model", "rsprompter-quarry"]) == 4
    error = capsys.readouterr().err
    assert "rsprompter-quarry" in error
    assert "rsprompter-query" in error
    assert invoke(["run", str(path), "--weights", "absent.safetensors"]) == 4
    assert "absent.safetensors" in capsys.readouterr().err
    Path("rotten.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{broken}")
    assert invoke(["run", str(path), "--weights", "rotten.safetensors"]) == 4
    assert "rotten.safetensors" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.gpkg"))


SLOW_RUN = """
    import signal, sys, time
    sys.path.insert(0, {root!r})
    from rsgeoseg import registry
    from rsgeoseg.cli.main import main
    from rsgeoseg.testing.oracle import OracleSegmenter, oracle_spec

    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it

    class Slow(OracleSegmenter):
        def segment(self, chips, prompts=None):
            print("busy", flush=True)
            time.sleep(0.2)
            return super().segment(chips)

    slow = Slow(spec=oracle_spec(chip_size=64, overlap=0))
    registry.load_model = lambda name, weights=None, device="auto": slow
    main(sys.argv[1:])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.skipif(sys.platform == "win32", reason="signals differ")
def test_ctrl_c_leaves_nothing(ids_scene, tmp_path, number):
    path, _ = ids_scene(900, 900)
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", textwrap.dedent(SLOW_RUN).format(root=root), "run", str(path), "-o", "out.gpkg"]
    child = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "busy\n"
    start = time.perf_counter()
    child.send_signal(number)
    _, error = child.communicate(timeout=30)
    assert child.returncode == 130
    assert time.perf_counter() - start < 5
    assert error.splitlines()[-1].startswith("error: cancelled")
    assert [item.name for item in tmp_path.iterdir()] == ["scene.tif"]


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits")
def test_disk_full(ids_scene, tmp_path):
    """A limit on file size stops the write as a full disk does, in a child so that it hits nobody else."""
    path, _ = ids_scene(400, 400, count=40)
    program = """
        import resource, signal, sys
        sys.path.insert(0, {root!r})
        from rsgeoseg import registry
        from rsgeoseg.cli.main import main
        from rsgeoseg.testing.oracle import OracleSegmenter, oracle_spec
        registry.load_model = lambda name, weights=None, device="auto": OracleSegmenter(spec=oracle_spec(chip_size=96))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        main(sys.argv[1:])
    """
    code = textwrap.dedent(program).format(root=str(Path(__file__).parents[2]))
    command = [sys.executable, "-c", code, "run", str(path), "--stretch", "none", "-o", "out.gpkg"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 5, done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1
    assert "out.gpkg" in done.stderr
    assert [item.name for item in tmp_path.iterdir()] == ["scene.tif"]
