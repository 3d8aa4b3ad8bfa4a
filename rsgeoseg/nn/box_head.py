"""The second stage of a two-stage detector: classes and refined boxes of proposals.

Source: Fast R-CNN; sizes and constants of mmdet ``Shared2FCBBoxHead`` as KyanChen/RSPrompter uses it (f4e73c3):
class-specific boxes, deltas divided by .1 .1 .2 .2, background last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image

from rsgeoseg.nn.box_coder import BoundedCoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rsgeoseg.nn.targets import Target

_CODER = BoundedCoder(weights=(10.0, 10.0, 5.0, 5.0))


class BoxHead(nn.Module):
    """Two fully connected layers, then a class and one box per class.

    Args:
        channels: of the RoI features.
        size: their side.
        classes: number of classes C without background.
        hidden: width of the layers.
    """

    def __init__(self, channels: int, size: int, classes: int, hidden: int = 1024) -> None:
        super().__init__()
        layers = [nn.Linear(channels * size * size, hidden), nn.Linear(hidden, hidden)]
        self.shared_fcs = nn.ModuleList(layers)
        self.fc_cls = nn.Linear(hidden, classes + 1)
        self.fc_reg = nn.Linear(hidden, 4 * classes)
        for layer in layers:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer, std in ((self.fc_cls, 0.01), (self.fc_reg, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Turn (R, channels, size, size) into class logits (R, C + 1) and deltas (R, 4 C), float32."""
        x = features.flatten(1)
        for layer in self.shared_fcs:
            x = layer(x).relu()
        return self.fc_cls(x).float(), self.fc_reg(x).float()


@dataclass(frozen=True, slots=True)
class Samples:
    """Proposals chosen for the loss, S in all, images in a row."""

    boxes: list[Tensor]
    """(S_i, 4) per image, x0 y0 x1 y1 pixels."""
    labels: Tensor
    """(S,) int64, C = background."""
    matched: Tensor
    """(S,) int64, index among the image's objects; 0 where background."""
    image: Tensor
    """(S,) int64."""
    targets: Tensor
    """(S, 4) box of the matched object; zeros where background."""


@torch.no_grad()
def sample_proposals(
    proposals: Sequence[Tensor], targets: Sequence[Target], *, background: int, samples: int = 256
) -> Samples:
    """Choose proposals for the loss; objects' own boxes are added to them first.

    Source: IoU .5, a quarter positive (Faster R-CNN; KyanChen/RSPrompter f4e73c3).

    Args:
        proposals: (R_i, 4) per image.
        targets: one per image.
        background: label of background.
        samples: most per image.
    """
    matcher, sampler = Matcher(0.5, 0.5), BalancedPositiveNegativeSampler(samples, 0.25)
    columns: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for given, target in zip(proposals, targets, strict=True):
        boxes = torch.cat([target.boxes, given])
        if len(target.labels):
            matched = matcher(box_iou(target.boxes, boxes))
        else:
            matched = torch.full((len(boxes),), -1, device=boxes.device)
        positive, negative = sampler([(matched >= 0).long()])
        chosen = torch.cat([positive[0].nonzero(), negative[0].nonzero()]).squeeze(1)
        matched = matched[chosen]
        labels, wanted = torch.full_like(matched, background), boxes.new_zeros((len(chosen), 4))
        hit = matched >= 0
        labels[hit], wanted[hit] = target.labels[matched[hit]], target.boxes[matched[hit]]
        columns.append((boxes[chosen], labels, matched.clamp(min=0), wanted))
    image = [torch.full_like(column[1], index) for index, column in enumerate(columns)]
    return Samples(
        boxes=[column[0] for column in columns],
        labels=torch.cat([column[1] for column in columns]),
        matched=torch.cat([column[2] for column in columns]),
        image=torch.cat(image),
        targets=torch.cat([column[3] for column in columns]),
    )


def box_losses(class_logits: Tensor, deltas: Tensor, samples: Samples) -> dict[str, Tensor]:
    """Compute cross-entropy of the class and smooth L1 (beta 1) of the boxes, both averaged over all samples."""
    background = class_logits.shape[1] - 1
    positive = (samples.labels < background).nonzero().squeeze(1)
    wanted = _CODER.encode_single(samples.targets[positive], torch.cat(samples.boxes)[positive])
    given = deltas.view(len(deltas), deltas.shape[1] // 4, 4)[positive, samples.labels[positive]]
    return {
        "class": F.cross_entropy(class_logits, samples.labels) if len(samples.labels) else class_logits.sum(),
        "box": F.smooth_l1_loss(given, wanted, reduction="sum") / max(len(samples.labels), 1),
    }


def decode_boxes(deltas: Tensor, proposals: Tensor, size: tuple[int, int]) -> Tensor:
    """Refine proposals.

    Args:
        deltas: (R, 4 C).
        proposals: (R, 4) x0 y0 x1 y1 pixels.
        size: h, w that boxes are clipped to.

    Returns:
        (R, C, 4) x0 y0 x1 y1 pixels.
    """
    boxes: Tensor = _CODER.decode_single(deltas, proposals).view(len(deltas), deltas.shape[1] // 4, 4)
    clipped: Tensor = clip_boxes_to_image(boxes.reshape(-1, 4), size)
    return clipped.view_as(boxes)


@dataclass(frozen=True, slots=True)
class Detections:
    """Boxes of one image, N of them, best first."""

    boxes: Tensor
    """(N, 4) x0 y0 x1 y1 pixels."""
    scores: Tensor
    """(N,) class probability."""
    labels: Tensor
    """(N,) int64."""


def detect(
    class_logits: Tensor,
    deltas: Tensor,
    proposals: Tensor,
    size: tuple[int, int],
    *,
    score_threshold: float = 0.05,
    nms: float = 0.5,
    most: int = 100,
    flat: bool = False,
) -> Detections:
    """Turn one image's proposals into detections: threshold, class-wise NMS, the best ``most``.

    Args:
        class_logits: (R, C + 1), background last.
        deltas: (R, 4 C).
        proposals: (R, 4) pixels.
        size: h, w that boxes are clipped to.
        score_threshold: pairs of box and class must score higher.
        nms: largest IoU of two boxes of a class.
        most: most detections.
        flat: boxes that clipping left without an area take part, as in mmdet.
    """
    probability = class_logits.softmax(-1)[:, :-1]
    boxes = decode_boxes(deltas, proposals, size)
    row, label = (probability > score_threshold).nonzero(as_tuple=True)
    candidates, scores = boxes[row, label], probability[row, label]
    if not flat:
        solid = ((candidates[:, 2:] - candidates[:, :2]) > 0).all(1)
        candidates, scores, label = candidates[solid], scores[solid], label[solid]
    kept = batched_nms(candidates, scores, label, nms)[:most]
    return Detections(candidates[kept], scores[kept], label[kept])
