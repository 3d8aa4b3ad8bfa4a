"""A pen that draws in an object's own frame, four times finer than the scene, and turns it into soft-edged pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

FINE = 4
"""Sub-pixels per pixel and axis: coverage is known to 1/16."""
_SHIFT = 4
_UNIT = 1 << _SHIFT

Colour = tuple[int, int, int]
"""Red, green, blue, 0-255."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Where an object's own axes lie in the scene."""

    cx: float
    """Centre, scene pixels."""
    cy: float
    """Centre, scene pixels."""
    angle: float
    """Radians from the scene's x axis to the object's u axis (its length), towards y."""

    def scene(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Turn (N, 2) u v into (N, 2) scene x y."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        u, v = points[:, 0], points[:, 1]
        return np.stack([self.cx + u * cos - v * sin, self.cy + u * sin + v * cos], axis=1)

    def crop(self, half_u: float, half_v: float, pad: int) -> tuple[int, int, int, int]:
        """Integer x0 y0 x1 y1 that holds the rectangle of these half sides, and ``pad`` pixels around it."""
        corners = np.array([[half_u, half_v], [half_u, -half_v], [-half_u, half_v], [-half_u, -half_v]])
        points = self.scene(corners)
        (x0, y0), (x1, y1) = np.floor(points.min(0)) - pad, np.ceil(points.max(0)) + pad
        return int(x0), int(y0), int(x1), int(y1)


class Pen:
    """Fills polygons, discs and lines given in the object's frame on a fine canvas."""

    def __init__(self, frame: Frame, crop: tuple[int, int, int, int]) -> None:
        x0, y0, x1, y1 = crop
        self._frame = frame
        self._origin = np.array([x0, y0], np.float64)
        self.colour: NDArray[np.uint8] = np.zeros(((y1 - y0) * FINE, (x1 - x0) * FINE, 3), np.uint8)
        self.cover: NDArray[np.uint8] = np.zeros(self.colour.shape[:2], np.uint8)

    def _fixed(self, points: Sequence[tuple[float, float]] | NDArray[np.float64]) -> NDArray[np.int32]:
        scene = self._frame.scene(np.asarray(points, np.float64))
        return np.rint(((scene - self._origin) * FINE - 0.5) * _UNIT).astype(np.int32)

    def polygon(self, points: Sequence[tuple[float, float]] | NDArray[np.float64], colour: Colour) -> None:
        """Fill a polygon, (N, 2) u v."""
        fixed = self._fixed(points)
        cv2.fillPoly(self.colour, [fixed], colour, shift=_SHIFT)
        cv2.fillPoly(self.cover, [fixed], 255, shift=_SHIFT)

    def rectangle(self, u0: float, v0: float, u1: float, v1: float, colour: Colour) -> None:
        """Fill a rectangle between two corners."""
        self.polygon([(u0, v0), (u1, v0), (u1, v1), (u0, v1)], colour)

    def disc(self, u: float, v: float, radius: float, colour: Colour) -> None:
        """Fill a disc."""
        self.polygon(arc(u, v, radius, 0, 2 * np.pi), colour)

    def line(
        self,
        points: Sequence[tuple[float, float]] | NDArray[np.float64],
        width: float,
        colour: Colour,
        *,
        closed: bool = False,
    ) -> None:
        """Draw a line ``width`` scene pixels wide."""
        fixed, thick = self._fixed(points), max(1, round(width * FINE))
        cv2.polylines(self.colour, [fixed], closed, colour, thick, shift=_SHIFT)
        cv2.polylines(self.cover, [fixed], closed, 255, thick, shift=_SHIFT)

    def pixels(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Scene pixels: colour times coverage (h, w, 3) 0-255, and coverage (h, w) 0-1; both float32."""
        size = (self.cover.shape[1] // FINE, self.cover.shape[0] // FINE)
        colour = cv2.resize(self.colour, size, interpolation=cv2.INTER_AREA).astype(np.float32)
        cover = cv2.resize(self.cover, size, interpolation=cv2.INTER_AREA).astype(np.float32)
        return colour, cover / np.float32(255)


def fill_mask(
    frame: Frame, crop: tuple[int, int, int, int], outlines: Sequence[NDArray[np.float64]]
) -> NDArray[np.bool_]:
    """Rasterise outlines: a pixel belongs where at least half of it is covered.

    Args:
        frame: the object's axes.
        crop: x0 y0 x1 y1, scene pixels; holds every outline.
        outlines: polygons, each (N, 2) u v; their union is the object.

    Returns:
        (h, w) bool: the largest 4-connected piece without holes, so that it is one simple polygon.
    """
    x0, y0, x1, y1 = crop
    fine = np.zeros(((y1 - y0) * FINE, (x1 - x0) * FINE), np.uint8)
    for outline in outlines:
        points = (frame.scene(outline) - np.array([x0, y0])) * FINE - 0.5
        cv2.fillPoly(fine, [np.rint(points * _UNIT).astype(np.int32)], 255, shift=_SHIFT)
    half = (cv2.resize(fine, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA) >= 128).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(half, connectivity=4)
    if count > 2:
        half = (labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))).astype(np.uint8)
    outside, background = cv2.connectedComponents(1 - half, connectivity=4)
    # A pixel of background that the crop's corner cannot reach is a hole, or touches the outside by a corner only.
    return half.astype(bool) if outside <= 2 else np.asarray(background != background[0, 0])


def arc(u: float, v: float, radius: float, start: float, stop: float, steps: int = 0) -> NDArray[np.float64]:
    """Points on a circle, (N, 2) u v, from angle ``start`` to ``stop`` (radians)."""
    count = steps or max(8, int(radius * abs(stop - start)))
    angles = np.linspace(start, stop, count)
    return np.stack([u + radius * np.cos(angles), v + radius * np.sin(angles)], axis=1)


def shadow_of(cover: NDArray[np.float32], sun: tuple[float, float], height: float) -> NDArray[np.float32]:
    """Darkness that a thing of this coverage casts on flat ground.

    Args:
        cover: (h, w) 0-1, with room in the crop for the shadow.
        sun: unit vector x y along which shadows fall.
        height: length of the shadow, pixels.

    Returns:
        (h, w) float32 0-1.
    """
    out = cover.copy()
    height_px, width_px = cover.shape
    for step in range(1, int(np.ceil(height)) + 1):
        along = min(float(step), height)
        matrix = np.array([[1, 0, sun[0] * along], [0, 1, sun[1] * along]], np.float64)
        np.maximum(out, cv2.warpAffine(cover, matrix, (width_px, height_px)), out=out)
    return np.asarray(cv2.GaussianBlur(out, (0, 0), 0.8), np.float32)
