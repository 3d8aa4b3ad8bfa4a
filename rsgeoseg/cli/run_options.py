"""The options of ``rsgeoseg run``, one name each, with the words that ``--help`` prints."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from typer import Argument, Option


class ProgressStyle(StrEnum):
    """How a run shows that it goes on."""

    auto = "auto"
    json = "json"
    none = "none"


class ChipErrorPolicy(StrEnum):
    """What to do about a chip that fails."""

    raise_ = "raise"
    skip = "skip"


Scenes = Annotated[
    list[str],
    Argument(
        metavar="SCENE...",
        help="Rasters: GeoTIFF, COG, VRT, JPEG 2000, PNG or JPEG; their addresses; or STAC items (.json).",
    ),
]
Model = Annotated[str, Option(metavar="NAME", help="Model; `rsgeoseg models` lists them.")]
Weights = Annotated[str | None, Option(metavar="ID|PATH", help="Weights; default: those of the model.")]
Output = Annotated[
    str | None,
    Option(
        "-o",
        "--output",
        metavar="OUT",
        help="Output file; its extension chooses the format. For several scenes a folder, or a name with {stem}. "
        "Default: {stem}.gpkg in the current folder.",
    ),
]
Format = Annotated[str | None, Option(metavar="NAME", help="Output format, where the extension does not tell.")]
Device = Annotated[str, Option(metavar="auto|cpu|cuda[:i]", help="Where the model runs.")]
BatchSize = Annotated[str, Option(metavar="auto|N", help="Chips per call of the model; halves when memory runs out.")]
ChipSize = Annotated[int | None, Option(metavar="N", help="Side of a chip, pixels; default: the model's.")]
Overlap = Annotated[
    int | None, Option(metavar="N", help="Overlap of neighbouring chips, pixels; default: the model's.")
]
Bands = Annotated[
    str | None, Option("-b", "--bands", metavar="1,2,3", help="Bands to use, counted from 1, in the model's order.")
]
Stretch = Annotated[
    str,
    Option(
        metavar="auto|none|percentile:2,98|minmax:0,3000", help="How values become 0-255, once for the whole scene."
    ),
]
Gsd = Annotated[float | None, Option(metavar="M", help="Resample to M metres per pixel first.")]
Aoi = Annotated[str | None, Option(metavar="FILE", help="Vector file: only the area inside is segmented.")]
BBox = Annotated[str | None, Option(metavar="X0,Y0,X1,Y1", help="Only this box, in the scene's CRS.")]
Classes = Annotated[str | None, Option(metavar="A,B", help="Keep only these classes.")]
ScoreThreshold = Annotated[
    float | None, Option(metavar="S", help="Drop objects scored below, 0 to 1; default: the model's.")
]
MinArea = Annotated[str | None, Option(metavar="20m2|50px", help="Drop smaller objects.")]
Nms = Annotated[float, Option(metavar="T", help="Mask overlap above which two objects of one class are duplicates.")]
Simplify = Annotated[float, Option(metavar="PX", help="Simplify outlines within so many pixels; 0: exact pixel edges.")]
Regularize = Annotated[bool, Option("--regularize", help="Draw outlines with right angles where they nearly are.")]
DstCrs = Annotated[str | None, Option(metavar="EPSG:X", help="CRS of the output; default: the scene's.")]
Asset = Annotated[
    str | None, Option(metavar="NAME", help="Raster of a STAC item; default: `visual`, or its only one; * for all.")
]
Merge = Annotated[
    bool, Option("--merge", help="Write the objects of all scenes to one file, with a `scene` column; none are joined.")
]
Overwrite = Annotated[bool, Option("--overwrite", help="Replace an existing output.")]
OnChipError = Annotated[ChipErrorPolicy, Option(help="A chip that fails stops the run, or is left out and recorded.")]
Workers = Annotated[
    int | None,
    Option(metavar="N", help="Share the scene among N processes of this machine, one per GPU where there are several."),
]
Scheduler = Annotated[
    str | None, Option(metavar="tcp://HOST:PORT", help="Share the scene among the workers of a Dask scheduler.")
]
MaxMemory = Annotated[
    str | None, Option(metavar="2GB", help="Memory that the run may take, all of its processes together.")
]
Resume = Annotated[
    bool, Option("--resume", help="Go on with an unfinished run of the same output; leave a finished one as it is.")
]
Offline = Annotated[bool, Option("--offline", help="Never use the network.")]
Progress = Annotated[
    ProgressStyle, Option(help="auto: a bar on a terminal; json: one event per line on stdout; none: nothing.")
]
