"""``rsgeoseg train``: images and polygons in, a weights file out."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path  # noqa: TC003  (typer reads the annotations)
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rsgeoseg.cli import common
from rsgeoseg.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rsgeoseg.evaluate.coco import CocoResult
    from rsgeoseg.train.config import TrainConfig

    Step = Callable[[int, int, float, float], None]
    Validation = Callable[[int, CocoResult], None]

_DATA, _MODEL, _SCHEDULE, _CROPS, _MACHINE = "Data", "Model", "Schedule", "Crops", "Machine"


_NOT_OF_THE_TRAINING = frozenset(
    {"output", "preset", "config", "device", "restart", "list_presets", "show_config", "verbose", "quiet"}
)


def _option(panel: str, text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, show_default=False, **more)


def train(
    images: Annotated[Path | None, typer.Argument(help="Folder with 8-bit RGB images.")] = None,
    annotations: Annotated[Path | None, typer.Argument(help="COCO instances JSON.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for checkpoints, curves and weights.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Named recipe; --list-presets shows them.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with options; see --show-config.")] = None,
    val_images: Annotated[Path | None, _option(_DATA, "Folder of a validation set of its own.")] = None,
    val_annotations: Annotated[
        Path | None, _option(_DATA, "Its COCO JSON; else every fifth image is held out.")
    ] = None,
    dataset: Annotated[str | None, _option(_DATA, "A known dataset instead: whu-building, ssdd, isaid, ...")] = None,
    root: Annotated[Path | None, _option(_DATA, "Folder of that dataset.")] = None,
    train_split: Annotated[str | None, _option(_DATA, "Its split to train on: train.")] = None,
    val_split: Annotated[str | None, _option(_DATA, "Its split to measure on; else every fifth image.")] = None,
    scenes: Annotated[
        list[Path] | None, _option(_DATA, "Your own raster instead; give it again for more.", "--scene")
    ] = None,
    polygons: Annotated[Path | None, _option(_DATA, "Your polygons in it: a vector file in any CRS.")] = None,
    class_field: Annotated[str | None, _option(_DATA, "Column with the class; else all are one class.")] = None,
    aoi: Annotated[Path | None, _option(_DATA, "Area where every object is drawn; else chips with one count.")] = None,
    val_share: Annotated[float | None, _option(_DATA, "Share of your objects that is held out, by place: 0.2.")] = None,
    bands: Annotated[str | None, _option(_DATA, "Bands that are red, green, blue: 1,2,3.", "-b", "--bands")] = None,
    gsd: Annotated[float | None, _option(_DATA, "Metres per pixel to resample rasters to.")] = None,
    stretch: Annotated[str | None, _option(_DATA, "Mapping of values to 0-255, as for run: auto.")] = None,
    model: Annotated[str | None, _option(_MODEL, "Model to train: rsprompter-query.")] = None,
    backbone: Annotated[str | None, _option(_MODEL, "Image encoder: lite; `rsgeoseg models` lists them.")] = None,
    sam_checkpoint: Annotated[Path | None, _option(_MODEL, "Official file of SAM or SAM 2.")] = None,
    start: Annotated[str | None, _option(_MODEL, "Weights (id or path) to start from.", "--start-from")] = None,
    freeze_encoder: Annotated[bool, _option(_MODEL, "Train the heads alone.", "--freeze-encoder")] = False,
    lora: Annotated[int | None, _option(_MODEL, "Rank of a low-rank change of a SAM encoder.")] = None,
    model_options: Annotated[
        list[str] | None, _option(_MODEL, "NAME=VALUE of the model's config: num_queries=100.", "--set")
    ] = None,
    loss_options: Annotated[
        list[str] | None, _option(_MODEL, "NAME=VALUE of the model's loss: dice_weight=0.", "--set-loss")
    ] = None,
    steps: Annotated[int | None, _option(_SCHEDULE, "Optimiser steps: 4000.")] = None,
    epochs: Annotated[float | None, _option(_SCHEDULE, "Passes over the images, instead of steps.")] = None,
    batch_size: Annotated[int | None, _option(_SCHEDULE, "Crops per batch: 4.")] = None,
    accumulate: Annotated[int | None, _option(_SCHEDULE, "Batches per step: 1.")] = None,
    interval: Annotated[int | None, _option(_SCHEDULE, "Steps between checkpoints and measurements: 200.")] = None,
    lr: Annotated[float | None, _option(_SCHEDULE, "Peak learning rate: 4e-4.")] = None,
    encoder_factor: Annotated[float | None, _option(_SCHEDULE, "The encoder's rate as a share of it: 0.25.")] = None,
    weight_decay: Annotated[float | None, _option(_SCHEDULE, "AdamW's: 0.05.")] = None,
    warmup: Annotated[int | None, _option(_SCHEDULE, "Steps of linear warm-up: 150.")] = None,
    clip: Annotated[float | None, _option(_SCHEDULE, "Largest norm of the gradient: 1; 0 = none.")] = None,
    average: Annotated[float | None, _option(_SCHEDULE, "Moving average of the weights: 0.998; 0 = none.")] = None,
    crop: Annotated[int | None, _option(_CROPS, "Side of the training crops, pixels: 512.")] = None,
    scale: Annotated[str | None, _option(_CROPS, "LOW,HIGH of the resize before the crop: 0.5,1.6.")] = None,
    symmetries: Annotated[str | None, _option(_CROPS, "all, flip or none: all.")] = None,
    mosaic: Annotated[float | None, _option(_CROPS, "Share of crops made of four: 0.2.")] = None,
    colour: Annotated[float | None, _option(_CROPS, "Strength of colour changes: 0.2.")] = None,
    device: Annotated[str, _option(_MACHINE, "auto, cpu, cuda, cuda:0 or mps: auto.")] = "auto",
    devices: Annotated[int | None, _option(_MACHINE, "GPUs that share every batch: 1.")] = None,
    precision: Annotated[str | None, _option(_MACHINE, "auto, fp32, bf16 or fp16: auto.")] = None,
    workers: Annotated[int | None, _option(_MACHINE, "Processes that draw crops.")] = None,
    cache_features: Annotated[
        int | None, _option(_MACHINE, "With a frozen encoder: crops per image whose features are kept on disk.")
    ] = None,
    seed: Annotated[int | None, _option(_MACHINE, "Seed of everything random: 0.")] = None,
    overfit: Annotated[bool, typer.Option("--overfit", help="Train and measure on all images.", hidden=True)] = False,
    restart: Annotated[bool, typer.Option("--no-resume", help="Refuse a folder that holds a training.")] = False,
    list_presets: Annotated[bool, typer.Option("--list-presets", help="Show the named recipes and stop.")] = False,
    show_config: Annotated[bool, typer.Option("--show-config", help="Print the options as YAML and stop.")] = False,
    verbose: common.Verbose = False,
    quiet: common.Quiet = False,
) -> int:
    """Train a model on your own polygons, a COCO set, or a known dataset.

    Stopped, it goes on from its last checkpoint when the same command is given again, with the same result as if it
    had not been stopped. Options given here win over --config, and that over --preset.
    """
    # all options of a training by name, those that were not given left out (0 is given, and equals False)
    given = {
        name: value
        for name, value in locals().items()
        if name not in _NOT_OF_THE_TRAINING and value is not None and value is not False and value != []
    }
    common.set_up(verbose=verbose, quiet=quiet)
    try:
        from rsgeoseg.train import fit
        from rsgeoseg.train.config import to_yaml
    except ModuleNotFoundError as error:
        msg = f"training needs the package {error.name}; install it with: pip install 'rsgeoseg[train]'"
        raise UsageError(msg) from error
    if list_presets:
        _print_presets()
        return 0
    order = _config(given, preset, config)
    if show_config:
        print(to_yaml(order), end="")
        return 0
    if output is None:
        msg = "give a folder for the training: -o FOLDER"
        raise UsageError(msg)
    with _show(quiet=quiet) as (on_step, on_validation):
        result = fit.train(
            order, output, device=device, resume=not restart, on_step=on_step, on_validation=on_validation
        )
    if not quiet:
        figures = f"mask AP {_figure(result.accuracy['ap'])}, AP50 {_figure(result.accuracy['ap50'])}"
        print(f"best at step {result.step}, held out: {figures}; card: {result.weights.with_suffix('.md')}")
        print(f"use it: rsgeoseg run SCENE --model {order.model} --weights {result.weights}")
    return 0


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _config(given: dict[str, Any], preset: str | None, path: Path | None) -> TrainConfig:
    """Put preset, file and options together; the later win."""
    from rsgeoseg.train.config import config_from, read_yaml
    from rsgeoseg.train.presets import find_preset

    values: dict[str, Any] = {}
    if preset is not None:
        values |= find_preset(preset).values
    if path is not None:
        values |= read_yaml(path)
    own: dict[str, Any] = {}
    for name, value in given.items():
        if name in {"model_options", "loss_options"}:
            own[name] = {**values.get(name, {}), **dict(_pair(text) for text in value)}
        elif name == "scenes":
            own[name] = [str(scene) for scene in value]
        elif name == "scale":
            own[name] = _numbers("--scale", value, float, 2)
        elif name == "bands":
            own[name] = _numbers("--bands", value, int, 3)
        else:
            own[name] = str(value) if hasattr(value, "__fspath__") else value
    if "steps" in own:
        values.pop("epochs", None)
    if "epochs" in own:
        values.pop("steps", None)
    return config_from(values | own)


def _pair(text: str) -> tuple[str, Any]:
    from rsgeoseg.train.config import read_value

    name, equals, value = text.partition("=")
    if not equals:
        msg = f"--set {text}: write NAME=VALUE"
        raise UsageError(msg)
    return name.strip().replace("-", "_"), read_value(value)


def _numbers(option: str, text: str, kind: type[int | float], count: int) -> list[float]:
    try:
        numbers = [kind(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        msg = f"{option} {text}: write {count} numbers with commas between them"
        raise UsageError(msg)
    return numbers


def _print_presets() -> None:
    from rsgeoseg.train.presets import PRESETS

    for name, preset in PRESETS.items():
        print(f"{name}: {preset.title}")
        for note in preset.notes:
            print(f"    {note}")


@contextmanager
def _show(*, quiet: bool) -> Iterator[tuple[Step | None, Validation]]:
    """Yield what is told of a step and of a measurement: a bar with the time left on a terminal, else a line a time."""
    if quiet:
        yield None, lambda _step, _result: None
        return
    if not sys.stderr.isatty():
        yield _Lines().step, _Lines.measured
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}")
    with Progress(*columns, TimeRemainingColumn(elapsed_when_finished=True)) as bar:
        task = bar.add_task("training", total=None, note="")

        def step(number: int, steps: int, loss: float, _seconds: float) -> None:
            bar.update(task, completed=number, total=steps, note=f"loss {loss:.2f}")

        def measured(number: int, result: CocoResult) -> None:
            bar.console.print(f"step {number}: mask AP {result.ap:.3f}, AP50 {result.ap50:.3f}")

        yield step, measured


class _Lines:
    """A line now and then for a log."""

    def step(self, number: int, steps: int, loss: float, seconds: float) -> None:
        if number == 1 or number % 50 == 0:
            left = round(seconds * (steps - number))
            clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
            print(f"step {number} of {steps}: loss {loss:.2f}, {seconds:.2f} s per step, {clock} left", flush=True)

    @staticmethod
    def measured(number: int, result: CocoResult) -> None:
        print(f"step {number}: mask AP {result.ap:.3f}, AP50 {result.ap50:.3f}", flush=True)
