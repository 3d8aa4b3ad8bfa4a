"""Ground of a made scene: which theme each cell has, where water and roads run, and the colour of every pixel.

The plane is a grid of cells of ``CELL`` pixels whose borders are bent by noise. Everything is a function of the seed
and the pixel alone, so that any window can be drawn without its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rsgeoseg.testing.noise import hash_unit, line_texture, place_rng, sample, texture

if TYPE_CHECKING:
    from numpy.typing import NDArray

CELL = 640
"""Side of a cell, pixels."""
ROAD = 26
"""Half width of a road between cells, pixels."""
WOBBLE = 20
"""Furthest that a border is bent from its straight line, pixels."""
MARGIN = ROAD + WOBBLE + 8
"""Strip inside a cell that roads, shores and pavements may use, pixels."""

SEA, MARINA, RIVER, AIRFIELD, TANKS, SPORTS, TOWN = range(7)

THEME_CLASSES: dict[int, dict[str, float]] = {
    SEA: {"ship": 1.0},
    MARINA: {"harbor": 0.7, "ship": 0.3},
    RIVER: {"bridge": 0.26, "ship": 0.3, "baseball_diamond": 0.16, "tennis_court": 0.16, "basketball_court": 0.12},
    AIRFIELD: {"airplane": 0.85, "vehicle": 0.15},
    TANKS: {"storage_tank": 0.88, "vehicle": 0.12},
    SPORTS: {"ground_track_field": 0.14, "baseball_diamond": 0.3, "tennis_court": 0.33, "basketball_court": 0.23},
    TOWN: {"vehicle": 0.72, "basketball_court": 0.13, "tennis_court": 0.15},
}
"""Theme of a cell -> class -> share of its objects."""
_LAND_WEIGHTS = {AIRFIELD: 0.26, TANKS: 0.17, SPORTS: 0.34, TOWN: 0.23}
_RIVER_EVERY = 4
"""One column of cells in so many carries a river."""

# Each row: two colours that patches of ground alternate between, and the strength of fine grain.
_PALETTES: dict[int, list[tuple[tuple[int, int, int], tuple[int, int, int], float]]] = {
    SEA: [((40, 60, 72), (46, 66, 76), 2.0)],
    MARINA: [((40, 60, 72), (46, 66, 76), 2.0)],
    RIVER: [((74, 88, 56), (96, 102, 70), 8.0), ((62, 80, 50), (84, 94, 62), 9.0), ((104, 104, 76), (82, 92, 62), 7.0)],
    AIRFIELD: [((164, 162, 152), (150, 149, 141), 4.0), ((128, 127, 122), (140, 138, 130), 4.0),
               ((178, 172, 156), (164, 158, 144), 4.0), ((108, 110, 110), (120, 120, 117), 4.0)],
    TANKS: [((140, 132, 112), (118, 118, 92), 6.0), ((112, 116, 86), (92, 104, 70), 6.0),
            ((150, 146, 136), (138, 134, 122), 5.0)],
    SPORTS: [((84, 100, 62), (98, 110, 70), 6.0), ((72, 92, 56), (86, 100, 62), 6.0),
             ((112, 114, 78), (94, 106, 68), 6.0), ((64, 82, 52), (78, 92, 58), 7.0)],
    TOWN: [((108, 110, 112), (118, 119, 118), 4.0), ((124, 122, 116), (112, 112, 110), 4.0),
           ((96, 100, 102), (106, 109, 110), 4.0)],
}  # fmt: skip

_LEFT, _RIGHT, _TOP, _BOTTOM, _JOINTS, _QUAY = 1, 2, 4, 8, 16, 32


@dataclass(frozen=True)
class Ground:
    """The ground of one scene; cheap to make, holds no pixels."""

    seed: int
    """The scene's seed."""
    themes: tuple[int, ...]
    """Themes that occur; at least one."""

    def origin(self) -> tuple[int, int]:
        """Offset x y that turns scene pixels into ground pixels, so that cells start anywhere; >= CELL."""
        rng = place_rng(self.seed, 11)
        return CELL + int(rng.integers(CELL)), CELL + int(rng.integers(CELL))

    def river_along_x(self) -> bool:
        """Whether rivers run along x (else along y)."""
        return bool(place_rng(self.seed, 12).random() < 0.5)

    def theme(self, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> NDArray[np.int64]:
        """Theme of each cell; ``rows`` and ``cols`` broadcast."""
        rows, cols = np.broadcast_arrays(np.asarray(rows, np.int64), np.asarray(cols, np.int64))
        land = [(t, w) for t, w in _LAND_WEIGHTS.items() if t in self.themes]
        water = [t for t in (SEA, MARINA) if t in self.themes]
        pick = hash_unit(self.seed, rows, cols, 1)
        if land:
            steps = np.cumsum([w for _, w in land]) / sum(w for _, w in land)
            index = np.minimum(np.searchsorted(steps, pick, side="right"), len(land) - 1)
            out = np.array([t for t, _ in land])[index]
        else:
            out = np.full(rows.shape, (water or [RIVER])[0], np.int64)
        if RIVER in self.themes:
            out = np.where(self._in_river_lane(rows, cols), RIVER, out)
        if water:
            # Two by two cells share a level, so that water comes in lakes and not in single cells.
            level = hash_unit(self.seed, (rows + 1) // 2, (cols + rows // 2 % 2) // 2, 2)
            kind = np.array([water[0], water[-1]])[(hash_unit(self.seed, rows, cols, 3) < 0.5).astype(int)]
            share = 0.24 if land or RIVER in self.themes else 1.0
            out = np.where(level < share, kind, out)
        return np.asarray(out, np.int64)

    def _in_river_lane(self, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> NDArray[np.bool_]:
        lane = rows if self.river_along_x() else cols
        group = lane // _RIVER_EVERY
        chosen = (hash_unit(self.seed, group, np.zeros_like(group), 4) * _RIVER_EVERY).astype(np.int64)
        return np.asarray(lane % _RIVER_EVERY == chosen)

    def river(self, along: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Course of a river.

        Args:
            along: ground pixels along its lane.

        Returns:
            Offset of its middle from the lane's middle, and its half width; float32 pixels, both as ``along``.
        """
        bend = line_texture(self.seed, 1, 8192, 170.0)[along % 8192] * np.float32(105)
        half = np.float32(46) + line_texture(self.seed, 2, 8192, 120.0)[along % 8192] * np.float32(16)
        return bend, half

    def survey(self, box: tuple[int, int, int, int], step: int = 1) -> Survey:
        """Look at every ``step``-th pixel of a window.

        Args:
            box: x0 y0 x1 y1 in scene pixels; may reach outside the scene by less than CELL - WOBBLE.
            step: 1 = every pixel.
        """
        x0, y0, x1, y1 = box
        off_x, off_y = self.origin()
        xs, ys = np.arange(x0, x1, step) + off_x, np.arange(y0, y1, step) + off_y
        bend = np.float32(WOBBLE / 3)
        bent_x = xs[None, :].astype(np.float32) + sample(texture(self.seed, 1, 1024, 80.0), ys, xs) * bend
        bent_y = ys[:, None].astype(np.float32) + sample(texture(self.seed, 2, 1024, 80.0), ys, xs) * bend
        col, row = (bent_x // CELL).astype(np.int32), (bent_y // CELL).astype(np.int32)
        row0, col0 = int(row.min()), int(col.min())
        rows, cols = np.arange(row0 - 1, int(row.max()) + 2), np.arange(col0 - 1, int(col.max()) + 2)
        themes = self.theme(rows[:, None], cols[None, :])
        cell = (row - (row0 - 1)) * np.int32(len(cols)) + (col - (col0 - 1))
        inside_x, inside_y = bent_x - col * np.float32(CELL), bent_y - row * np.float32(CELL)
        water = np.take(np.isin(themes, (SEA, MARINA)).ravel(), cell)
        shore = np.full(water.shape, np.float32(99))
        if (themes == RIVER).any():
            along, across = (xs, ys[:, None]) if self.river_along_x() else (ys[:, None], xs)
            middle, half = self.river(along)
            distance = np.abs((across % CELL) - np.float32(CELL / 2) - middle) - half
            in_lane = np.take((themes == RIVER).ravel(), cell)
            shore = np.where(in_lane, distance.astype(np.float32), shore)
            water = water | (shore < 0)
        return Survey(self.seed, xs, ys, themes, (row0 - 1, col0 - 1), cell, inside_x, inside_y, water, shore)


@dataclass(frozen=True)
class Survey:
    """What lies where in one window; arrays are (h, w) unless they say otherwise."""

    seed: int
    xs: NDArray[np.int64]
    """(w,) ground pixels."""
    ys: NDArray[np.int64]
    """(h,) ground pixels."""
    themes: NDArray[np.int64]
    """(rows, cols) themes of the cells around, one cell more on each side."""
    first: tuple[int, int]
    """Row and column of ``themes[0, 0]``."""
    cell: NDArray[np.int32]
    """Index into ``themes.ravel()``."""
    inside_x: NDArray[np.float32]
    """Position in the bent cell, pixels."""
    inside_y: NDArray[np.float32]
    """Position in the bent cell, pixels."""
    water: NDArray[np.bool_]
    """True on water."""
    shore: NDArray[np.float32]
    """Distance from a river's bank, pixels, negative on the river; 99 away from rivers."""

    def _flags(self) -> NDArray[np.uint16]:
        """Which borders of each cell carry a road, which of them lie on water, which cells have slabs: (cells,)."""
        themes = self.themes
        wet = np.isin(themes, (SEA, MARINA))
        flags = np.where(themes == AIRFIELD, _JOINTS, 0)
        for bit, shift, axis in ((_LEFT, 1, 1), (_RIGHT, -1, 1), (_TOP, 1, 0), (_BOTTOM, -1, 0)):
            other = np.roll(themes, shift, axis)
            same = (themes == other) & np.isin(themes, (RIVER, AIRFIELD, SPORTS))
            flags = flags | np.where(~wet & ~same, bit, 0) | np.where(np.isin(other, (SEA, MARINA)), bit * _QUAY, 0)
        return flags.astype(np.uint16).ravel()

    def _palette(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """First colour, step to the second (cells, 3) and grain (cells,) of each cell."""
        rows = np.arange(self.themes.shape[0]) + self.first[0]
        cols = np.arange(self.themes.shape[1]) + self.first[1]
        pick = hash_unit(self.seed, rows[:, None], cols[None, :], 7).ravel()
        tone = hash_unit(self.seed, rows[:, None], cols[None, :], 8).ravel() * 0.24 + 0.88
        joined = self.themes.ravel() == RIVER  # one stretch of land along the whole river
        chance, light = hash_unit(self.seed, np.array([0, 1]), np.array(0), 9).tolist()
        pick[joined], tone[joined] = chance, 0.9 + 0.2 * light
        first, second, grain = [], [], []
        for theme, choice, level in zip(self.themes.ravel().tolist(), pick.tolist(), tone.tolist(), strict=True):
            options = _PALETTES[theme]
            one, two, rough = options[int(choice * len(options))]
            first.append(np.array(one) * level)
            second.append(np.array(two) * level)
            grain.append(rough)
        base = np.array(first, np.float32)
        return base, np.array(second, np.float32) - base, np.array(grain, np.float32)

    def paint(self) -> NDArray[np.float32]:
        """Colour every pixel: (h, w, 3) float32, 0-255, before objects, blur and sensor noise."""
        patch = sample(texture(self.seed, 3, 1024, 26.0), self.ys, self.xs)
        fine = sample(texture(self.seed, 4, 512, 1.6), self.ys, self.xs)
        blotch = sample(texture(self.seed, 5, 512, 6.0), self.ys, self.xs)
        base, step, grain = self._palette()
        mix = np.clip((patch + np.float32(0.35) * blotch) * np.float32(0.8) + np.float32(0.5), 0, 1)
        image = np.take(base, self.cell, axis=0)
        image += mix[..., None] * np.take(step, self.cell, axis=0)
        rough = np.take(grain, self.cell) * (np.float32(0.7) * fine + np.float32(0.5) * blotch)
        flags = np.take(self._flags(), self.cell)
        self._slabs(image, flags)
        image += rough[..., None]
        self._roads(image, flags, fine)
        self._waters(image, patch, fine, blotch)
        return image

    def _slabs(self, image: NDArray[np.float32], flags: NDArray[np.uint16]) -> None:
        """Draw the joints between an apron's concrete slabs."""
        joint = ((self.xs % 37 == 0)[None, :] | (self.ys % 37 == 0)[:, None]) & ((flags & _JOINTS) > 0)
        image[joint] *= np.float32(0.9)

    def _roads(self, image: NDArray[np.float32], flags: NDArray[np.uint16], fine: NDArray[np.float32]) -> None:
        far = np.float32(9999)
        size = np.float32(CELL)
        across_x = np.minimum(
            np.where(flags & _LEFT, self.inside_x, far), np.where(flags & _RIGHT, size - self.inside_x, far)
        )
        across_y = np.minimum(
            np.where(flags & _TOP, self.inside_y, far), np.where(flags & _BOTTOM, size - self.inside_y, far)
        )
        distance = np.minimum(across_x, across_y)
        edge = (distance < ROAD + 5) & (distance >= ROAD)
        image[edge] = np.array([150, 148, 140], np.float32) + 3 * fine[edge][:, None]
        road = distance < ROAD
        image[road] = np.array([104, 106, 107], np.float32) + 4 * fine[road][:, None]
        crossing = (across_x < ROAD) & (across_y < ROAD)
        along = np.where(across_x < across_y, self.inside_y, self.inside_x)
        dash = road & ~crossing & (distance < 1.3) & (along % 36 < 20)
        side_x = np.where(self.inside_x[dash] < CELL / 2, _LEFT, _RIGHT)
        side_y = np.where(self.inside_y[dash] < CELL / 2, _TOP, _BOTTOM)
        side = np.where(across_x[dash] < across_y[dash], side_x, side_y)
        dash[dash] = (flags[dash] & (side * _QUAY)) == 0  # no middle line along a quay
        image[dash] = np.array([190, 186, 168], np.float32)
        kerb = road & ~crossing & (distance > ROAD - 3) & (distance < ROAD - 1.6)
        image[kerb] = np.array([168, 168, 162], np.float32)

    def _waters(
        self, image: NDArray[np.float32], patch: NDArray[np.float32], fine: NDArray[np.float32],
        blotch: NDArray[np.float32],
    ) -> None:  # fmt: skip
        bank = (self.shore >= 0) & (self.shore < 7)
        image[bank] = np.array([126, 118, 94], np.float32) + 7 * blotch[bank][:, None]
        if not self.water.any():
            return
        slow = sample(texture(self.seed, 6, 512, 40.0), self.ys // 4, self.xs // 4)[self.water]
        deep = np.array([[30, 48, 60], [44, 66, 74], [40, 56, 50]], np.float32)
        colour = deep[0] + (deep[1] - deep[0]) * np.clip(slow + np.float32(0.5), 0, 1)[:, None]
        colour += (deep[2] - deep[0]) * np.clip(-slow - np.float32(0.2), 0, 1)[:, None]
        ripple = np.float32(1.6) * fine + np.float32(1.4) * blotch + np.float32(1.5) * patch
        image[self.water] = colour + ripple[self.water][:, None]
