"""``rsgeoseg evaluate``: how good is a model, or a map?"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rsgeoseg.cli import common
from rsgeoseg.cli import evaluate_tables as show
from rsgeoseg.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rsgeoseg.cli.evaluate_tables import Table
    from rsgeoseg.evaluate.evidence import Evidence
    from rsgeoseg.jobs import EvaluateJob

_TRUTH = "True objects: a vector file with class_name, COCO annotations (.json), or a folder of masks."
_RESULT = "What to judge: a vector file of any tool, COCO results (.json), or a folder of masks with the same names."
_IMAGES = "Judge a model: run it on the images that a COCO TRUTH names. With a RESULT: only for the report's pictures."
_CHIPS = "For vector files: side of the chips that the map was made from, pixels; default as in RESULT.run.json."
_AT = "Results below this score count neither in the confusion matrix nor in the report's pictures."

Truth = Annotated[Path | None, typer.Argument(metavar="TRUTH", help=_TRUTH)]
Found = Annotated[Path | None, typer.Argument(metavar="[RESULT]", help=_RESULT)]
Images = Annotated[Path | None, typer.Option(metavar="FOLDER", help=_IMAGES)]
Dataset = Annotated[str | None, typer.Option(metavar="NAME", help="Judge a model on a known dataset.")]
Root = Annotated[Path | None, typer.Option(metavar="FOLDER", help="With --dataset: where it is.")]
Split = Annotated[str | None, typer.Option(metavar="NAME", help="With --dataset: its split.")]
Model = Annotated[str, typer.Option(metavar="NAME", help="With --images or --dataset: the model.")]
Weights = Annotated[str | None, typer.Option(metavar="ID|PATH", help="Its weights.")]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda[:i]", help="Where it runs.")]
Every = Annotated[int, typer.Option(metavar="N", min=1, help="With a model: only every Nth image by file name.")]
Start = Annotated[int, typer.Option(metavar="K", min=0, help="With a model: index of the first image taken.")]
Threshold = Annotated[float, typer.Option(metavar="S", min=0.0, max=1.0, help="With a model: drop lower scores.")]
Agnostic = Annotated[bool, typer.Option("--class-agnostic", help="For vector files: match whatever the class.")]
ClassColumn = Annotated[str | None, typer.Option(metavar="NAME", help="For vector files: column of class names.")]
ScoreColumn = Annotated[str | None, typer.Option(metavar="NAME", help="For vector files: column of scores.")]
SceneFile = Annotated[Path | None, typer.Option("--scene", metavar="FILE", help="For vector files: their raster.")]
ChipSize = Annotated[int | None, typer.Option(metavar="PX", min=1, help=_CHIPS)]
Overlap = Annotated[int | None, typer.Option(metavar="PX", min=0, help="With --chip-size: overlap of those chips.")]
AtScore = Annotated[float, typer.Option(metavar="S", min=0.0, max=1.0, help=_AT)]
Report = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write a page with curves and the worst cases.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Let --report replace an earlier report.")]
Paper = Annotated[str | None, typer.Option(metavar="TABLE", help="Show a paper's table beside; `list` names them.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """What there is to show."""

    figures: dict[str, Any]
    """Plain JSON values."""
    tables: list[Table]
    for_paper: dict[str, Any]
    """Figures as papers' tables name them."""
    evidence: Evidence | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _MapOptions:
    """Options that mean something for vector files only."""

    class_agnostic: bool
    class_column: str | None
    score_column: str | None
    scene: Path | None
    chip_size: int | None
    overlap: int | None

    def refuse(self) -> None:
        """Say which are given."""
        given = [name.replace("_", "-") for name in self.__slots__ if getattr(self, name) not in (None, False)]
        if given:
            msg = f"--{given[0]} is for vector files: leave it out"
            raise UsageError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What to judge, against what."""

    truth: Path | None
    result: Path | None
    images: Path | None
    job: EvaluateJob
    on_map: _MapOptions
    quiet: bool = field(default=False)


def evaluate(
    truth: Truth = None,
    result: Found = None,
    images: Images = None,
    dataset: Dataset = None,
    root: Root = None,
    split: Split = None,
    model: Model = "rsprompter-query",
    weights: Weights = None,
    device: Device = "auto",
    every: Every = 1,
    start: Start = 0,
    score_threshold: Threshold = 0.02,
    class_agnostic: Agnostic = False,
    class_column: ClassColumn = None,
    score_column: ScoreColumn = None,
    scene: SceneFile = None,
    chip_size: ChipSize = None,
    overlap: Overlap = None,
    at_score: AtScore = 0.5,
    report: Report = None,
    overwrite: Overwrite = False,
    paper: Paper = None,
    as_json: common.Json = False,
    verbose: common.Verbose = False,
    quiet: common.Quiet = False,
) -> None:
    """Measure how good a model or a map is.

    Average precision by COCO's rule, in per cent.
    evaluate truth.gpkg found.gpkg: polygons on the map. evaluate truth.json --images FOLDER: a model, image by image.
    evaluate --dataset NAME --root FOLDER: a model on a known dataset. evaluate truth.json results.json: COCO results.
    With a model that answers prompts (sam-prompt, sam2-prompt) a simulated user clicks: NoC, NoF, IoU per click.
    evaluate TRUE_MASKS FOUND_MASKS: referring segmentation, two folders of PNG masks.
    """
    common.set_up(verbose=verbose, quiet=quiet)
    from rsgeoseg import jobs
    from rsgeoseg.evaluate.paper_tables import paper_table, paper_tables

    if paper == "list":
        show.print_tables([show.paper_listing(paper_tables().values())])
        return
    table = None if paper is None else paper_table(paper)
    if report is not None:
        from rsgeoseg.evaluate.report import check_report_folder

        check_report_folder(report, overwrite=overwrite)
    job = jobs.EvaluateJob(
        annotations=None if truth is None else str(truth),
        images=None if images is None else str(images),
        dataset=dataset,
        root=None if root is None else str(root),
        split=split,
        model=model,
        weights=weights,
        device=device,
        every=every,
        start=start,
        score_threshold=score_threshold,
    )
    on_map = _MapOptions(
        class_agnostic=class_agnostic,
        class_column=class_column,
        score_column=score_column,
        scene=scene,
        chip_size=chip_size,
        overlap=overlap,
    )
    asked = _Asked(truth=truth, result=result, images=images, job=job, on_map=on_map, quiet=quiet)
    with _judged(asked) as judged:
        figures, tables = judged.figures, list(judged.tables)
        if judged.evidence is not None:
            figures = {**figures, "confusion": judged.evidence.confusion(at_score).to_dict()}
        if table is not None:
            figures = {**figures, "paper": table.to_dict(judged.for_paper)}
            tables.append(show.paper_rows(table, judged.for_paper, "this result"))
        if report is not None:
            _write_report(report, judged, figures, tables, at_score, overwrite=overwrite)
    if as_json:
        common.print_json(figures)
    else:
        show.print_tables(tables)


@contextmanager
def _judged(asked: _Asked) -> Iterator[_Judged]:
    """Find out what was given, and judge it."""
    truth, result = asked.truth, asked.result
    if asked.job.dataset is not None:
        _check_dataset_alone(asked)
        yield _judge_model(asked)
        return
    if truth is None or (result is None and asked.images is None):
        msg = "give a TRUTH and either a RESULT to judge or --images to run a model on, or give --dataset"
        raise UsageError(msg)
    if result is None:
        yield _judge_model(asked)
    elif truth.is_dir() or result.is_dir():
        yield _judge_masks(truth, result, asked)
    elif _is_coco(truth) and _is_coco(result):
        yield _judge_results(truth, result, asked)
    else:
        with _judged_map(truth, result, asked) as judged:
            yield judged


def _judge_model(asked: _Asked) -> _Judged:
    from rsgeoseg import jobs, registry
    from rsgeoseg.cli.progress import show_count
    from rsgeoseg.evaluate.evidence import image_evidence

    asked.on_map.refuse()
    if registry.card(asked.job.model).needs_prompts:
        with show_count("objects", quiet=asked.quiet) as tell:
            figures = jobs.evaluate_clicks(asked.job, tell=tell).to_dict()
        return _Judged(figures=figures, tables=show.interactive_tables(figures), for_paper=figures)
    with _no_word_of_crs(), show_count("images", quiet=asked.quiet) as tell:
        found = jobs.evaluate(asked.job, tell=tell)
    kinds = found.scores.by_kind()
    return _Judged(
        figures=found.scores.to_dict(),
        tables=show.coco_tables(kinds),
        for_paper=kinds,
        evidence=image_evidence(
            f"How good is {asked.job.model}?",
            found.truth,
            found.found,
            image_ids=found.image_ids,
            picture=found.images.pixels,
        ),
    )


def _judge_results(truth: Path, result: Path, asked: _Asked) -> _Judged:
    from rsgeoseg.engine.scoring import ImageFolder
    from rsgeoseg.evaluate.coco import coco_scores, read_detections, read_truth
    from rsgeoseg.evaluate.evidence import image_evidence

    asked.on_map.refuse()
    true = read_truth(truth)
    found = read_detections(result, true)
    scores = coco_scores(true, found)
    kinds = scores.by_kind()
    picture = None if asked.images is None else ImageFolder(asked.images).pixels
    return _Judged(
        figures=scores.to_dict(),
        tables=show.coco_tables(kinds),
        for_paper=kinds,
        evidence=image_evidence(f"How good is {result.name}?", true, found, picture=picture),
    )


def _judge_masks(truth: Path, result: Path, asked: _Asked) -> _Judged:
    from rsgeoseg.evaluate.mask_folders import score_mask_folders

    asked.on_map.refuse()
    figures = score_mask_folders(truth, result).to_dict()
    return _Judged(figures=figures, tables=show.referring_tables(figures), for_paper=figures)


@contextmanager
def _judged_map(truth: Path, result: Path, asked: _Asked) -> Iterator[_Judged]:
    from rsgeoseg.engine.map_scoring import scored_map

    if asked.images is not None:
        msg = "--images goes with COCO annotations; the raster of a map is given by --scene"
        raise UsageError(msg)
    options = asked.on_map
    with scored_map(
        truth,
        result,
        class_aware=not options.class_agnostic,
        class_column=options.class_column,
        score_column=options.score_column,
        scene=options.scene,
        chip_size=options.chip_size,
        overlap=options.overlap,
    ) as scored:
        figures = scored.result.to_dict()
        yield _Judged(
            figures={**figures, "seams_from": scored.seams_from},
            tables=show.map_tables(figures, scored.seams_from),
            for_paper={"masks": {key: figures[key] for key in ("ap", "ap50", "ap75")}},
            evidence=scored.evidence,
        )


def _write_report(
    folder: Path, judged: _Judged, figures: dict[str, Any], tables: list[Table], at_score: float, *, overwrite: bool
) -> None:
    from rsgeoseg.evaluate.report import write_report

    if judged.evidence is None:
        msg = "there is no report of referring masks: leave --report out"
        raise UsageError(msg)
    with _no_word_of_crs():
        shown = [(table.title, table.header, table.rows) for table in tables]
        write_report(folder, judged.evidence, figures, shown, score=at_score, overwrite=overwrite)


def _check_dataset_alone(asked: _Asked) -> None:
    if asked.truth is not None or asked.images is not None:
        msg = "--dataset brings its own truth and images: give neither TRUTH nor --images beside it"
        raise UsageError(msg)
    if asked.job.root is None:
        msg = f"--root is missing: the folder of {asked.job.dataset}"
        raise UsageError(msg)


def _is_coco(path: Path) -> bool:
    """Whether a JSON file is COCO's and not a GeoJSON."""
    if path.suffix.lower() != ".json":
        return False
    try:
        with path.open("rb") as file:
            return b'"FeatureCollection"' not in file.read(4096)
    except OSError:
        return True  # whoever reads it will say so


@contextmanager
def _no_word_of_crs() -> Iterator[None]:
    """Plain images have no CRS and need none here: silence a warning for each of them."""
    geo = logging.getLogger("rsgeoseg.geo")
    before = geo.level
    geo.setLevel(logging.ERROR)
    try:
        yield
    finally:
        geo.setLevel(before)
