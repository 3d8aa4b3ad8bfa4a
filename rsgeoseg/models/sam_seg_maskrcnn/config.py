"""Sizes and options of SAM-seg with Mask R-CNN's heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rsgeoseg.nn.enhancer import Numerics


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskRcnnConfig:
    """Sizes and options of the network; saved with the weights."""

    classes: tuple[str, ...]
    """Class names, background not counted."""
    width: int = 256
    """Channels of the feature pyramid and of the mask head."""
    box_hidden: int = 1024
    """Width of the box head."""
    samples: int = 512
    """Proposals per image in the loss of the box head, a quarter of them on objects."""
    proposals: int = 1000
    """Proposals per image when testing."""
    numerics: Numerics = "paper"
    """Where paper and released code differ: the aggregator's order."""
