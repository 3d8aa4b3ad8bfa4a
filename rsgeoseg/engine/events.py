"""What a run tells while it works: small values, each with one JSON form."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

Stage = Literal["segment", "polygonize", "write"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base of every event."""

    kind: ClassVar[str] = "event"

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form: the fields, and ``event`` naming the kind."""
        return {"event": self.kind, **asdict(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    """A scene was opened and planned."""

    kind: ClassVar[str] = "start"
    scene: str
    model: str
    height: int
    """Pixels of the working grid."""
    width: int
    chips: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterStarted(Event):
    """Workers are ready, each with its model loaded."""

    kind: ClassVar[str] = "cluster"
    scheduler: str
    """Address of the scheduler."""
    workers: int
    dashboard: str
    """Address of Dask's dashboard; empty where it is not ours to show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChipsProgress(Event):
    """So many chips are behind us."""

    kind: ClassVar[str] = "progress"
    done: int
    empty: int
    failed: int
    total: int
    objects: int
    """Whole objects that have left the stitcher so far."""
    seconds: float
    mpx_per_s: float
    """Scene pixels (overlap counted once), millions per second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChipFailed(Event):
    """A chip could not be read or segmented and is left out of the result."""

    kind: ClassVar[str] = "chip-failed"
    index: int
    row: int
    col: int
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStarted(Event):
    """The run went on to its next stage."""

    kind: ClassVar[str] = "stage"
    stage: Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished(Event):
    """The result is complete, and written where an output was asked for."""

    kind: ClassVar[str] = "done"
    objects: int
    failed: int
    seconds: float
    mpx_per_s: float
    output: str | None
