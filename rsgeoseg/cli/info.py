"""``rsgeoseg info``: what is in a raster, and how would a run read it?"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rsgeoseg.cli import common
from rsgeoseg.cli import run_options as opt
from rsgeoseg.network import OFFLINE

if TYPE_CHECKING:
    from rsgeoseg.geo.scene import Scene


def info(
    scene: Annotated[str, typer.Argument(metavar="SCENE", help="A raster, its address, or a STAC item.")],
    model: opt.Model = "rsprompter-query",
    chip_size: opt.ChipSize = None,
    overlap: opt.Overlap = None,
    bands: opt.Bands = None,
    stretch: opt.Stretch = "auto",
    gsd: opt.Gsd = None,
    aoi: opt.Aoi = None,
    bbox: opt.BBox = None,
    asset: opt.Asset = None,
    offline: opt.Offline = False,
    as_json: common.Json = False,
    verbose: common.Verbose = False,
    quiet: common.Quiet = False,
) -> None:
    """Show what is in a raster and what a run would do."""
    common.set_up(verbose=verbose, quiet=quiet)
    from rsgeoseg.engine.order import RunJob
    from rsgeoseg.geo.scene import Scene
    from rsgeoseg.geo.stac import is_item, only_scene
    from rsgeoseg.geo.windows import plan_windows

    if offline:
        os.environ[OFFLINE] = "1"
    scene = only_scene(scene, asset) if is_item(scene) else scene
    job = RunJob(scene=scene, bands=bands, stretch=stretch, gsd=gsd, aoi=aoi, bbox=bbox)  # type: ignore[arg-type]
    size, lap = _chips(model, chip_size, overlap)
    with Scene.open(scene, bands=job.bands, stretch=stretch, gsd=gsd, aoi=aoi, bbox=job.bbox) as source:
        plan = plan_windows(source.grid.height, source.grid.width, chip_size=size, overlap=lap)
        facts = {
            **source.to_dict(),
            "stretch": source.stretch.to_dict(),
            "chips": {"count": len(plan.windows), "chip_size": size, "overlap": lap, "model": model},
        }
        if as_json:
            common.print_json(facts)
        else:
            common.print_pairs(describe(source, facts))


def _chips(model: str, chip_size: int | None, overlap: int | None) -> tuple[int, int]:
    """Chip size and overlap as a run would choose them, from the card of the model's default weights."""
    from rsgeoseg import registry

    card = registry.card(model)
    default = card.weights[0] if card.weights else None
    size = chip_size or (1024 if default is None else default.chip_size)
    if overlap is not None:
        return size, overlap
    return size, min(192 if default is None else default.overlap, size // 4)


def describe(scene: Scene, facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Put the facts about a scene into words."""
    grid, file = scene.grid, scene.source_grid
    size = f"{grid.width:,} x {grid.height:,} pixels ({grid.width * grid.height / 1e6:,.1f} Mpx)"
    if (grid.width, grid.height) != (file.width, file.height):
        size += f", of {file.width:,} x {file.height:,} in the file"
    chips = facts["chips"]
    return [
        ("scene", f"{scene.location} ({facts['driver']})"),
        ("size", size),
        ("crs", "none: results are in pixels" if grid.crs is None else _crs(grid.crs)),
        ("gsd", "unknown" if grid.gsd is None else f"{grid.gsd:.4g} m per pixel"),
        ("bounds", ", ".join(f"{value:.10g}" for value in grid.bounds)),
        ("bands", f"{', '.join(map(str, scene.band_indexes))} of {facts['file_bands']}, {scene.dtype}"),
        ("nodata", "none" if scene.nodata is None else f"{scene.nodata:g}"),
        ("stretch", _stretch(facts["stretch"])),
        ("chips", f"{chips['count']:,} of {chips['chip_size']} pixels, overlap {chips['overlap']} ({chips['model']})"),
    ]


def _crs(crs: Any) -> str:
    code = crs.to_string()
    return code if len(code) < 40 else f"{code[:60]}..."


def _stretch(stretch: dict[str, Any]) -> str:
    if stretch["kind"] == "none":
        return "none: values are used as they are"
    spans = "; ".join(f"{low:g} to {high:g}" for low, high in zip(stretch["low"], stretch["high"], strict=True))
    return f"{stretch['kind']}: {spans} become 0 to 255"
