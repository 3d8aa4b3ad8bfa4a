"""Bytes of remote files through GDAL's virtual file system, which rasterio uses but does not offer.

What a server answers (status, size, ETag, the first bytes) must be asked with the same credentials, proxies and
certificates as the pixels, so by the same library: the functions are called in the copy of GDAL that rasterio loaded.
Settings hold as rasterio has them: call within ``rasterio.Env``.

Source: GDAL C API, cpl_vsi.h and cpl_error.h, GDAL 3.6 to 3.12.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rasterio
import rasterio._base
from rasterio.errors import RasterioIOError

if TYPE_CHECKING:
    from collections.abc import Iterator

_SEEK_SET, _SEEK_END = 0, 2
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "CPLErrorReset": (None, []),
    "CPLGetLastErrorMsg": (ctypes.c_char_p, []),
    "CPLPopErrorHandler": (None, []),
    "CPLPushErrorHandler": (None, [ctypes.c_void_p]),
    "CSLDestroy": (None, [ctypes.c_void_p]),
    "VSICurlPartialClearCache": (None, [ctypes.c_char_p]),
    "VSIErrorReset": (None, []),
    "VSIFCloseL": (ctypes.c_int, [ctypes.c_void_p]),
    "VSIFOpenExL": (ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int]),
    "VSIFReadL": (ctypes.c_size_t, [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]),
    "VSIFSeekL": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int]),
    "VSIFTellL": (ctypes.c_uint64, [ctypes.c_void_p]),
    "VSIGetFileMetadata": (ctypes.POINTER(ctypes.c_char_p), [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p]),
    "VSIGetLastErrorMsg": (ctypes.c_char_p, []),
}


class VsiError(RasterioIOError):  # type: ignore[misc]
    """A file could not be opened or read; the text is GDAL's, and may hold the whole address."""


class VsiFile:
    """A file open for reading. Make one with ``open_file``."""

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer

    def size(self) -> int:
        """Return the number of bytes, as the server gives it."""
        gdal = _gdal()
        gdal.VSIFSeekL(self._pointer, 0, _SEEK_END)
        return int(gdal.VSIFTellL(self._pointer))

    def read(self, start: int, count: int) -> bytes:
        """Return ``count`` bytes from ``start``, fewer where the file ends or the reading fails.

        Raises:
            VsiError: not a single byte came, and GDAL says why.
        """
        gdal = _gdal()
        gdal.VSIFSeekL(self._pointer, start, _SEEK_SET)
        buffer = ctypes.create_string_buffer(max(count, 1))
        got = int(gdal.VSIFReadL(buffer, 1, count, self._pointer))
        if got == 0 and gdal.CPLGetLastErrorMsg():
            raise VsiError(_text(gdal.CPLGetLastErrorMsg()))
        return buffer.raw[:got]


@contextmanager
def open_file(path: str) -> Iterator[VsiFile]:
    """Open a file for reading.

    Args:
        path: as GDAL has it, e.g. ``/vsicurl/https://host/name.tif``.

    Raises:
        VsiError: it cannot be opened; the text says why.
    """
    gdal = _gdal()
    with _quiet():
        gdal.VSIErrorReset()
        pointer = gdal.VSIFOpenExL(path.encode(), b"rb", 1)
        if not pointer:
            raise VsiError(_text(gdal.VSIGetLastErrorMsg()) or _text(gdal.CPLGetLastErrorMsg()) or "no answer")
        try:
            yield VsiFile(pointer)
        finally:
            gdal.VSIFCloseL(pointer)


def headers(path: str) -> dict[str, str]:
    """Return the headers that the server sends with a file, by name in lower case; none where it sends none."""
    gdal = _gdal()
    found: dict[str, str] = {}
    with _quiet():
        lines = gdal.VSIGetFileMetadata(path.encode(), b"HEADERS", None)
        try:
            index = 0
            while lines and lines[index]:
                name, _, value = lines[index].decode(errors="replace").partition("=")
                found[name.strip().lower()] = value.strip()
                index += 1
        finally:
            gdal.CSLDestroy(lines)
    return found


def forget(path: str) -> None:
    """Drop what GDAL remembers of a remote file: a failed range is remembered, and would fail for ever."""
    _gdal().VSICurlPartialClearCache(path.encode())


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep GDAL's messages out of the log of the program: they hold whole addresses, with their secrets."""
    gdal = _gdal()
    gdal.CPLPushErrorHandler(ctypes.cast(gdal.CPLQuietErrorHandler, ctypes.c_void_p))
    gdal.CPLErrorReset()
    try:
        yield
    finally:
        gdal.CPLPopErrorHandler()


def _text(message: bytes | None) -> str:
    return " ".join((message or b"").decode(errors="replace").split())


@cache
def _gdal() -> ctypes.CDLL:
    """Find rasterio's copy of GDAL.

    Where symbols are looked up through what a library depends on (Linux, macOS), rasterio's own module leads to it;
    elsewhere the library itself is named: in the folder of the wheel, or on the path.
    """
    wheel = Path(rasterio.__file__).resolve().parent.parent / "rasterio.libs"
    names = [rasterio._base.__file__, *map(str, wheel.glob("*gdal*")), ctypes.util.find_library("gdal")]  # noqa: SLF001
    for name in filter(None, names):
        try:
            library = ctypes.CDLL(name)
            for function, (result, arguments) in _SIGNATURES.items():
                entry = getattr(library, function)
                entry.restype, entry.argtypes = result, arguments
        except (OSError, AttributeError):
            continue
        return library
    msg = "this build of rasterio does not give access to GDAL's files: download the file"
    raise VsiError(msg)
