"""Memory of arrays that is used again: touching fresh memory costs more than copying pixels into it.

The system hands out memory page by page on first touch, and takes large arrays back when they are freed. A chip of
1,024 x 1,024 pixels is about a thousand pages; at a microsecond or more each, that is as long as decoding it.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections import deque
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

IDLE_BYTES = 64 << 20
"""Memory kept for later: what sixteen chips of 1,024 x 1,024 RGB pixels take."""
_LEAST_BYTES = 64 << 10
_SLAB_BYTES = 16 << 20


class ArrayPool:
    """Gives arrays whose memory comes back when the last reference to them, or to a view of them, is gone.

    Args:
        idle_bytes: memory to keep of arrays that are gone; what has waited longest is freed first.
    """

    def __init__(self, idle_bytes: int = IDLE_BYTES) -> None:
        self._limit = idle_bytes
        self._idle: list[memoryview] = []
        self._grown: dict[int, int] = {}
        # An array may go at any moment, also while this lock is held, so that its memory waits here for the next call.
        self._returned: deque[memoryview] = deque()
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of memory that wait to be used."""
        with self._lock:
            self._collect()
            return sum(map(len, self._idle))

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return an array of any values; the caller's own."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size < _LEAST_BYTES:
            return np.empty(shape, dtype)
        memory = self._take(size)
        flat = np.frombuffer(memory, dtype)
        # Every view of the array keeps this one: NumPy looks no further than the first that owns no memory.
        weakref.finalize(flat, self._returned.append, memory).atexit = False
        return flat.reshape(shape)

    def clear(self) -> None:
        """Free what waits."""
        with self._lock:
            self._returned.clear()
            self._idle.clear()
            self._grown.clear()

    def _take(self, size: int) -> memoryview:
        with self._lock:
            self._collect()
            for place in range(len(self._idle) - 1, -1, -1):  # the last one used is the likeliest to be in a cache
                if len(self._idle[place]) == size:
                    return self._idle.pop(place)
            # Each time that a size runs out, twice as many at once: NumPy asks the system for large pages where an
            # array is large, so that a page is touched per 2 MB; who needs little takes little.
            count = self._grown[size] = max(1, min(2 * self._grown.get(size, 0), _SLAB_BYTES // size))
            slab = np.empty(count * size, np.uint8).data
            first, *others = (slab[i * size : (i + 1) * size] for i in range(count))
            self._idle += others
            return first

    def _collect(self) -> None:
        while self._returned:
            self._idle.append(self._returned.popleft())
        held = sum(map(len, self._idle))
        while held > self._limit:
            held -= len(self._idle.pop(0))


@lru_cache(maxsize=8)
def all_true(shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the validity of pixels that are all valid: one array for all chips of a size, not to be written to."""
    valid = np.ones(shape, np.bool_)
    valid.flags.writeable = False
    return valid


SHARED = ArrayPool()
"""The pool of all scenes of this process, so that the next scene works in the memory of the one before."""
