"""The run folder ``OUT.rsgeoseg/``: parts of an unfinished run, so that it can go on after a crash.

``manifest.json`` says what run it is, ``lock`` is held while it goes on, the rest are parts (``PartFiles``). No time of
day decides anything, so clocks may jump.
"""

from __future__ import annotations

import json
import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from rsgeoseg.engine.folder_lock import FolderLock
from rsgeoseg.engine.identity import libraries
from rsgeoseg.engine.part_files import PartFiles
from rsgeoseg.engine.parts import FrameParts, PartEnd
from rsgeoseg.engine.table import Rows, Table
from rsgeoseg.errors import OutputError
from rsgeoseg.geo.commit import explained, staged, sweep_staged
from rsgeoseg.geo.record import record_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from rsgeoseg.engine.collect import Drawing
    from rsgeoseg.engine.table import Piece
    from rsgeoseg.geo.stitch import StitchedObject

logger = logging.getLogger(__name__)

PART_SECONDS = 5.0
"""A part ends after so long: the most work that a crash can cost."""
_FORMAT = 1
"""Of the files in the folder."""
_MANIFEST, _WRITING = "manifest.json", "writing"
_SHOWN = 6
"""Differences that are named one by one."""


def run_folder(output: Path) -> Path:
    """Return the folder of an output's unfinished run."""
    return output.with_name(output.name + ".rsgeoseg")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the identity of the run that a folder belongs to; None where there is none, or none that can be read."""
    found = _read_manifest(folder)
    return None if found is None else found["identity"]


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(found, dict) and isinstance(found.get("identity"), dict)
    return found if whole else None


def differences(then: Any, now: Any, name: str = "") -> list[str]:
    """Name what differs between two identities: ``options.nms: 0.5 then, 0.7 now``."""
    if isinstance(then, dict) and isinstance(now, dict):
        keys = [*then, *(key for key in now if key not in then)]
        return [
            line
            for key in keys
            for line in differences(then.get(key), now.get(key), f"{name}.{key}" if name else str(key))
        ]
    return [] if then == now else [f"{name}: {_shown(then)} then, {_shown(now)} now"]


def in_words(different: list[str]) -> str:
    """Put differences into one line."""
    more = len(different) - _SHOWN
    return "; ".join(different[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def clear_remains(output: Path) -> None:
    """Remove what is left of a run that finished and was killed while it cleaned up."""
    folder = run_folder(output)
    if folder.is_dir() and not (folder / _MANIFEST).exists():
        lock = FolderLock(folder)
        with suppress(OutputError):
            lock.take(output)
            _clear(folder, lock)


def _clear(folder: Path, lock: FolderLock) -> None:
    """Remove a run's files, the lock last; what somebody else put there stays."""
    with suppress(OSError):
        (folder / _MANIFEST).unlink(missing_ok=True)  # first: without it nothing is left to resume
        (folder / _WRITING).unlink(missing_ok=True)
    PartFiles(folder).clear()
    lock.remove()


class RunFolder(FrameParts):
    """Keeps parts on disk. Open it with ``with``; a run that ends well calls ``remove``.

    Args:
        output: the file that the run will write.
        identity: all that decides the result, plain JSON values.
        drawing: how objects become rows.
        resume: go on with what is there.
        overwrite: throw away what is there, where it is not resumed.
        keep_failed: count parts in which chips failed; else they are run again.

    Raises:
        OutputError: another run works on this output; an unfinished run is there and neither ``resume`` nor
            ``overwrite`` is set; it was another run; or the folder cannot be written.
    """

    def __init__(
        self,
        output: Path,
        identity: Mapping[str, Any],
        drawing: Drawing,
        *,
        resume: bool,
        overwrite: bool,
        keep_failed: bool = True,
    ) -> None:
        super().__init__(drawing)
        self._output, self._identity = output, json.loads(json.dumps(identity))
        self._folder = run_folder(output)
        self._resume, self._overwrite, self._keep_failed = resume, overwrite, keep_failed
        self._lock = FolderLock(self._folder)
        self._files = PartFiles(self._folder)
        self._replaces = False
        self._session = 1
        self._start = self._begun = time.monotonic()
        self._active = False

    def __enter__(self) -> Self:
        self._lock.take(self._output)
        try:
            self._settle()
        except BaseException:
            if self._files.entries or _read_manifest(self._folder) is not None:
                self._lock.release()
            else:
                self.remove()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._active:
            if not self._files.entries:
                self.remove()
            elif kind is not None:
                text = "%d chips of %s are kept: --resume goes on from there"
                logger.warning(text, self._files.chips, self._output.name)
        self._lock.release()

    def remove(self) -> None:
        """Forget everything: the result is written, or nothing was done."""
        self._active = False
        _clear(self._folder, self._lock)

    def known(self) -> Iterator[PartEnd]:
        """Parts on disk that are whole; the others are forgotten, to be run again."""
        good = []
        seen: set[int] = set()
        for entry in self._files.entries:
            end = self._files.read_end(entry)
            windows = set() if end is None else set(end.remainder.windows.tolist())
            if end is None or seen & windows:
                text = "%s: part %d was cut short or altered; its %d chips are run again"
                logger.warning(text, self._folder.name, entry.part, entry.chips)
            elif end.tally.failed and not self._keep_failed:
                text = "%s: %d chips of part %d failed; its %d chips are run again"
                logger.warning(text, self._folder.name, len(end.tally.failed), entry.part, entry.chips)
            else:
                seen |= windows
                good.append(entry)
                yield end
        self._files.keep_only(good)

    @property
    def resumed_seconds(self) -> float:
        """Time that earlier sessions took for the parts they left."""
        sessions: dict[int, float] = {}
        for entry in self._files.entries:
            if entry.session < self._session:
                sessions[entry.session] = max(entry.seconds, sessions.get(entry.session, 0.0))
        return sum(sessions.values())

    def begin(self) -> Callable[[list[StitchedObject]], None]:
        """Start the clock of a part."""
        self._begun = time.monotonic()
        return super().begin()

    def due(self) -> bool:
        """Whether the part has taken long enough."""
        return time.monotonic() - self._begun >= PART_SECONDS

    def end(self, end: PartEnd) -> None:
        """Keep the part begun last; the short end of a run stays in memory."""
        if self.due():
            super().end(end)
        else:
            FrameParts.keep(self, self._finish_part(end), end)

    def keep(self, rows: Rows, end: PartEnd) -> None:
        """Write a part and note it in the journal.

        Raises:
            OutputError: the disk is full or gone; parts written before stay.
        """
        self._add(rows.to_bytes(), end.to_bytes(), end)

    def keep_encoded(self, drawn: bytes, rest: bytes) -> PartEnd:
        """Write a part that another process worked on, as it came.

        Raises:
            OutputError: as ``keep``.
        """
        end = PartEnd.from_bytes(rest)
        self._add(drawn, rest, end)
        return end

    def _add(self, drawn: bytes, rest: bytes, end: PartEnd) -> None:
        self._files.add(drawn, rest, end, session=self._session, seconds=time.monotonic() - self._start)

    def table(self) -> Table:
        """Return the rows of all parts in one order; they stay on disk until they are read.

        Raises:
            OutputError: the output appeared while the run went on, or a part was lost.
        """
        self._check_output()
        with explained(self._folder):
            (self._folder / _WRITING).touch()
        pieces: list[Piece] = [*self._files.rows(self.drawing.empty.crs), *self._pieces, self._across.finish()]
        return Table(pieces, self.drawing.empty)

    def _settle(self) -> None:
        """Decide what becomes of an earlier run's parts."""
        for path in (self._output, record_path(self._output)):
            sweep_staged(path)
        self._files.load()
        manifest = _read_manifest(self._folder)
        if manifest is not None and self._resume:
            self._go_on(manifest)
        elif self._files.entries and not self._overwrite:
            raise OutputError(self._refusal(manifest))
        else:
            self._start_anew()
        self._active = True

    def _go_on(self, manifest: dict[str, Any]) -> None:
        """Take an earlier run's parts."""
        now = {"format": _FORMAT, **self._identity}
        different = differences({"format": manifest.get("format"), **manifest["identity"]}, now)
        if different:
            msg = (
                f"cannot resume {self._output}: {in_words(different)}; give the same again, or start anew with"
                " --overwrite in place of --resume"
            )
            raise OutputError(msg)
        self._replaces = bool(manifest.get("replaces"))
        self._check_output()
        other = differences(manifest.get("libraries"), libraries())
        if other and self._files.entries:
            logger.warning("%s: %s: results may differ in the last digits", self._output.name, in_words(other))
        self._session += max((entry.session for entry in self._files.entries), default=0)
        self._files.keep_only(self._files.entries)

    def _start_anew(self) -> None:
        """Remove what is there; the old parts stop to count before the folder gets its new meaning."""
        self._replaces = self._overwrite or self._output.exists()
        self._files.keep_only([])
        (self._folder / _WRITING).unlink(missing_ok=True)
        manifest = {
            "format": _FORMAT,
            "replaces": self._replaces,
            "libraries": libraries(),
            "identity": self._identity,
        }
        text = json.dumps(manifest, indent=1)
        with staged(self._folder / _MANIFEST, overwrite=True, need=len(text)) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def _refusal(self, manifest: dict[str, Any] | None) -> str:
        if manifest is None:
            return (
                f"{self._folder} holds {self._files.chips} chips of a run, but its {_MANIFEST} cannot be read, so that"
                " nobody knows which run: --overwrite starts anew"
            )
        return (
            f"{self._folder} holds an unfinished run ({self._files.chips} chips done): --resume goes on with it,"
            " --overwrite starts anew"
        )

    def _check_output(self) -> None:
        """Refuse to replace a file that the user did not say may be, unless this run has been writing it.

        Raises:
            OutputError: it would be.
        """
        if self._output.exists() and not self._replaces and not (self._folder / _WRITING).exists():
            msg = f"{self._output} appeared after the run to it began: move it away, then --resume goes on"
            raise OutputError(msg)
