"""Teach a network to answer prompts: simulated boxes, clicks and earlier masks, and the loss on its answers.

Source: Kirillov et al., "Segment Anything", appendix A (training): boxes with noise of a tenth of their side and at
most 20 pixels; a click anywhere inside; the smallest loss of the three masks of an ambiguous click; the earlier mask
given back with a click where it is wrong; the quality head learns the true IoU by squared error. Three things differ.
Masks are compared at uncertain points (PointRend, as the other methods of this package do) by cross-entropy in place of
the focal loss. Half of the earlier masks are true ones with a part cut off or something added: a network that knows
its pictures makes too few errors of its own to learn from. And clicks beside every object learn a quality of zero, so
that everything mode is quiet where there is nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from rsgeoseg.nn.losses import dice_loss
from rsgeoseg.nn.masks import CELL
from rsgeoseg.nn.points import read_masks, sample_points, uncertain_points

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from rsgeoseg.backbones.promptable import DecodedMasks, PromptableSam, SamScene
    from rsgeoseg.nn.targets import Target


PromptWay = Literal["boxes", "clicks", "masks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLoss:
    """How prompts are simulated and weighed."""

    ways: tuple[PromptWay, ...] = ("boxes", "clicks", "masks")
    """How objects are asked for: by a box, by a click, by the mask that answers a click with another where it is wrong.
    Who will only ever ask in one way need not train the others."""
    objects: int = 16
    """Prompts of each kind per batch; an object is asked for more than once where there are fewer."""
    beside: int = 16
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
    iou_weight: float = 5.0
    """Of the quality head's squared error (SAM: a twentieth of the focal loss; too little for a small network)."""
    spoiled: float = 0.5
    """Share of the earlier masks that are spoiled true ones, the others being the network's own answers to a click."""
    certain: float = 8.0
    """Logit of a spoiled mask."""


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
    answers = []
    if "boxes" in config.ways:
        answers.append(network.decode(scene, objects.image, boxes=_jitter(objects.boxes, config)))
    if "clicks" in config.ways or "masks" in config.ways:
        clicks = _click(objects)
        answers.append(network.decode(scene, objects.image, points=clicks, point_labels=ones, multimask=True))
    if "masks" in config.ways:
        earlier = answers[-1].best().logits.detach()
        answers.append(_refine(network, scene, objects, clicks, earlier, config))
    compared = [_compare(answer, objects, config) for answer in answers]
    mask, dice, iou = (torch.stack(terms).mean() for terms in zip(*compared, strict=True))
    if "clicks" in config.ways:
        iou = iou + _beside(network, scene, targets, config)
    return {"mask": config.mask_weight * mask, "dice": config.dice_weight * dice, "iou": config.iou_weight * iou}


def _choose(targets: Sequence[Target], scene: SamScene, most: int) -> _Objects:
    """Choose ``most`` objects of the batch, some of them again where there are fewer; none where there is none."""
    device = scene.device
    counts = [len(target.labels) for target in targets]
    rounds = -(-most // sum(counts)) if sum(counts) else 0
    shuffled = [torch.randperm(sum(counts), device=device) for _ in range(rounds)]
    which = torch.cat(shuffled)[:most] if shuffled else torch.zeros(0, dtype=torch.int64, device=device)
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


def _refine(
    network: PromptableSam, scene: SamScene, objects: _Objects, clicks: Tensor, answers: Tensor, config: PromptLoss
) -> DecodedMasks:
    """Give earlier masks back with a click where they are wrong, in half of the cases after the first click.

    Args:
        network: with ``decode``.
        scene: B images.
        objects: P that are asked for.
        clicks: (P, 1, 2) the first ones.
        answers: (P, 1, H/4, W/4) logits that the network gave to them.
        config: how prompts are simulated.
    """
    truth = _small(objects.masks[objects.which], answers.shape[-2:])
    spoil = torch.rand(len(clicks), device=clicks.device) < config.spoiled
    earlier = torch.where(spoil[:, None, None], (2.0 * _spoiled(truth) - 1) * config.certain, answers.squeeze(1))
    wrong = [_correction(*given) for given in zip(earlier > 0, truth, strict=True)]
    points, labels = clicks.repeat(1, 2, 1), torch.ones(len(clicks), 2, dtype=torch.int64, device=clicks.device)
    for row, (place, label) in enumerate(wrong):
        points[row, 1], labels[row, 1] = place, label
    labels[torch.rand(len(clicks), device=clicks.device) < 0.5, 0] = -1  # the earlier mask is all that tells of it
    return network.decode(scene, objects.image, points=points, point_labels=labels, masks=earlier.unsqueeze(1))


def _small(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Masks (N, H, W) at the resolution of the answers, bool."""
    return F.interpolate(masks.unsqueeze(1).float(), size=list(size), mode="area").squeeze(1) >= 0.5


def _spoiled(truth: Tensor) -> Tensor:
    """Cut masks (P, h, w) bool by a line through their middle, or let them grow on one side of it; half of them each.

    The line stands at a random angle, off the middle by at most a third of the mask's size. An empty mask stays so.
    """
    count, h, w = truth.shape
    ys, xs = torch.arange(h, device=truth.device)[:, None], torch.arange(w, device=truth.device)[None, :]
    area = truth.flatten(1).sum(1).clamp(min=1)
    middle_y, middle_x = ((truth * axis).flatten(1).sum(1) / area for axis in (ys, xs))
    angle = 2 * torch.pi * torch.rand(count, device=truth.device)
    shift = (torch.rand(count, device=truth.device) - 0.5) * area.sqrt() * 2 / 3
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    along = (xs - middle_x[:, None, None]) * cos + (ys - middle_y[:, None, None]) * sin - shift[:, None, None]
    cut = truth & (along > 0)
    grown = F.max_pool2d(truth.float().unsqueeze(1), 5, stride=1, padding=2).squeeze(1) > 0
    return torch.where(torch.rand(count, device=truth.device)[:, None, None] < 0.5, cut, cut | grown & (along <= 0))


def _correction(earlier: Tensor, truth: Tensor) -> tuple[Tensor, int]:
    """Choose a cell where two masks (h, w) bool differ: its middle x y (2,) in pixels, and 1 where the truth has it.

    Where they are the same it is a cell of the truth; without any, the corner of the image, which has no object.
    """
    places = (earlier ^ truth).nonzero()
    if not len(places):
        places = truth.nonzero()
    if not len(places):
        return truth.new_zeros(2, dtype=torch.float32), 0
    y, x = places[torch.randint(len(places), ())].tolist()
    middle = torch.tensor([x, y], dtype=torch.float32, device=truth.device) * CELL + (CELL - 1) / 2
    return middle, int(truth[y, x])


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
    truth, found = _small(masks, logits.shape[-2:]), logits > 0
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
