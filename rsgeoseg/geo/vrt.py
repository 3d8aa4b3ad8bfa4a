"""What a VRT may name: plain local raster files, each of the kind its extension says.

GDAL opens the sources of a VRT with whatever driver recognises them, and URLs as well. So they are checked before. GDAL
reads XML loosely (names in any case, attributes where elements are meant): what is unusual is refused, not guessed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from rsgeoseg.errors import SceneError
from rsgeoseg.geo.opening import driver_for, has_magic, plain_path

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_TEXT_BYTES = 64 << 20
MAX_DEPTH = 8
_SOURCES = frozenset({"sourcefilename", "sourcedataset"})
_HARMLESS = frozenset({"metadata", "srs", "gcplist", "categorynames", "histograms"})
"""Elements whose text GDAL does not open, and where an address may stand as a remark."""


def vrt_sources(path: Path, depth: int = 0) -> list[Path]:
    """Return every file a VRT reads, nested VRTs included, after checking each.

    Raises:
        SceneError: not a VRT, or a source that is missing, not of its extension's kind, or not a local file.
    """
    if depth > MAX_DEPTH:
        msg = f"{path}: VRTs are nested more than {MAX_DEPTH} deep; flatten them with gdal_translate -of VRT"
        raise SceneError(msg)
    found: dict[Path, None] = {}
    for element in _openable(_parse(path)):
        words = [element.text or "", *element.attrib.values()]
        if any("/vsi" in word.lower() or "://" in word for word in words):
            msg = f"{path}: <{element.tag}> names something that is not a local file; download it and name the file"
            raise SceneError(msg)
        is_source = str(element.tag).lower() in _SOURCES
        if (is_source and len(element)) or any(name.lower() in _SOURCES for name in element.attrib):
            msg = f"{path}: <{element.tag}> is not written as GDAL writes it; rewrite it with gdal_translate -of VRT"
            raise SceneError(msg)
        if is_source:
            found.update(dict.fromkeys(_check_source(path, element, depth)))
    return list(found)


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


def _check_source(vrt: Path, element: ET.Element, depth: int) -> list[Path]:
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
        return [source, *vrt_sources(source, depth + 1)]
    if not has_magic(source, driver):
        msg = f"{vrt}: source {source} is not a {driver} file although it is named so"
        raise SceneError(msg)
    return [source]
