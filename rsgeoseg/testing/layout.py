"""Where things stand in a cell: a function of the seed and the cell alone, so that cells need not know each other."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import cv2
import numpy as np

from rsgeoseg.testing.draw_transport import APPROACH
from rsgeoseg.testing.drawing import Frame
from rsgeoseg.testing.ground import (
    AIRFIELD,
    CELL,
    MARGIN,
    MARINA,
    RIVER,
    SEA,
    SPORTS,
    TANKS,
    THEME_CLASSES,
    TOWN,
    Ground,
)
from rsgeoseg.testing.noise import place_rng
from rsgeoseg.testing.things import LOOKS, Thing

if TYPE_CHECKING:
    from numpy.typing import NDArray

_STEP = 4
"""Scene pixels per cell of the occupancy picture."""
_GAP = 9.0
"""Free pixels kept around each thing; more than two steps of the occupancy picture, so that masks never touch."""
_TRIES = 40
_CLUTTER = {RIVER: (1, 22, 14), AIRFIELD: (1, 0, 1), TANKS: (1, 6, 6), SPORTS: (1, 16, 12), TOWN: (3, 8, 4)}
"""Theme -> most buildings, most clumps of trees, most trees in a clump."""
_IN_ROWS = frozenset({"vehicle", "airplane", "storage_tank", "tennis_court", "basketball_court", "harbor"})
_ALIKE = frozenset({"storage_tank", "tennis_court", "basketball_court", "harbor"})
_AFLOAT = frozenset({"ship", "harbor"})
_AT_MOST = {"ground_track_field": 1, "bridge": 2, "baseball_diamond": 3}


class _Plot:
    """Occupancy of one cell, and the rules of standing there."""

    def __init__(self, ground: Ground, row: int, col: int) -> None:
        off_x, off_y = ground.origin()
        self.x0, self.y0 = col * CELL - off_x, row * CELL - off_y
        survey = ground.survey((self.x0, self.y0, self.x0 + CELL, self.y0 + CELL), _STEP)
        self._ground = ground
        self.theme = int(ground.theme(np.array(row), np.array(col)))
        rim = np.ones(survey.water.shape, bool)
        free = slice(MARGIN // _STEP, (CELL - MARGIN) // _STEP)
        rim[free, free] = False
        self.taken: NDArray[np.bool_] = rim
        self.dry: NDArray[np.bool_] = ~survey.water & ~rim
        self.wet: NDArray[np.bool_] = survey.water & ~rim

    def _stamp(self, frame: Frame, half_u: float, half_v: float, gap: float = _GAP) -> NDArray[np.bool_]:
        u, v = half_u + gap, half_v + gap
        corners = frame.scene(np.array([[u, v], [u, -v], [-u, -v], [-u, v]])) - np.array([self.x0, self.y0])
        stamp = np.zeros(self.taken.shape, np.uint8)
        cv2.fillConvexPoly(stamp, np.rint(corners / _STEP * 16 - 8).astype(np.int32), 1, shift=4)
        return stamp.astype(bool)

    def spot(self, where: NDArray[np.bool_], rng: np.random.Generator) -> tuple[float, float] | None:
        """Draw a scene point among the True places of the occupancy picture."""
        places = np.flatnonzero(where & ~self.taken)
        if not len(places):
            return None
        y, x = divmod(int(places[int(rng.integers(len(places)))]), where.shape[1])
        return self.x0 + (x + float(rng.random())) * _STEP, self.y0 + (y + float(rng.random())) * _STEP

    def flow(self, spot: tuple[float, float]) -> float:
        """Direction of the river beside a scene point, radians from x to y."""
        off_x, off_y = self._ground.origin()
        along_x = self._ground.river_along_x()
        at = int(spot[0]) + off_x if along_x else int(spot[1]) + off_y
        middle, _ = self._ground.river(np.array([at - 20, at + 20]))
        turn = float(np.arctan2(float(middle[1] - middle[0]), 40.0))
        return turn if along_x else np.pi / 2 - turn

    def fits(self, thing: Thing, free: NDArray[np.bool_]) -> bool:
        """Say whether a thing stands on free places only."""
        stamp = self._stamp(thing.frame, *thing.footprint, gap=0.0)
        return bool(stamp.any() and not (stamp & ~free).any())

    def claim(self, thing: Thing, banned: NDArray[np.bool_] | None, half_u: float | None = None) -> bool:
        """Take the thing's place where it is free and holds nothing banned."""
        own_u, half_v = thing.footprint
        stamp = self._stamp(thing.frame, own_u if half_u is None else half_u, half_v)
        if banned is None:  # a bridge's road may run over the rim
            inner = np.zeros_like(stamp)
            inner[MARGIN // _STEP : -(MARGIN // _STEP), MARGIN // _STEP : -(MARGIN // _STEP)] = True
            if (stamp & self.taken & inner).any():
                return False
        elif (stamp & (self.taken | banned)).any():
            return False
        self.taken |= stamp
        return True


def _bridge(plot: _Plot, ground: Ground, rng: np.random.Generator, style: int) -> Thing | None:
    """Put a bridge square across the river."""
    along_x = ground.river_along_x()
    off_x, off_y = ground.origin()
    longest, width = LOOKS["bridge"].size(rng)
    margin = MARGIN + width / 2 + 12
    at = float(rng.uniform(margin, CELL - margin))
    start = (plot.x0 + off_x) if along_x else (plot.y0 + off_y)
    middle, half = ground.river(np.array([start + int(at)]))
    across = float(CELL / 2 + middle[0])
    x, y = (plot.x0 + at, plot.y0 + across) if along_x else (plot.x0 + across, plot.y0 + at)
    angle = plot.flow((x, y)) + np.pi / 2 + float(rng.uniform(-0.12, 0.12))
    length = max(2 * float(half[0]) + float(rng.uniform(14, 34)), min(longest, 2 * float(half[0]) + 60))
    thing = Thing("bridge", Frame(x, y, angle), length, min(width, 0.45 * length), style)
    return thing if plot.claim(thing, None, APPROACH) else None


def _angle(kind: str, plot: _Plot, spot: tuple[float, float], base: float, rng: np.random.Generator) -> float:
    """Direction of a thing: with the stream, neat where people put things in rows, free elsewhere."""
    if kind == "ship" and plot.theme == RIVER:
        return plot.flow(spot) + float(rng.normal(0, 0.12)) + (np.pi if rng.random() < 0.5 else 0.0)
    if kind in {"harbor", "building", "tennis_court", "basketball_court"} or (kind == "vehicle" and plot.theme == TOWN):
        return base + float(rng.integers(4)) * np.pi / 2 + float(rng.normal(0, 0.03))
    return float(rng.uniform(-np.pi, np.pi))


def _beside(last: Thing, kind: str, rng: np.random.Generator) -> Frame:
    """Stand next to the last thing of one's kind, as things do that people put in rows."""
    step = (last.footprint[1] + LOOKS[kind].around) * 2 * float(rng.uniform(1.0, 1.15)) + 2 * _GAP + _STEP
    (x, y), *_ = last.frame.scene(np.array([[float(rng.normal(0, 2)), step * (1 if rng.random() < 0.5 else -1)]]))
    return Frame(float(x), float(y), last.frame.angle + float(rng.normal(0, 0.04)))


def _place(
    plot: _Plot, kind: str, base: float, rng: np.random.Generator, style: int, last: Thing | None = None
) -> Thing | None:
    where, banned = (plot.wet, plot.dry) if kind in _AFLOAT else (plot.dry, plot.wet)
    for attempt in range(_TRIES):
        length, width = LOOKS[kind].size(rng)
        if last is not None and kind in _IN_ROWS and attempt < 4 and rng.random() < 0.75:
            scale = float(rng.uniform(0.94, 1.06)) if kind in _ALIKE else 1.0
            if kind in _ALIKE:
                length, width = last.length * scale, last.width * scale
            frame = _beside(last, kind, rng)
        else:
            spot = plot.spot(where, rng)
            if spot is None:
                return None
            frame = Frame(*spot, _angle(kind, plot, spot, base, rng))
        thing = Thing(kind, frame, length, width, style)
        if plot.claim(thing, banned):
            return thing
    return None


@lru_cache(maxsize=512)
def lay_out(ground: Ground, row: int, col: int, density: float, classes: tuple[str, ...]) -> tuple[Thing, ...]:
    """Place the things of one cell.

    Args:
        ground: the scene's ground.
        row: cell row in the ground's grid.
        col: cell column.
        density: objects wanted per megapixel; crowded cells hold what fits.
        classes: class names in use.

    Returns:
        Objects first (their ``instance`` is 1, 2, ... within the cell), then clutter; no two share a pixel of mask.
    """
    rng = place_rng(ground.seed, 21, row, col)
    plot = _Plot(ground, row, col)
    wanted = int(density * CELL * CELL / 1e6 + rng.random())
    shares = {k: w for k, w in THEME_CLASSES[plot.theme].items() if k in classes}
    objects: list[Thing] = []
    last: dict[str, Thing] = {}
    base = float(rng.uniform(0, np.pi))
    for kind in _wish_list(shares, wanted, rng):
        for candidate in dict.fromkeys((kind, *_smaller(kind, shares))):
            style = int(rng.integers(1 << 31))
            made = (
                _bridge(plot, ground, rng, style)
                if candidate == "bridge"
                else _place(plot, candidate, base, rng, style, last.get(candidate))
            )
            if made is not None:
                last[made.kind] = made
                objects.append(
                    Thing(made.kind, made.frame, made.length, made.width, made.style, instance=len(objects) + 1)
                )
                break
    return (*objects, *_clutter(plot, base, rng))


def _wish_list(shares: dict[str, float], wanted: int, rng: np.random.Generator) -> list[str]:
    """Draw the kinds of a cell's objects, biggest first (they are hardest to place)."""
    if not shares:
        return []
    names, weights = list(shares), np.array(list(shares.values()))
    drawn = [names[i] for i in rng.choice(len(names), wanted, p=weights / weights.sum()).tolist()]
    fallback = min(names, key=lambda kind: LOOKS[kind].lengths[0] * LOOKS[kind].ratio[0])
    kept: list[str] = []
    for kind in drawn:
        kept.append(kind if kept.count(kind) < _AT_MOST.get(kind, wanted) else fallback)
    return sorted(kept, key=lambda kind: -LOOKS[kind].lengths[1])


def _smaller(kind: str, shares: dict[str, float]) -> list[str]:
    """Kinds to try where one does not fit, biggest first."""
    size = LOOKS[kind].lengths[1]
    return sorted(
        (k for k in shares if LOOKS[k].lengths[1] < size and k != "bridge"), key=lambda k: -LOOKS[k].lengths[1]
    )


def _clutter(plot: _Plot, base: float, rng: np.random.Generator) -> list[Thing]:
    """Buildings, and clumps of trees that may grow into each other but not over anything else."""
    if plot.theme in (SEA, MARINA):
        return []
    buildings, clumps, size = _CLUTTER[plot.theme]
    found: list[Thing] = []
    for _ in range(int(rng.integers(buildings + 1))):
        made = _place(plot, "building", base, rng, int(rng.integers(1 << 31)))
        if made is not None:
            found.append(made)
    free = plot.dry & ~plot.taken
    for _ in range(int(rng.integers(clumps + 1))):
        spot = plot.spot(free, rng)
        if spot is None:
            break
        for _ in range(int(rng.integers(1, size + 1))):
            x, y = (np.array(spot) + rng.normal(0, 4.5 * size, 2)).tolist()
            length, width = LOOKS["tree"].size(rng)
            tree = Thing("tree", Frame(x, y, float(rng.uniform(0, 6))), length, width, int(rng.integers(1 << 31)))
            if plot.fits(tree, free):
                found.append(tree)
    return found
