"""The user's cache of published weights: one folder, each file fetched once, checked before use."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import time
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import IO, TYPE_CHECKING

from rsgeoseg.errors import WeightsError
from rsgeoseg.network import OFFLINE, is_offline
from rsgeoseg.weights.download import Progress, download, partial_path, sha256_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rsgeoseg.weights.published import PublishedCard

FOLDER = "RSGEOSEG_CACHE"
"""Environment variable: the folder of the cache."""
MIRROR = "RSGEOSEG_MIRROR"
"""Environment variable: address of a folder that holds the files under their names."""

_logger = logging.getLogger(__name__)
_POLL_S = 0.2
_SPARE = 16_000_000  # bytes that a download leaves free


class CacheState(StrEnum):
    """Whether a published file is here."""

    cached = "cached"
    partial = "partial"
    absent = "absent"


def cache_folder() -> Path:
    """Return the cache's folder, which may not exist yet.

    ``RSGEOSEG_CACHE``, else ``rsgeoseg`` where the platform keeps caches: ``XDG_CACHE_HOME`` or ``~/.cache`` on Linux,
    ``~/Library/Caches`` on macOS, ``%LOCALAPPDATA%`` on Windows.
    """
    chosen = os.environ.get(FOLDER)
    if chosen:
        return Path(chosen).expanduser()
    try:
        return _platform_caches() / "rsgeoseg"
    except RuntimeError as error:  # a container's user without a home
        msg = f"this user has no home folder; choose a folder for the cache with {FOLDER}"
        raise WeightsError(msg) from error


def cached_path(card: PublishedCard) -> Path:
    """Return where the file is once it is here."""
    return cache_folder() / card.file


def state(card: PublishedCard) -> CacheState:
    """Tell whether the file is here, by name and size; ``verify`` looks inside."""
    path = cached_path(card)
    if path.is_file() and path.stat().st_size == card.bytes:
        return CacheState.cached
    return CacheState.partial if partial_path(path).is_file() else CacheState.absent


def fetch(
    card: PublishedCard, *, mirror: str | None = None, offline: bool | None = None, progress: Progress | None = None
) -> Path:
    """Return the path of a published file, fetched where it is not here yet, its digest checked.

    Args:
        card: which file.
        mirror: address of a folder that holds the file under its name; None = ``RSGEOSEG_MIRROR``, else the authors'.
        offline: whether the network is off limits; None = ``RSGEOSEG_OFFLINE``.
        progress: told (bytes here, bytes in all) while the file is fetched.

    Raises:
        WeightsError: the file is damaged, or cannot be fetched, or the cache cannot be written.
    """
    path = cached_path(card)
    if path.is_file():
        verify(card, again=False)
        return path
    if is_offline() if offline is None else offline:
        msg = (
            f"{card.id} is not in the cache and the network is switched off (--offline or {OFFLINE}): put {card.file} "
            f"from {card.url} into {path.parent}, or give the path of a local file"
        )
        raise WeightsError(msg)
    mirror = mirror or os.environ.get(MIRROR)
    url = f"{mirror.rstrip('/')}/{card.file}" if mirror else card.url
    with _alone(path):
        if not path.is_file():  # or another process has fetched it meanwhile
            _refuse_lack_of_space(card, path)
            if progress is None:  # nobody should wonder for minutes why nothing happens
                _logger.warning("fetching %s (%.0f MB) from %s into %s", card.id, card.bytes / 1e6, url, path.parent)
            download(url, path, size=card.bytes, sha256=card.sha256, progress=progress)
            _write_stamp(path, _stamp(path, card.sha256))
    verify(card, again=False)
    return path


def verify(card: PublishedCard, *, again: bool = True) -> None:
    """Check that the cached file is the published one.

    A file that passed leaves a stamp beside it (digest, size, time of change): until one of them differs, the
    gigabytes need not be read again.

    Args:
        card: which file.
        again: read it whole even though its stamp fits.

    Raises:
        WeightsError: it is not here, or it is damaged or another file.
    """
    path = cached_path(card)
    if not path.is_file():
        msg = f"{card.id}: {path} is not here; fetch it with `rsgeoseg weights fetch {card.id}`"
        raise WeightsError(msg)
    stamp = _stamp(path, card.sha256)
    if not again and _has_stamp(path, stamp):
        return
    try:
        found = sha256_of(path)
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror})"
        raise WeightsError(msg) from error
    if found != card.sha256:
        msg = (
            f"{path}: sha256 is {found[:12]}..., expected {card.sha256[:12]}...; it is damaged or another file: remove "
            f"it, then `rsgeoseg weights fetch {card.id}`"
        )
        raise WeightsError(msg)
    _write_stamp(path, stamp)


def _platform_caches() -> Path:
    if sys.platform == "win32":
        folder = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        folder = Path.home() / "Library" / "Caches"
    else:
        folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder)


def _refuse_lack_of_space(card: PublishedCard, path: Path) -> None:
    partial = partial_path(path)
    missing = card.bytes - (partial.stat().st_size if partial.is_file() else 0)
    free = shutil.disk_usage(path.parent).free
    if free < missing + _SPARE:
        msg = (
            f"{path.parent}: no space for {card.file}: {missing / 1e6:,.0f} MB are missing, {free / 1e6:,.0f} MB are "
            f"free; make room, or choose another folder with {FOLDER}"
        )
        raise WeightsError(msg)


def _stamp_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.verified")


def _stamp(path: Path, sha256: str) -> dict[str, int | str]:
    status = path.stat()
    return {"sha256": sha256, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def _has_stamp(path: Path, stamp: dict[str, int | str]) -> bool:
    try:
        return bool(json.loads(_stamp_path(path).read_text()) == stamp)
    except (OSError, ValueError):
        return False


def _write_stamp(path: Path, stamp: dict[str, int | str]) -> None:
    try:
        _stamp_path(path).write_text(json.dumps(stamp))
    except OSError as error:  # a cache that one may only read, filled by someone else: it is read whole each time
        _logger.debug("no stamp beside %s: %s", path, error)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process at a time fetch a file; others wait, and say so.

    The operating system holds the lock and lets go of it when its process ends, however that ends.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f"{path.name}.lock").open("a+b")
    except OSError as error:
        msg = f"{path.parent}: cannot be written ({error.strerror}); choose another folder with {FOLDER}"
        raise WeightsError(msg) from error
    with lock:
        told = False
        while not _lock(lock):
            if not told:
                _logger.warning("another process is fetching %s; waiting for it", path.name)
                told = True
            time.sleep(_POLL_S)
        try:
            yield
        finally:  # closing is not enough: a forked child may hold the same open file
            _unlock(lock)


if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[bytes]) -> bool:
        file.seek(0)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError:  # another process has it
            return False
        return True

    def _unlock(file: IO[bytes]) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another process has it
            return False
        except OSError as error:
            msg = f"{file.name}: cannot be locked ({error.strerror}); choose a folder on a local disk with {FOLDER}"
            raise WeightsError(msg) from error
        return True

    def _unlock(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)
