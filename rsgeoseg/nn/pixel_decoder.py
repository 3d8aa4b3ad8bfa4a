"""Mask2Former's deformable-attention pixel decoder (RSPrompter paper Eq. 6: T-enc and split).

Facts: mmdet 3.2 ``MSDeformAttnPixelDecoder`` as configured by KyanChen/RSPrompter f4e73c3; deformable attention after
Zhu et al., Deformable DETR, Eq. 3. Module names follow that layout.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from rsgeoseg.nn.positions import cell_positions
from rsgeoseg.nn.steady import PointwiseConv2d, SteadyGroupNorm, steady_softmax

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

Shapes = list[tuple[int, int]]


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention: every query reads a few learned points of every level.

    Args:
        width: channels.
        heads: attention heads.
        levels: number of maps.
        points: sampling points per head and level.
    """

    def __init__(self, width: int, *, heads: int = 8, levels: int = 3, points: int = 4) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(width, heads * levels * points * 2)
        self.attention_weights = nn.Linear(width, heads * levels * points)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)
        self._start_on_rays()

    def _start_on_rays(self) -> None:
        """Point the heads in different directions at the start, as Deformable DETR does."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angle = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        ray = torch.stack([angle.cos(), angle.sin()], -1)
        ray = ray / ray.abs().max(-1, keepdim=True).values
        steps = torch.arange(1, self.points + 1, dtype=torch.float32)
        offsets = ray[:, None, None, :] * steps[None, None, :, None]
        self.sampling_offsets.bias.data = offsets.expand(-1, self.levels, -1, -1).reshape(-1).clone()
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)

    def forward(self, query: Tensor, position: Tensor, value: Tensor, reference: Tensor, shapes: Shapes) -> Tensor:
        """Attend.

        Args:
            query: (B, Q, C).
            position: (Q, C) or (B, Q, C), added to the query.
            value: (B, sum h w, C), the levels one after the other.
            reference: (Q, 2) x y in [0, 1] of every level.
            shapes: (h, w) of every level.

        Returns:
            (B, Q, C).
        """
        batch, count, width = query.shape
        heads, levels, points = self.heads, self.levels, self.points
        positioned = query + position
        # Queries lie along the last axis, where softmax and sums over a few points are vectorised.
        offsets = self.sampling_offsets(positioned).float().view(batch, count, heads, levels, points, 2)
        weights = self.attention_weights(positioned).float().view(batch, count, heads, levels * points)
        shares = steady_softmax(weights.permute(0, 2, 3, 1)).reshape(batch * heads, 1, levels * points, count)
        sizes = torch.tensor([(w, h) for h, w in shapes], dtype=torch.float32, device=query.device)
        where = reference.view(1, count, 1, 1, 1, 2) + offsets / sizes.view(1, 1, 1, levels, 1, 2)
        grids = (2 * where - 1).permute(0, 2, 3, 4, 1, 5).flatten(0, 1)  # (B heads, levels, points, Q, 2)
        values = self.value_proj(value).view(batch, -1, heads, width // heads).split([h * w for h, w in shapes], dim=1)
        mixed = query.new_zeros((), dtype=torch.float32)
        for level, (h, w) in enumerate(shapes):  # level by level: joined, the samples would leave the cache
            plane = values[level].permute(0, 2, 3, 1).reshape(batch * heads, width // heads, h, w)
            sampled = F.grid_sample(plane.float(), grids[:, level], align_corners=False)  # (B heads, C / heads, P, Q)
            mixed = mixed + (sampled * shares[:, :, level * points : (level + 1) * points]).sum(2)
        mixed = mixed.view(batch, width, count).transpose(1, 2)
        attended: Tensor = self.output_proj(mixed.to(query.dtype))
        return attended


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention and feed-forward, each with residual and post-norm."""

    def __init__(self, width: int, *, heads: int, levels: int, points: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(width, heads=heads, levels=levels, points=points)
        self.ffn = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

    def forward(self, tokens: Tensor, position: Tensor, reference: Tensor, shapes: Shapes) -> Tensor:
        """Update tokens (B, sum h w, C)."""
        tokens = self.norms[0](tokens + self.self_attn(tokens, position, tokens, reference, shapes))
        updated: Tensor = self.norms[1](tokens + self.ffn(tokens))
        return updated


class _ConvGroupNorm(nn.Module):
    """Convolution and group norm, named as mmcv's ConvModule names them."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, *, bias: bool, relu: bool) -> None:
        super().__init__()
        self.conv = (
            PointwiseConv2d(channels_in, channels_out, bias=bias)
            if kernel == 1
            else nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=bias)
        )
        self.gn = SteadyGroupNorm(32, channels_out)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.gn(self.conv(x))
        return F.relu(normed) if self.relu else normed


class PixelDecoder(nn.Module):
    """Five maps in; a stride-4 mask feature and every refined map out.

    The three coarse maps talk to each other by deformable attention; the finer ones are joined top-down.

    Args:
        channels_in: channels of the maps at strides 4, 8, 16, 32, 64.
        width: channels inside.
        mask_channels: channels of the mask feature.
        layers: encoder layers.
        heads: attention heads.
        points: sampling points per head and level.
        hidden: width of the feed-forward.
        extent: side of the positional frame in pixels.
    """

    strides = (4, 8, 16, 32, 64)
    encoded_levels = 3

    def __init__(
        self,
        channels_in: Sequence[int],
        *,
        width: int = 128,
        mask_channels: int = 256,
        layers: int = 3,
        heads: int = 8,
        points: int = 4,
        hidden: int = 512,
        extent: int = 1024,
    ) -> None:
        super().__init__()
        self.width, self.extent = width, extent
        coarse_first = list(channels_in)[::-1][: self.encoded_levels]
        fine = list(channels_in)[: -self.encoded_levels]
        self.input_convs = nn.ModuleList(_ConvGroupNorm(c, width, 1, bias=True, relu=False) for c in coarse_first)
        self.level_encoding = nn.Embedding(self.encoded_levels, width)
        self.encoder = nn.ModuleList(
            DeformableEncoderLayer(width, heads=heads, levels=self.encoded_levels, points=points, hidden=hidden)
            for _ in range(layers)
        )
        self.lateral_convs = nn.ModuleList(_ConvGroupNorm(c, width, 1, bias=False, relu=False) for c in fine)
        self.output_convs = nn.ModuleList(_ConvGroupNorm(width, width, 3, bias=False, relu=True) for _ in fine)
        self.mask_feature = nn.Conv2d(width, mask_channels, 1)

    def forward(self, maps: Sequence[Tensor], origin: tuple[float, float] = (0.0, 0.0)) -> tuple[Tensor, list[Tensor]]:
        """Decode.

        Args:
            maps: (B, C_i, h_i, w_i), fine to coarse.
            origin: x y of the image's corner in the positional frame, pixels.

        Returns:
            Mask feature (B, mask_channels, H/4, W/4), and the refined maps (B, width, h, w), coarse to fine:
            strides 64, 32, 16, 8, 4.
        """
        refined = self._talk(maps[::-1][: self.encoded_levels], origin)
        for level in reversed(range(len(self.lateral_convs))):
            lateral = self.lateral_convs[level](maps[level])
            coarser = refined[-1].to(lateral.dtype)
            above = F.interpolate(coarser, size=lateral.shape[-2:], mode="bilinear", align_corners=False)
            refined.append(self.output_convs[level](lateral + above))
        return self.mask_feature(refined[-1]), refined

    def _talk(self, maps: Sequence[Tensor], origin: tuple[float, float]) -> list[Tensor]:
        """Let the coarse maps, coarse to fine, attend to each other.

        In float32: few cells, and what they say decides which objects there are.
        """
        with torch.autocast(maps[0].device.type, enabled=False):
            tokens, positions, references, shapes = [], [], [], []
            for level, conv in enumerate(self.input_convs):
                x = conv(maps[level].float())
                h, w = x.shape[-2:]
                tokens.append(x.flatten(2).transpose(1, 2))
                sine = cell_positions(
                    h,
                    w,
                    stride=self.strides[-1 - level],
                    extent=self.extent,
                    features=self.width // 2,
                    device=x.device,
                    origin=origin,
                )
                positions.append(sine + self.level_encoding.weight[level])
                xs = (torch.arange(w, device=x.device) + 0.5) / w
                ys = (torch.arange(h, device=x.device) + 0.5) / h
                references.append(torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1).reshape(-1, 2))
                shapes.append((h, w))
            state, position, reference = torch.cat(tokens, 1), torch.cat(positions), torch.cat(references)
            for layer in self.encoder:
                state = layer(state, position, reference, shapes)
            split = torch.split(state, [h * w for h, w in shapes], dim=1)
            return [x.transpose(1, 2).reshape(len(x), -1, *shape) for x, shape in zip(split, shapes, strict=True)]
