"""What a VRT may name: plain local raster files, each of the kind its extension says; and that they are still there.

GDAL opens the sources of a VRT with whatever driver recognises them, and URLs as well. So they are checked before. GDAL
reads XML loosely (names in any case, attributes where elements are meant): what is unusual is refused, not guessed.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import numpy as np
from rasterio.errors import RasterioIOError

from rsgeoseg.errors import SceneError
from rsgeoseg.geo.opening import driver_for, has_magic, open_dataset, plain_path
from rsgeoseg.geo.windows import Box

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

MAX_TEXT_BYTES = 64 << 20
MAX_DEPTH = 8
_SOURCES = frozenset({"sourcefilename", "sourcedataset"})
_HARMLESS = frozenset({"metadata", "srs", "gcplist", "categorynames", "histograms"})
"""Elements whose text GDAL does not open, and where an address may stand as a remark."""


@dataclass(frozen=True, slots=True)
class VrtSource:
    """A file that a VRT reads."""

    path: Path
    driver: str
    box: Box | None
    """Pixels of the VRT that come from it; None = any."""


class SourceGuard:
    """Sees to it that the sources of a window can be opened, before GDAL tries.

    GDAL keeps a source that it could not open, and gives up on it without a word the next time; rasterio takes that for
    success and returns whatever was in memory. So a source that is gone, unreadable or another file than before has to
    be found here. (GDAL 3.10, rasterio 1.4.4.)

    Args:
        sources: of one VRT; none for any other raster.
    """

    def __init__(self, sources: Sequence[VrtSource]) -> None:
        self._sources = sources
        everywhere = (-math.inf, -math.inf, math.inf, math.inf)
        boxes = [everywhere if each.box is None else astuple(each.box) for each in sources]
        self._boxes = np.array(boxes, np.float64).reshape(-1, 4)
        self._known: dict[Path, tuple[int, int]] = {}

    def check(self, box: Box | None = None) -> None:
        """Look at the sources of a box of the VRT's own pixels; None = all.

        Raises:
            RasterioIOError: one cannot be used; the message names it.
        """
        for index in range(len(self._sources)) if box is None else self._touched(box):
            source = self._sources[index]
            try:
                status = source.path.stat()
                now = status.st_size, status.st_mtime_ns
                if source.path not in self._known:
                    open_dataset(source.path, source.driver).close()
                    self._known[source.path] = now
            except OSError as error:
                msg = f"source {source.path}: {error.strerror or error}"
                raise RasterioIOError(msg) from None
            except SceneError as error:
                msg = f"source {error}"
                raise RasterioIOError(msg) from None
            if self._known[source.path] != now:
                msg = f"source {source.path} has changed since it was first read"
                raise RasterioIOError(msg)

    def _touched(self, box: Box) -> Iterator[int]:
        if not self._sources:
            return
        x0, y0, x1, y1 = self._boxes.T
        yield from map(int, np.flatnonzero((x0 < box.x1) & (box.x0 < x1) & (y0 < box.y1) & (box.y0 < y1)))


def vrt_sources(path: Path, depth: int = 0) -> list[VrtSource]:
    """Return every file a VRT reads, nested VRTs included, after checking each.

    Raises:
        SceneError: not a VRT, or a source that is missing, not of its extension's kind, or not a local file.
    """
    if depth > MAX_DEPTH:
        msg = f"{path}: VRTs are nested more than {MAX_DEPTH} deep; flatten them with gdal_translate -of VRT"
        raise SceneError(msg)
    found: dict[VrtSource, None] = {}
    root = _parse(path)
    places = _places(root)
    for element in _openable(root):
        words = [element.text or "", *element.attrib.values()]
        if any("/vsi" in word.lower() or "://" in word for word in words):
            msg = f"{path}: <{element.tag}> names something that is not a local file; download it and name the file"
            raise SceneError(msg)
        is_source = str(element.tag).lower() in _SOURCES
        if (is_source and len(element)) or any(name.lower() in _SOURCES for name in element.attrib):
            msg = f"{path}: <{element.tag}> is not written as GDAL writes it; rewrite it with gdal_translate -of VRT"
            raise SceneError(msg)
        if is_source:
            found.update(dict.fromkeys(_check_source(path, element, places.get(element), depth)))
    return list(found)


def _places(root: ET.Element) -> dict[ET.Element, Box]:
    """Find the pixels that each source fills, where it says so."""
    places = {}
    for parent in root.iter():
        parts = {str(child.tag).lower(): child for child in parent}
        if "sourcefilename" in parts and "dstrect" in parts:
            rect = {name.lower(): value for name, value in parts["dstrect"].attrib.items()}
            try:
                x, y, width, height = (float(rect[name]) for name in ("xoff", "yoff", "xsize", "ysize"))
                place = Box(math.floor(x), math.floor(y), math.ceil(x + width), math.ceil(y + height))
            except (KeyError, ValueError, OverflowError):  # GDAL will have its own opinion: anywhere, then
                continue
            places[parts["sourcefilename"]] = place
    return places


def _openable(element: ET.Element) -> Iterator[ET.Element]:
    yield element
    for child in element:
        if str(child.tag).lower() not in _HARMLESS:
            yield from _openable(child)


def _parse(path: Path) -> ET.Element:
    if path.stat().st_size > MAX_TEXT_BYTES:
        msg = f"{path} is larger than {MAX_TEXT_BYTES >> 20} MB: this is not a VRT"
        raise SceneError(msg)
    text = path.read_bytes()
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        msg = f"{path} declares XML entities: rewrite it with gdal_translate -of VRT"
        raise SceneError(msg)
    # Comments become elements, so that one inside a file name is seen.
    builder = ET.TreeBuilder(insert_comments=True)
    try:
        root = ET.fromstring(text, ET.XMLParser(target=builder))  # noqa: S314  (no entities, size capped)
    except ET.ParseError as error:
        msg = f"{path} is not a VRT: {error}"
        raise SceneError(msg) from error
    if str(root.tag) != "VRTDataset":
        msg = f"{path} is not a VRT: it is XML that begins with <{root.tag}>"
        raise SceneError(msg)
    return root


def _check_source(vrt: Path, element: ET.Element, place: Box | None, depth: int) -> list[VrtSource]:
    text = (element.text or "").strip()
    attributes = {name.lower(): value for name, value in element.attrib.items()}
    relative = attributes.get("relativetovrt", "0") == "1"
    try:
        source = plain_path(vrt.parent / text if relative else text, "source")
        driver = driver_for(source)
    except SceneError as error:
        msg = f"{vrt}: {error}"
        raise SceneError(msg) from error
    if driver == "VRT":
        inner = [replace(each, box=place) for each in vrt_sources(source, depth + 1)]
        return [VrtSource(source, driver, place), *inner]
    if not has_magic(source, driver):
        msg = f"{vrt}: source {source} is not a {driver} file although it is named so"
        raise SceneError(msg)
    return [VrtSource(source, driver, place)]
