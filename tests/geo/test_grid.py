"""Pixel to world and back, and ground sizes, against hand-computed numbers, affine and pyproj."""

import math
import pickle

import numpy as np
import pyproj
import pytest
from affine import Affine
from hypothesis import assume, given
from hypothesis import strategies as st
from rasterio.crs import CRS

from rsgeoseg.geo.grid import GeoGrid
from rsgeoseg.geo.windows import Box

UTM = CRS.from_epsg(32631)
NORTH_UP = Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)


@st.composite
def affines(draw) -> Affine:
    """Any rotation, shear and flip, with pixels of 0.1 to 30 units."""
    sizes = st.floats(0.1, 30)
    affine = (
        Affine.translation(draw(st.floats(-1e6, 1e6)), draw(st.floats(-1e6, 1e6)))
        * Affine.rotation(draw(st.floats(0, 360)))
        * Affine.shear(draw(st.floats(-40, 40)), 0)
        * Affine.scale(draw(sizes), draw(st.sampled_from([-1, 1])) * draw(sizes))
    )
    assume(abs(affine.determinant) > 1e-4)
    return affine


@given(affines(), st.lists(st.tuples(st.floats(0, 5000), st.floats(0, 5000)), min_size=1, max_size=20))
def test_pixels_undoes_xy(affine, points):
    grid = GeoGrid(5000, 5000, affine, None)
    assert np.abs(grid.pixels(grid.xy(points)) - points).max() < 1e-5


@given(affines(), st.tuples(st.floats(0, 5000), st.floats(0, 5000)))
def test_xy_is_the_affine_product(affine, point):
    np.testing.assert_array_equal(GeoGrid(9, 9, affine, None).xy([point])[0], affine * point)


@given(affines(), st.integers(0, 40), st.integers(0, 40))
def test_a_subgrid_puts_its_pixels_where_the_grid_has_them(affine, x0, y0):
    grid = GeoGrid(100, 100, affine, UTM)
    part = grid.subgrid(Box(x0, y0, x0 + 30, y0 + 20))
    assert (part.height, part.width, part.crs) == (20, 30, UTM)
    np.testing.assert_allclose(part.xy([(3, 4)]), grid.xy([(x0 + 3, y0 + 4)]), atol=1e-7, rtol=0)


def test_north_up_by_hand():
    grid = GeoGrid(200, 100, NORTH_UP, UTM)
    assert grid.xy([(0, 0), (100, 200)]).tolist() == [[500_000, 5_000_000], [500_050, 4_999_900]]
    assert grid.bounds == (500_000, 4_999_900, 500_050, 5_000_000)
    assert grid.gsd == 0.5
    assert not grid.is_geographic
    assert grid.is_axis_aligned


def test_bounds_of_a_rotated_grid_hold_all_corners():
    grid = GeoGrid(10, 10, Affine.rotation(45), None)
    side = 10 * math.sqrt(0.5)
    np.testing.assert_allclose(grid.bounds, (-side, 0, side, 2 * side), atol=1e-12)
    assert not grid.is_axis_aligned


def test_gsd_of_a_sheared_grid_is_the_root_of_a_pixels_area():
    grid = GeoGrid(10, 10, Affine(2, 1, 5e5, 0, -3, 5e6), UTM)
    assert grid.gsd == pytest.approx(math.sqrt(6))
    assert grid.pixel_size == pytest.approx((2, math.sqrt(10)))


@pytest.mark.parametrize("epsg", [4326, 4269, 4267])
@pytest.mark.parametrize("latitude", [0.0, 45.0, -60.0, 79.0])
def test_gsd_in_degrees_is_geodesic_at_the_centre(epsg, latitude):
    step = 1e-5
    grid = GeoGrid(100, 100, Affine(step, 0, 10, 0, -step, latitude + 50 * step), CRS.from_epsg(epsg))
    geod = pyproj.CRS.from_epsg(epsg).get_geod()
    lon = 10 + 50 * step
    _, _, east = geod.inv(lon, latitude, lon + step, latitude)
    _, _, north = geod.inv(lon, latitude - step / 2, lon, latitude + step / 2)
    assert grid.pixel_size == pytest.approx((east, north), rel=1e-6)
    assert grid.gsd == pytest.approx(math.sqrt(east * north), rel=1e-6)
    assert grid.is_geographic


def test_gsd_in_feet_is_in_metres():
    grid = GeoGrid(10, 10, Affine(1, 0, 1e6, 0, -1, 2e5), CRS.from_epsg(2263))
    assert grid.gsd == pytest.approx(1200 / 3937)


def test_gsd_of_web_mercator_is_on_the_ground():
    grid = GeoGrid(2, 2, Affine(1, 0, 0, 0, -1, 8_399_737.9), CRS.from_epsg(3857))  # 60 degrees north
    assert grid.gsd == pytest.approx(0.5, rel=5e-3)


def test_gsd_without_crs_or_unit_is_unknown():
    local = CRS.from_wkt('LOCAL_CS["somewhere",UNIT["metre",1]]')
    assert GeoGrid(10, 10, Affine.identity(), None).gsd is None
    assert GeoGrid(10, 10, Affine.identity(), None).pixel_size is None
    assert GeoGrid(10, 10, Affine.identity(), local).gsd is None


def test_resampled_keeps_the_origin_and_the_rotation():
    grid = GeoGrid(100, 200, Affine.translation(5, 6) * Affine.rotation(30) * Affine.scale(2, -2), UTM)
    coarse = grid.resampled(25, 50, 4.0, 4.0)
    np.testing.assert_allclose(coarse.corners, grid.corners, atol=1e-9)


@pytest.mark.parametrize(
    ("height", "width", "affine", "words"),
    [
        (0, 5, NORTH_UP, "at least 1 x 1"),
        (5, 5, Affine(1, 1, 0, 1, 1, 0), "cannot be inverted"),
        (5, 5, Affine(math.nan, 0, 0, 0, 1, 0), "cannot be inverted"),
    ],
)
def test_impossible_grids_are_refused(height, width, affine, words):
    with pytest.raises(ValueError, match=words):
        GeoGrid(height, width, affine, None)


def test_grid_pickles():
    grid = GeoGrid(10, 20, NORTH_UP, UTM)
    assert pickle.loads(pickle.dumps(grid)) == grid
