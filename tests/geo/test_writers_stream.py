"""Tables written in batches are the tables written at once."""

import numpy as np
import pandas as pd
import pyogrio
import pytest
import shapely
from geopandas import GeoDataFrame
from hypothesis import given, settings
from hypothesis import strategies as st
from test_writers import UTM as GRID

from rsgeoseg.engine.collect import Drawing
from rsgeoseg.errors import OutputError
from rsgeoseg.geo import writers
from rsgeoseg.geo.formats import extension_of
from rsgeoseg.geo.stitch import StitchedObject
from rsgeoseg.geo.windows import Box
from rsgeoseg.geo.writers import load_frame, write_batches, write_frame
from rsgeoseg.testing.oracle import oracle_spec

VECTORS = ["gpkg", "geojson", "fgb", "parquet", "shp"]
DRAWING = Drawing(GRID, oracle_spec(["a", "b"]))


def table(count, seed=0) -> GeoDataFrame:
    rng = np.random.default_rng(seed)
    objects = []
    for number in range(count):
        x, y, w, h = *rng.integers(0, 60, 2).tolist(), *rng.integers(1, 9, 2).tolist()
        mask = np.ones((h, w), bool)
        item = StitchedObject(Box(x, y, x + w, y + h), mask, number % 2, float(rng.random()), 1, False, False)
        objects.append(item)
    frame = DRAWING.draw(objects).frame
    frame["id"] = np.arange(1, count + 1)
    return frame


def stream(frame, path, sizes, **options):
    edges = np.minimum(np.cumsum([0, *sizes, len(frame)]), len(frame)).tolist()
    pieces = [frame.iloc[a:b] for a, b in zip(edges, edges[1:], strict=False) if b > a] or [frame]
    vertices = int(shapely.get_num_coordinates(frame.geometry.to_numpy()).sum())
    write_batches(iter(pieces), path, rows=len(frame), vertices=vertices, **options)


@pytest.mark.parametrize("name", VECTORS)
@given(count=st.integers(0, 30), sizes=st.lists(st.integers(1, 12), max_size=4))
@settings(max_examples=12, deadline=None)
def test_any_batches_give_the_same_file(tmp_path_factory, name, count, sizes):
    folder, frame = tmp_path_factory.mktemp("out"), table(count)
    stream(frame, folder / f"many{extension_of(name)}", sizes)
    write_frame(frame, folder / f"once{extension_of(name)}")
    many, once = (load_frame(folder / f"{which}{extension_of(name)}") for which in ("many", "once"))
    assert len(many) == count
    assert many.crs == once.crs
    pd.testing.assert_frame_equal(pd.DataFrame(many).drop(columns="geometry"), pd.DataFrame(once).drop(columns="geometry"))
    assert many.geometry.geom_equals_exact(once.geometry, 0).all()


def test_geoparquet_says_of_itself_what_geopandas_would_say(tmp_path):
    import json

    import pyarrow.parquet as pq

    frame = table(50)
    stream(frame, tmp_path / "a.parquet", [7, 20])
    frame.to_parquet(tmp_path / "b.parquet", write_covering_bbox=True, schema_version="1.1.0", index=False)
    ours, theirs = (json.loads(pq.read_metadata(tmp_path / f"{x}.parquet").metadata[b"geo"]) for x in "ab")
    assert ours == theirs
    assert pq.read_schema(tmp_path / "a.parquet").names == pq.read_schema(tmp_path / "b.parquet").names
    assert pq.read_metadata(tmp_path / "a.parquet").num_row_groups == 3


@pytest.mark.parametrize("name", VECTORS)
def test_an_error_on_the_way_is_raised_as_it_is_and_leaves_nothing(tmp_path, name):
    path = tmp_path / f"out{extension_of(name)}"
    path.write_bytes(b"mine")

    def batches():
        yield table(3)
        msg = "the part is gone"
        raise LookupError(msg)

    with pytest.raises(LookupError, match="the part is gone"):
        write_batches(batches(), path, rows=6, vertices=40, overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"mine"


def test_a_batch_that_is_missing_is_noticed(tmp_path):
    with pytest.raises(OutputError, match="only 3 of 6"):
        write_batches(iter([table(3)]), tmp_path / "out.fgb", rows=6, vertices=40)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", VECTORS)
def test_further_columns_pass(tmp_path, name):
    frame = table(5)
    frame.insert(len(frame.columns) - 1, "scene", "a.tif")
    stream(frame, tmp_path / f"out{extension_of(name)}", [2])
    assert (load_frame(tmp_path / f"out{extension_of(name)}")["scene"] == "a.tif").all()


def test_no_more_than_two_batches_are_alive(tmp_path, monkeypatch):
    """Batches are made as they are asked for, and let go."""
    import weakref

    monkeypatch.setattr(writers, "BATCH_ROWS", 10)
    made, most = [], 0

    def batches():
        nonlocal most
        for start in range(0, 100, 10):
            frame = table(10, start).assign(id=np.arange(start + 1, start + 11))
            made.append(weakref.ref(frame))
            most = max(most, sum(each() is not None for each in made))
            yield frame
            del frame

    write_batches(batches(), tmp_path / "out.gpkg", rows=100, vertices=500)
    assert most <= 3
    assert len(load_frame(tmp_path / "out.gpkg")) == 100


def test_vector_tiles_can_be_read_back(tmp_path):
    frame = table(40)
    stream(frame, tmp_path / "out.pmtiles", [15])
    found = pyogrio.read_dataframe(tmp_path / "out.pmtiles")
    assert set(found["id"]) == set(range(1, 41))
    assert set(found["class_name"]) == {"a", "b"}
    bare = frame.set_crs(None, allow_override=True)
    with pytest.raises(OutputError, match="need a CRS"):
        stream(bare, tmp_path / "bare.pmtiles", [])
