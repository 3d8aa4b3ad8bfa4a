"""Tables written in batches are the tables written at once, and errors on the way are raised as they are."""

from __future__ import annotations

import itertools
import json
import math
import os
import weakref

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from geopandas import GeoDataFrame, GeoSeries
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from test_writers import CLASSES, UTM, make, some_objects

from rsgeoseg.errors import OutputError, UsageError
from rsgeoseg.geo import coco, labels, vector_stream, vector_tiles, writers
from rsgeoseg.geo.batches import Batches
from rsgeoseg.geo.formats import FORMATS, extension_of
from rsgeoseg.geo.frame import SCHEMA
from rsgeoseg.geo.grid import GeoGrid
from rsgeoseg.geo.stitch import StitchedObject
from rsgeoseg.geo.vector_tiles import zoom_range
from rsgeoseg.geo.windows import Box
from rsgeoseg.geo.writers import load_frame, write_batches, write_frame

ALL = list(FORMATS)
VECTORS = ["gpkg", "geojson", "fgb", "parquet", "shp"]


def table(count: int, seed: int = 0, grid: GeoGrid = UTM) -> GeoDataFrame:
    rng = np.random.default_rng(seed)
    objects = []
    for number in range(count):
        x, y, w, h = *rng.integers(0, 60, 2).tolist(), *rng.integers(1, 9, 2).tolist()
        box, score = Box(x, y, x + w, y + h), float(np.float32(rng.random()))
        objects.append(StitchedObject(box, np.ones((h, w), bool), number % 2, score, 1, seam=False, truncated=False))
    return make(objects, grid)


def pieces(frame: GeoDataFrame, sizes: list[int]) -> list[GeoDataFrame]:
    edges = np.minimum(np.cumsum([0, *sizes, len(frame)]), len(frame)).tolist()
    return [frame.iloc[a:b] for a, b in itertools.pairwise(edges)]


def stream(frame, path, sizes, **options):
    options = {"grid": UTM, "classes": CLASSES} | options
    write_batches(iter(pieces(frame, sizes)), path, rows=len(frame), vertices=10 * len(frame), **options)


@pytest.mark.parametrize("name", ALL)
@given(
    count=st.integers(0, 30),
    sizes=st.lists(st.integers(0, 12), max_size=4),
    size=st.integers(1, 12),
)
@settings(max_examples=10, deadline=None)
def test_a_file_does_not_depend_on_how_its_rows_came(tmp_path_factory, name, count, sizes, size):
    count = max(count, 1) if name == "pmtiles" else count
    folder, frame, end = tmp_path_factory.mktemp("out"), table(count), extension_of(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writers, "BATCH_ROWS", size)
        stream(frame, folder / f"out{end}", sizes)
        many, read = contents(folder), load_frame(folder / f"out{end}") if name in VECTORS else None
        write_frame(frame, folder / f"out{end}", overwrite=True, grid=UTM, classes=CLASSES)
    if name == "gpkg":  # has the time of writing inside
        assert load_frame(folder / "out.gpkg").equals(read)
    else:
        assert contents(folder) == many
    if name == "parquet":
        assert pq.read_metadata(folder / "out.parquet").num_row_groups == max(math.ceil(count / size), 1)


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize("lonlat", [False, True], ids=["utm", "lonlat"])
def test_a_streamed_file_is_what_one_call_of_pyogrio_or_geopandas_writes(tmp_path, monkeypatch, name, lonlat):
    monkeypatch.setattr(writers, "BATCH_ROWS", 8)
    frame = make(some_objects(50))  # with holes and several parts
    frame.insert(len(frame.columns) - 1, "text", pd.Series(["the ü in the north"] * 50, dtype="str"))
    frame = frame.to_crs("EPSG:4326") if lonlat else frame
    ours, theirs = tmp_path / f"ours{extension_of(name)}", tmp_path / f"theirs{extension_of(name)}"
    stream(frame, ours, [7, 0, 20])
    if name == "parquet":
        frame.to_parquet(theirs, write_covering_bbox=True, schema_version="1.1.0", index=False, compression="zstd")
        assert pq.read_schema(ours).metadata.keys() == pq.read_schema(theirs).metadata.keys()
        read, expected = pq.read_table(ours), pq.read_table(theirs)
        assert read.schema.equals(expected.schema, check_metadata=True)
        assert read.equals(expected)
        assert pq.ParquetFile(ours).metadata.row_group(0).column(0).compression == "ZSTD"
        return
    multi = [shapely.MultiPolygon([shape]) if shape.geom_type == "Polygon" else shape for shape in frame.geometry]
    written = frame if name == "geojson" else frame.set_geometry(GeoSeries(multi, crs=frame.crs))
    pyogrio.write_dataframe(
        written.rename(columns={"perimeter_m": "perim_m"}) if name == "shp" else written,
        theirs,
        driver=FORMATS[name].driver,
        geometry_type="Unknown" if name == "geojson" else "MultiPolygon",
        layer_options={"RFC7946": "YES", "COORDINATE_PRECISION": "9"} if name == "geojson" else None,
    )
    about, expected = pyogrio.read_info(ours), pyogrio.read_info(theirs)
    assert about["fields"].tolist() == expected["fields"].tolist()
    assert about["dtypes"].tolist() == expected["dtypes"].tolist()
    assert (about["geometry_type"], about["crs"]) == (expected["geometry_type"], expected["crs"])
    read, expected = pyogrio.read_dataframe(ours), pyogrio.read_dataframe(theirs)
    assert read.sort_values("id", ignore_index=True).equals(expected.sort_values("id", ignore_index=True))


# Errors on the way.


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("error", [LookupError, RuntimeError, OSError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [0, 2], ids=["at the start", "halfway"])
def test_an_error_on_the_way_is_raised_as_it_is_and_leaves_nothing(tmp_path, monkeypatch, name, error, before):
    monkeypatch.setattr(writers, "BATCH_ROWS", 3)
    path = tmp_path / f"out{extension_of(name)}"
    path.write_bytes(b"mine")
    raised = error("the part is gone")

    def batches():
        for _ in range(before):
            yield table(3)
        raise raised

    with pytest.raises(error, match="the part is gone") as caught:
        write_batches(batches(), path, rows=9, vertices=40, overwrite=True, grid=UTM)
    assert caught.value is raised
    assert contents(tmp_path) == {path.name: b"mine"}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("rows", [2, 6])
def test_rows_that_are_missing_or_too_many_are_noticed(tmp_path, name, rows):
    with pytest.raises(OutputError, match=f"only . of {rows}"):
        write_batches(iter([table(3)]), tmp_path / f"out{extension_of(name)}", rows=rows, vertices=40, grid=UTM)
    assert list(tmp_path.iterdir()) == []


def test_a_frame_in_another_crs_is_refused(tmp_path):
    frames = [table(3), table(3).to_crs("EPSG:4326")]
    with pytest.raises(UsageError, match="to one file: reproject"):
        write_batches(frames, tmp_path / "out.gpkg", rows=6, vertices=40)
    assert list(tmp_path.iterdir()) == []


# What comes in.


@pytest.mark.parametrize("name", [*VECTORS, "coco"])
def test_further_columns_pass(tmp_path, monkeypatch, name):
    monkeypatch.setattr(writers, "BATCH_ROWS", 2)
    frame = table(5)
    frame.insert(len(frame.columns) - 1, "scene", ["a.tif", "a.tif", "bé.tif", "bé.tif", "bé.tif"])
    # A first scene without objects: nothing tells the type of its column.
    nothing = frame.iloc[:0].astype({"scene": object})
    path = tmp_path / f"out{extension_of(name)}"
    write_batches([nothing, *pieces(frame, [2])], path, rows=5, vertices=40, grid=UTM)
    if name == "coco":
        found = [annotation["scene"] for annotation in json.loads(path.read_text())["annotations"]]
    else:
        found = load_frame(path)["scene"].tolist()
    assert found == frame["scene"].tolist()


@pytest.mark.parametrize("name", VECTORS)
def test_no_batch_at_all_is_an_empty_table(tmp_path, name):
    write_batches([], tmp_path / f"out{extension_of(name)}", rows=0, vertices=0)
    read = load_frame(tmp_path / f"out{extension_of(name)}")
    assert {column: str(read[column].dtype) for column in SCHEMA} == dict(SCHEMA)
    assert len(read) == 0


def test_the_frames_given_are_not_changed(tmp_path):
    frame = table(5)
    frame.attrs["rsgeoseg"] = {"run": 1}
    frame.index = pd.Index([9, 8, 7, 6, 5])
    write_batches([frame], tmp_path / "out.parquet", rows=5, vertices=40)
    assert frame.attrs == {"rsgeoseg": {"run": 1}}
    assert frame.index.tolist() == [9, 8, 7, 6, 5]
    assert list(load_frame(tmp_path / "out.parquet").index) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ALL)
def test_batches_are_made_as_they_are_asked_for_and_let_go(tmp_path, monkeypatch, name):
    monkeypatch.setattr(writers, "BATCH_ROWS", 10)
    whole = table(100)
    alive, most = [], 0

    def batches():
        nonlocal most
        for start in range(0, 100, 10):
            frame = whole.iloc[start : start + 10].copy()
            alive.append(weakref.ref(frame))
            most = max(most, sum(each() is not None for each in alive))
            yield frame
            del frame

    write_batches(batches(), tmp_path / f"out{extension_of(name)}", rows=100, vertices=500, grid=UTM)
    assert most <= 2


@given(sizes=st.lists(st.integers(0, 9), max_size=6), size=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_batches_are_cut_evenly(sizes, size):
    frame = ROWS.iloc[: sum(sizes)]
    batches = Batches(pieces(frame, sizes), size)
    found = list(batches)
    assert [len(batch) for batch in found[:-1]] == [size] * (len(found) - 1)
    assert batches.rows == sum(sizes)
    assert pd.concat(found, ignore_index=True)["id"].tolist() == frame["id"].tolist()
    assert list(batches.first.columns) == list(ROWS.columns)


ROWS = table(54)


# COCO and label rasters.


def test_what_is_cut_short_in_silence_is_noticed(tmp_path, monkeypatch):
    real = coco._count

    def cut(path):
        os.truncate(path, int(path.stat().st_size * 0.6))
        return real(path)

    monkeypatch.setattr(coco, "_count", cut)
    with pytest.raises(OutputError, match="read back"):
        write_frame(table(20), tmp_path / "out.coco.json", grid=UTM)
    assert list(tmp_path.iterdir()) == []


def test_pixels_of_a_label_raster_that_changed_are_noticed(tmp_path, monkeypatch):
    real = rasterio.shutil.copy

    def damage(source, target, **options):
        with rasterio.open(source, "r+") as raster:
            pixels = raster.read(1)
            pixels[tuple(np.argwhere(pixels == 7)[0])] = 8
            raster.write(pixels, 1)
        real(source, target, **options)

    monkeypatch.setattr(labels.rasterio.shutil, "copy", damage)
    with pytest.raises(OutputError, match="1 of 1 parts of the raster"):
        write_frame(table(20), tmp_path / "out.tif", grid=UTM)
    assert list(tmp_path.iterdir()) == []


def test_the_larger_id_is_on_top_whichever_batch_it_comes_in(tmp_path, monkeypatch):
    monkeypatch.setattr(writers, "BATCH_ROWS", 1)
    squares = [shapely.box(500_000 + i, 4_999_900, 500_010 + i, 4_999_990) for i in range(3)]
    frame = table(3).assign(id=[2, 3, 1]).set_geometry(GeoSeries(squares, crs=UTM.crs.to_epsg()))
    write_frame(frame, tmp_path / "out.tif", grid=UTM)
    with rasterio.open(tmp_path / "out.tif") as source:
        row = source.read(1)[100]
    # Half a metre per pixel: 2 from 0 to 2 pixels, 3 from 2 to 22, then the rest of 1.
    assert row[:26].tolist() == [2] * 2 + [3] * 20 + [1] * 2 + [0] * 2


def test_a_label_raster_refuses_ids_it_cannot_hold(tmp_path):
    with pytest.raises(OutputError, match="largest id"):
        write_frame(table(1).assign(id=2**31), tmp_path / "out.tif", grid=UTM)


# Vector tiles.


@pytest.mark.parametrize("gsd", [0.01, 0.5, 10.0])
def test_vector_tiles_have_every_object_where_it_is(tmp_path, monkeypatch, gsd):
    monkeypatch.setattr(writers, "BATCH_ROWS", 15)
    grid = GeoGrid(700, 1300, Affine(gsd, 0, 500_000, 0, -gsd, 5_000_000), CRS.from_epsg(32631))
    frame = table(40, grid=grid)
    path = tmp_path / "out.pmtiles"
    stream(frame, path, [15], grid=grid)
    assert pyogrio.list_layers(path)[:, 0].tolist() == ["objects"]
    found = pyogrio.read_dataframe(path)
    assert found.crs == "EPSG:3857"
    assert set(SCHEMA) - {"area_m2", "perimeter_m"} <= set(found.columns)
    whole = found.dissolve("id").sort_index()
    assert whole.index.tolist() == list(range(1, 41))
    assert whole["class_name"].tolist() == frame["class_name"].tolist()
    # Within one step of a tile's coordinates, which is at most half a pixel.
    expected = frame.geometry.to_crs("EPSG:3857").to_numpy()
    step = 40_075_017 / 2 ** zoom_range(frame, gsd)[1] / 4096
    assert step <= 0.5 * gsd * 1.5
    assert shapely.hausdorff_distance(whole.geometry.to_numpy(), expected).max() <= 1.5 * step


@pytest.mark.parametrize("latitude", [0, 60])
def test_zoom_levels(latitude):
    # 30 m squares: two steps of a tile's coordinates are 30 m wide at most in the coarsest level, whatever the stretch.
    size = 30 / 111_320
    west = size / math.cos(math.radians(latitude))
    frame = GeoDataFrame(geometry=[shapely.box(5, latitude, 5 + west, latitude + size)], crs="EPSG:4326")
    stretch = 1 / math.cos(math.radians(latitude))
    for gsd, finest in ((0.5, 0.25), (None, 30 / 64), (100.0, 15.0)):
        for zoom, step in zip(zoom_range(frame, gsd), (15.0, finest), strict=True):
            assert 40_075_017 / 2**zoom / 4096 <= step * stretch * 1.02
            assert 40_075_017 / 2 ** (zoom - 1) / 4096 > step * stretch * 0.98


def test_places_where_no_vector_tiles_can_be(tmp_path, monkeypatch):
    path = tmp_path / "out.pmtiles"
    with pytest.raises(OutputError, match="need a CRS"):
        stream(table(3).set_crs(None, allow_override=True), path, [])
    with pytest.raises(OutputError, match="cannot be empty"):
        stream(table(0), path, [])
    stream(table(3), path, [])
    with pytest.raises(UsageError, match="no whole polygons"):
        load_frame(path)
    path.unlink()
    monkeypatch.setattr(vector_tiles.pyogrio, "list_drivers", lambda: {"GPKG": "rw"})
    with pytest.raises(OutputError, match="tippecanoe"):
        stream(table(3), path, [])
    assert list(tmp_path.iterdir()) == []


def test_objects_that_tiles_lose_are_told(tmp_path, caplog):
    frame = table(20)
    speck = shapely.box(500_000, 4_999_999.99, 500_000.001, 5_000_000)
    frame = frame.set_geometry(GeoSeries([speck, *frame.geometry[1:]], crs=frame.crs))
    stream(frame, tmp_path / "out.pmtiles", [])
    assert "1 of 20 objects are too small" in caplog.text


@pytest.mark.parametrize("share", [0.3, 0.95])
def test_tiles_that_are_cut_short_in_silence_are_noticed(tmp_path, monkeypatch, share):
    real = pyogrio.write_arrow

    def cut(arrow, path, **options):
        real(arrow, path, **options)
        os.truncate(path, int(path.stat().st_size * share))

    monkeypatch.setattr(vector_stream.pyogrio, "write_arrow", cut)
    with pytest.raises(OutputError, match="bytes were written"):
        stream(table(20), tmp_path / "out.pmtiles", [])
    assert list(tmp_path.iterdir()) == []
