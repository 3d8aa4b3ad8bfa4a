"""Which windows of a scene are read, and which part of each one counts: integers only.

Two boxes describe a window. Its *read box* is what a model sees. Its *core* is the part that the window owns: cores
partition the scene, so a core is the window's identity. All boxes are half-open, in scene pixels, x right and y down.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import pairwise

from rsgeoseg.errors import UsageError


@dataclass(frozen=True, slots=True, order=True)
class Box:
    """A non-empty half-open rectangle of pixels.

    Raises:
        ValueError: the box is empty.
    """

    x0: int
    """Left column, included."""
    y0: int
    """Upper row, included."""
    x1: int
    """Right column, excluded."""
    y1: int
    """Lower row, excluded."""

    def __post_init__(self) -> None:
        """Check once, here."""
        if self.x0 >= self.x1 or self.y0 >= self.y1:
            msg = f"a box needs x0 < x1 and y0 < y1, got {(self.x0, self.y0, self.x1, self.y1)}"
            raise ValueError(msg)

    @property
    def width(self) -> int:
        """Columns."""
        return self.x1 - self.x0

    @property
    def height(self) -> int:
        """Rows."""
        return self.y1 - self.y0

    @property
    def area(self) -> int:
        """Pixels."""
        return self.width * self.height

    def intersection(self, other: Box) -> Box | None:
        """Pixels that both boxes hold; None where there are none."""
        x0, y0 = max(self.x0, other.x0), max(self.y0, other.y0)
        x1, y1 = min(self.x1, other.x1), min(self.y1, other.y1)
        return Box(x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None

    def contains(self, other: Box) -> bool:
        """Whether every pixel of ``other`` is in this box."""
        return self.x0 <= other.x0 and self.y0 <= other.y0 and other.x1 <= self.x1 and other.y1 <= self.y1

    def shifted(self, dx: int, dy: int) -> Box:
        """Move the box by whole pixels."""
        return Box(self.x0 + dx, self.y0 + dy, self.x1 + dx, self.y1 + dy)

    def as_slices(self) -> tuple[slice, slice]:
        """Index of the box in a (height, width) array: rows, then columns. Needs x0, y0 >= 0."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)


@dataclass(frozen=True, slots=True)
class Window:
    """One chip to be: what is read and which part of it counts."""

    index: int
    """Position in the plan, row-major."""
    row: int
    """Row in the grid of windows."""
    col: int
    """Column in the grid of windows."""
    read: Box
    """Pixels the model sees."""
    core: Box
    """Pixels this window owns; always inside ``read``."""


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """All windows of a scene, row by row."""

    height: int
    """Rows of the scene, pixels."""
    width: int
    """Columns of the scene, pixels."""
    chip_size: int
    """Side of a chip, pixels."""
    overlap: int
    """Pixels that neighbouring read boxes share at least."""
    rows: int
    """Windows from top to bottom."""
    cols: int
    """Windows from left to right."""
    windows: tuple[Window, ...]
    """Row-major; ``windows[i].index == i``."""

    def at(self, row: int, col: int) -> Window:
        """Window by its place in the grid of windows."""
        return self.windows[row * self.cols + col]

    def touching(self, box: Box) -> list[Window]:
        """Windows whose read box shares a pixel with ``box``, row-major."""
        tops = [self.at(row, 0).read for row in range(self.rows)]
        lefts = [self.at(0, col).read for col in range(self.cols)]
        first_row = bisect_right([read.y1 for read in tops], box.y0)
        last_row = bisect_left([read.y0 for read in tops], box.y1)
        first_col = bisect_right([read.x1 for read in lefts], box.x0)
        last_col = bisect_left([read.x0 for read in lefts], box.x1)
        return [self.at(row, col) for row in range(first_row, last_row) for col in range(first_col, last_col)]

    def neighbours(self, window: Window) -> list[Window]:
        """Other windows whose read box shares a pixel with this window's read box, row-major."""
        return [other for other in self.touching(window.read) if other.index != window.index]


def plan_windows(height: int, width: int, *, chip_size: int, overlap: int) -> WindowPlan:
    """Plan the windows of a scene.

    Cores partition the scene exactly. Every read box holds its core, with a margin of at least ``overlap // 2`` on each
    side that is not the scene's border. Read boxes are ``chip_size`` square wherever the scene is as large, and never
    leave the scene. Neighbouring read boxes share at least ``overlap`` pixels. The number of windows is the smallest
    that allows this, and what is left over is spread evenly, so that no chip is a sliver.

    Args:
        height: rows of the scene, pixels.
        width: columns of the scene, pixels.
        chip_size: side of a chip, pixels.
        overlap: pixels shared by neighbouring chips in total (not per side), 0 to ``chip_size // 2``.

    Raises:
        UsageError: chip size or overlap out of range.
    """
    if height < 1 or width < 1:
        msg = f"a plan needs a scene of at least 1 x 1 pixel, got {width} x {height}"
        raise ValueError(msg)
    if chip_size < 1:
        msg = f"chip size {chip_size} is too small: give at least 1 pixel"
        raise UsageError(msg)
    if not 0 <= overlap <= chip_size // 2:
        msg = f"overlap {overlap} does not fit chip size {chip_size}: give 0 to {chip_size // 2} pixels"
        raise UsageError(msg)
    spans_y = _plan_axis(height, chip_size, overlap)
    spans_x = _plan_axis(width, chip_size, overlap)
    windows = tuple(
        Window(
            index=row * len(spans_x) + col,
            row=row,
            col=col,
            read=Box(x.start, y.start, x.stop, y.stop),
            core=Box(x.core_start, y.core_start, x.core_stop, y.core_stop),
        )
        for row, y in enumerate(spans_y)
        for col, x in enumerate(spans_x)
    )
    return WindowPlan(height, width, chip_size, overlap, len(spans_y), len(spans_x), windows)


@dataclass(frozen=True, slots=True)
class _Span:
    """One window along one axis."""

    start: int
    stop: int
    core_start: int
    core_stop: int


def _plan_axis(length: int, chip_size: int, overlap: int) -> list[_Span]:
    """Spread the fewest windows evenly over an axis; cores meet in the middle of what two neighbours share."""
    size = min(chip_size, length)
    gaps = -(-(length - size) // (chip_size - overlap))
    starts = [i * (length - size) // gaps for i in range(gaps)] + [length - size]
    edges = [0, *((left + right + size) // 2 for left, right in pairwise(starts)), length]
    return [_Span(start, start + size, edges[i], edges[i + 1]) for i, start in enumerate(starts)]
