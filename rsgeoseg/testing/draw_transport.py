"""How airplanes, ships, vehicles, bridges and harbours look from above."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rsgeoseg.testing.looks import WHITE, Look, Outlines, mirror, pick, rectangle, shade

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rsgeoseg.testing.drawing import Pen


# --- airplane ---


def _airplane_parts(length: float, width: float) -> Outlines:
    f = 0.056 * length
    v, t = width / 2, 0.19 * length
    fuselage = [(0.5, 0.0), (0.485, 0.5), (0.45, 0.85), (0.38, 1.0), (-0.2, 1.0), (-0.36, 0.7), (-0.5, 0.25)]
    body = mirror([(u * length, f * s) for u, s in fuselage])
    wing = mirror([(0.16 * length, 0.0), (0.12 * length, f), (-0.11 * length, v), (-0.175 * length, v),
                    (-0.07 * length, 0.35 * v), (-0.08 * length, 0.0)])  # fmt: skip
    tail = mirror([(-0.35 * length, 0.0), (-0.36 * length, f * 0.6), (-0.46 * length, t), (-0.5 * length, t),
                    (-0.455 * length, f * 0.3), (-0.46 * length, 0.0)])  # fmt: skip
    return [wing, tail, body]


def _paint_airplane(pen: Pen, length: float, width: float, rng: np.random.Generator) -> None:
    skin = pick(rng, (228, 230, 230), (236, 234, 226), (205, 208, 210), (180, 188, 196))
    wing, tail, body = _airplane_parts(length, width)
    pen.polygon(wing, shade(skin, 0.9))
    pen.polygon(tail, shade(skin, 0.93))
    for side in (-1, 1):
        for place in (0.32, 0.55)[: 1 + int(length > 75)]:
            u, v = (0.11 - 0.22 * place) * length, side * place * width / 2
            pen.rectangle(u - 0.02 * length, v - 0.018 * length, u + 0.055 * length, v + 0.018 * length,
                          shade(skin, 0.72))  # fmt: skip
    pen.polygon(body, skin)
    f = 0.056 * length
    pen.polygon([(0.38 * length, f * 0.55), (0.38 * length, f), (-0.2 * length, f), (-0.4 * length, f * 0.5)],
                shade(skin, 0.78))  # fmt: skip
    pen.polygon([(0.455 * length, -f * 0.6), (0.43 * length, -f * 0.7), (0.43 * length, f * 0.7),
                 (0.455 * length, f * 0.6)], (60, 66, 76))  # fmt: skip
    fin = pick(rng, (170, 60, 55), (60, 85, 140), (215, 215, 215), (60, 110, 90), (200, 140, 60))
    pen.line([(-0.33 * length, 0), (-0.49 * length, 0)], max(0.7, 0.02 * length), fin)


# --- ship ---


def _hull(length: float, width: float) -> NDArray[np.float64]:
    u, v = length / 2, width / 2
    return mirror([(u, 0.0), (u - 0.35 * width, v * 0.45), (u - 0.95 * width, v * 0.92), (u - 1.5 * width, v),
                    (-u + 0.35 * width, v), (-u, v * 0.72)])  # fmt: skip


def _paint_ship(pen: Pen, length: float, width: float, rng: np.random.Generator) -> None:
    deck = pick(rng, (150, 76, 66), (138, 92, 80), (135, 142, 145), (165, 168, 160), (96, 116, 120), (190, 192, 186))
    pen.polygon(_hull(length, width), shade(deck, 0.62))
    pen.polygon(_hull(length * 0.955, width * 0.8), deck)
    u, v = length / 2, width / 2
    holds = int(np.clip(length / max(width, 1) - 0.5, 2, 7))
    kind = int(rng.integers(3))
    for i in range(holds):
        a = -u * 0.5 + i * (u * 1.25) / holds
        b = a + (u * 1.25) / holds * 0.72
        if kind == 0:
            pen.rectangle(a, -v * 0.5, b, v * 0.5, shade(deck, 0.72 if i % 2 else 1.22))
        elif kind == 1:
            box = pick(rng, (168, 82, 70), (92, 112, 150), (196, 190, 176), (120, 140, 120))
            pen.rectangle(a, -v * 0.62, b, v * 0.62, box)
        else:
            pen.line([(a, -v * 0.5), (a, v * 0.5)], max(0.5, 0.05 * width), shade(deck, 1.3))
    if kind == 2:
        pen.line([(-u * 0.5, 0), (u * 0.7, 0)], max(0.5, 0.07 * width), shade(deck, 1.25))
    house = -u + 0.18 * length
    pen.rectangle(-u + 0.06 * length, -v * 0.6, house, v * 0.6, WHITE)
    pen.rectangle(house - 0.03 * length, -v * 0.8, house, v * 0.8, (205, 208, 208))
    pen.disc(-u + 0.1 * length, 0, max(0.8, 0.12 * width), (110, 96, 88))


# --- vehicle ---


def _rounded(length: float, width: float) -> NDArray[np.float64]:
    u, v, r = length / 2, width / 2, width * 0.28
    return mirror([(u, 0.0), (u - 0.1 * r, v - r), (u - 0.5 * r, v - 0.35 * r), (u - 1.6 * r, v), (-u + r, v),
                   (-u + 0.25 * r, v - 0.4 * r), (-u, 0.0)])  # fmt: skip


def _paint_vehicle(pen: Pen, length: float, width: float, rng: np.random.Generator) -> None:
    body = pick(
        rng, (226, 228, 228), (58, 62, 70), (150, 152, 154), (150, 56, 50), (66, 84, 124), (196, 198, 200),
        (120, 132, 128), (200, 186, 90), (40, 44, 50),
    )  # fmt: skip
    glass = pick(rng, (42, 50, 58), (62, 74, 84), spread=6)
    u, v = length / 2, width / 2
    pen.polygon(_rounded(length, width), shade(body, 0.8))
    pen.polygon(_rounded(length * 0.95, width * 0.86), body)
    van = rng.random() < 0.2
    back = -0.86 if van else -0.62
    pen.polygon([(0.36 * u, -0.7 * v), (0.16 * u, -0.62 * v), (0.16 * u, 0.62 * v), (0.36 * u, 0.7 * v),
                 (0.43 * u, 0.0)], glass)  # fmt: skip
    pen.polygon([(back * u, -0.62 * v), ((back + 0.14) * u, -0.6 * v), ((back + 0.14) * u, 0.6 * v),
                 (back * u, 0.62 * v)], glass)  # fmt: skip
    for side in (-1, 1):
        pen.line([((back + 0.16) * u, side * 0.74 * v), (0.2 * u, side * 0.74 * v)], 0.07 * width, glass)
    pen.rectangle((back + 0.18) * u, -0.58 * v, 0.14 * u, 0.58 * v, shade(body, 1.12))
    pen.line([(0.9 * u, -0.6 * v), (0.9 * u, 0.6 * v)], 0.7, shade(body, 0.7))


# --- bridge ---

APPROACH = 190.0
"""Length of the road that leads to a bridge, from the middle of the deck, pixels."""


def _paint_bridge(pen: Pen, length: float, width: float, rng: np.random.Generator) -> None:
    u, v = length / 2, width / 2
    deck = pick(rng, (128, 128, 126), (150, 148, 140), (108, 110, 112), (164, 160, 150))
    rail = shade(deck, 1.3)
    pen.rectangle(-u, -v, u, v, rail)
    pen.rectangle(-u, -v + 1.6, u, v - 1.6, shade(deck, 0.86))
    pen.rectangle(-u, -v * 0.8, u, v * 0.8, deck)
    for a in np.arange(-u + 4, u - 8, 16):
        pen.line([(a, 0), (a + 8, 0)], 0.9, (210, 208, 196))
    if width > 36:
        for side in (-0.42, 0.42):
            for a in np.arange(-u + 4, u - 6, 14):
                pen.line([(a, side * v), (a + 6, side * v)], 0.7, (206, 206, 200))
    for a in np.arange(-u, u, max(18.0, length / 7)):
        pen.line([(a, -v), (a, v)], 0.5, shade(deck, 0.85))


def _approach(pen: Pen, length: float, width: float, rng: np.random.Generator) -> None:
    road = pick(rng, (112, 114, 114), (124, 122, 118))
    v = width / 2 * 0.86
    for side in (-1, 1):
        a, b = side * (length / 2 - 2), side * APPROACH
        pen.rectangle(a, -v - 2.5, b, v + 2.5, shade(road, 1.25))
        pen.rectangle(a, -v, b, v, road)
        for along in np.arange(length / 2, APPROACH - 8, 16):
            pen.line([(side * along, 0), (side * (along + 8), 0)], 0.9, (205, 203, 192))


# --- harbour ---


def _boat(pen: Pen, u: float, v0: float, v1: float, width: float, rng: np.random.Generator) -> None:
    """Draw a boat moored at the pier: stern at ``v0``, bow at ``v1``."""
    hull = pick(rng, (226, 228, 226), (214, 216, 216), (234, 232, 226), (170, 180, 190), (120, 130, 150))
    w, reach = width / 2, v1 - v0
    points = [(u - w * 0.85, v0), (u - w, v0 + 0.5 * reach), (u - w * 0.55, v0 + 0.82 * reach), (u, v1),
              (u + w * 0.55, v0 + 0.82 * reach), (u + w, v0 + 0.5 * reach), (u + w * 0.85, v0)]  # fmt: skip
    pen.polygon(points, hull)
    cover = pick(rng, (70, 96, 140), (180, 176, 160), (110, 112, 116), (236, 236, 236), (150, 70, 60))
    pen.polygon([(u - w * 0.6, v0 + 0.12 * reach), (u - w * 0.6, v0 + 0.45 * reach), (u + w * 0.6, v0 + 0.45 * reach),
                 (u + w * 0.6, v0 + 0.12 * reach)], cover)  # fmt: skip
    pen.line([(u, v0 + 0.5 * reach), (u, v0 + 0.85 * reach)], 0.6, shade(hull, 0.7))


def _paint_harbor(pen: Pen, length: float, width: float, rng: np.random.Generator) -> None:
    u, v = length / 2, width / 2
    plank = pick(rng, (176, 170, 156), (150, 140, 122), (190, 188, 180))
    deck = max(1.6, 0.045 * width)
    pen.rectangle(-u, -deck, u, deck, plank)
    pitch = float(rng.uniform(8.5, 11.5))
    for side in (-1, 1):
        for i, a in enumerate(np.arange(-u + pitch / 2, u - pitch / 3, pitch)):
            if i % 2 == 0:
                pen.line([(a - pitch / 2, side * deck), (a - pitch / 2, side * v * 0.8)], 0.9, plank)
            if rng.random() < 0.9:
                reach = v * float(rng.uniform(0.72, 0.98))
                _boat(pen, a, side * (deck + 1), side * reach, pitch * float(rng.uniform(0.55, 0.74)), rng)
    pen.rectangle(u - 2.2, -v * 0.9, u, v * 0.9, plank)


TRANSPORT_LOOKS = {
    "airplane": Look((44, 96), (0.78, 0.98), 3.5, 2, _airplane_parts, _paint_airplane),
    "ship": Look((40, 110), (0.17, 0.25), 1.5, 3, lambda length, width: [_hull(length, width)], _paint_ship),
    "vehicle": Look((38, 66), (0.4, 0.48), 3.0, 3, lambda length, width: [_rounded(length, width)], _paint_vehicle),
    "bridge": Look((110, 260), (0.2, 0.34), 4.0, 3, rectangle, _paint_bridge, _approach),
    "harbor": Look((88, 230), (0.3, 0.42), 1.5, 3, rectangle, _paint_harbor),
}
"""Kind -> how it is made."""
