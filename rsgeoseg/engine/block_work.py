"""What a worker process does: load the model once, then turn blocks of chips into rows and remainders."""

from __future__ import annotations

import multiprocessing
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rsgeoseg.engine.batches import BatchSegmenter
from rsgeoseg.engine.part_run import PartRun, segment_group
from rsgeoseg.engine.pipeline import Behind, at_threshold, read_groups
from rsgeoseg.engine.tally import Tally
from rsgeoseg.engine.tuning import own_batch_size
from rsgeoseg.errors import ModelError, RsGeoSegError, UsageError
from rsgeoseg.geo.windows import plan_windows

if TYPE_CHECKING:
    from collections.abc import Callable

    from rsgeoseg.contract import ModelSpec, Segmenter
    from rsgeoseg.engine.collect import Drawing
    from rsgeoseg.engine.events import Event
    from rsgeoseg.engine.options import PipelineOptions
    from rsgeoseg.geo.scene import Scene

IDLE_SECONDS = 600.0
"""A bench that was not used for so long gives way to the next run's."""


class ModelSource(Protocol):
    """Gives a model in any process; sources that are equal give the same model."""

    def __call__(self, device: str) -> Segmenter:
        """Load it onto a device."""
        ...

    def devices(self, name: str) -> tuple[str, ...]:
        """Return the devices of this machine that a name stands for."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What a run is planned with, of a model that is on worker processes of this machine."""

    spec: ModelSpec
    device: str
    """That the first worker has it on."""
    devices: tuple[str, ...]
    """That workers share out."""
    batch_size: int
    """Chips per call that it suggests."""
    device_name: str
    number_format: str
    """These two as ``tuning.BatchKey`` has them."""

    @classmethod
    def of(cls, segmenter: Segmenter, devices: tuple[str, ...]) -> ModelFacts:
        """Look at a model."""
        return cls(
            spec=segmenter.spec,
            device=str(getattr(segmenter, "device", "cpu")),
            devices=devices,
            batch_size=own_batch_size(segmenter),
            device_name=getattr(segmenter, "device_name", "cpu"),
            number_format=getattr(segmenter, "number_format", ""),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkOrder:
    """All that a worker needs to know of a run; it travels to every worker once."""

    token: str
    """Names the run."""
    scene: Scene
    """Travels as how to open it again, with its stretch."""
    model: ModelSource
    """Loads the model; called once per process."""
    options: PipelineOptions
    drawing: Drawing
    weights_id: str
    """Of the model that the run was planned with; a worker's must be the same."""
    devices: tuple[str, ...]
    """Device of worker 0, 1, ... of a local cluster, in turn."""
    cache_bytes: int | None = None
    """Memory for decoded tiles; None = as the scene likes."""


class Bench:
    """A worker's place: its model and its scene, ready for blocks.

    Args:
        order: what run it works on.
        segmenter: its model, on this worker's device.

    Raises:
        ModelError: it has other weights than the run was planned with.
    """

    def __init__(self, order: WorkOrder, segmenter: Segmenter) -> None:
        self.order = order
        weights = segmenter.spec.weights_id
        if weights != order.weights_id:
            msg = f"it has weights {weights}, the run was started with {order.weights_id}: give all the same files"
            raise ModelError(msg)
        options, grid = order.options, order.scene.grid
        self.plan = plan_windows(grid.height, grid.width, chip_size=options.chip_size, overlap=options.overlap)
        self.batches = BatchSegmenter(at_threshold(segmenter, options.score_threshold), options.batch_size)
        self.used = time.monotonic()
        self.given_up = threading.Event()
        self._model = threading.Lock()
        if order.cache_bytes is not None:
            order.scene.limit_cache(order.cache_bytes)

    def work(self, windows: list[list[int]], tell: Callable[[Tally], None]) -> tuple[bytes, bytes]:
        """Segment a block; a worker with several threads works on several, and the model on one batch at a time.

        Args:
            windows: indices of its windows, in the groups that reach the model.
            tell: told how far it got.

        Returns:
            The rows of objects that no other block can change, and the end of the part, as bytes.

        Raises:
            WindowError, ModelError: as ``segment_scene``.
            JobCancelled: the run was given up meanwhile.
        """
        scene, options = self.order.scene, self.order.options
        groups = [tuple(self.plan.windows[index] for index in group) for group in windows]
        collector = self.order.drawing.collector()
        part = PartRun(scene, self.plan, options, collector.take, _ignore)
        waited = Tally()
        chips = read_groups(scene, groups, options, waited, self.given_up, self.batches.prepare)
        with Behind() as behind, closing(chips) as reading:
            for items in reading:
                with self._model:
                    segmented = segment_group(items, self.batches)
                behind.put(part.take, segmented)
                tell(part.tally)
            behind.wait()
        rows, end = collector.finish(), part.end()
        end.tally.seconds["polygonize"] += collector.seconds
        end.tally.vertices += rows.vertices
        end.tally.add(waited)
        self.used = time.monotonic()
        return rows.to_bytes(), end.to_bytes()


class Benches:
    """The benches of this process, one per run; set up when first needed.

    The model that was loaded last is kept for the next run: on a cluster that others run, until no run is left.
    """

    def __init__(self) -> None:
        self._model: tuple[ModelSource, str, Segmenter] | None = None
        self._kept = False
        self._orders: dict[str, tuple[Callable[[], WorkOrder], int, str]] = {}
        self._benches: dict[str, Bench] = {}
        self._lock = threading.Lock()

    def accept(self, token: str, order: Callable[[], WorkOrder], number: int, address: str) -> None:
        """Take the order of a run.

        Args:
            token: names the run.
            order: gives the order; it opens the scene, so it is called when the bench is set up.
            number: of this worker.
            address: of this worker, for messages.
        """
        self._orders[token] = (order, number, address)

    def bench(self, token: str) -> Bench:
        """Return the bench of a run, with its model loaded.

        Raises:
            UsageError: this worker cannot take part, and why.
        """
        with self._lock:
            if token not in self._benches:
                self._forget_idle()
                read, number, address = self._orders[token]
                try:
                    order = read()
                    device = order.devices[number % len(order.devices)]
                    self._benches[token] = Bench(order, self._load(order.model, device))
                except Exception as error:  # whatever it is, the user must hear which worker has it
                    why = str(error) if isinstance(error, RsGeoSegError) else f"{type(error).__name__}: {error}"
                    msg = f"worker {address} cannot take part: {why}"
                    raise UsageError(msg) from error
            return self._benches[token]

    def clear(self, token: str) -> None:
        """Forget a run; what is under way for it ends with its next chip."""
        self._orders.pop(token, None)
        bench = self._benches.pop(token, None)
        if bench is not None:
            bench.given_up.set()
        if not self._benches and not self._kept:
            self._model = None

    def keep(self, source: ModelSource, devices: tuple[str, ...], number: int) -> ModelFacts:
        """Load a model for runs to come, and keep models from now on: this process is there for them alone.

        Args:
            source: gives the model.
            devices: that workers share out.
            number: of this worker.

        Raises:
            ModelError: it cannot be had here.
        """
        with self._lock:
            self._kept = True
            return ModelFacts.of(self._load(source, devices[number % len(devices)]), devices)

    def _load(self, source: ModelSource, device: str) -> Segmenter:
        if self._model is None or self._model[:2] != (source, device):
            self._model = None  # makes room first
            self._model = (source, device, source(device))
        return self._model[2]

    def _forget_idle(self) -> None:
        """Let models go whose run's process has died: nobody tells of that."""
        now = time.monotonic()
        self._benches = {token: bench for token, bench in self._benches.items() if now - bench.used < IDLE_SECONDS}


BENCHES = Benches()
"""Of this process."""


def leave_if_imported_by_a_worker() -> None:
    """End this process, if it is a worker that is just importing the user's script and came across the run in it.

    Going on would start workers of workers. The process that waits for this one says what is wrong.

    Raises:
        SystemExit: it is.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as multiprocessing itself finds out
        raise SystemExit(1)


def _ignore(_event: Event) -> None:
    """The client tells of failed chips."""
