"""Low-rank adaptation of a SAM encoder: what its query, key and value layers learn is a product of two thin matrices.

Source: Hu et al., LoRA, ICLR 2022, Eq. 3; ranks and places as in KyanChen/RSPrompter (branch release, f4e73c3), configs
with 512-pixel chips: rank 16, alpha 32, on ``qkv`` of every block. Their dropout (0.05, on the layer's input) has no
place here: the change is made to the weight, so that the trained encoder is a plain one again when it is saved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.utils import parametrize

from rsgeoseg.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


class LowRank(nn.Module):
    """``W + (alpha / rank) B A``; B starts at zero, so nothing changes at first.

    Args:
        weight: (out, in), stays as it is.
        rank: width of the two matrices.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.scale = 2.0  # alpha = 2 rank
        self.down = nn.Parameter(torch.empty(rank, weight.shape[1]))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        """Change the weight."""
        return weight + self.scale * (self.up @ self.down)


def add_lora(encoder: nn.Module, rank: int) -> int:
    """Let the ``qkv`` layers of an encoder learn a change of this rank, and nothing else of it.

    Args:
        encoder: changed in place.
        rank: at least 1.

    Returns:
        Number of layers.

    Raises:
        UsageError: it has no such layers.
    """
    layers = [m for name, m in encoder.named_modules() if name.endswith("qkv") and isinstance(m, nn.Linear)]
    if not layers:
        msg = "lora is for the transformers of SAM and SAM 2; this encoder has none: train it whole or freeze it"
        raise UsageError(msg)
    encoder.requires_grad_(requires_grad=False)
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank))
    return len(layers)


def merge_lora(encoder: nn.Module) -> None:
    """Put what was learned into the weights themselves; does nothing to an encoder without."""
    for module in list(encoder.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
