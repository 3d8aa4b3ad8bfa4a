"""A promptable model against annotated images: a simulated user clicks on every object until it is right."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from rsgeoseg.contract import Chip, Prompts
from rsgeoseg.errors import JobCancelled, UsageError
from rsgeoseg.evaluate.interactive import MAX_CLICKS, InteractiveScore, simulate_clicks

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from rsgeoseg.contract import Instances, Promptable
    from rsgeoseg.datasets.instances import InstanceDataset
    from rsgeoseg.evaluate.interactive import Click, InteractiveResult


def score_clicks(
    segmenter: Promptable[Any],
    data: InstanceDataset,
    *,
    max_clicks: int = MAX_CLICKS,
    every: int = 1,
    tell: Callable[[int, int], None] | None = None,
    cancel: threading.Event | None = None,
) -> InteractiveResult:
    """Measure how many clicks the objects of a dataset need.

    An image is encoded once for all objects that fit one view of it: the image itself where the model takes its size,
    else a square of the model's chip size around the object (larger objects are cut to it).

    Args:
        segmenter: takes points.
        data: annotated images.
        max_clicks: per object.
        every: take only every n-th object, counted over all images.
        tell: called with objects done and objects in all.
        cancel: set it from another thread to stop.

    Returns:
        Clicks needed, failures and IoU per click; NaN where there is no object.

    Raises:
        UsageError: the model takes no points.
        JobCancelled: stopped.
    """
    if "points" not in segmenter.spec.accepts:
        msg = f"{segmenter.spec.name} takes no points; clicks are for models like sam-prompt and sam2-prompt"
        raise UsageError(msg)
    total = sum(len(data.labelled(index).labels) for index in range(len(data)))
    score, number = InteractiveScore(max_clicks), 0
    for index in range(len(data)):
        image = data.labelled(index)
        masks = image.masks()
        views = _Views(segmenter, image.read())
        for mask in masks:
            number += 1
            if cancel is not None and cancel.is_set():
                msg = f"cancelled after {number - 1} of {total} objects"
                raise JobCancelled(msg)
            if (number - 1) % every == 0 and mask.any():
                truth, predict = views.around(mask)
                score.add(simulate_clicks(predict, truth, max_clicks=max_clicks).ious)
            if tell is not None:
                tell(number, total)
    return score.result()


class _Views:
    """Encoded views of one image, the latest of which is kept."""

    def __init__(self, segmenter: Promptable[Any], pixels: NDArray[np.uint8]) -> None:
        self.segmenter, self.pixels = segmenter, pixels
        self._latest: tuple[tuple[int, int], Any] | None = None

    def around(
        self, mask: NDArray[np.uint8]
    ) -> tuple[NDArray[np.bool_], Callable[[Sequence[Click]], NDArray[np.bool_]]]:
        """Choose the view of an object: the object's mask in it, and what answers clicks on it."""
        side = self.segmenter.spec.chip_size
        corner: list[int] = []
        for axis, length in enumerate(mask.shape):
            there = np.flatnonzero(mask.any(1 - axis))
            middle = (int(there[0]) + int(there[-1]) + 1) // 2
            corner.append(0 if length <= side else min(max(0, middle - side // 2), length - side))
        top, left = corner
        if self._latest is None or self._latest[0] != (top, left):
            self._latest = (top, left), None  # let go of the one before, it may be large
            view = self.pixels[top : top + side, left : left + side].transpose(2, 0, 1)
            chip = Chip(image=np.ascontiguousarray(view), valid=np.ones(view.shape[1:], np.bool_))
            self._latest = (top, left), self.segmenter.encode(chip)
        truth = mask[top : top + side, left : left + side] != 0
        return truth, partial(_answer, self.segmenter, self._latest[1], truth.shape)


def _answer(
    segmenter: Promptable[Any], embedding: Any, shape: tuple[int, int], clicks: Sequence[Click]
) -> NDArray[np.bool_]:
    """Ask with all clicks so far, in pixel middles."""
    points = np.array([(click.x + 0.5, click.y + 0.5) for click in clicks], np.float32)
    labels = np.array([click.positive for click in clicks], np.int64)
    return _whole(segmenter.decode(embedding, Prompts(points=points, point_labels=labels)), shape)


def _whole(found: Instances, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Paste the best object into its view; nothing where none was found."""
    out = np.zeros(shape, np.bool_)
    if len(found):
        best = int(np.argmax(found.scores))
        x0, y0, x1, y1 = found.boxes[best].tolist()
        out[y0:y1, x0:x1] = found.masks[best]
    return out
