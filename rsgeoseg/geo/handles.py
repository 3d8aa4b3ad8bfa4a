"""Open handles of a raster file, lent to one thread at a time: GDAL's data sets are not made for more."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rsgeoseg.geo import opening

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class HandlePool:
    """Open handles of one raster, each used by one thread at a time; as many as there are threads at once.

    Args:
        open_handle: opens one.
        serial: never more than one, because the codec reads from top to bottom.
        settings: GDAL's while opening and reading, as ``opening.gdal_env`` takes them.
    """

    def __init__(self, open_handle: Callable[[], Any], *, serial: bool, settings: dict[str, Any]) -> None:
        self._open, self._serial, self._settings = open_handle, serial, settings
        self._forget()

    def _forget(self) -> None:
        self._idle: list[Any] = []
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._pid = os.getpid()

    @contextmanager
    def handle(self) -> Iterator[Any]:
        """Lend a handle; one that fails is closed, since a decoder may be left in any state."""
        if self._pid != os.getpid():  # after a fork the parent's handles share its file offsets
            self._forget()
        if self._serial:
            with self._turn, self._lend() as handle:
                yield handle
        else:
            with self._lend() as handle:
                yield handle

    @contextmanager
    def _lend(self) -> Iterator[Any]:
        with opening.gdal_env(**self._settings):
            with self._lock:
                handle = self._idle.pop() if self._idle else None
            handle = handle or self._open()
            try:
                yield handle
            except BaseException:
                handle.close()
                raise
            with self._lock:
                self._idle.append(handle)

    def close(self) -> None:
        """Close the handles that nobody uses; a later read opens new ones."""
        with self._lock:
            idle, self._idle = self._idle, []
        for handle in idle:
            handle.close()
