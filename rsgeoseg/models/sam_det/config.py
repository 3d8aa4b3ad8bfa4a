"""Sizes and options of SAM-det."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Trunk = Literal["resnet50", "resnet18", "encoder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DetConfig:
    """Sizes and options of the network; saved with the weights."""

    classes: tuple[str, ...]
    """Class names, background not counted."""
    trunk: Trunk = "resnet50"
    """Where the detector's features come from: its own ResNet (paper: Faster R-CNN; released code: ResNet-50), or
    SAM's encoder, so that one small network does both (not in the paper)."""
    width: int = 256
    """Channels of the detector's pyramid."""
    box_hidden: int = 1024
    """Width of the box head."""
    anchor_scales: tuple[float, ...] = (8.0,)
    """Sides of the anchors in cells (released code: 8)."""
    samples: int = 512
    """Proposals per image in the loss of the box head (released code)."""
    proposals: int = 1000
    """Proposals per image when testing (released code)."""
    train_sam: bool = False
    """Train SAM's encoder and decoder along, on the true boxes (not in the paper, which takes SAM as it is; for one
    from scratch)."""
