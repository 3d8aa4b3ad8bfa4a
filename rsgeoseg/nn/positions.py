"""Sine positions in pixels of a fixed frame, so that a crop and a whole chip agree on where things are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def sine_positions(points: Tensor, *, extent: float, features: int, temperature: float = 10000.0) -> Tensor:
    """Encode points by sines and cosines of falling frequency, y first, as DETR does.

    Source: mmdet ``SinePositionalEncoding`` with ``normalize=True`` (scale 2 pi), there in cells of a map whose side is
    the frame; ours takes pixels, so that the frame can be larger than the map.

    Args:
        points: (..., 2) x y in pixels of the frame.
        extent: side of the frame in pixels, encoded as 2 pi.
        features: encoding channels per axis, even.
        temperature: ratio of the longest to the shortest wave.

    Returns:
        (..., 2 * features) float32.
    """
    index = torch.arange(features, dtype=torch.float32, device=points.device)
    scale = temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / features)
    angles = (points.float() * (2 * math.pi / extent)).unsqueeze(-1) / scale  # (..., 2, F)
    encoded = torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(-2)
    return torch.cat([encoded[..., 1, :], encoded[..., 0, :]], dim=-1)


def cell_positions(
    height: int,
    width: int,
    *,
    stride: int,
    extent: float,
    features: int,
    device: torch.device,
    origin: tuple[float, float] = (0.0, 0.0),
) -> Tensor:
    """Sine positions of a map's cells, (height * width, 2 * features).

    A cell is encoded by its lower-right corner (index + 1), as upstream's cumulative sum does.

    Args:
        height: rows of the map.
        width: columns of the map.
        stride: pixels per cell.
        extent: side of the frame in pixels.
        features: encoding channels per axis.
        device: where to compute.
        origin: x y of the map's corner in the frame, pixels.
    """
    xs = (torch.arange(width, device=device, dtype=torch.float32) + 1) * stride + origin[0]
    ys = (torch.arange(height, device=device, dtype=torch.float32) + 1) * stride + origin[1]
    grid = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1).reshape(-1, 2)
    return sine_positions(grid, extent=extent, features=features)
