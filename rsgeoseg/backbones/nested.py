"""The order of tokens in which every window of Hiera is a run of neighbours, at every stage.

Hiera's attention knows no positions but those added to the patches, so tokens may stand in any order. Its windows are
8 cells wide at stride 4, 4 at stride 8, 2 s at stride 16 and s at stride 32 (s = 7 or 8), and it pools 2 x 2 cells
between stages. With the cells of stride 32 sorted by window, and every cell followed by its four finer ones, all
windows and all pooled groups are consecutive: nothing is ever moved for them.

Where s does not divide the grid, the package pads with zeros after the norm, and all padded tokens of a window have one
and the same key and value, the biases. Here they are not stored: :class:`Windows` counts them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of one shape that follow each other; all numbers are cells of the coarsest grid."""

    start: int
    """First cell of the first window, in nested order."""
    count: int
    """Number of windows."""
    cells: int
    """Cells in each."""
    missing: int = 0
    """Padded cells that each would have besides."""

    @property
    def stop(self) -> int:
        """One past the last cell of the last window, in nested order."""
        return self.start + self.count * self.cells


def nested_order(h: int, w: int, side: int) -> tuple[Tensor, tuple[Windows, ...]]:
    """Sort the cells of the coarsest grid by window.

    Args:
        h: rows of the grid.
        w: columns of the grid.
        side: of a window, in cells.

    Returns:
        (h w,) int64, row-major number of the cell at each place of the nested order; and the windows in that order:
        whole ones first, then those that the right border, the lower border and both cut.
    """
    numbers = torch.arange(h * w).view(h, w)
    whole_h, whole_w = h - h % side, w - w % side
    parts: list[Tensor] = []
    windows: list[Windows] = []
    start = 0
    for rows in (numbers[:whole_h], numbers[whole_h:]):
        for part in (rows[:, :whole_w], rows[:, whole_w:]):
            if part.numel() == 0:
                continue
            tall, wide = (min(side, length) for length in part.shape)
            tiles = part.reshape(part.shape[0] // tall, tall, part.shape[1] // wide, wide).transpose(1, 2)
            parts.append(tiles.flatten())
            group = Windows(start, part.numel() // (tall * wide), tall * wide, side * side - tall * wide)
            windows.append(group)
            start = group.stop
    return torch.cat(parts), tuple(windows)


def finer(order: Tensor, width: int) -> Tensor:
    """Follow every cell by the four that it has on the grid of half the stride.

    Args:
        order: (n,) int64, row-major numbers of cells.
        width: columns of their grid.

    Returns:
        (4 n,) int64, row-major numbers on the finer grid.
    """
    y, x = order // width, order % width
    corner = 4 * y * width + 2 * x  # rows of the finer grid are 2 width long
    return (corner[:, None] + torch.tensor([0, 1, 2 * width, 2 * width + 1])).flatten()


def inverse(order: Tensor) -> Tensor:
    """Tell for every cell, row-major, its place in an order.

    Args:
        order: (n,) int64 permutation.

    Returns:
        (n,) int64 permutation.
    """
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device)
    return places
