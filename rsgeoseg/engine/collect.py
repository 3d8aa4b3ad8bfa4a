"""Objects become rows of the table while the scene is still being read, so that their masks need not be kept."""

from __future__ import annotations

import time
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from rsgeoseg.geo.frame import objects_to_frame, parse_area

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

    from rsgeoseg.contract import ModelSpec
    from rsgeoseg.geo.grid import GeoGrid
    from rsgeoseg.geo.stitch import StitchedObject

_BATCH = 512  # objects drawn at once: enough to be fast, few enough to need little memory


class FrameCollector:
    """Takes whole objects as they leave the stitcher and gives the table at the end.

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
        self._least_pixels = area[0] if area is not None and area[1] == "px" else 1
        self._least_m2 = area[0] if area is not None and area[1] == "m2" else None
        self._fixed: dict[str, Any] = {
            "grid": grid,
            "classes": spec.classes,
            "model": spec.name,
            "simplify": simplify,
            "regularize": regularize,
            "dst_crs": dst_crs,
        }
        self._empty = objects_to_frame([], min_area=area, **self._fixed)
        self._waiting: list[StitchedObject] = []
        self._frames: list[GeoDataFrame] = []
        self._keys: list[tuple[float, ...]] = []
        self.seconds = 0.0
        """Time spent drawing so far."""

    def take(self, objects: list[StitchedObject]) -> None:
        """Take objects that are finished."""
        self._waiting += [item for item in objects if np.count_nonzero(item.mask) >= self._least_pixels]
        if len(self._waiting) >= _BATCH:
            self._draw()

    def _draw(self) -> None:
        start = time.perf_counter()
        keys = sorted(_key(item) for item in self._waiting)
        frame = objects_to_frame(self._waiting, **self._fixed)
        assert len(frame) == len(keys), "an object without a pixel left the stitcher"
        self._waiting = []
        if self._least_m2 is not None:
            keep = frame["area_m2"].to_numpy() >= self._least_m2
            frame, keys = frame[keep], [keys[i] for i in np.flatnonzero(keep)]
        self._frames.append(frame)
        self._keys += keys
        self.seconds += time.perf_counter() - start

    def finish(self) -> GeoDataFrame:
        """Return the table: rows in the order of the objects' boxes from top to bottom, ids 1, 2, ... in that order."""
        if self._waiting:
            self._draw()
        if not self._keys:
            return self._empty
        start = time.perf_counter()
        frame = self._frames[0] if len(self._frames) == 1 else pd.concat(self._frames, ignore_index=True)
        order = sorted(range(len(self._keys)), key=self._keys.__getitem__)
        frame = frame.iloc[order].reset_index(drop=True)
        frame["id"] = np.arange(1, len(frame) + 1, dtype=np.int64)
        self._frames = []
        self.seconds += time.perf_counter() - start
        return frame


def _key(item: StitchedObject) -> tuple[float, ...]:
    """Give the place of an object in the table; equal for no two objects but twins, whose order cannot matter."""
    box = item.box
    return (box.y0, box.x0, box.y1, box.x1, item.label, -item.score, zlib.crc32(item.mask.tobytes()))
