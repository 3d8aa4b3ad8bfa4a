"""``rsgeoseg dataset``: chips and masks from rasters and polygons, other formats, and what is in a dataset."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rsgeoseg.cli import common
from rsgeoseg.cli import run_options as opt
from rsgeoseg.errors import OutputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rsgeoseg.datasets.geo_instances import GeoInstances
    from rsgeoseg.datasets.instances import InstanceDataset

dataset_app = typer.Typer(help="Make training data from rasters and polygons, convert it, look at it.")


class FolderFormat(StrEnum):
    """Format of a dataset folder."""

    coco = "coco"
    yolo = "yolo"


Polygons = Annotated[Path, typer.Option(metavar="FILE", help="Vector file with the outlines of the objects.")]
ClassField = Annotated[str | None, typer.Option(metavar="COLUMN", help="Column with the class; default: one class.")]
Classes = Annotated[str | None, typer.Option(metavar="A,B", help="Classes in this order; default: all, sorted.")]
Layer = Annotated[str | None, typer.Option(metavar="NAME", help="Layer of a vector file with several.")]
ChipSize = Annotated[int, typer.Option(metavar="N", help="Side of a chip, pixels.")]
Overlap = Annotated[int, typer.Option(metavar="N", help="Overlap of neighbouring chips, pixels.")]
ValShare = Annotated[float, typer.Option(metavar="S", help="Share of the objects held out, by place; 0: no split.")]
Aoi = Annotated[
    str | None, typer.Option(metavar="FILE", help="Area that is labelled completely; chips without objects are kept.")
]
Negatives = Annotated[
    float | None,
    typer.Option(metavar="R", min=0, help="Most chips without objects per chip with; default: all with --aoi, else 0."),
]
Output = Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="New folder.")]
Format = Annotated[FolderFormat, typer.Option("--format", help="Format of the folder.")]
Folder = Annotated[
    Path,
    typer.Argument(metavar="FOLDER", help="Dataset: COCO (images, annotations), YOLO (data.yaml) or ArcGIS chips."),
]


@dataset_app.command()
def chips(
    scenes: opt.Scenes,
    polygons: Polygons,
    output: Output,
    class_field: ClassField = None,
    format: Format = FolderFormat.coco,  # noqa: A002  (the option's own name)
    classes: Classes = None,
    layer: Layer = None,
    chip_size: ChipSize = 512,
    overlap: Overlap = 0,
    val_share: ValShare = 0.2,
    aoi: Aoi = None,
    negatives: Negatives = None,
    bands: opt.Bands = None,
    stretch: opt.Stretch = "auto",
    gsd: opt.Gsd = None,
    verbose: common.Verbose = False,
    quiet: common.Quiet = False,
) -> None:
    """Cut scenes and polygons into chips with masks, in a folder that other programs read.

    Training and validation lie apart: no pixel and no object is in both.
    """
    common.set_up(verbose=verbose, quiet=quiet)
    _check_packages()
    _check_new(output)
    cut = _Cut(class_field, classes, layer, chip_size, overlap, aoi, negatives, bands, stretch, gsd)
    splits = cut.splits(scenes, polygons, val_share)
    _write(splits, output, format)
    if not quiet:
        print(_told(splits, output))


@dataset_app.command()
def export(
    folder: Folder,
    output: Output,
    format: Format = FolderFormat.coco,  # noqa: A002  (the option's own name)
    stretch: opt.Stretch = "auto",
    verbose: common.Verbose = False,
    quiet: common.Quiet = False,
) -> None:
    """Write a dataset in another format."""
    common.set_up(verbose=verbose, quiet=quiet)
    _check_packages()
    _check_new(output)
    splits = open_folder(folder, stretch=stretch)
    _write(splits, output, format)
    if not quiet:
        print(_told(splits, output))


@dataset_app.command()
def info(
    source: Annotated[
        list[str], typer.Argument(metavar="FOLDER|SCENE...", help="A dataset folder, or rasters with --polygons.")
    ],
    sheet: Annotated[Path | None, typer.Option(metavar="PNG", help="Also draw images with their objects.")] = None,
    polygons: Annotated[Path | None, typer.Option(metavar="FILE", help="With rasters: outlines of objects.")] = None,
    class_field: ClassField = None,
    classes: Classes = None,
    layer: Layer = None,
    chip_size: ChipSize = 512,
    overlap: Overlap = 0,
    val_share: ValShare = 0.2,
    aoi: Aoi = None,
    negatives: Negatives = None,
    bands: opt.Bands = None,
    stretch: opt.Stretch = "auto",
    gsd: opt.Gsd = None,
    as_json: common.Json = False,
    verbose: common.Verbose = False,
    quiet: common.Quiet = False,
) -> None:
    """Count the objects of a dataset by class and split, and tell their sizes; writes no chips."""
    common.set_up(verbose=verbose, quiet=quiet)
    _check_packages()
    from rsgeoseg.datasets.facts import describe

    if sheet is not None and sheet.exists():
        msg = f"{sheet} exists; choose another name"
        raise OutputError(msg)
    splits: Mapping[str, InstanceDataset]
    if polygons is not None:
        cut = _Cut(class_field, classes, layer, chip_size, overlap, aoi, negatives, bands, stretch, gsd)
        splits = cut.splits(source, polygons, val_share)
    elif len(source) == 1:
        splits = open_folder(Path(source[0]), stretch=stretch)
    else:
        msg = "give one dataset folder, or rasters together with --polygons"
        raise UsageError(msg)
    facts = {name: describe(data) for name, data in splits.items()}
    if as_json:
        common.print_json(facts)
    else:
        _print_facts(facts)
    if sheet is not None:
        _write_sheet(splits, sheet)


def open_folder(folder: Path, *, stretch: str = "auto") -> dict[str, InstanceDataset]:
    """Open a dataset folder by what is in it.

    Returns:
        Dataset by the name of its split, ``all`` where there is one alone.

    Raises:
        UsageError: it is none of the known layouts.
    """
    from rsgeoseg.datasets import arcgis, yolo
    from rsgeoseg.datasets.coco import CocoInstances

    if (folder / arcgis.MODEL_DEFINITION).is_file():
        return {"all": arcgis.ArcGISChips(folder, stretch=stretch)}
    if (folder / "data.yaml").is_file():
        names = yolo.splits_of(yolo.read_data_yaml(folder / "data.yaml"))
        return {name: yolo.YoloInstances(folder, name) for name in names}
    files = sorted((folder / "annotations").glob("instances_*.json"))
    if files:
        return {f.stem.removeprefix("instances_"): CocoInstances(folder / "images", f) for f in files}
    msg = (
        f"{folder}: is no dataset; expected annotations/instances_SPLIT.json and images (COCO), data.yaml (YOLO) or "
        f"{arcgis.MODEL_DEFINITION} (ArcGIS)"
    )
    raise UsageError(msg)


@dataclass(frozen=True, slots=True)
class _Cut:
    """How scenes are cut into chips, as given on the command line."""

    class_field: str | None
    classes: str | None
    layer: str | None
    chip_size: int
    overlap: int
    aoi: str | None
    negatives: float | None
    bands: str | None
    stretch: str
    gsd: float | None

    def splits(self, scenes: list[str], polygons: Path, val_share: float) -> dict[str, GeoInstances]:
        """Make the datasets; one alone where nothing is held out."""
        how = {
            **asdict(self),
            "classes": None if self.classes is None else [name.strip() for name in self.classes.split(",")],
            "bands": _bands(self.bands),
        }
        from rsgeoseg.datasets.geo_instances import GeoInstances

        if val_share == 0:
            return {"train": GeoInstances(scenes, polygons, **how)}
        return {
            "train": GeoInstances(scenes, polygons, split="train", val_share=val_share, **how),
            "val": GeoInstances(scenes, polygons, split="val", val_share=val_share, **how),
        }


def _check_packages() -> None:
    """Refuse before any work where the packages for training are not installed."""
    try:
        import rsgeoseg.datasets.instances  # noqa: F401
    except ModuleNotFoundError as error:
        msg = f"datasets need the package {error.name}; install it with: pip install 'rsgeoseg[train]'"
        raise UsageError(msg) from error


def _bands(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(band) for band in text.split(",")]
    except ValueError as error:
        msg = f"bands {text!r} are no numbers: give them like 1,2,3"
        raise UsageError(msg) from error


def _check_new(output: Path) -> None:
    if output.exists():
        msg = f"{output} exists; choose another folder or remove it"
        raise OutputError(msg)


def _write(splits: Mapping[str, InstanceDataset], output: Path, format: FolderFormat) -> None:  # noqa: A002
    from rsgeoseg.datasets.export import write_coco, write_yolo

    (write_coco if format is FolderFormat.coco else write_yolo)(splits, output)


def _told(splits: Mapping[str, InstanceDataset], output: Path) -> str:
    parts = []
    for name, data in splits.items():
        objects = sum(len(data.labelled(i).labels) for i in range(len(data)))
        parts.append(f"{name} {len(data)} images with {objects} objects")
    return f"{output}: {', '.join(parts)}"


def _print_facts(facts: dict[str, dict[str, Any]]) -> None:
    splits = list(facts)
    names = list(dict.fromkeys(name for one in facts.values() for name in one["per_class"]))
    rows = [[name, *(facts[split]["per_class"].get(name, 0) for split in splits)] for name in names]
    common.print_table(["class", *splits], [*rows, ["all", *(facts[split]["objects"] for split in splits)]])
    print()
    wanted = {
        "images": "images",
        "empty_images": "images without objects",
        "size_px": "object size, px",
        "cut": "objects cut by the edge",
        "gsd_m": "gsd, m per px",
    }
    table = [[title, *(_text(facts[split][key]) for split in splits)] for key, title in wanted.items()]
    common.print_table(["", *splits], table)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return f"{value['p10']:.0f} / {value['p50']:.0f} / {value['p90']:.0f}"
    if isinstance(value, list):
        return f"{value[0]:.3g} - {value[1]:.3g}"
    return f"{100 * value:.0f} %" if isinstance(value, float) else str(value)


def _write_sheet(splits: Mapping[str, InstanceDataset], path: Path) -> None:
    import numpy as np
    from PIL import Image

    from rsgeoseg.datasets.sheet import draw_sheet

    drawn = [draw_sheet(data) for data in splits.values() if len(data)]
    width = max(picture.shape[1] for picture in drawn)
    padded = [np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in drawn]
    staged = path.with_name(f".{path.name}.part")
    try:
        Image.fromarray(np.concatenate(padded)).save(staged, format="PNG")
        staged.replace(path)
    except OSError as error:
        msg = f"cannot write {path}: {error.strerror or error}"
        raise OutputError(msg) from error
    finally:
        staged.unlink(missing_ok=True)
