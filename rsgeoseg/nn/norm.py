"""Layer norm over the channels of a map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

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
        """Normalise (B, C, H, W); the result lies channels last."""
        rows = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps)
        return rows.permute(0, 3, 1, 2)


def set_norm_eps(module: nn.Module, eps: float) -> None:
    """Give every layer norm in a module another epsilon: Hugging Face's SAM has 1e-6 where the original has 1e-5."""
    for part in module.modules():
        if isinstance(part, nn.LayerNorm):
            part.eps = eps
