"""What every image encoder says of itself and gives back: channels and stride per level, nothing of its insides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Level:
    """One feature map of an encoder."""

    channels: int
    """Channels C."""
    stride: int
    """Input pixels per cell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSpec:
    """What an encoder takes and gives."""

    name: str
    """Backbone name, e.g. ``sam-vit-b`` or ``lite``."""
    image_size: int
    """Largest square input side it was made for, pixels."""
    embedding: Level
    """The map that SAM's mask decoder reads."""
    hidden: tuple[Level, ...]
    """Intermediate maps, shallow to deep."""
    mean: tuple[float, float, float]
    """Per-band mean on the 0-255 scale."""
    std: tuple[float, float, float]
    """Per-band standard deviation on the 0-255 scale."""

    @property
    def is_pyramid(self) -> bool:
        """True where the intermediate maps differ in stride (CNN, Hiera); False for a plain ViT."""
        return len({level.stride for level in self.hidden}) > 1


@dataclass(frozen=True, slots=True)
class Features:
    """What an encoder computed for a batch of B images."""

    embedding: Tensor
    """(B, C, h, w) as ``spec.embedding``."""
    hidden: tuple[Tensor, ...]
    """One (B, C, h, w) per ``spec.hidden``."""


class Encoder(nn.Module):
    """Base of the image encoders.

    ``forward(images) -> Features`` takes float (B, 3, H, W), already normalised by ``spec.mean`` and ``spec.std`` and
    padded to a multiple of the deepest stride.
    """

    spec: EncoderSpec
