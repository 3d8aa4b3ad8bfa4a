import threading
import time
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from rasters import write_raster

from rsgeoseg.contract import Instances, OutOfMemory
from rsgeoseg.engine.events import ChipFailed, ChipsProgress, RunStarted
from rsgeoseg.engine.options import PipelineOptions
from rsgeoseg.engine.parts import ObjectList
from rsgeoseg.engine.pipeline import find_objects, read_groups, segment_scene, window_groups
from rsgeoseg.engine.reader import ATTEMPTS, read_ahead
from rsgeoseg.engine.tally import Tally
from rsgeoseg.errors import JobCancelled, ModelError, WindowError
from rsgeoseg.geo.scene import Scene
from rsgeoseg.geo.windows import plan_windows
from rsgeoseg.testing.oracle import OracleSegmenter, encode_ids, oracle_spec

ORACLE = OracleSegmenter(spec=oracle_spec(["a", "b", "c"], chip_size=96, overlap=16))


def options(**changes):
    return PipelineOptions(**{"chip_size": 96, "overlap": 16, **changes})


def paint(objects, shape, classes=3):
    """Objects back to a raster: 1 + label where an object is, so that a doubled or missing pixel shows."""
    labels, times = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for item in objects:
        rows, cols = item.box.as_slices()
        labels[rows, cols][item.mask] = item.label + 1
        times[rows, cols] += item.mask
    assert times.max(initial=0) <= 1
    return labels


def truth(ids, classes=3):
    return np.where(ids > 0, ids % classes + 1, 0)


def no_reader_left():
    return not [thread for thread in threading.enumerate() if thread.name.startswith("rsgeoseg-read")]


@pytest.mark.parametrize(("chip", "overlap", "batch"), [(96, 16, 1), (64, 8, 3), (500, 0, 4), (97, 33, 2)])
def test_the_tiled_result_is_the_whole_result(ids_scene, chip, overlap, batch):
    path, ids = ids_scene()
    with Scene.open(path, stretch="none") as scene:
        found = ObjectList()
        result = segment_scene(scene, ORACLE, options(chip_size=chip, overlap=overlap, batch_size=batch), parts=found)
    assert (paint(found.objects, ids.shape) == truth(ids)).all()
    assert len(found.objects) == len(np.unique(ids)) - 1
    chips = result.record["chips"]
    assert chips["total"] == chips["done"] == len(result.plan.windows)
    assert result.record["pixels"] == ids.size
    assert result.record["stages"]["read"]["bytes"] >= ids.size * 3
    assert no_reader_left()


def test_events_tell_the_whole_story(ids_scene):
    path, _ = ids_scene()
    events = []
    with Scene.open(path, stretch="none") as scene:
        result = segment_scene(scene, ORACLE, options(batch_size=2), events.append)
    assert isinstance(events[0], RunStarted)
    assert events[0].chips == len(result.plan.windows)
    progress = [event for event in events if isinstance(event, ChipsProgress)]
    assert [event.done for event in progress] == sorted(event.done for event in progress)
    assert progress[-1].done == progress[-1].total
    assert progress[0].to_dict()["event"] == "progress"


def test_score_and_class_filters(ids_scene):
    path, ids = ids_scene()
    with Scene.open(path, stretch="none") as scene:
        objects = find_objects(scene, ORACLE, options(labels=frozenset({1})))
    wanted = np.where(ids % 3 == 1, truth(ids), 0)
    assert (paint(objects, ids.shape) == wanted).all()


def test_chips_without_data_never_reach_the_model(tmp_path):
    ids = np.zeros((96, 400), np.int32)
    ids[10:50, 20:60] = 5
    bands = encode_ids(ids)
    bands[:, :, 120:] = 77
    path = write_raster(tmp_path / "a.tif", bands, nodata=77)

    class Watching(OracleSegmenter):
        seen = 0

        def segment(self, chips, prompts=None):
            Watching.seen += len(chips)
            assert all(chip.valid.any() for chip in chips)
            return super().segment(chips)

    with Scene.open(path, stretch="none") as scene:
        found = ObjectList()
        result = segment_scene(scene, Watching(spec=ORACLE.spec), options(), parts=found)
    chips = result.record["chips"]
    assert chips["empty"] > 0
    assert chips["done"] == Watching.seen
    assert chips["done"] + chips["empty"] == chips["total"]
    assert len(found.objects) == 1


def test_objects_stop_at_missing_data_and_are_flagged(tmp_path):
    bands = encode_ids(np.zeros((96, 200), np.int32))
    bands[:, :, 100:] = 77

    class Everywhere:
        spec = ORACLE.spec

        def segment(self, chips, prompts=None):
            found = []
            for chip in chips:
                height, width = chip.valid.shape
                inner = np.ones((height - 20, width), bool)
                box = np.array([[0, 10, width, height - 10]], np.int32)
                found.append(
                    Instances(boxes=box, masks=[inner], scores=np.ones(1, np.float32), labels=np.zeros(1, int))
                )
            return found

    with Scene.open(write_raster(tmp_path / "a.tif", bands, nodata=77), stretch="none") as scene:
        (item,) = find_objects(scene, Everywhere(), options(chip_size=200, overlap=0))
    assert (item.box.x1, item.truncated) == (100, True)


def test_out_of_memory_goes_on_with_smaller_batches(ids_scene):
    path, ids = ids_scene()

    class Small(OracleSegmenter):
        def segment(self, chips, prompts=None):
            if len(chips) > 2:
                raise OutOfMemory
            return super().segment(chips)

    with Scene.open(path, stretch="none") as scene:
        found = ObjectList()
        result = segment_scene(scene, Small(spec=ORACLE.spec), options(batch_size=8), parts=found)
    assert result.record["batch_size"] == 2
    assert (paint(found.objects, ids.shape) == truth(ids)).all()


class FailsOn(OracleSegmenter):
    """Cannot stand instance 1."""

    def segment(self, chips, prompts=None):
        if any((chip.image[2] == 1).any() for chip in chips):
            msg = "kernel fault"
            raise RuntimeError(msg)
        return super().segment(chips)


def test_a_chip_the_model_fails_on_stops_the_run_by_name(ids_scene):
    path, _ = ids_scene()
    with Scene.open(path, stretch="none") as scene, pytest.raises(ModelError) as caught:
        segment_scene(scene, FailsOn(spec=ORACLE.spec), options())
    text = str(caught.value)
    assert "scene.tif: chip " in text
    assert "kernel fault" in text
    assert "--on-chip-error skip" in text
    assert no_reader_left()


def test_or_is_left_out_and_recorded(ids_scene):
    path, ids = ids_scene()
    events, found = [], ObjectList()
    with Scene.open(path, stretch="none") as scene:
        result = segment_scene(
            scene, FailsOn(spec=ORACLE.spec), options(on_chip_error="skip", batch_size=4), events.append, parts=found
        )
        grid = scene.grid
    chips, failed = result.record["chips"], result.record["failed_chips"]
    assert chips["failed"] == len(failed) == sum(isinstance(event, ChipFailed) for event in events) > 0
    assert chips["done"] + chips["failed"] == chips["total"]
    x0, y0, x1, y1 = failed[0]["pixels"]
    ring = failed[0]["footprint"]["coordinates"][0]
    assert ring[0] == ring[-1] == list(grid.affine * (x0, y0))
    assert ring[2] == list(grid.affine * (x1, y1))
    seen = [result.plan.windows[i].core for i in range(chips["total"]) if i not in {item["index"] for item in failed}]
    for core in seen:
        labels = paint(found.objects, ids.shape)[core.as_slices()]
        assert (labels == truth(ids)[core.as_slices()])[ids[core.as_slices()] > 1].all()


@pytest.mark.parametrize("how", ["event", "interrupt"])
def test_cancelling_joins_the_threads(ids_scene, how):
    path, _ = ids_scene(400, 400)
    cancel = threading.Event()

    class Stops(OracleSegmenter):
        def segment(self, chips, prompts=None):
            if how == "interrupt":
                raise KeyboardInterrupt
            cancel.set()
            return super().segment(chips)

    with Scene.open(path, stretch="none") as scene, pytest.raises(JobCancelled):
        segment_scene(scene, Stops(spec=ORACLE.spec), options(), cancel=cancel)
    assert no_reader_left()


def test_a_sink_takes_objects_as_they_leave(ids_scene):
    path, ids = ids_scene(400, 200, count=30)
    taken = []
    with Scene.open(path, stretch="none") as scene:
        found = ObjectList(taken.append)
        segment_scene(scene, ORACLE, options(), parts=found)
    assert found.objects == []
    assert len(taken) > 2
    assert (paint(list(chain.from_iterable(taken)), ids.shape) == truth(ids)).all()


class Disk:
    """Stands for a scene whose disk is slow and bad in places: what real files cannot be made to do on time."""

    is_remote = False

    def __init__(self, bad=(), recovers_after=99, delay=0.0):
        self.bad, self.recovers_after, self.delay = set(bad), recovers_after, delay
        self.reads, self.open, self.most, self.lock = {}, 0, 0, threading.Lock()

    def is_empty(self, _box):
        return False

    def read(self, box):
        from rsgeoseg.contract import Chip

        with self.lock:
            self.reads[box] = self.reads.get(box, 0) + 1
            self.open += 1
            self.most = max(self.most, self.open)
        time.sleep(self.delay * (1 + box.x0 % 3))
        with self.lock:
            self.open -= 1
        if box.x0 in self.bad and self.reads[box] <= self.recovers_after:
            msg = f"bad block at {box.x0}"
            raise WindowError(msg)
        return Chip(image=np.zeros((3, 8, 8), np.uint8), valid=np.ones((8, 8), bool))


def test_reading_ahead_keeps_order_and_bounds():
    windows = plan_windows(8, 400, chip_size=8, overlap=0).windows
    disk = Disk(delay=0.001)
    seen = []
    for item in read_ahead(disk, windows, readers=3, ahead=5):
        seen.append(item.window.index)
        assert len(disk.reads) <= len(seen) + 5
    assert seen == list(range(50))
    assert disk.most == 3


def test_a_chip_is_read_three_times_before_it_fails():
    windows = plan_windows(8, 32, chip_size=8, overlap=0).windows
    disk = Disk(bad=[8])
    items = list(read_ahead(disk, windows, readers=1, ahead=2))
    assert [item.error is not None for item in items] == [False, True, False, False]
    assert disk.reads[windows[1].read] == ATTEMPTS
    again = list(read_ahead(Disk(bad=[8], recovers_after=2), windows, readers=2, ahead=2))
    assert not any(item.error for item in again)


def test_the_thread_that_reads_a_chip_prepares_it(ids_scene):
    """So the copy to a device goes on beside the model; chips without a valid pixel are not copied."""
    path, ids = ids_scene()
    prepared, came = [], []

    class OnDevice(OracleSegmenter):
        def prepare(self, chip):
            prepared.append(threading.current_thread().name)
            return replace(chip, gsd=-1.0)

        def segment(self, chips, prompts=None):
            came.extend(chip.gsd for chip in chips)
            return super().segment(chips)

    with Scene.open(path, stretch="none") as scene:
        objects = find_objects(scene, OnDevice(spec=ORACLE.spec), options())
    assert (paint(objects, ids.shape) == truth(ids)).all()
    assert came == [-1.0] * len(prepared)
    assert prepared
    assert all(name.startswith("rsgeoseg-read") for name in prepared)


def test_an_abandoned_reader_leaves_no_thread():
    windows = plan_windows(8, 400, chip_size=8, overlap=0).windows
    reading = read_ahead(Disk(delay=0.01), windows, readers=2, ahead=4)
    next(reading)
    reading.close()
    assert no_reader_left()


def test_windows_that_are_known_to_be_empty_wait_for_no_thread():
    class Hollow(Disk):
        def is_empty(self, box):
            return box.x0 % 16 == 0

    disk, windows = Hollow(), plan_windows(8, 400, chip_size=8, overlap=0).windows
    items = list(read_ahead(disk, windows, readers=2, ahead=4))
    assert [item.window for item in items] == list(windows)
    assert [item.chip is None for item in items] == [window.read.x0 % 16 == 0 for window in windows]
    assert set(disk.reads) == {window.read for window in windows if window.read.x0 % 16}
    empty = plan_windows(8, 8, chip_size=8, overlap=0).windows
    reading = read_ahead(disk, [*empty, *empty], readers=2, ahead=4)
    assert next(reading).chip is None
    assert no_reader_left(), "a thread was started"
    reading.close()


def test_chips_that_reach_the_model_together_have_fixed_places(tmp_path):
    """Chips of one row, at places that do not depend on which are empty: so batches are the same in any division."""
    ids = np.zeros((200, 900), np.int32)
    ids[:, 300:] = 3
    bands = encode_ids(ids)
    bands[:, :, 500:700] = 77
    path = write_raster(tmp_path / "a.tif", bands, nodata=77)
    seen = []

    class Watching(OracleSegmenter):
        def segment(self, chips, prompts=None):
            seen.append(len(chips))
            return super().segment(chips)

    with Scene.open(path, stretch="none") as scene:
        segment_scene(scene, Watching(spec=ORACLE.spec), options(batch_size=4))
        plan = plan_windows(200, 900, chip_size=96, overlap=16)
        groups = window_groups(plan, 4)
        assert plan.cols == 12
        assert {len(group) for group in groups} == {4}
        assert [window.index for group in groups for window in group] == list(range(len(plan.windows)))
        some = groups[1::2]
        read = list(read_groups(scene, some, options(batch_size=4), Tally()))
    assert [tuple(item.window for item in items) for items in read] == some
    assert sum(seen) < len(plan.windows), "empty chips do not reach the model"
    assert max(seen) <= 4
