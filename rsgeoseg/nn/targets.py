"""What an image shows, as tensors: the targets of every instance loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The objects of one image."""

    labels: Tensor
    """(N,) int64."""
    boxes: Tensor
    """(N, 4) float32 x0 y0 x1 y1 in pixels, tight around the masks."""
    masks: Tensor
    """(N, H, W) uint8 in {0, 1}."""

    def to(self, device: torch.device) -> Target:
        """Move to a device."""
        return Target(labels=self.labels.to(device), boxes=self.boxes.to(device), masks=self.masks.to(device))
