"""Training and validation apart in space: neighbouring chips look alike, so a random split flatters a model.

The rule is a function of the scenes and their polygons alone; their order does not matter.

*Many scenes* (at least ``1 / share``): whole scenes are held out, a run of neighbours at one end of the area.
*Few scenes*: each is cut in two by one straight line along its pixels, and the piece at one of its four sides is held
out. Among all such lines the one is taken that comes nearest to the wanted share of objects, cuts few objects, and
leaves every class on both sides. An object on the line belongs to validation: training begins behind it, and what lies
between is in neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rsgeoseg.errors import UsageError
from rsgeoseg.geo.windows import Box

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_LINES = 128
"""Evenly spaced places where a scene may be cut, beside those just before an object."""
_MISSING_CLASS = 0.5
"""How much worse a split is that leaves a class out of one side, in shares of objects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A scene and where its objects are."""

    name: str
    """Unique among the sites."""
    width: int
    """Columns, pixels."""
    height: int
    """Rows, pixels."""
    boxes: NDArray[np.float64]
    """(N, 4) x0 y0 x1 y1 of the objects, pixels, inside the scene."""
    labels: NDArray[np.int64]
    """(N,) classes."""
    centre: tuple[float, float] | None = None
    """Longitude and latitude of the scene's centre."""


@dataclass(frozen=True, slots=True)
class Sides:
    """What of a scene is for training and what for validation."""

    train: Box | None
    """Pixels; None = nothing."""
    val: Box | None
    """Pixels, apart from those of ``train``; None = nothing."""


def split_sites(sites: Sequence[Site], share: float, chip_size: int) -> list[Sides]:
    """Divide scenes between training and validation.

    Args:
        sites: the scenes, in any order.
        share: of the objects for validation, between 0 and 1.
        chip_size: pixels; a side is at least half a chip wide where the scene and the share allow it.

    Returns:
        One entry per site, in their order; at least one object on each side.

    Raises:
        UsageError: a share out of range, or the objects cannot be told apart by place.
    """
    if not 0 < share < 1:
        msg = f"a validation share of {share} is not possible: give more than 0 and less than 1, such as 0.2"
        raise UsageError(msg)
    total = sum(len(site.labels) for site in sites)
    if total < 2:
        msg = f"{total} objects cannot be split into training and validation: draw more, or train on all of them"
        raise UsageError(msg)
    if len(sites) * share < 1 - 1e-9:
        cut = [_cut_site(site, share, chip_size) for site in sites]
        if any(sides.val is not None for sides in cut):
            return cut
    if len(sites) > 1:
        whole = _hold_out_sites(sites, share)
        if whole is not None:
            return whole
    msg = (
        f"the {total} objects cannot be split by place: any straight line would leave one side without a whole object; "
        "draw objects elsewhere too, or validate on another scene"
    )
    raise UsageError(msg)


def _cut_site(site: Site, share: float, chip_size: int) -> Sides:
    """Cut a scene at the best of all lines; all of it is for training where no line has objects on both sides."""
    best: tuple[float, int, int] | None = None
    found = Sides(Box(0, 0, site.width, site.height), None)
    for side in range(4):
        length, low, high = _along(site, side)
        narrowest = max(1, min(chip_size // 2, int(length * min(share, 1 - share))))
        for line in _lines(length, low, narrowest):
            cost, gap = _judge(low, high, site.labels, line, share)
            if cost is None or gap < narrowest:
                continue
            rank = (round(cost + (line - gap) / length, 9), side, line)
            if best is None or rank < best:
                best, found = rank, _sides(site, side, line, gap)
    return found


def _along(site: Site, side: int) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
    """Length of the scene, and where each object begins and ends, along an axis that ends in the held-out side.

    Sides: 0 right, 1 bottom, 2 left, 3 top.
    """
    axis = side % 2
    length = site.height if axis else site.width
    low, high = np.clip(site.boxes[:, axis], 0, length), np.clip(site.boxes[:, axis + 2], 0, length)
    return (length, low, high) if side < 2 else (length, length - high, length - low)


def _lines(length: int, low: NDArray[np.float64], narrowest: int) -> list[int]:
    """Places to cut at, pixels from the far side."""
    even = np.linspace(narrowest, length - narrowest, _LINES)
    before = np.sort(low)
    before = before[:: max(1, len(before) // _LINES)]
    lines = np.unique(np.floor(np.concatenate([even, before])).astype(np.int64))
    return [int(line) for line in lines if narrowest <= line <= length - narrowest]


def _judge(
    low: NDArray[np.float64], high: NDArray[np.float64], labels: NDArray[np.int64], line: int, share: float
) -> tuple[float | None, int]:
    """How bad a line is (None: a side without objects), and where training ends before it."""
    held = high > line
    crossing = held & (low < line)
    gap = int(np.floor(low[crossing].min())) if crossing.any() else line
    kept = ~held & (low < gap)
    if not held.any() or not kept.any():
        return None, gap
    lost = len(labels) - int(held.sum()) - int(kept.sum())
    off = abs(held.sum() / len(labels) - share)
    return float(off + lost / len(labels) + _MISSING_CLASS * _missing(labels, held, kept)), gap


def _missing(labels: NDArray[np.int64], held: NDArray[np.bool_], kept: NDArray[np.bool_]) -> float:
    """Share of the classes with two objects or more that one side lacks."""
    classes, counts = np.unique(labels, return_counts=True)
    several = classes[counts > 1]
    if not len(several):
        return 0.0
    both = np.intersect1d(labels[held], labels[kept])
    return float(1 - np.isin(several, both).mean())


def _sides(site: Site, side: int, line: int, gap: int) -> Sides:
    width, height = site.width, site.height
    if side == 0:
        return Sides(Box(0, 0, gap, height), Box(line, 0, width, height))
    if side == 1:
        return Sides(Box(0, 0, width, gap), Box(0, line, width, height))
    if side == 2:
        return Sides(Box(width - gap, 0, width, height), Box(0, 0, width - line, height))
    return Sides(Box(0, height - gap, width, height), Box(0, 0, width, height - line))


def _hold_out_sites(sites: Sequence[Site], share: float) -> list[Sides] | None:
    """Hold out a run of whole scenes at one end of the area; None where that leaves a side without objects."""
    order = _in_space(sites)
    labels = np.concatenate([sites[i].labels for i in order])
    owner = np.repeat(np.arange(len(order)), [len(sites[i].labels) for i in order])
    best: tuple[float, int, int] | None = None
    for end in range(2):
        for count in range(1, len(order)):
            held = owner >= len(order) - count if end == 0 else owner < count
            if not held.any() or held.all():
                continue
            cost = abs(float(held.mean()) - share) + _MISSING_CLASS * _missing(labels, held, ~held)
            rank = (round(cost, 9), end, count)
            best = rank if best is None or rank < best else best
    if best is None:
        return None
    _, end, count = best
    held_out = set(order[len(order) - count :] if end == 0 else order[:count])
    whole = [Box(0, 0, site.width, site.height) for site in sites]
    return [Sides(None, box) if i in held_out else Sides(box, None) for i, box in enumerate(whole)]


def _in_space(sites: Sequence[Site]) -> list[int]:
    """Order of the scenes along the axis on which they are spread most; by name where their place is not known."""
    if any(site.centre is None for site in sites):
        return sorted(range(len(sites)), key=lambda i: sites[i].name)
    centres = np.array([site.centre for site in sites], np.float64)
    axis = int(np.argmax(np.ptp(centres, axis=0)))
    return sorted(range(len(sites)), key=lambda i: (centres[i, axis], centres[i, 1 - axis], sites[i].name))
