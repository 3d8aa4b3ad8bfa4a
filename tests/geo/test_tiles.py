"""Tiles that are decoded once, nodata that is not decoded at all, memory that is used again."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.windows import Window as RasterWindow
from scene_files import NORTH_UP, UTM, noise, tiled, write

from rsgeoseg.geo import blank, opening
from rsgeoseg.geo.buffers import ArrayPool
from rsgeoseg.geo.scene import Scene
from rsgeoseg.geo.tiles import Tile, TileCache
from rsgeoseg.geo.windows import Box, plan_windows

LAYOUTS = {
    "tiles deflate": tiled(64, compress="deflate"),
    "tiles none": tiled(64),
    "planes zstd": tiled(64, compress="zstd", interleave="band"),
    "strips lzw": {"blockysize": 20, "compress": "lzw"},
    "tiles jpeg": tiled(64, compress="jpeg", photometric="ycbcr"),
}


def patchy(path, layout, nodata, *, sparse, seed):
    """Write a scene of 3 x 150 x 210 pixels of which most blocks hold nodata alone, and some a single other pixel."""
    rng = np.random.default_rng(seed)
    image = np.full((3, 150, 210), nodata, np.uint8)
    stored = [(y, x) for y in range(0, 150, 64) for x in range(0, 210, 64) if rng.random() < 0.4]
    for y, x in stored:
        part = image[:, y : y + 64, x : x + 64]
        part[:] = rng.integers(0, 256, part.shape) if rng.random() < 0.5 else part
        part[rng.integers(3), rng.integers(part.shape[1]), rng.integers(part.shape[2])] = 7
    where = {"driver": "GTiff", "height": 150, "width": 210, "count": 3, "dtype": "uint8", "nodata": nodata}
    with rasterio.open(path, "w", crs=UTM, transform=NORTH_UP, sparse_ok=sparse, **where, **layout) as dataset:
        if not sparse:
            dataset.write(image)
        for y, x in stored:
            part = image[:, y : y + 64, x : x + 64]
            dataset.write(part, window=RasterWindow(x, y, part.shape[2], part.shape[1]))
    return path


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    layout=st.sampled_from(sorted(LAYOUTS)),
    nodata=st.sampled_from([0, 255]),
    sparse=st.booleans(),
    seed=st.integers(0, 1000),
    bands=st.sampled_from([(1, 2, 3), (3, 1, 2)]),
)
def test_nodata_that_is_not_decoded_reads_as_if_it_were(tmp_path, layout, nodata, sparse, seed, bands):
    path = patchy(tmp_path / "a.tif", LAYOUTS[layout], nodata, sparse=sparse, seed=seed)
    with rasterio.open(path) as dataset:
        expected = dataset.read(bands)
    valid = (expected != nodata).any(axis=0)
    expected[:, ~valid] = 0
    with Scene.open(path, bands=bands) as scene:
        for window in plan_windows(150, 210, chip_size=70, overlap=20).windows:
            chip = scene.read(window.read)
            place = window.read.as_slices()
            np.testing.assert_array_equal(chip.valid, valid[place])
            np.testing.assert_array_equal(chip.image, expected[:, *place])


@pytest.mark.parametrize("sparse", [True, False])
def test_blocks_of_nodata_are_decoded_once_at_most(tmp_path, sparse):
    image = noise(3, 2048, 2048)
    image[:, 512:] = 0
    layout = tiled(512, compress="deflate", nodata=0, sparse_ok=sparse)
    path = tmp_path / "a.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=2048, width=2048, count=3, dtype="uint8", crs=UTM, **layout
    ) as dataset:
        dataset.write(image[:, :512] if sparse else image, window=RasterWindow(0, 0, 2048, 512 if sparse else 2048))
    with Scene.open(path) as scene:
        read, boxes = scene._raster.read, []
        scene._raster.read = lambda box: boxes.append(box) or read(box)
        for window in plan_windows(2048, 2048, chip_size=512, overlap=128).windows:
            scene.read(window.read)
    assert sorted(box.y0 for box in boxes) == [0, 0, 0, 0, 512]


@pytest.mark.parametrize("nodata", [-9999, 300, 7.5])
def test_sparse_blocks_are_valid_where_no_pixel_can_be_nodata(tmp_path, nodata):
    path = tmp_path / "a.tif"
    where = {"driver": "GTiff", "height": 64, "width": 64, "count": 3, "dtype": "int16", "crs": UTM}
    with rasterio.open(path, "w", nodata=nodata if nodata != 7.5 else None, sparse_ok=True, **where) as dataset:
        dataset.write(np.ones((3, 1, 64), np.int16), window=RasterWindow(0, 0, 64, 1))
    with rasterio.open(path) as dataset:
        mask = dataset.dataset_mask() > 0
    with Scene.open(path, value_range="raw") as scene:
        np.testing.assert_array_equal(scene.read(Box(0, 0, 64, 64)).valid, mask)


def test_padding_of_a_block_teaches_nothing(tmp_path):
    # The block at the right edge is nodata inside the scene; the first one has the same bytes and holds data.
    image = np.zeros((3, 64, 80), np.uint8)
    image[:, :, 16:64] = 9
    path = write(tmp_path / "a.tif", image, **tiled(64, compress="deflate", nodata=0))
    with rasterio.open(path) as dataset:
        spans = [dataset.get_tag_item(f"BLOCK_OFFSET_{i}_0", "TIFF", bidx=1) for i in (0, 1)]
    assert spans[0] != spans[1]
    known = blank.BlankBlocks(path, (64, 64), (1, 2, 3))
    with rasterio.open(path) as dataset:
        known.learn(dataset, Box(64, 0, 80, 64))
        assert not known.cover(dataset, Box(64, 0, 80, 64))


def test_a_damaged_table_of_blocks_is_not_taken_for_nodata(tmp_path):
    class Table:
        def get_tag_item(self, *_args, **_how):
            return None

        def read(self, *_args, **_how):
            msg = "cannot read the offsets"
            raise rasterio.errors.RasterioIOError(msg)

    known = blank.BlankBlocks(tmp_path / "none.tif", (64, 64), (1,))
    known.learn(Table(), Box(0, 0, 64, 64))
    with pytest.raises(opening.READ_ERRORS):
        known.cover(Table(), Box(0, 64, 64, 128))


def test_memory_comes_back_when_the_last_view_is_gone():
    pool = ArrayPool()
    array = pool.empty((3, 256, 256), np.uint8)
    waiting = pool.nbytes
    address = array.ctypes.data
    view, look = array[1:, ::2].T, memoryview(array)
    del array
    gc.collect()
    assert pool.nbytes == waiting
    del view
    assert pool.nbytes == waiting
    del look
    assert pool.nbytes == waiting + 3 * 256 * 256
    taken = [pool.empty((3, 256, 256), np.uint8) for _ in range(waiting // (3 * 256 * 256) + 1)]
    assert address in {array.ctypes.data for array in taken}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=30))
def test_arrays_in_use_never_share_memory(steps):
    shapes = [(10,), (3, 200, 200), (200, 600), (3, 1024, 1024)]
    pool, held = ArrayPool(4 << 20), []
    for number, (shape, drop) in enumerate(steps):
        array = pool.empty(shapes[shape], np.uint8)
        array[:] = number
        held.append((array, number))
        if drop:
            held.pop(0)
        del array
        assert pool.nbytes <= 4 << 20
        assert all((array == value).all() for array, value in held)


def test_arrays_of_several_threads_never_share_memory():
    pool, wrong = ArrayPool(), []

    def work(number):
        for _ in range(200):
            array = pool.empty((300, 300), np.uint8)
            array[:] = number
            if not (array == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_arrays_of_any_dtype_and_of_no_pixel():
    pool = ArrayPool()
    for dtype in (np.uint8, np.uint16, np.float32, np.bool_):
        for shape in ((0, 4), (3, 5), (2, 300, 400)):
            array = pool.empty(shape, dtype)
            assert array.shape == shape
            assert array.dtype == dtype
            assert array.flags.writeable
            assert array.flags.c_contiguous
            assert array.flags.aligned


def test_the_cache_keeps_the_rows_that_windows_share_and_not_more():
    def load(box):
        return Tile(np.zeros((1, box.height, box.width), np.uint8), None)

    cache = TileCache(1000, 100, tile=(10, 10), load=load, capacity=1 << 20)
    for window in plan_windows(1000, 100, chip_size=14, overlap=4).windows:
        list(cache.tiles(window.read))
        assert cache.nbytes <= 3 * 1000
    assert cache.loads == 1000


def test_empty_tiles_take_no_place_for_ever():
    cache = TileCache(1000, 100, tile=(10, 10), load=lambda _box: Tile(None, None), capacity=1 << 20)
    for window in plan_windows(1000, 100, chip_size=14, overlap=4).windows:
        list(cache.tiles(window.read))
    assert len(cache._slots) <= 3 * 10


def test_gdals_settings_are_entered_once_and_left_again():
    assert not rasterio.env.hasenv()
    with opening.gdal_env():
        before = rasterio.env.getenv()
        with opening.gdal_env():
            assert rasterio.env.getenv() == before
        assert rasterio.env.getenv() == before
        with opening.gdal_env(64 << 20):
            assert rasterio.env.getenv()["GDAL_CACHEMAX"] == 64 << 20
        assert rasterio.env.getenv() == before
    assert not rasterio.env.hasenv()


def test_a_tile_that_another_thread_decodes_is_left_for_last():
    """Else readers of strips, which all begin with the same tile, would wait for each other all the time."""
    begun, go_on, loaded = threading.Event(), threading.Event(), []

    def load(box):
        loaded.append((box.y0 // 10, threading.current_thread().name))
        if box.y0 == 0:
            begun.set()
            assert go_on.wait(10)
        return Tile(np.full((1, 10, 10), box.y0, np.uint8), None)

    cache = TileCache(30, 10, tile=(10, 10), load=load, capacity=1 << 20)
    slow = threading.Thread(target=lambda: list(cache.tiles(Box(0, 0, 10, 20))), name="slow")
    slow.start()
    assert begun.wait(10)
    came = []
    for place, tile in cache.tiles(Box(0, 0, 10, 30)):
        assert tile.image[0, 0, 0] == place.y0
        came.append(place.y0)
        if len(came) == 2:
            go_on.set()
    slow.join()
    assert came == [10, 20, 0]
    assert loaded == [(0, "slow"), (1, "MainThread"), (2, "MainThread")]


def test_chips_that_are_always_valid_share_their_validity(tmp_path):
    path = write(tmp_path / "a.tif", noise(3, 40, 40))
    with Scene.open(path) as scene:
        first, second, other = (scene.read(Box(0, 0, side, 20)) for side in (20, 20, 30))
    assert first.valid is second.valid
    assert first.valid.all()
    assert other.valid.shape == (20, 30)
