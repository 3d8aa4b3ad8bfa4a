"""rsgeoseg: large georeferenced rasters to georeferenced polygons with promptable segmentation models.

Names are resolved on first use, so that ``import rsgeoseg`` and ``rsgeoseg --help`` load no torch, dask or rasterio.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rsgeoseg import contract, testing
    from rsgeoseg.errors import RsGeoSegError
    from rsgeoseg.geo.scene import Scene
    from rsgeoseg.jobs import run
    from rsgeoseg.registry import list_models, load_model

__version__ = "0.1.0"

_HOMES = {
    "run": "rsgeoseg.jobs",
    "Scene": "rsgeoseg.geo.scene",
    "load_model": "rsgeoseg.registry",
    "list_models": "rsgeoseg.registry",
    "RsGeoSegError": "rsgeoseg.errors",
}
_MODULES = ("contract", "testing")

__all__ = ["RsGeoSegError", "Scene", "__version__", "contract", "list_models", "load_model", "run", "testing"]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _MODULES:
        return import_module(f"rsgeoseg.{name}")
    msg = f"module 'rsgeoseg' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return __all__
