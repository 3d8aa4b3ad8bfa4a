"""Packs many small crops onto few sheets, so that raster routines run once per sheet instead of once per crop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

SHEET_SIDE = 2048
"""Sides of a sheet in pixels: large enough for thousands of objects, small enough to stay near the processor."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """Where crops lie on one sheet. A pixel of background surrounds each crop and the sheet itself."""

    height: int
    """Rows."""
    width: int
    """Columns."""
    members: NDArray[np.int64]
    """(K,) indices of the crops in the sequence that was packed, in shelf order."""
    x: NDArray[np.int64]
    """(K,) left column of each crop on the sheet."""
    y: NDArray[np.int64]
    """(K,) upper row of each crop on the sheet; equal along a shelf, growing from shelf to shelf."""

    def owners(self, x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions 0..K-1 of the crops that hold pixel corners (M,) ``x``, ``y`` (all edges of a crop included)."""
        tops, first = np.unique(self.y, return_index=True)
        shelf_of_member = np.searchsorted(first, np.arange(len(self.members)), side="right")
        shelf_of_point = np.searchsorted(tops, y, side="right")
        keys = shelf_of_member * (self.width + 1) + self.x
        return np.searchsorted(keys, shelf_of_point * (self.width + 1) + x, side="right") - 1


def pack_sheets(sizes: Sequence[tuple[int, int]], side: int = SHEET_SIDE) -> list[Sheet]:
    """Pack crops onto sheets, tallest first, shelf by shelf.

    Args:
        sizes: (height, width) of each crop in pixels, all at least 1.
        side: largest side of a sheet; a crop that does not fit gets a sheet of its own.

    Returns:
        Sheets that hold every crop exactly once.
    """
    sheets: list[Sheet] = []
    members: list[int] = []
    xs: list[int] = []
    ys: list[int] = []
    x = y = 1
    shelf = widest = 0

    def close() -> None:
        nonlocal members, xs, ys, x, y, shelf, widest
        if members:
            arrays = (np.asarray(values, np.int64) for values in (members, xs, ys))
            sheets.append(Sheet(y + shelf + 1, widest + 1, *arrays))
        members, xs, ys, x, y, shelf, widest = [], [], [], 1, 1, 0, 0

    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i][0]):
        height, width = sizes[index]
        if x > 1 and x + width + 1 > side:
            x, y, shelf = 1, y + shelf + 1, 0
        if members and (y + height + 1 > side or x + width + 1 > side):
            close()
        members.append(index)
        xs.append(x)
        ys.append(y)
        x += width + 1
        shelf = max(shelf, height)
        widest = max(widest, x - 1)
    close()
    return sheets
