"""Figures of interactive segmentation: how many simulated clicks an object needs.

Source: the protocol of RITM (Sofiiuk et al., ICIP 2022), which SimpleClick and RS-ISRefiner follow: the next click goes
to the pixel deepest inside an error region, up to 20 clicks. Three points where this differs from their programs:
an object reached at the last click is no failure (theirs counts it in NoF); a click is made only where there is an
error left (theirs clicks the upper-left pixel then); and every object counts, not the last one of each image.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import distance_transform_edt

from rsgeoseg.errors import UsageError
from rsgeoseg.evaluate.overlap import as_mask, as_mask_pair, count_overlap
from rsgeoseg.evaluate.plain import plain_values

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Predict = Callable[[Sequence["Click"]], NDArray[Any]]

MAX_CLICKS = 20
"""Clicks after which an object counts as failed."""


@dataclass(frozen=True, slots=True)
class Click:
    """One click of the simulated user."""

    x: int
    """Pixel column; the middle of the pixel is at x + 0.5."""
    y: int
    """Pixel row."""
    positive: bool
    """True = object, False = background."""


@dataclass(frozen=True, slots=True)
class ClickRun:
    """What clicking on one object gave."""

    clicks: tuple[Click, ...]
    """In order."""
    ious: NDArray[np.float64]
    """(K,) IoU after each click. Where no error was left to click on, the last value fills the row up to
    ``max_clicks``; where the target was reached, the row ends there."""


def next_click(predicted: NDArray[Any], truth: NDArray[Any], clicked: Sequence[Click] = ()) -> Click | None:
    """Choose where a user would click next: the pixel that lies deepest in a missing or a surplus region.

    Depth is the Euclidean distance to the nearest pixel without that error; outside the image there is none. The
    deeper kind of error decides, surplus if both are equally deep; of equally deep pixels it is the first by row,
    then by column.

    Args:
        predicted: (H, W) bool or integer, nonzero = object.
        truth: likewise.
        clicked: earlier clicks; their pixels are not clicked again.

    Returns:
        The click, or None where no error is left outside the clicked pixels.

    Raises:
        UsageError: one is no mask, or their sizes differ.
    """
    found, true = as_mask_pair(predicted, truth)
    missing, surplus = _deepest(true & ~found, clicked), _deepest(found & ~true, clicked)
    positive = missing[0] > surplus[0]
    depth, x, y = missing if positive else surplus
    return Click(x, y, positive) if depth > 0 else None


def _deepest(error: NDArray[np.bool_], clicked: Sequence[Click]) -> tuple[float, int, int]:
    """Depth, column and row of the pixel deepest inside an error; depth 0 where there is none."""
    rows, columns = np.flatnonzero(error.any(1)), np.flatnonzero(error.any(0))
    if not len(rows):
        return 0.0, 0, 0
    y0, x0 = int(rows[0]), int(columns[0])
    # the nearest pixel without the error is never farther than a rim of one pixel around all errors
    padded = np.pad(error[y0 : rows[-1] + 1, x0 : columns[-1] + 1], 1)
    depth = distance_transform_edt(padded)[1:-1, 1:-1]
    for click in clicked:
        y, x = click.y - y0, click.x - x0
        if 0 <= y < depth.shape[0] and 0 <= x < depth.shape[1]:
            depth[y, x] = 0
    y, x = (int(i) for i in np.unravel_index(depth.argmax(), depth.shape))
    return float(depth[y, x]), x0 + x, y0 + y


def simulate_clicks(
    predict: Predict, truth: NDArray[Any], *, max_clicks: int = MAX_CLICKS, target: float | None = None
) -> ClickRun:
    """Click on one object until its mask is good enough.

    Args:
        predict: takes all clicks so far and gives the mask (H, W), bool or integer.
        truth: (H, W) bool or integer, nonzero = object.
        max_clicks: at most so many clicks.
        target: stop at this IoU; None = go on, as the curve over all clicks needs.

    Raises:
        UsageError: the truth is empty, ``max_clicks`` is below 1, or a prediction is no mask of the truth's size.
    """
    true = as_mask(truth, "true")
    if not true.any():
        msg = "the true mask is empty; there is nothing to click on, so leave the object out"
        raise UsageError(msg)
    _check_count(max_clicks)
    found, clicks, ious = np.zeros_like(true), list[Click](), list[float]()
    while len(ious) < max_clicks and (target is None or not ious or ious[-1] < target):
        click = next_click(found, true, clicks)
        if click is None:
            ious += [ious[-1]] * (max_clicks - len(ious))
            break
        clicks.append(click)
        found, _ = as_mask_pair(predict(tuple(clicks)), true)
        intersection, union = count_overlap(found, true)
        ious.append(intersection / union)
    return ClickRun(tuple(clicks), np.array(ious))


def clicks_needed(ious: Sequence[float] | NDArray[np.float64], target: float) -> int | None:
    """Return how many clicks it takes until IoU is at least ``target``; None = never.

    Args:
        ious: (K,) after each click.
        target: IoU.
    """
    reached = np.flatnonzero(np.asarray(ious, np.float64) >= target)
    return int(reached[0]) + 1 if len(reached) else None


def noc(ious: Sequence[float] | NDArray[np.float64], target: float, max_clicks: int = MAX_CLICKS) -> int:
    """Return the number of clicks (NoC) of one object; ``max_clicks`` where the target is never reached.

    Args:
        ious: (K,) after each click, 1 to ``max_clicks`` of them.
        target: IoU, reached when equalled.
        max_clicks: number that a failure counts for.

    Raises:
        UsageError: there are more or fewer values than that, or fewer because a run stopped at a lower target.
    """
    needed = clicks_needed(ious, target)
    _check_count(max_clicks)
    if not 0 < len(ious) <= max_clicks:
        msg = f"{len(ious)} IoU values of one object, but clicks were limited to {max_clicks}"
        raise UsageError(msg)
    if needed is None and len(ious) < max_clicks:
        msg = (
            f"a run stopped after {len(ious)} of {max_clicks} clicks at IoU {float(ious[-1]):.3f}, so it does not tell "
            f"whether {target:g} would be reached; simulate without a target, or with one that is no lower"
        )
        raise UsageError(msg)
    return max_clicks if needed is None else needed


@dataclass(frozen=True, slots=True, kw_only=True)
class InteractiveResult:
    """Figures of a dataset; NaN where it has no objects."""

    n: int
    """Objects."""
    max_clicks: int
    """Limit of clicks per object."""
    noc80: float
    """Mean number of clicks until IoU 0.80; a failure counts as ``max_clicks``."""
    noc85: float
    """Until 0.85."""
    noc90: float
    """Until 0.90."""
    nof80: int
    """Number of objects that stay below IoU 0.80."""
    nof85: int
    """Below 0.85."""
    nof90: int
    """Below 0.90."""
    curve: tuple[float, ...]
    """Mean IoU after 1, 2, ... ``max_clicks`` clicks; a run that stopped at its target keeps its last IoU."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; NaN becomes None."""
        plain: dict[str, Any] = plain_values(asdict(self))
        return plain


class InteractiveScore:
    """Collects one object after the other.

    Args:
        max_clicks: limit of clicks per object.

    Raises:
        UsageError: it is below 1.
    """

    TARGETS = (0.80, 0.85, 0.90)
    """IoU of the figures."""

    def __init__(self, max_clicks: int = MAX_CLICKS) -> None:
        _check_count(max_clicks)
        self.max_clicks = max_clicks
        self._curves: list[NDArray[np.float64]] = []
        self._clicks: list[tuple[int, ...]] = []
        self._failed: list[tuple[bool, ...]] = []

    def add(self, ious: Sequence[float] | NDArray[np.float64]) -> None:
        """Take in one object.

        Args:
            ious: (K,) after each click, e.g. ``ClickRun.ious``.

        Raises:
            UsageError: the values do not tell whether every target was reached (see ``noc``).
        """
        values = np.asarray(ious, np.float64)
        self._clicks.append(tuple(noc(values, target, self.max_clicks) for target in self.TARGETS))
        self._failed.append(tuple(clicks_needed(values, target) is None for target in self.TARGETS))
        self._curves.append(np.pad(values, (0, self.max_clicks - len(values)), mode="edge"))

    def result(self) -> InteractiveResult:
        """Give the figures of all objects so far."""
        n, names = len(self._curves), [f"{round(100 * target)}" for target in self.TARGETS]
        clicks = np.array(self._clicks, np.float64).reshape(n, 3)
        failed = np.array(self._failed, np.int64).reshape(n, 3).sum(0).tolist()
        means = clicks.mean(0).tolist() if n else [float("nan")] * 3
        curve = np.mean(self._curves, 0).tolist() if n else [float("nan")] * self.max_clicks
        figures = {f"noc{name}": value for name, value in zip(names, means, strict=True)}
        figures |= {f"nof{name}": value for name, value in zip(names, failed, strict=True)}
        return InteractiveResult(n=n, max_clicks=self.max_clicks, curve=tuple(curve), **figures)


def _check_count(max_clicks: int) -> None:
    if max_clicks < 1:
        msg = f"{max_clicks} clicks at most; allow one or more"
        raise UsageError(msg)
