"""Parts of a scene: what a part leaves behind, and who keeps it.

A part is any set of windows that one stitcher sees. Its finished objects are drawn at once; what other parts can still
change is its ``remainder``. The result does not depend on how a scene was cut into parts.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from rsgeoseg.engine.table import Rows, Table
from rsgeoseg.engine.tally import Tally
from rsgeoseg.geo.remainder import Remainder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from rsgeoseg.engine.collect import Drawing
    from rsgeoseg.engine.table import Piece
    from rsgeoseg.geo.stitch import StitchedObject


@dataclass(frozen=True, slots=True, kw_only=True)
class PartEnd:
    """What a part leaves besides its finished objects."""

    tally: Tally
    remainder: Remainder
    """Also names the windows of the part."""
    edge: NDArray[np.int64]
    """(K, 3) x, y, label: pixels of what remains that lie beside missing data, see ``DataEdge``."""

    def to_bytes(self) -> bytes:
        """Return one ``.npz`` archive; ``from_bytes`` reads it."""
        buffer = io.BytesIO()
        text = json.dumps(self.tally.to_dict()).encode()
        np.savez(
            buffer,
            tally=np.frombuffer(text, np.uint8),
            remainder=np.frombuffer(self.remainder.to_bytes(), np.uint8),
            edge=self.edge,
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> PartEnd:
        """Read what ``to_bytes`` wrote; no code in it can run."""
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return cls(
                tally=Tally.from_dict(json.loads(archive["tally"].tobytes())),
                remainder=Remainder.from_bytes(archive["remainder"].tobytes()),
                edge=archive["edge"],
            )


class Parts(Protocol):
    """Where the parts of one run go."""

    def known(self) -> Iterable[PartEnd]:
        """Parts that an earlier, interrupted run finished."""

    def begin(self) -> Callable[[list[StitchedObject]], None]:
        """Return what takes the finished objects of a new part."""

    def due(self) -> bool:
        """Whether the part at work should end now."""

    def end(self, end: PartEnd) -> None:
        """Keep the part begun last."""

    def across(self, objects: list[StitchedObject]) -> None:
        """Take objects that several parts saw."""


class ObjectList:
    """Keeps all objects of a run, masks and all, as one part.

    Args:
        sink: takes them instead.
    """

    def __init__(self, sink: Callable[[list[StitchedObject]], None] | None = None) -> None:
        self.objects: list[StitchedObject] = []
        """In the order in which they left the stitcher; empty where a sink took them."""
        self.across = sink or self.objects.extend

    def known(self) -> Iterable[PartEnd]:
        """None."""
        return ()

    def begin(self) -> Callable[[list[StitchedObject]], None]:
        """The one list for all."""
        return self.across

    def due(self) -> bool:
        """Never."""
        return False

    def end(self, end: PartEnd) -> None:
        """Nothing to keep."""


class FrameParts:
    """Draws objects as they come and keeps the rows in memory.

    Args:
        drawing: how objects become rows.
    """

    def __init__(self, drawing: Drawing) -> None:
        self.drawing = drawing
        self._across = drawing.collector()
        self._part = drawing.collector()
        self._pieces: list[Piece] = []

    def known(self) -> Iterable[PartEnd]:
        """None."""
        return ()

    @property
    def resumed_seconds(self) -> float:
        """Time that earlier sessions took for the parts that are known: none."""
        return 0.0

    def begin(self) -> Callable[[list[StitchedObject]], None]:
        """A collector of its own for every part."""
        self._part = self.drawing.collector()
        return self._part.take

    def due(self) -> bool:
        """Never: nothing outlives the process, so one part will do."""
        return False

    def end(self, end: PartEnd) -> None:
        """Keep the part begun last."""
        self.keep(self._finish_part(end), end)

    def _finish_part(self, end: PartEnd) -> Rows:
        rows = self._part.finish()
        end.tally.seconds["polygonize"] += self._part.seconds
        end.tally.vertices += rows.vertices
        return rows

    def keep(self, rows: Rows, end: PartEnd) -> None:  # noqa: ARG002  (kept by those that outlive the process)
        """Keep a part."""
        self._pieces.append(rows)

    def keep_encoded(self, drawn: bytes, rest: bytes) -> PartEnd:
        """Keep a part that another process worked on.

        Args:
            drawn: ``Rows.to_bytes``.
            rest: ``PartEnd.to_bytes``.
        """
        self._pieces.append(Rows.from_bytes(drawn))
        return PartEnd.from_bytes(rest)

    def across(self, objects: list[StitchedObject]) -> None:
        """Draw what several parts saw."""
        self._across.take(objects)

    def table(self) -> Table:
        """Return the rows of all parts in one order."""
        return Table([*self._pieces, self._across.finish()], self.drawing.empty)

    @property
    def across_seconds(self) -> float:
        """Time spent drawing what several parts saw."""
        return self._across.seconds
