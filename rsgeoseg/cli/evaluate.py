"""``rsgeoseg evaluate``: how good is a model, or a map?"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rsgeoseg.cli import common
from rsgeoseg.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rsgeoseg.evaluate.coco import CocoResult

Truth = Annotated[
    Path,
    typer.Argument(metavar="TRUTH", help="True objects: a vector file with class_name, or COCO annotations (.json)."),
]
Found = Annotated[
    Path | None,
    typer.Argument(metavar="[RESULT]", help="What to judge: a vector file that `run` wrote, or COCO results (.json)."),
]
Images = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Judge a model: run it on the images that a COCO TRUTH names.")
]
Every = Annotated[int, typer.Option(metavar="N", min=1, help="With --images: only every Nth image by file name.")]
Start = Annotated[int, typer.Option(metavar="K", min=0, help="With --images: index of the first image taken.")]
Threshold = Annotated[float, typer.Option(metavar="S", min=0.0, max=1.0, help="With --images: drop lower scores.")]
Agnostic = Annotated[bool, typer.Option("--class-agnostic", help="For vector files: match whatever the class.")]


def evaluate(
    truth: Truth,
    result: Found = None,
    images: Images = None,
    model: Annotated[str, typer.Option(metavar="NAME", help="With --images: the model.")] = "rsprompter-query",
    weights: Annotated[str | None, typer.Option(metavar="ID|PATH", help="With --images: its weights.")] = None,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda[:i]", help="With --images: where it runs.")] = "auto",
    every: Every = 1,
    start: Start = 0,
    score_threshold: Threshold = 0.02,
    class_agnostic: Agnostic = False,
    as_json: common.Json = False,
    verbose: common.Verbose = False,
    quiet: common.Quiet = False,
) -> None:
    """Measure how good a model or a map is.

    Average precision by COCO's rule, in per cent.
    evaluate truth.gpkg found.gpkg: polygons on the map. evaluate truth.json --images FOLDER: a model, image by image.
    evaluate truth.json results.json: COCO results.
    """
    common.set_up(verbose=verbose, quiet=quiet)
    if (result is None) == (images is None):
        msg = "give either a RESULT to judge or --images to run a model on"
        raise UsageError(msg)
    if images is not None:
        figures = _model_figures(truth, images, model, weights, device, every, start, score_threshold, quiet=quiet)
    elif truth.suffix.lower() == ".json" and result is not None and result.suffix.lower() == ".json":
        from rsgeoseg.evaluate.coco import coco_metrics

        figures = coco_metrics(truth, result).to_dict()
    else:
        from rsgeoseg.evaluate.polygons import polygon_metrics

        assert result is not None
        figures = polygon_metrics(truth, result, class_aware=not class_agnostic).to_dict()
    if as_json:
        common.print_json(figures)
    else:
        print_figures(figures)


def _model_figures(
    truth: Path,
    images: Path,
    model: str,
    weights: str | None,
    device: str,
    every: int,
    start: int,
    score_threshold: float,
    *,
    quiet: bool,
) -> dict[str, Any]:
    from rsgeoseg import jobs
    from rsgeoseg.cli.progress import show_count

    job = jobs.EvaluateJob(
        annotations=str(truth),
        images=str(images),
        model=model,
        weights=weights,
        device=device,
        every=every,
        start=start,
        score_threshold=score_threshold,
    )
    with _no_word_of_crs(), show_count("images", quiet=quiet) as tell:
        found: CocoResult = jobs.evaluate(job, tell=tell)
    return found.to_dict()


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


def print_figures(figures: dict[str, Any]) -> None:
    """Print overall figures in per cent, then a table by class."""
    common.print_pairs((name, _figure(value)) for name, value in figures.items() if name != "per_class")
    rows = figures["per_class"]
    if rows:
        print()
        common.print_table(list(rows[0]), [[_figure(value) for value in row.values()] for row in rows])


def _figure(value: Any) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f}" if isinstance(value, float) else str(value)
