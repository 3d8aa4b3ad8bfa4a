"""What was done in a part of a run, or in all of it: counts and seconds that add up."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

_STAGES = ("read", "wait", "segment", "stitch", "polygonize")


@dataclass
class Tally:
    """Counts of one part; ``add`` makes them counts of several."""

    done: int = 0
    """Chips segmented."""
    empty: int = 0
    """Chips without a valid pixel."""
    failed: list[dict[str, Any]] = field(default_factory=list)
    """Chips left out, with place, footprint and reason."""
    objects: int = 0
    """Whole objects found."""
    vertices: int = 0
    """Of the objects' outlines, once they are drawn."""
    pixels: int = 0
    """Core pixels behind us: scene pixels, overlap counted once."""
    bytes_read: int = 0
    """Pixels handed to the model, overlap counted as often as it was read."""
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_STAGES, 0.0))
    """By stage, of all threads and processes together; ``wait`` is the model waiting for readers."""
    peak_bytes: int = 0
    """Largest resident size that a process had when it ended a part; not a sum."""

    @property
    def chips(self) -> int:
        """Chips behind us."""
        return self.done + self.empty + len(self.failed)

    def add(self, other: Tally) -> None:
        """Count another part in."""
        self.done += other.done
        self.empty += other.empty
        self.failed += other.failed
        self.objects += other.objects
        self.vertices += other.vertices
        self.pixels += other.pixels
        self.bytes_read += other.bytes_read
        self.peak_bytes = max(self.peak_bytes, other.peak_bytes)
        for name, value in other.seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value

    def plus(self, other: Tally) -> Tally:
        """Return both together; neither changes."""
        both = Tally()
        both.add(self)
        both.add(other)
        return both

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Tally:
        """Read the JSON form."""
        return cls(**values)
