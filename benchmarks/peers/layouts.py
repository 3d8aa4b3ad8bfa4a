"""Label rasters with objects that tell joining rules apart: each kind goes wrong in a way of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import cv2
import numpy as np
import shapely
from rasterio.features import rasterize
from shapely import affinity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

KINDS = ("small", "medium", "party wall", "thin diagonal", "long", "longer than a chip")
"""Kinds of ``mixed_layout``, in the order of the table."""
_GAP = 4
"""Least pixels between objects that are no neighbours."""
_TRIES = 200
"""Attempts to find room for an object before the layout is taken as full."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Objects of a scene that share no pixel."""

    ids: NDArray[np.int32]
    """(h, w), 0 = nothing."""
    kinds: list[str] = field(default_factory=list)
    """Kind of object ``i + 1``."""


def mixed_layout(size: int, chip: int, seed: int) -> Layout:
    """Scatter objects of all kinds over a square scene.

    Args:
        size: side of the scene, pixels.
        chip: side of the chips that will cut it, pixels; lengths of long objects follow it.
        seed: of everything.
    """
    rng, share = np.random.default_rng(seed), (size / 4096) ** 2
    layout = Layout(np.zeros((size, size), np.int32))

    def centre() -> tuple[float, float]:
        return rng.uniform(0, size), rng.uniform(0, size)

    def scatter(count: float, kind: str, make: object) -> None:
        for _ in range(max(1, round(count * share))):
            for _ in range(_TRIES):
                if _place(layout, make(), kind):  # type: ignore[operator]
                    break

    scale = chip / 1024
    scatter(4, "longer than a chip", lambda: [_bar(centre(), rng.uniform(1.08, 1.5) * chip, rng.uniform(60, 120),
                                                   rng.uniform(0, 180))])  # fmt: skip
    scatter(30, "long", lambda: [_bar(centre(), rng.uniform(250, 700) * scale, rng.uniform(40, 80) * max(scale, 0.5),
                                      rng.uniform(0, 180))])  # fmt: skip
    scatter(8, "thin diagonal", lambda: _row(centre(), 6, 26, (300, 18), rng.uniform(30, 60) * rng.choice([-1, 1])))
    scatter(12, "party wall", lambda: _row(centre(), 8, 30, (44, 30), rng.uniform(0, 180)))
    scatter(150, "medium", lambda: [_bar(centre(), rng.uniform(60, 110), rng.uniform(40, 90), rng.uniform(0, 90))])
    scatter(450, "small", lambda: [_bar(centre(), rng.uniform(24, 48), rng.uniform(24, 48), rng.uniform(0, 90))])
    return layout


def crowded_layout(count: int, chip: int, overlap: int) -> Layout:
    """Fill the strips between chips with small objects, until there are ``count`` of them.

    Four times the objects means twice the side and the same crowd everywhere. All objects lie where at least two chips
    see them, two pixels apart.

    Args:
        count: objects wanted.
        chip: side of the chips, pixels.
        overlap: width of the strips, pixels.
    """
    step, pitch, side = chip - overlap, 16, 14
    lines = overlap // pitch
    # n chips a side: n - 1 strips each way, less their crossings, which both directions count
    n = 2
    while 2 * (n - 1) * lines * ((n * step + overlap) // pitch) - ((n - 1) * lines) ** 2 < count:
        n += 1
    size = n * step + overlap
    places = np.arange(0, size - pitch + 1, pitch)
    in_strip = (places >= step) & (places < n * step) & (places % step + pitch <= overlap)
    ys, xs = np.nonzero(in_strip[:, None] | in_strip[None, :])
    ids = np.zeros((size, size), np.int32)
    for number, (y, x) in enumerate(zip(places[ys[:count]].tolist(), places[xs[:count]].tolist(), strict=True)):
        ids[y : y + side, x : x + side] = number + 1
    return Layout(ids, ["crowded"] * min(count, len(ys)))


def _bar(centre: tuple[float, float], length: float, width: float, angle: float) -> shapely.Polygon:
    x, y = centre
    upright = shapely.box(x - length / 2, y - width / 2, x + length / 2, y + width / 2)
    return affinity.rotate(upright, angle, origin=(x, y))


def _row(
    centre: tuple[float, float], count: int, spacing: float, size: tuple[float, float], angle: float
) -> list[shapely.Polygon]:
    """Bars side by side, ``spacing`` from one middle line to the next."""
    across = math.radians(angle + 90)
    offsets = (np.arange(count) - (count - 1) / 2) * spacing
    middles = [(centre[0] + d * math.cos(across), centre[1] + d * math.sin(across)) for d in offsets]
    return [_bar(middle, *size, angle) for middle in middles]


def _place(layout: Layout, shapes: Sequence[shapely.Polygon], kind: str) -> bool:
    """Draw shapes where there is room for all of them; whether there was."""
    bounds = shapely.total_bounds(shapes)
    x0, y0 = np.floor(bounds[:2]).astype(int) - _GAP - 1
    x1, y1 = np.ceil(bounds[2:]).astype(int) + _GAP + 1
    if min(x0, y0) < 0 or max(x1, y1) > len(layout.ids):
        return False
    moved = [affinity.translate(shape, -x0, -y0) for shape in shapes]
    first = len(layout.kinds) + 1
    drawn = rasterize([(shape, first + i) for i, shape in enumerate(moved)], (y1 - y0, x1 - x0), dtype="int32")
    reach = cv2.dilate((drawn > 0).astype(np.uint8), np.ones((2 * _GAP + 1, 2 * _GAP + 1), np.uint8)) > 0
    place = layout.ids[y0:y1, x0:x1]
    if place[reach].any():
        return False
    place[drawn > 0] = drawn[drawn > 0]
    layout.kinds.extend([kind] * len(shapes))
    return True
