"""Memory: of the maps that a model makes, and of the objects that it is made of."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # glibc's malloc.h
_LARGEST_KEPT = 256 * 1024**2
"""Bytes; the largest map of the bundled models, of a chip of 1,024², has 100 MB."""
_OWN_SETTINGS = ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


def keep_freed_memory() -> bool:
    """Let this process use freed memory again for the next map, instead of giving it to the system and asking anew.

    By default glibc maps blocks of more than 32 MB for each request, and the system fills every page of them with
    zeros: a sixth of the time of the bundled models on a CPU, at the same peak. Threads that begin later share the
    first one's memory: in heaps of their own, blocks of more than 64 MB would be mapped nevertheless. Nothing is done
    where another libc is at work, or where the environment says how memory is handled (``MALLOC_TRIM_THRESHOLD_`` and
    the like).

    Returns:
        Whether it was done.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc" or any(x in os.environ for x in _OWN_SETTINGS):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_MMAP_THRESHOLD, _LARGEST_KEPT), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_ARENA_MAX, 1))
    done = [bool(mallopt(name, value)) for name, value in settings]
    return all(done)


@contextmanager
def no_collection() -> Iterator[None]:
    """Look for no garbage until the block ends.

    Libraries that load make a million objects that stay. Python looks through them for garbage again and again, which
    is a sixth of the time to load a model.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def leave_objects() -> None:
    """Look for no garbage when this process ends: taking a model apart takes a second, and its memory goes anyway."""
    gc.freeze()
