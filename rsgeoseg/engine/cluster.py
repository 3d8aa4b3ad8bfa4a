"""The same run over dask.distributed: blocks of chips on workers, borders joined here.

A worker loads the model once per process. A task names a block's windows; back come rows of finished objects and what
only other blocks can decide. A lost worker's blocks are run again by Dask; a block that keeps killing its workers is
taken apart until the chip that does it stands alone.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import deque
from concurrent.futures import CancelledError
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import geopandas  # noqa: F401  (Dask must not import it for the first time while it unpickles a task)
from distributed import KilledWorker, WorkerPlugin, get_worker, wait
from distributed.comm.core import CommClosedError
from distributed.protocol import pickle

from rsgeoseg.engine.block_work import BENCHES, WorkOrder
from rsgeoseg.engine.blocks import block_chips, plan_blocks
from rsgeoseg.engine.connect import check_versions, count_workers, outlive_workers
from rsgeoseg.engine.events import ChipFailed, ClusterStarted, Event
from rsgeoseg.engine.part_run import PartRun, Segmented
from rsgeoseg.engine.pipeline import SceneResult, SceneRun
from rsgeoseg.engine.reader import ReadChip, check_cancel
from rsgeoseg.engine.tally import Tally
from rsgeoseg.errors import ClusterError, ModelError, RsGeoSegError, SceneError, UsageError
from rsgeoseg.heap import keep_freed_memory

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

    from distributed import Client, Future, Worker

    from rsgeoseg.engine.block_work import ModelFacts, ModelSource
    from rsgeoseg.engine.blocks import Group
    from rsgeoseg.engine.parts import FrameParts
    from rsgeoseg.geo.stitch import StitchedObject

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

PATIENCE_SECONDS = 60.0
"""How long a cluster may be without any worker: so long may a restart take, a model loaded and all."""
_POLL_SECONDS = 0.25
_LOOK_SECONDS = 2.0
"""Workers are counted so often."""
_TELL_SECONDS = 0.5
"""A worker says how far it is at most so often."""


def segment_on_cluster(
    client: Client,
    order: WorkOrder,
    parts: FrameParts,
    *,
    model: str,
    on_event: Callable[[Event], None],
    cancel: threading.Event | None = None,
    budget: int | None = None,
) -> SceneResult:
    """Find the objects of a whole scene on the workers of a cluster.

    Args:
        client: of the cluster.
        order: scene, model and options.
        parts: keeps the rows.
        model: the model's name.
        on_event: told how far the run is, and of every failed chip.
        cancel: set it from another thread to stop.
        budget: bytes that each worker may hold for a block's objects.

    Returns:
        As ``segment_scene``, with the same features.

    Raises:
        UsageError: workers that cannot take part; the message names one and says why.
        ClusterError: the scheduler or all workers were lost.
        SceneError, ModelError, JobCancelled: as ``segment_scene``.
    """
    run = SceneRun(order.scene, model, order.options, on_event, parts)
    address = client.scheduler_info()["address"]
    try:
        outlive_workers(client, partial(check_versions, client))
        with _ordered(client, order) as workers, client.as_current():  # `wait` looks for the current client
            on_event(ClusterStarted(scheduler=address, workers=workers, dashboard=_dashboard(client)))
            groups = run.start()
            chips = sum(len(group) for group in groups)
            size = block_chips(chips, workers, order.options, _chip_bytes(order), budget)
            blocks = plan_blocks(groups, order.options.batch_size, size)
            _Blocks(client, order, run, parts, workers).work(blocks, cancel)
    except (CancelledError, OSError) as error:
        if isinstance(error, CommClosedError | CancelledError) or client.status != "running":
            msg = f"the Dask scheduler at {address} was lost; start it again and give --resume"
            raise ClusterError(msg) from error
        raise
    return run.result(batch_size=order.options.batch_size)


def keep_model(client: Client, source: ModelSource, device: str) -> None:
    """Have the workers of our own cluster load a model and keep it for all runs to come; does not wait.

    Args:
        client: of the cluster.
        source: gives the model.
        device: as the user named it; workers share out what it stands for.
    """
    outlive_workers(client, partial(client.run, _keep_model, source, device, wait=False))


def ask_facts(client: Client, source: ModelSource, device: str) -> ModelFacts:
    """Ask a worker of our own cluster about the model that it keeps, or is loading.

    Args:
        client: of the cluster.
        source: gives the model.
        device: as of ``keep_model``.

    Raises:
        ModelError, UsageError: the model cannot be had.
        ClusterError: workers end while they load it.
    """

    def ask() -> ModelFacts:
        worker = next(iter(client.scheduler_info(n_workers=1)["workers"]), None)
        if worker is None:  # it died since it was waited for
            raise CommClosedError
        facts: ModelFacts = client.run(_keep, source, device, workers=[worker])[worker]
        return facts

    return outlive_workers(client, ask)


def _dashboard(client: Client) -> str:
    """Address of the dashboard of our own cluster; without bokeh it would be an empty page."""
    return client.dashboard_link if client.cluster is not None and find_spec("bokeh") is not None else ""


class _Blocks:
    """Blocks under way: submitted, waited for, kept.

    A block whose workers died is a suspect: Dask counts every block that a dead worker had been given. So suspects are
    tried when nothing else is under way, one at a time; one that kills its workers then is taken apart.
    """

    def __init__(self, client: Client, order: WorkOrder, run: SceneRun, parts: FrameParts, workers: int) -> None:
        self.client, self.order, self.run, self.parts, self.workers = client, order, run, parts, workers
        self.under_way: dict[Future, list[Group]] = {}
        self.suspects: deque[list[Group]] = deque()
        self.alone = False
        self.told: dict[Any, Tally] = {}
        self.seen = self.looked = time.monotonic()
        """When there last was a worker, and when the workers were last counted."""

    def work(self, blocks: list[list[Group]], cancel: threading.Event | None) -> None:
        """Do all blocks; a few more are under way than there are workers, so that none waits."""
        pending = deque(blocks)
        self.client.subscribe_topic(self.order.token, self._hear)
        try:
            while pending or self.under_way or self.suspects:
                while pending and len(self.under_way) < 2 * self.workers:
                    self._submit(pending.popleft())
                if not self.under_way:
                    self.alone = True
                    self._submit(self.suspects.popleft())
                check_cancel(cancel)
                for future in self._finished():
                    self._take(future)
                self._report()
                self._look()
        finally:
            if self.client.status == "running":
                self.client.unsubscribe_topic(self.order.token)
                self.client.cancel(list(self.under_way), force=True)

    def _submit(self, block: list[Group]) -> None:
        windows = [[window.index for window in group] for group in block]
        key = f"{self.order.token}-{windows[0][0]}-{sum(map(len, windows))}-{uuid.uuid4().hex[:8]}"
        self.under_way[self.client.submit(_work_block, self.order.token, windows, key, key=key, pure=False)] = block

    def _finished(self) -> list[Future]:
        try:
            return list(wait(list(self.under_way), timeout=_POLL_SECONDS, return_when="FIRST_COMPLETED").done)
        except TimeoutError:
            return []

    def _look(self) -> None:
        """Count the workers.

        Raises:
            ClusterError: there has been none for too long.
        """
        now = time.monotonic()
        if now - self.looked < _LOOK_SECONDS:
            return
        self.looked, found = now, count_workers(self.client)
        if found:
            self.seen, self.workers = now, found
        elif now - self.seen > PATIENCE_SECONDS:
            msg = f"the cluster has been without workers for {now - self.seen:.0f} s; start some and give --resume"
            raise ClusterError(msg)

    def _take(self, future: Future) -> None:
        """Keep a finished block; put one whose workers died aside."""
        block = self.under_way.pop(future)
        self.told.pop(future.key, None)
        try:
            drawn, rest = future.result()
        except KilledWorker as error:
            logger.debug("%s", error)
            if self.alone:
                self._take_apart(block)
            else:
                self.suspects.append(block)
            return
        finally:
            future.release()
        end = self.parts.keep_encoded(drawn, rest)
        for chip in end.tally.failed:
            self.run.on_event(ChipFailed(index=chip["index"], row=chip["row"], col=chip["col"], error=chip["error"]))
        self.run.take_part(end)

    def _take_apart(self, block: list[Group]) -> None:
        """Split a block that kills its workers when it is alone; a chip that does it has failed."""
        if len(block) > 1:
            logger.warning("a block of %d batches killed its workers: its halves are tried alone", len(block))
            self.suspects.extendleft((block[len(block) // 2 :], block[: len(block) // 2]))
            return
        (group,) = block
        if len(group) > 1:
            self.suspects.extendleft([[(window,)] for window in reversed(group)])
            return
        failed = ModelError("it killed every worker process that tried it")
        none: list[StitchedObject] = []
        part = PartRun(self.order.scene, self.run.plan, self.order.options, none.extend, self.run.on_event)
        part.take(Segmented(items=[ReadChip(window=group[0], chip=None)], results=[failed], seconds=0.0))
        end = part.end()
        self.parts.keep(self.order.drawing.draw([]), end)
        self.run.take_part(end)

    def _hear(self, event: tuple[float, dict[str, Any]]) -> None:
        """A worker says how far a block is."""
        said = event[1]
        self.told[said["key"]] = Tally(**said["tally"])

    def _report(self) -> None:
        keys = {future.key for future in self.under_way}
        now = Tally()
        for key, tally in list(self.told.items()):
            if key in keys:
                now.add(tally)
        self.run.report(now)


# ------------------------------------------------------------------------------------------------ on the workers


class _Order(WorkerPlugin):
    """Gives the order to every worker, also to those that come later or come back.

    It travels as bytes: reading them opens the scene, and a worker that cannot do that must be able to say so.
    """

    def __init__(self, order: WorkOrder) -> None:
        self.name = f"rsgeoseg-{order.token}"
        self.token, self.grid, self.data = order.token, order.scene.grid, pickle.dumps(order)

    def setup(self, worker: Worker) -> None:
        """Take the order; scene and model are opened with the first block."""
        number = str(worker.name)
        BENCHES.accept(self.token, self.read, int(number) if number.isdigit() else 0, worker.address)

    def teardown(self, worker: Worker) -> None:  # noqa: ARG002  (Dask's signature)
        """Forget the run."""
        BENCHES.clear(self.token)

    def read(self) -> WorkOrder:
        """Open the scene.

        Raises:
            SceneError: it cannot be opened here, or is another one.
        """
        order: WorkOrder = pickle.loads(self.data)
        if order.scene.grid != self.grid:
            grids = [
                f"{grid.width} x {grid.height} pixels from {grid.affine * (0, 0)}"
                for grid in (order.scene.grid, self.grid)
            ]
            msg = f"its {order.scene.name} is another raster: {grids[0]}, the run's has {grids[1]}"
            raise SceneError(msg)
        return order


def _work_block(token: str, windows: list[list[int]], key: str) -> tuple[bytes, bytes]:
    """Segment a block on this worker."""
    bench = BENCHES.bench(token)
    worker, last = get_worker(), time.monotonic()

    def tell(tally: Tally) -> None:
        nonlocal last
        if time.monotonic() - last >= _TELL_SECONDS:
            last = time.monotonic()
            counts = {"done": tally.done, "empty": tally.empty, "objects": tally.objects, "pixels": tally.pixels}
            worker.log_event(token, {"key": key, "tally": counts})

    return bench.work(windows, tell)


async def _at_work(worker: Worker, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in the thread that works on blocks.

    Each thread that calls torch has helpers of its own for as long as it lives; with those of two threads there are
    more than cores, and then all sleep at every step of the model instead of waiting awake: 1.7 of two cores were busy
    instead of 1.95. And the worker goes on answering meanwhile.
    """
    keep_freed_memory()  # before that thread begins
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(worker.executors["default"], partial(function, *args, **kwargs))


async def _make_ready(token: str, dask_worker: Worker) -> None:
    """Load the model on this worker, unless it is there; after the block that another run has under way here."""
    await _at_work(dask_worker, BENCHES.bench, token)


async def _keep_model(source: ModelSource, device: str, dask_worker: Worker) -> None:
    """Load the model on this worker of our own cluster, before any run is known; a coroutine need not be waited for."""
    try:
        await _keep(source, device, dask_worker)
    except RsGeoSegError as error:  # who asks for its facts meets it again and says it
        logger.debug("%s", error)


async def _keep(source: ModelSource, device: str, dask_worker: Worker) -> ModelFacts:
    """Load the model on this worker of our own cluster, unless it is there."""
    return await _at_work(dask_worker, _keep_here, source, device, int(str(dask_worker.name)))


def _keep_here(source: ModelSource, device: str, number: int) -> ModelFacts:
    return BENCHES.keep(source, source.devices(device), number)


# ------------------------------------------------------------------------------------------------ around all blocks


@contextmanager
def _ordered(client: Client, order: WorkOrder) -> Iterator[int]:
    """Have every worker take the order and load the model; they forget it with the block.

    Yields:
        The number of workers.

    Raises:
        UsageError: a worker has other weights, or no scene.
    """
    try:
        plugin = _Order(order)
    except Exception as error:  # pickle raises anything
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        msg = f"the run cannot be sent to workers ({why}): give the model by its name and the scene by its path or URL"
        raise UsageError(msg) from error
    outlive_workers(client, partial(client.register_plugin, plugin))
    try:
        yield len(outlive_workers(client, partial(client.run, _make_ready, order.token)))
    finally:
        if client.status == "running":
            client.unregister_worker_plugin(plugin.name)


def _chip_bytes(order: WorkOrder) -> int:
    size = order.options.chip_size
    return size * size * (len(order.scene.band_indexes) * order.scene.dtype.itemsize + 1)
