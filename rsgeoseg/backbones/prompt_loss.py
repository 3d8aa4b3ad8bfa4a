"""Teach a network to answer prompts: simulated boxes, clicks and earlier masks, and the loss on its answers.

Source: Kirillov et al., "Segment Anything", appendix A (training): boxes with noise of a tenth of their side and at
most 20 pixels; a click anywhere inside; the smallest loss of the three masks of an ambiguous click; the earlier mask
given back with another click; the quality head learns the true IoU by squared error. Here masks are compared at
uncertain points (PointRend, as the other methods of this package do) by cross-entropy in place of the focal loss, and
clicks beside every object learn a quality of zero, so that everything mode is quiet where there is nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from rsgeoseg.nn.losses import dice_loss
from rsgeoseg.nn.points import read_masks, sample_points, uncertain_points

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from rsgeoseg.backbones.promptable import DecodedMasks, PromptableSam, SamScene
    from rsgeoseg.nn.targets import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLoss:
    """How prompts are simulated and weighed."""

    objects: int = 16
    """Objects per batch that are asked for with each kind of prompt."""
    beside: int = 8
    """Clicks per batch on no object."""
    points: int = 1024
    """Points at which a mask is compared."""
    jitter: float = 0.1
    """Noise of a box's sides: standard deviation as a share of the box's size."""
    most_jitter: float = 20.0
    """Largest noise, pixels."""
    mask_weight: float = 5.0
    """Of the cross-entropy."""
    dice_weight: float = 5.0
    """Of the dice loss."""
    iou_weight: float = 1.0
    """Of the quality head's squared error."""


@dataclass(frozen=True, slots=True)
class _Objects:
    """Objects that are asked for."""

    image: Tensor
    """(P,) int64."""
    boxes: Tensor
    """(P, 4)."""
    masks: Tensor
    """(M, H, W) uint8 of the whole batch, padded as the images are."""
    which: Tensor
    """(P,) int64 rows of ``masks``."""


def prompt_losses(
    network: PromptableSam, scene: SamScene, targets: Sequence[Target], config: PromptLoss
) -> dict[str, Tensor]:
    """Ask for objects in the ways that users do, and compare the answers with the truth.

    Args:
        network: with ``decode``.
        scene: B images.
        targets: B.
        config: how prompts are simulated and weighed.

    Returns:
        ``mask``, ``dice`` and ``iou``, weighed; zeros with gradients where no image shows an object.
    """
    objects = _choose(targets, scene, config.objects)
    ones = torch.ones(len(objects.which), 1, dtype=torch.int64, device=scene.device)
    boxed = network.decode(scene, objects.image, boxes=_jitter(objects.boxes, config))
    clicked = network.decode(scene, objects.image, points=_click(objects), point_labels=ones, multimask=True)
    again = network.decode(scene, objects.image, points=_click(objects), point_labels=ones, masks=boxed.logits.detach())
    compared = [_compare(answer, objects, config) for answer in (boxed, clicked, again)]
    mask, dice, iou = (torch.stack(terms).mean() for terms in zip(*compared, strict=True))
    return {
        "mask": config.mask_weight * mask,
        "dice": config.dice_weight * dice,
        "iou": config.iou_weight * (iou + _beside(network, scene, targets, config)),
    }


def _choose(targets: Sequence[Target], scene: SamScene, most: int) -> _Objects:
    """Choose at most ``most`` objects of the batch."""
    device = scene.device
    counts = [len(target.labels) for target in targets]
    which = torch.randperm(sum(counts), device=device)[:most]
    image = torch.arange(len(counts), device=device).repeat_interleave(torch.tensor(counts, device=device))
    boxes, masks = torch.cat([t.boxes for t in targets]), torch.cat([t.masks for t in targets])
    padded = F.pad(masks, (0, scene.size[1] - masks.shape[2], 0, scene.size[0] - masks.shape[1]))
    return _Objects(image[which], boxes[which], padded, which)


def _jitter(boxes: Tensor, config: PromptLoss) -> Tensor:
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    noise = (torch.randn_like(boxes) * config.jitter * sides).clamp(-config.most_jitter, config.most_jitter)
    return boxes + torch.minimum(noise.abs(), 0.4 * sides) * noise.sign()  # a side never passes the other one


def _click(objects: _Objects) -> Tensor:
    """Choose a pixel inside each object: (P, 1, 2) x y."""
    clicks = [_pixel(objects.masks[row] > 0) for row in objects.which.tolist()]
    return torch.stack(clicks) if clicks else objects.boxes.new_zeros(0, 1, 2)


def _pixel(mask: Tensor) -> Tensor:
    """Choose a pixel of a mask (H, W): (1, 2) x y float."""
    inside = mask.nonzero()
    return inside[torch.randint(len(inside), (1,), device=mask.device)].flip(-1).float()


def _compare(answer: DecodedMasks, objects: _Objects, config: PromptLoss) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy and dice of each prompt's best mask, and the quality head's squared error, averaged."""
    prompts, several = answer.iou.shape
    if not prompts:
        nothing = 0.0 * (answer.logits.sum() + answer.iou.sum())
        return nothing, nothing, nothing
    logits = answer.logits.flatten(0, 1)
    rows = objects.which.repeat_interleave(several)
    points = uncertain_points(logits, config.points, generator=None)
    said, truth = sample_points(logits, points), read_masks(objects.masks, rows, points)
    entropy = F.binary_cross_entropy_with_logits(said, truth, reduction="none").mean(-1).view(prompts, several)
    dice = dice_loss(said, truth).view(prompts, several)
    best = (config.mask_weight * entropy + config.dice_weight * dice).argmin(1, keepdim=True)
    right = _iou(logits.detach(), objects.masks[rows]).view(prompts, several)
    return entropy.gather(1, best).mean(), dice.gather(1, best).mean(), F.mse_loss(answer.iou, right)


def _iou(logits: Tensor, masks: Tensor) -> Tensor:
    """True IoU of masks drawn from logits (N, H/4, W/4) with masks (N, H, W), measured at the logits' resolution."""
    truth = F.interpolate(masks.unsqueeze(1).float(), size=logits.shape[-2:], mode="area").squeeze(1) >= 0.5
    found = logits > 0
    both, either = (found & truth).flatten(1).sum(1), (found | truth).flatten(1).sum(1)
    return both / either.clamp(min=1)


def _beside(network: PromptableSam, scene: SamScene, targets: Sequence[Target], config: PromptLoss) -> Tensor:
    """Squared quality of the answers to clicks on no object."""
    images, clicks = [], []
    for number in torch.randint(len(targets), (config.beside,)).tolist():
        free = ~(targets[number].masks > 0).any(0)
        if free.any():
            images.append(number)
            clicks.append(_pixel(free))
    if not clicks:
        return scene.embedding.sum() * 0.0
    labels = torch.ones(len(clicks), 1, dtype=torch.int64, device=scene.device)
    image = torch.tensor(images, device=scene.device)
    attended = network.attend(scene, image, points=torch.stack(clicks), point_labels=labels)
    return network.sam.qualities(attended.tokens).square().mean()
