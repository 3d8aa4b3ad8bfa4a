"""A LightningModule around any model that gives a loss: optimiser, schedule, averaged weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import lightning
import torch
from torch.optim.swa_utils import AveragedModel

from rsgeoseg.errors import ModelError
from rsgeoseg.nn.targets import Target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from rsgeoseg.train.augment import Crop

    Batch = tuple[Tensor, list[Target], list[str]]


@runtime_checkable
class Trainable(Protocol):
    """A network that knows its own loss. Models satisfy it without importing it."""

    def loss(self, images: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Give named terms for images (B, 3, H, W) uint8; their sum is minimised."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """Optimiser and schedule (paper section IV-C: AdamW, linear warm-up, cosine)."""

    lr: float = 4e-4
    """Peak learning rate of everything but the encoder (paper: 1e-4 at batch 16 for 500 epochs)."""
    encoder_factor: float = 0.25
    """The encoder's learning rate as a share of it; 0 freezes it (the paper freezes SAM's)."""
    weight_decay: float = 0.05
    """AdamW's weight decay; norms and biases have none."""
    warmup: int = 150
    """Steps of linear warm-up."""
    final: float = 0.02
    """Share of the peak at the end of the cosine."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 = not clipped."""
    average: float = 0.998
    """Decay of the exponential moving average of the weights, which is what is evaluated and exported; 0 = none."""


class TrainingModule(lightning.LightningModule):
    """One network in training.

    Args:
        network: a Trainable.
        optim: optimiser and schedule.
        steps: length of the schedule.
        seed: every batch's random numbers are a function of it and the batch, so a resumed run repeats them.
        accumulate: batches per step.
    """

    def __init__(self, network: nn.Module, optim: OptimConfig, *, steps: int, seed: int, accumulate: int = 1) -> None:
        super().__init__()
        # Lightning takes modes as it finds them, and a new module is in training mode throughout: here the network
        # chooses for itself, so that batch norms and frozen encoders stay as in evaluation.
        self.network = network.train()
        self.optim = optim
        self.steps = steps
        self.seed = seed
        self.accumulate = accumulate
        self.last: dict[str, Tensor] = {}
        """The terms of the latest batch's loss."""
        self.average = AveragedModel(network, avg_fn=self._blend, use_buffers=False)
        for parameter in self.average.parameters():
            parameter.requires_grad = False

    def configure_optimizers(self) -> Any:
        """Build AdamW with two learning rates and the warm-up cosine schedule."""
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in self.network.named_parameters():
            if parameter.requires_grad:
                groups.setdefault((name.startswith("encoder."), parameter.ndim > 1), []).append(parameter)
        optimiser = torch.optim.AdamW(
            [
                {
                    "params": parameters,
                    "lr": self.optim.lr * (self.optim.encoder_factor if encoder else 1.0),
                    "weight_decay": self.optim.weight_decay if decays else 0.0,
                }
                for (encoder, decays), parameters in groups.items()
            ],
            lr=self.optim.lr,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, self._rate)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate(self, step: int) -> float:
        if step < self.optim.warmup:
            return (step + 1) / self.optim.warmup
        done = min(1.0, (step - self.optim.warmup) / max(1, self.steps - self.optim.warmup))
        return self.optim.final + (1 - self.optim.final) * (1 + math.cos(math.pi * done)) / 2

    def _blend(self, average: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
        """Move an averaged tensor towards the current one, faster at first: the start is not worth remembering."""
        decay = min(self.optim.average, (1 + int(count)) / (10 + int(count)))
        return average.lerp(current, 1 - decay)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the batch."""
        del batch
        number = self.global_step * self.accumulate + batch_idx % self.accumulate
        torch.manual_seed((self.seed * 1_000_003 + number) * 64 + self.global_rank)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the loss of a batch.

        Raises:
            ModelError: it is not a number; nothing was learned from this batch.
        """
        del batch_idx
        images, targets, sources = batch
        assert isinstance(self.network, Trainable)
        terms = self.network.loss(images, [target.to(self.device) for target in targets])
        total = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(total):
            bad = ", ".join(f"{name} {float(value.detach()):.3g}" for name, value in terms.items())
            where = f"step {self.global_step + 1}, on crops of {', '.join(sorted(set(sources)))}"
            value = float(total.detach())
            msg = f"the loss is {value} at {where} ({bad}): look at these images and labels, or lower --lr"
            raise ModelError(msg)
        self.last = {name: value.detach() for name, value in terms.items()} | {"loss": total.detach()}
        self.log_dict({f"train/{name}": value for name, value in self.last.items()})
        return total

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move the averaged weights after every step."""
        del outputs, batch
        if (batch_idx + 1) % self.accumulate == 0:
            self.average.update_parameters(self.network)


def collate(crops: Sequence[Crop]) -> Batch:
    """Stack crops: images (B, 3, H, W) uint8, one target each, and the names of the images they were cut from."""
    images = torch.stack([torch.from_numpy(crop.image).permute(2, 0, 1) for crop in crops])
    targets = [
        Target(
            labels=torch.from_numpy(crop.labels), boxes=torch.from_numpy(crop.boxes), masks=torch.from_numpy(crop.masks)
        )
        for crop in crops
    ]
    return images, targets, [name for crop in crops for name in crop.sources]
