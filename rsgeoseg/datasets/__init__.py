"""Datasets: published ones, COCO and YOLO folders, the user's own polygons; imported when they are first used."""

from __future__ import annotations

import importlib
from typing import Any

_PLACES = {
    "ArcGISChips": "arcgis",
    "CocoInstances": "coco",
    "DiorRsvg": "dior_rsvg",
    "GeoInstances": "geo_instances",
    "HRSID": "hrsid",
    "ISAID": "isaid",
    "InstanceDataModule": "datamodule",
    "InstanceDataset": "instances",
    "LoveDAUrban": "loveda",
    "NWPUVHR10": "nwpu",
    "PotsdamInstances": "potsdam",
    "RefSegRS": "refsegrs",
    "ReferringDataset": "referring",
    "RrsisD": "rrsis_d",
    "RrsisM": "rrsis_m",
    "SSDD": "ssdd",
    "SandBar": "sandbar",
    "WHUBuilding": "whu_building",
    "WHUBuildingCoco": "whu_building",
    "WHUSatellite": "whu_satellite",
    "YoloInstances": "yolo",
    "open_dataset": "catalog",
    "open_referring": "catalog",
}
__all__ = sorted(_PLACES)  # noqa: PLE0605  (the table above is the one place of the names)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _PLACES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return list(_PLACES)
