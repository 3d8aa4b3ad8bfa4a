"""What every drawing of a thing shares: its size, its surround, colours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from rsgeoseg.testing.drawing import Colour, Pen

Outlines = list["NDArray[np.float64]"]
"""Polygons, each (N, 2) u v; their union is the object."""

WHITE: Colour = (225, 226, 222)
"""Paint of lines and cabins."""


@dataclass(frozen=True, slots=True)
class Look:
    """How one kind of thing is made."""

    lengths: tuple[float, float]
    """Smallest and largest length, pixels; drawn log-uniformly."""
    ratio: tuple[float, float]
    """Smallest and largest width / length."""
    height: float
    """Length of its shadow, pixels."""
    around: float
    """Surround that belongs to it but not to its mask, pixels."""
    outline: Callable[[float, float], Outlines]
    """Length, width -> polygons whose union is the mask."""
    paint: Callable[[Pen, float, float, np.random.Generator], None]
    """Draws the object itself."""
    surround: Callable[[Pen, float, float, np.random.Generator], None] | None = None
    """Draws what lies around it, before any shadow."""

    def size(self, rng: np.random.Generator) -> tuple[float, float]:
        """Draw a length and a width, pixels."""
        low, high = np.log(self.lengths)
        length = float(np.exp(rng.uniform(low, high)))
        return length, length * float(rng.uniform(*self.ratio))


def pick(rng: np.random.Generator, *colours: Colour, spread: int = 12) -> Colour:
    """Choose one of the colours and vary it by up to ``spread`` in brightness and 4 in hue."""
    base = np.array(colours[int(rng.integers(len(colours)))]) + rng.integers(-spread, spread + 1)
    return shade((base + rng.integers(-4, 5, 3)).tolist())


def shade(colour: Sequence[int], factor: float = 1.0) -> Colour:
    """Multiply a colour's brightness, within 0-255."""
    red, green, blue = (min(255, max(0, int(value * factor))) for value in colour)
    return red, green, blue


def rectangle(length: float, width: float) -> Outlines:
    """Outline of a rectangle."""
    u, v = length / 2, width / 2
    return [np.array([(-u, -v), (u, -v), (u, v), (-u, v)])]


def mirror(half: list[tuple[float, float]]) -> NDArray[np.float64]:
    """Close a half outline, (N, 2) u v with v >= 0, by its mirror image."""
    points = np.array(half)
    return np.concatenate([points, points[::-1] * [1, -1]])
