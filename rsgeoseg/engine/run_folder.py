"""The run folder ``OUT.rsgeoseg/``: parts of an unfinished run, so that it can go on after a crash.

``manifest.json`` says what run it is; ``journal.jsonl`` has one line for each part, added after the part's two files
were flushed and renamed; a torn last line is a part that does not count. Every file is checked by its sha256 before it
is used, and what is damaged is run again. No time of day decides anything, so clocks may jump.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow.parquet as pq
import shapely
from filelock import FileLock, Timeout
from geopandas import GeoDataFrame

from rsgeoseg.engine.parts import FrameParts, PartEnd
from rsgeoseg.engine.table import KEY_COLUMNS, ROW_GROUP, Rows, Table
from rsgeoseg.errors import OutputError
from rsgeoseg.geo.commit import staged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray
    from pyproj import CRS

    from rsgeoseg.engine.collect import Drawing
    from rsgeoseg.engine.table import Piece
    from rsgeoseg.geo.stitch import StitchedObject

logger = logging.getLogger(__name__)

PART_SECONDS = 5.0
"""A part ends after so long: the most work that a crash can cost."""
_MANIFEST, _JOURNAL, _LOCK = "manifest.json", "journal.jsonl", "lock"


def run_folder(output: Path) -> Path:
    """Return the folder of an output's unfinished run."""
    return output.with_name(output.name + ".rsgeoseg")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return what run a folder belongs to; None where there is none, or none that can be read."""
    try:
        found = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


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


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


@dataclass(frozen=True, slots=True)
class _Entry:
    """One line of the journal."""

    part: int
    chips: int
    vertices: int
    rows_sha256: str
    end_sha256: str


class RunFolder(FrameParts):
    """Keeps parts on disk. Open it with ``with``; a run that ends well calls ``remove``.

    Args:
        output: the file that the run will write.
        identity: all that decides the result, plain JSON values.
        drawing: how objects become rows.
        resume: go on with what is there.
        overwrite: throw away what is there.

    Raises:
        OutputError: another run works on this output; an unfinished run is there and neither ``resume`` nor
            ``overwrite`` is set; it was another run; or the folder cannot be written.
    """

    def __init__(
        self, output: Path, identity: Mapping[str, Any], drawing: Drawing, *, resume: bool, overwrite: bool
    ) -> None:
        super().__init__(drawing)
        self._output, self._identity = output, json.loads(json.dumps(identity))
        self._folder = run_folder(output)
        self._resume, self._overwrite = resume, overwrite
        self._lock = FileLock(self._folder / _LOCK)
        self._entries: list[_Entry] = []
        self._begun = 0.0
        self._active = False

    def __enter__(self) -> Self:
        with self._explained():
            self._folder.mkdir(exist_ok=True)
            self._take_lock()
            try:
                self._settle()
            except BaseException:
                self._lock.release()
                raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._active:
            if not self._entries:
                self.remove()
            elif kind is not None:
                chips = sum(entry.chips for entry in self._entries)
                logger.warning("%d chips of %s are kept: --resume goes on from there", chips, self._output.name)
        self._lock.release()

    def remove(self) -> None:
        """Forget everything: the result is written, or nothing was done."""
        self._active = False
        self._lock.release()
        shutil.rmtree(self._folder, ignore_errors=True)

    def known(self) -> Iterator[PartEnd]:
        """Parts on disk that are whole; the others are forgotten, to be run again."""
        good = []
        seen: set[int] = set()
        for entry in self._entries:
            end = self._read(entry)
            windows = set() if end is None else set(end.remainder.windows.tolist())
            if end is None or seen & windows:
                text = "%s: part %d was cut short or altered; its %d chips are run again"
                logger.warning(text, self._folder.name, entry.part, entry.chips)
                continue
            seen |= windows
            good.append(entry)
            yield end
        if len(good) < len(self._entries):
            self._entries = good
            with self._explained():
                self._write_journal()

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
        self._write_part(rows.to_bytes(), end.to_bytes(), end)

    def keep_encoded(self, drawn: bytes, rest: bytes) -> PartEnd:
        """Write a part that another process worked on, as it came.

        Raises:
            OutputError: as ``keep``.
        """
        end = PartEnd.from_bytes(rest)
        self._write_part(drawn, rest, end)
        return end

    def _write_part(self, drawn: bytes, rest: bytes, end: PartEnd) -> None:
        number = 1 + max((entry.part for entry in self._entries), default=0)
        for path, data in ((self._rows_path(number), drawn), (self._end_path(number), rest)):
            with staged(path, overwrite=True, need=len(data)) as temporary:
                temporary.write_bytes(data)
        entry = _Entry(
            part=number,
            chips=end.tally.chips,
            vertices=end.tally.vertices,
            rows_sha256=hashlib.sha256(drawn).hexdigest(),
            end_sha256=hashlib.sha256(rest).hexdigest(),
        )
        with self._explained(), (self._folder / _JOURNAL).open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(asdict(entry)) + "\n")
            journal.flush()
            os.fsync(journal.fileno())
        self._entries.append(entry)

    def table(self) -> Table:
        """Return the rows of all parts in one order; they stay on disk until they are read."""
        pieces: list[Piece] = [_DiskRows(self._rows_path(entry.part), entry.vertices, self.drawing.empty.crs) for entry in self._entries]
        return Table([*pieces, *self._pieces, self._across.finish()], self.drawing.empty)

    def _take_lock(self) -> None:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            msg = f"another run is writing {self._output}: wait for it, or choose another name"
            raise OutputError(msg) from None
        if not (self._folder / _LOCK).exists():  # the run that held it has just finished and removed the folder
            self._lock.release()
            self._folder.mkdir(exist_ok=True)
            self._lock.acquire(timeout=0)

    def _settle(self) -> None:
        """Decide what becomes of an earlier run's parts."""
        manifest, entries = read_manifest(self._folder), self._read_journal()
        if manifest is not None and self._resume:
            different = differences(manifest, self._identity)
            if different:
                msg = f"cannot resume {self._output}: {'; '.join(different)}; give the same again, or --overwrite"
                raise OutputError(msg)
            self._entries = entries
        elif manifest is not None and entries and not self._overwrite:
            chips = sum(entry.chips for entry in entries)
            msg = (
                f"{self._folder} holds an unfinished run ({chips} chips done): --resume goes on with it, --overwrite"
                " starts anew"
            )
            raise OutputError(msg)
        self._active = True
        self._sweep()
        text = json.dumps(self._identity, indent=1)
        with staged(self._folder / _MANIFEST, overwrite=True, need=len(text)) as temporary:
            temporary.write_text(text, encoding="utf-8")
        self._write_journal()

    def _sweep(self) -> None:
        """Remove files that no line of the journal names: of parts that were cut off, or of a run that was given up."""
        named = {path for entry in self._entries for path in (self._rows_path(entry.part), self._end_path(entry.part))}
        for path in self._folder.iterdir():
            if path.name not in (_MANIFEST, _JOURNAL, _LOCK) and path not in named:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    def _read_journal(self) -> list[_Entry]:
        try:
            text = (self._folder / _JOURNAL).read_bytes().decode("utf-8", "replace")
        except OSError:
            return []
        entries = []
        for line in text.splitlines():
            try:
                entries.append(_Entry(**json.loads(line)))
            except (ValueError, TypeError):
                logger.debug("%s: a line of the journal is torn: %.60s", self._folder.name, line)
        return entries

    def _write_journal(self) -> None:
        text = "".join(json.dumps(asdict(entry)) + "\n" for entry in self._entries)
        with staged(self._folder / _JOURNAL, overwrite=True, need=len(text)) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def _read(self, entry: _Entry) -> PartEnd | None:
        """Read the end of a part; None where one of its files is not what was written."""
        try:
            rest, drawn = self._end_path(entry.part).read_bytes(), self._rows_path(entry.part).read_bytes()
        except OSError:
            return None
        good = (hashlib.sha256(rest).hexdigest(), hashlib.sha256(drawn).hexdigest())
        return PartEnd.from_bytes(rest) if good == (entry.end_sha256, entry.rows_sha256) else None

    def _rows_path(self, number: int) -> Path:
        return self._folder / f"part-{number:06d}.parquet"

    def _end_path(self, number: int) -> Path:
        return self._folder / f"part-{number:06d}.npz"

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            msg = f"cannot write {self._folder}: {error.strerror or error}; choose another place for the output"
            raise OutputError(msg) from error


class _DiskRows:
    """The rows of one part, on disk."""

    def __init__(self, path: Path, vertices: int, crs: CRS | None) -> None:
        self._file, self._crs = path, crs
        self.vertices = vertices
        self.keys: NDArray[np.float64] = np.stack(
            [column.to_numpy() for column in pq.read_table(path, columns=list(KEY_COLUMNS)).columns], axis=1
        )

    def read(self, start: int, stop: int) -> GeoDataFrame:
        """Read the row groups that hold the rows."""
        first, last = start // ROW_GROUP, -(-stop // ROW_GROUP)
        with pq.ParquetFile(self._file) as file:
            arrow = file.read_row_groups(list(range(first, last)))
        frame = GeoDataFrame(
            arrow.drop_columns([*KEY_COLUMNS, "geometry"]).to_pandas(),
            geometry=shapely.from_wkb(arrow["geometry"].to_numpy()),
            crs=self._crs,
        )
        return frame.iloc[start - first * ROW_GROUP : stop - first * ROW_GROUP]
