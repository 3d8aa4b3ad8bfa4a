"""What the queries of a masked-attention decoder look at, and where they may look.

Source: Mask2Former section 3.2; level order and positions of mmdet 3.2 ``Mask2FormerHead`` (coarse to fine).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rsgeoseg.nn.positions import cell_positions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

MEMORY_STRIDES = (64, 32, 16)
"""Strides of the maps that queries look at, in the decoder layers' order."""


@dataclass(frozen=True, slots=True)
class Memory:
    """One map as a decoder layer reads it."""

    tokens: Tensor
    """(B, L, C), the level's embedding added."""
    positions: Tensor
    """(L, C)."""
    shape: tuple[int, int]
    """h, w with h w = L."""


def query_memories(
    maps: Sequence[Tensor], level_embedding: Tensor, *, extent: int, origin: tuple[float, float]
) -> tuple[Memory, ...]:
    """Prepare maps for the decoder layers.

    Args:
        maps: (B, C, h, w) at ``MEMORY_STRIDES``.
        level_embedding: (levels, C).
        extent: side of the positional frame, pixels.
        origin: x y of the images' corner in it, pixels.
    """
    memories = []
    for x, stride, embedding in zip(maps, MEMORY_STRIDES, level_embedding, strict=True):
        h, w = x.shape[-2:]
        positions = cell_positions(
            h, w, stride=stride, extent=extent, features=x.shape[1] // 2, device=x.device, origin=origin
        )
        memories.append(Memory(x.flatten(2).transpose(1, 2) + embedding, positions, (h, w)))
    return tuple(memories)


@torch.no_grad()
def blocked_cells(logits: Tensor) -> Tensor:
    """Say where queries may not look: outside their masks; everywhere is open to one whose mask is empty.

    Args:
        logits: (B, Q, h, w) of the masks.

    Returns:
        (B, Q, h w) bool.
    """
    blocked = (logits < 0).flatten(2)
    return blocked & ~blocked.all(-1, keepdim=True)
