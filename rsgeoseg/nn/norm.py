"""Layer norm over the channels of a map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


class LayerNorm2d(nn.Module):
    """Normalise each cell of (B, C, H, W) over its channels; eps 1e-6 as SAM's neck has it."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        centred = x - x.mean(1, keepdim=True)
        scaled = centred * torch.rsqrt(centred.square().mean(1, keepdim=True) + self.eps)
        return scaled * self.weight[:, None, None] + self.bias[:, None, None]


def set_norm_eps(module: nn.Module, eps: float) -> None:
    """Give every layer norm inside a module another epsilon: Hugging Face's SAM has 1e-6 where the original has 1e-5."""
    for part in module.modules():
        if isinstance(part, nn.LayerNorm):
            part.eps = eps
