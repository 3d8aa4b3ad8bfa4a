"""The released code's last step, number by number: for weights trained with it, and for comparing with it.

Source: KyanChen/RSPrompter branch release, commit f4e73c3, ``RSMaskFormerFusionHead.predict`` and
``instance_postprocess``. Our own path (``segmenter``) differs on purpose: chips are never resized, so nothing is
cropped a row short and logits are resampled once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class ImageInstances:
    """Objects of one image, N of them."""

    scores: NDArray[np.float32]
    """(N,)."""
    labels: NDArray[np.int64]
    """(N,)."""
    boxes: NDArray[np.float32]
    """(N, 4) half-open x0 y0 x1 y1; zeros where the mask is empty."""
    masks: NDArray[np.bool_]
    """(N, H, W) at the original size."""


def released_instances(
    class_logits: Tensor,
    mask_logits: Tensor,
    *,
    padded: int,
    scale: tuple[float, float],
    original: tuple[int, int],
    most: int,
) -> ImageInstances:
    """Turn the last prediction set into instances of an image that was resized and padded.

    Args:
        class_logits: (Q, C + 1), background last.
        mask_logits: (Q, h, w) of SAM's decoder.
        padded: side of the padded network input, pixels.
        scale: width and height of the resized image as multiples of the original's.
        original: height and width of the original image.
        most: number of (query, class) pairs kept.
    """
    probability = class_logits.float().softmax(-1)[:, :-1]
    classes = probability.shape[1]
    best = probability.flatten().topk(min(most, probability.numel()), sorted=False)
    query, labels = best.indices // classes, best.indices % classes
    size = (int(original[0] * scale[1]), int(original[1] * scale[0]))  # truncates: often one row less than was resized
    logits = F.interpolate(mask_logits[:, None].float(), size=(padded, padded), mode="bilinear", align_corners=False)
    logits = logits[:, :, : size[0], : size[1]]
    logits = F.interpolate(logits, size=original, mode="bilinear", align_corners=False)[:, 0][query]
    masks = logits > 0
    quality = (logits.sigmoid() * masks).flatten(1).sum(1) / (masks.flatten(1).sum(1) + 1e-6)
    array = masks.cpu().numpy()
    return ImageInstances(
        scores=(best.values * quality).cpu().numpy().astype(np.float32),
        labels=labels.cpu().numpy().astype(np.int64),
        boxes=np.array([_box(mask) for mask in array], np.float32).reshape(-1, 4),
        masks=array,
    )


def _box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return (0, 0, 0, 0)
    return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
