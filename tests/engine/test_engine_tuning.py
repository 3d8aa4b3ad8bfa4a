import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from rsgeoseg.contract import Chip, Instances, OutOfMemory, is_out_of_memory
from rsgeoseg.engine import tuning
from rsgeoseg.engine.batches import BatchSegmenter
from rsgeoseg.engine.tuning import (
    KEPT_DAYS,
    BatchKey,
    best_batch_size,
    recall,
    remember,
    remember_smaller,
    sample_chips,
    try_batch_sizes,
    tuned_batch_size,
)
from rsgeoseg.errors import JobCancelled
from rsgeoseg.geo.scene import Scene
from rsgeoseg.testing.oracle import oracle_spec


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("RSGEOSEG_CACHE", str(folder))
    return folder


def chips(count, side=8):
    return [Chip(image=np.full((3, side, side), i, np.uint8), valid=np.ones((side, side), bool)) for i in range(count)]


class Accelerator:
    """Takes ``fixed`` seconds a call and ``each`` a chip, so that larger batches gain less and less; holds ``fits``."""

    device_name = "toy card, 100 MiB"
    number_format = "bfloat16"
    batch_size = 8

    def __init__(self, fits=10**6, fixed=0.004, each=0.0002):
        self.spec = oracle_spec(chip_size=8)
        self.fits, self.fixed, self.each = fits, fixed, each
        self.sizes, self.released = [], 0

    def segment(self, batch, prompts=None):
        self.sizes.append(len(batch))
        if len(batch) > self.fits:
            raise OutOfMemory
        time.sleep(self.fixed + self.each * len(batch))
        return [Instances.empty() for _ in batch]

    def release_memory(self):
        self.released += 1


def test_the_largest_batch_that_fits_is_found_where_larger_ones_gain():
    model = Accelerator(fits=11)
    trial = try_batch_sizes(model, chips(3))
    assert (trial.batch_size, trial.stopped) == (8, "out of memory with 16")
    assert set(trial.rates) == {1, 2, 4, 8}
    assert model.released == 1
    assert max(model.sizes) == 16


def test_trying_ends_where_a_larger_batch_gains_nothing():
    model = Accelerator(fixed=0.0, each=0.01)  # the time of a chip is the same in any batch
    trial = try_batch_sizes(model, chips(1))
    assert (trial.batch_size, trial.stopped) == (1, "no gain from 2")
    assert max(model.sizes) == 2


def test_trying_ends_at_the_most_and_when_time_is_up():
    assert try_batch_sizes(Accelerator(), chips(2), most=4).batch_size == 4
    start = time.perf_counter()
    trial = try_batch_sizes(Accelerator(fixed=0.1, each=0.001), chips(2), seconds=0.5)
    assert trial.stopped.startswith("no time")
    assert time.perf_counter() - start < 1.5
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(JobCancelled):
        try_batch_sizes(Accelerator(), chips(1), cancel=cancel)


def test_a_single_chip_that_does_not_fit_is_left_to_the_run():
    with pytest.raises(MemoryError):
        try_batch_sizes(Accelerator(fits=0), chips(1))
    model = Accelerator(fits=0)
    assert tuned_batch_size(model, chips(1)) == 8
    assert recall(BatchKey.of(model, (3, 8, 8))) is None


def test_on_a_cpu_nothing_is_tried():
    class Plain(Accelerator):
        device_name = "cpu"
        batch_size = 1

    model = Plain()
    assert tuned_batch_size(model, chips(2)) == 1
    assert model.sizes == []


def test_what_was_found_is_remembered_per_device_model_and_size(cache):
    model = Accelerator(fits=5)
    assert tuned_batch_size(model, chips(2)) == 4
    (entry,) = (cache / "batch_sizes").iterdir()  # and no temporary file
    assert json.loads(entry.read_text())["case"]["device"] == "toy card, 100 MiB"
    again = Accelerator(fits=5)
    assert tuned_batch_size(again, chips(2)) == 4
    assert again.sizes == []
    assert tuned_batch_size(again, chips(2), most=2) == 2  # less memory may be allowed this time

    def tries(**changes):
        other = Accelerator(fits=2)
        for name, value in changes.items():
            setattr(other, name, value)
        return tuned_batch_size(other, chips(2, side=changes.get("side", 8)))

    assert tries(device_name="toy card, 50 MiB") == 2
    assert tries(number_format="float32") == 2
    assert tries(side=16) == 2
    assert tries(spec=replace(model.spec, name="another")) == 2
    assert tries(spec=replace(model.spec, weights_id="other@123")) == 2
    assert len(list((cache / "batch_sizes").iterdir())) == 6


def test_a_trial_that_was_not_allowed_to_go_on_is_not_remembered():
    model = Accelerator()
    assert tuned_batch_size(model, chips(1), most=2) == 2
    assert recall(BatchKey.of(model, (3, 8, 8))) is None


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"case": {}, "batch_size": 4, "time": 0}',
        lambda entry: entry | {"batch_size": 0},
        lambda entry: entry | {"batch_size": True},
        lambda entry: entry | {"batch_size": "4"},
        lambda entry: entry | {"time": "yesterday"},
        lambda entry: entry | {"time": time.time() - (KEPT_DAYS + 1) * 86_400},
        lambda entry: entry | {"time": time.time() + (KEPT_DAYS + 1) * 86_400},
        lambda entry: entry | {"case": entry["case"] | {"model": "another"}},
    ],
)
def test_damaged_old_and_foreign_entries_are_tried_again(cache, damage):
    tuned_batch_size(Accelerator(fits=2), chips(1))
    (entry,) = (cache / "batch_sizes").iterdir()
    assert recall(BatchKey.of(Accelerator(), (3, 8, 8))) == 2
    entry.write_bytes(
        damage if isinstance(damage, bytes) else json.dumps(damage(json.loads(entry.read_text()))).encode()
    )
    assert recall(BatchKey.of(Accelerator(), (3, 8, 8))) is None
    assert tuned_batch_size(Accelerator(fits=5), chips(1)) == 4
    assert recall(BatchKey.of(Accelerator(), (3, 8, 8))) == 4


def test_a_cache_that_cannot_be_written_does_not_stop_a_run(cache):
    cache.write_text("a file where the folder should be")
    assert tuned_batch_size(Accelerator(fits=2), chips(1)) == 2


def test_memory_that_runs_out_in_a_run_lowers_what_is_remembered():
    model = Accelerator(fits=40, fixed=0.02, each=0.0)
    key = BatchKey.of(model, (3, 8, 8))
    remember(key, try_batch_sizes(model, chips(1), most=8))
    model.fits = 3  # another program took the memory
    batches = BatchSegmenter(model, 8)
    assert len(batches.segment(chips(8))) == 8
    assert batches.batch_size == 2
    assert recall(key) == 2
    assert model.released == 2
    remember_smaller(model, (3, 8, 8), 4)  # never raised by it
    assert recall(key) == 2
    remember_smaller(model, (3, 16, 16), 4)  # nor made
    assert recall(BatchKey.of(model, (3, 16, 16))) is None


_WRITE = """
import sys
from rsgeoseg.engine.tuning import BatchKey, Trial, recall, remember
for number in range(150):
    for name in ("shared", sys.argv[1]):
        key = BatchKey(device="toy", model=name, weights="", shape=(3, 8, 8), number_format="")
        remember(key, Trial(batch_size=4, rates={4: 1.0}, stopped=""))
        assert recall(key) == 4
"""


def test_processes_that_write_at_once_lose_nothing(cache):
    environment = {**os.environ, "RSGEOSEG_CACHE": str(cache)}
    writers = [subprocess.Popen([sys.executable, "-c", _WRITE, name], env=environment) for name in "ab"]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    assert len(list((cache / "batch_sizes").iterdir())) == 3


_TRULY = """
import resource
import numpy as np
from rsgeoseg.contract import Chip, Instances
from rsgeoseg.engine.batches import BatchSegmenter
from rsgeoseg.engine.tuning import try_batch_sizes
from rsgeoseg.testing.oracle import oracle_spec

class Hungry:
    spec = oracle_spec(chip_size=8)
    held = None
    def segment(self, batch, prompts=None):
        work = np.ones((len(batch), 64 << 20), np.uint8)  # 64 MiB a chip, really touched
        if len(batch) == 1:
            work.sum()
        return [Instances.empty() for _ in batch]
    def release_memory(self):
        pass

now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit = now + (400 << 20)  # six chips fit
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
chips = [Chip(image=np.zeros((3, 8, 8), np.uint8), valid=np.ones((8, 8), bool))] * 8
batches = BatchSegmenter(Hungry(), 8)
results = batches.segment(chips)
assert len(results) == 8 and all(isinstance(r, Instances) for r in results), results
trial = try_batch_sizes(Hungry(), chips)
print(batches.batch_size, trial.batch_size, trial.stopped)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of a process's memory is Linux's")
def test_memory_that_truly_runs_out_halves_the_batch():
    done = subprocess.run([sys.executable, "-c", _TRULY], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    halved, tried, *why = done.stdout.split()
    assert halved == "4"
    assert int(tried) <= 4
    assert "gain" in why or "memory" in why


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (MemoryError(), True),
        (OutOfMemory("chips"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9.0 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes."), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
        (KeyError("memory"), False),
    ],
)
def test_what_counts_as_memory_that_ran_out(error, is_memory):
    assert is_out_of_memory(error) is is_memory


def test_torchs_own_allocator_counts():
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("any words"))


class Array(np.ndarray):
    """Can be watched, which a plain array cannot."""


def test_a_failed_attempt_lets_go_of_what_it_held():
    import gc
    import weakref

    watched = []

    class Holding(Accelerator):
        def segment(self, batch, prompts=None):
            assert all(ref() is None for ref in watched), "an earlier attempt's work is still held"
            work = np.zeros(1000).view(Array)
            watched.append(weakref.ref(work))
            if len(watched) == 1:
                raise OutOfMemory
            if len(watched) <= 3:
                msg = "flaky"
                raise RuntimeError(msg)
            return [Instances.empty() for _ in batch]

    gc.disable()  # reference counts alone must do it: nothing collects in time otherwise
    try:
        assert len(BatchSegmenter(Holding(), 4).segment(chips(4))) == 4
    finally:
        gc.enable()
    assert len(watched) == 5


def test_chips_are_sampled_where_there_is_data(ids_scene):
    path, _ = ids_scene(300, 400)
    with Scene.open(path) as scene:
        found = sample_chips(scene, 64)
        assert len(found) == 4
        assert all(chip.image.shape == (3, 64, 64) and chip.valid.any() for chip in found)
        assert len({chip.image.tobytes() for chip in found}) == 4
        assert sample_chips(scene, 1024, count=1)[0].image.shape == (3, 300, 400)


def test_a_scene_is_tried_once_and_only_where_it_is_large(ids_scene):
    path, _ = ids_scene(200, 260)
    with Scene.open(path) as scene:
        model = Accelerator(fits=5)
        assert best_batch_size(model, scene, 64) == 8  # 13 chips: not worth it
        assert model.sizes == []
        assert best_batch_size(model, scene, 16) == 4
        model.sizes.clear()
        assert best_batch_size(model, scene, 16) == 4
        assert best_batch_size(model, scene, 16, most=2) == 2
        assert model.sizes == []


def test_a_scene_without_data_is_not_tried(tmp_path):
    import rasterio

    path = tmp_path / "empty.tif"
    profile = {"driver": "GTiff", "height": 400, "width": 400, "count": 3, "dtype": "uint8", "nodata": 0}
    with rasterio.open(path, "w", **profile, sparse_ok=True):
        pass
    model = Accelerator()
    with Scene.open(path) as scene:
        assert best_batch_size(model, scene, 16) == 8
    assert model.sizes == []


def test_the_keys_of_segmenters_that_say_nothing():
    class Foreign:
        spec = oracle_spec()

    assert BatchKey.of(Foreign(), (3, 8, 8)) is None
    assert tuning.own_batch_size(Foreign()) == 1
