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
    skips: tuple[Level, Level] | None = None
    """High-resolution maps at strides 4 and 8 for a mask decoder with skip connections (SAM 2's); None = none."""
    fixed_size: bool = False
    """True where positions are learned for ``image_size``: smaller images are padded to it, never run as they are."""

    @property
    def is_pyramid(self) -> bool:
        """True where the intermediate maps differ in stride (CNN, Hiera); False for a plain ViT."""
        return len({level.stride for level in self.hidden}) > 1

    @property
    def skip_channels(self) -> tuple[int, int] | None:
        """Channels of the maps at strides 4 and 8 for a mask decoder with skip connections; None without any."""
        return None if self.skips is None else (self.skips[0].channels, self.skips[1].channels)


@dataclass(frozen=True, slots=True)
class Features:
    """What an encoder computed for a batch of B images."""

    embedding: Tensor
    """(B, C, h, w) as ``spec.embedding``."""
    hidden: tuple[Tensor, ...]
    """One (B, C, h, w) per ``spec.hidden``."""
    skips: tuple[Tensor, Tensor] | None = None
    """(B, C, h, w) each, as ``spec.skips``."""


class Encoder(nn.Module):
    """Base of the image encoders.

    ``forward(images) -> Features`` takes float (B, 3, H, W), already normalised by ``spec.mean`` and ``spec.std`` and
    padded to a multiple of the deepest stride.
    """

    spec: EncoderSpec
