"""What happens around the steps of a training: checkpoints, measurements, the curve, and what is shown."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import Callback

from rsgeoseg.errors import OutputError
from rsgeoseg.train.curve import Curve
from rsgeoseg.train.export import export_weights
from rsgeoseg.train.models import TRAINABLE
from rsgeoseg.train.module import TrainingModule
from rsgeoseg.train.network import plain_network
from rsgeoseg.train.validate import evaluate_images

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import lightning

    from rsgeoseg.datasets.instances import InstanceDataset
    from rsgeoseg.evaluate.coco import CocoResult
    from rsgeoseg.train.config import TrainConfig

VALIDATION_THRESHOLD = 0.05
"""Objects with a lower score are left out of the AP while training."""
SHOWN_EVERY = 20
"""Steps between the rows of the loss's curve."""


def between_intervals(trainer: lightning.Trainer, interval: int) -> bool:
    """Tell whether an epoch ended at no interval's end: the first one of a training that goes on may."""
    assert trainer.max_steps is not None
    return trainer.global_step % interval != 0 and trainer.global_step < trainer.max_steps


class Checkpoints(Callback):
    """Saves everything at the end of every interval, before it is measured; a torn file never replaces a whole one."""

    def __init__(self, path: Path, interval: int) -> None:
        self.path, self.interval = path, interval

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save beside, then rename.

        Raises:
            OutputError: it could not be written; the checkpoint before is still there.
        """
        del pl_module
        if between_intervals(trainer, self.interval):
            return
        beside = self.path.with_name(f".{self.path.name}.part")
        try:
            trainer.save_checkpoint(beside)
            if trainer.is_global_zero:
                os.replace(beside, self.path)  # noqa: PTH105  (atomic on every system)
        except (OSError, RuntimeError) as error:  # torch's writer says RuntimeError when the disk is full
            with suppress(OSError):
                beside.unlink()
            kept = "the one before is kept" if self.path.is_file() else "there is none before it"
            reason = " ".join(str(error).split())[:200]
            what = f"{self.path}: the checkpoint of step {trainer.global_step} cannot be written ({reason}); {kept}"
            msg = f"{what}: make room and give the same command again"
            raise OutputError(msg) from error
        trainer.strategy.barrier()


class Measurements(Callback):
    """Mask AP of the averaged weights at the end of every interval; the best weights are exported.

    Args:
        data: held-out images.
        config: the training.
        output: its folder.
        tell: called with the step and the result.
    """

    def __init__(
        self,
        data: InstanceDataset,
        config: TrainConfig,
        output: Path,
        tell: Callable[[int, CocoResult], None] | None = None,
    ) -> None:
        self.data, self.config, self.output, self.tell = data, config, output, tell
        self.curve = Curve(output / "validation.csv", ("mask_ap", "mask_ap50", "mask_ap75"))

    def best(self) -> tuple[int, float] | None:
        """Return step and AP of the best weights so far; the first of equals."""
        rows = [(int(row["step"]), float(row["mask_ap"])) for row in self.curve.rows()]
        return max(rows, key=lambda row: (row[1], -row[0])) if rows else None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Measure what a stopped training had saved but not measured yet."""
        if not trainer.is_global_zero:
            return
        step = trainer.global_step
        self.curve.cut(step)
        if step and all(int(row["step"]) != step for row in self.curve.rows()):
            self._measure(trainer, pl_module)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Measure, on one process."""
        if between_intervals(trainer, self.config.interval):
            return
        if trainer.is_global_zero:
            self._measure(trainer, pl_module)
        trainer.strategy.barrier()

    def finish(self, trainer: lightning.Trainer, module: TrainingModule) -> None:
        """Measure the last step where a training was killed between its checkpoint and its measurement."""
        if trainer.is_global_zero and all(int(row["step"]) != module.global_step for row in self.curve.rows()):
            self._measure(trainer, module)

    def _measure(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        assert isinstance(module, TrainingModule)
        network = plain_network(module.average.module)
        found = TRAINABLE[self.config.model].segmenter(network, score_threshold=VALIDATION_THRESHOLD)
        encoder: Any = network.encoder
        largest = encoder.spec.image_size if encoder.spec.fixed_size else None
        result = evaluate_images(found, self.data, largest=largest)
        step, best = trainer.global_step, self.best()
        if best is None or result.ap > best[1]:
            export_weights(self.output / "weights.safetensors", network, self.config, step, result)
        figures = {"mask_ap": result.ap, "mask_ap50": result.ap50, "mask_ap75": result.ap75}
        self.curve.add(step, figures)  # last: what is in the table has been exported
        for logger in trainer.loggers:
            logger.log_metrics({f"val/{name}": value for name, value in figures.items()}, step)
        if self.tell is not None:
            self.tell(step, result)


class LossCurve(Callback):
    """A table of the loss and its terms, ``curve.csv``."""

    def __init__(self, output: Path) -> None:
        self.curve = Curve(output / "curve.csv")

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Drop what a stopped training wrote after its checkpoint."""
        del pl_module
        if trainer.is_global_zero:
            self.curve.cut(trainer.global_step)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write a row now and then."""
        del outputs, batch
        assert isinstance(pl_module, TrainingModule)
        stepped = (batch_idx + 1) % pl_module.accumulate == 0
        step = trainer.global_step
        if trainer.is_global_zero and stepped and (step == 1 or step % SHOWN_EVERY == 0):
            terms = {name: f"{float(value):.6g}" for name, value in pl_module.last.items()}
            rate = max(group["lr"] for group in trainer.optimizers[0].param_groups)
            self.curve.add(step, {"lr": f"{rate:.4g}", **terms})


class Told(Callback):
    """Calls ``tell(step, steps, loss, seconds per step)`` after every step."""

    def __init__(self, tell: Callable[[int, int, float, float], None]) -> None:
        self.tell = tell
        self._since = time.monotonic()
        self._first = 0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begin to count."""
        del pl_module
        self._since, self._first = time.monotonic(), trainer.global_step

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Tell."""
        del outputs, batch
        assert isinstance(pl_module, TrainingModule)
        if trainer.is_global_zero and (batch_idx + 1) % pl_module.accumulate == 0:
            done = max(1, trainer.global_step - self._first)
            seconds = (time.monotonic() - self._since) / done
            self.tell(trainer.global_step, pl_module.steps, float(pl_module.last["loss"]), seconds)
