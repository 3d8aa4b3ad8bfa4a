"""One scene through one model: plan, read ahead, segment in batches, stitch."""

from __future__ import annotations

import logging
import time
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, cast

from rsgeoseg.contract import Instances
from rsgeoseg.engine.batches import BatchSegmenter
from rsgeoseg.engine.edges import DataEdge, clip_to_valid, select
from rsgeoseg.engine.events import ChipFailed, ChipsProgress, Event, RunStarted
from rsgeoseg.engine.reader import ReadChip, check_cancel, read_ahead
from rsgeoseg.errors import JobCancelled, ModelError, RsGeoSegError, SceneError, WindowError
from rsgeoseg.geo.stitch import StitchedObject, Stitcher
from rsgeoseg.geo.windows import Window, WindowPlan, plan_windows

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Iterator

    from rsgeoseg.contract import Segmenter
    from rsgeoseg.engine.options import PipelineOptions
    from rsgeoseg.geo.scene import Scene

logger = logging.getLogger(__name__)

_WARNINGS = 3  # failed chips that are logged one by one; the record has all of them


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneResult:
    """Whole objects of a scene, and what happened on the way."""

    objects: list[StitchedObject]
    """In the order in which they left the stitcher; empty where a sink took them."""
    plan: WindowPlan
    options: PipelineOptions
    record: dict[str, Any]
    """``chips failed_chips seams stages pixels seconds batch_size``: plain JSON values."""


def segment_scene(
    scene: Scene,
    segmenter: Segmenter,
    options: PipelineOptions,
    on_event: Callable[[Event], None] | None = None,
    cancel: threading.Event | None = None,
    sink: Callable[[list[StitchedObject]], None] | None = None,
) -> SceneResult:
    """Find the objects of a whole scene.

    Threads read ahead of the model; chips without a valid pixel never reach it; batches are made of chips in window
    order, so that the same input gives the same batches. Every chip ends as done, empty or failed.

    Args:
        scene: an open scene.
        segmenter: the model; called from this thread only.
        options: how to cut, batch and join.
        on_event: told of every batch and every failure.
        cancel: set it from another thread to stop.
        sink: takes whole objects as soon as they leave the stitcher, so that their masks need not be kept.

    Returns:
        The whole objects and the record.

    Raises:
        SceneError: a chip could not be read and ``options.on_chip_error`` is ``raise``; it names the chip.
        ModelError: the same for a chip that the model could not segment.
        JobCancelled: ``cancel`` was set, or Ctrl-C was pressed. All threads are joined.
    """
    run = _SceneRun(scene, segmenter, options, on_event or _ignore, sink)
    try:
        run.work(cancel)
    except KeyboardInterrupt as error:
        msg = "cancelled: nothing was written"
        raise JobCancelled(msg) from error
    return run.result()


def _at_threshold(segmenter: Segmenter, score_threshold: float) -> Segmenter:
    """Let a model that can (``at_threshold``) skip the work for objects that would be dropped, or find fainter ones."""
    adapt = getattr(segmenter, "at_threshold", None)
    return segmenter if adapt is None else cast("Segmenter", adapt(score_threshold))


def _ignore(_event: Event) -> None:
    """Tell nobody."""


@dataclass
class _Tally:
    """Counts of one run."""

    done: int = 0
    empty: int = 0
    failed: list[dict[str, Any]] = field(default_factory=list)
    objects: int = 0
    pixels: int = 0
    """Core pixels behind us: scene pixels, overlap counted once."""
    bytes_read: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"read": 0.0, "wait": 0.0, "segment": 0.0, "stitch": 0.0})


class _SceneRun:
    """The state of one call of ``segment_scene``."""

    def __init__(
        self,
        scene: Scene,
        segmenter: Segmenter,
        options: PipelineOptions,
        on_event: Callable[[Event], None],
        sink: Callable[[list[StitchedObject]], None] | None,
    ) -> None:
        grid = scene.grid
        self.scene, self.options, self.on_event = scene, options, on_event
        self.model_name = segmenter.spec.name
        self.plan = plan_windows(grid.height, grid.width, chip_size=options.chip_size, overlap=options.overlap)
        self.batches = BatchSegmenter(_at_threshold(segmenter, options.score_threshold), options.batch_size)
        self.stitcher = Stitcher(self.plan, nms=options.nms)
        self.edge = DataEdge()
        self.tally = _Tally()
        self.objects: list[StitchedObject] = []
        self.sink = sink or self.objects.extend
        self.start = time.perf_counter()

    def work(self, cancel: threading.Event | None) -> None:
        """Carry every chip from the scene to the stitcher."""
        plan, options = self.plan, self.options
        self.on_event(
            RunStarted(
                scene=self.scene.name,
                model=self.model_name,
                height=plan.height,
                width=plan.width,
                chips=len(plan.windows),
            )
        )
        ahead = 2 * options.readers + options.batch_size
        reading = read_ahead(self.scene, plan.windows, readers=options.readers, ahead=ahead, cancel=cancel)
        with closing(reading):
            for group in group_batches(self._timed(reading), options.batch_size):
                self._segment(group)
                check_cancel(cancel)
                self._report()
        self._emit(self._stitched(self.stitcher.finish))

    def _timed(self, reading: Iterable[ReadChip]) -> Iterator[ReadChip]:
        """Count what readers did, and how long the model waited for them."""
        seconds, before = self.tally.seconds, time.perf_counter()
        for item in reading:
            seconds["wait"] += time.perf_counter() - before
            seconds["read"] += item.seconds
            self.tally.bytes_read += item.nbytes
            if item.error is not None and self.options.on_chip_error == "raise":
                self._stop(item.window, item.error)
            yield item
            before = time.perf_counter()

    def _segment(self, group: list[ReadChip]) -> None:
        """Segment a group and stitch it, in window order."""
        chips = [item.chip for item in group if item.chip is not None]
        start = time.perf_counter()
        results = iter(self.batches.segment(chips))
        self.tally.seconds["segment"] += time.perf_counter() - start
        for item in group:
            instances = Instances.empty()
            if item.error is not None:
                self._fail(item.window, item.error)
            elif item.chip is None:
                self.tally.empty += 1
            else:
                found = next(results)
                if isinstance(found, ModelError):
                    self._fail(item.window, found)
                else:
                    self.tally.done += 1
                    instances = self._prepared(item, found)
            self.tally.pixels += item.window.core.area
            self._emit(self._stitched(self.stitcher.add, item.window, instances))

    def _prepared(self, item: ReadChip, found: Instances) -> Instances:
        """Drop what is not wanted, cut the rest to valid pixels."""
        assert item.chip is not None
        instances = select(found, score_threshold=self.options.score_threshold, labels=self.options.labels)
        if item.whole:
            return instances
        instances = clip_to_valid(instances, item.chip.valid)
        self.edge.note(item.window, item.chip, instances)
        return instances

    def _stitched(self, step: Callable[..., list[StitchedObject]], *args: object) -> list[StitchedObject]:
        start = time.perf_counter()
        objects = self.edge.flag(step(*args))
        self.tally.seconds["stitch"] += time.perf_counter() - start
        return objects

    def _emit(self, objects: list[StitchedObject]) -> None:
        self.tally.objects += len(objects)
        if objects:
            self.sink(objects)

    def _where(self, window: Window) -> str:
        return f"{self.scene.name}: chip {window.index} (row {window.row}, column {window.col})"

    def _stop(self, window: Window, error: RsGeoSegError) -> NoReturn:
        """End the run at a failed chip, in words that name it."""
        kind = WindowError if isinstance(error, SceneError) else ModelError
        msg = f"{self._where(window)} failed: {error}; --on-chip-error skip keeps the rest of the scene"
        raise kind(msg) from error

    def _fail(self, window: Window, error: RsGeoSegError) -> None:
        """Stop at a failed chip, or note the hole it leaves."""
        if self.options.on_chip_error == "raise":
            self._stop(window, error)
        core = window.core
        corners = [(core.x0, core.y0), (core.x1, core.y0), (core.x1, core.y1), (core.x0, core.y1), (core.x0, core.y0)]
        self.tally.failed.append(
            {
                "index": window.index,
                "row": window.row,
                "col": window.col,
                "pixels": [core.x0, core.y0, core.x1, core.y1],
                "error": str(error),
                "footprint": {"type": "Polygon", "coordinates": [self.scene.grid.xy(corners).tolist()]},
            }
        )
        level = logging.WARNING if len(self.tally.failed) <= _WARNINGS else logging.DEBUG
        logger.log(level, "%s is left out: %s", self._where(window), error)
        self.on_event(ChipFailed(index=window.index, row=window.row, col=window.col, error=str(error)))

    def _report(self) -> None:
        tally, seconds = self.tally, time.perf_counter() - self.start
        self.on_event(
            ChipsProgress(
                done=tally.done,
                empty=tally.empty,
                failed=len(tally.failed),
                total=len(self.plan.windows),
                objects=tally.objects,
                seconds=round(seconds, 3),
                mpx_per_s=round(tally.pixels / 1e6 / max(seconds, 1e-9), 3),
            )
        )

    def result(self) -> SceneResult:
        """Close the books."""
        tally, total = self.tally, len(self.plan.windows)
        assert tally.done + tally.empty + len(tally.failed) == total, "a chip was lost"
        seconds = {name: round(value, 6) for name, value in tally.seconds.items()}
        record = {
            "chips": {"total": total, "done": tally.done, "empty": tally.empty, "failed": len(tally.failed)},
            "failed_chips": tally.failed,
            "seams": self.stitcher.report.to_dict(),
            "stages": {
                "read": {"seconds": seconds["read"], "bytes": tally.bytes_read, "waited_seconds": seconds["wait"]},
                "segment": {"seconds": seconds["segment"]},
                "stitch": {"seconds": seconds["stitch"]},
            },
            "pixels": tally.pixels,
            "seconds": round(time.perf_counter() - self.start, 6),
            "batch_size": self.batches.batch_size,
        }
        return SceneResult(objects=self.objects, plan=self.plan, options=self.options, record=record)


def group_batches(items: Iterable[ReadChip], size: int) -> Iterator[list[ReadChip]]:
    """Cut a stream of chips into groups with at most ``size`` chips to segment, all of one shape.

    Chips without a valid pixel ride along: the order of windows is kept and nothing waits longer than a batch.
    """
    group: list[ReadChip] = []
    shape: tuple[int, ...] | None = None
    count = 0
    for item in items:
        if item.chip is not None:
            if shape is not None and item.chip.image.shape != shape:
                yield group
                group, count = [], 0
            shape = item.chip.image.shape
            count += 1
        group.append(item)
        if count in (0, size):
            yield group
            group, shape, count = [], None, 0
    if group:
        yield group
