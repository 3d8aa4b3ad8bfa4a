"""``rsgeoseg preview``: a result drawn over its scene."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rsgeoseg.cli import common

Result = Annotated[
    Path,
    typer.Argument(
        metavar="RESULT", help="What `rsgeoseg run` wrote: GPKG, GeoJSON, FlatGeobuf, GeoParquet or Shapefile."
    ),
]
Output = Annotated[
    Path, typer.Option("-o", "--output", metavar="OUT", help="A .png, or an .html that opens without a network.")
]
MaxSide = Annotated[int, typer.Option(metavar="PX", min=64, max=8192, help="Longer side of the picture.")]
Bands = Annotated[str | None, typer.Option("-b", "--bands", metavar="1,2,3", help="Bands to show as red, green, blue.")]
Threshold = Annotated[float, typer.Option(metavar="S", min=0.0, max=1.0, help="Leave out objects scored below.")]


def preview(
    scene: Annotated[str, typer.Argument(metavar="SCENE", help="The raster.")],
    result: Result,
    output: Output,
    max_side: MaxSide = 1600,
    bands: Bands = None,
    stretch: Annotated[str, typer.Option(metavar="auto|none|...", help="As in `run`.")] = "auto",
    score_threshold: Threshold = 0.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing picture.")] = False,
    verbose: common.Verbose = False,
    quiet: common.Quiet = False,
) -> None:
    """Draw a result over its scene, as PNG or HTML."""
    common.set_up(verbose=verbose, quiet=quiet)
    from rsgeoseg.engine.options import parse_numbers
    from rsgeoseg.geo.inputs import input_files, refuse_replacing
    from rsgeoseg.geo.preview import check_preview_path, make_preview, write_preview
    from rsgeoseg.geo.scene import Scene
    from rsgeoseg.geo.stac import is_item, only_scene
    from rsgeoseg.geo.vectors import load_frame

    refuse_replacing([output], input_files(scene))
    scene = only_scene(scene) if is_item(scene) else scene
    check_preview_path(output, overwrite=overwrite)
    frame = load_frame(result)
    if "score" in frame:
        frame = frame[frame["score"] >= score_threshold]
    numbers = None if bands is None else [int(band) for band in parse_numbers("bands", bands, whole=True)]
    with Scene.open(scene, bands=numbers, stretch=stretch) as source:
        picture = make_preview(source, frame, max_side=max_side)
    write_preview(picture, output, overwrite=overwrite)
    if not quiet:
        print(f"{output}: {len(picture.shapes)} of {len(frame)} objects drawn")
