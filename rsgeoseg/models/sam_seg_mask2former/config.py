"""Sizes and options of SAM-seg with Mask2Former's head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rsgeoseg.nn.enhancer import Numerics


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask2FormerConfig:
    """Sizes and options of the network; saved with the weights."""

    classes: tuple[str, ...]
    """Class names, background not counted."""
    num_queries: int = 100
    """Queries per image."""
    width: int = 256
    """Channels of pixel decoder, queries and mask feature."""
    heads: int = 8
    """Attention heads."""
    encoder_layers: int = 3
    """Deformable-attention layers of the pixel decoder."""
    encoder_hidden: int = 1024
    """Width of their feed-forward networks."""
    decoder_layers: int = 9
    """Masked-attention layers."""
    decoder_hidden: int = 2048
    """Width of their feed-forward networks."""
    points: int = 12544
    """Points at which masks are compared while training."""
    numerics: Numerics = "paper"
    """Where paper and released code differ: the aggregator's order."""
