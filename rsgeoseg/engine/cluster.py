"""The same run over dask.distributed: blocks of chips on workers, borders joined here.

A worker loads the model once per process. A task names a block's windows; back come rows of finished objects and what
only other blocks can decide. A lost worker's blocks are run again by Dask; a block that keeps killing its workers is
taken apart until the chip that does it stands alone.
"""

from __future__ import annotations

import logging
import os
import platform
import time
import uuid
from collections import deque
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import dask
import geopandas  # noqa: F401  (Dask must not import it for the first time while it unpickles a task)
from distributed import Client, KilledWorker, LocalCluster, WorkerPlugin, get_worker, wait
from distributed.client import FutureCancelledError
from distributed.comm import CommClosedError

from rsgeoseg.engine.block_work import BENCHES, WorkOrder
from rsgeoseg.engine.blocks import block_chips, plan_blocks
from rsgeoseg.engine.events import ChipFailed, ClusterStarted, Event
from rsgeoseg.engine.part_run import PartRun, Segmented
from rsgeoseg.engine.pipeline import SceneResult, SceneRun
from rsgeoseg.engine.reader import ReadChip, check_cancel
from rsgeoseg.engine.tally import Tally
from rsgeoseg.errors import ClusterError, ModelError, RsGeoSegError, UsageError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

    from distributed import Future, Worker

    from rsgeoseg.engine.blocks import Group
    from rsgeoseg.engine.parts import FrameParts
    from rsgeoseg.geo.stitch import StitchedObject

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 15.0
_POLL_SECONDS = 0.25
_TELL_SECONDS = 0.5
"""A worker says how far it is at most so often."""
_SAME = ("rsgeoseg", "python")
"""Versions that must be equal everywhere."""
_ALIKE = ("torch", "numpy", "rasterio", "shapely")
"""Versions that should be: results may differ in the last digits otherwise."""


@contextmanager
def local_cluster(workers: int) -> Iterator[Client]:
    """Start worker processes on this machine, reachable from this machine only.

    The cores are shared out: N workers have cores / N threads each.

    Args:
        workers: processes.

    Yields:
        A client; the processes end with the block.
    """
    threads = max(1, (os.cpu_count() or 1) // workers)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    settings = {
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.terminate": False,  # memory is bounded by --max-memory, not by killing workers
        "distributed.nanny.pre-spawn-environ": {**dict.fromkeys(names, str(threads)), "MALLOC_TRIM_THRESHOLD_": "65536"},
    }
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            memory_limit=0,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@contextmanager
def joined_cluster(address: str) -> Iterator[Client]:
    """Join a running scheduler.

    Raises:
        UsageError: nobody answers, or it has no workers.
    """
    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TimeoutError, CommClosedError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        msg = f"no Dask scheduler answers at {address} ({why}): start one with `dask scheduler`, or check the address"
        raise UsageError(msg) from error
    with client:
        if not client.scheduler_info(n_workers=-1)["workers"]:
            msg = f"the scheduler at {address} has no workers: start some with `dask worker {address}`"
            raise UsageError(msg)
        yield client


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
        ClusterError: the scheduler was lost.
        SceneError, ModelError, JobCancelled: as ``segment_scene``.
    """
    run = SceneRun(order.scene, model, order.options, on_event, parts)
    try:
        workers = _prepare(client, order)
        link = client.dashboard_link if client.cluster is not None else ""
        on_event(ClusterStarted(scheduler=client.scheduler.address, workers=workers, dashboard=link))
        groups = run.start()
        chips = sum(len(group) for group in groups)
        size = block_chips(chips, workers, order.options, _chip_bytes(order), budget)
        blocks = plan_blocks(groups, order.options.batch_size, size)
        _Blocks(client, order, run, parts, workers).work(blocks, cancel)
    except (CommClosedError, FutureCancelledError, OSError) as error:
        msg = f"the Dask scheduler was lost ({error}); start it again and give --resume"
        raise ClusterError(msg) from error
    finally:
        client.unregister_worker_plugin(_plugin_name(order.token)) if client.status == "running" else None
    return run.result(batch_size=order.options.batch_size)


class _Blocks:
    """Blocks under way: submitted, waited for, kept."""

    def __init__(self, client: Client, order: WorkOrder, run: SceneRun, parts: FrameParts, workers: int) -> None:
        self.client, self.order, self.run, self.parts, self.workers = client, order, run, parts, workers
        self.under_way: dict[Future, list[Group]] = {}
        self.told: dict[str, Tally] = {}

    def work(self, blocks: list[list[Group]], cancel: threading.Event | None) -> None:
        """Do all blocks; a few more are under way than there are workers, so that none waits."""
        pending = deque(blocks)
        self.client.subscribe_topic(self.order.token, self._hear)
        try:
            while pending or self.under_way:
                while pending and len(self.under_way) < 2 * self.workers:
                    self._submit(pending.popleft())
                check_cancel(cancel)
                for future in self._finished():
                    pending.extendleft(reversed(self._take(future)))
                self._report()
        finally:
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

    def _take(self, future: Future) -> list[list[Group]]:
        """Keep a finished block; return blocks to be done in its place."""
        block = self.under_way.pop(future)
        self.told.pop(future.key, None)
        try:
            drawn, rest = future.result()
        except KilledWorker as error:
            return self._take_apart(block, error)
        finally:
            future.release()
        end = self.parts.keep_encoded(drawn, rest)
        for chip in end.tally.failed:
            self.run.on_event(ChipFailed(index=chip["index"], row=chip["row"], col=chip["col"], error=chip["error"]))
        self.run.take_part(end)
        return []

    def _take_apart(self, block: list[Group], error: KilledWorker) -> list[list[Group]]:
        """Split a block that kills its workers; a chip that does it alone has failed."""
        if len(block) > 1:
            logger.warning("a block of %d batches killed its workers: its batches are tried one by one", len(block))
            return [[group] for group in block]
        (group,) = block
        if len(group) > 1:
            return [[(window,)] for window in group]
        logger.debug("%s", error)
        failed = ModelError("it killed every worker process that tried it")
        none: list[StitchedObject] = []
        part = PartRun(self.order.scene, self.run.plan, self.order.options, none.extend, self.run.on_event)
        part.take(Segmented(items=[ReadChip(window=group[0], chip=None)], results=[failed], seconds=0.0))
        end = part.end()
        self.parts.keep(self.order.drawing.draw([]), end)
        self.run.take_part(end)
        return []

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


class _Order(WorkerPlugin):  # type: ignore[misc]
    """Gives the order to every worker, also to those that come later or come back."""

    def __init__(self, order: WorkOrder) -> None:
        self.name = _plugin_name(order.token)
        self.order = order

    def setup(self, worker: Worker) -> None:
        """Take the order; the model is loaded with the first block."""
        number = str(worker.name)
        BENCHES.accept(self.order, int(number) if number.isdigit() else 0)

    def teardown(self, worker: Worker) -> None:  # noqa: ARG002  (Dask's signature)
        """Forget the run."""
        BENCHES.clear(self.order.token)


def _plugin_name(token: str) -> str:
    return f"rsgeoseg-{token}"


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

    return bench.work([tuple(bench.plan.windows[index] for index in group) for group in windows], tell)


def _ready(token: str) -> dict[str, Any]:
    """Load the model on this worker and say what it is."""
    try:
        return {"weights": BENCHES.bench(token).segmenter.spec.weights_id}
    except Exception as error:  # noqa: BLE001  (sent to the client, which raises)
        return {"error": f"{type(error).__name__}: {error}" if not isinstance(error, RsGeoSegError) else str(error)}


def _prepare(client: Client, order: WorkOrder) -> int:
    """Have every worker load the model; refuse those that are not as this process is.

    Returns:
        The number of workers.

    Raises:
        UsageError: another version, other weights, or no scene there.
    """

    # Defined here so that Dask sends the code itself: a worker without rsgeoseg could not look it up by name.
    def about() -> dict[str, str | None]:
        import platform as found_platform  # noqa: PLC0415
        from importlib.metadata import PackageNotFoundError  # noqa: PLC0415
        from importlib.metadata import version as find  # noqa: PLC0415

        versions: dict[str, str | None] = {"python": ".".join(found_platform.python_version_tuple()[:2])}
        for name in ("rsgeoseg", "torch", "numpy", "rasterio", "shapely"):
            try:
                versions[name] = find(name)
            except PackageNotFoundError:
                versions[name] = None
        return versions

    mine = about()
    for address, theirs in client.run(about).items():
        for name in (*_SAME, *_ALIKE):
            if theirs[name] != mine[name]:
                text = f"worker {address} has {name} {theirs[name]}, this process {mine[name]}"
                if name in _SAME:
                    msg = f"{text}: install the same version on all workers"
                    raise UsageError(msg)
                logger.warning("%s: results may differ in the last digits", text)
    client.register_plugin(_Order(order))
    answers = client.run(_ready, order.token)
    for address, answer in answers.items():
        if "error" in answer:
            msg = f"worker {address} cannot take part: {answer['error']}"
            raise UsageError(msg)
        if answer["weights"] != order.weights_id:
            msg = (
                f"worker {address} has weights {answer['weights']}, this process {order.weights_id}: give all workers"
                " the same files"
            )
            raise UsageError(msg)
    return len(answers)


def _chip_bytes(order: WorkOrder) -> int:
    size = order.options.chip_size
    return size * size * (len(order.scene.band_indexes) * order.scene.dtype.itemsize + 1)
