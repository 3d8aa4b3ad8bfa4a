"""``rsgeoseg train``: images and polygons in, a weights file out."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  (typer reads the annotations)
from typing import TYPE_CHECKING, Annotated

import typer

from rsgeoseg.cli import common
from rsgeoseg.errors import UsageError

if TYPE_CHECKING:
    from rsgeoseg.evaluate.coco import CocoResult


def train(
    images: Annotated[Path, typer.Argument(help="Folder with 8-bit RGB images.")],
    annotations: Annotated[Path, typer.Argument(help="COCO instances JSON with polygons.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for checkpoints, log and weights.")],
    model: Annotated[str, typer.Option(help="Model to train.")] = "rsprompter-query",
    backbone: Annotated[str, typer.Option(help="Image encoder, as `rsgeoseg models` lists them.")] = "lite",
    sam_checkpoint: Annotated[Path | None, typer.Option(help="Official file of SAM or SAM 2.")] = None,
    start: Annotated[str | None, typer.Option("--start-from", help="Weights (id or path) to start from.")] = None,
    freeze_encoder: Annotated[bool, typer.Option("--freeze-encoder", help="Train the heads alone.")] = False,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 4000,
    batch_size: Annotated[int, typer.Option(help="Crops per step.")] = 4,
    interval: Annotated[int, typer.Option(help="Steps between checkpoints and validations.")] = 200,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 4e-4,
    crop: Annotated[int, typer.Option(help="Side of the training crops, pixels.")] = 512,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:0 or mps.")] = "auto",
    restart: Annotated[bool, typer.Option("--no-resume", help="Refuse a folder that holds a training.")] = False,
    verbose: common.Verbose = False,
    quiet: common.Quiet = False,
) -> int:
    """Train a model on your own polygons.

    Every fifth image by sorted file name is held out for validation. Stopped, it goes on from its last checkpoint when
    the same command is given again, with the same result as if it had not been stopped.
    """
    common.set_up(verbose=verbose, quiet=quiet)
    try:
        from rsgeoseg.train import fit
    except ModuleNotFoundError as error:
        msg = f"training needs the package {error.name}; install it with: pip install 'rsgeoseg[train]'"
        raise UsageError(msg) from error

    def report(step: int, result: CocoResult) -> None:
        if not quiet:
            print(f"step {step}: mask AP {result.ap:.3f}, AP50 {result.ap50:.3f}")

    config = fit.TrainConfig(
        images=str(images),
        annotations=str(annotations),
        model=model,
        backbone=backbone,
        sam_checkpoint=None if sam_checkpoint is None else str(sam_checkpoint),
        start=start,
        freeze_encoder=freeze_encoder,
        steps=steps,
        batch_size=batch_size,
        interval=interval,
        lr=lr,
        crop=crop,
        seed=seed,
    )
    result = fit.train(config, output, device=device, resume=not restart, progress=not quiet, on_validation=report)
    if not quiet:
        print(f"held out: mask AP {result.accuracy.ap:.3f}, AP50 {result.accuracy.ap50:.3f}")
        print(f"use it: rsgeoseg run SCENE --model {model} --weights {result.weights}")
    return 0
