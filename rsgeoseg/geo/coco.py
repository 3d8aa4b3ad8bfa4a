"""COCO instances: masks as run lengths in the pixels of the whole scene."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from pycocotools import mask as coco_mask

from rsgeoseg.errors import OutputError
from rsgeoseg.geo.frame import SCHEMA
from rsgeoseg.geo.rasterize import draw_masks, pixel_boxes, to_pixels
from rsgeoseg.geo.windows import Box

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import geopandas as gpd
    from numpy.typing import NDArray

    from rsgeoseg.geo.batches import Batches
    from rsgeoseg.geo.grid import GeoGrid

_LARGEST = 2**32 - 1
"""Pixels of the largest scene: COCO's run lengths are 32-bit."""


def write_coco(batches: Batches, path: Path, grid: GeoGrid, *, classes: Sequence[str] | None, scene_name: str) -> int:
    """Write a COCO file: one image (the scene), a category per class, an annotation per row and line.

    ``category_id`` is ``class_id + 1``, as COCO counts from 1. ``area`` and ``bbox`` are in pixels. The image entry
    also says where the scene lies: ``crs`` (WKT) and ``affine`` (a b c d e f). Columns beyond those of `SCHEMA` become
    entries of the annotations. One batch at a time is in memory.

    Returns:
        Annotations that can be read back.

    Raises:
        OutputError: the scene has more pixels than COCO's run lengths can count.
        OSError: the file cannot be written, or not read back.
        Exception: what making a batch raised.
    """
    if grid.height * grid.width > _LARGEST:
        msg = f"cannot write {path.name}: a scene of {grid.width} x {grid.height} is too large for COCO; use .gpkg"
        raise OutputError(msg)
    image = {
        "id": 1,
        "file_name": scene_name,
        "width": grid.width,
        "height": grid.height,
        "crs": None if grid.crs is None else grid.crs.to_wkt(),
        "affine": list(grid.affine)[:6],
    }
    about = {
        "info": {"description": f"objects of {scene_name}", "version": "1.0"},
        "licenses": [],
        "images": [image],
    }
    names = dict(enumerate(classes)) if classes is not None else {}
    with path.open("w", encoding="utf-8") as file:
        file.write(_json(about).removesuffix("}") + ', "annotations": [')
        separator = "\n"
        for frame in batches:
            names |= dict(zip(frame["class_id"].tolist(), frame["class_name"].tolist(), strict=True))
            for annotation in _annotations(frame, grid):
                file.write(separator + _json(annotation))
                separator = ",\n"
        categories = [{"id": index + 1, "name": names[index]} for index in sorted(names)]
        file.write(f'\n], "categories": {_json(categories)}}}\n')
    return _count(path)


def _json(content: object) -> str:
    """JSON in one line."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False)


def _count(path: Path) -> int:
    """Parse a file of `write_coco` line by line; how many annotations it has.

    Raises:
        OSError: it is not whole.
    """
    rows, around = 0, ""
    try:
        with path.open(encoding="utf-8") as file:
            around = next(file, "")
            for line in file:
                if line.startswith("]"):
                    around += line
                else:
                    rows += 1
                    json.loads(line.rstrip(",\n"))
        json.loads(around)
    except ValueError as error:
        msg = f"what was written cannot be read back: {error}"
        raise OSError(msg) from error
    return rows


def run_lengths(mask: NDArray[np.bool_], x0: int, y0: int, height: int, width: int) -> dict[str, Any]:
    """Encode a crop of a mask as COCO run lengths of the whole image.

    Args:
        mask: (h, w) crop.
        x0: left column of the crop in the image.
        y0: upper row of the crop in the image.
        height: rows of the image.
        width: columns of the image.

    Returns:
        ``{"size": [height, width], "counts": str}`` as pycocotools reads it.
    """
    rows, columns = mask.shape
    # COCO counts down the columns; a row of zeros below the crop keeps its columns apart.
    flat = np.zeros((columns, rows + 1), np.int8)
    flat[:, :rows] = mask.T
    steps = np.diff(flat.ravel(), prepend=0)
    column, row = np.divmod(np.flatnonzero(steps), rows + 1)
    edges = (x0 + column) * height + y0 + row
    # An object over the full height runs on from one column into the next.
    joined = np.flatnonzero(edges[1:] == edges[:-1])
    edges = np.delete(edges, np.concatenate([joined, joined + 1]))
    counts = np.diff(np.concatenate([[0], edges, [height * width]]))
    if len(counts) > 1 and counts[-1] == 0:
        counts = counts[:-1]
    coded = coco_mask.frPyObjects({"counts": counts.tolist(), "size": [height, width]}, height, width)
    return {"size": [height, width], "counts": coded["counts"].decode("ascii")}


def _annotations(frame: gpd.GeoDataFrame, grid: GeoGrid) -> list[dict[str, Any]]:
    """Annotations of a batch, in the order of its rows."""
    pixels = to_pixels(frame, grid)
    boxes = pixel_boxes(pixels, Box(0, 0, grid.width, grid.height))
    found: list[dict[str, Any]] = [{}] * len(frame)
    ids, classes, scores = (frame[name].tolist() for name in ("id", "class_id", "score"))
    further = {name: frame[name].tolist() for name in frame if name not in SCHEMA and name != frame.geometry.name}
    for index, mask in draw_masks(pixels, boxes):
        x0, y0 = boxes[index].x0, boxes[index].y0
        rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = [x0, y0, 0, 0]
        if len(rows):
            box = [x0 + cols[0], y0 + rows[0], cols[-1] + 1 - cols[0], rows[-1] + 1 - rows[0]]
        found[index] = {
            "id": ids[index],
            "image_id": 1,
            "category_id": classes[index] + 1,
            "bbox": [int(value) for value in box],
            "area": int(np.count_nonzero(mask)),
            "iscrowd": 0,
            "score": round(scores[index], 6),
            "segmentation": run_lengths(mask, x0, y0, grid.height, grid.width),
        } | {name: values[index] for name, values in further.items()}
    return found
