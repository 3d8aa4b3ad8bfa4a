"""Mask R-CNN's mask branch: a small mask per class from the features inside a box, and its place in the image.

Source: He et al., Mask R-CNN, Fig. 4 right; mmdet ``FCNMaskHead`` as KyanChen/RSPrompter configures it (f4e73c3,
``samseg-maskrcnn.py``): four convolutions, 28 x 28, one mask per class, threshold one half.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from rsgeoseg.nn.coarse_masks import masks_in_boxes
from rsgeoseg.nn.masks import tight

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rsgeoseg.nn.box_head import Samples
    from rsgeoseg.nn.targets import Target

NOTHING = (0, 0, 1, 1), np.zeros((1, 1), np.bool_)
"""Box and mask of a mask without pixels."""


class MaskHead(nn.Module):
    """Convolutions, one upsampling, one mask per class.

    Args:
        channels: of the RoI features and inside.
        classes: number of classes C without background.
        layers: number of 3x3 convolutions.
    """

    def __init__(self, channels: int, classes: int, layers: int = 4) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(layers))
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.conv_logits = nn.Conv2d(channels, classes, 1)
        for layer in (*self.convs, self.upsample, self.conv_logits):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Turn (R, channels, s, s) into mask logits (R, C, 2 s, 2 s), float32."""
        x = features
        for conv in self.convs:
            x = conv(x).relu()
        logits: Tensor = self.conv_logits(self.upsample(x).relu())
        return logits.float()


def positive_boxes(samples: Samples, background: int) -> list[Tensor]:
    """Pick the sampled proposals that hit an object: (P_i, 4) per image, the order of :func:`mask_loss`."""
    hits = torch.split(samples.labels < background, [len(boxes) for boxes in samples.boxes])
    return [boxes[hit] for boxes, hit in zip(samples.boxes, hits, strict=True)]


def mask_loss(logits: Tensor, samples: Samples, targets: Sequence[Target]) -> Tensor:
    """Compute the binary cross-entropy of the true class's mask, averaged over pixels and positive proposals.

    Args:
        logits: (P, C, s, s) of :func:`positive_boxes`, images in a row.
        samples: what the box head was trained on.
        targets: one per image.

    Returns:
        Scalar; zero, with gradients, where no proposal hit an object.
    """
    hit = (samples.labels < logits.shape[1]).nonzero().squeeze(1)
    if not len(hit):
        return logits.sum() * 0
    first = torch.tensor([0, *(len(target.labels) for target in targets[:-1])], device=logits.device).cumsum(0)
    which = first[samples.image[hit]] + samples.matched[hit]
    masks = torch.cat([target.masks for target in targets])
    truth = masks_in_boxes(masks, which, torch.cat(samples.boxes)[hit], logits.shape[-1])
    chosen = logits[torch.arange(len(hit), device=logits.device), samples.labels[hit]]
    return F.binary_cross_entropy_with_logits(chosen, truth)


def paste_mask(
    probability: NDArray[np.float32], box: NDArray[np.float32], valid: NDArray[np.bool_]
) -> tuple[tuple[int, int, int, int], NDArray[np.bool_]]:
    """Put the mask of a box into the image: bilinear at pixel centres, at least one half.

    The mask's samples lie at the centres of s x s equal parts of the box and are zero outside it, as in mmdet's
    ``_do_paste_mask``. Bilinear interpolation is a matrix of weights from either side, so only the pixels under the
    box are computed; those outside it stay below one half.

    Args:
        probability: (s, s).
        box: x0 y0 x1 y1 pixels, any fraction.
        valid: (h, w) of the chip.

    Returns:
        Tight box x0 y0 x1 y1 in whole pixels and the mask inside it; ``NOTHING`` where no valid pixel is left.
    """
    h, w = valid.shape
    x0, y0 = max(int(np.floor(box[0])), 0), max(int(np.floor(box[1])), 0)
    x1, y1 = min(int(np.ceil(box[2])), w), min(int(np.ceil(box[3])), h)
    if x0 >= x1 or y0 >= y1:
        return NOTHING
    size = len(probability)
    rows, columns = _weights(y0, y1, box[1], box[3], size), _weights(x0, x1, box[0], box[2], size)
    mask = (rows @ probability @ columns.T >= 0.5) & valid[y0:y1, x0:x1]
    if not mask.any():
        return NOTHING
    return tight(mask, (x0, y0))


def _weights(start: int, stop: int, low: float, high: float, size: int) -> NDArray[np.float32]:
    """Weight of every sample between ``low`` and ``high`` at every pixel of one axis, (stop - start, size)."""
    at = (np.arange(start, stop) + 0.5 - low) * (size / max(high - low, 1e-6)) - 0.5
    weights: NDArray[np.float32] = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(size))).astype(np.float32)
    return weights
