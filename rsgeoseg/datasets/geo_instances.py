"""Rasters and a file of polygons as an instance dataset: chips and their masks are made when asked for.

Chips are planned and read as a run over the scene does it (`rsgeoseg.geo`), with one stretch per scene, so that a model
is trained on what it will see. What is labelled:

- An object is in a chip with the part of it that lies there. A part with less than a tenth of its object *and* fewer
  than 256 pixels is a sliver and no label; ``LabelledImage.cut`` marks the other parts.
- Masks are drawn as those of COCO files are (pycocotools); an object with holes is its outlines less its holes.
- With an ``aoi`` the user says: inside, everything is labelled. Outside, pixels are black, as in a run with that area,
  and objects end there. All chips that touch the area are kept, also those without an object. Without an ``aoi`` only
  chips with an object are kept, because elsewhere objects may be there that nobody has drawn.
"""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import pyproj
import shapely
from pycocotools import mask as rle
from pyproj.exceptions import ProjError

from rsgeoseg.datasets.instances import InstanceDataset
from rsgeoseg.datasets.labelled import LabelledImage, to_rle
from rsgeoseg.datasets.polygons import in_pixels, load_polygons, polygonal, refuse_all_outside
from rsgeoseg.datasets.scene_chip import SceneChip
from rsgeoseg.datasets.split import Sides, Site, split_sites
from rsgeoseg.errors import UsageError
from rsgeoseg.geo.scene import Scene
from rsgeoseg.geo.windows import Box, plan_windows

if TYPE_CHECKING:
    from collections.abc import Sequence

    import geopandas as gpd
    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry

    from rsgeoseg.datasets.instances import Transforms
    from rsgeoseg.datasets.labelled import Shape
    from rsgeoseg.datasets.polygons import Polygons

    PathLike: TypeAlias = str | os.PathLike[str]
    Area: TypeAlias = str | os.PathLike[str] | gpd.GeoDataFrame | gpd.GeoSeries | BaseGeometry

logger = logging.getLogger(__name__)

SLIVER_SHARE = 0.1
"""A part with less of its object than this may be a sliver ..."""
SLIVER_PIXELS = 256
"""... and is one if it has fewer pixels than this."""


class GeoInstances(InstanceDataset):
    """Chips of georeferenced rasters with the polygons of a vector file as instance masks.

    ``split`` keeps training and validation apart in space, by the rule of `rsgeoseg.datasets.split`. Both sides come
    from two calls with otherwise the same arguments; no pixel and no object is in chips of both. A training chip that
    shows an object or a piece of ground of a validation chip (where scenes overlap) is left out.

    Args:
        scenes: one raster or several: GeoTIFF, COG, VRT, JPEG 2000, PNG or JPEG.
        polygons: vector file in any CRS, or a frame of geopandas; each polygon belongs to all scenes it lies in.
        class_field: column with the class; None = one class.
        classes: names in the wanted order; None = all that occur, sorted.
        chip_size: side of a chip, pixels.
        overlap: pixels that neighbouring chips share at least.
        split: ``train`` or ``val``; None = everything.
        val_share: share of the objects that is held out.
        aoi: the area that is labelled completely: vector file, frame, or geometry in the scenes' CRS.
        bands: band numbers from 1; None = a sensible choice, as for a run.
        stretch: as for a run.
        gsd: metres per pixel to resample to; None = as in the file.
        layer: of a vector file with several.
        negatives: most chips without an object per chip with one; None = all with ``aoi``, none without.
        transforms: applied to every sample.

    Raises:
        UsageError: polygons, classes, split or area cannot be used; the message says what to do.
        SceneError: a scene cannot be opened, or no polygon lies in any.
    """

    def __init__(
        self,
        scenes: PathLike | Sequence[PathLike],
        polygons: PathLike | gpd.GeoDataFrame,
        *,
        class_field: str | None = None,
        classes: Sequence[str] | None = None,
        chip_size: int = 512,
        overlap: int = 0,
        split: Literal["train", "val"] | None = None,
        val_share: float = 0.2,
        aoi: Area | None = None,
        bands: Sequence[int] | None = None,
        stretch: str = "auto",
        gsd: float | None = None,
        layer: str | None = None,
        negatives: float | None = None,
        transforms: Transforms | None = None,
    ) -> None:
        if split not in (None, "train", "val"):
            msg = f"split {split!r} is unknown: give train or val"
            raise UsageError(msg)
        paths = [scenes] if isinstance(scenes, str | os.PathLike) else list(scenes)
        labelled = load_polygons(polygons, class_field=class_field, classes=classes, layer=layer)
        super().__init__(labelled.classes, transforms)
        named = _named(paths)
        opened = {name: Scene.open(path, bands=bands, stretch=stretch, gsd=gsd, aoi=aoi) for name, path in named}
        self.scenes = tuple(opened.values())
        """The scenes, by path."""
        grounds = [_Ground.of(name, scene, labelled) for name, scene in opened.items()]
        _check_placed(grounds, labelled)
        if negatives is None:
            negatives = 0.0 if aoi is None else float("inf")
        chips = _plan(grounds, split, val_share, chip_size=chip_size, overlap=overlap, negatives=negatives)
        if not chips:
            what = "objects are slivers or smaller than a pixel" if split is None else f"nothing is left for {split}"
            msg = f"{labelled.name}: no chip can be made, {what}; try a larger chip size or a smaller gsd"
            raise UsageError(msg)
        self.images = tuple(_image(chip, number) for number, chip in enumerate(chips, 1))
        """All chips, sorted by name: scene, row, column."""

    def __len__(self) -> int:
        """Count chips."""
        return len(self.images)

    def labelled(self, index: int) -> LabelledImage:
        """Give chip ``index``."""
        return self.images[index]


@dataclass(frozen=True, slots=True, eq=False)
class _Ground:
    """A scene and the objects on it, in pixels of its working grid."""

    name: str
    scene: Scene
    ids: NDArray[np.int64]
    """(N,) rows in the file of polygons."""
    labels: NDArray[np.int64]
    shapes: NDArray[np.object_]
    """(N,) objects as far as they lie in the scene and its area of interest."""
    areas: NDArray[np.float64]
    """(N,) pixels of the whole objects, also of what lies outside."""
    limit: BaseGeometry
    """Where labels count."""
    tree: shapely.STRtree

    @classmethod
    def of(cls, name: str, scene: Scene, polygons: Polygons) -> _Ground:
        ids, whole = in_pixels(polygons, scene.grid, scene.name)
        limit: BaseGeometry = shapely.box(0, 0, scene.grid.width, scene.grid.height)
        if scene.aoi_geometry is not None:
            limit = shapely.intersection(limit, shapely.transform(scene.aoi_geometry, scene.grid.pixels))
        shapes = _clipped(whole, limit)
        kept = np.array([shape is not None for shape in shapes], np.bool_)
        return cls(
            name=name,
            scene=scene,
            ids=ids[kept],
            labels=polygons.labels[ids[kept]],
            shapes=shapes[kept],
            areas=shapely.area(whole[kept]),
            limit=limit,
            tree=shapely.STRtree(shapes[kept]),
        )

    def site(self) -> Site:
        grid = self.scene.grid
        return Site(
            name=self.name,
            width=grid.width,
            height=grid.height,
            boxes=shapely.bounds(self.shapes).reshape(-1, 4),
            labels=self.labels,
            centre=self._centre(),
        )

    def _centre(self) -> tuple[float, float] | None:
        place = self.on_earth(Box(0, 0, self.scene.grid.width, self.scene.grid.height))
        return None if place is None else (float(place.centroid.x), float(place.centroid.y))

    def on_earth(self, box: Box) -> BaseGeometry | None:
        """Outline of a box in longitude and latitude; None where the scene has no CRS."""
        grid = self.scene.grid.subgrid(box)
        if grid.crs is None:
            return None
        try:
            to_degrees = pyproj.Transformer.from_crs(grid.crs.to_wkt(), "EPSG:4326", always_xy=True)
            return shapely.Polygon(np.column_stack(to_degrees.transform(*grid.corners.T)))
        except ProjError:
            return None


@dataclass(frozen=True, slots=True, eq=False)
class _Chip:
    """A window and all that is in it, slivers included."""

    ground: _Ground
    box: Box
    members: NDArray[np.int64]
    """Objects of the ground of which some area is in the window."""
    parts: tuple[Shape, ...]
    """The labelled ones, in chip pixels."""
    labels: NDArray[np.int64]
    cut: NDArray[np.bool_]

    @property
    def name(self) -> str:
        return f"{self.ground.name}_y{self.box.y0:06d}_x{self.box.x0:06d}"

    @property
    def object_ids(self) -> set[int]:
        return set(self.ground.ids[self.members].tolist())


def _named(paths: Sequence[PathLike]) -> list[tuple[str, PathLike]]:
    """Scenes by path, with names that differ: file names without endings, with a mark where two are alike."""
    if not paths:
        msg = "no scene was given: name at least one raster"
        raise UsageError(msg)
    full = {Path(os.path.abspath(os.path.expanduser(path))): path for path in paths}  # noqa: PTH100, PTH111  (links stay)
    if len(full) < len(paths):
        msg = "a scene was given twice: name each raster once"
        raise UsageError(msg)
    stems = [path.stem.lower() for path in full]
    named = []
    for place, given in sorted(full.items()):
        mark = hashlib.sha256(str(place).encode()).hexdigest()[:6]
        alike = stems.count(place.stem.lower()) > 1
        named.append((f"{place.stem}-{mark}" if alike else place.stem, given))
    return named


def _check_placed(grounds: Sequence[_Ground], polygons: Polygons) -> None:
    """Refuse polygons that lie nowhere; count those that lie outside."""
    if sum(g.scene.grid.crs is None for g in grounds) > 1:
        msg = "several scenes without CRS cannot share one file of polygons: georeference them, or take one at a time"
        raise UsageError(msg)
    placed = {number for ground in grounds for number in ground.ids.tolist()}
    if not placed:
        raise refuse_all_outside(polygons, grounds[0].scene.grid, grounds[0].scene.name)
    outside = len(polygons.geometry) - len(placed)
    if outside:
        what = "the scenes" if len(grounds) > 1 else grounds[0].scene.name
        logger.warning("%s: %d of %d polygons lie outside %s", polygons.name, outside, len(polygons.geometry), what)


def _plan(
    grounds: Sequence[_Ground], split: str | None, share: float, *, chip_size: int, overlap: int, negatives: float
) -> list[_Chip]:
    """Make the chips of one side, by name."""

    def chips_of(regions: Sequence[Box | None]) -> list[_Chip]:
        found = [
            chip
            for ground, region in zip(grounds, regions, strict=True)
            if region is not None
            for chip in _chips(ground, region, chip_size=chip_size, overlap=overlap)
        ]
        return _with_negatives(sorted(found, key=lambda chip: chip.name), negatives)

    if split is None:
        return chips_of([Box(0, 0, g.scene.grid.width, g.scene.grid.height) for g in grounds])
    sides: list[Sides] = split_sites([ground.site() for ground in grounds], share, chip_size)
    val = chips_of([side.val for side in sides])
    if split == "val":
        return val
    train = chips_of([side.train for side in sides])
    apart = _without_shared(train, val)
    if len(apart) < len(train):
        logger.warning(
            "%d of %d training chips show objects or ground of validation and are left out",
            len(train) - len(apart),
            len(train),
        )
    return apart


def _chips(ground: _Ground, region: Box, *, chip_size: int, overlap: int) -> list[_Chip]:
    """Chips of a region that touch the labelled area."""
    plan = plan_windows(region.height, region.width, chip_size=chip_size, overlap=overlap)
    boxes = [window.read.shifted(region.x0, region.y0) for window in plan.windows]
    outlines = shapely.box(*np.array([(b.x0, b.y0, b.x1, b.y1) for b in boxes], float).T)
    touching = shapely.area(shapely.intersection(outlines, ground.limit)) > 0
    return [_chip(ground, box) for box, inside in zip(boxes, touching.tolist(), strict=True) if inside]


def _chip(ground: _Ground, box: Box) -> _Chip:
    outline = shapely.box(box.x0, box.y0, box.x1, box.y1)
    members = np.sort(ground.tree.query(outline, predicate="intersects"))
    clipped = _clipped(ground.shapes[members], outline)
    there = np.array([part is not None for part in clipped], np.bool_)
    members, clipped = members[there], clipped[there]
    visible = shapely.area(clipped) / ground.areas[members]
    parts: list[Shape] = []
    kept: list[int] = []
    for index, (part, share) in enumerate(zip(clipped, visible.tolist(), strict=True)):
        if share < SLIVER_SHARE and part.area < SLIVER_PIXELS:
            continue
        shape = to_shape(shapely.transform(part, lambda xy: xy - (box.x0, box.y0)), box.height, box.width)
        if shape is not None:
            parts.append(shape)
            kept.append(index)
    return _Chip(
        ground=ground,
        box=box,
        members=members,
        parts=tuple(parts),
        labels=ground.labels[members[kept]],
        cut=visible[kept] < 1 - 1e-6,
    )


def _clipped(shapes: NDArray[np.object_], limit: BaseGeometry) -> NDArray[np.object_]:
    """Cut shapes to an area; None where no area is left. Shapes inside it stay as they are, point by point."""
    shapely.prepare(limit)
    out = shapes.copy()
    for index in np.flatnonzero(~shapely.covers(limit, shapes)):
        out[index] = polygonal(shapely.intersection(shapes[index], limit))
    return out


def to_shape(polygon: BaseGeometry, height: int, width: int) -> Shape | None:
    """Give a polygon as a dataset's shape: rings, or a mask where it has holes.

    Args:
        polygon: Polygon or MultiPolygon in pixels, inside the image.
        height: of the image, pixels.
        width: of the image, pixels.

    Returns:
        None where no pixel would be drawn.
    """
    parts = shapely.get_parts(polygon)
    outer = tuple(np.asarray(part.exterior.coords)[:-1, :2] for part in parts)
    drawn = to_rle(outer, height, width)
    holes = tuple(np.asarray(ring.coords)[:-1, :2] for part in parts for ring in part.interiors)
    if holes:
        mask = rle.decode(drawn) & ~rle.decode(to_rle(holes, height, width)) & 1
        drawn = rle.encode(np.asfortranarray(mask, np.uint8))
    if not rle.area(drawn):
        return None
    return drawn if holes else outer


def _with_negatives(chips: list[_Chip], negatives: float) -> list[_Chip]:
    """Keep chips with an object, and as many without, evenly over the area, as are wanted for each of them."""
    empty = [i for i, chip in enumerate(chips) if not chip.parts]
    wanted = min(len(empty), int(min(negatives * (len(chips) - len(empty)), len(empty))))
    kept = {empty[int(place)] for place in np.linspace(0, len(empty) - 1, wanted).round()}
    return [chip for i, chip in enumerate(chips) if chip.parts or i in kept]


def _without_shared(train: list[_Chip], val: list[_Chip]) -> list[_Chip]:
    """Leave out training chips that share an object with a validation chip, or ground with one of another scene."""
    held = set().union(*(chip.object_ids for chip in val))
    apart = [chip for chip in train if not held & chip.object_ids]
    outlines = [chip.ground.on_earth(chip.box) for chip in val]
    placed = [i for i, outline in enumerate(outlines) if outline is not None]
    tree = shapely.STRtree([outlines[i] for i in placed])
    return [chip for chip in apart if not _shows_ground(chip, tree, [val[i] for i in placed])]


def _shows_ground(chip: _Chip, tree: shapely.STRtree, val: Sequence[_Chip]) -> bool:
    """Whether a chip covers half a pixel or more of a chip of another scene; within one, sides are apart already."""
    outline = chip.ground.on_earth(chip.box)
    if outline is None:
        return False
    others = [i for i in tree.query(outline, predicate="intersects").tolist() if val[i].ground is not chip.ground]
    common = shapely.area(shapely.intersection(tree.geometries[others], outline))
    return bool((common > 0.5 * outline.area / chip.box.area).any())


def _image(chip: _Chip, number: int) -> LabelledImage:
    return LabelledImage(
        name=chip.name,
        image_id=number,
        width=chip.box.width,
        height=chip.box.height,
        labels=chip.labels,
        shapes=chip.parts,
        reader=SceneChip.of(chip.ground.scene, chip.box),
        cut=chip.cut,
    )
