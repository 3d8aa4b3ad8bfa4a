"""How tanks, sports grounds, trees and buildings look from above."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rsgeoseg.testing.drawing import Colour, Pen, arc
from rsgeoseg.testing.looks import WHITE, Look, Outlines, pick, rectangle, shade

if TYPE_CHECKING:
    from numpy.typing import NDArray


# --- storage tank ---


def _disc(length: float, width: float) -> Outlines:  # noqa: ARG001  (a tank is round)
    return [arc(0, 0, length / 2, 0, 2 * np.pi)]


def _paint_tank(pen: Pen, length: float, width: float, rng: np.random.Generator) -> None:  # noqa: ARG001
    r = length / 2
    roof = pick(rng, (236, 236, 232), (242, 240, 234), (226, 228, 226), (196, 198, 192), (206, 200, 182))
    pen.disc(0, 0, r, shade(roof, 0.8))
    pen.disc(0, 0, r * 0.94, roof)
    kind = int(rng.integers(4))
    if kind == 0:  # floating roof: the rim throws a shade inside
        pen.disc(0, 0, r * 0.9, shade(roof, 0.62))
        pen.disc(r * 0.09, 0, r * 0.82, shade(roof, 0.96))
    elif kind == 1:
        for i in range(10):
            pen.line([(0, 0), tuple(arc(0, 0, r * 0.92, i * np.pi / 5, i * np.pi / 5, 1)[0])], 0.4, shade(roof, 0.92))
    elif kind == 2:
        pen.polygon(arc(0, 0, r * 0.94, 0, np.pi), shade(roof, 0.94))
    pen.disc(r * 0.1, r * 0.05, max(0.9, r * 0.09), shade(roof, 0.75))
    pen.line([(0, r * 0.2), (0, r * 0.9)], 0.6, shade(roof, 0.7))


def _tank_bund(pen: Pen, length: float, width: float, rng: np.random.Generator) -> None:
    half_u, half_v = length / 2 + 13, width / 2 + 13
    ground = pick(rng, (138, 122, 96), (118, 122, 92), (150, 146, 134), (112, 116, 110))
    pen.rectangle(-half_u, -half_v, half_u, half_v, shade(ground, 1.22))
    pen.rectangle(-half_u + 2, -half_v + 2, half_u - 2, half_v - 2, ground)
    pen.disc(0, 0, length / 2 + 3, shade(ground, 0.82))


# --- sports grounds ---


def _diamond(length: float, width: float) -> Outlines:
    u, v = length / 2, width / 2
    fan = arc(0, 0, 1, -np.pi / 2, np.pi / 2, 40) * [u, v]
    home = arc(-u + 0.07 * length, 0, 0.07 * length, 0, 2 * np.pi, 20)
    return [np.concatenate([fan, [(-u + 0.02 * length, 0.03 * length), (-u + 0.02 * length, -0.03 * length)]]), home]


def _paint_diamond(pen: Pen, length: float, width: float, rng: np.random.Generator) -> None:
    dirt = pick(rng, (178, 146, 104), (186, 160, 122), (164, 120, 88), (196, 176, 140), spread=10)
    for part in _diamond(length, width):
        pen.polygon(part, dirt)
    if rng.random() < 0.72:
        grass = pick(rng, (84, 102, 60), (72, 94, 58), (96, 110, 66))
        c, d = -0.1 * length, 0.26 * length
        pen.polygon([(c - d, 0), (c, -d), (c + d, 0), (c, d)], grass)
        pen.disc(c, 0, 0.05 * length, shade(dirt, 1.05))
    else:
        pen.disc(-0.1 * length, 0, 0.045 * length, shade(dirt, 1.12))
    for u, v in ((0.2, 0.0), (-0.1, 0.3), (-0.1, -0.3)):
        pen.disc(u * length, v * length, 0.9, WHITE)
    for side in (-1, 1):
        pen.line([(-0.43 * length, 0), (-0.02 * length, side * 0.43 * length)], 0.6, shade(dirt, 1.25))


def _outfield(pen: Pen, length: float, width: float, rng: np.random.Generator) -> None:  # noqa: ARG001
    grass = pick(rng, (78, 98, 58), (92, 108, 66), (70, 90, 56))
    reach = length / 2 + 15
    pen.polygon(np.concatenate([[(-length * 0.5 - 6, 0)], arc(0, 0, reach, -1.5, 1.5, 40)]), grass)
    for inset in (1.0, 9.0):
        band = [arc(0, 0, reach - inset, -1.4, 1.4, 30), arc(0, 0, reach - inset - 4, 1.4, -1.4, 30)]
        pen.polygon(np.concatenate(band), shade(grass, 1.08))


def _court_surface(rng: np.random.Generator) -> tuple[Colour, Colour]:
    inner = pick(rng, (78, 92, 140), (86, 110, 92), (110, 124, 108), (150, 92, 76), (96, 122, 142), (122, 128, 122))
    outer = pick(rng, (146, 84, 70), (84, 108, 86), (104, 112, 106), (92, 100, 112), (128, 124, 112))
    return inner, outer


def _court_apron(pen: Pen, length: float, width: float, rng: np.random.Generator) -> None:
    _, outer = _court_surface(rng)
    half_u, half_v = length / 2 + 11, width / 2 + 9
    pen.rectangle(-half_u, -half_v, half_u, half_v, shade(outer, 0.7))
    pen.rectangle(-half_u + 1, -half_v + 1, half_u - 1, half_v - 1, outer)


def _paint_tennis(pen: Pen, length: float, width: float, rng: np.random.Generator) -> None:
    inner, _ = _court_surface(rng)
    u, v, w = length / 2, width / 2, max(0.55, length * 0.011)
    line = pick(rng, (222, 224, 218), (206, 210, 204))
    pen.rectangle(-u, -v, u, v, inner)
    e = w / 2
    pen.line([(-u + e, -v + e), (u - e, -v + e), (u - e, v - e), (-u + e, v - e)], w, line, closed=True)
    for side in (-0.75, 0.75):
        pen.line([(-u, side * v), (u, side * v)], w, line)
    for end in (-0.54, 0.54):
        pen.line([(end * u, -0.75 * v), (end * u, 0.75 * v)], w, line)
    pen.line([(-0.54 * u, 0), (0.54 * u, 0)], w, line)
    pen.line([(0, -v), (0, v)], w * 1.3, shade(inner, 0.55))
    pen.line([(1, -v), (1, v)], w * 0.8, shade(inner, 0.8))


def _paint_basketball(pen: Pen, length: float, width: float, rng: np.random.Generator) -> None:
    inner, _ = _court_surface(rng)
    key = pick(rng, (150, 84, 70), (88, 104, 146), (96, 118, 100), inner)
    u, v, w = length / 2, width / 2, max(0.6, length * 0.009)
    line = pick(rng, (214, 216, 208), (196, 200, 192))
    pen.rectangle(-u, -v, u, v, inner)
    e = w / 2 + 0.01 * length
    for side in (-1, 1):
        pen.rectangle(side * (u - e), -0.3 * v, side * 0.6 * u, 0.3 * v, key)
        pen.line([(side * (u - e), -0.3 * v), (side * 0.6 * u, -0.3 * v), (side * 0.6 * u, 0.3 * v),
                  (side * (u - e), 0.3 * v)], w, line)  # fmt: skip
        bow = arc(0, 0, 1, -np.pi / 2, np.pi / 2, 28) * [0.56 * u, 0.82 * v]
        pen.line((bow - [u - e, 0]) * [-side, 1], w, line)
        pen.line(arc(side * 0.6 * u, 0, 0.3 * v, 0, 2 * np.pi), w, line, closed=True)
        pen.disc(side * (u - 0.035 * length), 0, max(0.7, 0.012 * length), (120, 60, 45))
    pen.line([(-u + e, -v + e), (u - e, -v + e), (u - e, v - e), (-u + e, v - e)], w, line, closed=True)
    pen.line([(0, -v + e), (0, v - e)], w, line)
    pen.line(arc(0, 0, 0.28 * v, 0, 2 * np.pi), w, line, closed=True)


def _stadium(length: float, width: float) -> NDArray[np.float64]:
    r, straight = width / 2, (length - width) / 2
    half = np.pi / 2
    return np.concatenate([arc(straight, 0, r, -half, half), arc(-straight, 0, r, half, 3 * half)])


def _paint_track(pen: Pen, length: float, width: float, rng: np.random.Generator) -> None:
    lane = pick(rng, (150, 86, 68), (162, 100, 78), (136, 78, 66), (120, 112, 104), (96, 98, 100))
    grass = pick(rng, (84, 104, 62), (70, 96, 58), (98, 112, 72), (78, 112, 74))
    ring = 0.16 * width
    pen.polygon(_stadium(length, width), lane)
    for i in range(1, 6):
        inset = 2 * ring * i / 6
        pen.line(_stadium(length - inset, width - inset), 0.4, shade(lane, 1.18), closed=True)
    pen.polygon(_stadium(length - 2 * ring, width - 2 * ring), shade(lane, 1.1) if rng.random() < 0.4 else grass)
    u, v = (length - width) / 2 + 0.06 * length, width / 2 - ring - 0.03 * width
    stripes = 10
    for i in range(stripes):
        a = -u + 2 * u * i / stripes
        pen.rectangle(a, -v, a + 2 * u / stripes, v, shade(grass, 1.0 if i % 2 else 1.09))
    white = (205, 210, 200)
    pen.line([(-u, -v), (u, -v), (u, v), (-u, v)], 0.8, white, closed=True)
    pen.line([(0, -v), (0, v)], 0.7, white)
    pen.line(arc(0, 0, 0.22 * v, 0, 2 * np.pi), 0.7, white, closed=True)
    for side in (-1, 1):
        pen.line([(side * u, -0.45 * v), (side * 0.72 * u, -0.45 * v), (side * 0.72 * u, 0.45 * v),
                  (side * u, 0.45 * v)], 0.7, white)  # fmt: skip


# --- clutter ---


def _paint_tree(pen: Pen, length: float, width: float, rng: np.random.Generator) -> None:  # noqa: ARG001
    leaf = pick(rng, (52, 70, 42), (62, 80, 48), (46, 62, 44), (74, 86, 52), spread=8)
    r = length / 2
    crown = arc(0, 0, r, 0, 2 * np.pi, 18)[:-1] * rng.uniform(0.8, 1.02, (17, 1))
    pen.polygon(crown, shade(leaf, 0.8))
    for _ in range(max(6, int(r))):
        turn, far = rng.uniform(0, 2 * np.pi), r * 0.72 * np.sqrt(rng.random())
        tone = 0.75 + 0.5 * rng.random()
        pen.disc(far * np.cos(turn), far * np.sin(turn), r * float(rng.uniform(0.12, 0.26)), shade(leaf, tone))


def _paint_building(pen: Pen, length: float, width: float, rng: np.random.Generator) -> None:
    roof = pick(rng, (168, 166, 160), (196, 194, 186), (128, 98, 84), (140, 132, 122), (110, 112, 116), (150, 116, 98))
    u, v = length / 2, width / 2
    pen.rectangle(-u, -v, u, v, shade(roof, 0.85))
    if rng.random() < 0.5:
        pen.polygon([(-u, -v), (u, -v), (u, 0), (-u, 0)], shade(roof, 1.06))
        pen.polygon([(-u, 0), (u, 0), (u, v), (-u, v)], shade(roof, 0.84))
        pen.line([(-u, 0), (u, 0)], 0.8, shade(roof, 1.2))
    else:
        pen.rectangle(-u + 1.5, -v + 1.5, u - 1.5, v - 1.5, roof)
        for _ in range(int(rng.integers(2, 9))):
            a, b = rng.uniform(-u * 0.85, u * 0.75), rng.uniform(-v * 0.85, v * 0.7)
            pen.rectangle(a, b, a + rng.uniform(2, 6), b + rng.uniform(2, 6), shade(roof, float(rng.uniform(0.6, 1.3))))


SITE_LOOKS = {
    "storage_tank": Look((24, 56), (1.0, 1.0), 9.0, 16, _disc, _paint_tank, _tank_bund),
    "baseball_diamond": Look((52, 110), (0.92, 1.06), 0.0, 16, _diamond, _paint_diamond, _outfield),
    "tennis_court": Look((44, 96), (0.46, 0.53), 0.0, 12, rectangle, _paint_tennis, _court_apron),
    "basketball_court": Look((58, 112), (0.53, 0.62), 0.0, 12, rectangle, _paint_basketball, _court_apron),
    "ground_track_field": Look((225, 350), (0.46, 0.54), 0.0, 4, lambda a, b: [_stadium(a, b)], _paint_track),
    "tree": Look((14, 38), (1.0, 1.0), 7.0, 1, _disc, _paint_tree),
    "building": Look((50, 150), (0.35, 0.7), 10.0, 2, rectangle, _paint_building),
}
"""Kind -> how it is made."""
