"""Never a half-written file at the final name: write in a hidden folder beside it, flush, read back, rename.

The hidden folder lies in the output's own folder, so that the rename stays on one disk and is atomic. It also catches
the files that writers put beside theirs. It is removed on success, on failure and on Ctrl-C; a killed process leaves
it behind under its own name and nothing under the final one.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sqlite3
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
from rasterio._err import CPLE_BaseError  # rasterio.shutil lets GDAL's own errors through, which have no public name
from rasterio.errors import RasterioError

from rsgeoseg.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WRITE_ERRORS = (OSError, RuntimeError, RasterioError, CPLE_BaseError, sqlite3.Error, pa.ArrowException)
"""What GDAL (through pyogrio and rasterio), Arrow and the file system raise when a file cannot be written."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_TEXTS = ("no space left", "disk is full", "disk full", "file too large", "quota exceeded")
_STEM = 60
"""Letters of a file's name that go into the name of its hidden folder, which has a limit of its own."""
_LEAST_FREE = 64 * 1024
"""Bytes that must be free before the work starts: room for the smallest result and its record."""

_HARDLY_FREE = 1 << 20
"""Where a write failed with less than so many bytes free, the disk is full."""


@contextmanager
def staged(
    final: Path, *, overwrite: bool, parts: Sequence[str] = (), leftovers: Sequence[str] = (), need: int = 0
) -> Iterator[Path]:
    """Give a path to write to; when the block ends well, what was written there is moved to the final name.

    The block should also read the file back. Whatever goes wrong, an existing file at the final name stays as it was.
    Where a format has several files, each is renamed in turn, the main one last, and all are put back on failure.

    Args:
        final: the final path.
        overwrite: whether an existing file may be replaced.
        parts: extensions of files that belong to the result beside the main one.
        leftovers: endings of files of an earlier result that must not stay beside the new one.
        need: about how many bytes the file takes, for the message about a full disk.

    Yields:
        A path with the final path's name, in a new folder.

    Raises:
        OutputError: the file cannot be written; one line.
    """
    folder: Path | None = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{final.name[:_STEM]}.", suffix=".part", dir=final.parent))
        yield folder / final.name
        _publish(folder, final, overwrite=overwrite, parts=parts, leftovers=leftovers)
    except WRITE_ERRORS as error:
        raise OutputError(_explain(error, final, need)) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def sweep_staged(final: Path) -> None:
    """Remove the hidden folders that killed writers of a file left behind.

    Call it only where nobody else can be writing that file.
    """
    if len(final.name) > _STEM:  # another file's name may begin alike
        return
    ours = re.compile(rf"\.{re.escape(final.name)}\.[a-z0-9_]{{8}}\.part")  # as ``mkdtemp`` names them
    with suppress(OSError):
        for path in list(final.parent.iterdir()):
            if ours.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)


def make_folder(path: Path) -> None:
    """Make a folder, where there is none, that a power cut does not take away again.

    Raises:
        OSError: it cannot be made.
    """
    path.mkdir(exist_ok=True)
    with suppress(OSError):  # as in ``_publish``
        _flush(path.parent)


@contextmanager
def explained(final: Path, need: int = 0) -> Iterator[None]:
    """Put what goes wrong with a file into one line.

    Args:
        final: the file.
        need: about how many bytes it takes.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        yield
    except WRITE_ERRORS as error:
        raise OutputError(_explain(error, final, need)) from error


def check_target(final: Path, *, overwrite: bool, parts: Sequence[str] = (), need: int = 0) -> None:
    """Check that a file can be written, before the work for it starts.

    Raises:
        OutputError: it is a folder or a device, exists and may not be replaced, its folder is missing or cannot be
            written to, or its disk is full.
    """
    try:
        _check_names(final, overwrite=overwrite, parts=parts)
        # Permission bits do not tell about read-only disks, quotas or root: only trying does.
        Path(tempfile.mkdtemp(prefix=f".{final.name[:_STEM]}.", suffix=".part", dir=final.parent)).rmdir()
        free = shutil.disk_usage(final.parent).free
    except OSError as error:
        raise OutputError(_explain(error, final, max(need, _LEAST_FREE))) from error
    if free < max(need, _LEAST_FREE):
        raise OutputError(_full_message(final, max(need, _LEAST_FREE), free))


def _check_names(final: Path, *, overwrite: bool, parts: Sequence[str]) -> None:
    """Check what is already there."""
    if final.is_dir():
        msg = f"cannot write {final}: it is a folder; give a file name"
        raise OutputError(msg)
    for path in (final, *(final.with_suffix(part) for part in parts)):
        if path.exists() and not path.is_file():
            msg = f"cannot write {final}: {path} is not a regular file; choose another name"
            raise OutputError(msg)
        if path.exists() and not overwrite:
            msg = f"{path} exists; choose another name or use --overwrite"
            raise OutputError(msg)
    if not final.parent.is_dir():
        msg = f"cannot write {final}: the folder {final.parent} does not exist; create it or choose another"
        raise OutputError(msg)


def _publish(folder: Path, final: Path, *, overwrite: bool, parts: Sequence[str], leftovers: Sequence[str]) -> None:
    """Flush the staged files and rename them, the main one last; put everything back if that fails."""
    staged_parts = [part for part in parts if (folder / final.name).with_suffix(part).exists()]
    for path in (folder / final.name, *((folder / final.name).with_suffix(part) for part in staged_parts)):
        _flush(path)
    if final.exists() and not overwrite:
        msg = f"{final} appeared while it was being written; choose another name or use --overwrite"
        raise OutputError(msg)
    aside = folder / "aside"
    aside.mkdir()
    stale = [final.with_suffix(part) for part in parts]
    stale += [final.with_name(final.name + end) for end in leftovers]
    stale += [final.with_suffix(end) for end in leftovers if end.startswith(".") and parts]
    moved: list[Path] = []
    placed: list[Path] = []
    try:
        for path in dict.fromkeys(stale):
            if path.is_file():
                path.replace(aside / path.name)
                moved.append(path)
        for part in staged_parts:
            (folder / final.name).with_suffix(part).replace(final.with_suffix(part))
            placed.append(final.with_suffix(part))
        (folder / final.name).replace(final)
    except BaseException:
        for path in placed:
            path.unlink(missing_ok=True)
        for path in moved:
            (aside / path.name).replace(path)
        raise
    with suppress(OSError):  # some network file systems cannot flush a folder; the files themselves are safe
        _flush(final.parent)


def _flush(path: Path) -> None:
    """Have the operating system write a file or folder to its disk."""
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows flushes what it may write
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _explain(error: BaseException, final: Path, need: int) -> str:
    """Put a failed write into one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    number = error.errno if isinstance(error, OSError) else None
    try:
        free = shutil.disk_usage(final.parent).free
    except OSError:
        free = None
    full = number in _FULL or any(sign in text.lower() for sign in _FULL_TEXTS)
    if full or (free is not None and free < max(need, _LEAST_FREE)):
        return _full_message(final, need, free)
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"cannot write {final}: the folder {final.parent} is not writable; choose another"
    if free is not None and free < _HARDLY_FREE:  # not all of GDAL's drivers say why
        return _full_message(final, need, free)
    return f"cannot write {final}: {text[:300]}; choose another folder or format"


def _full_message(final: Path, need: int, free: int | None) -> str:
    """Say that a disk is full."""
    have = "" if free is None else f", {free:,} free"
    return (
        f"cannot write {final}: disk full (about {need:,} bytes needed{have}); "
        "make room, lift the limit on file sizes, or choose another folder"
    )
