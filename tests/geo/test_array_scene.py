"""A DataArray, in memory or lazy, is the same scene as the file that holds its values."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import dask.array as da
import numpy as np
import pytest
import rioxarray
import shapely
import xarray as xr
from affine import Affine
from dask.optimization import cull
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasters import draw_ids, write_raster

import rsgeoseg
from rsgeoseg.errors import SceneError, WindowError
from rsgeoseg.geo import array_reader, array_values, arrays, raster
from rsgeoseg.geo.scene import Scene
from rsgeoseg.geo.windows import Box
from rsgeoseg.testing.oracle import OracleSegmenter, encode_ids, oracle_spec

pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning", "ignore:The specified chunks")

AFFINE = Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000)
UTM = CRS.from_epsg(32631)
ORDERS = [("band", "y", "x"), ("y", "x", "band"), ("x", "band", "y")]


def pixels(dtype="uint8", bands=3, height=70, width=90, seed=0):
    """Values from 1 to 200: 0 and what is above is free for nodata."""
    rng = np.random.default_rng(seed)
    if dtype == "bool":
        return rng.random((bands, height, width)) > 0.5
    return (rng.random((bands, height, width)) * 200 + 1).astype(dtype)


def array(values, affine=AFFINE, crs=UTM, nodata=None, dims=("band", "y", "x")):
    _, height, width = values.shape
    coords = {"x": affine.c + affine.a * (np.arange(width) + 0.5), "y": affine.f + affine.e * (np.arange(height) + 0.5)}
    data = xr.DataArray(values, dims=("band", "y", "x"), coords=coords, name="scene").transpose(*dims)
    data = data.rio.write_crs(crs) if crs is not None else data
    return data.rio.write_nodata(nodata) if nodata is not None else data


def stored(folder, values, chunks="auto", shape=(3, 32, 40), **how):
    """The same array from a Zarr store, in Dask chunks or (None) without Dask."""
    data = array(values, **how)
    data.encoding["chunks"] = shape
    data.to_zarr(folder / "a.zarr", mode="w")
    opened = xr.open_zarr(folder / "a.zarr", chunks={} if chunks == "auto" else chunks, decode_coords="all")
    return opened["scene"]


def whole(scene):
    return Box(0, 0, scene.grid.width, scene.grid.height)


def assert_same(one: Scene, other: Scene, box: Box, tolerance=0):
    a, b = one.read(box), other.read(box)
    assert a.image.dtype == b.image.dtype
    assert a.gsd == b.gsd
    np.testing.assert_array_equal(a.valid, b.valid)
    assert np.abs(a.image.astype(float) - b.image).max() <= tolerance


# --- the same as the file


@pytest.mark.parametrize("dims", ORDERS)
@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [
        ("uint8", None), ("uint8", 7), ("uint16", 0), ("int16", -1), ("uint32", 3), ("int64", -5),
        ("float32", None), ("float32", -9999.0), ("float64", np.nan), ("bool", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("value_range", ["uint8", "raw"])
def test_chips_grid_and_stretch_are_those_of_the_file(tmp_path, dims, dtype, nodata, value_range):
    values = pixels(dtype)
    values[:, 5:30, 40:] = 3 if nodata is None else nodata
    if np.dtype(dtype).kind == "f":
        values[0, :10, :10], values[1, 50, 50] = np.nan, np.inf
    path = write_raster(
        tmp_path / "a.tif", values.astype("uint8") if dtype == "bool" else values, affine=AFFINE, crs=UTM, nodata=nodata
    )
    data = array(values, nodata=nodata, dims=dims)
    with Scene.open(path, value_range=value_range) as file, Scene.open(data, value_range=value_range) as scene:
        assert scene.grid == file.grid
        assert scene.dtype == file.dtype
        assert scene.stretch == file.stretch
        assert (scene.nodata == file.nodata) or np.isnan(scene.nodata)
        for box in (whole(file), Box(13, 4, 60, 41), Box(89, 69, 90, 70)):
            assert_same(file, scene, box)


KINDS = {
    "memory": lambda data: data,
    "even chunks": lambda data: data.chunk({"y": 32, "x": 40, "band": 1}),
    "uneven chunks": lambda data: data.chunk({"y": (7, 40, 23), "x": (50, 11, 29), "band": (1, 2)}),
    "sliced chunks": lambda data: (
        data.pad(y=(5, 0), x=(9, 0), constant_values=1).chunk({"y": 16, "x": 20})[:, 5:, 9:].assign_coords(data.coords)
    ),
}


@settings(max_examples=60, deadline=None)
@given(
    x=st.integers(0, 80), y=st.integers(0, 60), width=st.integers(1, 90), height=st.integers(1, 70),
    gsd=st.sampled_from([None, None, 0.3, 0.8, 1.1, 3.7]), kind=st.sampled_from(sorted(KINDS)),
    bands=st.sampled_from([None, (3, 1, 1), (2, 2, 2)]), nodata=st.sampled_from([None, 7]),
)  # fmt: skip
def test_any_window_is_that_of_the_file(tmp_path_factory, x, y, width, height, gsd, kind, bands, nodata):
    """Exactly at the array's own pixels; within one grey value after resampling (the same GDAL code does both).

    Resampled with a nodata value, a file counts as nodata what is so in all its bands, an array in all bands read.
    """
    bands = None if gsd and nodata is not None else bands
    values = pixels()
    values[:, 20:33, 30:71] = 7
    path = write_raster(tmp_path_factory.mktemp("a") / "a.tif", values, affine=AFFINE, crs=UTM, nodata=nodata)
    data = KINDS[kind](array(values, nodata=nodata))
    with Scene.open(path, gsd=gsd, bands=bands) as file, Scene.open(data, gsd=gsd, bands=bands) as scene:
        assert scene.grid == file.grid
        box = whole(file).intersection(Box(x, y, x + width, y + height))
        if box is not None:
            assert_same(file, scene, box, tolerance=0 if gsd is None else 1)


@pytest.mark.parametrize("dtype", ["uint16", "float32", "float64", "int64"])
@pytest.mark.parametrize("gsd", [0.31, 0.9, 4.0])
def test_resampling_is_that_of_the_file_for_wide_values(tmp_path, dtype, gsd):
    values = pixels(dtype, height=300, width=260)
    values[:, 40:90, 100:] = 0
    values[0, 200, 30] = 0  # in one band only: not nodata
    path = write_raster(tmp_path / "a.tif", values, affine=AFFINE, crs=UTM, nodata=0)
    data = array(values, nodata=0).chunk({"y": 64, "x": 64})
    with Scene.open(path, gsd=gsd, value_range="raw") as file, Scene.open(data, gsd=gsd, value_range="raw") as scene:
        assert_same(file, scene, whole(file), tolerance=1 if values.dtype.kind != "f" else 1e-3)


def test_resampling_in_pieces_is_resampling_at_once(monkeypatch):
    data = array(pixels(height=300, width=260))
    with Scene.open(data, gsd=1.3) as scene:
        at_once = scene.read(whole(scene))
    monkeypatch.setattr(array_reader, "_PIECE", 50)
    with Scene.open(data, gsd=1.3) as scene:
        in_pieces = scene.read(whole(scene))
    assert np.abs(at_once.image.astype(int) - in_pieces.image).max() <= 1


@pytest.mark.parametrize("shape", [(130, 2300), (2049, 70), (2100, 2060)])
def test_the_stretch_of_a_decimated_sample_is_that_of_the_file(tmp_path, shape):
    values = pixels("uint16", 3, *shape) * 37
    path = write_raster(tmp_path / "a.tif", values, affine=AFFINE, crs=UTM, nodata=0)
    with Scene.open(path) as file:
        for data in (array(values, nodata=0), array(values, nodata=0).chunk({"y": 300, "x": 700})):
            with Scene.open(data) as scene:
                assert scene.stretch == file.stretch


def test_the_stretch_of_a_huge_scene_is_that_of_the_file(tmp_path, monkeypatch):
    values = pixels("uint16", height=700, width=900) * 37
    path = write_raster(tmp_path / "a.tif", values, affine=AFFINE, crs=UTM)
    for module in (raster, array_reader):
        monkeypatch.setattr(module, "WHOLE_SAMPLE_PIXELS", 1000)
    with Scene.open(path) as file, Scene.open(array(values).chunk({"y": 200, "x": 250})) as scene:
        assert scene.stretch == file.stretch


@pytest.mark.parametrize("gsd", [None, 0.9])
def test_thumbnails_area_and_bounding_box_are_those_of_the_file(tmp_path, gsd):
    values = pixels("uint8", height=300, width=400)
    path = write_raster(tmp_path / "a.tif", values, affine=AFFINE, crs=UTM)
    area = shapely.Point(500_100, 5_399_930).buffer(60)
    how = {"gsd": gsd, "aoi": area, "bbox": (500_050, 5_399_860, 500_170, 5_399_980)}
    for data in (array(values), array(values).chunk({"y": 100, "x": 100})):
        with Scene.open(path, **how) as file, Scene.open(data, **how) as scene:
            assert scene.grid == file.grid
            assert_same(file, scene, whole(file), tolerance=0 if gsd is None else 1)
            a, b = file.read_thumbnail(50), scene.read_thumbnail(50)
            np.testing.assert_array_equal(a.valid, b.valid)
            assert np.abs(a.image.astype(int) - b.image).max() <= 1


@pytest.mark.parametrize(
    ("affine", "crs", "names"),
    [
        (AFFINE, UTM, {}),
        (Affine(0.5, 0, 500_000, 0, 0.5, 5_300_000), UTM, {}),
        (Affine(1e-5, 0, 3.1, 0, -1e-5, 45.2), CRS.from_epsg(4326), {"x": "lon", "y": "lat"}),
        (Affine(1e-5, 0, 3.1, 0, -1e-5, 45.2), CRS.from_epsg(4326), {"x": "longitude", "y": "latitude"}),
    ],
)
def test_a_run_gives_the_features_that_the_file_gives(tmp_path, affine, crs, names):
    image = encode_ids(draw_ids(300, 260, seed=3))
    model = OracleSegmenter(spec=oracle_spec(chip_size=96, overlap=24))
    path = write_raster(tmp_path / "a.tif", image, affine=affine, crs=crs)
    from_file = rsgeoseg.run(path, model, stretch="none")
    assert len(from_file) > 5
    lazy = stored(tmp_path, image, shape=(3, 100, 100), affine=affine, crs=crs)
    for data in (array(image, affine, crs), lazy):
        output = tmp_path / "out.gpkg"
        found = rsgeoseg.run(data.rename(names), model, stretch="none", output=output, overwrite=True)
        assert output.exists()
        assert found.crs == from_file.crs
        columns = [name for name in from_file.columns if name != "geometry"]
        for name in columns:
            if found[name].dtype.kind == "f":  # coordinates of centres do not keep the last digits of an affine
                np.testing.assert_allclose(found[name], from_file[name], rtol=1e-9)
            else:
                np.testing.assert_array_equal(found[name], from_file[name])
        assert found.geometry.geom_equals_exact(from_file.geometry, 1e-9).all()
        record = found.attrs["rsgeoseg"]["scene"]
        assert (record["driver"], record["path"]) == ("xarray", "DataArray scene")
        json.dumps(record, allow_nan=False)


# --- what an array may look like


@pytest.mark.parametrize("how", [{}, {"chunks": {"x": 40, "y": 40}}, {"masked": True}, {"cache": False}])
def test_what_rioxarray_opens_is_the_file(tmp_path, how):
    values = pixels("uint16")
    values[:, 3:9, 3:9] = 0
    affine = Affine(0.1, 0, 500_000.3, 0, -0.1, 5_400_000.7)  # centres of such pixels are not exact
    path = write_raster(tmp_path / "a.tif", values, affine=affine, crs=UTM, nodata=0)
    opened = rioxarray.open_rasterio(path, **how)
    with Scene.open(path, stretch="minmax:0,200") as file, Scene.open(opened, stretch="minmax:0,200") as scene:
        assert scene.grid == file.grid
        assert_same(file, scene, whole(file), tolerance=1 if "masked" in how else 0)  # masked: in float32
        assert not scene.read(whole(file)).valid.all()


@pytest.mark.parametrize("how", ["dask", "lazy", "memory", "masked"])
@pytest.mark.parametrize("nodata", [None, 0, 77])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_file_that_went_through_zarr_is_the_same_scene(tmp_path, how, nodata, dtype):
    """rioxarray writes a scale of 1, and xarray makes floats of what has a scale or a fill value."""
    values = pixels(dtype)
    if nodata is not None:
        values[:, 10:30, 20:50] = nodata
    path = write_raster(tmp_path / "a.tif", values, nodata=nodata)
    if how == "masked":
        data = rioxarray.open_rasterio(path, masked=True, chunks={"x": 40, "y": 32})
    else:
        rioxarray.open_rasterio(path, chunks={"x": 40, "y": 32}).rename("rgb").to_zarr(tmp_path / "a.zarr")
        data = xr.open_zarr(tmp_path / "a.zarr", decode_coords="all", chunks=None if how == "lazy" else {})["rgb"]
        if how == "memory":
            data = data.load()
        assert data.dtype.kind == "f"  # or there would be nothing to test
    with Scene.open(path) as file, Scene.open(data) as scene:
        assert scene.dtype == file.dtype == dtype
        assert scene.nodata == file.nodata
        assert scene.stretch == file.stretch
        for box in (Box(0, 0, 90, 70), Box(30, 20, 60, 60)):
            one, other = file.read(box), scene.read(box)
            assert np.array_equal(one.image, other.image)
            assert np.array_equal(one.valid, other.valid)


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize(("stored", "meant", "fill", "nodata"), [("i1", "u1", -1, 255), ("u2", "i2", 65535, -1)])
def test_unsigned_integers_of_netcdf(stored, meant, fill, nodata, lazy):
    """NetCDF 3 has signed integers only; an attribute says what they mean."""
    values = np.random.default_rng(0).integers(*((0, 256) if meant == "u1" else (-300, 300)), (3, 40, 50)).astype(meant)
    attributes = {"_Unsigned": str(meant[0] == "u").lower(), "_FillValue": np.dtype(stored).type(fill)}
    raw = array(values.view(stored)).assign_attrs(attributes).to_dataset(name="rgb")
    data = xr.decode_cf(raw.chunk(20) if lazy else raw)["rgb"]
    assert data.dtype.kind == "f"
    with (
        Scene.open(data, value_range="raw") as scene,
        Scene.open(array(values, nodata=nodata), value_range="raw") as own,
    ):
        assert scene.dtype == own.dtype == meant
        one, other = scene.read(Box(0, 0, 50, 40)), own.read(Box(0, 0, 50, 40))
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.valid, other.valid)


def test_what_was_computed_from_decoded_values_is_taken_as_it_is(tmp_path):
    path = write_raster(tmp_path / "a.tif", pixels())
    rioxarray.open_rasterio(path).rename("rgb").to_zarr(tmp_path / "a.zarr")
    data = xr.open_zarr(tmp_path / "a.zarr", decode_coords="all")["rgb"]
    halves = data.copy(data=data.data / 2)  # its encoding stays
    with Scene.open(halves.compute()) as scene, Scene.open(halves.drop_encoding()) as lazy:
        assert scene.dtype == lazy.dtype == "float64"
        assert np.array_equal(scene.read(Box(0, 0, 90, 70)).image, lazy.read(Box(0, 0, 90, 70)).image)
    with Scene.open(halves) as scene, pytest.raises(SceneError, match=r"forget that with data\.drop_encoding\(\)"):
        scene.read(Box(0, 0, 90, 70))
    scaled = data.copy()
    scaled.encoding["scale_factor"] = 0.5
    with Scene.open(scaled) as scene:
        assert scene.dtype == "float64"


def test_zarr_with_and_without_dask(tmp_path):
    values = pixels("float32")
    values[:, 3:9, 3:9] = np.nan
    for chunks in ("auto", None):
        data = stored(tmp_path, values, chunks, nodata=None)
        with Scene.open(array(values)) as expected, Scene.open(data) as scene:
            assert_same(expected, scene, whole(expected))
            assert not data.variable._in_memory, "the array itself stays as lazy as it was"


def test_nodata_wherever_xarray_keeps_it():
    values = pixels("int16")
    values[:, :5] = -7
    plain = array(values)
    encoded = plain.copy()
    encoded.encoding["_FillValue"] = -7  # as where mask_and_scale was off
    masked = plain.where(plain != -7)
    masked.encoding["_FillValue"] = -7
    by_attribute = (
        plain.assign_attrs(nodata=-7),
        plain.assign_attrs(missing_value=-7),
        plain.assign_attrs(_FillValue=-7),
    )
    for data in (*by_attribute, encoded, masked, plain.rio.set_nodata(-7)):
        with Scene.open(data) as scene:
            valid = scene.read(whole(scene)).valid
            assert not valid[:5].any()
            assert valid[5:].all()
    for never in (-999_999, 1.5, np.nan):  # no int16
        with Scene.open(plain.assign_attrs(_FillValue=never)) as scene:
            assert scene.nodata is None
            assert scene.read(whole(scene)).valid.all()


@pytest.mark.parametrize("dtype", ["float16", ">f4", ">i2", "longdouble"])
def test_dtypes_that_files_do_not_know(dtype):
    values = pixels("uint8")
    for gsd in (None, 0.7):
        data = array(values.astype(dtype)), array(values.astype(dtype)).chunk({"y": 30})
        with Scene.open(array(values), gsd=gsd, stretch="none") as expected:
            for each in data:
                with Scene.open(each, gsd=gsd, stretch="none") as scene:
                    assert_same(expected, scene, whole(expected), tolerance=0 if gsd is None else 1)


def test_one_band_with_and_without_its_dimension_and_dimensions_of_length_one():
    data = array(pixels(bands=1))
    flat = data.isel(band=0)
    for each in (data, flat, data.expand_dims(time=1), flat.expand_dims(level=1).transpose("x", "level", "y")):
        with Scene.open(each) as scene:
            assert scene.band_indexes == (1, 1, 1)
            np.testing.assert_array_equal(scene.read(whole(scene)).image[2], data.values[0])


def test_bands_by_name_number_and_to_array():
    data = array(pixels(bands=4))
    named = data.assign_coords(band=["blue", "green", "red", "nir"])
    with Scene.open(named) as scene:
        assert scene.band_indexes == (3, 2, 1)
        assert scene.to_dict()["band_names"] == ["blue", "green", "red", "nir"]
    with Scene.open(named, bands=(4, 1, 2)) as scene:
        np.testing.assert_array_equal(scene.read(whole(scene)).image, data.values[[3, 0, 1]])
    with Scene.open(named.to_dataset("band").to_array("band").rename("scene")) as scene:
        assert scene.band_indexes == (3, 2, 1)
    with Scene.open(data.assign_attrs(long_name=("a", "b", "c", "d"))) as scene:
        assert scene.to_dict()["band_names"] == ["a", "b", "c", "d"]
        assert scene.band_indexes == (1, 2, 3)
    with pytest.raises(SceneError, match="no band 5: it has 4"):
        Scene.open(data, bands=(1, 2, 5))


# --- where it lies


def test_slices_lie_where_they_lie_although_the_noted_affine_is_stale(tmp_path):
    path = write_raster(tmp_path / "a.tif", pixels(), affine=AFFINE, crs=UTM)
    data = rioxarray.open_rasterio(path)
    cases = [
        (slice(20, 60), slice(10, 50), Affine(0.5, 0, 500_005, 0, -0.5, 5_399_990)),
        (slice(20, 60, 2), slice(10, 50, 4), Affine(2, 0, 500_004.25, 0, -1, 5_399_990.25)),
        (slice(3, 4), slice(10, 50), Affine(0.5, 0, 500_005, 0, -0.5, 5_399_998.5)),
        (slice(None, None, -1), slice(None), Affine(0.5, 0, 500_000, 0, 0.5, 5_399_965)),
    ]
    for rows, cols, affine in cases:
        with Scene.open(data.isel(y=rows, x=cols)) as scene:
            assert tuple(scene.grid.affine)[:6] == pytest.approx(tuple(affine)[:6], rel=1e-12)


def test_affines_that_coordinates_do_not_say():
    rotated = Affine.translation(500_000, 5_400_000) * Affine.rotation(30) * Affine.scale(0.5, -0.5)
    bare = xr.DataArray(pixels(), dims=("band", "y", "x"))
    with Scene.open(bare.rio.write_transform(rotated).rio.write_crs(UTM)) as scene:
        assert tuple(scene.grid.affine)[:6] == pytest.approx(tuple(rotated)[:6])
    with Scene.open(bare) as scene:
        assert scene.grid.affine.is_identity
        assert scene.grid.crs is None


def test_coordinates_in_float32_are_even_enough():
    data = array(pixels(), Affine(1e-4, 0, 3, 0, -1e-4, 45), CRS.from_epsg(4326))
    short = data.assign_coords(x=data.x.astype("float32"), y=data.y.astype("float32"))
    with Scene.open(short) as scene, Scene.open(data) as exact:
        off = np.abs(scene.grid.corners - exact.grid.corners)
        assert off.max() < 0.1 * 1e-4


def test_a_missing_crs_is_said(caplog):
    with Scene.open(array(pixels(), crs=None)) as scene:
        assert scene.grid.crs is None
    assert "write_crs" in caplog.text


def test_dimensions_named_by_the_user():
    data = array(pixels()).rename(y="rows", x="cols")
    with Scene.open(data.rio.set_spatial_dims(x_dim="cols", y_dim="rows")) as scene:
        assert scene.grid.affine == AFFINE
        again = pickle.loads(pickle.dumps(scene))
        assert again.grid == scene.grid


# --- lazily


def counted(values, rows, cols, loaded):
    """A Dask array that notes each chunk it computes."""
    edges = [np.concatenate([[0], np.cumsum(sizes)]) for sizes in (rows, cols)]

    def block(block_id=None):
        loaded.append(block_id)
        _, i, j = block_id
        return values[:, edges[0][i] : edges[0][i + 1], edges[1][j] : edges[1][j + 1]]

    chunks = ((len(values),), tuple(rows), tuple(cols))
    return da.map_blocks(block, chunks=chunks, dtype=values.dtype, meta=np.empty((0, 0, 0), values.dtype))


@pytest.mark.parametrize("gsd", [None, 0.75, 1.9])
@pytest.mark.parametrize("sizes", [(128,) * 4, (90, 128, 128, 128, 38)])
def test_each_chunk_is_loaded_once_in_a_tiled_pass(gsd, sizes):
    loaded = []
    values = pixels(height=512, width=512)
    data = array(values).copy(data=counted(values, sizes, sizes, loaded))
    with Scene.open(data, stretch="none", gsd=gsd) as scene:
        assert loaded == [], "opening loads nothing"
        boxes = [
            Box(x, y, min(x + 128, scene.grid.width), min(y + 128, scene.grid.height))
            for y in range(0, scene.grid.height, 96)
            for x in range(0, scene.grid.width, 96)
        ]
        with ThreadPoolExecutor(3) as pool:
            chips = list(pool.map(scene.read, boxes))
    assert len(loaded) == len(set(loaded)) == len(sizes) ** 2
    if gsd is None:
        for box, chip in zip(boxes, chips, strict=True):
            np.testing.assert_array_equal(chip.image, values[:, *box.as_slices()])


def test_a_window_loads_the_chunks_it_touches_and_those_of_their_tile_only():
    loaded = []
    values = pixels(height=1024, width=1536)
    data = array(values).copy(data=counted(values, (256,) * 4, (512,) * 3, loaded))
    with Scene.open(data, stretch="none") as scene:
        scene.read(Box(600, 10, 700, 100))
    assert sorted(loaded) == [(0, 0, 1), (0, 1, 1)]


@pytest.mark.parametrize("huge", [False, True])
def test_finding_a_stretch_loads_each_chunk_once(monkeypatch, huge):
    if huge:
        monkeypatch.setattr(array_reader, "WHOLE_SAMPLE_PIXELS", 1000)
    loaded = []
    values = pixels("uint16", height=900, width=700)
    data = array(values).copy(data=counted(values, (300,) * 3, (350,) * 2, loaded))
    with Scene.open(data) as scene:
        assert scene.stretch.kind == "percentile"
    assert len(loaded) == 6


@pytest.mark.parametrize("gsd", [None, 1.0])
def test_memory_does_not_grow_with_the_array(gsd):
    """Of 75 MB that are computed on the way, a few rows of chunks are held."""

    def peak(height):
        lazy = da.full((3, height, 1024), 9, dtype=np.uint8, chunks=(3, 256, 512))
        data = array(np.broadcast_to(np.uint8(9), (3, height, 1024))).copy(data=lazy)
        with Scene.open(data, stretch="none", gsd=gsd) as scene:
            tracemalloc.start()
            for y in range(0, scene.grid.height - 256, 256):
                for x in range(0, scene.grid.width - 256, 256):
                    assert scene.read(Box(x, y, x + 256, y + 256)).image[0, 0, 0] == 9
            _, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        return most

    assert peak(8192 * 3) < peak(8192) + (8 << 20)


def test_opening_does_not_copy_what_is_in_memory():
    values = pixels(height=2000, width=2000)
    data = array(values, dims=("y", "x", "band"))
    tracemalloc.start()
    with Scene.open(data, stretch="none") as scene:
        scene.read(Box(10, 10, 20, 20))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < values.nbytes / 4


def test_threads_read_what_one_thread_reads(tmp_path):
    values = pixels(height=400, width=500)
    boxes = [Box(x, y, x + 90, y + 90) for y in range(0, 310, 30) for x in range(0, 410, 41)]
    for data in (stored(tmp_path, values, "auto"), stored(tmp_path, values, None)):
        with Scene.open(data, stretch="none") as scene, ThreadPoolExecutor(4) as pool:
            for box, chip in zip(boxes, pool.map(scene.read, boxes), strict=True):
                np.testing.assert_array_equal(chip.image, values[:, *box.as_slices()])


def test_a_chunk_that_fails_is_a_window_that_cannot_be_read():
    values = pixels(height=128, width=128)

    def block(block_id=None):
        if block_id == (0, 1, 1):
            text = "the bucket\nsaid no."
            raise KeyError(text)
        return values[:, :64, :64]

    lazy = da.map_blocks(block, chunks=((3,), (64, 64), (64, 64)), dtype="uint8", meta=np.empty((0, 0, 0), "uint8"))
    with Scene.open(array(values).copy(data=lazy), stretch="none") as scene:
        scene.read(Box(0, 0, 60, 60))
        with pytest.raises(
            WindowError, match=r"DataArray scene: window x 30-90, y 30-90 cannot be read: .*said no"
        ) as caught:
            scene.read(Box(30, 30, 90, 90))
        assert "\n" not in str(caught.value)
    with Scene.open(array(values).copy(data=lazy.astype("uint16"))) as scene, pytest.raises(SceneError, match="minmax"):
        assert scene.stretch


def test_chunks_that_were_persisted_on_a_cluster():
    from distributed import Client

    values = pixels()
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as _client:
        data = array(values).chunk({"y": 30, "x": 30}).persist()
        with Scene.open(data) as scene:
            np.testing.assert_array_equal(scene.read(whole(scene)).image, values)


def test_only_the_tasks_of_a_window_are_looked_at(monkeypatch):
    """Dask's own slicing walks over the graph of the whole array for each window."""
    seen = []
    lazy = da.zeros((3, 64 * 100, 64 * 100), dtype="uint8", chunks=(3, 64, 64))
    reader = array_values.ArrayValues(xr.Variable(("band", "y", "x"), lazy), [0])
    reader.load(Box(0, 0, 10, 10))

    def noted(graph, keys):
        needed, dependencies = cull(graph, keys)
        seen.append(len(needed))
        return needed, dependencies

    monkeypatch.setattr("dask.optimization.cull", noted)
    reader.load(Box(640, 640, 700, 760))
    assert seen
    assert max(seen) <= 6


# --- in other processes, and told apart


def test_scenes_open_in_another_process(tmp_path):
    values = pixels("uint16")
    values[:, 3:9, 3:9] = 0
    path = write_raster(tmp_path / "a.tif", values, affine=AFFINE, crs=UTM, nodata=0)
    data = [
        stored(tmp_path, values, "auto", nodata=0),
        stored(tmp_path, values, None, nodata=0),
        rioxarray.open_rasterio(path),
        rioxarray.open_rasterio(path, chunks={"x": 40, "y": 40}),
        array(values, nodata=0),
        array(values, nodata=0).rename(x="cols", y="rows").rio.set_spatial_dims(x_dim="cols", y_dim="rows"),
    ]
    scenes = [Scene.open(each, gsd=0.75) for each in data]
    chips = [scene.read(whole(scene)) for scene in scenes]
    sizes = [len(pickle.dumps(scene)) for scene in scenes[:4]]
    assert max(sizes) < 20_000 < values.nbytes, "lazy ones travel as how to load them"
    (tmp_path / "scenes.pickle").write_bytes(pickle.dumps(scenes))
    script = (
        "import pickle, sys; from rsgeoseg.geo.windows import Box\n"
        "scenes = pickle.load(open(sys.argv[1], 'rb'))\n"
        "chips = [s.read(Box(0, 0, s.grid.width, s.grid.height)) for s in scenes]\n"
        "pickle.dump([(c.image, c.valid) for c in chips], open(sys.argv[2], 'wb'))"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "scenes.pickle", tmp_path / "chips"], check=True)
    for chip, (image, valid) in zip(chips, pickle.loads((tmp_path / "chips").read_bytes()), strict=True):
        np.testing.assert_array_equal(chip.image, image)
        np.testing.assert_array_equal(chip.valid, valid)
        assert not valid.all()


def test_a_large_array_in_memory_is_not_sent_around(monkeypatch, tmp_path):
    monkeypatch.setattr(arrays, "MAX_PICKLED_BYTES", 10_000)
    for data in (array(pixels()), array(pixels()).chunk({"y": 20})):
        with Scene.open(data) as scene, pytest.raises(SceneError, match="to_zarr"):
            pickle.dumps(scene)
    with Scene.open(stored(tmp_path, pixels())) as scene:
        pickle.dumps(scene)


def test_the_fingerprint_follows_values_and_grid(tmp_path):
    values = pixels()
    base = array(values, nodata=0)

    def mark(data):
        with Scene.open(data) as scene:
            return json.dumps(scene.fingerprint())

    changed = values.copy()
    changed[2, 69, 89] += 1
    moved = base.assign_coords(x=base.x + 0.5)
    others = [
        array(changed, nodata=0),
        moved,
        base.rio.write_crs(32632),
        base.rio.write_nodata(3),
        base.astype("uint16"),
    ]
    for lazy in (False, True):
        marks = [mark(data.chunk({"x": 30}) if lazy else data) for data in (base, *others)]
        assert len(set(marks)) == len(marks)
        again = array(values.copy(), nodata=0)
        assert mark(again.chunk({"x": 30}) if lazy else again) == marks[0]
    assert mark(base.transpose("y", "x", "band")) == mark(base)
    for chunks in ("auto", None):
        first = mark(stored(tmp_path, values, chunks))
        reopened = xr.open_zarr(tmp_path / "a.zarr", chunks=None if chunks is None else {}, decode_coords="all")[
            "scene"
        ]
        assert mark(reopened) == first
        assert mark(stored(tmp_path, changed, chunks)) != first, "the store was written anew"


def test_the_fingerprint_follows_the_file_behind_a_lazy_array(tmp_path):
    path = write_raster(tmp_path / "a.tif", pixels(), affine=AFFINE, crs=UTM)
    with Scene.open(rioxarray.open_rasterio(path, chunks={"x": 40, "y": 40})) as scene:
        before = scene.fingerprint()
        assert scene.fingerprint() == before
        write_raster(path, pixels(seed=1), affine=AFFINE, crs=UTM, compress="deflate")
        assert scene.fingerprint() != before


# --- what is refused

ODD = {
    "several times": (lambda d: d.expand_dims(time=[1, 2]), r"2 steps along time.*data\.isel\(time=0\)"),
    "times for bands": (lambda d: d.rename(band="time"), r"3 steps along time"),
    "dates for bands": (
        lambda d: d.rename(band="when").assign_coords(when=np.array(["2024-01-01"] * 3, "M8[ns]")),
        r"3 steps along when",
    ),
    "no time": (lambda d: d.expand_dims(time=[1]).isel(time=slice(0, 0)), r"0 steps along time"),
    "rows unnamed": (lambda d: d.rename(y="rows"), "band, rows, x.*set_spatial_dims"),
    "a line": (lambda d: d.isel(band=0, y=0), "set_spatial_dims"),
    "a number": (lambda d: d.isel(band=0, y=0, x=0), "set_spatial_dims"),
    "text": (lambda d: d.astype(str), "holds text"),
    "objects": (lambda d: d.astype(object), "holds Python objects"),
    "complex": (lambda d: d.astype(complex), "complex numbers.*abs"),
    "dates": (lambda d: d.astype("M8[s]"), "holds dates"),
    "empty": (lambda d: d.isel(x=slice(0, 0)), "empty.*0 x 70"),
    "uneven": (lambda d: d.assign_coords(x=d.x.values + 0.3 * np.sin(np.arange(90))), "uneven coordinates along x"),
    "one place": (lambda d: d.assign_coords(y=np.full(70, 7.0)), "uneven coordinates along y"),
    "short coordinates": (lambda d: d.assign_coords(y=d.y.astype("float32")), "float32"),
    "not a coordinate": (
        lambda d: d.assign_coords(y=[f"row {i}" for i in range(70)]),
        "along y that are not all numbers",
    ),
    "no coordinate": (lambda d: d.assign_coords(y=np.where(np.arange(70) == 3, np.nan, d.y)), "not all numbers"),
    "only columns": (lambda d: d.drop_vars("y"), "no coordinates along y"),
    "one row": (lambda d: d.isel(y=[3]), "single pixel along y.*write_transform"),
    "no transform": (lambda d: d.assign_attrs(transform="here"), "transform"),
    "no crs": (lambda d: d.drop_vars("spatial_ref").assign_attrs(crs="nowhere at all"), "write_crs"),
    "dataset": (lambda d: d.to_dataset(name="a"), r"Dataset is no scene.*to_array"),
}


@pytest.mark.parametrize("case", ODD)
def test_what_is_no_raster_is_refused(case):
    make, words = ODD[case]
    with pytest.raises(SceneError, match=words) as caught:
        Scene.open(make(array(pixels())))
    assert "\n" not in str(caught.value)
