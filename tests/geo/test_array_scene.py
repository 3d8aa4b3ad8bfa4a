"""A DataArray, in memory or lazy, is the same scene as the file that holds its values."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
import rioxarray
import xarray as xr
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasters import write_raster

import rsgeoseg
from rsgeoseg.errors import SceneError
from rsgeoseg.geo import arrays
from rsgeoseg.geo.scene import Scene
from rsgeoseg.geo.windows import Box
from rsgeoseg.testing.oracle import OracleSegmenter, encode_ids, oracle_spec

AFFINE = Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000)
UTM = CRS.from_epsg(32631)


def pixels(dtype="uint8", bands=3, height=70, width=90, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.random((bands, height, width)) * 200 + 1).astype(dtype)


def array(values, affine=AFFINE, crs=UTM, nodata=None, dims=("band", "y", "x")):
    _, height, width = values.shape
    coords = {"x": affine.c + affine.a * (np.arange(width) + 0.5), "y": affine.f + affine.e * (np.arange(height) + 0.5)}
    data = xr.DataArray(values, dims=("band", "y", "x"), coords=coords, name="scene").transpose(*dims)
    data = data.rio.write_crs(crs) if crs is not None else data
    return data.rio.write_nodata(nodata) if nodata is not None else data


def same(a: Scene, b: Scene, box: Box, tolerance=0):
    one, other = a.read(box), b.read(box)
    assert one.image.dtype == other.image.dtype
    assert (one.valid == other.valid).all()
    assert np.abs(one.image.astype(float) - other.image).max() <= tolerance


@pytest.mark.parametrize("dims", [("band", "y", "x"), ("y", "x", "band"), ("x", "band", "y")])
@pytest.mark.parametrize(("dtype", "nodata"), [("uint8", None), ("uint8", 7), ("uint16", 0), ("float32", None), ("int16", -1)])
def test_chips_grid_and_stretch_are_those_of_the_file(tmp_path, dims, dtype, nodata):
    values = pixels(dtype)
    values[:, 5:30, 40:] = 3 if nodata is None else nodata
    if dtype == "float32":
        values[:, :10, :10] = np.nan
    path = write_raster(tmp_path / "a.tif", values, affine=AFFINE, crs=UTM, nodata=nodata)
    with Scene.open(path) as file, Scene.open(array(values, nodata=nodata, dims=dims)) as data:
        assert data.grid == file.grid
        assert data.stretch == file.stretch
        for box in (Box(0, 0, 90, 70), Box(13, 4, 60, 41)):
            same(file, data, box)


@given(x=st.integers(0, 60), y=st.integers(0, 40), gsd=st.sampled_from([None, 0.8, 1.1, 0.3]), lazy=st.booleans())
@settings(max_examples=30, deadline=None)
def test_windows_and_resampling_agree_with_files(tmp_path_factory, x, y, gsd, lazy):
    values = pixels()
    path = write_raster(tmp_path_factory.mktemp("a") / "a.tif", values, affine=AFFINE, crs=UTM)
    data = array(values).chunk({"y": 32, "x": 32}) if lazy else array(values)
    with Scene.open(path, gsd=gsd, stretch="none") as file, Scene.open(data, gsd=gsd, stretch="none") as scene:
        assert scene.grid == file.grid
        box = Box(0, 0, file.grid.width, file.grid.height).intersection(Box(x, y, x + 31, y + 31))
        if box is not None:
            same(file, scene, box, tolerance=0 if gsd is None else 1)


def test_a_run_gives_the_features_that_the_file_gives(tmp_path):
    ids = np.zeros((150, 210), np.int32)
    ids[20:60, 30:90], ids[70:140, 100:200] = 1, 2
    model = OracleSegmenter(spec=oracle_spec(chip_size=64, overlap=16))
    path = write_raster(tmp_path / "a.tif", encode_ids(ids), affine=AFFINE, crs=UTM)
    from_file = rsgeoseg.run(path, model, stretch="none")
    array(encode_ids(ids)).to_zarr(tmp_path / "a.zarr")
    stored = xr.open_zarr(tmp_path / "a.zarr", chunks={"y": 50, "x": 50}, decode_coords="all")["scene"]
    for data in (array(encode_ids(ids)), stored):
        found = rsgeoseg.run(data, model, stretch="none", output=tmp_path / "out.gpkg", overwrite=True)
        assert found.crs == from_file.crs
        assert found.drop(columns="geometry").equals(from_file.drop(columns="geometry"))
        assert found.geometry.geom_equals_exact(from_file.geometry, 0).all()
        assert found.attrs["rsgeoseg"]["scene"]["driver"] == "xarray"


def test_what_rioxarray_opens_is_the_file(tmp_path):
    values = pixels("uint16")
    values[:, 3:9, 3:9] = 0
    path = write_raster(tmp_path / "a.tif", values, affine=AFFINE, crs=UTM, nodata=0)
    for how in ({}, {"chunks": {"x": 40, "y": 40}}, {"masked": True}):
        with Scene.open(path) as file, Scene.open(rioxarray.open_rasterio(path, **how)) as data:
            assert data.grid == file.grid
            same(file, data, Box(0, 0, 90, 70), tolerance=1 if how.get("masked") else 0)


def test_a_part_of_an_array_lies_where_it_lies(tmp_path):
    path = write_raster(tmp_path / "a.tif", pixels(), affine=AFFINE, crs=UTM)
    part = rioxarray.open_rasterio(path).isel(x=slice(10, 50), y=slice(20, 60))
    with Scene.open(part) as scene:
        assert tuple(scene.grid.affine)[:6] == pytest.approx((0.5, 0, 500_005, 0, -0.5, 5_399_990))


def test_south_up_and_longitude_latitude():
    values = pixels()
    up = array(values, affine=Affine(0.5, 0, 500_000, 0, 0.5, 5_400_000))
    with Scene.open(up) as scene:
        assert scene.grid.affine.e == 0.5
    geographic = array(values, affine=Affine(1e-5, 0, 3, 0, -1e-5, 45), crs=CRS.from_epsg(4326))
    with Scene.open(geographic.rename(x="lon", y="lat")) as scene:
        assert scene.grid.is_geographic


def test_lazy_chunks_are_loaded_once_each_and_only_those_needed():
    loaded = []
    values = pixels(height=512, width=512)

    import dask.array as da

    def block(info, block_id=None):
        loaded.append(block_id)
        _, y, x = block_id
        return values[:, y * 128 : (y + 1) * 128, x * 128 : (x + 1) * 128]

    lazy = da.map_blocks(block, 0, chunks=((3,), (128,) * 4, (128,) * 4), dtype="uint8", meta=np.empty((0, 0, 0), "uint8"))
    data = array(values).copy(data=lazy)
    with Scene.open(data, stretch="none") as scene:
        assert loaded == [], "opening loads nothing"
        for y in range(0, 512, 96):
            for x in range(0, 512, 96):
                box = Box(x, y, min(x + 128, 512), min(y + 128, 512))
                assert (scene.read(box).image == values[:, box.y0 : box.y1, box.x0 : box.x1]).all()
        assert len(loaded) == 16


def test_a_lazy_scene_opens_in_another_process(tmp_path):
    values = pixels()
    array(values).to_zarr(tmp_path / "a.zarr")
    stored = xr.open_zarr(tmp_path / "a.zarr", chunks={"y": 32, "x": 32}, decode_coords="all")["scene"]
    with Scene.open(stored, stretch="none") as scene:
        (tmp_path / "scene.pickle").write_bytes(pickle.dumps(scene))
    script = (
        "import pickle, sys; from rsgeoseg.geo.windows import Box;"
        "s = pickle.load(open(sys.argv[1], 'rb')); print(int(s.read(Box(0, 0, 90, 70)).image.sum()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "scene.pickle"], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == int(values.sum())


def test_a_large_array_in_memory_is_not_sent_around(monkeypatch):
    monkeypatch.setattr(arrays, "MAX_PICKLED_BYTES", 1000)
    with Scene.open(array(pixels())) as scene, pytest.raises(SceneError, match="to_zarr"):
        pickle.dumps(scene)


def test_the_fingerprint_follows_the_values():
    values = pixels()
    marks = []
    for change in (0, 1):
        values[0, 0, 0] += change
        marks += [Scene.open(array(values)).fingerprint(), Scene.open(array(values).chunk({"x": 30})).fingerprint()]
    assert len({mark["sha256"] for mark in marks}) == 4
    assert Scene.open(array(values)).fingerprint() == marks[2]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda d: d.expand_dims(time=[1, 2]), "isel"),
        (lambda d: d.rename(y="rows"), "set_spatial_dims"),
        (lambda d: d.astype(str), "convert it to numbers"),
        (lambda d: d.astype(complex), "convert it to numbers"),
        (lambda d: d.isel(x=slice(0, 0)), "empty"),
        (lambda d: d.assign_coords(x=d.x.values + 0.3 * np.sin(np.arange(90))), "uneven"),
        (lambda d: d.to_dataset(name="a"), "to_array"),
        (lambda d: d.isel(y=slice(0, 1)).drop_vars("spatial_ref"), "single row"),
    ],
)
def test_what_is_no_raster_is_refused(make, words):
    with pytest.raises(SceneError, match=words) as caught:
        Scene.open(make(array(pixels())))
    assert "\n" not in str(caught.value)
