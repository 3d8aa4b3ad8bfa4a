"""Dask clusters: one of this machine's own, or one that is running; and whether its workers are like this process."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import dask
from dask.system import CPU_COUNT
from distributed import Client, LocalCluster, WorkerPlugin
from distributed.comm.core import CommClosedError, connect
from distributed.security import Security
from distributed.utils import silence_logging_cmgr
from distributed.versions import VersionMismatchWarning
from filelock import FileLock, Timeout

from rsgeoseg.errors import ClusterError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from distributed import Worker

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 15.0
_START_SECONDS = 60.0
"""How long a worker may take to come up in the place of one that died."""
_PER_CORE = 16
"""Processes per core at most."""
_TRIES = 3
"""Times that workers are asked for something while some die."""
_DEATHS = 1
"""Workers of a local cluster that a block may outlive; with the next one it is tried alone."""
_NOT_STARTED = (RuntimeError, OSError, TimeoutError)
_SAME = ("rsgeoseg", "python")
"""Versions that must be equal everywhere."""
_ALIKE = ("torch", "numpy", "rasterio", "shapely", "dask", "distributed")
"""Versions that should be: results may differ in the last digits otherwise, or messages be misunderstood."""
_SCRATCH = "rsgeoseg-dask-"
_IN_USE = "in-use.lock"
_SCRATCH_SECONDS = 60.0
"""A folder without a lock that is younger is just being made."""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")

T = TypeVar("T")

_LEFT_BY_DASK = ("PYTHONHASHSEED", "__DASK_PARENT_PID")


@contextmanager
def local_cluster(workers: int) -> Iterator[Client]:
    """Start worker processes on this machine, reachable from this machine only.

    The cores are shared out: N workers have cores / N threads each.

    Args:
        workers: processes.

    Yields:
        A client; the processes and their files end with the block.

    Raises:
        UsageError: many more processes than cores, or a program that they could not import.
        ClusterError: the processes do not start.
    """
    if workers > _PER_CORE * CPU_COUNT:
        msg = f"{workers} workers are too many for {CPU_COUNT} cores: more than one per core only takes memory"
        raise UsageError(msg)
    script = str(getattr(sys.modules["__main__"], "__file__", ""))
    if script.startswith("<"):  # <stdin>
        msg = f"a script that is no file ({script}) cannot use workers, as every worker imports it again: save it first"
        raise UsageError(msg)
    # Without Dask's own MALLOC_TRIM_THRESHOLD_: memory that is given back chip by chip makes a quick model three times
    # slower.
    environment = dict.fromkeys(_THREADS, str(max(1, CPU_COUNT // workers)))
    with _scratch() as scratch:
        settings = {
            "temporary-directory": scratch,
            # A model waits for its slowest core: what Dask does beside it many times a second cost it a tenth.
            "distributed.worker.profile.enabled": False,
            "distributed.admin.tick.interval": "1s",
            "distributed.admin.system-monitor.interval": "2s",
            "distributed.admin.system-monitor.gil.enabled": False,
            "distributed.worker.memory.spill": False,
            "distributed.worker.memory.target": False,
            "distributed.worker.memory.pause": False,
            "distributed.worker.memory.terminate": False,  # memory is bounded by --max-memory, not by killing workers
            "distributed.scheduler.allowed-failures": _DEATHS,
            "distributed.nanny.pre-spawn-environ": environment,
        }
        ours = (*environment, *_LEFT_BY_DASK)
        with _restored(*ours), dask.config.set(settings), _quiet(), ExitStack() as stack:
            # restored at once: this process may load torch next, with the user's own settings
            with _restored(*ours), _later_interrupts():
                for name in ours:
                    os.environ.pop(name, None)
                cluster = stack.enter_context(_start(workers))
            client = stack.enter_context(Client(cluster, set_as_default=False))
            outlive_workers(client, partial(client.register_plugin, _Manners()))
            yield client


@contextmanager
def _later_interrupts() -> Iterator[None]:
    """Hold Ctrl-C back until processes have started, and from the processes for good: it reaches all of a terminal."""
    if not hasattr(signal, "pthread_sigmask") or threading.current_thread() is not threading.main_thread():
        yield
        return
    resource_tracker.ensure_running()  # when it starts it unblocks the signal again
    held: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _frame: held.append(number))  # any thread may get it
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # and processes inherit this
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
    if held:
        signal.raise_signal(signal.SIGINT)


@contextmanager
def _scratch() -> Iterator[str]:
    """Make a folder for the processes' files; remove it with the block, and those that killed processes left."""
    for left in Path(tempfile.gettempdir()).glob(f"{_SCRATCH}*"):
        with suppress(OSError, Timeout):  # in use, or another user's
            if time.time() - left.stat().st_mtime > _SCRATCH_SECONDS:
                with FileLock(left / _IN_USE, timeout=0):
                    pass
                shutil.rmtree(left)
    with (
        tempfile.TemporaryDirectory(prefix=_SCRATCH, ignore_cleanup_errors=True) as folder,
        FileLock(Path(folder) / _IN_USE, thread_local=False),
    ):
        yield folder


def _start(workers: int) -> LocalCluster:
    """Start a scheduler in this process and worker processes; once more where one of them ends at once.

    Raises:
        ClusterError: they do not start.
    """
    try:
        return _processes(workers)
    except _NOT_STARTED as error:
        logger.info("worker processes did not start (%s): starting them once more", error)
    try:
        return _processes(workers)
    except _NOT_STARTED as error:
        msg = (
            f"worker processes do not start, or end at once ({error}): there may be too little memory for them; a"
            ' script of yours must ask for workers under `if __name__ == "__main__":`, because every worker process'
            " imports it again"
        )
        raise ClusterError(msg) from None


def _processes(workers: int) -> LocalCluster:
    return LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        memory_limit=0,
        silence_logs=logging.CRITICAL,
    )


class _Manners(WorkerPlugin):
    """How a process of ours ends: not by Ctrl-C, which reaches all processes of a terminal, and then without delay."""

    name = "rsgeoseg-manners"

    def setup(self, worker: Worker) -> None:  # noqa: ARG002  (Dask's signature)
        """Leave Ctrl-C to the starting process; skip what Python does last, as taking a model apart takes a second."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        atexit.register(_leave)


def _leave() -> None:
    """End this process now, with what it printed."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed, or its reader is gone
            stream.flush()
    os._exit(0)


@contextmanager
def joined_cluster(address: str) -> Iterator[Client]:
    """Join a running scheduler.

    Raises:
        UsageError: nobody answers, or it has no workers.
    """
    with _quiet():
        try:
            _greet(address)
            client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as error:
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            msg = (
                f"no Dask scheduler answers at {address} ({why}): start one with `dask scheduler`, or check the address"
            )
            raise UsageError(msg) from error
        with client:
            if not count_workers(client):
                msg = f"the scheduler at {address} has no workers: start some with `dask worker {address}`"
                raise UsageError(msg)
            yield client


def _greet(address: str) -> None:
    """Shake hands with a scheduler: a client would wait for ever where something answers that is none.

    Raises:
        OSError, ValueError, TimeoutError: it cannot be done in time.
    """

    async def greet() -> None:
        arguments = Security().get_connection_args("client")
        (await connect(address, timeout=CONNECT_SECONDS, **arguments)).abort()

    with ThreadPoolExecutor(1) as pool:  # this thread may have a loop that runs, as in a notebook
        try:
            pool.submit(asyncio.run, asyncio.wait_for(greet(), CONNECT_SECONDS)).result()
        except MemoryError:  # what came was taken for the length of a message
            msg = "another program listens there"
            raise OSError(msg) from None


@contextmanager
def _restored(*names: str) -> Iterator[None]:
    """Leave variables of the environment as they were.

    Dask lets those that are set win over what it is told, and leaves what it was told in this process.
    """
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Dask's own log off the terminal: what a user must know is raised, or logged by us."""
    with warnings.catch_warnings(), silence_logging_cmgr(logging.CRITICAL):
        warnings.simplefilter("ignore", VersionMismatchWarning)  # check_versions says it in one line
        yield


def count_workers(client: Client) -> int:
    """Return how many workers a cluster has now."""
    return len(client.scheduler_info(n_workers=-1)["workers"])


def outlive_workers(client: Client, ask: Callable[[], T]) -> T:
    """Ask all workers of a cluster for something; again where one dies meanwhile, as another takes its place.

    Args:
        client: of the cluster.
        ask: asks them, and may do so several times.

    Raises:
        ClusterError: they die again and again, or there are none.
        OSError: the scheduler was lost.
    """
    lost: OSError | None = None
    for _ in range(_TRIES):
        try:
            client.wait_for_workers(1, timeout=_START_SECONDS)
        except TimeoutError:
            msg = f"the cluster has been without workers for {_START_SECONDS:.0f} s; start some and give --resume"
            raise ClusterError(msg) from None
        try:
            return ask()
        except (CommClosedError, TimeoutError) as error:
            if client.status != "running":
                raise
            logger.info("a worker was lost (%s): asking again", error)
            lost = error
    msg = "worker processes end while they start or load the model: there may be too little memory for them"
    raise ClusterError(msg) from lost


def check_versions(client: Client) -> None:
    """Compare what is installed on the workers with what is installed here.

    Raises:
        UsageError: a worker has another version of rsgeoseg or Python.
    """

    def version() -> str | None:  # travels by value: what is installed there may not know this module
        try:
            from rsgeoseg import __version__  # noqa: PLC0415
        except ImportError:
            return None
        return __version__

    found = cast("dict[str, Any]", client.get_versions(packages=list(_ALIKE)))
    run_there = client.run(version)
    mine = found["client"]["packages"] | {"rsgeoseg": version()}
    for address in found["workers"].keys() & run_there.keys():  # others came or went between the two questions
        theirs = found["workers"][address]["packages"] | {"rsgeoseg": run_there[address]}
        for name in (*_SAME, *_ALIKE):
            here, there = _short_version(name, mine), _short_version(name, theirs)
            if here == there:
                continue
            text = f"worker {address} has {name} {there}, this process {here}"
            if name in _SAME:
                msg = f"{text}: install the same version on all workers"
                raise UsageError(msg)
            logger.warning("%s: results may differ in the last digits", text)


def _short_version(name: str, versions: dict[str, str | None]) -> str | None:
    """Of Python, major and minor: code that travels does not care for more."""
    found = versions.get(name)
    return ".".join(found.split(".")[:2]) if name == "python" and found else found
