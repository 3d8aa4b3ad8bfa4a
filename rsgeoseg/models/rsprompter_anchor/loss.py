"""Training of RSPrompter-anchor: the detector's losses and the masks' (paper section III-B3, Eq. 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from rsgeoseg.nn.box_head import Samples, box_losses, sample_proposals
from rsgeoseg.nn.coarse_masks import masks_in_boxes
from rsgeoseg.nn.losses import dice_loss
from rsgeoseg.nn.points import read_masks, sample_points, uncertain_points

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from rsgeoseg.models.rsprompter_anchor.config import LossConfig
    from rsgeoseg.models.rsprompter_anchor.network import RSPrompterAnchor, Scene
    from rsgeoseg.nn.targets import Target


def anchor_losses(
    network: RSPrompterAnchor,
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
    proposals, losses = network.rpn.propose(scene.maps, scene.size, targets)
    background = len(network.config.classes)
    samples = sample_proposals(
        [boxes.detach() for boxes in proposals], targets, background=background, samples=config.rois
    )
    losses |= box_losses(*network.classify(scene, samples.boxes), samples)
    return losses | _mask_losses(network, scene, samples, targets, config)


def _mask_losses(
    network: RSPrompterAnchor, scene: Scene, samples: Samples, targets: Sequence[Target], config: LossConfig
) -> dict[str, Tensor]:
    """Masks of proposals that hit an object, at most ``fine_masks`` per image."""
    first, boxes, which = 0, [], []
    row = 0
    for index, target in enumerate(targets):
        count = len(samples.boxes[index])
        here = slice(row, row + count)
        hit = (samples.labels[here] < len(network.config.classes)).nonzero().squeeze(1)
        hit = hit[torch.randperm(len(hit), device=hit.device)[: config.fine_masks]]
        boxes.append(samples.boxes[index][hit])
        which.append(first + samples.matched[here][hit])
        first, row = first + len(target.labels), row + count
    rows = torch.cat(which)
    if not len(rows):
        return {}
    masks = torch.cat([target.masks for target in targets])
    logits, coarse = network.masks(scene, boxes)
    terms = {}
    if config.points:
        points = uncertain_points(logits.detach(), config.points, generator=None)
        predicted, wanted = sample_points(logits, points), read_masks(masks, rows, points)
    else:
        predicted = F.interpolate(logits[:, None], size=scene.size, mode="bilinear", align_corners=False).flatten(1)
        wanted = masks[rows].flatten(1).float()
    terms["mask"] = config.mask_weight * F.binary_cross_entropy_with_logits(predicted, wanted)
    if config.dice_weight:
        terms["dice"] = config.dice_weight * dice_loss(predicted, wanted).mean()
    if coarse is not None:
        truth = masks_in_boxes(masks, rows, torch.cat(boxes), coarse.shape[-1])
        terms["coarse"] = config.coarse_weight * F.binary_cross_entropy_with_logits(coarse, truth)
    return terms
