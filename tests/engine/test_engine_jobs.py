import json
import logging
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely
from rasters import write_raster

import rsgeoseg
from rsgeoseg import jobs, registry
from rsgeoseg.contract import Chip
from rsgeoseg.engine.block_work import ModelFacts
from rsgeoseg.engine.events import ChipsProgress, RunFinished
from rsgeoseg.errors import JobCancelled, OutputError, UsageError
from rsgeoseg.geo.frame import SCHEMA
from rsgeoseg.jobs.model_source import KeptModel
from rsgeoseg.testing.oracle import OracleSegmenter, encode_ids, oracle_spec

ORACLE = OracleSegmenter(spec=oracle_spec(["a", "b", "c"], chip_size=96, overlap=16))


def same(one, other):
    pd.testing.assert_frame_equal(
        pd.DataFrame(one.drop(columns="geometry")), pd.DataFrame(other.drop(columns="geometry"))
    )
    assert one.geometry.geom_equals_exact(other.geometry, 0).all()


def test_run_returns_the_table_and_its_record(ids_scene):
    path, ids = ids_scene()
    events = []
    frame = rsgeoseg.run(path, ORACLE, stretch="none", progress=events.append)
    assert list(frame.columns) == [*SCHEMA, "geometry"]
    assert frame.id.tolist() == list(range(1, ids.max() + 1))
    assert frame.area_m2.sum() == pytest.approx((ids > 0).sum() * 0.25)
    record = frame.attrs["rsgeoseg"]
    assert record["chips"]["done"] == record["chips"]["total"]
    assert record["objects"]["per_class"] == frame.class_name.value_counts().to_dict()
    assert record["model"]["name"] == "oracle"
    json.dumps(record)
    assert isinstance(events[-1], RunFinished)
    assert sum(isinstance(event, ChipsProgress) for event in events) > 3


def test_an_open_scene_is_used_as_it_is_and_stays_open(ids_scene):
    path, ids = ids_scene()
    with rsgeoseg.Scene.open(path, stretch="none", bbox=(500_000, 5_399_950, 500_050, 5_400_000)) as scene:
        frame = rsgeoseg.run(scene, ORACLE)
        assert len(frame) == len(np.unique(ids[:100, :100])) - 1
        with pytest.raises(UsageError, match=r"Scene\.open"):
            rsgeoseg.run(scene, ORACLE, stretch="none")
        same(frame, rsgeoseg.run(scene, ORACLE))


def test_the_same_run_gives_the_same_features_whatever_the_batches(ids_scene):
    path, _ = ids_scene(400, 500, count=40)
    first = jobs.run(path, ORACLE, stretch="none")
    same(first, jobs.run(path, ORACLE, stretch="none"))
    same(first, jobs.run(path, ORACLE, stretch="none", batch_size=5))


def test_an_unknown_option_is_refused(ids_scene):
    path, _ = ids_scene()
    with pytest.raises(UsageError, match="chipsize"):
        jobs.run(path, ORACLE, chipsize=3)


@pytest.mark.parametrize("when", [1, 4])
def test_a_cancelled_run_writes_nothing(ids_scene, tmp_path, when):
    path, _ = ids_scene(400, 400)
    cancel, seen = threading.Event(), []

    def stop(event):
        seen.append(event)
        if len(seen) == when:
            cancel.set()

    with pytest.raises(JobCancelled):
        jobs.run(path, ORACLE, tmp_path / "out.gpkg", stretch="none", progress=stop, cancel=cancel)
    assert [item.name for item in tmp_path.iterdir()] == ["scene.tif"]


def test_ctrl_c_in_a_callback_is_a_cancel(ids_scene, tmp_path):
    path, _ = ids_scene()

    def stop(event):
        if event.to_dict().get("stage") == "write":
            raise KeyboardInterrupt

    with pytest.raises(JobCancelled):
        jobs.run(path, ORACLE, tmp_path / "out.gpkg", stretch="none", progress=stop)
    assert [item.name for item in tmp_path.iterdir()] == ["scene.tif"]


def test_the_output_is_checked_before_the_model_is_loaded(ids_scene, tmp_path, monkeypatch):
    path, _ = ids_scene()
    monkeypatch.setattr(registry, "load_model", lambda *_, **__: pytest.fail("loaded"))
    (tmp_path / "out.gpkg").write_text("precious")
    with pytest.raises(OutputError):
        jobs.run(path, output=tmp_path / "out.gpkg")
    assert (tmp_path / "out.gpkg").read_text() == "precious"


def test_offline_holds_while_the_model_loads_and_no_longer(ids_scene, monkeypatch):
    import os

    path, _ = ids_scene()
    monkeypatch.delenv("RSGEOSEG_OFFLINE", raising=False)
    seen = []

    def load(name, weights=None, device="auto"):
        seen.append(os.environ.get("RSGEOSEG_OFFLINE"))
        return ORACLE

    monkeypatch.setattr(registry, "load_model", load)
    jobs.run(path, offline=True)
    jobs.run(path)
    assert seen == ["1", None]
    assert "RSGEOSEG_OFFLINE" not in os.environ


def test_objects_cut_by_the_area_of_interest_are_flagged(tmp_path):
    ids = np.zeros((300, 300), np.int32)
    ids[140:160, 2:60] = 1  # cut by the diamond's left corner
    ids[140:160, 140:160] = 2  # whole, in its middle
    ids[10:20, 10:20] = 3  # outside
    ids[290:300, 145:155] = 4  # cut by its lower corner and the scene
    path = write_raster(tmp_path / "a.tif", encode_ids(ids))
    with rsgeoseg.Scene.open(path) as scene:
        diamond = shapely.Polygon(scene.grid.xy([(150, 0), (300, 150), (150, 300), (0, 150)]))
    with rsgeoseg.Scene.open(path, stretch="none", aoi=diamond) as scene:
        frame = rsgeoseg.run(scene, ORACLE)
    columns = (frame.geometry.centroid.x.to_numpy() - 500_000) / 0.5
    rows = (5_400_000 - frame.geometry.centroid.y.to_numpy()) / 0.5
    assert len(frame) == 3
    assert [bool(t) for x, t in zip(columns, frame.truncated, strict=True) if x < 70] == [True]
    assert [bool(t) for x, y, t in zip(columns, rows, frame.truncated, strict=True) if x > 70 and y < 200] == [False]
    assert [bool(t) for y, t in zip(rows, frame.truncated, strict=True) if y > 200] == [True]
    assert shapely.area(shapely.difference(frame.geometry.to_numpy(), diamond.buffer(0.36))).max() == 0


def test_a_model_that_never_saw_such_pixels_says_so(ids_scene, caplog):
    path, _ = ids_scene()
    narrow = replace(ORACLE, spec=replace(ORACLE.spec, gsd_range=(1.0, 2.0)))
    with caplog.at_level(logging.WARNING, logger="rsgeoseg"):
        logging.getLogger("rsgeoseg").propagate = True
        jobs.run(path, narrow, stretch="none")
    assert "0.5 m per pixel" in caplog.text


def test_a_model_can_adapt_to_the_threshold(ids_scene):
    path, _ = ids_scene()
    asked = []

    class Adapts(OracleSegmenter):
        def at_threshold(self, threshold):
            asked.append(threshold)
            return self

    jobs.run(path, Adapts(spec=ORACLE.spec), stretch="none", score_threshold=0.125)
    assert asked == [0.125]


def test_exit_codes():
    assert jobs.exit_code({"chips": {"failed": 0, "done": 4}}) == 0
    assert jobs.exit_code({"chips": {"failed": 2, "done": 2}}) == 0
    assert jobs.exit_code({"chips": {"failed": 2, "done": 0}}) == 6
    assert jobs.exit_code({"chips": {"failed": 0, "done": 0}}) == 0


def test_every_format_is_written_with_a_record(ids_scene, tmp_path):
    path, ids = ids_scene()
    for name in ("o.gpkg", "o.geojson", "o.fgb", "o.parquet", "o.shp", "o.coco.json", "o.tif"):
        frame = jobs.run(path, ORACLE, tmp_path / name, stretch="none")
        assert len(frame) == ids.max()
        record = json.loads(Path(f"{tmp_path / name}.run.json").read_text())
        assert record["objects"]["total"] == ids.max()


def test_an_area_that_is_no_path_is_said(ids_scene):
    path, _ = ids_scene()
    with pytest.raises(UsageError, match=r"aoi is a dict, not a path: open the scene yourself"):
        jobs.run(path, ORACLE, aoi={})


def test_a_kept_model_is_loaded_here_only_to_try_batches():
    """On a GPU the batch size is tried; all else is known from the worker's facts."""
    loads, spec = [], oracle_spec(["a"], chip_size=64, overlap=16)

    class Card(OracleSegmenter):
        device_name, number_format, batch_size = "a card", "float32", 2

    def load():
        loads.append(1)
        return Card(spec=spec)

    kept = KeptModel(ModelFacts.of(Card(spec=spec), ("cuda:0", "cuda:1")), load)
    assert (kept.spec, kept.batch_size, kept.device_name, kept.devices) == (spec, 2, "a card", ("cuda:0", "cuda:1"))
    kept.release_memory()
    assert not loads
    chip = Chip(image=np.zeros((3, 64, 64), np.uint8), valid=np.ones((64, 64), bool))
    assert [len(found) for found in kept.segment([chip, chip])] == [0, 0]
    kept.segment([chip])
    assert loads == [1]
