"""Teach the bundled model a new class from thirty polygons, and see what it learned.

    python examples/new_class.py FOLDER [--steps 300]

Draws two scenes that the model never saw, with buildings, which is none of its ten classes. In the first one thirty
buildings are outlined in a corner, as a user would in QGIS. The rest are the commands of docs/retraining.md: a run and
its accuracy before, a training, a run and its accuracy after, on the second scene. Pictures of both maps are left in
FOLDER.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import geopandas
import numpy as np
import pyogrio
import rasterio
import shapely
from affine import Affine
from PIL import Image, ImageDraw
from rasterio.features import shapes
from rasterio.windows import Window

from rsgeoseg.testing.scenes import SceneTruth, generate_scene

WANTED = 30
SIDE = 4096
TOWN = ("vehicle", "basketball_court", "tennis_court")  # what stands in towns, and so do buildings


def buildings(truth: SceneTruth) -> geopandas.GeoDataFrame:
    """Outlines of the buildings that lie wholly in the scene."""
    found = []
    for row, col in truth.cells((0, 0, truth.width, truth.height)):
        for thing in truth.things(row, col):
            (x0, y0, x1, y1), mask = thing.mask()
            if thing.kind == "building" and x0 >= 0 and y0 >= 0 and x1 <= truth.width and y1 <= truth.height:
                place = truth.affine * Affine.translation(x0, y0)
                found += [s for s, _ in shapes(mask.astype(np.uint8), mask=mask, connectivity=4, transform=place)]
    polygons = [shapely.geometry.shape(shape) for shape in found]
    return geopandas.GeoDataFrame({"class_name": ["building"] * len(polygons)}, geometry=polygons, crs=truth.crs)


def corner(frame: geopandas.GeoDataFrame, truth: SceneTruth) -> tuple[geopandas.GeoDataFrame, shapely.Geometry]:
    """The smallest square in the scene's corner with thirty whole buildings, and these."""
    left, top = truth.affine * (0, 0)
    for side in range(256, truth.width + 1, 16):
        right, bottom = truth.affine * (side, side)
        square = shapely.box(left, bottom, right, top)
        inside = frame[frame.within(square)]
        if len(inside) >= WANTED:
            return inside, square
    return frame, shapely.box(left, bottom, right, top)


def call(*arguments: object) -> str:
    """Run a command as a user would, and show it."""
    words = [str(argument) for argument in arguments]
    print("$ rsgeoseg", " ".join(words), flush=True)
    program = [sys.executable, "-m", "rsgeoseg.cli.main"]
    done = subprocess.run([*program, *words], stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, flush=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    return done.stdout


def draw(scene: Path, maps: list[Path], out: Path, corner: tuple[int, int], size: tuple[int, int]) -> None:
    """A part of a scene with each map's outlines, side by side: buildings green, the rest yellow."""
    with rasterio.open(scene) as file:
        pixels = file.read(window=Window(*corner, *size)).transpose(1, 2, 0)
        to_pixels = ~file.transform
    sheet = Image.new("RGB", ((size[0] + 12) * len(maps) - 12, size[1]), "white")
    for place, path in enumerate(maps):
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        pen = ImageDraw.Draw(picture)
        found = geopandas.read_file(path).explode()
        for shape, name in zip(found.geometry, found.class_name, strict=True):
            ring = [to_pixels * point[:2] for point in shape.exterior.coords]
            line = [(x - corner[0], y - corner[1]) for x, y in ring]
            pen.line([*line, line[0]], fill=(60, 220, 90) if name == "building" else (250, 210, 40), width=5)
        sheet.paste(picture, (place * (size[0] + 12), 0))
    sheet.reduce(2).save(out, quality=82)


def main() -> None:
    """Do it all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    here = args.folder
    mine, other = here / "mine.tif", here / "other.tif"
    truth = generate_scene(mine, height=SIDE, width=SIDE, seed=4, classes=TOWN)
    outlined, area = corner(buildings(truth), truth)
    pyogrio.write_dataframe(outlined, here / "buildings.gpkg")
    pyogrio.write_dataframe(geopandas.GeoDataFrame(geometry=[area], crs=truth.crs), here / "area.gpkg")
    print(f"{len(outlined)} buildings outlined in {area.area / 1e6:.2f} km2\n")
    unseen = generate_scene(other, height=SIDE, width=SIDE, seed=5, classes=TOWN)
    pyogrio.write_dataframe(buildings(unseen), here / "truth.gpkg")

    call("run", other, "-o", here / "before.gpkg", "--overwrite", "--device", args.device)
    # the model knows no buildings: does it take them for something else?
    call("evaluate", here / "truth.gpkg", here / "before.gpkg", "--class-agnostic")
    data = ("--scene", mine, "--polygons", here / "buildings.gpkg", "--class-field", "class_name")
    more = ("--aoi", here / "area.gpkg", "--steps", args.steps, "--device", args.device)
    call("train", *data, *more, "--preset", "lite-few", "-o", here / "run")
    weights = here / "run" / "weights.safetensors"
    call("run", other, "-o", here / "after.gpkg", "--weights", weights, "--overwrite", "--device", args.device)
    call("evaluate", here / "truth.gpkg", here / "after.gpkg")
    draw(other, [here / "before.gpkg", here / "after.gpkg"], here / "maps.jpg", (2800, 3100), (1200, 900))


if __name__ == "__main__":
    main()
