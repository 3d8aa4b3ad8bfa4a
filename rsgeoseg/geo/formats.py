"""The file formats of a result: their names, extensions and the files they are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rsgeoseg.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Format:
    """One file format."""

    name: str
    """As in ``--format``."""
    title: str
    """For people."""
    extensions: tuple[str, ...]
    """Lower case, with the dot; the first one is the usual one."""
    driver: str | None = None
    """GDAL's name of a vector format; None where something else writes it."""
    parts: tuple[str, ...] = ()
    """Extensions of files that belong to the result beside its main file, with the same stem."""
    leftovers: tuple[str, ...] = ()
    """Endings of files that would be taken for a part of the result: removed with the file they belonged to."""
    on_grid: bool = False
    """Whether it is in pixels of the scene, so that writing needs the scene's grid."""
    bytes_per_row: float = 0.0
    """Least bytes of a row without its geometry, to foresee a full disk."""
    bytes_per_vertex: float = 0.0
    """Least bytes of a vertex."""


_ALL = (
    Format(
        "gpkg",
        "GeoPackage",
        (".gpkg",),
        driver="GPKG",
        # A journal left by a killed program would be rolled back into the new file.
        leftovers=("-journal", "-wal", "-shm"),
        bytes_per_row=200,
        bytes_per_vertex=16,
    ),
    Format("geojson", "GeoJSON", (".geojson", ".json"), driver="GeoJSON", bytes_per_row=200, bytes_per_vertex=24),
    Format("fgb", "FlatGeobuf", (".fgb",), driver="FlatGeobuf", bytes_per_row=100, bytes_per_vertex=16),
    Format("parquet", "GeoParquet", (".parquet", ".geoparquet"), bytes_per_row=10, bytes_per_vertex=1),
    Format(
        "shp",
        "Shapefile",
        (".shp",),
        driver="ESRI Shapefile",
        parts=(".shx", ".dbf", ".prj", ".cpg"),
        leftovers=(".qix", ".sbn", ".sbx", ".qpj", ".shp.xml"),
        bytes_per_row=250,
        bytes_per_vertex=16,
    ),
    Format("pmtiles", "PMTiles", (".pmtiles",), driver="PMTiles", bytes_per_row=20),
    Format("coco", "COCO instances", (".coco.json",), on_grid=True, bytes_per_row=150),
    Format(
        "tif",
        "label COG",
        (".tif", ".tiff"),
        leftovers=(".aux.xml", ".ovr", ".msk"),
        on_grid=True,
        bytes_per_row=1,
    ),
)
FORMATS: Mapping[str, Format] = {entry.name: entry for entry in _ALL}
"""All formats by name."""
_ALIASES = {
    "geopackage": "gpkg",
    "json": "geojson",
    "flatgeobuf": "fgb",
    "geoparquet": "parquet",
    "shapefile": "shp",
    "esri shapefile": "shp",
    "coco.json": "coco",
    "tiff": "tif",
    "geotiff": "tif",
    "cog": "tif",
    "labels": "tif",
}


def find_format(path: Path, format: str | None = None) -> Format:  # noqa: A002  (the option's own name)
    """Find the format of an output.

    Args:
        path: the output; its extension decides where ``format`` is None (``.coco.json`` before ``.json``).
        format: a name of `FORMATS`, a common other name or an extension.

    Raises:
        OutputError: an unknown format or extension, with the known ones.
    """
    if format is not None:
        name = format.lower().removeprefix(".")
        found = FORMATS.get(_ALIASES.get(name, name))
        if found is None:
            msg = f"unknown format {format!r}: choose one of {', '.join(FORMATS)}"
            raise OutputError(msg)
        if found.parts and not path.name.lower().endswith(found.extensions):
            msg = f"cannot write {path}: a {found.title} needs a name that ends in {found.extensions[0]}"
            raise OutputError(msg)
        return found
    by_extension = {extension: entry for entry in _ALL for extension in entry.extensions}
    for extension in sorted(by_extension, key=len, reverse=True):
        if path.name.lower().endswith(extension):
            return by_extension[extension]
    msg = f"cannot tell the format of {path}: use one of {', '.join(by_extension)}, or give --format"
    raise OutputError(msg)


def extension_of(format: str) -> str:  # noqa: A002  (the option's own name)
    """Return the usual extension of a format, with its dot: ``.gpkg`` for ``gpkg``.

    Raises:
        OutputError: an unknown format.
    """
    found = FORMATS.get(_ALIASES.get(format.lower(), format.lower()))
    if found is None:
        msg = f"unknown format {format!r}: choose one of {', '.join(FORMATS)}"
        raise OutputError(msg)
    return found.extensions[0]
