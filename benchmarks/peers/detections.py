"""What a model says of each chip of a scene, kept so that every joining rule gets the very same masks."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import shapely
from affine import Affine

from rsgeoseg.contract import Chip, Instances
from rsgeoseg.geo.grid import GeoGrid
from rsgeoseg.geo.polygonize import polygonize
from rsgeoseg.geo.stitch import StitchedObject
from rsgeoseg.geo.windows import Box, WindowPlan, plan_windows
from rsgeoseg.testing.oracle import NoisyOracle, OracleSegmenter, encode_ids, oracle_spec

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Detections:
    """A scene's plan and what was found in each of its chips."""

    plan: WindowPlan
    classes: tuple[str, ...]
    """Labels index them."""
    found: list[Instances]
    """One per window, in its order; boxes in pixels of the window's read box."""

    def save(self, path: Path) -> Path:
        """Write to a file that only these benchmarks read."""
        path.write_bytes(pickle.dumps(self, protocol=pickle.HIGHEST_PROTOCOL))
        return path

    @staticmethod
    def load(path: Path) -> Detections:
        """Read what ``save`` wrote."""
        loaded: Detections = pickle.loads(path.read_bytes())
        return loaded

    def __len__(self) -> int:
        """Count masks of all chips."""
        return sum(len(instances) for instances in self.found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """Objects of a scene as polygons in scene pixels."""

    shapes: NDArray[np.object_]
    """(N,) shapely polygons along pixel edges."""
    labels: NDArray[np.int64]
    """(N,)"""
    scores: NDArray[np.float64]
    """(N,)"""


def noisy_detections(ids: NDArray[np.int32], *, chip: int, overlap: int, seed: int) -> Detections:
    """Read the truth off each chip and spoil it as a network would.

    Masks grow, shrink and move by up to a pixel, 2 % are missed, and scores fall where a chip's border cuts an object;
    each chip has its own noise (`rsgeoseg.testing.oracle.NoisyOracle`).
    """
    plan = plan_windows(*ids.shape, chip_size=chip, overlap=overlap)
    oracle = NoisyOracle(inner=OracleSegmenter(spec=oracle_spec(chip_size=chip, overlap=overlap)), seed=seed)
    found = []
    for window in plan.windows:
        image = encode_ids(ids[window.read.as_slices()])
        found += oracle.segment([Chip(image=image, valid=np.ones(image.shape[1:], np.bool_))])
    return Detections(plan=plan, classes=oracle.spec.classes, found=found)


def pixel_grid(height: int, width: int) -> GeoGrid:
    """Give a grid whose world is the scene's pixels: y runs down, there is no CRS."""
    return GeoGrid(height=height, width=width, affine=Affine.identity(), crs=None)


def outline(
    placed: Iterable[tuple[tuple[int, int], NDArray[np.bool_]]], height: int, width: int
) -> NDArray[np.object_]:
    """Turn masks into polygons along their pixel edges.

    Args:
        placed: x and y of the upper-left pixel, and the mask.
        height: of the scene, pixels.
        width: of the scene, pixels.
    """
    objects = [
        StitchedObject(Box(x, y, x + mask.shape[1], y + mask.shape[0]), mask, 0, 1.0, 1, False, False)
        for (x, y), mask in placed
    ]
    return polygonize(objects, pixel_grid(height, width))


def largest_part(shape: shapely.Geometry) -> shapely.Geometry:
    """Give the largest polygon of a shape: what has room for one polygon alone gets this one."""
    parts = shapely.get_parts(shape)
    return parts[np.argmax(shapely.area(parts))] if len(parts) else shape
