"""Blocks of chips: what one worker does at a time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rsgeoseg.engine.options import PipelineOptions
    from rsgeoseg.geo.windows import Window

    Group = tuple[Window, ...]

MAX_CHIPS = 64
"""Chips of a block at most: what a lost worker costs, and how coarse the work can be shared."""
SHARES = 4
"""Blocks per worker at least, where there are so many chips: the last ones to finish then wait little. A single worker
waits for nobody, and between blocks its model waits for the first chip."""


def block_chips(chips: int, workers: int, options: PipelineOptions, chip_bytes: int, budget: int | None) -> int:
    """Choose how many chips a block has.

    Args:
        chips: of the scene.
        workers: that share it.
        options: for the batch size; a block holds whole batches.
        chip_bytes: memory of one chip's pixels.
        budget: bytes that a worker may hold for a block's objects and borders; None = no limit. About half of a
            chip's bytes are set aside for each of its chips.

    Returns:
        At least one batch, at most ``MAX_CHIPS`` where a batch is not larger.
    """
    shares = SHARES * workers if workers > 1 else 1
    size = min(MAX_CHIPS, math.ceil(chips / shares))
    if budget is not None:
        size = min(size, max(1, 2 * budget // max(chip_bytes, 1)))
    return max(size, options.batch_size)


def plan_blocks(groups: Sequence[Group], batch_size: int, chips: int) -> list[list[Group]]:
    """Put groups of neighbouring windows together: nearly square blocks share the shortest borders.

    Args:
        groups: of ``window_groups``, or what is left of them.
        batch_size: windows of a whole group.
        chips: of a block, about.

    Returns:
        Blocks in row-major order, groups inside in row-major order.
    """
    across = max(1, round(math.sqrt(chips) / batch_size))
    down = max(1, chips // (across * batch_size))
    blocks: dict[tuple[int, int], list[Group]] = {}
    for group in groups:
        first = group[0]
        blocks.setdefault((first.row // down, first.col // batch_size // across), []).append(group)
    return [blocks[place] for place in sorted(blocks)]
