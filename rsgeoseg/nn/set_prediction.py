"""Training of set prediction: which query stands for which object, and how well it does (DETR; Mask2Former 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from rsgeoseg.nn.losses import class_loss, dice_loss
from rsgeoseg.nn.matching import match, matching_cost
from rsgeoseg.nn.points import read_masks, sample_points

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from rsgeoseg.nn.targets import Target


@dataclass(frozen=True, slots=True)
class Pairs:
    """Which query of which image stands for which object."""

    image: Tensor
    """(P,) int64."""
    query: Tensor
    """(P,) int64."""
    target: Tensor
    """(P,) int64, index among the image's objects."""

    def __add__(self, others: Pairs) -> Pairs:
        return Pairs(
            torch.cat([self.image, others.image]),
            torch.cat([self.query, others.query]),
            torch.cat([self.target, others.target]),
        )

    def mask_rows(self, targets: Sequence[Target]) -> Tensor:
        """Row of each pair's object among the masks of all images in a row, (P,) int64."""
        counts = torch.tensor([0, *(len(target.labels) for target in targets[:-1])], device=self.image.device)
        rows: Tensor = counts.cumsum(0)[self.image] + self.target
        return rows


@torch.no_grad()
def match_queries(
    class_logits: Tensor, read: Callable[[int, Tensor], Tensor], targets: Sequence[Target], *, points: int
) -> Pairs:
    """Match queries and objects on classes and masks, image by image.

    Args:
        class_logits: (B, Q, C + 1), background last.
        read: gives the mask logits (Q or more, P) of an image's queries at points (P, 2) x y in [0, 1].
        targets: one per image.
        points: number of random points at which masks are compared.
    """
    device = class_logits.device
    nothing = torch.zeros(0, dtype=torch.int64, device=device)
    pairs = Pairs(nothing, nothing, nothing)
    for index, target in enumerate(targets):
        if not len(target.labels):
            continue
        where = torch.rand(points, 2, device=device)
        predicted = read(index, where)[: class_logits.shape[1]]
        wanted = read_masks(target.masks, torch.arange(len(target.labels), device=device), where.unsqueeze(0))
        query, which = match(matching_cost(class_logits[index], predicted, target.labels, wanted))
        pairs = pairs + Pairs(torch.full_like(query, index), query, which)
    return pairs


def set_class_loss(
    class_logits: Tensor,
    pairs: Pairs,
    targets: Sequence[Target],
    *,
    background_weight: float,
    matched: int | None = None,
) -> Tensor:
    """Cross-entropy of the classes of all queries, background for those without an object.

    Args:
        class_logits: (B, Q, C + 1), background last.
        pairs: the matches.
        targets: one per image.
        background_weight: weight of the background class.
        matched: number of leading queries that are background without a pair; the others are ignored. None = all.
    """
    wanted = torch.full(class_logits.shape[:2], class_logits.shape[-1] - 1, device=class_logits.device)
    wanted[:, matched if matched is not None else wanted.shape[1] :] = -1
    for index, target in enumerate(targets):
        here = pairs.image == index
        wanted[index, pairs.query[here]] = target.labels[pairs.target[here]]
    return class_loss(class_logits.flatten(0, 1), wanted.flatten(), background_weight=background_weight)


def point_losses(logits: Tensor, wanted: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and dice of masks at points, each averaged over the masks.

    Args:
        logits: (N, H, W).
        wanted: (N, P) in [0, 1].
        points: (N, P, 2) x y in [0, 1].
    """
    predicted = sample_points(logits, points)
    return F.binary_cross_entropy_with_logits(predicted, wanted), dice_loss(predicted, wanted).mean()
