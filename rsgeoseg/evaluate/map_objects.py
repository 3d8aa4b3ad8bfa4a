"""Objects of a map, ready to be compared: valid polygons, class names and scores from a vector file of any tool."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import geopandas
import numpy as np
import pyogrio
import shapely
from pyogrio.errors import DataLayerError, DataSourceError

from rsgeoseg.errors import UsageError
from rsgeoseg.evaluate.class_names import plain_class

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pyproj import CRS

logger = logging.getLogger(__name__)

CLASS_COLUMN = "class_name"
"""Where `rsgeoseg run` writes an object's class."""
SCORE_COLUMN = "score"
"""Where `rsgeoseg run` writes an object's score."""
ANY_CLASS = "*"
"""Class of every object where classes are ignored."""
_PARQUET = {".parquet", ".geoparquet"}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class MapObjects:
    """Polygons of a map."""

    shapes: NDArray[np.object_]
    """(N,) valid shapely polygons or multipolygons with area."""
    classes: NDArray[np.object_] | None
    """(N,) class names; None where the file has no class column."""
    scores: NDArray[np.float64]
    """(N,) scores; 1 where the file has none."""
    crs: CRS | None
    columns: tuple[str, ...]
    """Columns of the file, for messages."""
    repaired: int = 0
    """Objects whose geometry was invalid and has been mended."""
    left_out: int = 0
    """Rows without an area: no geometry, an empty one, coordinates that are no numbers, points and lines."""

    def __len__(self) -> int:
        """Count objects."""
        return len(self.shapes)

    def to_crs(self, crs: CRS | None) -> MapObjects:
        """Reproject the objects where both CRS are known and differ."""
        if crs is None or self.crs is None or self.crs == crs:
            return self
        moved = geopandas.GeoSeries(self.shapes, crs=self.crs).to_crs(crs).to_numpy()
        shapes, repaired, kept = _usable(moved)
        return replace(
            self,
            shapes=shapes,
            classes=None if self.classes is None else self.classes[kept],
            scores=self.scores[kept],
            crs=crs,
            repaired=self.repaired + repaired,
            left_out=self.left_out + int((~kept).sum()),
        )


def read_map(
    source: geopandas.GeoDataFrame | str | Path,
    what: str,
    *,
    class_column: str | None = None,
    score_column: str | None = None,
) -> MapObjects:
    """Read the objects of a vector file or a frame.

    Args:
        source: a frame, or a vector file.
        what: ``truth`` or ``result``, for messages.
        class_column: column of class names; None, or a column that is not there: ``class_name`` where there is one.
        score_column: column of scores; None = ``score`` where there is one.

    Raises:
        UsageError: the file is missing, is no vector file or has no geometry, or its scores are no numbers or missing.
    """
    name = str(source) if isinstance(source, str | Path) else f"the {what}"
    frame = _read_frame(Path(source), what) if isinstance(source, str | Path) else source
    columns = tuple(str(column) for column in frame.columns if column != frame.geometry.name)
    shapes, repaired, kept = _usable(np.asarray(frame.geometry.to_numpy(), object))
    column = class_column if class_column in columns else CLASS_COLUMN
    objects = MapObjects(
        shapes=shapes,
        classes=frame[column].astype(str).to_numpy().astype(object)[kept] if column in columns else None,
        scores=_scores(frame, name, score_column, columns)[kept],
        crs=frame.crs,
        columns=columns,
        repaired=repaired,
        left_out=int((~kept).sum()),
    )
    _tell(objects, name)
    return objects


def pair_maps(
    truth: MapObjects, result: MapObjects, *, class_aware: bool, class_column: str | None = None
) -> tuple[MapObjects, MapObjects]:
    """Bring two maps to one CRS and one spelling of the classes.

    ``Storage_Tank`` and ``storage tank`` are one class; the truth's spelling stays.

    Args:
        truth: true objects.
        result: found objects.
        class_aware: whether classes count; else, and with a warning where the result has none, all are of class ``*``.
        class_column: the column that was asked for, for messages.

    Raises:
        UsageError: the truth has no class column, or the column that was asked for is in neither.
    """
    if class_aware:
        nowhere = class_column is not None and class_column not in truth.columns and class_column not in result.columns
        unnamed = result.classes is None and class_column not in (None, CLASS_COLUMN)
        if truth.classes is None or nowhere or unnamed:
            which, columns = ("result", result.columns) if unnamed and not nowhere else ("truth", truth.columns)
            msg = (
                f"the {which} has no column {class_column or CLASS_COLUMN}; its columns are {_listed(columns)}: name "
                "the one with the classes by --class-column, or ignore classes with --class-agnostic"
            )
            raise UsageError(msg)
        if result.classes is None:
            text = "the result has no column %s (it has %s): objects are matched whatever their class"
            logger.warning(text, CLASS_COLUMN, _listed(result.columns))
            class_aware = False
    if (truth.crs is None) != (result.crs is None):
        which = "truth" if truth.crs is None else "result"
        logger.warning("the %s has no CRS: its coordinates are taken to be in the other's", which)
    result = result.to_crs(truth.crs)
    if not class_aware:
        return _of_one_class(truth), _of_one_class(result)
    assert truth.classes is not None
    assert result.classes is not None
    spelling = {plain_class(name): name for name in dict.fromkeys(truth.classes.tolist())}
    names = [spelling.get(plain_class(name), name) for name in result.classes.tolist()]
    return truth, replace(result, classes=np.array(names, object))


def _of_one_class(objects: MapObjects) -> MapObjects:
    return replace(objects, classes=np.full(len(objects), ANY_CLASS, object))


def _read_frame(path: Path, what: str) -> geopandas.GeoDataFrame:
    if not path.exists():
        msg = f"{path}: no such file; give the {what} as a vector file"
        raise UsageError(msg)
    try:
        frame = geopandas.read_parquet(path) if path.suffix.lower() in _PARQUET else pyogrio.read_dataframe(path)
    except (OSError, ValueError, DataSourceError, DataLayerError) as error:
        msg = f"{path}: cannot read the {what}; check that it is a vector file of polygons ({_short(error)})"
        raise UsageError(msg) from error
    if not isinstance(frame, geopandas.GeoDataFrame):
        if len(frame):
            msg = f"{path}: the {what} has no geometry, only {_listed(tuple(map(str, frame.columns)))}; give polygons"
            raise UsageError(msg)
        # an empty GeoJSON has neither rows nor a geometry type
        frame = geopandas.GeoDataFrame(frame, geometry=geopandas.GeoSeries([], crs=None))
        frame[CLASS_COLUMN] = frame.get(CLASS_COLUMN, "")
    return frame


def _scores(
    frame: geopandas.GeoDataFrame, name: str, column: str | None, columns: tuple[str, ...]
) -> NDArray[np.float64]:
    if column is not None and column not in columns and len(frame):
        msg = f"{name} has no column {column}; its columns are {_listed(columns)}"
        raise UsageError(msg)
    column = SCORE_COLUMN if column is None else column
    if column not in columns:
        return np.ones(len(frame))
    try:
        scores = np.asarray(frame[column].to_numpy(np.float64, na_value=np.nan), np.float64)
    except (TypeError, ValueError) as error:
        msg = f"{name}: the column {column} holds other things than numbers; name the one with scores by --score-column"
        raise UsageError(msg) from error
    if np.isnan(scores).any():
        missing = int(np.isnan(scores).sum())
        msg = f"{name}: {missing} of {len(scores)} objects have no {column}; fill them, or name another --score-column"
        raise UsageError(msg)
    return scores


def _usable(shapes: NDArray[np.object_]) -> tuple[NDArray[np.object_], int, NDArray[np.bool_]]:
    """Mend what can be mended: usable polygons, how many were mended, and (N,) which rows they come from."""
    shapes = shapely.force_2d(shapes.copy())
    numbers = ~(shapely.is_missing(shapes) | shapely.is_empty(shapes))
    for index in np.flatnonzero(numbers):
        numbers[index] = bool(np.isfinite(shapely.get_coordinates(shapes[index])).all())
    invalid = numbers & ~shapely.is_valid(shapes)
    shapes[invalid] = shapely.make_valid(shapes[invalid])
    mixed = numbers & (shapely.get_type_id(shapes) == shapely.GeometryType.GEOMETRYCOLLECTION)
    for index in np.flatnonzero(mixed):
        parts = [part for part in shapely.get_parts(shapes[index]) if shapely.area(part) > 0]
        shapes[index] = shapely.union_all(parts) if parts else None
    usable = numbers & (shapely.area(shapes) > 0)
    return shapes[usable], int((invalid & usable).sum()), usable


def _tell(objects: MapObjects, name: str) -> None:
    if objects.repaired:
        logger.warning("%s: %d invalid polygons were repaired", name, objects.repaired)
    if objects.left_out:
        logger.warning("%s: %d rows without a usable polygon are left out", name, objects.left_out)


def _listed(columns: tuple[str, ...]) -> str:
    return ", ".join(columns) or "none"


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
