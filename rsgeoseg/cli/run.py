"""``rsgeoseg run``: a scene in, polygons out."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsgeoseg.cli import common
from rsgeoseg.cli import run_options as opt
from rsgeoseg.errors import UsageError
from rsgeoseg.network import offline as network_off

if TYPE_CHECKING:
    from collections.abc import Sequence


def run(
    scenes: opt.Scenes,
    model: opt.Model = "rsprompter-query",
    weights: opt.Weights = None,
    output: opt.Output = None,
    format: opt.Format = None,  # noqa: A002  (the option's name)
    device: opt.Device = "auto",
    batch_size: opt.BatchSize = "auto",
    chip_size: opt.ChipSize = None,
    overlap: opt.Overlap = None,
    bands: opt.Bands = None,
    stretch: opt.Stretch = "auto",
    gsd: opt.Gsd = None,
    aoi: opt.Aoi = None,
    bbox: opt.BBox = None,
    classes: opt.Classes = None,
    score_threshold: opt.ScoreThreshold = None,
    min_area: opt.MinArea = None,
    nms: opt.Nms = 0.5,
    simplify: opt.Simplify = 0.0,
    regularize: opt.Regularize = False,
    dst_crs: opt.DstCrs = None,
    asset: opt.Asset = None,
    merge: opt.Merge = False,
    workers: opt.Workers = None,
    scheduler: opt.Scheduler = None,
    max_memory: opt.MaxMemory = None,
    resume: opt.Resume = False,
    overwrite: opt.Overwrite = False,
    on_chip_error: opt.OnChipError = opt.ChipErrorPolicy.raise_,
    offline: opt.Offline = False,
    progress: opt.Progress = opt.ProgressStyle.auto,
    verbose: common.Verbose = False,
    quiet: common.Quiet = False,
) -> int:
    """Turn rasters into object polygons.

    Beside OUT goes OUT.run.json: versions, options, chips, seams, seconds and memory.

    Exit codes: 0 done, 1 unexpected, 2 usage, 3 scene, 4 model or weights, 5 output, 6 no chip succeeded,
    130 cancelled.
    """
    common.set_up(verbose=verbose, quiet=quiet)
    options = {
        "weights": weights, "format": format, "device": device, "batch_size": batch_size, "chip_size": chip_size,
        "overlap": overlap, "bands": bands, "stretch": stretch, "gsd": gsd, "aoi": aoi, "bbox": bbox,
        "classes": classes, "score_threshold": score_threshold, "min_area": min_area, "nms": nms, "simplify": simplify,
        "regularize": regularize, "dst_crs": dst_crs, "overwrite": overwrite, "on_chip_error": on_chip_error.value,
        "offline": offline, "workers": workers, "scheduler": scheduler, "max_memory": max_memory, "resume": resume,
    }  # fmt: skip
    given = scenes
    with network_off() if offline else nullcontext():
        scenes = _expand(scenes, asset)
    if merge:
        _refuse_items(given, scenes, [] if output is None else [Path(output)])
        return _run_merged(scenes, output, {"model": model, **options}, style=progress, quiet=quiet)
    outputs = plan_outputs(scenes, output, extension=_extension(format))
    _refuse_items(given, scenes, outputs)
    return _run_all(scenes, outputs, {"model": model, **options}, style=progress, quiet=quiet)


def _expand(scenes: Sequence[str], asset: str | None) -> list[str]:
    """Put the rasters of STAC items in their place."""
    if not any(scene.lower().partition("?")[0].endswith((".json", ".geojson")) for scene in scenes):
        if asset is not None:
            msg = "--asset names a raster of a STAC item: none of the scenes is one"
            raise UsageError(msg)
        return list(scenes)
    from rsgeoseg.geo.stac import is_item, item_assets

    return [each for scene in scenes for each in (item_assets(scene, asset) if is_item(scene) else [scene])]


def _refuse_items(given: Sequence[str], scenes: Sequence[str], outputs: Sequence[Path]) -> None:
    """Refuse outputs in the place of STAC items; jobs know only the rasters of these.

    Raises:
        OutputError: the message names both.
    """
    items = [Path(each) for each in given if each not in scenes]
    if items:
        from rsgeoseg.geo.inputs import refuse_replacing
        from rsgeoseg.geo.writers import record_path

        refuse_replacing([*outputs, *map(record_path, outputs)], items)


def plan_outputs(scenes: Sequence[str], output: str | None, extension: str = ".gpkg") -> list[Path]:
    """Say where the result of each scene goes.

    Args:
        scenes: paths of the scenes.
        output: what the user gave: None, a file, a folder, or a name with ``{stem}`` in it.
        extension: of names made here, with its dot.

    Raises:
        UsageError: one file for several scenes, or the same name twice.
    """
    template = output or "{stem}" + extension
    if output is not None and (output.endswith(("/", "\\")) or Path(output).is_dir()):
        template = str(Path(output) / ("{stem}" + extension))
    if len(scenes) > 1 and "{stem}" not in template:
        msg = (
            f"{len(scenes)} scenes cannot share the output {output}: name a folder, put {{stem}} into the name, or give"
            " --merge"
        )
        raise UsageError(msg)
    outputs = [Path(template.replace("{stem}", stem)) for stem in _stems(scenes)]
    twice = [str(path) for path, count in Counter(outputs).items() if count > 1]
    if twice:
        msg = f"two scenes would both be written to {twice[0]}: run them one by one, each with its own --output"
        raise UsageError(msg)
    return outputs


def _stems(scenes: Sequence[str]) -> list[str]:
    """Name scenes without extension and query; with folders before the name, as few as tell them apart."""
    paths = [Path(scene.partition("?")[0].partition("://")[2] if "://" in scene else scene) for scene in scenes]
    parts = [[*(part for part in path.parent.parts if part not in (path.anchor, "..")), path.stem] for path in paths]
    stems = [each[-1] for each in parts]
    for depth in range(2, max(map(len, parts), default=0) + 1):
        alike = {stem for stem, count in Counter(stems).items() if count > 1}
        if not alike:
            break
        stems = ["_".join(each[-depth:]) if stem in alike else stem for stem, each in zip(stems, parts, strict=True)]
    return stems


def _extension(format_name: str | None) -> str:
    if format_name is None:
        return ".gpkg"
    from rsgeoseg.geo.formats import extension_of

    return extension_of(format_name)


def _run_all(
    scenes: Sequence[str], outputs: Sequence[Path], options: dict[str, Any], *, style: opt.ProgressStyle, quiet: bool
) -> int:
    """Check every scene's job first, load the model once, run one after the other."""
    from rsgeoseg import jobs
    from rsgeoseg.cli.progress import show_progress

    batch = [
        jobs.RunJob(scene=scene, output=str(output), **options) for scene, output in zip(scenes, outputs, strict=True)
    ]
    worst = 0
    with show_progress(style.value, quiet=quiet) as on_event:
        for job, record in jobs.run_jobs(batch, on_event=on_event):
            if not quiet and style is not opt.ProgressStyle.json:
                print_summary(str(job.output), record)
            worst = max(worst, jobs.exit_code(record))
    return worst


def _run_merged(
    scenes: Sequence[str], output: str | None, options: dict[str, Any], *, style: opt.ProgressStyle, quiet: bool
) -> int:
    """Run every scene into one file."""
    from rsgeoseg import jobs
    from rsgeoseg.cli.progress import show_progress

    if output is None:
        msg = "--merge needs a file for all scenes: give it with --output"
        raise UsageError(msg)
    job = jobs.RunJob(scene=scenes[0], output=output, **options)
    with show_progress(style.value, quiet=quiet) as on_event:
        record = jobs.run_merged(job, scenes, on_event=on_event)
    if not quiet and style is not opt.ProgressStyle.json:
        print_summary(output, record)
    return jobs.exit_code(record)


def print_summary(output: str, record: dict[str, Any]) -> None:
    """Print what a run found, how long it took and where the result is."""
    objects, chips = record["objects"], record["chips"]
    rate = f"{record['mpx_per_s']:.3g} Mpx/s"
    print(f"{output}: {objects['total']} objects from {chips['total']} chips in {record['seconds']:.1f} s ({rate})")
    for name, count in sorted(objects["per_class"].items(), key=lambda item: (-item[1], item[0])):
        print(f"  {count:>7}  {name}")
