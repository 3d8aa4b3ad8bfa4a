"""Training of RSPrompter-query: matching, losses, denoising queries (paper section III-B4, Eq. 8-9).

Differences to the paper, as options or by name: dice beside cross-entropy as in the released code; masks compared at
points as Mask2Former does; SAM's decoder supervised on the last ``fine_sets`` sets only (the paper: all), because the
inner sets share its weights and cost as much again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from rsgeoseg.nn.centres import cells_near, centre_targets
from rsgeoseg.nn.losses import centre_focal_loss
from rsgeoseg.nn.points import read_masks, uncertain_points
from rsgeoseg.nn.set_prediction import Pairs, match_queries, point_losses, set_class_loss

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from rsgeoseg.models.rsprompter_query.network import PredictionSet, Queries, RSPrompterQuery, Scene
    from rsgeoseg.nn.targets import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """Weights and options of the loss."""

    class_weight: float = 2.0
    """Cross-entropy of the class (released code; the paper adds its terms unweighted)."""
    mask_weight: float = 5.0
    """Binary cross-entropy of the masks."""
    dice_weight: float = 5.0
    """Dice of the masks; 0 gives the paper's Eq. 9."""
    centre_weight: float = 1.0
    """Focal loss of the centre maps, where queries come from them."""
    background_weight: float = 0.1
    """Class weight of background."""
    points: int = 12544
    """Points at which masks are compared."""
    fine_sets: int = 7
    """Last prediction sets on which SAM's decoder is supervised."""
    fine_masks: int = 10_000
    """Most masks per image and set that go through SAM's decoder, drawn at random."""
    denoising_groups: int = 0
    """Groups of extra queries placed near every object, with known matches (not in the paper)."""
    denoising_noise: float = 0.2
    """Largest shift of such a query as a share of the object's side."""


def query_losses(
    network: RSPrompterQuery,
    images: Tensor,
    targets: Sequence[Target],
    config: LossConfig,
    *,
    origin: tuple[float, float] = (0.0, 0.0),
) -> dict[str, Tensor]:
    """Compute the loss of a batch.

    Args:
        network: the network.
        images: (B, 3, H, W) normalised.
        targets: one per image.
        config: weights and options.
        origin: x y of the crops' corner in the positional frame, pixels.

    Returns:
        Named terms; their sum is minimised.
    """
    scene = network.look(images, origin)
    queries = network.start(scene, origin=origin)
    count = queries.content.shape[1]
    known = None
    if config.denoising_groups and network.config.centre_queries:
        queries, known = _with_denoising(network, scene, queries, targets, config, origin)
    sets = network.decode(scene, queries)
    terms: dict[str, list[Tensor]] = {"class": [], "mask": [], "dice": [], "coarse_mask": [], "coarse_dice": []}
    for index, prediction in enumerate(sets):
        pairs = match_queries(
            prediction.class_logits[:, :count],
            partial(network.coarse_at, scene, prediction, queries.centres),
            targets,
            points=config.points,
        )
        if known is not None:
            pairs = pairs + known
        terms["class"].append(
            set_class_loss(
                prediction.class_logits,
                pairs,
                targets,
                background_weight=config.background_weight,
                matched=count,  # denoising slots without an object are ignored
            )
        )
        fine = index >= len(sets) - config.fine_sets
        for name, value in _mask_terms(network, scene, prediction, queries, pairs, targets, config, fine=fine).items():
            terms[name].append(value)
    weights = {"class": config.class_weight, "mask": config.mask_weight, "dice": config.dice_weight}
    losses = {
        name: weights[name.removeprefix("coarse_")] * torch.stack(values).sum()
        for name, values in terms.items()
        if values
    }
    if scene.centre_logits:
        losses["centre"] = config.centre_weight * _centre_term(scene, targets)
    return losses


def _centre_term(scene: Scene, targets: Sequence[Target]) -> Tensor:
    shapes = [(x.shape[-2], x.shape[-1]) for x in scene.centre_logits]
    classes = scene.centre_logits[0].shape[1]
    heats = centre_targets([t.boxes for t in targets], [t.labels for t in targets], shapes, classes)
    objects = max(sum(len(t.labels) for t in targets), 1)
    total = sum(centre_focal_loss(x, heat.to(x.device)) for x, heat in zip(scene.centre_logits, heats, strict=True))
    return torch.as_tensor(total) / objects


def _with_denoising(
    network: RSPrompterQuery,
    scene: Scene,
    queries: Queries,
    targets: Sequence[Target],
    config: LossConfig,
    origin: tuple[float, float],
) -> tuple[Queries, Pairs]:
    """Append groups of queries near known objects; no group sees another, and none is seen by the matched queries."""
    shapes = [(x.shape[-2], x.shape[-1]) for x in scene.centre_logits]
    most = max((len(t.labels) for t in targets), default=0)
    groups, batch, count = config.denoising_groups, len(targets), queries.content.shape[1]
    device = queries.content.device
    level, row, column = (torch.zeros(batch, groups * most, dtype=torch.int64, device=device) for _ in range(3))
    image, query, target = [], [], []
    for index, t in enumerate(targets):
        for group in range(groups):
            slots = group * most + torch.arange(len(t.labels), device=device)
            level[index, slots], row[index, slots], column[index, slots] = cells_near(
                t.boxes, shapes, noise=config.denoising_noise
            )
            image.append(torch.full_like(slots, index))
            query.append(count + slots)
            target.append(torch.arange(len(t.labels), device=device))
    extra = network.place_queries(scene, level, row, column, origin=origin)
    assert queries.centres is not None
    assert extra.centres is not None
    both = [torch.cat([getattr(queries.centres, f), getattr(extra.centres, f)], 1) for f in queries.centres.__slots__]
    group_of = torch.cat(
        [torch.full((count,), -1, device=device), torch.arange(groups, device=device).repeat_interleave(most)]
    )
    apart = (group_of[:, None] != group_of[None, :]).expand(batch, -1, -1)
    joined = replace(
        queries,
        content=torch.cat([queries.content, extra.content], 1),
        position=torch.cat([queries.position, extra.position], 1),
        centres=type(queries.centres)(*both),
        apart=apart,
    )
    return joined, Pairs(torch.cat(image), torch.cat(query), torch.cat(target))


def _mask_terms(
    network: RSPrompterQuery,
    scene: Scene,
    prediction: PredictionSet,
    queries: Queries,
    pairs: Pairs,
    targets: Sequence[Target],
    config: LossConfig,
    *,
    fine: bool,
) -> dict[str, Tensor]:
    if not len(pairs.image):
        nothing = prediction.kernels.sum() * 0
        return {"coarse_mask": nothing, "coarse_dice": nothing}
    coarse = network.coarse_logits(scene, prediction, queries.centres, pairs.image, pairs.query)
    which = pairs.mask_rows(targets)
    masks = torch.cat([target.masks for target in targets])
    if not fine:
        points = uncertain_points(coarse.detach(), config.points, generator=None)
        bce, dice = point_losses(coarse, read_masks(masks, which, points), points)
        return {"coarse_mask": bce, "coarse_dice": dice}
    chosen = _at_most(pairs.image, config.fine_masks)
    image, query = pairs.image[chosen], pairs.query[chosen]
    fine_logits = network.fine_logits(scene, prediction, coarse[chosen], image, query)
    guide = coarse.detach().clone()
    guide[chosen] = fine_logits.detach()
    points = uncertain_points(guide, config.points, generator=None)
    wanted = read_masks(masks, which, points)
    coarse_bce, coarse_dice = point_losses(coarse, wanted, points)
    bce, dice = point_losses(fine_logits, wanted[chosen], points[chosen])
    return {"coarse_mask": coarse_bce, "coarse_dice": coarse_dice, "mask": bce, "dice": dice}


def _at_most(image: Tensor, most: int) -> Tensor:
    """Indices of at most ``most`` random entries per image, (P',) int64 in order."""
    shuffled = torch.randperm(len(image), device=image.device)
    order = shuffled[torch.argsort(image[shuffled], stable=True)]
    sorted_image = image[order]
    first = torch.searchsorted(sorted_image, sorted_image, right=False)
    rank = torch.arange(len(order), device=image.device) - first
    return order[rank < most].sort().values
