"""The frame of a result: schema, ids, sizes on the ground, CRS."""

from __future__ import annotations

import math
import random

import geopandas as gpd
import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS

from rsgeoseg.errors import OutputError, UsageError
from rsgeoseg.geo.frame import SCHEMA, frame_crs, objects_to_frame, parse_area
from rsgeoseg.geo.grid import GeoGrid
from rsgeoseg.geo.stitch import StitchedObject
from rsgeoseg.geo.windows import Box

UTM = GeoGrid(1000, 1000, Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000), CRS.from_epsg(32631))
COLUMNS = [
    "id",
    "class_id",
    "class_name",
    "score",
    "area_m2",
    "perimeter_m",
    "n_chips",
    "seam",
    "truncated",
    "model",
    "geometry",
]
CLASSES = ("plane", "ship", "tank")


def item(x0, y0, width=4, height=2, label=0, score=0.9, n_chips=1, seam=False, truncated=False, mask=None):
    mask = np.ones((height, width), bool) if mask is None else np.asarray(mask, bool)
    box = Box(x0, y0, x0 + mask.shape[1], y0 + mask.shape[0])
    return StitchedObject(box, mask, label, score, n_chips, seam=seam, truncated=truncated)


def make(objects, grid=UTM, **options):
    return objects_to_frame(objects, grid=grid, classes=CLASSES, model="oracle", **options)


def test_every_column_of_one_object_by_hand():
    frame = make([item(10, 20, label=2, score=0.75, n_chips=3, seam=True, truncated=True)])
    row = frame.iloc[0]
    assert list(frame.columns) == COLUMNS
    assert row.drop("geometry").to_dict() == {
        "id": 1,
        "class_id": 2,
        "class_name": "tank",
        "score": 0.75,
        "area_m2": 2.0,
        "perimeter_m": 6.0,
        "n_chips": 3,
        "seam": True,
        "truncated": True,
        "model": "oracle",
    }
    assert row.geometry.equals(shapely.box(500_005, 4_999_989, 500_007, 4_999_990))
    assert frame.crs == "EPSG:32631"


@pytest.mark.parametrize("objects", [[], [item(1, 1)], [item(1, 1), item(9, 9, mask=[[1, 0], [0, 1]])]])
@pytest.mark.parametrize("grid", [UTM, GeoGrid(9, 9, Affine.identity(), None)])
def test_columns_and_dtypes_never_change(objects, grid):
    frame = make(objects, grid)
    assert isinstance(frame, gpd.GeoDataFrame)
    assert list(frame.columns) == COLUMNS == [*SCHEMA, "geometry"]
    expected = {name: dtype for name, dtype in SCHEMA.items() if dtype != "str"}
    assert {name: str(frame[name].dtype) for name in expected} == expected
    assert frame.crs == (None if grid.crs is None else "EPSG:32631")
    assert list(make(objects, grid, text="red roof").columns) == [*SCHEMA, "text", "geometry"]


def test_ids_run_from_top_to_bottom_whatever_the_order_of_arrival():
    objects = [item(50 * (i % 7), 40 * (i // 7), label=i % 3, score=0.5 + i / 100) for i in range(30)]
    # Equal boxes, labels and scores: only the masks differ.
    objects += [item(900, 900, mask=mask) for mask in ([[1, 0], [1, 1]], [[0, 1], [1, 1]], [[1, 1], [1, 0]])]
    expected = make(objects)
    for seed in range(5):
        shuffled = random.Random(seed).sample(objects, len(objects))
        assert make(shuffled).equals(expected)
    assert expected["id"].tolist() == list(range(1, 34))
    tops = expected.geometry.bounds["maxy"].to_numpy()
    assert (np.diff(tops) <= 0).all()


def test_geographic_sizes_are_geodesic():
    step = 1e-5
    grid = GeoGrid(100, 100, Affine(step, 0, 10.0, 0, -step, 60.0), CRS.from_epsg(4326))
    hollow = np.ones((40, 60), bool)
    hollow[10:20, 10:30] = False
    frame = make([item(0, 0, mask=hollow)], grid)
    # Radii of curvature of WGS 84 at the rectangle's middle latitude.
    phi = math.radians(60 - 20 * step)
    a, e2 = 6378137.0, 0.00669437999014
    east = a / math.sqrt(1 - e2 * math.sin(phi) ** 2) * math.cos(phi) * math.radians(step)
    north = a * (1 - e2) / (1 - e2 * math.sin(phi) ** 2) ** 1.5 * math.radians(step)
    assert frame["area_m2"][0] == pytest.approx(hollow.sum() * east * north, rel=1e-5)
    assert frame["perimeter_m"][0] == pytest.approx(2 * (80 * east + 50 * north), rel=1e-5)


def test_geodesic_sizes_of_several_parts_add_up():
    grid = GeoGrid(100, 100, Affine(1e-5, 0, 10.0, 0, -1e-5, 60.0), CRS.from_epsg(4326))
    both = make([item(0, 0, mask=[[1, 0], [0, 1]]), item(50, 0), item(70, 0)], grid)
    single = make([item(0, 0, mask=[[1]]), item(1, 1, mask=[[1]])], grid)
    assert both.geometry[0].geom_type == "MultiPolygon"
    assert both["area_m2"][0] == pytest.approx(single["area_m2"].sum(), rel=1e-9)
    assert both["perimeter_m"][0] == pytest.approx(single["perimeter_m"].sum(), rel=1e-9)
    assert both["area_m2"][1] == pytest.approx(both["area_m2"][2], rel=1e-6)


def test_sizes_in_feet_become_metres():
    feet = GeoGrid(100, 100, Affine(2, 0, 1_000_000, 0, -2, 200_000), CRS.from_epsg(2263))
    frame = make([item(3, 3, width=10, height=5)], feet)
    unit = 1200 / 3937
    assert frame["area_m2"][0] == pytest.approx(200 * unit**2, rel=1e-9)
    assert frame["perimeter_m"][0] == pytest.approx(60 * unit, rel=1e-9)


def test_web_mercator_sizes_are_not_blown_up():
    to_mercator = pyproj.Transformer.from_crs(4326, 3857, always_xy=True)
    x, y = to_mercator.transform(10, 60)
    frame = make([item(0, 0, width=100, height=100)], GeoGrid(100, 100, Affine(1, 0, x, 0, -1, y), CRS.from_epsg(3857)))
    assert frame["area_m2"][0] == pytest.approx(10_000 * math.cos(math.radians(60)) ** 2, rel=0.01)


def test_without_a_crs_sizes_are_nan_and_geometry_is_in_pixels():
    frame = make([item(3, 4)], GeoGrid(100, 100, Affine.identity(), None))
    assert frame[["area_m2", "perimeter_m"]].isna().all(axis=None)
    assert frame.geometry[0].bounds == (3, 4, 7, 6)


@pytest.mark.parametrize(
    ("min_area", "kept"), [(None, [2, 8, 50]), ("8px", [8, 50]), ("9px", [50]), ("2m2", [8, 50]), ("2.01m2", [50])]
)
def test_small_objects_are_dropped_and_ids_stay_without_gaps(min_area, kept):
    objects = [item(0, 0, 2, 1), item(0, 50, 4, 2), item(0, 90, 10, 5)]
    frame = make(objects, min_area=None if min_area is None else parse_area(min_area))
    assert (frame["area_m2"] * 4).tolist() == kept
    assert frame["id"].tolist() == list(range(1, len(kept) + 1))


def test_square_metres_need_a_crs():
    with pytest.raises(UsageError, match="50px"):
        make([item(0, 0)], GeoGrid(10, 10, Affine.identity(), None), min_area=(20, "m2"))


@pytest.mark.parametrize(
    ("text", "value"), [("20m2", (20, "m2")), ("50px", (50, "px")), (" 1.5 M2", (1.5, "m2")), (".5m²", (0.5, "m2"))]
)
def test_parse_area(text, value):
    assert parse_area(text) == value


@pytest.mark.parametrize("text", ["", "20", "m2", "-3px", "3 ha", "3m", "nanpx", "1e3px", "3px 4px"])
def test_parse_area_refuses_what_has_no_clear_meaning(text):
    with pytest.raises(UsageError, match="20m2"):
        parse_area(text)


def test_reprojection_keeps_sizes_and_ring_directions():
    hollow = np.ones((30, 30), bool)
    hollow[10:20, 10:20] = False
    here = make([item(10, 10, mask=hollow)])
    there = make([item(10, 10, mask=hollow)], dst_crs="EPSG:4326")
    assert there.crs == "EPSG:4326"
    assert there["area_m2"][0] == here["area_m2"][0] == 200
    assert shapely.equals_exact(there.to_crs(here.crs).geometry[0].normalize(), here.geometry[0].normalize(), 1e-6)
    assert there.geometry[0].exterior.is_ccw
    assert not there.geometry[0].interiors[0].is_ccw
    assert make([], dst_crs="EPSG:3857").crs == "EPSG:3857"


def test_reprojection_that_cannot_be_done_is_refused():
    with pytest.raises(UsageError, match="unknown CRS"):
        make([item(0, 0)], dst_crs="EPSG:999999")
    with pytest.raises(UsageError, match="no CRS"):
        make([item(0, 0)], GeoGrid(10, 10, Affine.identity(), None), dst_crs="EPSG:4326")
    southern = GeoGrid(10, 10, Affine(0.1, 0, 0, 0, -0.1, -20), CRS.from_epsg(4326))
    with pytest.raises(OutputError, match="covers the scene"):
        make([item(0, 0, 10, 10)], southern, dst_crs="+proj=gnom +lat_0=90")


def test_a_crs_without_an_epsg_code_is_kept():
    text = "+proj=laea +lat_0=12 +lon_0=34 +ellps=GRS80 +units=m"
    grid = GeoGrid(10, 10, Affine(1, 0, 0, 0, -1, 0), CRS.from_string(text))
    assert make([item(0, 0)], grid).crs.equals(pyproj.CRS.from_user_input(text))
    assert frame_crs(CRS.from_epsg(4326)) == pyproj.CRS.from_epsg(4326)
    assert frame_crs(None) is None


def test_masks_without_a_pixel_are_dropped():
    assert len(make([item(0, 0, mask=[[0, 0]])])) == 0


def test_simplify_and_regularize_reach_the_geometry():
    yy, xx = np.mgrid[:60, :60]
    disc = item(0, 0, mask=np.hypot(yy - 30, xx - 30) < 28)
    exact, simple = make([disc]).geometry[0], make([disc], simplify=1).geometry[0]
    assert shapely.get_num_coordinates(simple) < shapely.get_num_coordinates(exact)
    assert make([disc], simplify=1)["area_m2"][0] == pytest.approx(simple.area)
