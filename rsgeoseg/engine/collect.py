"""Objects become rows of the table while the scene is still being read, so that their masks need not be kept."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from rsgeoseg.engine.table import Rows
from rsgeoseg.geo.frame import objects_to_frame, parse_area, sort_key

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

    from rsgeoseg.contract import ModelSpec
    from rsgeoseg.geo.grid import GeoGrid
    from rsgeoseg.geo.stitch import StitchedObject

_BATCH = 512  # objects drawn at once: enough to be fast, few enough to need little memory


class Drawing:
    """How objects of a scene become rows.

    Args:
        grid: where the objects' pixels lie.
        spec: the model, for class names and its own name.
        min_area: ``20m2`` or ``50px``; smaller objects are dropped. None = keep all.
        simplify: pixels.
        regularize: right angles.
        dst_crs: CRS of the table; None = the scene's.

    Raises:
        UsageError: options that do not fit the scene; found out here, before the work.
    """

    def __init__(
        self,
        grid: GeoGrid,
        spec: ModelSpec,
        *,
        min_area: str | None = None,
        simplify: float = 0.0,
        regularize: bool = False,
        dst_crs: str | None = None,
    ) -> None:
        area = None if min_area is None else parse_area(min_area)
        self.least_pixels = area[0] if area is not None and area[1] == "px" else 1.0
        self.least_m2 = area[0] if area is not None and area[1] == "m2" else None
        self._fixed: dict[str, Any] = {
            "grid": grid,
            "classes": spec.classes,
            "model": spec.name,
            "simplify": simplify,
            "regularize": regularize,
            "dst_crs": dst_crs,
        }
        self.empty = objects_to_frame([], min_area=area, **self._fixed)
        """The table without rows."""

    def draw(self, objects: list[StitchedObject]) -> Rows:
        """Return the rows of objects that are large enough, in the order of the table."""
        objects = [item for item in objects if np.count_nonzero(item.mask) >= self.least_pixels]
        frame = objects_to_frame(objects, **self._fixed)
        keys = np.array(sorted(sort_key(item) for item in objects), np.float64).reshape(-1, 7)
        assert len(frame) == len(keys), "an object without a pixel left the stitcher"
        if self.least_m2 is not None:
            large = np.flatnonzero(frame["area_m2"].to_numpy() >= self.least_m2)
            return Rows(frame.iloc[large].reset_index(drop=True), keys[large])
        return Rows(frame, keys)

    def collector(self) -> FrameCollector:
        """Return what takes objects and gives their rows at the end."""
        return FrameCollector(self)


class FrameCollector:
    """Takes whole objects as they leave the stitcher and gives their rows at the end."""

    def __init__(self, drawing: Drawing) -> None:
        self._drawing = drawing
        self._waiting: list[StitchedObject] = []
        self._drawn: list[Rows] = []
        self.seconds = 0.0
        """Time spent drawing so far."""

    def take(self, objects: list[StitchedObject]) -> None:
        """Take objects that are finished."""
        self._waiting += objects
        if len(self._waiting) >= _BATCH:
            self._draw()

    def finish(self) -> Rows:
        """Return all rows: in the order of the objects' boxes from top to bottom; the collector is then empty."""
        self._draw()
        start = time.perf_counter()
        drawn, self._drawn = self._drawn, []
        keys = np.concatenate([rows.keys for rows in drawn])
        frame: GeoDataFrame = (
            drawn[0].frame if len(drawn) == 1 else pd.concat([r.frame for r in drawn], ignore_index=True)
        )
        order = np.lexsort(keys.T[::-1])
        rows = Rows(frame.iloc[order].reset_index(drop=True), keys[order])
        self.seconds += time.perf_counter() - start
        return rows

    def _draw(self) -> None:
        start = time.perf_counter()
        waiting, self._waiting = self._waiting, []
        rows = self._drawing.draw(waiting)
        if len(rows.keys) or not self._drawn:
            self._drawn.append(rows)
        self.seconds += time.perf_counter() - start
