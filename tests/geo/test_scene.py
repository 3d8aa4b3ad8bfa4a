"""Scenes that can be read: every window must equal what one whole read by rasterio gives."""

import json
import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor

import geopandas
import numpy as np
import pytest
import rasterio
import rasterio.shutil
import shapely
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.enums import ColorInterp
from rasterio.features import geometry_mask
from scene_files import NORTH_UP, UTM, noise, real_scene, tiled, write, write_area

import rsgeoseg
from rsgeoseg.geo.scene import Scene
from rsgeoseg.geo.tiles import Tile, TileCache, cache_layout
from rsgeoseg.geo.windows import Box, plan_windows

LAYOUTS = {
    "tiles": tiled(),
    "tiles-deflate": tiled(32, compress="deflate", predictor=2),
    "bands-apart": tiled(interleave="band"),
    "strips": {"blockysize": 3, "compress": "lzw"},
    "one-strip": {"blockysize": 90},
}


def whole(scene) -> Box:
    return Box(0, 0, scene.grid.width, scene.grid.height)


def read_all(scene):
    return scene.read(whole(scene))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_windows_equal_the_whole_read(tmp_path, layout, dtype):
    image = noise(3, 90, 130, dtype)
    path = write(tmp_path / "a.tif", image, **LAYOUTS[layout])
    with Scene.open(path, value_range="raw") as scene:
        for window in plan_windows(90, 130, chip_size=40, overlap=9).windows:
            chip = scene.read(window.read)
            np.testing.assert_array_equal(chip.image, image[:, *window.read.as_slices()])
            assert chip.image.dtype == image.dtype
            assert chip.valid.all()
            assert chip.gsd == 0.5


@pytest.mark.parametrize("name", ["a.tif", "a.TIFF", "a.png", "a.jp2", "a.jpg", "a.jpeg", "a.vrt"])
def test_each_format_equals_rasterio(tmp_path, name):
    path = tmp_path / name
    drivers = {"png": "PNG", "jp2": "JP2OpenJPEG", "jpg": "JPEG", "jpeg": "JPEG"}
    if name == "a.vrt":
        source = write(tmp_path / "source.tif", noise(3, 70, 90))
        rasterio.shutil.copy(source, path, driver="VRT")
    else:
        write(path, noise(3, 70, 90), driver=drivers.get(name.split(".")[-1].lower(), "GTiff"))
    with rasterio.open(path) as dataset, Scene.open(path) as scene:
        expected = dataset.read()
        assert scene.grid.affine == dataset.transform
        for box in (whole(scene), Box(60, 40, 90, 70), Box(0, 0, 1, 1), Box(30, 10, 60, 50)):
            np.testing.assert_array_equal(scene.read(box).image, expected[:, *box.as_slices()])


def test_threads_read_what_one_thread_reads_and_decode_each_tile_once(tmp_path):
    image = noise(3, 1500, 1600)
    path = write(tmp_path / "a.tif", image, **tiled(256, compress="deflate"))
    plan = plan_windows(1500, 1600, chip_size=400, overlap=100)
    with Scene.open(path) as scene, ThreadPoolExecutor(4) as pool:
        chips = list(pool.map(lambda window: scene.read(window.read), plan.windows))
        assert scene._tiles.loads == 3 * 4  # tiles of 512; 20 windows touch 63 of them
    for window, chip in zip(plan.windows, chips, strict=True):
        np.testing.assert_array_equal(chip.image, image[:, *window.read.as_slices()])


def test_chips_are_the_callers_own(tmp_path):
    path = write(tmp_path / "a.tif", noise(3, 40, 40))
    with Scene.open(path) as scene:
        first = read_all(scene)
        kept = first.image.copy()
        first.image[:] = 0
        np.testing.assert_array_equal(read_all(scene).image, kept)
        assert first.valid.all()
        with pytest.raises(ValueError, match="read-only"):  # shared where all pixels are valid, so never to be changed
            first.valid[:] = False


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_box_of_a_scene_with_nodata(tmp_path, data):
    path = tmp_path / "a.tif"
    image = noise(3, 61, 83, seed=3)
    image[:, 20:40, 10:70] = 0
    image[0] //= 2  # a zero in one band is not nodata
    if not path.exists():
        write(path, image, nodata=0, **tiled())
    x0, y0 = data.draw(st.integers(0, 82)), data.draw(st.integers(0, 60))
    box = Box(x0, y0, data.draw(st.integers(x0 + 1, 83)), data.draw(st.integers(y0 + 1, 61)))
    with Scene.open(path) as scene:
        chip = scene.read(box)
    np.testing.assert_array_equal(chip.image, image[:, *box.as_slices()])
    np.testing.assert_array_equal(chip.valid, (image != 0).any(axis=0)[box.as_slices()])


# --- validity


def test_mask_band_and_alpha_and_nan(tmp_path):
    image = noise(3, 50, 60)
    hole = np.full((50, 60), 255, np.uint8)
    hole[10:30, 15:45] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        inside = write(tmp_path / "inside.tif", image, mask=hole, **tiled())
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False):
        beside = write(tmp_path / "beside.tif", image, mask=hole, **tiled())
    assert (tmp_path / "beside.tif.msk").exists()
    rgba = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    alpha = write(tmp_path / "alpha.tif", np.concatenate([image, hole[None]]), colors=rgba, **tiled())
    with_nan = image.astype(np.float32)
    with_nan[1, hole == 0] = np.nan
    with_nan[2, 12, 17] = np.inf
    floats = write(tmp_path / "floats.tif", with_nan, **tiled())
    for path in (inside, beside, alpha, floats):
        with Scene.open(path, value_range="raw") as scene:
            assert scene.band_indexes == (1, 2, 3)
            for box in (whole(scene), Box(14, 9, 47, 33)):
                chip = scene.read(box)
                np.testing.assert_array_equal(chip.valid, (hole > 0)[box.as_slices()])
                np.testing.assert_array_equal(chip.image, np.where(hole > 0, image, 0)[:, *box.as_slices()])


@pytest.mark.parametrize(
    ("dtype", "nodata"), [("uint16", 7), ("int16", -9999), ("float32", -9999.0), ("float64", float("nan"))]
)
def test_nodata_of_each_kind(tmp_path, dtype, nodata):
    image = noise(1, 40, 40, dtype) + 10
    image[0, 5:20, 5:20] = nodata
    path = write(tmp_path / "a.tif", image.astype(dtype), nodata=nodata, **tiled())
    with Scene.open(path) as scene:
        chip = read_all(scene)
        expected = np.ones((40, 40), bool)
        expected[5:20, 5:20] = False
        np.testing.assert_array_equal(chip.valid, expected)
        assert not chip.image[:, ~expected].any()
        json.dumps(scene.to_dict(), allow_nan=False)


def test_nodata_that_the_dtype_cannot_hold_means_nothing(tmp_path):
    path = write(tmp_path / "a.tif", noise(3, 20, 20), **tiled())
    text = tmp_path / "a.vrt"
    rasterio.shutil.copy(path, text, driver="VRT")
    text.write_text(text.read_text().replace("<ColorInterp>", "<NoDataValue>-9999.5</NoDataValue><ColorInterp>"))
    with Scene.open(text) as scene:
        assert read_all(scene).valid.all()


def test_all_nodata(tmp_path, caplog):
    path = write(tmp_path / "a.tif", np.zeros((3, 30, 30), np.uint16), nodata=0)
    with Scene.open(path) as scene:
        chip = read_all(scene)
        assert scene.stretch.low == (0, 0, 0)
    assert not chip.valid.any()
    assert not chip.image.any()
    assert "no valid pixel" in caplog.text


def test_one_pixel(tmp_path):
    path = write(tmp_path / "a.tif", np.full((3, 1, 1), 9, np.uint8))
    with Scene.open(path) as scene:
        chip = read_all(scene)
        assert chip.image.tolist() == [[[9]], [[9]], [[9]]]
        assert scene.read_thumbnail(100).image.shape == (3, 1, 1)


# --- bands


@pytest.mark.parametrize(
    ("count", "colors", "expected", "said"),
    [
        (1, None, (1, 1, 1), "using band 1 as all 3"),
        (2, None, (1, 1, 1), "using band 1 as all 3"),
        (3, None, (1, 2, 3), ""),
        (4, None, (1, 2, 3), "using the first"),
        (3, ["blue", "green", "red"], (3, 2, 1), ""),
        (5, ["undefined", "red", "blue", "green", "undefined"], (2, 4, 3), ""),
        (2, ["gray", "alpha"], (1, 1, 1), "using band 1 as all 3"),
    ],
)
def test_default_bands(tmp_path, caplog, count, colors, expected, said):
    options = {"photometric": "MINISBLACK"} if colors is None else {}
    interpretation = None if colors is None else [ColorInterp[color] for color in colors]
    image = noise(count, 20, 20)
    path = write(tmp_path / "a.tif", image, colors=interpretation, **options)
    with Scene.open(path) as scene:
        assert scene.band_indexes == expected
        if not colors or "alpha" not in colors:
            np.testing.assert_array_equal(read_all(scene).image, image[[band - 1 for band in expected]])
    assert said in caplog.text
    assert said or not caplog.records


def test_given_bands_in_any_order_and_one_band_repeated(tmp_path):
    image = noise(5, 20, 30, "uint16")
    path = write(tmp_path / "a.tif", image, **tiled())
    with Scene.open(path, bands=(5, 1, 5), value_range="raw") as scene:
        np.testing.assert_array_equal(read_all(scene).image, image[[4, 0, 4]])
    with Scene.open(path, bands=[2], value_range="raw") as scene:
        np.testing.assert_array_equal(read_all(scene).image, image[[1, 1, 1]])
    with Scene.open(path, bands=[4, 3, 2, 1], band_count=4, value_range="raw") as scene:
        np.testing.assert_array_equal(read_all(scene).image, image[[3, 2, 1, 0]])


def test_stretch_follows_the_band_order(tmp_path):
    image = np.stack([np.full((20, 20), 100), np.full((20, 20), 1000)]).astype(np.uint16)
    image[:, :10] *= 2
    path = write(tmp_path / "a.tif", image)
    with Scene.open(path, bands=(2, 1, 2)) as scene:
        assert scene.stretch.low == (1000, 100, 1000)
        assert (read_all(scene).image[:, 15] == 0).all()
        assert (read_all(scene).image[:, 5] == 255).all()


@pytest.mark.parametrize(("dtype", "expected"), [("uint16", "uint16"), ("int16", "float32"), ("float64", "float32")])
def test_raw_dtypes(tmp_path, dtype, expected):
    path = write(tmp_path / "a.tif", noise(3, 20, 20, dtype))
    with Scene.open(path, value_range="raw") as scene:
        assert read_all(scene).image.dtype == expected


# --- stretch


def test_16_bit_stretch_is_one_mapping_for_every_window(tmp_path):
    image = noise(3, 200, 300, "uint16")
    image[:, :100] //= 10
    path = write(tmp_path / "a.tif", image, **tiled())
    low, high = np.percentile(image.reshape(3, -1), (2, 98), axis=1)
    with Scene.open(path) as scene:
        np.testing.assert_allclose(scene.stretch.low, low)
        np.testing.assert_allclose(scene.stretch.high, high)
        exact = (image - low[:, None, None]) / (high - low)[:, None, None] * 255
        expected = np.clip(exact, 0, 255)
        for size in (64, 97, 300):
            for window in plan_windows(200, 300, chip_size=size, overlap=10).windows:
                difference = scene.read(window.read).image - expected[:, *window.read.as_slices()]
                assert np.abs(difference).max() <= 0.5 + 1e-6


def test_stretch_of_a_large_scene_without_overviews_decodes_little_and_is_close(tmp_path, monkeypatch):
    monkeypatch.setattr("rsgeoseg.geo.raster.WHOLE_SAMPLE_PIXELS", 1000)
    monkeypatch.setattr("rsgeoseg.geo.source._LATTICE_SIDE", 8)
    image = noise(3, 400, 500, "uint16")
    path = write(tmp_path / "a.tif", image, **tiled())
    with Scene.open(path) as scene:
        sample, valid = scene._raster.sample()
        assert sample.shape == (3, 256 * 8, 8)
        assert valid.all()
        low, high = np.percentile(image.reshape(3, -1), (2, 98), axis=1)
        np.testing.assert_allclose(scene.stretch.low, low, atol=60)
        np.testing.assert_allclose(scene.stretch.high, high, atol=60)


def test_aoi_does_not_change_the_stretch(tmp_path):
    path = write(tmp_path / "a.tif", noise(3, 100, 100, "uint16"), **tiled())
    with Scene.open(path) as scene, Scene.open(path, bbox=(500_005, 4_999_970, 500_020, 4_999_990)) as part:
        assert part.stretch == scene.stretch
        np.testing.assert_array_equal(read_all(part).image, scene.read(Box(10, 20, 40, 60)).image)


# --- georeference


@pytest.mark.parametrize(
    "affine",
    [
        Affine(0.5, 0, 500_000, 0, 0.5, 5_000_000),  # south-up
        NORTH_UP * Affine.rotation(33),
        NORTH_UP * Affine.shear(20, 5),
        Affine(-0.5, 0, 500_000, 0, -0.5, 5_000_000),  # mirrored
    ],
)
def test_any_affine_is_kept_whole(tmp_path, affine):
    image = noise(3, 40, 50)
    path = write(tmp_path / "a.tif", image, transform=affine)
    with Scene.open(path) as scene:
        np.testing.assert_allclose(scene.grid.affine[:6], affine[:6], rtol=1e-15)
        np.testing.assert_array_equal(read_all(scene).image, image)


def test_no_crs_means_pixel_coordinates_and_one_warning(tmp_path, caplog):
    path = write(tmp_path / "a.tif", noise(3, 20, 20), crs=None, transform=None)
    with Scene.open(path) as scene:
        read_all(scene)
        assert scene.grid.crs is None
        assert scene.grid.affine == Affine.identity()
        assert scene.read(Box(0, 0, 5, 5)).gsd is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no CRS" in caplog.text


@pytest.mark.parametrize(
    ("name", "driver", "world"),
    [("a.png", "PNG", "a.pgw"), ("a.jpg", "JPEG", "a.jgw"), ("a.tif", "GTiff", "a.tfw"), ("a.png", "PNG", "a.wld")],
)
def test_world_file(tmp_path, name, driver, world):
    path = write(tmp_path / name, noise(3, 20, 20), driver=driver, crs=None, transform=None)
    # Six lines: A D B E and the centre of the upper-left pixel.
    (tmp_path / world).write_text("0.5\n0.1\n0.2\n-0.5\n1000.25\n2000.0\n")
    with Scene.open(path) as scene:
        origin = (1000.25 - 0.5 / 2 - 0.2 / 2, 2000.0 - 0.1 / 2 + 0.5 / 2)
        np.testing.assert_allclose(scene.grid.affine[:6], (0.5, 0.2, origin[0], 0.1, -0.5, origin[1]))
        assert scene.grid.crs is None


def test_ground_control_points_that_fit(tmp_path, caplog):
    truth = NORTH_UP * Affine.rotation(10)
    points = [
        rasterio.control.GroundControlPoint(row=row, col=col, x=x, y=y)
        for row, col in [(0, 0), (0, 100), (80, 0), (80, 100), (40, 30)]
        for x, y in [truth * (col, row)]
    ]
    path = write(tmp_path / "a.tif", noise(3, 80, 100), crs=UTM, transform=None, gcps=points)
    with Scene.open(path) as scene:
        np.testing.assert_allclose(scene.grid.affine[:6], truth[:6], rtol=1e-9, atol=1e-6)
        assert scene.grid.crs == rasterio.crs.CRS.from_string(UTM)
        assert scene.grid.gsd == pytest.approx(0.5)
    assert "ground-control points only" in caplog.text


def test_rpc_only_is_no_georeference(tmp_path, caplog):
    path = write(tmp_path / "a.tif", noise(1, 20, 20), crs=None, transform=None)
    one = " ".join(["1"] + ["0"] * 19)
    rpc = rasterio.rpc.RPC(
        height_off=0, height_scale=1, lat_off=0, lat_scale=1, line_off=0, line_scale=1, long_off=0, long_scale=1,
        samp_off=0, samp_scale=1, line_num_coeff=[float(v) for v in one.split()], line_den_coeff=[1.0] + [0.0] * 19,
        samp_num_coeff=[1.0] + [0.0] * 19, samp_den_coeff=[1.0] + [0.0] * 19,
    )  # fmt: skip
    with rasterio.open(path, "r+") as dataset:
        dataset.rpcs = rpc
    with Scene.open(path) as scene:
        assert scene.grid.crs is None
    assert "RPCs but no CRS" in caplog.text


# --- area of interest and bounding box


def test_bbox_keeps_the_pixels_whose_centres_are_inside(tmp_path):
    image = noise(3, 40, 60)
    path = write(tmp_path / "a.tif", image, **tiled())
    # Columns 10.4 to 20.6 of 0.5 m pixels, rows 5 to 15.
    with Scene.open(path, bbox=(500_005.2, 4_999_992.5, 500_010.3, 4_999_997.5)) as scene:
        assert (scene.grid.width, scene.grid.height) == (11, 10)
        chip = read_all(scene)
        np.testing.assert_array_equal(chip.image, image[:, 5:15, 10:21])
        assert chip.valid.all()
        assert scene.grid.xy([(0, 0)]).tolist() == [[500_005.0, 4_999_997.5]]


def test_bbox_smaller_than_a_pixel_is_that_pixel(tmp_path):
    image = noise(3, 40, 60)
    path = write(tmp_path / "a.tif", image)
    with Scene.open(path, bbox=(500_005.05, 4_999_997.1, 500_005.1, 4_999_997.2)) as scene:
        np.testing.assert_array_equal(read_all(scene).image, image[:, 5:6, 10:11])


def test_bbox_of_a_rotated_scene_follows_the_world(tmp_path):
    affine = NORTH_UP * Affine.rotation(30)
    path = write(tmp_path / "a.tif", noise(3, 100, 100), transform=affine)
    x, y = affine * (50, 50)
    bounds = (x - 10, y - 5, x + 10, y + 5)
    with Scene.open(path, bbox=bounds) as scene:
        chip = read_all(scene)
        expected = geometry_mask([shapely.box(*bounds)], chip.valid.shape, scene.grid.affine, invert=True)
        np.testing.assert_array_equal(chip.valid, expected)
        assert 0.5 < chip.valid.sum() * 0.25 / 200 < 1.5


@pytest.mark.parametrize("name", ["area.geojson", "area.gpkg", "area.shp", "area.fgb"])
@pytest.mark.parametrize("affine", [NORTH_UP, NORTH_UP * Affine.rotation(20), Affine(0.5, 0, 5e5, 0, 0.5, 5e6)])
def test_aoi_in_another_crs(tmp_path, name, affine):
    image = noise(3, 120, 150)
    path = write(tmp_path / "a.tif", image, transform=affine, **tiled())
    x, y = affine * (75, 60)
    shapes = [shapely.Point(x, y).buffer(14), shapely.Point(x + 20, y).buffer(3)]
    in_degrees = geopandas.GeoSeries(shapes, crs=UTM).to_crs(4326)
    write_area(tmp_path / name, in_degrees, crs=4326)
    expected = geometry_mask(shapes, (120, 150), affine, invert=True)
    with Scene.open(path, aoi=tmp_path / name) as scene:
        origin = np.rint(scene.source_grid.pixels(scene.grid.xy([(0, 0)]))[0]).astype(int)
        for window in plan_windows(scene.grid.height, scene.grid.width, chip_size=25, overlap=6).windows:
            there = window.read.shifted(*origin.tolist()).as_slices()
            chip = scene.read(window.read)
            # A pixel whose centre the transformation moves by a micrometre over the outline may differ.
            assert (chip.valid != expected[there]).sum() <= 1
            np.testing.assert_array_equal(chip.image, np.where(chip.valid, image[:, *there], 0))
        assert scene.grid.height * scene.grid.width < 120 * 150
        assert scene.aoi_geometry.area == pytest.approx(sum(shape.area for shape in shapes), rel=1e-4)
        assert read_all(scene).valid.sum() == pytest.approx(expected.sum(), abs=4)


def test_aoi_with_a_hole_and_bbox_and_nodata_together(tmp_path):
    image = noise(3, 100, 100)
    image[:, 40:60, 40:60] = 0
    path = write(tmp_path / "a.tif", image, nodata=0, **tiled())
    square = shapely.box(500_000, 4_999_950, 500_050, 5_000_000)
    hole = shapely.box(500_010, 4_999_960, 500_015, 4_999_990)
    frame = geopandas.GeoDataFrame(geometry=[square.difference(hole)], crs=UTM)
    with Scene.open(path, aoi=frame, bbox=(500_005, 4_999_950, 500_050, 5_000_000)) as scene:
        valid = (image != 0).any(axis=0)
        valid[20:80, 20:30] = False
        np.testing.assert_array_equal(read_all(scene).valid, valid[:, 10:])


def test_aoi_without_crs_is_in_the_scenes(tmp_path, caplog):
    path = write(tmp_path / "a.tif", noise(3, 40, 40))
    area = shapely.box(500_001, 4_999_990, 500_010, 4_999_999)
    with Scene.open(path, aoi=geopandas.GeoSeries([area])) as scene:
        assert read_all(scene).valid.shape == (18, 18)
        assert "has no CRS" in caplog.text
    with Scene.open(path, aoi=area) as scene:
        assert read_all(scene).valid.all()


def test_aoi_of_the_whole_world(tmp_path):
    path = write(tmp_path / "a.tif", noise(3, 40, 40))
    world = write_area(tmp_path / "world.gpkg", [shapely.box(-180, -90, 180, 90)], crs=4326)
    with Scene.open(path, aoi=world) as scene:
        assert scene.grid == scene.source_grid
        assert read_all(scene).valid.all()


# --- resampling


@pytest.mark.parametrize("affine", [NORTH_UP, NORTH_UP * Affine.rotation(25), Affine(0.5, 0, 5e5, 0, 0.5, 5e6)])
def test_gsd_coarser_is_the_mean_of_the_pixels(tmp_path, affine):
    image = noise(3, 120, 160)
    path = write(tmp_path / "a.tif", image, transform=affine, **tiled())
    with Scene.open(path, gsd=2.0) as scene:
        assert (scene.grid.height, scene.grid.width) == (30, 40)
        assert scene.grid.gsd == pytest.approx(2.0)
        np.testing.assert_allclose(scene.grid.corners, scene.source_grid.corners, atol=1e-6)
        expected = image.reshape(3, 30, 4, 40, 4).mean(axis=(2, 4))
        assert np.abs(read_all(scene).image - expected).max() <= 0.51
        whole_read = read_all(scene).image
        for window in plan_windows(30, 40, chip_size=16, overlap=4).windows:
            np.testing.assert_array_equal(scene.read(window.read).image, whole_read[:, *window.read.as_slices()])


def test_gsd_finer_keeps_places(tmp_path):
    ramp = np.broadcast_to(np.arange(0, 200, 2, dtype=np.uint8), (3, 80, 100)).copy()
    path = write(tmp_path / "a.tif", ramp)
    with Scene.open(path, gsd=0.125) as scene:
        assert (scene.grid.height, scene.grid.width) == (320, 400)
        image = read_all(scene).image
    # Linear between pixel centres: value at fine column c is that of place (c + 0.5) / 4 - 0.5.
    expected = 2 * ((np.arange(8, 392) + 0.5) / 4 - 0.5)
    assert np.abs(image[0, 100, 8:392] - expected).max() <= 0.51


def test_gsd_that_does_not_divide_the_scene(tmp_path):
    path = write(tmp_path / "a.tif", noise(3, 101, 47))
    with Scene.open(path, gsd=0.85) as scene:
        assert (scene.grid.height, scene.grid.width) == (59, 28)
        assert scene.grid.affine.a == pytest.approx(0.85)
        assert read_all(scene).valid.all()


@pytest.mark.parametrize("kind", ["nodata", "mask", "alpha", "nan"])
def test_gsd_keeps_what_is_not_valid(tmp_path, kind):
    image = noise(3, 80, 80, "float32" if kind == "nan" else "uint8")
    hole = np.full((80, 80), 255, np.uint8)
    hole[20:40, 20:60] = 0
    options = {"nodata": 0} if kind == "nodata" else {"mask": hole} if kind == "mask" else {}
    if kind == "nodata":
        image[:, hole == 0] = 0
    if kind == "nan":
        image[:, hole == 0] = np.nan
    if kind == "alpha":
        image = np.concatenate([image, hole[None]])
        options["colors"] = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    path = write(tmp_path / "a.tif", image, **tiled(), **options)
    with Scene.open(path, gsd=2.0, value_range="raw") as scene:
        chip = read_all(scene)
    expected = np.ones((20, 20), bool)
    expected[5:10, 5:15] = False
    np.testing.assert_array_equal(chip.valid, expected)
    means = image[:3].reshape(3, 20, 4, 20, 4).mean(axis=(2, 4))
    assert np.abs(chip.image - means)[:, expected].max() <= 0.51


def test_gsd_in_degrees_makes_square_pixels(tmp_path):
    step = 1e-5
    affine = Affine(step, 0, 10, 0, -step, 60)
    path = write(tmp_path / "a.tif", noise(3, 100, 200), crs="EPSG:4326", transform=affine)
    with Scene.open(path, gsd=3.0) as scene:
        assert scene.grid.pixel_size == pytest.approx((3.0, 3.0), rel=1e-3)
        assert scene.grid.bounds == pytest.approx(scene.source_grid.bounds, abs=3 * step)


def test_gsd_of_the_scene_itself_changes_nothing(tmp_path):
    image = noise(3, 30, 30)
    path = write(tmp_path / "a.tif", image)
    with Scene.open(path, gsd=0.5) as scene:
        np.testing.assert_array_equal(read_all(scene).image, image)
        assert scene.grid == scene.source_grid


# --- thumbnail, record, life cycle


def test_thumbnail_is_the_mean_and_knows_its_size(tmp_path):
    image = noise(3, 120, 160)
    path = write(tmp_path / "a.tif", image, **tiled())
    with Scene.open(path) as scene:
        chip = scene.read_thumbnail(40)
        assert chip.gsd == pytest.approx(2.0)
        expected = image.reshape(3, 30, 4, 40, 4).mean(axis=(2, 4))
        assert np.abs(chip.image - expected).max() <= 0.51
        np.testing.assert_array_equal(scene.read_thumbnail(1000).image, image)


def test_thumbnail_of_a_part_at_another_gsd(tmp_path):
    image = noise(3, 160, 160)
    path = write(tmp_path / "a.tif", image, **tiled())
    triangle = shapely.Polygon([(500_020, 4_999_980), (500_060, 4_999_980), (500_020, 4_999_940)])
    with Scene.open(path, gsd=1.0, aoi=triangle) as scene:
        assert (scene.grid.width, scene.grid.height) == (40, 40)
        chip = scene.read_thumbnail(20)
        expected = image[:, 40:120, 40:120].reshape(3, 20, 4, 20, 4).mean(axis=(2, 4))
        assert np.abs(chip.image - expected)[:, chip.valid].max() <= 0.51
        assert 0.4 < chip.valid.mean() < 0.6
        assert chip.valid[2, 2]
        assert not chip.valid[18, 18]
        assert not chip.image[:, ~chip.valid].any()


def test_overviews_beside_the_file_are_used(tmp_path):
    image = noise(3, 64, 64)
    with rasterio.Env(TIFF_USE_OVR=True):
        path = write(tmp_path / "a.tif", image, overviews=[2, 4])
    assert (tmp_path / "a.tif.ovr").exists()
    with rasterio.open(tmp_path / "a.tif.ovr", "r+") as overview:
        overview.write(np.full((3, 32, 32), 77, np.uint8))
    with Scene.open(path) as scene:
        assert scene._info.has_overviews
        assert (scene.read_thumbnail(32).image == 77).all()


@pytest.mark.parametrize("close_first", [False, True])
def test_a_scene_pickles_as_how_to_reopen(tmp_path, monkeypatch, close_first):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.tif", noise(4, 60, 60, "uint16"), **tiled())
    area = write_area(tmp_path / "area.gpkg", [shapely.box(500_001, 4_999_975, 500_020, 4_999_999)])
    scene = Scene.open("a.tif", bands=(4, 2, 1), aoi=area, gsd=1.0, stretch="percentile:5,95")
    chip = read_all(scene)
    if close_first:
        scene.close()
    text = pickle.dumps(scene)
    monkeypatch.chdir("/")
    with pickle.loads(text) as other:
        assert other._stretch == scene._stretch
        assert other.grid == scene.grid
        np.testing.assert_array_equal(read_all(other).image, chip.image)
    scene.close()


def test_reading_after_close_opens_again(tmp_path):
    image = noise(3, 20, 20)
    with Scene.open(write(tmp_path / "a.tif", image)) as scene:
        read_all(scene)
    np.testing.assert_array_equal(read_all(scene).image, image)
    scene.close()


def _read_sum(scene):
    return int(read_all(scene).image.sum())


def test_another_process_can_read_it(tmp_path):
    image = noise(3, 50, 50)
    pools = multiprocessing.get_context("spawn")
    with Scene.open(write(tmp_path / "a.tif", image)) as scene, pools.Pool(1) as pool:
        assert pool.apply(_read_sum, (scene,)) == image.sum()


def test_record_is_json_and_complete(tmp_path):
    path = write(tmp_path / "a.tif", noise(4, 30, 40, "uint16"), nodata=0)
    with Scene.open(path, bands=(3, 2, 1), bbox=(500_002, 4_999_986, 500_018, 4_999_998)) as scene:
        record = json.loads(json.dumps(scene.to_dict(), allow_nan=False))
        assert scene._stretch is None  # describing reads no pixel
    assert record["path"] == str(path)
    assert (record["width"], record["height"], record["file_width"], record["file_height"]) == (32, 24, 40, 30)
    assert record["bands"] == [3, 2, 1]
    assert (record["crs"], record["dtype"], record["nodata"], record["gsd_m"]) == (UTM, "uint16", 0, 0.5)


def test_fingerprint_changes_with_the_content(tmp_path):
    image = noise(3, 30, 30)
    path = write(tmp_path / "a.tif", image)
    with Scene.open(path) as scene:
        before = scene.fingerprint()
        assert scene.fingerprint() == before
        image[0, 0, 0] += 1
        write(path, image)
        assert scene.fingerprint()["sha256_ends"] != before["sha256_ends"]


def test_a_box_outside_is_a_mistake_of_the_caller(tmp_path):
    with Scene.open(write(tmp_path / "a.tif", noise(3, 20, 20))) as scene, pytest.raises(ValueError, match="leaves"):
        scene.read(Box(0, 0, 21, 20))


def test_public_name():
    assert rsgeoseg.Scene is Scene


# --- the cache of tiles


def test_cache_stays_within_its_capacity_and_row_order_decodes_once():
    loads = []

    def load(box):
        loads.append(box)
        return Tile(np.zeros((1, box.height, box.width), np.uint8), None)

    # Tiles of 10 x 10; a row of tiles is 1,000 bytes, and two rows fit.
    cache = TileCache(100, 100, tile=(10, 10), load=load, capacity=2600)
    for window in plan_windows(100, 100, chip_size=14, overlap=4).windows:
        list(cache.tiles(window.read))
        assert cache.nbytes <= 2600
    assert len(loads) == len(set(loads)) == 100


def test_a_tile_that_failed_is_tried_again():
    calls = []

    def load(box):
        calls.append(box)
        if len(calls) == 1:
            raise OSError(28, "first time")
        return Tile(None, None)

    cache = TileCache(10, 10, tile=(10, 10), load=load, capacity=100)
    with pytest.raises(OSError, match="first time"):
        list(cache.tiles(Box(0, 0, 5, 5)))
    assert list(cache.tiles(Box(0, 0, 5, 5))) == [(Box(0, 0, 10, 10), Tile(None, None))]


@pytest.mark.parametrize(
    ("width", "block", "expected"),
    [
        (65_536, (512, 512), (512, 512)),
        (65_536, (256, 256), (512, 512)),
        (65_536, (1024, 1024), (1024, 1024)),
        (65_536, (1, 65_536), (128, 65_536)),
        (65_536, (300, 65_536), (300, 65_536)),
        (400, (512, 512), (512, 400)),
        (9_000, None, (512, 512)),
    ],
)
def test_tiles_are_whole_blocks(width, block, expected):
    assert cache_layout(width, block=block, pixel_bytes=3)[0] == expected


def test_a_row_of_tiles_of_a_wide_scene_fits():
    _, capacity = cache_layout(65_536, block=(512, 512), pixel_bytes=3)
    assert 65_536 * 512 * 3 < capacity <= 128 << 20


# --- real files


@pytest.mark.parametrize("name", ["landsat_rgb_nodata.tif", "neon_osbs_rgb_utm17.tif", "sentinel2_8band_uint16.tif"])
def test_real_scenes_window_by_window(name):
    path = real_scene(name)
    with rasterio.open(path) as dataset, Scene.open(path, bands=(1, 2, 3), value_range="raw") as scene:
        expected = dataset.read([1, 2, 3])
        valid = dataset.dataset_mask() > 0
        for window in plan_windows(dataset.height, dataset.width, chip_size=200, overlap=31).windows:
            chip = scene.read(window.read)
            there = window.read.as_slices()
            np.testing.assert_array_equal(chip.valid, valid[there])
            np.testing.assert_array_equal(chip.image, np.where(valid[there], expected[:, *there], 0))


def test_real_16_bit_scene_is_stretched_sensibly():
    with Scene.open(real_scene("sentinel2_8band_uint16.tif"), bands=(3, 2, 1)) as scene:
        chip = read_all(scene)
    assert chip.image.dtype == np.uint8
    for band in chip.image:
        assert 0.01 < (band == 0).mean() < 0.04
        assert 0.01 < (band == 255).mean() < 0.04
        assert 60 < band.mean() < 160
