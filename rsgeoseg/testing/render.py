"""Pictures of a generated scene: any window, the same bits whichever window it is drawn in."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from rsgeoseg.testing.drawing import Pen, shadow_of
from rsgeoseg.testing.noise import place_rng, sample, texture
from rsgeoseg.testing.oracle import encode_ids
from rsgeoseg.testing.things import LOOKS, Thing
from rsgeoseg.testing.truth import overlap, touch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rsgeoseg.testing.truth import Box, SceneTruth

_REACH = 256
"""Furthest that a thing's paint reaches over its cell's border, pixels."""


def draw_scene(truth: SceneTruth, box: Box) -> NDArray[np.uint8]:
    """Draw a window of the scene as a picture: (3, h, w) uint8 red, green, blue.

    Args:
        truth: the scene.
        box: x0 y0 x1 y1 half-open, scene pixels, inside the scene.
    """
    x0, y0, x1, y1 = box
    wide = (x0 - 1, y0 - 1, x1 + 1, y1 + 1)
    survey = truth.ground.survey(wide)
    image = survey.paint()
    _draw_things(truth, image, wide)
    # Optics: a 3 x 3 binomial blur, from plain sums so that every window gives the same bits.
    image = image[:-2] + image[2:] + 2 * image[1:-1]
    image = (image[:, :-2] + image[:, 2:] + 2 * image[:, 1:-1]) / np.float32(16)
    ys, xs = survey.ys[1:-1], survey.xs[1:-1]
    light = sample(texture(truth.seed, 7, 512, 24.0), ys // 4, xs // 4) * np.float32(0.035) + np.float32(1)
    image *= light[..., None]
    image += (sample(texture(truth.seed, 8, 1024, 0.6), ys, xs) * np.float32(3.0))[..., None]
    return np.ascontiguousarray(np.clip(image, 0, 255).astype(np.uint8).transpose(2, 0, 1))


def draw_ids(truth: SceneTruth, box: Box) -> NDArray[np.uint8]:
    """Write a window's instance ids as bytes: (3, h, w) uint8, id = first << 16 | second << 8 | third."""
    return encode_ids(truth.labels(box))


def _draw_things(truth: SceneTruth, image: NDArray[np.float32], window: Box) -> None:
    """Draw surrounds, then shadows, then clutter and objects, so that no object is covered."""
    turn = place_rng(truth.seed, 31).uniform(0, 2 * math.pi)
    sun = (math.cos(turn), math.sin(turn))
    shown = [
        thing
        for row, col in truth.cells(window, _REACH)
        for thing in truth.things(row, col)
        if touch(thing.crop, window) and _is_shown(truth, thing, row, col)
    ]
    for thing in shown:
        surround = LOOKS[thing.kind].surround
        if surround is not None:
            pen = Pen(thing.frame, thing.crop)
            surround(pen, thing.length, thing.width, place_rng(thing.style, 1))
            _lay(image, window, thing.crop, *pen.pixels())
    painted = [(thing, _painted(thing)) for thing in shown]
    for thing, (_, cover) in painted:
        height = LOOKS[thing.kind].height
        if height:
            shade = np.float32(0.55) * shadow_of(cover, sun, height)
            _lay(image, window, thing.crop, np.zeros((*shade.shape, 3), np.float32), shade)
    for thing, (colour, cover) in sorted(painted, key=lambda pair: pair[0].instance > 0):
        _lay(image, window, thing.crop, colour, cover)


def _is_shown(truth: SceneTruth, thing: Thing, row: int, col: int) -> bool:
    """Clutter always; an object only where it is in the truth, or wholly outside the scene."""
    x0, y0, x1, y1 = thing.crop
    if not thing.instance or (x0 >= 0 and y0 >= 0 and x1 <= truth.width and y1 <= truth.height):
        return True
    return truth.true_object(thing, row, col) is not None


def _painted(thing: Thing) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    pen = Pen(thing.frame, thing.crop)
    LOOKS[thing.kind].paint(pen, thing.length, thing.width, place_rng(thing.style, 2))
    return pen.pixels()


def _lay(
    image: NDArray[np.float32], window: Box, crop: Box, colour: NDArray[np.float32], cover: NDArray[np.float32]
) -> None:
    """Lay a drawing over the picture; ``colour`` is already multiplied by ``cover``."""
    there, here = overlap(crop, window)
    image[here] = image[here] * (1 - cover[there])[..., None] + colour[there]
