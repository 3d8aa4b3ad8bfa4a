"""Every format written and read back by somebody else's reader."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyarrow.parquet as pq
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from rasterio.crs import CRS

from rsgeoseg.errors import OutputError, UsageError
from rsgeoseg.geo.coco import run_lengths
from rsgeoseg.geo.frame import SCHEMA, objects_to_frame
from rsgeoseg.geo.grid import GeoGrid
from rsgeoseg.geo.stitch import StitchedObject
from rsgeoseg.geo.windows import Box
from rsgeoseg.geo.writers import (
    FORMATS,
    check_output,
    extension_of,
    load_frame,
    record_path,
    to_jsonable,
    write_frame,
    write_record,
)

CLASSES = ("plane", "ship", "tank")
UTM = GeoGrid(700, 1300, Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000), CRS.from_epsg(32631))
TILTED = GeoGrid(
    700, 1300, Affine.translation(500_000, 5_000_000) * Affine.rotation(20) * Affine.scale(0.5, -0.5), UTM.crs
)
NOWHERE = GeoGrid(700, 1300, Affine.identity(), None)
VECTORS = ["gpkg", "geojson", "fgb", "parquet", "shp"]


def some_objects(count: int = 60) -> list[StitchedObject]:
    rng = np.random.default_rng(7)
    found = []
    for number in range(count):
        height, width = rng.integers(1, 40, 2)
        mask = rng.random((height, width)) < (0.6 if number % 3 else 1.1)
        mask[0, 0] = mask[-1, -1] = True
        x0, y0 = 45 * (number % 25), 45 * (number // 25)
        box = Box(x0, y0, x0 + int(width), y0 + int(height))
        chips, score = number % 5 + 1, float(np.float32(rng.random()))
        found.append(StitchedObject(box, mask, number % 2, score, chips, seam=chips > 1, truncated=x0 == 0))
    return found


def make(objects: list[StitchedObject], grid: GeoGrid = UTM) -> gpd.GeoDataFrame:
    return objects_to_frame(objects, grid=grid, classes=CLASSES, model="oracle")


def truth_labels(objects: list[StitchedObject], grid: GeoGrid) -> np.ndarray:
    labels = np.zeros((grid.height, grid.width), np.int32)
    for number, obj in enumerate(sorted(objects, key=lambda o: (o.box.y0, o.box.x0)), start=1):
        labels[obj.box.as_slices()][obj.mask] = number
    return labels


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize("grid", [UTM, TILTED, NOWHERE], ids=["utm", "tilted", "no crs"])
@pytest.mark.parametrize("count", [60, 1, 0])
def test_vector_formats_come_back_whole(tmp_path, name, grid, count):
    frame = make(some_objects(count), grid)
    path = tmp_path / f"out{extension_of(name)}"
    write_frame(frame, path)
    read = gpd.read_parquet(path) if name == "parquet" else pyogrio.read_dataframe(path)
    assert len(read) == count
    crs = "EPSG:4326" if name == "geojson" and grid is UTM else frame.crs
    if name == "geojson":
        crs = "EPSG:4326"  # the only one it has, also for those who do not want it
    if count:
        read = read.sort_values("id", ignore_index=True)
        assert read.crs == crs
        expected = frame.to_crs(crs) if frame.crs else frame
        assert np.allclose(read.total_bounds, expected.total_bounds, rtol=0, atol=1e-8 if name == "geojson" else 0)
        for column in set(SCHEMA) - {"perimeter_m"}:
            values, wanted = read[column].to_numpy(), frame[column].to_numpy()
            if wanted.dtype.kind == "f":
                assert np.allclose(values.astype(float), wanted, rtol=1e-7, equal_nan=True), column
            else:
                assert values.tolist() == wanted.tolist(), column
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        {f"out{end}" for end in FORMATS[name].extensions[:1] + FORMATS[name].parts}
        - ({"out.prj"} if grid is NOWHERE else set())
    )


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize("grid", [UTM, NOWHERE], ids=["utm", "no crs"])
@pytest.mark.parametrize("count", [60, 0])
def test_load_frame_gives_back_what_was_written(tmp_path, name, grid, count):
    frame = make(some_objects(count), grid)
    path = tmp_path / f"out{extension_of(name)}"
    write_frame(frame, path)
    read = load_frame(path)
    assert list(read.columns) == list(frame.columns)
    assert {c: str(read[c].dtype) for c in read} == {c: str(frame[c].dtype) for c in frame}
    if name != "geojson":
        assert read.crs == frame.crs
        assert shapely.equals_exact(read.geometry.normalize(), frame.geometry.normalize(), 1e-9).all()
        assert read.drop(columns="geometry").equals(frame.drop(columns="geometry"))
    elif count:
        assert read.crs == ("EPSG:4326" if grid.crs else None)
        back = read.to_crs(frame.crs) if grid.crs else read
        assert shapely.hausdorff_distance(back.geometry.to_numpy(), frame.geometry.to_numpy()).max() < 1e-3


def test_geojson_follows_rfc_7946(tmp_path, caplog):
    path = tmp_path / "out.geojson"
    with caplog.at_level(logging.INFO):
        write_frame(make(some_objects()), path)
    assert "EPSG:4326" in caplog.text
    content = json.loads(path.read_text())
    assert "crs" not in content
    for feature in content["features"]:
        geometry = shapely.geometry.shape(feature["geometry"])
        assert geometry.is_valid
        for part in shapely.get_parts(geometry):
            longitude, latitude = part.exterior.coords[0]
            assert 2.9 < longitude < 3.1
            assert 45 < latitude < 45.3
            assert part.exterior.is_ccw
            assert not any(ring.is_ccw for ring in part.interiors)


def test_geojson_without_a_crs_says_so(tmp_path, caplog):
    write_frame(make(some_objects(3), NOWHERE), tmp_path / "out.geojson")
    assert "no CRS" in caplog.text


@pytest.mark.parametrize(
    "grid",
    [
        GeoGrid(100, 100, Affine(0.01, 0, 179.5, 0, -0.01, 10), CRS.from_epsg(4326)),
        GeoGrid(100, 100, Affine(0.01, 0, -180.5, 0, -0.01, 10), CRS.from_epsg(4326)),
        GeoGrid(100, 100, Affine(1000, 0, 780_000, 0, -1000, 1_000_000), CRS.from_epsg(32660)),
    ],
    ids=["east", "west", "utm 60"],
)
def test_geojson_is_cut_at_the_antimeridian(tmp_path, grid):
    objects = [StitchedObject(Box(0, 0, 100, 50), np.ones((50, 100), bool), 0, 0.5, 1, seam=False, truncated=True)]
    path = tmp_path / "out.geojson"
    write_frame(make(objects, grid), path)
    (geometry,) = load_frame(path).geometry
    assert geometry.is_valid
    west, east = sorted(geometry.geoms, key=lambda part: part.bounds[0])
    assert west.bounds[0] == pytest.approx(-180, abs=1e-6)
    assert east.bounds[2] == pytest.approx(180, abs=1e-6)
    assert west.bounds[2] < -178
    assert east.bounds[0] > 178
    if grid.is_geographic:
        assert geometry.area == pytest.approx(0.5)


def test_geoparquet_metadata(tmp_path):
    path = tmp_path / "out.parquet"
    frame = make(some_objects())
    frame.attrs["rsgeoseg"] = {"anything": Path("x")}
    write_frame(frame, path)
    file = pq.ParquetFile(path)
    geo = json.loads(file.metadata.metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    assert geo["columns"]["geometry"]["covering"]["bbox"]["xmin"] == ["bbox", "xmin"]
    assert geo["columns"]["geometry"]["crs"]["id"] == {"authority": "EPSG", "code": 32631}
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    assert frame.attrs


def test_one_geometry_type_per_layer(tmp_path):
    for name in ("gpkg", "fgb", "shp"):
        path = tmp_path / f"out.{name}"
        write_frame(make(some_objects(3)), path)
        kind = pyogrio.read_info(path)["geometry_type"]
        assert kind == ("Polygon" if name == "shp" else "MultiPolygon")  # Shapefile's one kind is called Polygon


def test_shapefile_names_fit_ten_characters(tmp_path):
    write_frame(make(some_objects(3)), tmp_path / "out.shp")
    assert list(pyogrio.read_info(tmp_path / "out.shp")["fields"]) == [
        "id",
        "class_id",
        "class_name",
        "score",
        "area_m2",
        "perim_m",
        "n_chips",
        "seam",
        "truncated",
        "model",
    ]
    assert (tmp_path / "out.cpg").read_text() == "UTF-8"


def test_replacing_a_shapefile_leaves_no_part_of_the_old_one(tmp_path):
    path = tmp_path / "out.shp"
    write_frame(make(some_objects(3)), path)
    (tmp_path / "out.qix").write_bytes(b"old index")
    write_frame(make(some_objects(5), NOWHERE), path, overwrite=True)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".cpg", ".dbf", ".shp", ".shx"]
    assert len(pyogrio.read_dataframe(path)) == 5


def test_replacing_a_geopackage_leaves_no_old_journal(tmp_path):
    path = tmp_path / "out.gpkg"
    path.write_bytes(b"not a database")
    (tmp_path / "out.gpkg-journal").write_bytes(b"would be rolled back into the new file")
    write_frame(make(some_objects(4)), path, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out.gpkg"]
    assert len(pyogrio.read_dataframe(path)) == 4


@pytest.mark.parametrize("grid", [UTM, TILTED, NOWHERE], ids=["utm", "tilted", "no crs"])
def test_coco_masks_are_the_objects_pixel_for_pixel(tmp_path, grid):
    objects = some_objects()
    path = tmp_path / "out.coco.json"
    write_frame(make(objects, grid), path, grid=grid, classes=CLASSES, scene_name="scene.tif")
    coco = COCO(str(path))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    (image,) = coco.loadImgs(coco.getImgIds())
    assert (image["file_name"], image["width"], image["height"]) == ("scene.tif", 1300, 700)
    ordered = sorted(objects, key=lambda o: (o.box.y0, o.box.x0))
    annotations = coco.loadAnns(coco.getAnnIds())
    assert len(annotations) == len(objects)
    for obj, annotation in zip(ordered, annotations, strict=True):
        expected = np.zeros((700, 1300), bool)
        expected[obj.box.as_slices()] = obj.mask
        assert (coco.annToMask(annotation) == expected).all()
        assert annotation["area"] == obj.mask.sum()
        assert annotation["bbox"] == [obj.box.x0, obj.box.y0, obj.box.width, obj.box.height]
        assert annotation["category_id"] == obj.label + 1
        assert annotation["score"] == pytest.approx(obj.score, abs=1e-6)


@settings(max_examples=150, deadline=None)
@given(
    hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6)),
    st.tuples(*[st.integers(0, 3)] * 4),
)
def test_run_lengths_equal_pycocotools(mask, margins):
    left, upper, right, lower = margins
    image = np.pad(mask, ((upper, lower), (left, right)))
    expected = coco_mask.encode(np.asfortranarray(image.astype(np.uint8)))
    found = run_lengths(mask, left, upper, *image.shape)
    assert found == {"size": list(image.shape), "counts": expected["counts"].decode()}


def test_coco_of_nothing_and_of_objects_beyond_the_scene(tmp_path):
    write_frame(make([]), tmp_path / "none.coco.json", grid=UTM, classes=CLASSES)
    assert json.loads((tmp_path / "none.coco.json").read_text())["annotations"] == []
    frame = make(some_objects(2)).set_geometry(
        [shapely.box(499_990, 4_999_990, 500_001, 5_000_010), shapely.box(0, 0, 1, 1)], crs=UTM.crs
    )
    write_frame(frame, tmp_path / "out.coco.json", grid=UTM)
    annotations = json.loads((tmp_path / "out.coco.json").read_text())["annotations"]
    assert [(a["bbox"], a["area"]) for a in annotations] == [([0, 0, 2, 20], 40), ([0, 699, 0, 0], 0)]


def test_coco_refuses_a_scene_it_cannot_count(tmp_path):
    grid = GeoGrid(2**16, 2**16, Affine.identity(), None)
    with pytest.raises(OutputError, match="too large for COCO"):
        write_frame(make([]), tmp_path / "out.coco.json", grid=grid)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("grid", [UTM, TILTED, NOWHERE], ids=["utm", "tilted", "no crs"])
def test_label_raster_is_the_objects_pixel_for_pixel(tmp_path, grid):
    objects = some_objects()
    path = tmp_path / "out.tif"
    write_frame(make(objects, grid), path, grid=grid)
    with rasterio.open(path) as source:
        assert (source.read(1) == truth_labels(objects, grid)).all()
        assert (source.dtypes, source.nodata, source.crs) == (("int32",), 0, grid.crs)
        assert np.allclose(list(source.transform), list(grid.affine), rtol=0, atol=1e-9)
        assert source.overviews(1)
        assert source.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert source.compression.name == "deflate"
        coarse = source.read(1, out_shape=(350, 650))
        assert set(np.unique(coarse)) <= set(range(61))
    assert [p.name for p in tmp_path.iterdir()] == ["out.tif"]


def test_label_raster_of_another_crs_lies_on_the_scene(tmp_path):
    objects = some_objects()
    frame = objects_to_frame(objects, grid=UTM, classes=CLASSES, model="oracle", dst_crs="EPSG:4326")
    write_frame(frame, tmp_path / "out.tif", grid=UTM)
    with rasterio.open(tmp_path / "out.tif") as source:
        assert (source.read(1) == truth_labels(objects, UTM)).all()


def test_label_raster_of_nothing(tmp_path):
    write_frame(make([]), tmp_path / "out.tif", grid=UTM)
    with rasterio.open(tmp_path / "out.tif") as source:
        assert not source.read(1).any()


@dataclass(frozen=True)
class _Settings:
    threshold: float
    path: Path


def test_run_record(tmp_path):
    out = tmp_path / "scene.gpkg"
    record = {
        "array": np.arange(3, dtype=np.int16),
        "scalar": np.float32(0.5),
        "hole": np.nan,
        "far": [float("inf"), np.bool_(True)],
        "settings": _Settings(0.5, Path("a/b")),
        "names": {"b", "a"},
        3: (1, "ü"),
    }
    assert write_record(out, {"old": 1}) == record_path(out) == tmp_path / "scene.gpkg.run.json"
    write_record(out, record)
    assert json.loads(record_path(out).read_text(encoding="utf-8")) == {
        "array": [0, 1, 2],
        "scalar": 0.5,
        "hole": None,
        "far": [None, True],
        "settings": {"threshold": 0.5, "path": "a/b"},
        "names": ["a", "b"],
        "3": [1, "ü"],
    }
    assert [p.name for p in tmp_path.iterdir()] == ["scene.gpkg.run.json"]
    with pytest.raises(TypeError, match="object"):
        to_jsonable({"x": object()})


@pytest.mark.parametrize(
    ("name", "option", "expected"),
    [
        ("a.gpkg", None, "gpkg"),
        ("a.GEOJSON", None, "geojson"),
        ("a.json", None, "geojson"),
        ("a.coco.json", None, "coco"),
        ("a.b.fgb", None, "fgb"),
        ("a.geoparquet", None, "parquet"),
        ("a.shp", None, "shp"),
        ("a.tiff", None, "tif"),
        ("a.json", "coco", "coco"),
        ("a.dat", "GeoPackage", "gpkg"),
        ("a", ".fgb", "fgb"),
    ],
)
def test_format_is_found_by_extension_or_by_option(tmp_path, name, option, expected):
    assert check_output(tmp_path / name, format=option).name == expected


def test_format_option_overrides_the_extension(tmp_path):
    write_frame(make(some_objects(3)), tmp_path / "out.dat", format="gpkg")
    assert (tmp_path / "out.dat").read_bytes().startswith(b"SQLite")
    with pytest.raises(OutputError, match=r"\.shp"):
        check_output(tmp_path / "out.dat", format="shp")


@pytest.mark.parametrize("name", ["coco", "tif"])
def test_formats_in_pixels_need_the_grid(tmp_path, name):
    with pytest.raises(UsageError, match="grid"):
        write_frame(make([]), tmp_path / f"out{extension_of(name)}")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("gone.gpkg", None),
        ("a.gpkg", b"<OGRVRTDataSource/>"),
        ("a.fgb", b""),
        ("a.parquet", b"PAR1 and nothing else"),
        ("a.gpkg", b"SQLite format 3\0 and nothing else"),
        ("a.geojson", b"{ not json"),
        ("a.tif", b"II*\0"),
        ("a.coco.json", b"{}"),
        ("a.txt", b"x"),
    ],
)
def test_load_frame_refuses_in_one_line(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match="cannot read") as caught:
        load_frame(tmp_path / name)
    assert "\n" not in str(caught.value)
