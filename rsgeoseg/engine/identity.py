"""What decides the result of a run: two runs with the same identity give the same features."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import shapely

from rsgeoseg.engine.record import scene_record, versions
from rsgeoseg.geo.record import to_jsonable

if TYPE_CHECKING:
    from rsgeoseg.contract import ModelSpec
    from rsgeoseg.engine.deliver import Delivery
    from rsgeoseg.engine.options import PipelineOptions
    from rsgeoseg.geo.scene import Scene

_PLACES = ("path",)  # the same file may have moved
_PACE = ("readers", "ahead", "on_chip_error")
"""Options that decide how fast, and whether at all, but not what is found."""
_LIBRARIES = ("torch", "numpy", "rasterio", "gdal", "shapely")


def run_identity(
    scene: Scene, spec: ModelSpec, options: PipelineOptions, delivery: Delivery, device: str
) -> dict[str, Any]:
    """Return the identity of a run as plain JSON values, by section.

    Workers, readers and memory are left out: they decide how fast, not what. So is what a failed chip means: a run that
    stopped at one goes on without it.

    Args:
        scene: an open scene; its stretch is found if it was not yet.
        spec: the model, which names its weights with their digest.
        options: how the scene is cut and joined.
        delivery: how objects are drawn.
        device: kind of device, such as ``cpu``: arithmetic differs between kinds.
    """
    place = {name: value for name, value in scene_record(scene).items() if name not in _PLACES}
    if scene.aoi_geometry is not None:
        place["aoi"] = hashlib.sha256(shapely.to_wkb(scene.aoi_geometry)).hexdigest()
    plan = {name: value for name, value in options.to_dict(spec).items() if name not in _PACE}
    identity = {
        "rsgeoseg": versions()["rsgeoseg"],
        "model": {
            "name": spec.name,
            "weights": spec.weights_id,
            "classes": list(spec.classes),
            "device": device,
        },
        "scene": place,
        "options": plan,
        "drawing": {
            "min_area": delivery.min_area,
            "simplify": delivery.simplify,
            "regularize": delivery.regularize,
            "dst_crs": None if delivery.dst_crs is None else str(delivery.dst_crs),
        },
    }
    plain: dict[str, Any] = to_jsonable(identity)
    return plain


def libraries() -> dict[str, str | None]:
    """Return versions of what computes a result: with another one it may differ in the last digits."""
    found = versions()
    return {name: found[name] for name in _LIBRARIES}
