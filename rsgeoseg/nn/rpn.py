"""Region proposals: torchvision's network with the anchors and losses of the authors' framework.

torchvision rounds its anchors and uses a sharper smooth L1; weights trained with mmdet (2023 and 2024 releases of
RSPrompter) want unrounded anchors on exact strides, and their recipes a smooth L1 of beta 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from rsgeoseg.nn.box_coder import BoundedCoder
from rsgeoseg.nn.steady import PointwiseConv2d, SteadyConv2d

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rsgeoseg.nn.targets import Target


class GridAnchors(nn.Module):
    """Anchors centred on the upper-left corner of every cell, without rounding.

    Source: mmdet ``AnchorGenerator`` with ``center_offset=0``; ratio-major order.

    Args:
        strides: pixels per cell of each level.
        scales: side of an anchor of ratio 1, in cells.
        ratios: height to width.
    """

    def __init__(self, strides: Sequence[int], scales: Sequence[float], ratios: Sequence[float]) -> None:
        super().__init__()
        self.strides = tuple(strides)
        root = torch.tensor(ratios).sqrt()
        for level, stride in enumerate(strides):
            sides = torch.tensor(scales) * stride
            half_w, half_h = (1 / root[:, None] * sides).flatten() / 2, (root[:, None] * sides).flatten() / 2
            self.register_buffer(f"cell{level}", torch.stack([-half_w, -half_h, half_w, half_h], 1), persistent=False)

    def forward(self, images: ImageList, maps: list[Tensor]) -> list[Tensor]:
        """Give the anchors (A, 4) x0 y0 x1 y1 of each image, all levels in a row."""
        parts = []
        for level, (stride, x) in enumerate(zip(self.strides, maps, strict=True)):
            h, w = x.shape[-2:]
            ys = torch.arange(h, device=x.device) * stride
            xs = torch.arange(w, device=x.device) * stride
            corner = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1).reshape(-1, 1, 2)
            parts.append((corner.repeat(1, 1, 2) + getattr(self, f"cell{level}")).reshape(-1, 4))
        return [torch.cat(parts)] * len(images.image_sizes)


class _Head(RPNHead):  # type: ignore[misc]
    """torchvision's head with float32 results: boxes in bfloat16 would be off by pixels."""

    def __init__(self, channels: int, anchors: int) -> None:
        super().__init__(channels, anchors)
        self.conv[0][0] = SteadyConv2d.of(self.conv[0][0])
        for name in ("cls_logits", "bbox_pred"):
            setattr(self, name, PointwiseConv2d.of(getattr(self, name)))

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(x)
        return [y.float() for y in logits], [y.float() for y in deltas]


class Rpn(RegionProposalNetwork):  # type: ignore[misc]
    """Proposals and their loss; build it with :func:`build_rpn`."""

    def propose(
        self, maps: Sequence[Tensor], size: tuple[int, int], targets: Sequence[Target] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Propose boxes.

        Args:
            maps: (B, C, h, w) per level.
            size: h, w of the images in pixels; proposals are clipped to it.
            targets: one per image while training.

        Returns:
            Per image (R, 4) x0 y0 x1 y1 in pixels, best first, and the loss terms (none in evaluation mode).
        """
        batch = maps[0].shape[0]
        boxes, losses = self(
            ImageList(maps[0], [size] * batch),
            {str(level): x for level, x in enumerate(maps)},
            None if targets is None else [{"boxes": target.boxes} for target in targets],
        )
        names = {"loss_objectness": "rpn_class", "loss_rpn_box_reg": "rpn_box"}
        return boxes, {names[name]: value for name, value in losses.items()}

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Compute cross-entropy and smooth L1 (beta 1) over sampled anchors."""
        positive, negative = (torch.cat(chosen) > 0 for chosen in self.fg_bg_sampler(labels))
        sampled = positive | negative
        count = sampled.sum().clamp(min=1)
        truth, wanted = torch.cat(labels), torch.cat(regression_targets)
        box_loss = F.smooth_l1_loss(pred_bbox_deltas[positive], wanted[positive], reduction="sum") / count
        class_loss = F.binary_cross_entropy_with_logits(objectness.flatten()[sampled], truth[sampled])
        return class_loss, box_loss


def build_rpn(
    channels: int,
    *,
    strides: Sequence[int],
    scales: Sequence[float],
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
    samples: int = 256,
    before_nms: tuple[int, int] = (2000, 1000),
    after_nms: tuple[int, int] = (1000, 1000),
) -> Rpn:
    """Build the proposal network.

    Source: constants of KyanChen/RSPrompter f4e73c3, ``rsprompter_anchor.py`` (assign .7/.3, NMS .7, half positive).

    Args:
        channels: of every map.
        strides: pixels per cell of each level.
        scales: sides of anchors in cells.
        ratios: height to width.
        samples: anchors per image in the loss.
        before_nms: candidates per level, training and testing.
        after_nms: proposals per image, training and testing.
    """
    rpn = Rpn(
        GridAnchors(strides, scales, ratios),
        _Head(channels, len(scales) * len(ratios)),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=samples,
        positive_fraction=0.5,
        pre_nms_top_n={"training": before_nms[0], "testing": before_nms[1]},
        post_nms_top_n={"training": after_nms[0], "testing": after_nms[1]},
        nms_thresh=0.7,
    )
    rpn.box_coder = BoundedCoder((1.0, 1.0, 1.0, 1.0))
    return rpn
