"""Train a model with Lightning: crops in; checkpoints, a curve and an exported weights file out."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import signal
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import lightning
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader, Subset

from rsgeoseg.backbones.packed import compute_dtype
from rsgeoseg.errors import JobCancelled, OutputError, UsageError
from rsgeoseg.nn.device import find_device
from rsgeoseg.train.callbacks import SHOWN_EVERY, Checkpoints, LossCurve, Measurements, Told
from rsgeoseg.train.config import MAY_DIFFER, TrainConfig
from rsgeoseg.train.data import open_data
from rsgeoseg.train.feature_cache import FeatureCache
from rsgeoseg.train.module import TrainingModule, collate
from rsgeoseg.train.network import build_network
from rsgeoseg.train.samples import CropStream
from rsgeoseg.weights.files import read_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import nn

    from rsgeoseg.datasets.instances import InstanceDataset
    from rsgeoseg.evaluate.coco import CocoResult

logger = logging.getLogger(__name__)

_NO_ROOM = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})
"""Errors of a full disk, of a file that is too large for it, and of a quota."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training left behind."""

    weights: Path
    """Exported weights, for ``run --weights``: those of the best step."""
    step: int
    """The best step."""
    accuracy: dict[str, Any]
    """COCO figures of those weights on the held-out images (``CocoResult.to_dict``)."""
    steps: int
    """Steps done."""


def train(
    config: TrainConfig,
    output: Path,
    *,
    device: str = "auto",
    resume: bool = True,
    on_step: Callable[[int, int, float, float], None] | None = None,
    on_validation: Callable[[int, CocoResult], None] | None = None,
) -> TrainResult:
    """Train, measure every ``interval`` steps, and export the averaged weights of the best step.

    A stopped training goes on from its last checkpoint and gives the same curve and the same weights as one that was
    never stopped (on the same machine and number of devices).

    Args:
        config: what to train on what.
        output: folder for ``config.json``, ``last.ckpt``, ``curve.csv``, ``validation.csv``, TensorBoard's files,
            ``weights.safetensors`` and its card ``weights.md``.
        device: where to run.
        resume: go on from ``last.ckpt`` where there is one.
        on_step: called with step, steps, loss and seconds per step.
        on_validation: called with the step and the result.

    Raises:
        UsageError: the data cannot be read, or the folder holds a training with other settings.
        ModelError: the loss is no longer finite, or the device is not there.
        OutputError: the disk is full.
        JobCancelled: Ctrl-C.
    """
    where = find_device(device)
    last = _checkpoint_of(config, output, resume=resume)
    kept, held = open_data(config)
    steps = config.total_steps(len(kept))
    torch.manual_seed(config.seed)
    module = _Stream(build_network(config, kept.classes), config, kept, steps)
    _prepare(config, output, fresh=last is None)  # last: what cannot be trained leaves nothing behind
    if config.cache_features:
        encoder: Any = module.network.encoder
        FeatureCache(encoder, output / "features")
    measurements = Measurements(held, config, output, on_validation)
    callbacks = [LossCurve(output), Checkpoints(output / "last.ckpt", config.interval), measurements]
    try:
        with _no_word_of_lightning():
            trainer = _trainer(config, output, where, steps, callbacks, on_step)
            trainer.fit(module, ckpt_path=None if last is None else str(last))
        measurements.finish(trainer, module)
    except SystemExit as error:  # how Lightning ends after Ctrl-C; it then ignores the signal
        signal.signal(signal.SIGINT, signal.default_int_handler)
        msg = f"cancelled after step {module.global_step}: the same command goes on from the last checkpoint"
        raise JobCancelled(msg) from error
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        msg = f"{output}: cannot be written ({error.strerror}); what is in it is kept: make room and go on"
        raise OutputError(msg) from error
    best = measurements.best()
    assert best is not None, "a training ends with a measurement"
    if config.cache_features and trainer.is_global_zero:
        shutil.rmtree(output / "features", ignore_errors=True)
    weights = output / "weights.safetensors"
    accuracy = read_weights(weights).description["accuracy"]
    return TrainResult(weights=weights, step=best[0], accuracy=accuracy, steps=int(module.global_step))


@contextmanager
def _no_word_of_lightning() -> Iterator[None]:
    """Silence hints that do not hold here: modes are the network's own choice, crops are drawn where it suits."""
    noisy = logging.getLogger("lightning.pytorch")
    before = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for hint in (
                "eval mode at the start",
                "number of training batches",
                "not have many workers",
                "treespec",
            ):
                warnings.filterwarnings("ignore", f".*{hint}")
            yield
    finally:
        noisy.setLevel(before)


def _trainer(
    config: TrainConfig,
    output: Path,
    where: torch.device,
    steps: int,
    callbacks: list[Any],
    on_step: Callable[[int, int, float, float], None] | None,
) -> lightning.Trainer:
    several = config.devices > 1
    one: Any = [where.index or 0] if where.type == "cuda" else 1
    return lightning.Trainer(
        accelerator={"cuda": "gpu"}.get(where.type, where.type),
        devices=config.devices if several else one,
        strategy="ddp_find_unused_parameters_true" if several else "auto",
        use_distributed_sampler=False,  # the crops of a step are shared out here, whatever the number of devices
        precision=_precision(config, where),
        max_steps=steps,
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.clip or None,
        reload_dataloaders_every_n_epochs=1,
        logger=TensorBoardLogger(str(output), name="tensorboard", version=""),
        log_every_n_steps=min(SHOWN_EVERY, config.interval),
        callbacks=[*callbacks, *([Told(on_step)] if on_step is not None else [])],
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def _precision(config: TrainConfig, where: torch.device) -> Any:
    if config.precision != "auto":
        return {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[config.precision]
    if compute_dtype(where) is torch.bfloat16:
        return "bf16-mixed"
    return "16-mixed" if where.type == "cuda" else "32-true"


def _checkpoint_of(config: TrainConfig, output: Path, *, resume: bool) -> Path | None:
    """Find the checkpoint to go on from, and check that it is of the same training."""
    last = output / "last.ckpt"
    if not last.is_file():
        return None
    if not resume:
        msg = f"{output}: holds a training already; resume it or choose another folder"
        raise UsageError(msg)
    before = json.loads((output / "config.json").read_text(encoding="utf-8"))
    now = json.loads(json.dumps(config.to_dict()))
    differs = [key for key, value in now.items() if before.get(key) != value and key not in MAY_DIFFER]
    if differs:
        pairs = "; ".join(f"{key} was {before.get(key)}, now {now[key]}" for key in differs)
        msg = f"{output}: holds a training with other settings ({pairs}); choose another folder"
        raise UsageError(msg)
    return last


def _prepare(config: TrainConfig, output: Path, *, fresh: bool) -> None:
    """Make the folder and write the settings."""
    output.mkdir(parents=True, exist_ok=True)
    if fresh:
        for name in ("curve.csv", "validation.csv"):  # of a training that never reached a checkpoint
            (output / name).unlink(missing_ok=True)
    (output / "config.json").write_text(json.dumps(config.to_dict(), indent=1), encoding="utf-8")


class _Stream(TrainingModule):
    """A training module that brings its own crops: an epoch is ``interval`` steps."""

    def __init__(self, network: nn.Module, config: TrainConfig, data: InstanceDataset, steps: int) -> None:
        super().__init__(network, config.optim(), steps=steps, seed=config.seed, accumulate=config.accumulate)
        self.run = config
        self.data = data

    def train_dataloader(self) -> DataLoader[Any]:
        """Give the crops up to the next multiple of ``interval`` steps: of every batch, this process's share."""
        config = self.run
        per_step = config.batch_size * config.accumulate
        left = config.interval - self.global_step % config.interval
        stream = CropStream(
            self.data,
            config.augment(),
            seed=config.seed,
            start=self.global_step * per_step,
            length=left * per_step,
            variants=config.cache_features,
        )
        mine = share_of(len(stream), config.batch_size, config.devices, self.global_rank)
        return DataLoader(
            Subset(stream, mine),
            batch_size=config.batch_size // config.devices,
            collate_fn=collate,
            num_workers=worker_count(config, self.device),
        )


def share_of(length: int, batch_size: int, devices: int, rank: int) -> list[int]:
    """Number the crops that one device draws of every batch, so that all together draw what one alone would.

    Args:
        length: crops in all, a multiple of ``batch_size``.
        batch_size: crops per batch, over all devices, a multiple of ``devices``.
        devices: how many.
        rank: which one, from 0.
    """
    share = batch_size // devices
    first = rank * share
    return [batch + place for batch in range(0, length, batch_size) for place in range(first, first + share)]


def worker_count(config: TrainConfig, device: torch.device) -> int:
    """Choose the processes that draw crops: none beside a CPU that computes, else up to eight per device."""
    if config.workers is not None:
        return config.workers
    if device.type == "cpu":
        return 0
    return max(1, min(8, (os.cpu_count() or 1) // config.devices))
