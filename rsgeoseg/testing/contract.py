"""What every model must do, as tests to inherit from: subclass ``SegmenterContract`` and give a ``segmenter`` fixture.

The fixture returns the model with small random weights; CONTRIBUTING.md has an example.
"""

from __future__ import annotations

import numpy as np
import pytest

from rsgeoseg.contract import Chip, Instances, PromptKind, Prompts, Segmenter
from rsgeoseg.errors import PromptError

_PROMPTS: dict[PromptKind, Prompts] = {
    "text": Prompts(text="the ship"),
    "points": Prompts(points=np.array([[5.0, 5.0]], np.float32), point_labels=np.array([1])),
    "boxes": Prompts(boxes=np.array([[2.0, 2.0, 20.0, 20.0]], np.float32)),
}


class SegmenterContract:
    """Tests that hold for any segmenter of ``rsgeoseg.contract``."""

    side = 128
    """Side of the test chips, pixels."""
    score_tolerance = 2e-2
    """Largest difference of a score between a chip alone and in a batch (bfloat16 adds in another order)."""

    def chip(self, segmenter: Segmenter, seed: int = 0, *, height: int | None = None, width: int | None = None) -> Chip:
        """Blobs on noise, so that even random weights see edges."""
        rng = np.random.default_rng(seed)
        h, w = height or self.side, width or self.side
        image = rng.integers(60, 120, (segmenter.spec.bands, h, w)).astype(np.uint8)
        for _ in range(4):
            y, x = int(rng.integers(0, max(h - 20, 1))), int(rng.integers(0, max(w - 20, 1)))
            image[:, y : y + 18, x : x + 24] = rng.integers(150, 255, (segmenter.spec.bands, 1, 1))
        return Chip(image=image, valid=np.ones((h, w), np.bool_), gsd=0.5)

    def test_spec(self, segmenter: Segmenter) -> None:
        """The spec is usable."""
        spec = segmenter.spec
        assert spec.name
        assert spec.chip_size > 0
        assert 0 <= spec.overlap <= spec.chip_size // 2
        assert 0 <= spec.score_threshold <= 1
        assert len(set(spec.classes)) == len(spec.classes)

    def test_one_result_per_chip(self, segmenter: Segmenter) -> None:
        """Chips of different sizes come back in order; boxes are half-open, inside, tight and not empty."""
        chips = [self.chip(segmenter, 1), self.chip(segmenter, 2, height=70, width=53), self.chip(segmenter, 3)]
        results = segmenter.segment(chips)
        assert len(results) == len(chips)
        for chip, instances in zip(chips, results, strict=True):
            check_instances(segmenter, chip, instances)

    def test_no_chips(self, segmenter: Segmenter) -> None:
        """Nothing in, nothing out."""
        assert segmenter.segment([]) == []

    def test_deterministic(self, segmenter: Segmenter) -> None:
        """The same chip twice gives the same objects."""
        chip = self.chip(segmenter, 4)
        first, second = segmenter.segment([chip])[0], segmenter.segment([chip])[0]
        np.testing.assert_array_equal(first.boxes, second.boxes)
        np.testing.assert_array_equal(first.scores, second.scores)
        for a, b in zip(first.masks, second.masks, strict=True):
            np.testing.assert_array_equal(a, b)

    def test_batch_equals_singles(self, segmenter: Segmenter) -> None:
        """A chip's objects do not depend on its neighbours in the batch."""
        chips = [self.chip(segmenter, seed) for seed in (5, 6)]
        together = segmenter.segment(chips)
        for chip, instances in zip(chips, together, strict=True):
            alone = segmenter.segment([chip])[0]
            assert abs(len(alone) - len(instances)) <= max(1, len(alone) // 10)
            best, best_alone = instances.scores.max(initial=0), alone.scores.max(initial=0)
            assert abs(float(best) - float(best_alone)) <= self.score_tolerance

    def test_no_object_without_data(self, segmenter: Segmenter) -> None:
        """A chip without a valid pixel is empty, and no object covers invalid pixels."""
        chip = self.chip(segmenter, 7)
        nothing = Chip(image=np.zeros_like(chip.image), valid=np.zeros_like(chip.valid))
        assert len(segmenter.segment([nothing])[0]) == 0
        valid = chip.valid.copy()
        valid[:, : self.side // 2] = False
        half = Chip(image=np.where(valid, chip.image, 0).astype(np.uint8), valid=valid)
        check_instances(segmenter, half, segmenter.segment([half])[0])

    @pytest.mark.parametrize("height", [1, 7])
    def test_tiny_chip(self, segmenter: Segmenter, height: int) -> None:
        """A scene of one pixel is a chip, too."""
        chip = self.chip(segmenter, 8, height=height, width=1)
        check_instances(segmenter, chip, segmenter.segment([chip])[0])

    @pytest.mark.parametrize("kind", sorted(_PROMPTS))
    def test_refuses_prompts_it_does_not_take(self, segmenter: Segmenter, kind: PromptKind) -> None:
        """A prompt is used or refused, never ignored."""
        if kind in segmenter.spec.accepts:
            pytest.skip(f"{segmenter.spec.name} takes {kind}")
        with pytest.raises(PromptError):
            segmenter.segment([self.chip(segmenter)], [_PROMPTS[kind]])


def check_instances(segmenter: Segmenter, chip: Chip, instances: Instances) -> None:
    """Assert that instances keep the contract for their chip."""
    height, width = chip.valid.shape
    assert ((instances.scores >= 0) & (instances.scores <= 1)).all()
    assert ((instances.labels >= 0) & (instances.labels < len(segmenter.spec.classes))).all()
    for (x0, y0, x1, y1), mask in zip(instances.boxes.tolist(), instances.masks, strict=True):
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
        assert mask[0].any()
        assert mask[-1].any()
        assert mask[:, 0].any()
        assert mask[:, -1].any()
        assert not (mask & ~chip.valid[y0:y1, x0:x1]).any()
