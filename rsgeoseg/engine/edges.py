"""What happens at the edge of the data: instances are cut to valid pixels, objects cut there are flagged."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from rsgeoseg.contract import Instances

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rsgeoseg.contract import Chip
    from rsgeoseg.geo.stitch import StitchedObject
    from rsgeoseg.geo.windows import Window


_CELL = 256  # pixels; remembered pixels are looked up by cell


def select(instances: Instances, *, score_threshold: float, labels: frozenset[int] | None) -> Instances:
    """Keep instances that score at least ``score_threshold`` and have one of ``labels`` (None = any)."""
    keep = instances.scores >= score_threshold
    if labels is not None:
        keep &= np.isin(instances.labels, list(labels))
    if keep.all():
        return instances
    return take(instances, np.flatnonzero(keep))


def take(instances: Instances, index: NDArray[np.intp]) -> Instances:
    """Return the instances at ``index``, in that order."""
    return Instances(
        boxes=instances.boxes[index],
        masks=[instances.masks[i] for i in index.tolist()],
        scores=instances.scores[index],
        labels=instances.labels[index],
    )


def clip_to_valid(instances: Instances, valid: NDArray[np.bool_]) -> Instances:
    """Cut instances to valid pixels.

    Args:
        instances: in pixels of the chip.
        valid: (h, w), True where the chip has data.

    Returns:
        The instances without their invalid pixels, boxes tight again; those that lie wholly on invalid pixels are gone.
    """
    boxes, masks, kept = instances.boxes.copy(), [], []
    for i, (x0, y0, x1, y1) in enumerate(instances.boxes.tolist()):
        inside = valid[y0:y1, x0:x1]
        mask = instances.masks[i]
        if not inside.all():
            mask = mask & inside
            rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            if rows.size == 0:
                continue
            top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(cols[0]), int(cols[-1]) + 1
            mask = mask[top:bottom, left:right]
            boxes[i] = (x0 + left, y0 + top, x0 + right, y0 + bottom)
        kept.append(i)
        masks.append(mask)
    return Instances(boxes=boxes[kept], masks=masks, scores=instances.scores[kept], labels=instances.labels[kept])


class DataEdge:
    """Remembers where objects touch missing data, so that whole objects can be flagged as cut.

    A pixel counts when an invalid one lies beside it and its own chip core owns it: as in stitching, a chip decides
    only inside its core. Only scenes with invalid pixels cost anything.
    """

    def __init__(self) -> None:
        self._cells: dict[tuple[int, int], list[NDArray[np.int64]]] = {}
        """Cell row and column -> arrays (K, 3) of x y label in scene pixels."""

    def note(self, window: Window, chip: Chip, instances: Instances) -> None:
        """Remember the pixels of a chip's (already clipped) instances that have an invalid neighbour."""
        touching = _beside_invalid(chip.valid)
        core = window.core.shifted(-window.read.x0, -window.read.y0)
        for i, (x0, y0, x1, y1) in enumerate(instances.boxes.tolist()):
            ys, xs = np.nonzero(instances.masks[i] & touching[y0:y1, x0:x1])
            xs, ys = xs + x0, ys + y0
            own = (xs >= core.x0) & (xs < core.x1) & (ys >= core.y0) & (ys < core.y1)
            if own.any():
                label = np.full(int(own.sum()), instances.labels[i])
                self._keep(np.stack([xs[own] + window.read.x0, ys[own] + window.read.y0, label], axis=1))

    def beside(self, boxes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return what is remembered inside any of some boxes (or near them): for the one who goes on with them.

        Args:
            boxes: (N, 4) half-open x0 y0 x1 y1, scene pixels.

        Returns:
            (K, 3) x, y, label.
        """
        if not self._cells or not len(boxes):
            return np.zeros((0, 3), np.int64)
        first, last = boxes[:, :2] // _CELL, (boxes[:, 2:] - 1) // _CELL
        cells = [
            cell
            for cell in self._cells
            if (
                (first[:, 1] <= cell[0]) & (cell[0] <= last[:, 1]) & (first[:, 0] <= cell[1]) & (cell[1] <= last[:, 0])
            ).any()
        ]
        return np.concatenate([np.zeros((0, 3), np.int64), *(points for cell in cells for points in self._cells[cell])])

    def take(self, points: NDArray[np.int64]) -> None:
        """Remember what another one remembered, as ``beside`` gave it."""
        if len(points):
            self._keep(points)

    def _keep(self, points: NDArray[np.int64]) -> None:
        cells = points[:, 1::-1] // _CELL
        for row, col in np.unique(cells, axis=0).tolist():
            self._cells.setdefault((row, col), []).append(points[(cells == (row, col)).all(axis=1)])

    def flag(self, objects: list[StitchedObject]) -> list[StitchedObject]:
        """Return the objects, those that hold a remembered pixel with ``truncated`` set."""
        if not self._cells:
            return objects
        return [replace(item, truncated=True) if self._touches(item) else item for item in objects]

    def _touches(self, item: StitchedObject) -> bool:
        box = item.box
        for row in range(box.y0 // _CELL, (box.y1 - 1) // _CELL + 1):
            for col in range(box.x0 // _CELL, (box.x1 - 1) // _CELL + 1):
                for points in self._cells.get((row, col), ()):
                    x, y = points[:, 0] - box.x0, points[:, 1] - box.y0
                    near = (x >= 0) & (x < box.width) & (y >= 0) & (y < box.height) & (points[:, 2] == item.label)
                    if item.mask[y[near], x[near]].any():
                        return True
        return False


def _beside_invalid(valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mark pixels with an invalid one above, below, left or right."""
    hole = ~valid
    beside = np.zeros_like(hole)
    beside[1:] |= hole[:-1]
    beside[:-1] |= hole[1:]
    beside[:, 1:] |= hole[:, :-1]
    beside[:, :-1] |= hole[:, 1:]
    return beside
