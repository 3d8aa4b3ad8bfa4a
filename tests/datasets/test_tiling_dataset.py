"""Tiles cover an image, stay inside it and can be read back from their names; one pass over a raster encodes all."""

from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pycocotools import mask as rle
from scipy import ndimage

from rsgeoseg.datasets.labelled import components, encode_numbered, read_label, touches_edge
from rsgeoseg.datasets.tiling import TileReader, parse_tile, plan_tiles
from rsgeoseg.errors import UsageError
from rsgeoseg.geo.windows import Box

plans = st.integers(1, 40).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1)))


@given(height=st.integers(1, 120), width=st.integers(1, 120), plan=plans)
@example(height=41, width=41, plan=(40, 0))
def test_tiles_cover_every_pixel_and_stay_inside(height, width, plan):
    size, overlap = plan
    tiles = plan_tiles("P1", height, width, size=size, overlap=overlap)
    seen = np.zeros((height, width), np.int64)
    for tile in tiles:
        assert tile.box.x0 >= 0
        assert tile.box.y0 >= 0
        assert tile.box.x1 <= width
        assert tile.box.y1 <= height
        seen[tile.box.as_slices()] += 1
    assert (seen > 0).all()
    assert len({tile.box for tile in tiles}) == len({tile.name for tile in tiles}) == len(tiles)
    if min(height, width) > size:
        assert all((tile.box.width, tile.box.height) == (size, size) for tile in tiles)
        assert all(parse_tile(tile.name) == ("P1", tile.box) for tile in tiles)
    else:
        assert [(tile.name, tile.box) for tile in tiles] == [("P1", Box(0, 0, width, height))]


@given(height=st.integers(41, 200), width=st.integers(41, 200), plan=plans)
def test_neighbours_share_the_overlap(height, width, plan):
    size, overlap = plan
    tiles = plan_tiles("P1", height, width, size=size, overlap=overlap)
    for starts in (sorted({t.box.x0 for t in tiles}), sorted({t.box.y0 for t in tiles})):
        assert all(left + size - right >= overlap for left, right in pairwise(starts))


def test_tiles_of_the_devkit_by_hand():
    # 1023 rows: 0 and 600, shifted to 223; 1147 columns: 0 and 600, shifted to 347 (P0003 of iSAID)
    assert [tile.name for tile in plan_tiles("P0003", 1023, 1147)] == [
        "P0003_0_800_0_800",
        "P0003_0_800_347_1147",
        "P0003_223_1023_0_800",
        "P0003_223_1023_347_1147",
    ]
    # 1400 columns: 0, 600 and 1200, shifted to 600, which is there already
    assert [tile.box.x0 for tile in plan_tiles("P", 801, 1400)] == [0, 600, 0, 600]
    # one side no longer than a tile: not cut, as in the devkit
    assert [tile.name for tile in plan_tiles("P", 800, 6402)] == ["P"]


@pytest.mark.parametrize(
    "name",
    ["P0002", "P0002_0_800", "a_0_0_0_800", "P_800_0_0_800", "_0_800_0_800", "P0002_0_800_0_800_instance_id_RGB"],
)
def test_other_names_are_not_tiles(name):
    assert parse_tile(name) is None


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (8, 8), (8, -1)])
def test_tiling_out_of_range_is_refused(size, overlap):
    with pytest.raises(UsageError, match="overlap"):
        plan_tiles("P", 20, 20, size=size, overlap=overlap)


def test_a_tile_reader_gives_its_part_and_the_caller_may_change_it(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    path.write_bytes(cv2.imencode(".png", rgb[..., ::-1])[1].tobytes())
    read = TileReader(path, Box(5, 10, 25, 30))
    first = read()
    np.testing.assert_array_equal(first, rgb[10:30, 5:25])
    first[:] = 0
    np.testing.assert_array_equal(read(), rgb[10:30, 5:25])


rasters = st.integers(0, 2**32 - 1).map(np.random.default_rng)


@given(rng=rasters, height=st.integers(1, 24), width=st.integers(1, 24), share=st.floats(0, 1))
def test_components_are_those_of_scipy(rng, height, width, share):
    label = (rng.random((height, width)) < share).astype(np.uint8) * 7
    numbers, count = ndimage.label(label, np.ones((3, 3)))
    expected = {rle.encode(np.asfortranarray(numbers == n, np.uint8))["counts"] for n in range(1, count + 1)}
    found = components(label, value=7)
    assert len(found) == count
    assert {item["counts"] for item in found} == expected
    large = [n for n in range(1, count + 1) if (numbers == n).sum() >= 3]
    assert len(components(label, smallest=3)) == len(large)
    assert components(label, value=1) == []


@given(rng=rasters, height=st.integers(1, 16), width=st.integers(1, 16), count=st.integers(0, 6))
def test_numbered_objects_of_several_parts_are_encoded_whole(rng, height, width, count):
    numbers = rng.integers(0, count + 1, (height, width)).astype(np.int32)
    found = encode_numbered(numbers, count)
    assert len(found) == count
    for number, item in enumerate(found, 1):
        mask = np.asfortranarray(numbers == number, np.uint8)
        np.testing.assert_array_equal(rle.decode(item), mask)
        assert item["counts"] == rle.encode(mask)["counts"]


def test_touching_the_edge_by_hand():
    numbers = np.zeros((6, 7), np.int32)
    numbers[1, 1], numbers[0, 3], numbers[3, 0], numbers[5, 3], numbers[2, 6], numbers[4, 5] = range(1, 7)
    shapes = encode_numbered(numbers, 6)
    assert touches_edge(shapes, 6, 7).tolist() == [False, True, True, True, True, False]
    assert touches_edge([], 6, 7).shape == (0,)


def test_a_label_is_one_band(tmp_path):
    grey = np.array([[0, 255], [3, 0]], np.uint8)
    for name, pixels in {"grey": grey, "rgb": np.repeat(grey[..., None], 3, -1)}.items():
        path = tmp_path / f"{name}.png"
        path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
        np.testing.assert_array_equal(read_label(path), grey)
    path = tmp_path / "colours.png"
    path.write_bytes(cv2.imencode(".png", np.arange(12, dtype=np.uint8).reshape(2, 2, 3))[1].tobytes())
    with pytest.raises(UsageError, match=r"colours.png.*not one 8-bit band"):
        read_label(path)
    with pytest.raises(UsageError, match=r"absent.png.*cannot be read"):
        read_label(tmp_path / "absent.png")
