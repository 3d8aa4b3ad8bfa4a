"""The released code's last step, number by number: for weights trained with it, and for comparing with it.

Source: KyanChen/RSPrompter branch release, commit f4e73c3, ``RSMaskFormerFusionHead.predict`` and
``instance_postprocess``. Our own path (``segmenter``) differs on purpose: chips are never resized, so nothing is
cropped a row short, logits are resampled once, and pairs are chosen by their score.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

if TYPE_CHECKING:
    from torch import Tensor

    from rsgeoseg.backbones.fitted import Fit


def released_pairs(class_logits: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the most probable pairs of query and class, before any mask is looked at.

    Args:
        class_logits: (Q, C + 1), background last.
        most: number of pairs.

    Returns:
        Query (N,) int64, class (N,) int64, and class probability (N,) float32.
    """
    probability = class_logits.float().softmax(-1)[:, :-1]
    best = probability.flatten().topk(min(most, probability.numel()))
    classes = probability.shape[1]
    return best.indices // classes, best.indices % classes, best.values


def released_masks(logits: Tensor, fit: Fit) -> tuple[Tensor, Tensor]:
    """Resize masks to the padded square, cut them to the image's part, and resize them to the image.

    Args:
        logits: (N, side/4, side/4) of SAM's decoder.
        fit: how the image was resized.

    Returns:
        Masks (N, h, w) bool of the image, True where logits are positive; and the mean probability of those pixels,
        (N,) float32, 0 where there are none.
    """
    h, w = fit.cut
    square = (fit.side, fit.side)
    resized = F.interpolate(logits[:, None].float(), size=square, mode="bilinear", align_corners=False)[..., :h, :w]
    resized = F.interpolate(resized, size=fit.original, mode="bilinear", align_corners=False)[:, 0]
    masks = resized > 0
    return masks, (resized.sigmoid() * masks).flatten(1).sum(1) / (masks.flatten(1).sum(1) + 1e-6)
