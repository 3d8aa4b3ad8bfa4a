"""One scene through one model in this process: plan, read ahead, segment in batches, stitch; and the sum of parts."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np

from rsgeoseg.engine.batches import BatchSegmenter
from rsgeoseg.engine.edges import DataEdge
from rsgeoseg.engine.events import ChipsProgress, Event, RunStarted
from rsgeoseg.engine.memory import peak_memory
from rsgeoseg.engine.part_run import PartRun, Segmented, segment_group, stop_at
from rsgeoseg.engine.parts import ObjectList
from rsgeoseg.engine.reader import ReadChip, check_cancel, read_ahead
from rsgeoseg.engine.tally import Tally
from rsgeoseg.errors import JobCancelled
from rsgeoseg.geo.stitch import StitchedObject, Stitcher
from rsgeoseg.geo.windows import Window, WindowPlan, plan_windows

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Generator, Iterable, Iterator

    from rsgeoseg.contract import Chip, Segmenter
    from rsgeoseg.engine.options import PipelineOptions
    from rsgeoseg.engine.parts import PartEnd, Parts
    from rsgeoseg.geo.scene import Scene

_QUEUED = 2
"""Batches that may wait for the stitcher while the model works on the next one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneResult:
    """What happened while the objects of a scene were found."""

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
    parts: Parts | None = None,
) -> SceneResult:
    """Find the objects of a whole scene.

    Threads read ahead of the model and another one stitches behind it; chips without a valid pixel never reach the
    model; batches are made of chips of one row of windows, at fixed places, so that the same input gives the same
    batches however the work is divided. Every chip ends as done, empty or failed.

    Args:
        scene: an open scene.
        segmenter: the model; called from this thread only.
        options: how to cut, batch and join.
        on_event: told of every batch and every failure.
        cancel: set it from another thread to stop.
        parts: takes whole objects as soon as they leave the stitcher; decides how the work is divided.

    Raises:
        SceneError: a chip could not be read and ``options.on_chip_error`` is ``raise``; it names the chip.
        ModelError: the same for a chip that the model could not segment.
        JobCancelled: ``cancel`` was set, or Ctrl-C was pressed. All threads are joined.
    """
    parts = parts or ObjectList()
    run = SceneRun(scene, segmenter.spec.name, options, on_event or _ignore, parts)
    batches = BatchSegmenter(at_threshold(segmenter, options.score_threshold), options.batch_size)
    try:
        groups = run.start()
        _work(run, groups, batches, cancel)
    except KeyboardInterrupt as error:
        msg = "cancelled: nothing was written"
        raise JobCancelled(msg) from error
    return run.result(batch_size=batches.batch_size)


def find_objects(
    scene: Scene, segmenter: Segmenter, options: PipelineOptions, cancel: threading.Event | None = None
) -> list[StitchedObject]:
    """Find the objects of a scene, masks and all, in the order in which they left the stitcher.

    Raises:
        As ``segment_scene``.
    """
    found = ObjectList()
    segment_scene(scene, segmenter, options, cancel=cancel, parts=found)
    return found.objects


def at_threshold(segmenter: Segmenter, score_threshold: float) -> Segmenter:
    """Let a model that can (``at_threshold``) skip the work for objects that would be dropped, or find fainter ones."""
    adapt = getattr(segmenter, "at_threshold", None)
    return segmenter if adapt is None else cast("Segmenter", adapt(score_threshold))


def window_groups(plan: WindowPlan, size: int) -> list[tuple[Window, ...]]:
    """Cut each row of windows into groups of ``size``: the chips that reach the model together, always the same."""
    return [
        tuple(plan.at(row, col) for col in range(first, min(first + size, plan.cols)))
        for row in range(plan.rows)
        for first in range(0, plan.cols, size)
    ]


def read_groups(
    scene: Scene,
    groups: Iterable[tuple[Window, ...]],
    options: PipelineOptions,
    tally: Tally,
    cancel: threading.Event | None = None,
    prepare: Callable[[Chip], Chip] | None = None,
) -> Generator[list[ReadChip]]:
    """Read groups of windows ahead of the model; the time that it waits is counted in ``tally``.

    Args:
        scene: an open scene.
        groups: of ``window_groups``.
        options: how many threads, and how far ahead.
        tally: its ``wait`` grows.
        cancel: set it from another thread to stop.
        prepare: as in ``read_ahead``.

    Raises:
        WindowError: a chip cannot be read, and the options say to stop then.
    """
    windows = [window for group in groups for window in group]
    ahead = options.ahead or 2 * options.readers + options.batch_size
    reading = read_ahead(scene, windows, readers=options.readers, ahead=ahead, cancel=cancel, prepare=prepare)

    def timed() -> Iterator[ReadChip]:
        before = time.perf_counter()
        for item in reading:
            tally.seconds["wait"] += time.perf_counter() - before
            if item.error is not None and options.on_chip_error == "raise":
                stop_at(scene, item.window, item.error)
            yield item
            before = time.perf_counter()

    with closing(reading):
        for _, group in groupby(timed(), key=lambda item: (item.window.row, item.window.col // options.batch_size)):
            yield list(group)


def _work(
    run: SceneRun, groups: list[tuple[Window, ...]], batches: BatchSegmenter, cancel: threading.Event | None
) -> None:
    """Carry groups of chips from the scene to the parts."""
    part: PartRun | None = None
    waited = Tally()
    with (
        Behind() as behind,
        closing(read_groups(run.scene, groups, run.options, waited, cancel, batches.prepare)) as reading,
    ):
        for items in reading:
            if part is None:
                part = PartRun(run.scene, run.plan, run.options, run.parts.begin(), run.on_event)
            behind.put(part.take, segment_group(items, batches))
            check_cancel(cancel)
            run.report(part.tally)
            if run.parts.due():
                behind.wait()
                _end_part(run, part, waited)
                run.report(Tally())
                part = None
        behind.wait()
        if part is not None:
            run.report(part.tally)
            _end_part(run, part, waited)


def _end_part(run: SceneRun, part: PartRun, waited: Tally) -> None:
    """Keep a part, with the time that the model waited for it."""
    part.tally.seconds["wait"] += waited.seconds["wait"]
    waited.seconds["wait"] = 0.0
    run.end_part(part)


class Behind:
    """One thread that does things in order, while at most a few wait."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="rsgeoseg-stitch")
        self._queue: list[Future[None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for future in self._queue:
            future.cancel()
        self._pool.shutdown()

    def put(self, do: Callable[[Segmented], None], what: Segmented) -> None:
        """Do it later, or at once where no chip has pixels and nothing waits; raises what one before it raised."""
        if all(item.chip is None for item in what.items) and all(future.done() for future in self._queue):
            self.wait()
            do(what)
            return
        self._queue.append(self._pool.submit(do, what))
        while len(self._queue) > _QUEUED or (self._queue and self._queue[0].done()):
            self._queue.pop(0).result()

    def wait(self) -> None:
        """Wait until all is done; raises what it raised."""
        while self._queue:
            self._queue.pop(0).result()


class SceneRun:
    """The books of one run over a scene: parts that ended, and what they left to each other.

    Args:
        scene: an open scene.
        model: the model's name.
        options: how to cut, batch and join.
        on_event: told how far it got.
        parts: where finished objects and parts go.
    """

    def __init__(
        self, scene: Scene, model: str, options: PipelineOptions, on_event: Callable[[Event], None], parts: Parts
    ) -> None:
        grid = scene.grid
        self.scene, self.model, self.options, self.on_event, self.parts = scene, model, options, on_event, parts
        self.plan = plan_windows(grid.height, grid.width, chip_size=options.chip_size, overlap=options.overlap)
        self.tally = Tally()
        """Of the parts that ended."""
        self._stitcher = Stitcher(self.plan, nms=options.nms)
        self._edge = DataEdge()
        self._start = time.perf_counter()
        self._known_pixels = 0

    def start(self) -> list[tuple[Window, ...]]:
        """Take what an earlier run finished.

        Returns:
            The groups of windows that are left to do.
        """
        behind = np.zeros(len(self.plan.windows), np.bool_)
        plan, chips = self.plan, len(self.plan.windows)
        self.on_event(
            RunStarted(scene=self.scene.name, model=self.model, height=plan.height, width=plan.width, chips=chips)
        )
        for end in self.parts.known():
            behind[end.remainder.windows] = True
            self._add(end)
        self._known_pixels = self.tally.pixels
        if behind.any():
            self.report(Tally())
        groups = window_groups(self.plan, self.options.batch_size)
        left = [tuple(window for window in group if not behind[window.index]) for group in groups]
        return [group for group in left if group]

    def end_part(self, part: PartRun) -> None:
        """Keep a part that was worked on in this process."""
        end = part.end()
        self.parts.end(end)
        self._add(end)

    def take_part(self, end: PartEnd) -> None:
        """Take a part that was worked on, and kept, elsewhere."""
        self._add(end)

    def report(self, part: Tally) -> None:
        """Tell how far the run is, the parts at work included."""
        now, seconds = self.tally.plus(part), time.perf_counter() - self._start
        self.on_event(
            ChipsProgress(
                done=now.done,
                empty=now.empty,
                failed=len(now.failed),
                total=len(self.plan.windows),
                objects=now.objects,
                seconds=round(seconds, 3),
                mpx_per_s=round((now.pixels - self._known_pixels) / 1e6 / max(seconds, 1e-9), 3),
            )
        )

    def _add(self, end: PartEnd) -> None:
        """Count a part and let go of what it was the last to see."""
        start = time.perf_counter()
        self.tally.add(end.tally)
        self._edge.take(end.edge)
        objects = self._edge.flag(self._stitcher.absorb(end.remainder))
        self.tally.seconds["stitch"] += time.perf_counter() - start
        self.tally.objects += len(objects)
        if objects:
            self.parts.across(objects)

    def result(self, *, batch_size: int) -> SceneResult:
        """Close the books."""
        self._stitcher.finish()
        tally, total = self.tally, len(self.plan.windows)
        assert tally.chips == total, "a chip was lost"
        seconds = {name: round(value, 6) for name, value in tally.seconds.items()}
        record = {
            "chips": {"total": total, "done": tally.done, "empty": tally.empty, "failed": len(tally.failed)},
            "failed_chips": sorted(tally.failed, key=lambda chip: chip["index"]),
            "seams": self._stitcher.report.to_dict(),
            "stages": {
                "read": {"seconds": seconds["read"], "bytes": tally.bytes_read, "waited_seconds": seconds["wait"]},
                "segment": {"seconds": seconds["segment"]},
                "stitch": {"seconds": seconds["stitch"]},
                "polygonize": {"seconds": seconds["polygonize"]},
            },
            "pixels": tally.pixels,
            "resumed_pixels": self._known_pixels,
            "seconds": round(time.perf_counter() - self._start, 6),
            "batch_size": batch_size,
            "largest_process_bytes": max(tally.peak_bytes, peak_memory() or 0) or None,
        }
        return SceneResult(plan=self.plan, options=self.options, record=record)


def _ignore(_event: Event) -> None:
    """Tell nobody."""
