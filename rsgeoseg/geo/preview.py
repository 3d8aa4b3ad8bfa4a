"""Objects drawn over a small picture of their scene, as PNG or as one HTML file that needs no network."""

from __future__ import annotations

import base64
import html
import io
import json
import logging
import re
from collections import Counter
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import shapely
from PIL import Image

from rsgeoseg.errors import OutputError
from rsgeoseg.geo.commit import check_target, staged
from rsgeoseg.geo.preview_png import draw_png

if TYPE_CHECKING:
    from pathlib import Path

    from geopandas import GeoDataFrame
    from numpy.typing import NDArray
    from rasterio.crs import CRS

    from rsgeoseg.geo.scene import Scene

logger = logging.getLogger(__name__)

PALETTE = (
    "#E69F00", "#56B4E9", "#D55E00", "#F0E442", "#009E73", "#CC79A7", "#0072B2",
    "#5B2DFF", "#8B0000", "#FFFFC8", "#6E0046", "#003A73",
)  # fmt: skip
"""Class colours that stay apart under red and green blindness: Okabe and Ito's seven (2008), then five chosen for their
distance to those in simulated protan and deutan vision. More classes repeat them; the legend then tells by order."""

_SMALLEST_SIDE = 640  # a smaller scene is enlarged: outlines and text need room
_PAGES = (".html", ".htm")
_UNITS = 16  # HTML coordinates are whole 1/16 of a picture pixel


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """A picture and the objects on it, ready to draw."""

    title: str
    image: NDArray[np.uint8]
    """(h, w, 3) RGB."""
    scale: tuple[float, float]
    """Picture pixels per scene pixel, x and y."""
    affine: tuple[float, ...]
    """a b c d e f: scene pixels to world."""
    crs: str
    """Name of the CRS, shown beside coordinates."""
    shapes: list[Any]
    """Shapely geometries in picture pixels."""
    rows: list[dict[str, Any]]
    """Attributes of each object, as in the result."""
    classes: list[str]
    """Class of each object."""
    scores: list[float | None]
    """Score of each object; None where the result has none."""
    colours: dict[str, str]
    """Class -> ``#RRGGBB``, most frequent class first."""
    counts: dict[str, int]
    """Class -> objects, most frequent first."""


def make_preview(scene: Scene, frame: GeoDataFrame, *, max_side: int = 1600) -> Preview:
    """Put objects onto a decimated read of their scene.

    Args:
        scene: the raster.
        frame: objects with a ``geometry`` and, where known, ``class_name`` and ``score``; any CRS.
        max_side: longer side of the picture, pixels.

    Returns:
        The picture and the objects in its pixels; objects outside the scene are left out.
    """
    grid = scene.grid
    image = _picture(scene, max_side)
    scale = image.shape[1] / grid.width, image.shape[0] / grid.height
    if frame.crs is not None and grid.crs is not None and frame.crs != grid.crs:
        frame = frame.to_crs(grid.crs)
    shapes = shapely.force_2d(np.asarray(frame.geometry.array, dtype=object))
    shapes = shapely.transform(shapes, lambda points: grid.pixels(points) * scale)
    inside = shapely.intersects(shapes, shapely.box(0, 0, image.shape[1], image.shape[0]))
    if len(frame) and not inside.any():
        logger.warning("none of the %d objects lies on %s: is this its result?", len(frame), scene.name)
    frame, shapes = frame[inside], shapes[inside]
    classes = [str(name) for name in frame["class_name"]] if "class_name" in frame else ["object"] * len(frame)
    scores: list[float | None] = [None] * len(frame)
    if "score" in frame:
        scores = [float(score) for score in frame["score"]]
    counts = dict(sorted(Counter(classes).items(), key=lambda item: (-item[1], item[0])))
    return Preview(
        title=scene.name,
        image=image,
        scale=scale,
        affine=tuple(grid.affine)[:6],
        crs=_crs_name(grid.crs),
        shapes=list(shapes),
        rows=[{key: _plain(value) for key, value in row.items()} for row in _attributes(frame)],
        classes=classes,
        scores=scores,
        colours={name: PALETTE[i % len(PALETTE)] for i, name in enumerate(counts)},
        counts=counts,
    )


def check_preview_path(path: Path, *, overwrite: bool) -> None:
    """Refuse a path that no preview can be written to, before the work.

    Raises:
        OutputError: neither .png nor .html, it exists, or its folder cannot be written to.
    """
    if path.suffix.lower() not in (".png", *_PAGES):
        msg = f"{path}: a preview is .png or .html: change the name"
        raise OutputError(msg)
    check_target(path, overwrite=overwrite)


def write_preview(preview: Preview, path: Path, *, overwrite: bool = False) -> None:
    """Draw a preview into a file; the extension chooses PNG or HTML.

    Args:
        preview: what ``make_preview`` returned.
        path: ends in ``.png``, ``.html`` or ``.htm``; written beside and renamed.
        overwrite: whether an existing file may be replaced.

    Raises:
        OutputError: another extension, or the file cannot be written.
    """
    check_preview_path(path, overwrite=overwrite)
    data = draw_html(preview).encode() if path.suffix.lower() in _PAGES else draw_png(preview)
    with staged(path, overwrite=overwrite, need=len(data)) as temporary:
        temporary.write_bytes(data)


def draw_html(preview: Preview) -> str:
    """Draw a preview as one HTML page: pan, zoom, click an object, switch classes, filter by score."""
    names = list(preview.counts)
    order = np.argsort([-shape.area for shape in preview.shapes], kind="stable")  # small objects on top
    objects = [
        {
            "c": names.index(preview.classes[i]),
            "s": preview.scores[i],
            "r": _rings(preview.shapes[i]),
            "a": preview.rows[i],
        }
        for i in order.tolist()
    ]
    data = {
        "width": preview.image.shape[1],
        "height": preview.image.shape[0],
        "units": _UNITS,
        "scale": preview.scale,
        "affine": preview.affine,
        "crs": preview.crs,
        "classes": [{"name": n, "colour": preview.colours[n], "count": preview.counts[n]} for n in names],
        "objects": objects,
    }
    page = files("rsgeoseg.geo").joinpath("preview.html").read_text(encoding="utf-8")
    fields = {
        "@TITLE@": html.escape(preview.title),
        "@IMAGE@": "data:image/jpeg;base64," + base64.b64encode(_jpeg(preview.image)).decode(),
        # "<" could end the script element from within a class name
        "@DATA@": json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    }
    return re.sub("@[A-Z]+@", lambda match: fields[match[0]], page)  # one pass: no field is searched for another


def _picture(scene: Scene, max_side: int) -> NDArray[np.uint8]:
    chip = scene.read_thumbnail(max_side)
    image = chip.image if chip.image.dtype == np.uint8 else _to_bytes(chip.image)
    bands = [0, 0, 0] if len(image) < 3 else [0, 1, 2]
    picture: NDArray[np.uint8] = np.ascontiguousarray(image[bands].transpose(1, 2, 0), np.uint8)
    picture[~chip.valid] = 24
    enlarge = min(_SMALLEST_SIDE, max_side) / max(picture.shape[:2])
    if enlarge > 1:
        size = (max(round(picture.shape[1] * enlarge), 1), max(round(picture.shape[0] * enlarge), 1))
        method = cv2.INTER_NEAREST if enlarge > 4 else cv2.INTER_CUBIC
        picture = np.asarray(cv2.resize(picture, size, interpolation=method), np.uint8)
    return picture


def _to_bytes(image: NDArray[Any]) -> NDArray[np.uint8]:
    low, high = np.nanpercentile(image, [2, 98])
    return np.asarray(np.clip((image - low) * (255 / max(high - low, 1e-9)), 0, 255), np.uint8)


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def _rings(shape: Any) -> list[list[int]]:
    """Rings as flat x y x y lists in 1/16 picture pixels: the first point absolute, then differences."""
    thin = shapely.simplify(shape, 0.2, preserve_topology=True)
    rings = []
    for part in shapely.get_parts(thin if not thin.is_empty else shape):
        if part.geom_type != "Polygon":
            continue
        for ring in (part.exterior, *part.interiors):
            points = np.rint(np.asarray(ring.coords)[:-1, :2] * _UNITS).astype(int)
            steps = np.diff(points, axis=0, prepend=np.zeros((1, 2), int))
            rings.append(steps.ravel().tolist())
    return rings


def _attributes(frame: GeoDataFrame) -> list[dict[str, Any]]:
    return frame.drop(columns=frame.geometry.name).to_dict("records")  # type: ignore[no-any-return]


def _crs_name(crs: CRS | None) -> str:
    if crs is None:
        return "pixels"
    code = crs.to_string()
    return code if len(code) < 24 else ""  # a whole WKT definition would fill the page


def _plain(value: Any) -> Any:
    """Turn a table's value into a JSON one."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value if isinstance(value, bool | int | str) or value is None else str(value)
