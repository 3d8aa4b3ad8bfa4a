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
    """Masks of proposals that hit an object: at most ``fine_masks`` per image decoded, the others coarse alone."""
    boxes, which = _hits(samples, targets, len(network.config.classes))
    rest = [part[config.fine_masks :] for part in boxes], [part[config.fine_masks :] for part in which]
    boxes, which = [part[: config.fine_masks] for part in boxes], [part[: config.fine_masks] for part in which]
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
        boxes, rows = [*boxes, *rest[0]], torch.cat([rows, *rest[1]])
        coarse = torch.cat([coarse, network.coarse_masks(scene, rest[0])])
        truth = masks_in_boxes(masks, rows, torch.cat(boxes), coarse.shape[-1])
        terms["coarse"] = config.coarse_weight * F.binary_cross_entropy_with_logits(coarse, truth)
    return terms


def _hits(samples: Samples, targets: Sequence[Target], background: int) -> tuple[list[Tensor], list[Tensor]]:
    """Proposals of each image that hit an object, in random order: boxes, and rows among the batch's masks."""
    boxes, which = [], []
    first = row = 0
    for proposals, target in zip(samples.boxes, targets, strict=True):
        here = slice(row, row + len(proposals))
        hit = (samples.labels[here] < background).nonzero().squeeze(1)
        hit = hit[torch.randperm(len(hit), device=hit.device)]
        boxes.append(proposals[hit])
        which.append(first + samples.matched[here][hit])
        first, row = first + len(target.labels), here.stop
    return boxes, which
