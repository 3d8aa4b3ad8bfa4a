"""Parts of a run on disk: two files each, and the journal that says which of them count.

A part is its rows as Parquet and its ``PartEnd`` as ``.npz``. Its line is added to ``journal.jsonl`` after both files
were flushed and renamed, so that a torn last line is a part that does not count. Every file is checked by its sha256
before a later run uses it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from geopandas import GeoDataFrame

from rsgeoseg.engine.parts import PartEnd
from rsgeoseg.engine.table import KEY_COLUMNS, ROW_GROUP
from rsgeoseg.errors import OutputError
from rsgeoseg.geo.commit import explained, staged

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from pyproj import CRS

logger = logging.getLogger(__name__)

_JOURNAL = "journal.jsonl"
_OURS = re.compile(r"part-\d+\.(parquet|npz)|\..*\.part")
"""Names of parts' files, and of folders in which a file was being written when its process was killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the journal."""

    part: int
    """Number of the part, from 1; also in the names of its files."""
    chips: int
    vertices: int
    rows_sha256: str
    end_sha256: str
    session: int
    """Number of the session that worked on it, from 1: a run that was resumed once has two."""
    seconds: float
    """From the start of the session until the part was kept, by a clock that nobody sets."""

    @classmethod
    def from_line(cls, line: str) -> Entry | None:
        """Read a line; None where it is not whole."""
        try:
            values = json.loads(line)
            good = {name: isinstance(values[name], kind) for name, kind in _KINDS.items()}
        except (ValueError, TypeError, KeyError):
            return None
        return cls(**values) if all(good.values()) and len(values) == len(good) else None


_KINDS: dict[str, type | tuple[type, ...]] = {
    "part": int, "chips": int, "vertices": int, "rows_sha256": str, "end_sha256": str, "session": int,
    "seconds": (int, float),
}  # fmt: skip


class PartFiles:
    """The files of a run's parts in one folder.

    Args:
        folder: where they are; it exists when a method is called.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.entries: list[Entry] = []
        """Parts that count."""
        self._torn = False

    @property
    def chips(self) -> int:
        """Chips of all parts that count."""
        return sum(entry.chips for entry in self.entries)

    def load(self) -> None:
        """Take the parts that the journal names; a line that came twice counts once."""
        try:
            text = (self._folder / _JOURNAL).read_bytes().decode("utf-8", "replace")
        except OSError:
            return
        found = [Entry.from_line(line) for line in text.splitlines()]
        self.entries = list(dict.fromkeys(entry for entry in found if entry is not None))
        self._torn = len(self.entries) < len(found) or not text.endswith("\n")
        if None in found:
            warning = "%s: %d of %d lines of the journal were cut short or altered; the chips they name are run again"
            logger.warning(warning, self._folder.name, found.count(None), len(found))

    def keep_only(self, entries: list[Entry]) -> None:
        """Let only some parts count, and remove the files of all others.

        Raises:
            OutputError: the journal cannot be written; nothing was removed then.
        """
        journal = self._folder / _JOURNAL
        if entries != self.entries or self._torn or not journal.exists():
            text = "".join(_line(entry) for entry in entries)
            with staged(journal, overwrite=True, need=len(text)) as temporary:
                temporary.write_text(text, encoding="utf-8")
        self.entries, self._torn = entries, False
        self._remove_unnamed()

    def add(self, drawn: bytes, rest: bytes, end: PartEnd, *, session: int, seconds: float) -> None:
        """Write a part and note it in the journal.

        Args:
            drawn: ``Rows.to_bytes``.
            rest: ``PartEnd.to_bytes``.
            end: the same, read.
            session: number of this session.
            seconds: since its start.

        Raises:
            OutputError: the disk is full or gone; the parts before it stay.
        """
        number = 1 + max((entry.part for entry in self.entries), default=0)
        for path, data in ((self.rows_path(number), drawn), (self._end_path(number), rest)):
            with staged(path, overwrite=True, need=len(data)) as temporary:
                temporary.write_bytes(data)
        entry = Entry(
            part=number,
            chips=end.tally.chips,
            vertices=end.tally.vertices,
            rows_sha256=hashlib.sha256(drawn).hexdigest(),
            end_sha256=hashlib.sha256(rest).hexdigest(),
            session=session,
            seconds=round(seconds, 3),
        )
        with explained(self._folder / _JOURNAL), (self._folder / _JOURNAL).open("a", encoding="utf-8") as journal:
            journal.write(_line(entry))
            journal.flush()
            os.fsync(journal.fileno())
        self.entries.append(entry)

    def read_end(self, entry: Entry) -> PartEnd | None:
        """Read the end of a part; None where one of its two files is not what was written."""
        try:
            rest = self._end_path(entry.part).read_bytes()
            with self.rows_path(entry.part).open("rb") as file:
                drawn = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return None
        whole = (hashlib.sha256(rest).hexdigest(), drawn) == (entry.end_sha256, entry.rows_sha256)
        return PartEnd.from_bytes(rest) if whole else None

    def rows(self, crs: CRS | None) -> list[DiskRows]:
        """Return the rows of all parts; they stay on disk until they are read."""
        return [DiskRows(self.rows_path(entry.part), entry.vertices, crs) for entry in self.entries]

    def rows_path(self, number: int) -> Path:
        """Return the path of a part's rows."""
        return self._folder / f"part-{number:06d}.parquet"

    def clear(self) -> None:
        """Remove everything as far as that goes; the journal first, so that no part counts any more."""
        self.entries = []
        try:
            (self._folder / _JOURNAL).unlink(missing_ok=True)
            self._remove_unnamed()
        except OSError as error:
            logger.debug("%s: not removed: %s", self._folder, error)

    def _remove_unnamed(self) -> None:
        """Remove files of parts that do not count; whatever else somebody put there stays."""
        named = {path for entry in self.entries for path in (self.rows_path(entry.part), self._end_path(entry.part))}
        for path in list(self._folder.iterdir()):
            if path not in named and _OURS.fullmatch(path.name):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    def _end_path(self, number: int) -> Path:
        return self._folder / f"part-{number:06d}.npz"


def _line(entry: Entry) -> str:
    return json.dumps(asdict(entry)) + "\n"


class DiskRows:
    """The rows of one part on disk, a ``Piece`` of the table.

    Args:
        path: of the Parquet file.
        vertices: of its geometries.
        crs: of its geometries.

    Raises:
        OutputError: it can no longer be read.
    """

    def __init__(self, path: Path, vertices: int, crs: CRS | None) -> None:
        self._path, self._crs = path, crs
        self.vertices = vertices
        with _still_readable(path):
            columns = pq.read_table(path, columns=list(KEY_COLUMNS)).columns
        self.keys: NDArray[np.float64] = np.stack([column.to_numpy() for column in columns], axis=1)

    def read(self, start: int, stop: int) -> GeoDataFrame:
        """Read the row groups that hold the rows."""
        first, last = start // ROW_GROUP, -(-stop // ROW_GROUP)
        with _still_readable(self._path), pq.ParquetFile(self._path) as file:
            arrow: Any = file.read_row_groups(list(range(first, last)))
        frame = GeoDataFrame(
            arrow.drop_columns([*KEY_COLUMNS, "geometry"]).to_pandas(),
            geometry=shapely.from_wkb(arrow["geometry"].to_numpy()),
            crs=self._crs,
        )
        return frame.iloc[start - first * ROW_GROUP : stop - first * ROW_GROUP]


@contextmanager
def _still_readable(path: Path) -> Iterator[None]:
    """Say what to do where a file of this run was damaged or removed while the run went on."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        why = " ".join(str(error).split())[:200]
        msg = f"{path} can no longer be read ({why}): its chips are run again with --resume"
        raise OutputError(msg) from error
