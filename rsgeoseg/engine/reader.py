"""Reading ahead of the model: a few threads, a bounded queue, order kept."""

from __future__ import annotations

import logging
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from rsgeoseg.errors import JobCancelled, WindowError
from rsgeoseg.geo.opening import keep_gdal_env

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Generator, Sequence

    from rsgeoseg.contract import Chip
    from rsgeoseg.geo.scene import Scene
    from rsgeoseg.geo.windows import Window

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""Times a chip of a local scene is read before it counts as failed; scenes on servers try again by themselves."""
REMOTE_READERS = 8
"""Threads for a scene on a server: they wait for answers nearly all of the time."""
_POLL_SECONDS = 0.1  # how late a cancel may be noticed while waiting for a reader


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadChip:
    """A window after reading."""

    window: Window
    chip: Chip | None
    """None where no pixel is valid, or where reading failed."""
    whole: bool = False
    """Whether every pixel is valid."""
    error: WindowError | None = None
    seconds: float = 0.0
    """Time one reader thread spent on it."""
    nbytes: int = 0
    """Bytes of pixels decoded."""


def check_cancel(cancel: threading.Event | None) -> None:
    """Stop here if the user asked to.

    Raises:
        JobCancelled: the event is set.
    """
    if cancel is not None and cancel.is_set():
        msg = "cancelled: nothing was written"
        raise JobCancelled(msg)


def read_ahead(
    scene: Scene,
    windows: Sequence[Window],
    *,
    readers: int,
    ahead: int,
    cancel: threading.Event | None = None,
    prepare: Callable[[Chip], Chip] | None = None,
) -> Generator[ReadChip]:
    """Read windows with threads and yield them in their order.

    Args:
        scene: read by several threads at once; it keeps a handle per thread.
        windows: in the order wanted.
        readers: threads, of a local scene.
        ahead: windows read or being read that were not yet yielded; bounds the memory, and the threads.
        cancel: set by the user to stop.
        prepare: done to every chip by the thread that read it, such as the start of its copy to the model's device.

    Yields:
        One ``ReadChip`` per window; a window that cannot be read carries its error.

    Raises:
        JobCancelled: ``cancel`` was set. However the generator ends, its threads are joined.
    """
    pending = iter(windows)
    queue: deque[Future[ReadChip]] = deque()
    threads = max(readers, min(ahead, REMOTE_READERS)) if scene.is_remote else readers
    with ThreadPoolExecutor(threads, thread_name_prefix="rsgeoseg-read", initializer=keep_gdal_env) as pool:
        try:
            queue.extend(_begin(pool, scene, window, prepare) for window in islice(pending, ahead))
            while queue:
                item = _wait(queue[0], cancel)
                queue.popleft()
                queue.extend(_begin(pool, scene, window, prepare) for window in islice(pending, 1))
                yield item
        finally:
            for future in queue:
                future.cancel()
            if queue and scene.is_remote:
                scene.close()  # nobody waits for the pauses between attempts


def _begin(
    pool: ThreadPoolExecutor, scene: Scene, window: Window, prepare: Callable[[Chip], Chip] | None
) -> Future[ReadChip]:
    """Have a thread read a window, unless it is known to be empty: that is known sooner than a thread begins."""
    start = time.perf_counter()
    if not scene.is_empty(window.read):
        return pool.submit(_read, scene, window, prepare)
    known: Future[ReadChip] = Future()
    known.set_result(ReadChip(window=window, chip=None, seconds=time.perf_counter() - start))
    return known


def _read(scene: Scene, window: Window, prepare: Callable[[Chip], Chip] | None) -> ReadChip:
    start = time.perf_counter()
    attempts = 1 if scene.is_remote else ATTEMPTS
    for attempt in range(1, attempts + 1):
        try:
            chip = scene.read(window.read)
        except WindowError as error:
            if attempt == attempts:
                return ReadChip(window=window, chip=None, error=error, seconds=time.perf_counter() - start)
            logger.debug("chip %d: attempt %d failed: %s", window.index, attempt, error)
        else:
            break
    whole = bool(chip.valid.all())
    seen = whole or bool(chip.valid.any())
    if seen and prepare is not None:
        chip = prepare(chip)
    return ReadChip(
        window=window,
        chip=chip if seen else None,
        whole=whole,
        seconds=time.perf_counter() - start,
        nbytes=chip.image.nbytes,
    )


def _wait(future: Future[ReadChip], cancel: threading.Event | None) -> ReadChip:
    """Wait in short steps: a blocked thread would not notice Ctrl-C everywhere, nor a cancel."""
    while True:
        check_cancel(cancel)
        try:
            return future.result(timeout=_POLL_SECONDS)
        except NotYet:
            if future.done():  # the read itself raised a TimeoutError
                raise
