"""Hypothesis strategies for tiled segmentation: truth rasters with awkward shapes, window plans, arrival orders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import strategies as st

from rsgeoseg.geo.windows import plan_windows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rsgeoseg.geo.windows import WindowPlan

    Bool = NDArray[np.bool_]
    Ids = NDArray[np.int32]

SHAPES = ("box", "ring", "comb", "spiral", "diagonal", "stairs", "walk", "noise")
"""Kinds of object that a truth raster may hold: a comb is a U with many arms, stairs hang together by corners only."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """A truth raster and how it is to be tiled."""

    truth: Ids
    """(h, w) class or instance values, 0 = background."""
    plan: WindowPlan
    """Windows over it."""
    order: tuple[int, ...]
    """Window indices in order of arrival."""


@st.composite
def window_plans(draw: st.DrawFn, *, height: int, width: int, min_overlap: int = 2, spread: int = 20) -> WindowPlan:
    """Plans with small chips over a scene of the given size, at any overlap from ``min_overlap`` to half a chip.

    At most about 30 x 30 windows, so that an example takes a fraction of a second; ``spread`` bounds the chip's side
    above the smallest.
    """
    smallest = max(2 * min_overlap, max(height, width) // 16)
    chip_size = draw(st.integers(smallest, smallest + spread), label="chip_size")
    overlap = draw(st.integers(min_overlap, chip_size // 2), label="overlap")
    return plan_windows(height, width, chip_size=chip_size, overlap=overlap)


@st.composite
def arrival_orders(draw: st.DrawFn, count: int) -> tuple[int, ...]:
    """Permutations of ``range(count)``: in order, reversed, or shuffled."""
    kind = draw(st.sampled_from(("in order", "reversed", "shuffled")), label="order")
    if kind == "in order":
        return tuple(range(count))
    if kind == "reversed":
        return tuple(range(count))[::-1]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="order seed"))
    return tuple(rng.permutation(count).tolist())


@st.composite
def truth_rasters(draw: st.DrawFn, *, max_side: int = 72, values: int = 3) -> Ids:
    """Rasters of values 1 to ``values`` on background 0.

    Shapes have any size, also far larger than a chip, and may touch, overwrite and surround each other; holes are cut
    into them as missing data would.
    """
    height, width = (draw(st.integers(1, max_side), label=name) for name in ("height", "width"))
    truth = np.zeros((height, width), np.int32)
    for _ in range(draw(st.integers(0, 6), label="shapes")):
        _paint(draw, truth, draw(st.integers(1, values), label="value"))
    for _ in range(draw(st.integers(0, 2), label="holes")):
        rows, cols = _rectangle(draw, height, width)
        truth[rows, cols] = 0
    return truth


@st.composite
def tilings(draw: st.DrawFn, *, max_side: int = 72, values: int = 3, min_overlap: int = 2) -> Tiling:
    """A truth raster, a plan over it and an order of arrival."""
    truth = draw(truth_rasters(max_side=max_side, values=values))
    plan = draw(window_plans(height=truth.shape[0], width=truth.shape[1], min_overlap=min_overlap))
    return Tiling(truth, plan, draw(arrival_orders(len(plan.windows))))


def _rectangle(draw: st.DrawFn, height: int, width: int) -> tuple[slice, slice]:
    y, x = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    return slice(y, y + draw(st.integers(1, height))), slice(x, x + draw(st.integers(1, width)))


def _paint(draw: st.DrawFn, truth: Ids, value: int) -> None:
    """Draw one shape into a random rectangle of the raster."""
    rows, cols = _rectangle(draw, *truth.shape)
    part = truth[rows, cols]
    thick = draw(st.integers(1, 3), label="thickness")
    kind = draw(st.sampled_from(SHAPES), label="shape")
    if kind in ("walk", "noise"):
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="shape seed"))
        hit = (
            rng.random(part.shape) < rng.uniform(0.1, 0.9)
            if kind == "noise"
            else _walk(rng, (part.shape[0], part.shape[1]))
        )
    else:
        hit = _outline(kind, (part.shape[0], part.shape[1]), thick)
        if draw(st.booleans(), label="flip"):
            hit = hit[::-1, ::-1]
    part[hit] = value


def _outline(kind: str, shape: tuple[int, int], thick: int) -> Bool:
    height, width = shape
    y, x = np.arange(height)[:, None], np.arange(width)[None]
    edge = np.minimum(np.minimum(y, x), np.minimum(height - 1 - y, width - 1 - x))
    hit: Bool = np.ones(shape, np.bool_)
    if kind == "ring":
        hit = edge < thick
    elif kind == "comb":  # a spine with arms: arms are apart in every chip that does not see the spine
        hit = (y < thick) | (x % (2 * thick + 1) < thick)
    elif kind == "spiral":  # nested rings, each opened on one side and led into the next one
        rings = edge % (2 * thick) < thick
        gate = (x == y + thick) & (y < height // 2)
        hit = (rings & ~gate) | ((y == x) & (x < width // 2))
    elif kind == "diagonal":
        hit = np.abs(y - x) < thick
    elif kind == "stairs":
        hit = (y // thick) == (x // thick)
    return hit


def _walk(rng: np.random.Generator, shape: tuple[int, int]) -> Bool:
    """Random walk in eight directions: an object that is one by its corners."""
    steps = rng.integers(-1, 2, (4 * (shape[0] + shape[1]), 2)).cumsum(axis=0) + rng.integers(0, shape, 2)
    hit: Bool = np.zeros(shape, np.bool_)
    inside = ((steps >= 0) & (steps < shape)).all(axis=1)
    hit[tuple(steps[inside].T)] = True
    return hit
