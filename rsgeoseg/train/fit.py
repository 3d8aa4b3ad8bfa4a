"""Train a model on COCO instances with Lightning: crops in, checkpoints and an exported weights file out."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from rsgeoseg.backbones.packed import compute_dtype
from rsgeoseg.datasets.coco import CocoInstances
from rsgeoseg.errors import ModelError, UsageError
from rsgeoseg.evaluate.coco import coco_metrics, instances_to_coco
from rsgeoseg.models import (
    rsprompter_anchor,
    rsprompter_query,
    sam_cls,
    sam_det,
    sam_seg_mask2former,
    sam_seg_maskrcnn,
)
from rsgeoseg.nn.device import find_device
from rsgeoseg.train.augment import AugmentConfig
from rsgeoseg.train.module import OptimConfig, TrainingModule, collate
from rsgeoseg.train.samples import CropStream
from rsgeoseg.train.start import start_from
from rsgeoseg.train.validate import segment_images
from rsgeoseg.weights.files import write_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

    from torch import nn

    from rsgeoseg.contract import Segmenter
    from rsgeoseg.datasets.instances import InstanceDataset
    from rsgeoseg.evaluate.coco import CocoResult

logger = logging.getLogger(__name__)

TRAINABLE: dict[str, ModuleType] = {
    module.NAME: module
    for module in (
        rsprompter_query,
        rsprompter_anchor,
        sam_seg_maskrcnn,
        sam_seg_mask2former,
        sam_det,
        sam_cls,
    )
}
"""Models that can be trained: each module gives ``default_config``, ``build``, ``segmenter`` and ``describe``."""
VALIDATION_THRESHOLD = 0.05
"""Objects with a lower score are left out of the AP while training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One training; saved beside its checkpoints, and a resumed training must have the same."""

    images: str
    """Folder with the images."""
    annotations: str
    """COCO instances JSON."""
    model: str = rsprompter_query.NAME
    """Registry name."""
    backbone: str = "lite"
    """Image encoder."""
    sam_checkpoint: str | None = None
    """Official SAM file, for SAM backbones."""
    start: str | None = None
    """Weights (id or path) to start from: whatever fits by name and shape, also of another model on this backbone."""
    freeze_encoder: bool = False
    """Train the heads alone (SAM encoders are always frozen, as in the paper)."""
    steps: int = 4000
    """Optimiser steps."""
    batch_size: int = 4
    """Crops per step."""
    interval: int = 200
    """Steps between checkpoints and validations."""
    lr: float = 4e-4
    """Peak learning rate."""
    crop: int = 512
    """Side of the training crops, pixels."""
    seed: int = 0
    """Of weights, crops and losses."""
    overfit: bool = False
    """Train and validate on all images: to see whether a model can learn at all."""

    def __post_init__(self) -> None:
        """Check what can be checked without the data."""
        if self.model not in TRAINABLE:
            msg = f"model {self.model!r} cannot be trained; choose from {', '.join(TRAINABLE)}"
            raise ModelError(msg)
        if min(self.steps, self.batch_size, self.interval) < 1 or self.crop < 64 or self.crop % 64:
            msg = "steps, batch size and interval must be at least 1, and the crop a multiple of 64 pixels"
            raise UsageError(msg)


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training left behind."""

    weights: Path
    """Exported weights, for ``run --weights``."""
    accuracy: CocoResult
    """Mask AP of those weights on the held-out images."""
    steps: int
    """Steps done."""


def train(
    config: TrainConfig,
    output: Path,
    *,
    device: str = "auto",
    resume: bool = True,
    progress: bool = True,
    on_validation: Callable[[int, CocoResult], None] | None = None,
) -> TrainResult:
    """Train, validate every ``interval`` steps, and export the averaged weights.

    A stopped training goes on from its last checkpoint and gives the same weights as one that was never stopped.

    Args:
        config: what to train on what.
        output: folder for ``last.ckpt``, ``metrics.csv``, ``config.json`` and ``weights.safetensors``.
        device: where to run.
        resume: go on from ``last.ckpt`` where there is one.
        progress: show a progress bar.
        on_validation: called with the step and the result.

    Raises:
        UsageError: the data cannot be read, or the folder holds a training with other settings.
        ModelError: the loss is no longer finite, or the device is not there.
    """
    where = find_device(device)
    last = _prepare(config, output, resume=resume)
    data = CocoInstances(config.images, config.annotations)
    kept, held = (data, data) if config.overfit else data.split()
    torch.manual_seed(config.seed)
    package = TRAINABLE[config.model]
    network = package.build(
        config.backbone,
        package.default_config(config.backbone, data.classes),
        sam_checkpoint=None if config.sam_checkpoint is None else Path(config.sam_checkpoint),
    )
    if config.start is not None:
        begun = start_from(network, config.start)
        logger.info("%s: %d tensors taken, %d start afresh", config.start, len(begun.taken), len(begun.fresh))
    if config.freeze_encoder:
        network.encoder.requires_grad_(requires_grad=False)
    module = _Stream(network, config, kept)
    validation = _Validation(held, config, on_validation)
    trainer = lightning.Trainer(
        accelerator={"cuda": "gpu"}.get(where.type, where.type),
        devices=[where.index or 0] if where.type == "cuda" else 1,
        precision="bf16-mixed" if compute_dtype(where) is torch.bfloat16 else "32-true",
        max_steps=config.steps,
        gradient_clip_val=module.optim.clip,
        reload_dataloaders_every_n_epochs=1,
        logger=CSVLogger(str(output), name="", version=""),
        log_every_n_steps=min(20, config.interval),
        callbacks=[
            _Checkpoint(output / "last.ckpt"),
            validation,
            *([RichProgressBar()] if progress else []),
        ],
        enable_progress_bar=progress,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, ckpt_path=str(last) if last is not None else None)
    if validation.result is None:  # resumed when everything was done already
        validation.result = validation.measure(module)
    average = module.average.module
    weights = output / "weights.safetensors"
    description = {**package.describe(average), "training": asdict(config), "accuracy": validation.result.to_dict()}
    write_weights(weights, average.state_dict(), description)
    return TrainResult(weights=weights, accuracy=validation.result, steps=int(module.global_step))


def _prepare(config: TrainConfig, output: Path, *, resume: bool) -> Path | None:
    """Make the folder, check or write its settings; returns the checkpoint to go on from."""
    output.mkdir(parents=True, exist_ok=True)
    settings, last = output / "config.json", output / "last.ckpt"
    if last.is_file():
        if not resume:
            msg = f"{output}: holds a training already; resume it or choose another folder"
            raise UsageError(msg)
        before = json.loads(settings.read_text())
        differs = [key for key, value in asdict(config).items() if before.get(key) != value and key != "steps"]
        if differs:
            msg = f"{output}: holds a training with other settings ({', '.join(differs)}); choose another folder"
            raise UsageError(msg)
    settings.write_text(json.dumps(asdict(config), indent=1))
    return last if last.is_file() else None


class _Stream(TrainingModule):
    """A training module that brings its own crops: an epoch is ``interval`` steps."""

    def __init__(self, network: nn.Module, config: TrainConfig, data: InstanceDataset) -> None:
        super().__init__(network, OptimConfig(lr=config.lr), steps=config.steps, seed=config.seed)
        self.run = config
        self.data = data

    def train_dataloader(self) -> DataLoader[Any]:
        """Give the crops up to the next multiple of ``interval`` steps."""
        config = self.run
        left = config.interval - self.global_step % config.interval
        stream = CropStream(
            self.data,
            AugmentConfig(crop=config.crop),
            seed=config.seed,
            start=self.global_step * config.batch_size,
            length=left * config.batch_size,
        )
        return DataLoader(stream, batch_size=config.batch_size, collate_fn=collate)


class _Checkpoint(Callback):
    """Saves everything at the end of every interval, before it is validated; a torn file never replaces a whole one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save beside, then rename."""
        del pl_module
        beside = self.path.with_name(f".{self.path.name}.part")
        trainer.save_checkpoint(beside)
        os.replace(beside, self.path)  # noqa: PTH105  (atomic on every system)


class _Validation(Callback):
    """Mask AP of the averaged weights at the end of every interval."""

    def __init__(
        self, data: InstanceDataset, config: TrainConfig, report: Callable[[int, CocoResult], None] | None
    ) -> None:
        self.data, self.config, self.report = data, config, report
        self.result: CocoResult | None = None

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Measure and log."""
        assert isinstance(pl_module, TrainingModule)
        if trainer.global_step % self.config.interval and trainer.global_step < self.config.steps:
            return  # a resumed Lightning epoch may end early
        self.result = self.measure(pl_module)
        pl_module.log_dict({"val/ap": self.result.ap, "val/ap50": self.result.ap50}, prog_bar=True)
        if self.report is not None:
            self.report(trainer.global_step, self.result)

    def measure(self, module: TrainingModule) -> CocoResult:
        """Mask AP on the held-out images."""
        average = module.average.module
        was_training = average.training
        found = TRAINABLE[self.config.model].segmenter(average, score_threshold=VALIDATION_THRESHOLD)
        result = evaluate_images(found, self.data)
        average.train(was_training)
        return result


def evaluate_images(segmenter: Segmenter, data: InstanceDataset) -> CocoResult:
    """Mask AP of a segmenter on whole images, one chip each."""
    truth = data.to_coco()
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    found: list[Mapping[str, Any]] = []
    for image_id, instances in segment_images(segmenter, data):
        height, width = sizes[image_id]
        found += instances_to_coco(image_id, instances, height=height, width=width, category_ids=data.category_ids)
    return coco_metrics(truth, found, image_ids=list(sizes))
