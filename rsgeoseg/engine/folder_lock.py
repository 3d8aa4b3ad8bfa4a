"""The lock in a folder that keeps an unfinished run: one run at a time works on an output."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from rsgeoseg.errors import OutputError
from rsgeoseg.geo.commit import explained, make_folder

if TYPE_CHECKING:
    from pathlib import Path

_LOCK = "lock"
_TRIES = 10
"""To take the lock; a run that ends removes it, with its folder, between any two steps of taking it."""


class FolderLock:
    """Held while a run goes on; the operating system lets go of it when the process dies, however it dies.

    Args:
        folder: is made when the lock is taken.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / _LOCK
        self._lock = FileLock(self._path, thread_local=False)  # a run may be closed by another thread

    def take(self, output: Path) -> None:
        """Make the folder and take it.

        Raises:
            OutputError: another run holds it, or there can be no lock here.
        """
        for _ in range(_TRIES):
            with explained(self._folder):
                if self._try():
                    return
        msg = f"another run is writing {output}: wait for it, or choose another name"
        raise OutputError(msg)

    def _try(self) -> bool:
        """Take it if it is there to be taken, not just being removed by a run that ends."""
        try:
            make_folder(self._folder)
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        except (FileExistsError, FileNotFoundError):
            if self._folder.is_file():
                raise
            return False
        if self._path.exists():
            return True
        self._lock.release()
        return False

    def release(self) -> None:
        """Let go of it."""
        self._lock.release()

    def remove(self) -> None:
        """Remove it and the folder, which is empty but for it, unless another run has it by then."""
        try:
            self._path.unlink(missing_ok=True)  # still held: whoever takes it later takes a new one
            self._lock.release()
        except PermissionError:  # Windows removes no open file
            self._lock.release()
            with suppress(OSError):
                self._path.unlink()
        with suppress(OSError):
            self._folder.rmdir()
