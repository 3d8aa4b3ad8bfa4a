"""Object centres as queries: a dense head on the pixel decoder finds them, and they replace learned queries.

RSPrompter's query model converges slowly (paper section V). Queries taken from the encoder's own map start where
objects are, and the map is supervised at every cell. Sources of the parts: query selection, Deformable DETR section 4.2
and Mask DINO section 3.4; centre maps, CenterNet section 3. The combination is ours (``docs/decisions/0002``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from rsgeoseg.nn.steady import SteadyConv2d, SteadyGroupNorm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

STRIDES = (8, 16, 32)
SIDES = ((0.0, 80.0), (48.0, 208.0), (128.0, 1e9))
"""Object side (square root of the box area, pixels) that each stride answers for; they overlap on purpose."""
REFERENCE_SIDES = (32.0, 96.0, 208.0)
"""Typical object side at each stride, pixels: where a query's extent starts."""


@dataclass(frozen=True, slots=True)
class Centres:
    """Chosen cells of B images, K each."""

    points: Tensor
    """(B, K, 2) x y in pixels."""
    sides: Tensor
    """(B, K) reference side in pixels."""
    scores: Tensor
    """(B, K) highest class probability of the cell."""
    features: Tensor
    """(B, K, C + classes): the cell's features and its class probabilities."""


class CentreHead(nn.Module):
    """Class-wise centre maps on three maps of the pixel decoder.

    Args:
        width: channels of the maps.
        classes: number of classes.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.tower = nn.Sequential(SteadyConv2d(width, width), SteadyGroupNorm(32, width), nn.ReLU(inplace=True))
        self.heat = SteadyConv2d(width, classes)
        nn.init.normal_(self.heat.weight, std=0.01)
        assert self.heat.bias is not None
        nn.init.constant_(self.heat.bias, -4.0)
        self.level_bias = nn.Parameter(torch.zeros(len(STRIDES), classes))

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Compute centre logits (B, classes, h, w) and tower features (B, C, h, w) for strides 8, 16, 32.

        In float32 whatever the caller's number format: bfloat16 moves peaks across the threshold.
        """
        with torch.autocast(maps[0].device.type, enabled=False):
            features = [self.tower(x.float()) for x in maps]
            logits = [self.heat(x) + bias[:, None, None] for x, bias in zip(features, self.level_bias, strict=True)]
        return logits, features


def read_cells(
    logits: Sequence[Tensor], features: Sequence[Tensor], level: Tensor, row: Tensor, column: Tensor
) -> Centres:
    """Gather the cells (level, row, column), each (B, K) int64."""
    points = torch.zeros(*level.shape, 2, device=level.device)
    sides = torch.zeros(level.shape, device=level.device)
    width, classes = features[0].shape[1], logits[0].shape[1]
    gathered = features[0].new_zeros(*level.shape, width + classes)
    scores = torch.zeros(level.shape, device=level.device)
    for index, stride in enumerate(STRIDES):
        h, w = logits[index].shape[-2:]
        at_level = level == index
        flat = (row * w + column).clamp(max=h * w - 1)
        there = logits[index].detach().flatten(2).transpose(1, 2)
        probability = there.gather(1, flat.unsqueeze(-1).expand(-1, -1, classes)).sigmoid()
        content = features[index].flatten(2).transpose(1, 2).gather(1, flat.unsqueeze(-1).expand(-1, -1, width))
        joined = torch.cat([content, probability.to(content.dtype)], -1)
        gathered = torch.where(at_level.unsqueeze(-1), joined, gathered)
        scores = torch.where(at_level, probability.amax(-1), scores)
        centre = torch.stack([column + 0.5, row + 0.5], -1) * stride
        points = torch.where(at_level.unsqueeze(-1), centre, points)
        sides = torch.where(at_level, torch.full_like(sides, REFERENCE_SIDES[index]), sides)
    return Centres(points=points, sides=sides, scores=scores, features=gathered)


@torch.no_grad()
def strongest_peaks(logits: Sequence[Tensor], count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find the strongest local maxima over all levels.

    Args:
        logits: (B, classes, h, w) per level.
        count: peaks per image, K.

    Returns:
        Level, row and column, (B, K) int64 each, and the logits (B, K), strongest first.
    """
    scores, levels, rows, columns = [], [], [], []
    for index, x in enumerate(logits):
        best = x.amax(1, keepdim=True)
        peak = torch.where(best == F.max_pool2d(best, 3, stride=1, padding=1), best, best.new_full((), -1e4))
        h, w = peak.shape[-2:]
        flat = torch.arange(h * w, device=x.device).expand(x.shape[0], -1)
        scores.append(peak.flatten(1))
        levels.append(torch.full_like(flat, index))
        rows.append(flat // w)
        columns.append(flat % w)
    joined = torch.cat(scores, 1)
    best_scores, chosen = joined.topk(min(count, joined.shape[1]), dim=1)
    level, row, column = (torch.cat(x, 1).gather(1, chosen) for x in (levels, rows, columns))
    return level, row, column, best_scores


@torch.no_grad()
def centre_targets(
    boxes: Sequence[Tensor], labels: Sequence[Tensor], shapes: Sequence[tuple[int, int]], classes: int
) -> list[Tensor]:
    """Draw the centre maps that the head should give.

    Args:
        boxes: per image (N, 4) x0 y0 x1 y1 in pixels.
        labels: per image (N,) int64.
        shapes: (h, w) of every level.
        classes: number of classes.

    Returns:
        Per level (B, classes, h, w) float32: 1 at the cell of a centre, a Gaussian around it whose spread is an eighth
        of the object's side, and 0 elsewhere.
    """
    heats = []
    for (h, w), stride, (low, high) in zip(shapes, STRIDES, SIDES, strict=True):
        heat = torch.zeros(len(boxes), classes, h, w)
        ys, xs = torch.arange(h).float(), torch.arange(w).float()
        for image, (some_boxes, some_labels) in enumerate(zip(boxes, labels, strict=True)):
            for (x0, y0, x1, y1), label in zip(some_boxes.tolist(), some_labels.tolist(), strict=True):
                if not low <= ((x1 - x0) * (y1 - y0)) ** 0.5 < high:
                    continue
                column = min(int((x0 + x1) / 2 / stride), w - 1)
                row = min(int((y0 + y1) / 2 / stride), h - 1)
                spread_x = max((x1 - x0) / 8 / stride, 0.4)
                spread_y = max((y1 - y0) / 8 / stride, 0.4)
                bump_x = torch.exp(-((xs - column) ** 2) / (2 * spread_x**2))
                bump_y = torch.exp(-((ys - row) ** 2) / (2 * spread_y**2))
                plane = heat[image, label]
                torch.maximum(plane, bump_y[:, None] * bump_x[None, :], out=plane)
        heats.append(heat)
    return heats


@torch.no_grad()
def cells_near(boxes: Tensor, shapes: Sequence[tuple[int, int]], *, noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """Cells near given objects' centres, at the finest level that answers for each: denoising queries.

    Args:
        boxes: (N, 4) x0 y0 x1 y1 in pixels.
        shapes: (h, w) of every level.
        noise: largest shift of the centre as a share of the object's side.

    Returns:
        Level, row and column, (N,) int64 each.
    """
    size = boxes[:, 2:] - boxes[:, :2]
    side = size.prod(-1).sqrt()
    fits = torch.stack([(side >= low) & (side < high) for low, high in SIDES], 1)
    level = torch.multinomial(fits.float(), 1).squeeze(1) if len(boxes) else torch.zeros(0, dtype=torch.int64)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 + (torch.rand_like(size) * 2 - 1) * noise * size
    stride = torch.tensor(STRIDES, device=boxes.device)[level]
    limit = torch.tensor(shapes, device=boxes.device)[level] - 1
    row = torch.minimum((centre[:, 1] / stride).long().clamp(min=0), limit[:, 0])
    column = torch.minimum((centre[:, 0] / stride).long().clamp(min=0), limit[:, 1])
    return level, row, column
