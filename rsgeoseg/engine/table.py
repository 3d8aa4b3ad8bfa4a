"""The final table, made of pieces that are each in order: read in batches, it never needs to be in memory whole."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import shapely

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

KEY_COLUMNS = ("_y0", "_x0", "_y1", "_x1", "_label", "_rank", "_crc")
"""Columns of a part's file that hold ``frame.sort_key``."""
ROW_GROUP = 4096
"""Rows of a part's file that are read at once."""


class Piece(Protocol):
    """Some rows of the table, in order."""

    @property
    def keys(self) -> NDArray[np.float64]:
        """(N, 7) ``frame.sort_key`` of each row, ascending."""

    @property
    def vertices(self) -> int:
        """Vertices of all geometries."""

    def read(self, start: int, stop: int) -> gpd.GeoDataFrame:
        """Rows ``start`` to ``stop``, half-open, with the columns of the schema; their ids are not final."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A piece in memory."""

    frame: gpd.GeoDataFrame
    keys: NDArray[np.float64]

    @property
    def vertices(self) -> int:
        """Vertices of all geometries."""
        return int(shapely.get_num_coordinates(self.frame.geometry.to_numpy()).sum())

    def read(self, start: int, stop: int) -> gpd.GeoDataFrame:
        """Rows from memory."""
        return self.frame.iloc[start:stop]

    def to_bytes(self) -> bytes:
        """Return a Parquet file with the keys as further columns; ``from_bytes`` reads it."""
        buffer = io.BytesIO()
        frame = self.frame.assign(**dict(zip(KEY_COLUMNS, self.keys.T, strict=True)))
        frame.attrs = {}
        frame.to_parquet(buffer, compression="zstd", index=False, row_group_size=ROW_GROUP)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Rows:
        """Read what ``to_bytes`` wrote."""
        frame = gpd.read_parquet(pa.BufferReader(data))
        keys = frame[list(KEY_COLUMNS)].to_numpy(np.float64)
        return cls(frame.drop(columns=list(KEY_COLUMNS)), keys)


class Table:
    """Rows of several pieces in one order, with ids 1, 2, ...

    Args:
        pieces: in any order.
        empty: a frame without rows, for the columns and the CRS.
    """

    def __init__(self, pieces: Sequence[Piece], empty: gpd.GeoDataFrame) -> None:
        self._pieces = [piece for piece in pieces if len(piece.keys)]
        self._empty = empty
        keys = np.concatenate([piece.keys for piece in self._pieces]) if self._pieces else np.zeros((0, 7))
        owner = np.repeat(np.arange(len(self._pieces), dtype=np.int32), [len(piece.keys) for piece in self._pieces])
        self._owner = owner[np.lexsort(keys.T[::-1])]

    def __len__(self) -> int:
        return len(self._owner)

    @property
    def vertices(self) -> int:
        """Vertices of all geometries."""
        return sum(piece.vertices for piece in self._pieces)

    def batches(self, size: int) -> Iterator[gpd.GeoDataFrame]:
        """Yield the rows in order, at most ``size`` at once, with their ids; one empty frame where there are none.

        Each piece is in order, so a batch takes the next rows of each piece.
        """
        if not len(self):
            yield self._empty.copy()
            return
        behind = np.zeros(len(self._pieces), np.int64)
        for start in range(0, len(self), size):
            owner = self._owner[start : start + size]
            counts = np.bincount(owner, minlength=len(self._pieces))
            parts = [
                self._pieces[number].read(int(behind[number]), int(behind[number] + counts[number]))
                for number in np.flatnonzero(counts).tolist()
            ]
            behind += counts
            frame = parts[0] if len(parts) == 1 else pd.concat(parts, ignore_index=True)
            place = np.empty(len(owner), np.int64)
            place[np.argsort(owner, kind="stable")] = np.arange(len(owner))
            frame = frame.iloc[place].reset_index(drop=True)
            frame["id"] = np.arange(start + 1, start + len(frame) + 1, dtype=np.int64)
            yield frame

    def frame(self) -> gpd.GeoDataFrame:
        """Return all rows at once."""
        return next(self.batches(max(len(self), 1)))
