"""Draw hits, misses and false alarms of a result over its scene.

    python benchmarks/picture.py SCENE TRUTH RESULT OUT.png [--side 1400]

Green: found (same class, IoU at least 0.5). Red: a true object that was missed. Yellow: found where there is none, or
with a wrong class.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import shapely
from PIL import Image, ImageDraw

import rsgeoseg
from rsgeoseg.geo.writers import load_frame

FOUND, MISSED, FALSE = (60, 220, 90), (240, 60, 60), (250, 210, 40)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("scene", "truth", "result", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--side", type=int, default=1400)
    args = parser.parse_args()
    truth, result = load_frame(args.truth), load_frame(args.result).sort_values("score", ascending=False)
    tree = shapely.STRtree(truth.geometry.to_numpy())
    taken: set[int] = set()
    shapes = []
    for geometry, name in zip(result.geometry, result.class_name, strict=True):
        hit = None
        for index in tree.query(geometry, predicate="intersects"):
            other = truth.geometry.iloc[index]
            same = truth.class_name.iloc[index] == name and index not in taken
            if same and geometry.intersection(other).area >= 0.5 * geometry.union(other).area:
                hit = int(index)
        shapes.append((geometry, FALSE if hit is None else FOUND))
        taken |= set() if hit is None else {hit}
    shapes += [(g, MISSED) for i, g in enumerate(truth.geometry) if i not in taken]
    with rsgeoseg.Scene.open(args.scene) as scene:
        chip, grid = scene.read_thumbnail(args.side), scene.grid
    picture = Image.fromarray(np.ascontiguousarray(chip.image.transpose(1, 2, 0)))
    scale = np.array(picture.size) / (grid.width, grid.height)
    pen = ImageDraw.Draw(picture)
    for geometry, colour in shapes:
        for part in shapely.get_parts(geometry):
            ring = grid.pixels(shapely.get_coordinates(part.exterior)) * scale
            pen.line([tuple(p) for p in ring.tolist()], fill=colour, width=3)
    picture.save(args.out)
    false = sum(colour == FALSE for _, colour in shapes)
    print(f"{args.out}: {len(taken)} found, {len(truth) - len(taken)} missed, {false} false")


if __name__ == "__main__":
    main()
