"""What is known of the scene behind a map: its grid, its chips, its area, and its pixels where they are at hand."""

from __future__ import annotations

import json
import logging
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from affine import Affine
from rasterio.crs import CRS

from rsgeoseg.engine.scoring import rgb
from rsgeoseg.errors import RsGeoSegError, UsageError
from rsgeoseg.evaluate.polygons import MapArea, ground_km2
from rsgeoseg.evaluate.seam_zones import place, seam_strips
from rsgeoseg.geo.grid import GeoGrid
from rsgeoseg.geo.record import record_path
from rsgeoseg.geo.scene import Scene
from rsgeoseg.geo.windows import Box, plan_windows

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyproj
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

_OVERVIEW = 2048
"""Longer side of the picture from which the share of valid pixels is taken."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class MapGround:
    """The scene that a map was made of."""

    grid: GeoGrid
    """Working grid of the run."""
    chip_size: int | None
    """Side of a chip, pixels; None = unknown."""
    overlap: int | None
    """Pixels that neighbouring chips share; None = unknown."""
    scene: Scene | None
    """Open; None = not at hand."""
    source: str
    """Where grid and chips are known from, in words."""

    def strips(self, crs: pyproj.CRS | None) -> NDArray[np.object_] | None:
        """Return the strips that more than one chip saw, in a CRS; None where the chips are not known.

        Raises:
            UsageError: chips of such a size and overlap are not possible.
        """
        if self.chip_size is None or self.overlap is None:
            return None
        grid = self.grid
        plan = plan_windows(grid.height, grid.width, chip_size=self.chip_size, overlap=self.overlap)
        boxes = [(w.read.x0, w.read.y0, w.read.x1, w.read.y1) for w in plan.windows]
        return place(seam_strips(boxes), tuple(grid.affine)[:6], grid.crs, crs)

    def area(self) -> MapArea:
        """Measure the valid pixels of the scene, or its whole grid where its pixels are not at hand."""
        footprint = ground_km2(shapely.Polygon(self.grid.corners), self.grid.crs)
        if self.scene is None:
            return MapArea(km2=footprint, what="footprint of the scene")
        valid = float(self.scene.read_thumbnail(_OVERVIEW).valid.mean())
        inside = " in the area of interest" if self.scene.aoi_geometry is not None else ""
        return MapArea(km2=footprint * valid, what=f"valid pixels of {self.scene.name}{inside}")

    def to_pixels(self, shapes: NDArray[np.object_], crs: pyproj.CRS | None) -> NDArray[np.object_]:
        """Carry polygons in a CRS to scene pixels."""
        world = place(shapes, (1, 0, 0, 0, 1, 0), crs, self.grid.crs)
        return np.asarray(shapely.transform(world, self.grid.pixels), object)

    def read(self, x0: int, y0: int, x1: int, y1: int) -> NDArray[np.uint8]:
        """Read a part of the scene as a picture (h, w, 3) RGB."""
        assert self.scene is not None
        return rgb(self.scene.read(Box(x0, y0, x1, y1)).image)


def bare_ground(shapes: NDArray[np.object_]) -> MapGround:
    """Lay a grid of 2,048 pixels over the bounds of shapes, to draw on where there is no scene."""
    x0, y0, x1, y1 = shapely.total_bounds(shapes).tolist() if len(shapes) else (0, 0, 1, 1)
    step = max(x1 - x0, y1 - y0) / _OVERVIEW
    height, width = max(int(np.ceil((y1 - y0) / step)), 1), max(int(np.ceil((x1 - x0) / step)), 1)
    grid = GeoGrid(height, width, Affine(step, 0, x0, 0, -step, y1), None)
    return MapGround(grid=grid, chip_size=None, overlap=None, scene=None, source="nothing")


@contextmanager
def map_ground(
    result: Path, *, scene: Path | None = None, chip_size: int | None = None, overlap: int | None = None
) -> Iterator[MapGround | None]:
    """Find out about the scene behind a map, from the run record beside it or from the scene itself.

    Args:
        result: the map; ``run`` left ``RESULT.run.json`` beside it.
        scene: the raster; needed where there is no record.
        chip_size: side of a chip; None = as in the record.
        overlap: of chips; None = as in the record.

    Yields:
        What is known; None = nothing.

    Raises:
        UsageError: chips are described without a scene to lay them on, or by one number only.
        SceneError: ``scene`` cannot be opened.
    """
    record = _read_record(record_path(result))
    chips = {} if record is None or scene is not None else record["options"]
    chip_size, overlap = chip_size or chips.get("chip_size"), chips.get("overlap") if overlap is None else overlap
    if (chip_size is None) != (overlap is None):
        msg = "seam strips need both --chip-size and --overlap of the chips that the map was made from"
        raise UsageError(msg)
    if record is None and scene is None:
        if chip_size is not None:
            msg = f"there is no run record beside {result}: give --scene, whose pixels the chips were cut from"
            raise UsageError(msg)
        yield None
        return
    opened = Scene.open(scene) if scene is not None else _recorded_scene(record or {})
    try:
        grid = opened.grid if opened is not None else _recorded_grid(record or {})
        yield MapGround(
            grid=grid,
            chip_size=chip_size,
            overlap=overlap,
            scene=opened,
            source="the scene" if scene is not None else f"{record_path(result).name}",
        )
    finally:
        if opened is not None:
            opened.close()


def _read_record(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        _recorded_grid(record)
        int(record["options"]["chip_size"]), int(record["options"]["overlap"])
    except (OSError, ValueError, KeyError, TypeError, RsGeoSegError):
        logger.warning("%s is no run record that can be read: seams are not told apart", path)
        return None
    return record


def _recorded_grid(record: dict[str, Any]) -> GeoGrid:
    scene = record["scene"]
    crs = None if scene["crs"] is None else CRS.from_user_input(scene["crs"])
    return GeoGrid(int(scene["height"]), int(scene["width"]), Affine(*scene["affine"]), crs)


def _recorded_scene(record: dict[str, Any]) -> Scene | None:
    """Open the scene of a run as the run did; None where that is no longer possible."""
    job, path = record.get("job", {}), Path(record["scene"]["path"])
    if not path.is_file():
        logger.warning("%s is no longer there: areas are of its whole footprint, and pictures are without it", path)
        return None
    asked = {key: job.get(key) for key in ("bands", "gsd", "aoi", "bbox")}
    try:
        scene = Scene.open(path, stretch=job.get("stretch", "auto"), **asked)
    except RsGeoSegError as error:
        logger.warning("the scene cannot be opened as it was for the run: %s", error)
        return None
    if (scene.grid.width, scene.grid.height) != (record["scene"]["width"], record["scene"]["height"]):
        logger.warning("%s is not the file that the map was made from: it is left aside", path)
        scene.close()
        return None
    return scene
