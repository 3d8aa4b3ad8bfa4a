"""Exact truth of a generated scene: ids, masks, label windows and polygons, computed from the seed when asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import geopandas
import numpy as np
import pyogrio
import shapely
from affine import Affine
from rasterio.features import shapes

from rsgeoseg.testing.ground import CELL, THEME_CLASSES, Ground
from rsgeoseg.testing.layout import lay_out

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from rsgeoseg.testing.things import Thing

Box = tuple[int, int, int, int]
"""x0 y0 x1 y1 half-open, scene pixels."""
_BATCH = 2048
"""Objects written at once."""


def touch(one: Box, other: Box) -> bool:
    """Say whether two half-open boxes share a pixel."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def overlap(thing: Box, window: Box) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Slices of the shared part: in the thing's own array and in the window's."""
    x0, y0 = max(thing[0], window[0]), max(thing[1], window[1])
    x1, y1 = max(x0, min(thing[2], window[2])), max(y0, min(thing[3], window[3]))
    there = (slice(y0 - thing[1], y1 - thing[1]), slice(x0 - thing[0], x1 - thing[0]))
    return there, (slice(y0 - window[1], y1 - window[1]), slice(x0 - window[0], x1 - window[0]))


@dataclass(frozen=True, slots=True)
class TrueObject:
    """One object of the truth."""

    instance: int
    """Scene-wide id, 1 to 2**24 - 1; ``instance % len(classes)`` is its label."""
    label: int
    """Index into the scene's classes."""
    box: Box
    """x0 y0 x1 y1 half-open, scene pixels, tight."""
    mask: NDArray[np.bool_]
    """(y1 - y0, x1 - x0): its pixels."""


@dataclass(frozen=True)
class SceneTruth:
    """What a generated scene holds; computed from the seed when asked for, so it needs no memory of the scene."""

    path: Path
    """The scene's file."""
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    seed: int
    """Seed of everything."""
    density: float
    """Objects wanted per megapixel."""
    classes: tuple[str, ...]
    """Class names; labels index them."""
    affine: Affine
    """Pixel to world."""
    crs: str | None
    """Coordinate reference system as given."""

    @cached_property
    def ground(self) -> Ground:
        """What the objects stand on."""
        themes = tuple(theme for theme, kinds in THEME_CLASSES.items() if set(kinds) & set(self.classes))
        return Ground(self.seed, themes)

    @cached_property
    def _slots(self) -> int:
        """Ids kept free for each cell."""
        return int(self.density * CELL * CELL / 1e6) + 1

    def cells(self, box: Box, reach: int = 0) -> Iterator[tuple[int, int]]:
        """Cells that touch a window grown by ``reach`` pixels, row by row."""
        off_x, off_y = self.ground.origin()
        x0, y0, x1, y1 = box
        for row in range((y0 + off_y - reach) // CELL, (y1 + off_y + reach - 1) // CELL + 1):
            for col in range((x0 + off_x - reach) // CELL, (x1 + off_x + reach - 1) // CELL + 1):
                yield row, col

    def things(self, row: int, col: int) -> tuple[Thing, ...]:
        """Objects and clutter of one cell, also those outside the scene."""
        return lay_out(self.ground, row, col, self.density, self.classes)

    def last_instance(self) -> int:
        """Largest id that the scene may use."""
        off_x, off_y = self.ground.origin()
        row, col = (self.height + off_y - 1) // CELL, (self.width + off_x - 1) // CELL
        return self._id_of((row, col), self._slots, len(self.classes) - 1)

    def _id_of(self, cell: tuple[int, int], place: int, label: int) -> int:
        """Scene-wide id of the ``place``-th object (from 1) of a cell."""
        off_x, off_y = self.ground.origin()
        cols = (self.width + off_x - 1) // CELL - off_x // CELL + 1
        serial = ((cell[0] - off_y // CELL) * cols + cell[1] - off_x // CELL) * self._slots + place - 1
        return (serial + 1) * len(self.classes) + label

    def true_object(self, thing: Thing, row: int, col: int) -> TrueObject | None:
        """Cut a thing's mask to the scene; None where nothing, a sliver or a torn shape would be left."""
        (x0, y0, x1, y1), mask = thing.mask()
        cut = (max(x0, 0), max(y0, 0), min(x1, self.width), min(y1, self.height))
        if cut != (x0, y0, x1, y1):
            if cut[0] >= cut[2] or cut[1] >= cut[3]:
                return None
            part = mask[cut[1] - y0 : cut[3] - y0, cut[0] - x0 : cut[2] - x0]
            pieces, _ = cv2.connectedComponents(part.astype(np.uint8), connectivity=4)
            if pieces != 2 or part.sum() < 0.3 * mask.sum():
                return None
            rows, cols = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
            top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(cols[0]), int(cols[-1]) + 1
            mask = part[top:bottom, left:right]
            x0, y0 = cut[0] + left, cut[1] + top
            x1, y1 = x0 + mask.shape[1], y0 + mask.shape[0]
        label = self.classes.index(thing.kind)
        return TrueObject(self._id_of((row, col), thing.instance, label), label, (x0, y0, x1, y1), mask)

    def objects(self, box: Box | None = None) -> Iterator[TrueObject]:
        """Yield the objects whose masks may touch a window (default: the whole scene), in the order of their cells.

        Args:
            box: x0 y0 x1 y1 half-open, scene pixels.
        """
        window = box or (0, 0, self.width, self.height)
        for row, col in self.cells(window):
            for thing in self.things(row, col):
                if thing.instance and touch(thing.crop, window):
                    found = self.true_object(thing, row, col)
                    if found is not None and touch(found.box, window):
                        yield found

    def labels(self, box: Box | None = None) -> NDArray[np.int32]:
        """Rasterise the instance ids of a window: (y1 - y0, x1 - x0) int32, 0 = no object.

        Args:
            box: x0 y0 x1 y1 half-open, scene pixels; default the whole scene.
        """
        window = box or (0, 0, self.width, self.height)
        out = np.zeros((window[3] - window[1], window[2] - window[0]), np.int32)
        for thing in self.objects(window):
            there, here = overlap(thing.box, window)
            out[here][thing.mask[there]] = thing.instance
        return out

    def label_of(self, instances: NDArray[np.integer]) -> NDArray[np.int64]:
        """Class labels of instance ids (all > 0)."""
        return np.asarray(instances, np.int64) % len(self.classes)

    def frame(self, box: Box | None = None) -> geopandas.GeoDataFrame:
        """Polygons along the pixel edges, exact.

        Args:
            box: keep objects that touch this window (whole objects); default the whole scene.

        Returns:
            Columns ``id`` int64, ``class_id`` int32, ``class_name`` str, ``geometry`` in world coordinates.
        """
        return self._to_frame(list(self.objects(box)))

    def _to_frame(self, objects: Sequence[TrueObject]) -> geopandas.GeoDataFrame:
        polygons = [self._polygon(thing) for thing in objects]
        labels = np.array([thing.label for thing in objects], np.int32)
        return geopandas.GeoDataFrame(
            {
                "id": np.array([thing.instance for thing in objects], np.int64),
                "class_id": labels,
                "class_name": [self.classes[label] for label in labels.tolist()],
            },
            geometry=polygons,
            crs=self.crs,
        )

    def _polygon(self, thing: TrueObject) -> shapely.Geometry:
        a, (x0, y0) = self.affine, thing.box[:2]
        affine = Affine(a.a, a.b, a.a * x0 + a.b * y0 + a.c, a.d, a.e, a.d * x0 + a.e * y0 + a.f)
        pixels = thing.mask.astype(np.uint8)
        found = [shape for shape, _ in shapes(pixels, mask=thing.mask, connectivity=4, transform=affine)]
        return shapely.geometry.shape(found[0])

    def write(self, path: str | Path) -> int:
        """Write the truth polygons to a GeoPackage, cell by cell in little memory.

        Args:
            path: file to write; replaced where it exists.

        Returns:
            The number of objects written.
        """
        target = Path(path)
        target.unlink(missing_ok=True)
        written, waiting = 0, list[TrueObject]()
        for thing in self.objects():
            waiting.append(thing)
            if len(waiting) == _BATCH:
                pyogrio.write_dataframe(self._to_frame(waiting), target, driver="GPKG", append=written > 0)
                written, waiting = written + len(waiting), []
        if waiting or not written:
            pyogrio.write_dataframe(self._to_frame(waiting), target, driver="GPKG", append=written > 0)
        return written + len(waiting)
