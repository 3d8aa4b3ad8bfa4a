"""Sharing out the memory that a run may take.

    limit / processes = resident + working + fixed + cache + chips + frontier + rows

*resident* is what the process holds once the model is loaded, *working* what the model takes for one batch more (both
measured), *fixed* is GDAL's own cache, memory kept to be used again, and small change. What is left is shared among
decoded tiles, chips in flight, objects that wait for neighbours, and rows on their way to the file. Never more than
each would take without a limit.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rsgeoseg.engine.memory import peak_memory, resident_memory
from rsgeoseg.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rsgeoseg.contract import Chip, Segmenter
    from rsgeoseg.engine.options import PipelineOptions

logger = logging.getLogger(__name__)

FIXED_BYTES = 160 << 20
"""GDAL's block cache, memory of chips and tiles that is kept to be used again, and small change."""
ROW_BYTES = 6000
"""Of an object with some 60 vertices while it is written: its polygon, its row, and the copies in flight."""
MOST_ROWS = 20_000
_LEAST_ROWS = 500
_SHARES = {"cache": 0.35, "chips": 0.2, "frontier": 0.3, "rows": 0.15}


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Bounds of one process."""

    cache_bytes: int
    """Of decoded tiles."""
    ahead: int
    """Chips in flight."""
    frontier_bytes: int
    """Of masks that wait for neighbours; a run that needs more goes on and says so."""
    batch_rows: int
    """Rows written at once."""

    def compare(self, frontier_peak_bytes: int) -> None:
        """Say so where masks that waited for their neighbours took more than their share."""
        if frontier_peak_bytes > self.frontier_bytes:
            text = "objects that waited for their neighbours took %.2f GB, %.2f GB more than max-memory had for them"
            over = frontier_peak_bytes - self.frontier_bytes
            logger.warning(text, frontier_peak_bytes / 1e9, over / 1e9)


def working_memory(segmenter: Segmenter, chips: Sequence[Chip], batch_size: int) -> int:
    """Measure what a model takes for a batch, bytes above what is held before.

    Args:
        segmenter: the model, as it will run.
        chips: of the scene to come, since a model takes more where it finds more.
        batch_size: chips per call.
    """
    before = resident_memory() or 0
    for chip in chips:
        segmenter.segment([chip] * batch_size)
    return max((peak_memory() or 0) - before, 0)


def share_out(
    limit: int, *, processes: int, resident: int, working: int, chip_bytes: int, options: PipelineOptions
) -> Budget:
    """Share a limit out.

    Args:
        limit: bytes of the whole run.
        processes: that share it.
        resident: bytes that one holds with its model loaded.
        working: bytes that the model takes for a batch.
        chip_bytes: of one chip's pixels.
        options: of the pipeline.

    Raises:
        UsageError: the limit does not even hold the model and one batch; the message says what would.
    """
    least_chips = options.batch_size + options.readers
    wanted = options.ahead or 2 * options.readers + options.batch_size
    need = max(
        int(least_chips * chip_bytes / _SHARES["chips"]),
        int(_LEAST_ROWS * ROW_BYTES / _SHARES["rows"]),
        int(4 * chip_bytes / _SHARES["cache"]),
    )
    taken = resident + working + FIXED_BYTES
    free = limit // processes - taken
    if free < need:
        least = processes * (taken + need)
        msg = (
            f"max-memory {limit / 1e9:.3g} GB is too little: {processes} x {taken / 1e9:.2f} GB for the program, the"
            f" model and a batch, and {need / 1e9:.2f} GB for pixels and objects; give {least / 1e9:.2f}GB or more, a"
            " smaller --chip-size or --batch-size, or fewer --workers"
        )
        raise UsageError(msg)
    return Budget(
        cache_bytes=int(_SHARES["cache"] * free),
        ahead=max(least_chips, min(wanted, int(_SHARES["chips"] * free) // chip_bytes)),
        frontier_bytes=int(_SHARES["frontier"] * free),
        batch_rows=max(_LEAST_ROWS, min(MOST_ROWS, int(_SHARES["rows"] * free) // ROW_BYTES)),
    )
