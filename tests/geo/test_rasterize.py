"""Masks of polygons: the way back from polygonize, and GDAL's rasterize as the oracle for slanted edges."""

from __future__ import annotations

import numpy as np
import rasterio.features
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rsgeoseg.geo.grid import GeoGrid
from rsgeoseg.geo.polygonize import polygonize
from rsgeoseg.geo.rasterize import draw_masks, pixel_boxes
from rsgeoseg.geo.stitch import StitchedObject
from rsgeoseg.geo.windows import Box

SCENE = Box(0, 0, 60, 50)


def draw(geometries, within=SCENE):
    geometries = np.array([*geometries, None], object)[:-1]
    boxes = pixel_boxes(geometries, within)
    full = np.zeros((len(geometries), SCENE.height, SCENE.width), bool)
    seen = []
    for index, mask in draw_masks(geometries, boxes):
        full[index][boxes[index].as_slices()] = mask
        seen.append(index)
    assert sorted(seen) == list(range(len(geometries)))
    return full


masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)).filter(lambda m: m.any())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(masks, st.integers(0, 50), st.integers(0, 40)), max_size=5))
def test_drawing_undoes_polygonizing(content):
    objects = [
        StitchedObject(Box(x, y, x + m.shape[1], y + m.shape[0]), m, 0, 1.0, 1, seam=False, truncated=False)
        for m, x, y in content
    ]
    polygons = polygonize(objects, GeoGrid(50, 60, Affine.identity(), None))
    for obj, drawn in zip(objects, draw(polygons), strict=True):
        expected = np.zeros((50, 60), bool)
        expected[obj.box.as_slices()] = obj.mask
        assert (drawn == expected).all()


def test_slanted_edges_equal_gdals_also_beyond_the_scene_and_in_windows():
    rng = np.random.default_rng(5)
    hole = shapely.Point(30, 25).buffer(5)
    polygons = [
        shapely.Point(rng.random(2) * (80, 70) - 10).buffer(rng.random() * 15 + 0.2).difference(hole) for _ in range(60)
    ]
    polygons = [polygon for polygon in polygons if not polygon.is_empty]
    window = Box(13, 9, 41, 30)
    in_window = draw(polygons, window)
    for polygon, drawn, part in zip(polygons, draw(polygons), in_window, strict=True):
        expected = rasterio.features.rasterize([polygon], (50, 60)).astype(bool)
        assert (drawn == expected).all()
        assert (part[window.as_slices()] == expected[window.as_slices()]).all()
        part[window.as_slices()] = False
        assert not part.any()


def test_nothing_and_empty_geometries():
    assert draw([]).shape == (0, 50, 60)
    assert not draw([shapely.Polygon(), shapely.box(200, 200, 210, 210), shapely.box(-9, -9, -1, -1)]).any()
