"""Cases of annotated images and of a map."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import shapely
from pycocotools import mask as rle

from rsgeoseg.evaluate.coco import to_rle
from rsgeoseg.evaluate.worst_cases import FALSE, FOUND, MISSED, Case, mask_rings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from rsgeoseg.evaluate.comparison import Comparison, Outcome
    from rsgeoseg.evaluate.worst_cases import Rings

    Drawn: TypeAlias = list[tuple[tuple[int, int, int], Rings]]

TILE = 512
"""Side of a part of a map, scene pixels."""
_AROUND = 64
"""Pixels shown around it, so that objects on its edge can be seen."""


def image_cases(
    comparisons: Sequence[Comparison],
    truth: Mapping[str, Any],
    found: Sequence[Mapping[str, Any]],
    *,
    score: float,
    picture: Callable[[Mapping[str, Any]], NDArray[np.uint8]] | None,
) -> list[Case]:
    """Make a case of every image.

    Args:
        comparisons: of ``compare_images``.
        truth: the annotations they were made from.
        found: the detections they were made from.
        score: results below do not count.
        picture: gives the pixels of an entry of ``truth["images"]``; None = there are none.
    """
    entries = {str(image.get("file_name", f"image {image['id']}")): image for image in truth["images"]}
    cases = []
    for each in comparisons:
        image, outcome = entries[each.name], each.judge(score)
        true_items = [truth["annotations"][row] for row in each.true_rows[outcome.missed].tolist()]
        colours = [(MISSED, item) for item in true_items]
        for colour, which in ((FALSE, outcome.false), (FOUND, outcome.hits)):
            colours += [(colour, found[row]) for row in each.found_rows[which].tolist()]
        cases.append(
            Case(
                name=each.name,
                width=int(image["width"]),
                height=int(image["height"]),
                **_counts(outcome),
                rings=partial(_image_rings, colours, image),
                picture=None if picture is None else partial(picture, image),
            )
        )
    return cases


def map_cases(
    comparison: Comparison,
    truth: NDArray[np.object_],
    found: NDArray[np.object_],
    *,
    size: tuple[int, int],
    score: float,
    read: Callable[[int, int, int, int], NDArray[np.uint8]] | None,
) -> list[Case]:
    """Cut a map into parts of 512 x 512 pixels and make a case of each; an object counts where its centre lies.

    Args:
        comparison: of ``compare_map``.
        truth: (N,) true polygons, scene pixels.
        found: (M,) found polygons, scene pixels, in the file's order.
        size: width and height of the scene.
        score: results below do not count.
        read: gives the pixels (h, w, 3) RGB of x0 y0 x1 y1; None = there are none.
    """
    outcome, found = comparison.judge(score), found[comparison.found_rows]
    shapes = np.concatenate([truth[outcome.missed], found[outcome.false], found[outcome.hits]])
    kinds = np.repeat([0, 1, 2], [len(outcome.missed), len(outcome.false), len(outcome.hits)])
    centres = shapely.get_coordinates(shapely.centroid(shapes)).reshape(-1, 2)
    last = np.maximum((np.array(size) - 1) // TILE, 0)
    tiles = np.clip(np.floor(centres / TILE).astype(np.int64), 0, last)
    bounds = shapely.bounds(shapes).reshape(-1, 4)
    cases = []
    for col, row in np.unique(tiles, axis=0).tolist():
        here = (tiles == (col, row)).all(axis=1)
        x0, y0 = max(col * TILE - _AROUND, 0), max(row * TILE - _AROUND, 0)
        x1, y1 = min((col + 1) * TILE + _AROUND, size[0]), min((row + 1) * TILE + _AROUND, size[1])
        missed, false, hits = np.bincount(kinds[here], minlength=3).tolist()
        seen = (bounds[:, :2] < (x1, y1)).all(axis=1) & (bounds[:, 2:] > (x0, y0)).all(axis=1)
        cases.append(
            Case(
                name=f"x {col * TILE}-{(col + 1) * TILE}, y {row * TILE}-{(row + 1) * TILE}",
                width=x1 - x0,
                height=y1 - y0,
                n_found=hits,
                n_missed=missed,
                n_false=false,
                rings=partial(_map_rings, shapes[seen], kinds[seen], (x0, y0)),
                picture=None if read is None else partial(read, x0, y0, x1, y1),
            )
        )
    return cases


def _counts(outcome: Outcome) -> dict[str, int]:
    return {"n_found": len(outcome.hits), "n_missed": len(outcome.missed), "n_false": len(outcome.false)}


def _image_rings(items: list[tuple[tuple[int, int, int], Mapping[str, Any]]], image: Mapping[str, Any]) -> Drawn:
    out = []
    for colour, item in items:
        if item.get("segmentation"):
            mask = rle.decode(to_rle(item["segmentation"], image["height"], image["width"]))
            out.append((colour, mask_rings(mask)))
        else:
            x, y, w, h = item["bbox"]
            out.append((colour, [np.array([(x, y), (x + w, y), (x + w, y + h), (x, y + h)], np.float64)]))
    return out


def _map_rings(shapes: NDArray[np.object_], kinds: NDArray[np.int64], origin: tuple[int, int]) -> Drawn:
    out: Drawn = []
    for shape, kind in zip(shapes, kinds.tolist(), strict=True):
        polygons = [part for part in shapely.get_parts(shape) if part.geom_type == "Polygon"]
        rings = [np.asarray(ring.coords)[:-1, :2] for part in polygons for ring in (part.exterior, *part.interiors)]
        out.append(((MISSED, FALSE, FOUND)[kind], [ring - origin for ring in rings]))
    return out
