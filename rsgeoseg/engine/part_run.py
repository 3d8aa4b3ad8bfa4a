"""The work on one part of a scene: chips to instances, instances to whole objects."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from rsgeoseg.contract import Instances
from rsgeoseg.engine.edges import DataEdge, clip_to_valid, select
from rsgeoseg.engine.events import ChipFailed, Event
from rsgeoseg.engine.memory import peak_memory
from rsgeoseg.engine.parts import PartEnd
from rsgeoseg.engine.tally import Tally
from rsgeoseg.errors import ModelError, RsGeoSegError, SceneError, WindowError
from rsgeoseg.geo.stitch import StitchedObject, Stitcher

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rsgeoseg.engine.batches import BatchSegmenter
    from rsgeoseg.engine.options import PipelineOptions
    from rsgeoseg.engine.reader import ReadChip
    from rsgeoseg.geo.scene import Scene
    from rsgeoseg.geo.windows import Window, WindowPlan

logger = logging.getLogger(__name__)

_WARNINGS = 3  # failed chips that are logged one by one; the record has all of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmented:
    """Chips of one batch after the model, in window order."""

    items: list[ReadChip]
    results: Sequence[Instances | RsGeoSegError | None]
    """Per item its objects, the error it ended with, or None where it has no valid pixel."""
    seconds: float


def segment_group(items: list[ReadChip], batches: BatchSegmenter) -> Segmented:
    """Give the chips of a group to the model."""
    start = time.perf_counter()
    found = iter(batches.segment([item.chip for item in items if item.chip is not None]))
    results = [
        item.error if item.error is not None else next(found) if item.chip is not None else None for item in items
    ]
    return Segmented(items=items, results=results, seconds=time.perf_counter() - start)


class PartRun:
    """Stitches the windows of one part, batch by batch.

    Args:
        scene: where the chips come from, for names and places.
        plan: the windows of the whole scene.
        options: what to keep and how to join.
        sink: takes objects that no other part can change.
        on_event: told of every failed chip.
    """

    def __init__(
        self,
        scene: Scene,
        plan: WindowPlan,
        options: PipelineOptions,
        sink: Callable[[list[StitchedObject]], None],
        on_event: Callable[[Event], None],
    ) -> None:
        self.scene, self.options, self.on_event, self.sink = scene, options, on_event, sink
        self.tally = Tally()
        self.stitcher = Stitcher(plan, nms=options.nms)
        self.edge = DataEdge()

    def take(self, segmented: Segmented) -> None:
        """Stitch a batch, in window order.

        Raises:
            WindowError, ModelError: a chip failed and ``options.on_chip_error`` is ``raise``.
        """
        self.tally.seconds["segment"] += segmented.seconds
        for item, found in zip(segmented.items, segmented.results, strict=True):
            instances = Instances.empty()
            if isinstance(found, RsGeoSegError):
                self._fail(item.window, found)
            elif found is None:
                self.tally.empty += 1
            else:
                self.tally.done += 1
                instances = self._prepared(item, found)
            self.tally.seconds["read"] += item.seconds
            self.tally.bytes_read += item.nbytes
            self.tally.pixels += item.window.core.area
            start = time.perf_counter()
            objects = self.edge.flag(self.stitcher.add(item.window, instances))
            self.tally.seconds["stitch"] += time.perf_counter() - start
            self.tally.objects += len(objects)
            if objects:
                self.sink(objects)

    def end(self) -> PartEnd:
        """Return what other parts can still change."""
        start = time.perf_counter()
        remainder = self.stitcher.remainder()
        boxes = np.concatenate([remainder.views[:, 2:6], remainder.wholes[:, :4]])
        end = PartEnd(tally=self.tally, remainder=remainder, edge=self.edge.beside(boxes))
        self.tally.seconds["stitch"] += time.perf_counter() - start
        self.tally.peak_bytes = peak_memory() or 0
        return end

    def _prepared(self, item: ReadChip, found: Instances) -> Instances:
        """Drop what is not wanted, cut the rest to valid pixels."""
        assert item.chip is not None
        instances = select(found, score_threshold=self.options.score_threshold, labels=self.options.labels)
        if item.whole:
            return instances
        instances = clip_to_valid(instances, item.chip.valid)
        self.edge.note(item.window, item.chip, instances)
        return instances

    def _fail(self, window: Window, error: RsGeoSegError) -> None:
        """Stop at a failed chip, or note the hole it leaves."""
        if self.options.on_chip_error == "raise":
            stop_at(self.scene, window, error)
        self.tally.failed.append(failure(self.scene, window, error))
        level = logging.WARNING if len(self.tally.failed) <= _WARNINGS else logging.DEBUG
        logger.log(level, "%s is left out: %s", _where(self.scene, window), error)
        self.on_event(ChipFailed(index=window.index, row=window.row, col=window.col, error=str(error)))


def stop_at(scene: Scene, window: Window, error: RsGeoSegError) -> NoReturn:
    """End the run at a failed chip, in words that name it.

    Raises:
        WindowError, ModelError: always.
    """
    kind = WindowError if isinstance(error, SceneError) else ModelError
    msg = f"{_where(scene, window)} failed: {error}; --on-chip-error skip keeps the rest of the scene"
    raise kind(msg) from error


def failure(scene: Scene, window: Window, error: RsGeoSegError) -> dict[str, Any]:
    """Describe a failed chip for the run record: place, footprint in the scene's CRS, reason."""
    core = window.core
    corners: Sequence[tuple[int, int]] = [
        (core.x0, core.y0), (core.x1, core.y0), (core.x1, core.y1), (core.x0, core.y1), (core.x0, core.y0)
    ]  # fmt: skip
    return {
        "index": window.index,
        "row": window.row,
        "col": window.col,
        "pixels": [core.x0, core.y0, core.x1, core.y1],
        "error": str(error),
        "footprint": {"type": "Polygon", "coordinates": [scene.grid.xy(corners).tolist()]},
    }


def _where(scene: Scene, window: Window) -> str:
    return f"{scene.name}: chip {window.index} (row {window.row}, column {window.col})"
