import numpy as np
import pytest

from rsgeoseg.contract import Chip, Instances, OutOfMemory
from rsgeoseg.engine.batches import ATTEMPTS, BatchSegmenter
from rsgeoseg.errors import ModelError, PromptError
from rsgeoseg.testing.oracle import oracle_spec


def chips(count):
    return [Chip(image=np.full((3, 4, 4), i, np.uint8), valid=np.ones((4, 4), bool)) for i in range(count)]


def found(score):
    return Instances(
        boxes=np.array([[0, 0, 1, 1]], np.int32),
        masks=[np.ones((1, 1), bool)],
        scores=np.array([score], np.float32),
        labels=np.zeros(1, np.int64),
    )


class Model:
    """Answers each chip with its number; fails as told; remembers the sizes of its batches."""

    spec = oracle_spec()

    def __init__(self, fits=99, fault=None, bad=()):
        self.fits, self.fault, self.bad, self.batches = fits, fault, set(bad), []

    def segment(self, batch, prompts=None):
        numbers = [int(chip.image[0, 0, 0]) for chip in batch]
        self.batches.append(numbers)
        if len(batch) > self.fits:
            raise OutOfMemory
        if self.bad & set(numbers):
            raise self.fault
        return [found(number / 100) for number in numbers]


def numbers_of(results):
    return [round(float(r.scores[0]) * 100) for r in results]


def test_batches_keep_order():
    model = Model()
    assert numbers_of(BatchSegmenter(model, 3).segment(chips(7))) == list(range(7))
    assert model.batches == [[0, 1, 2], [3, 4, 5], [6]]


def test_out_of_memory_halves_and_is_remembered():
    model = Model(fits=2)
    segmenter = BatchSegmenter(model, 8)
    assert numbers_of(segmenter.segment(chips(8))) == list(range(8))
    assert [len(batch) for batch in model.batches] == [8, 4, 2, 2, 2, 2]
    assert segmenter.batch_size == 2
    segmenter.segment(chips(2))
    assert len(model.batches[-1]) == 2


def test_a_single_chip_that_does_not_fit_is_an_error_that_names_the_remedy():
    (result,) = BatchSegmenter(Model(fits=0), 4).segment(chips(1))
    assert isinstance(result, ModelError)
    assert "chip-size" in str(result)


def test_a_frameworks_own_memory_error_counts():
    class OutOfMemoryError(RuntimeError):
        pass

    model = Model(fault=OutOfMemoryError("CUDA"), bad=[0])
    segmenter = BatchSegmenter(model, 2)
    results = segmenter.segment(chips(3))
    assert isinstance(results[0], ModelError)
    assert numbers_of(results[1:]) == [1, 2]
    assert segmenter.batch_size == 1


@pytest.mark.parametrize("fault", [RuntimeError("boom\nlong"), ModelError("boom"), ValueError("boom")])
def test_a_failing_chip_is_isolated_after_three_attempts(fault):
    model = Model(fault=fault, bad=[1])
    results = BatchSegmenter(model, 3).segment(chips(3))
    assert isinstance(results[1], ModelError)
    assert "boom" in str(results[1])
    assert "\n" not in str(results[1])
    assert numbers_of([results[0], results[2]]) == [0, 2]
    assert model.batches == [[0, 1, 2]] * ATTEMPTS + [[0], [1], [2]]


def test_a_passing_fault_costs_nothing():
    class Flaky(Model):
        def segment(self, batch, prompts=None):
            self.bad = {0} if len(self.batches) < 2 else set()
            return super().segment(batch)

    assert numbers_of(BatchSegmenter(Flaky(fault=RuntimeError("once")), 2).segment(chips(2))) == [0, 1]


def test_faults_of_the_caller_and_of_the_program_pass_through():
    for fault in (PromptError("no text"), TypeError("bug"), KeyboardInterrupt()):
        with pytest.raises(type(fault)):
            BatchSegmenter(Model(fault=fault, bad=[0]), 2).segment(chips(2))


def test_a_model_that_returns_too_few_results_is_caught():
    class Short(Model):
        def segment(self, batch, prompts=None):
            return []

    assert all("returned 0 results" in str(r) for r in BatchSegmenter(Short(), 2).segment(chips(2)))
