"""The run record: what was run on what, with which versions, and how it went; plain JSON values."""

from __future__ import annotations

import platform
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import pyproj
import rasterio

if TYPE_CHECKING:
    from rsgeoseg.contract import ModelSpec
    from rsgeoseg.geo.scene import Scene

_PACKAGES = ("numpy", "rasterio", "shapely", "geopandas", "pyogrio", "torch", "timm", "segment-anything")


def versions() -> dict[str, str | None]:
    """Return the versions that decide a result: rsgeoseg, Python, its packages, GDAL and PROJ."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str | None]:
    # By name at run time: an import statement would tie the engine to everything the package's front page names.
    own = str(import_module("rsgeoseg").__version__)
    found: dict[str, str | None] = {"rsgeoseg": own, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    libraries = {"gdal": rasterio.__gdal_version__, "proj": pyproj.proj_version_str}
    return {**found, **libraries, "platform": platform.platform()}


def model_record(spec: ModelSpec) -> dict[str, Any]:
    """Return what identifies a model and its weights."""
    return {
        "name": spec.name,
        "weights": spec.weights_id or None,
        "classes": list(spec.classes),
        "chip_size": spec.chip_size,
        "source": spec.source,
        "licence": spec.licence,
    }


def scene_record(scene: Scene) -> dict[str, Any]:
    """Return what identifies a scene, its working grid and its stretch."""
    return {**scene.to_dict(), "stretch": scene.stretch.to_dict()}


def rate(pixels: int, seconds: float) -> float:
    """Return scene pixels per second in millions, overlap counted once."""
    return round(pixels / 1e6 / max(seconds, 1e-9), 3)
