"""Polygons of masks: GDAL's outlines are the oracle, pixel counts the invariant."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio.features
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rsgeoseg.geo.atlas import pack_sheets
from rsgeoseg.geo.grid import GeoGrid
from rsgeoseg.geo.polygonize import polygonize
from rsgeoseg.geo.stitch import StitchedObject
from rsgeoseg.geo.windows import Box

PIXELS = GeoGrid(4000, 4000, Affine.identity(), None)
AFFINES = {
    "north up": Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000),
    "south up": Affine(0.5, 0, 500_000, 0, 0.5, 5_000_000),
    "rotated": Affine.translation(500_000, 5_000_000) * Affine.rotation(33) * Affine.scale(0.5, -0.5),
    "sheared": Affine(0.5, 0.2, -300.25, 0.1, -0.6, 12.5),
    "mirrored": Affine(-0.5, 0, 500_000, 0, -0.5, 5_000_000),
}
masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)).filter(lambda m: m.any())
places = st.tuples(st.integers(0, 3000), st.integers(0, 3000))


def item(mask, x0=0, y0=0, label=0) -> StitchedObject:
    mask = np.asarray(mask, bool)
    box = Box(x0, y0, x0 + mask.shape[1], y0 + mask.shape[0])
    return StitchedObject(box, mask, label, 0.9, 1, seam=False, truncated=False)


def gdal_outline(obj: StitchedObject, affine: Affine) -> shapely.MultiPolygon:
    transform = affine * Affine.translation(obj.box.x0, obj.box.y0)
    found = rasterio.features.shapes(obj.mask.astype(np.uint8), mask=obj.mask, connectivity=4, transform=transform)
    return shapely.MultiPolygon([shapely.geometry.shape(shape) for shape, _ in found])


def as_multi(geometry) -> shapely.MultiPolygon:
    return shapely.MultiPolygon(list(shapely.get_parts(geometry)))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(masks, places), min_size=1, max_size=6), st.sampled_from(sorted(AFFINES)))
def test_outlines_equal_gdals_for_any_mask_and_affine(content, name):
    affine = AFFINES[name]
    objects = [item(mask, *place) for mask, place in content]
    for obj, polygon in zip(objects, polygonize(objects, GeoGrid(4000, 4000, affine, None)), strict=True):
        assert polygon.is_valid
        ours, theirs = shapely.normalize(as_multi(polygon)), shapely.normalize(gdal_outline(obj, affine))
        assert shapely.equals_exact(ours, theirs, 1e-8)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(masks, places), min_size=1, max_size=6))
def test_area_is_the_pixel_count_exactly_and_rings_follow_the_right_hand_rule(content):
    objects = [item(mask, *place) for mask, place in content]
    polygons = polygonize(objects, PIXELS)
    assert shapely.area(polygons).tolist() == [obj.mask.sum() for obj in objects]
    for part in shapely.get_parts(polygons):
        assert part.exterior.is_ccw
        assert not any(hole.is_ccw for hole in part.interiors)


@pytest.mark.parametrize("name", AFFINES)
def test_rings_follow_the_right_hand_rule_under_any_affine(name):
    ring = np.ones((5, 5), bool)
    ring[2, 2] = False
    grid = GeoGrid(100, 100, AFFINES[name], None)
    for options in ({}, {"simplify": 0.4}, {"regularize": True}):
        (polygon,) = polygonize([item(ring, 20, 30)], grid, **options)
        assert polygon.exterior.is_ccw
        assert not polygon.interiors[0].is_ccw


def test_one_pixel_by_hand():
    (polygon,) = polygonize([item([[True]], 3, 7)], GeoGrid(20, 20, Affine(2, 0, 100, 0, -2, 50), None))
    assert polygon.normalize().equals(shapely.box(106, 34, 108, 36))
    assert len(polygon.exterior.coords) == 5


def test_pixels_that_touch_at_a_corner_are_two_parts():
    (polygon,) = polygonize([item([[1, 0], [0, 1]])], PIXELS)
    assert polygon.geom_type == "MultiPolygon"
    assert [part.area for part in polygon.geoms] == [1, 1]


def test_a_hole_that_touches_the_outline_at_a_corner_stays_a_hole():
    (polygon,) = polygonize([item([[1, 1, 1], [1, 0, 1], [1, 1, 0]])], PIXELS)
    assert polygon.is_valid
    assert polygon.geom_type == "Polygon"
    assert len(polygon.interiors) == 1
    assert polygon.area == 7


def test_an_island_in_a_hole_is_a_part():
    mask = np.ones((7, 7), bool)
    mask[1:6, 1:6] = False
    mask[3, 3] = True
    (polygon,) = polygonize([item(mask)], PIXELS)
    assert sorted((part.area, len(part.interiors)) for part in polygon.geoms) == [(1, 0), (24, 1)]


def test_no_objects_and_a_mask_without_a_pixel():
    assert polygonize([], PIXELS).shape == (0,)
    (polygon,) = polygonize([item([[False, False]])], PIXELS)
    assert polygon.is_empty


def test_results_stand_in_the_order_of_the_objects():
    rng = np.random.default_rng(0)
    objects = [item(np.ones((rng.integers(1, 90), rng.integers(1, 90))), 10 * i, i) for i in range(1500)]
    bounds = shapely.bounds(polygonize(objects, PIXELS))
    assert bounds.tolist() == [[o.box.x0, o.box.y0, o.box.x1, o.box.y1] for o in objects]


def test_an_object_larger_than_a_sheet():
    mask = np.zeros((2500, 3000), bool)
    mask[::2] = True
    mask[:, 7] = True
    (polygon,) = polygonize([item(mask)], PIXELS)
    assert polygon.is_valid
    assert polygon.area == mask.sum()


def test_simplify_smooths_pixel_steps_and_stays_valid():
    yy, xx = np.mgrid[:60, :60]
    disc = np.hypot(yy - 30, xx - 30) < 28
    (exact,), (simple,) = polygonize([item(disc)], PIXELS), polygonize([item(disc)], PIXELS, simplify=1.0)
    assert simple.is_valid
    assert shapely.get_num_coordinates(simple) < shapely.get_num_coordinates(exact) / 2
    assert shapely.hausdorff_distance(simple, exact) <= 1.0
    with pytest.raises(ValueError, match="simplify"):
        polygonize([item(disc)], PIXELS, simplify=-1)


def slanted_house(angle: float) -> tuple[shapely.Polygon, np.ndarray]:
    house = shapely.affinity.rotate(
        shapely.Polygon([(20, 20), (70, 20), (70, 40), (45, 40), (45, 60), (20, 60)]), angle
    )
    return house, rasterio.features.rasterize([house], (90, 90)).astype(bool)


@pytest.mark.parametrize("angle", [0, 12, 30, 45, 77])
def test_regularize_draws_right_angles_close_to_the_true_house(angle):
    house, mask = slanted_house(angle)
    (regular,) = polygonize([item(mask)], PIXELS, regularize=True)
    assert regular.is_valid
    assert len(regular.exterior.coords) == 7
    steps = np.diff(np.array(regular.exterior.coords), axis=0)
    steps /= np.linalg.norm(steps, axis=1, keepdims=True)
    assert np.abs((steps * np.roll(steps, 1, axis=0)).sum(axis=1)).max() < 1e-9
    assert regular.intersection(house).area / regular.union(house).area > 0.94


def test_regularize_leaves_round_objects_and_empty_ones_alone():
    yy, xx = np.mgrid[:60, :60]
    disc = item(np.hypot(yy - 29.5, xx - 29.5) < 28)
    (exact,), (same,) = polygonize([disc], PIXELS), polygonize([disc], PIXELS, regularize=True)
    assert same.equals(exact)
    assert polygonize([item([[False]])], PIXELS, regularize=True)[0].is_empty
    assert len(polygonize([], PIXELS, regularize=True)) == 0


@settings(max_examples=100, deadline=None)
@given(masks, st.sampled_from([0.0, 0.5, 1.5]))
def test_regularize_and_simplify_always_give_valid_polygons(mask, tolerance):
    (polygon,) = polygonize([item(mask)], PIXELS, simplify=tolerance, regularize=True)
    assert polygon.is_valid
    assert not polygon.is_empty


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), max_size=40))
def test_sheets_hold_every_crop_once_apart_and_know_their_owners(sizes):
    seen = []
    for sheet in pack_sheets(sizes, side=48):
        used = np.zeros((sheet.height, sheet.width), int)
        for position, (index, x, y) in enumerate(zip(sheet.members, sheet.x, sheet.y, strict=True)):
            height, width = sizes[index]
            used[y - 1 : y + height, x - 1 : x + width] += 1  # with the gap above and to the left
            corners = np.array([(x, y), (x + width, y), (x, y + height), (x + width, y + height)])
            assert sheet.owners(corners[:, 0], corners[:, 1]).tolist() == [position] * 4
            seen.append(index)
        assert used.max() == 1
        assert not used[-1].any()
        assert not used[:, -1].any()
    assert sorted(seen) == list(range(len(sizes)))
