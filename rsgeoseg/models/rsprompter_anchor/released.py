"""The released code's last step: from mask logits to masks of an image that was resized for the encoder.

Source: KyanChen/RSPrompter, ``SAMPromptMaskHead`` (2023) and ``RSPrompterAnchorMaskHead`` (2024, f4e73c3). 2023: mask
probabilities are resized once, to the image. 2024: to the padded square, cut to the image's part, resized again. Our
own path (``segmenter``) resizes logits, once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

if TYPE_CHECKING:
    from torch import Tensor

    from rsgeoseg.backbones.fitted import Fit
    from rsgeoseg.models.rsprompter_anchor.config import Generation


def released_masks(logits: Tensor, fit: Fit, generation: Generation) -> Tensor:
    """Resize masks to the image: True where the probability is at least one half.

    Args:
        logits: (N, side/4, side/4) of SAM's decoder.
        fit: how the image was resized.
        generation: whose steps.

    Returns:
        (N, h, w) bool, of the image.
    """
    probability = logits[:, None].float().sigmoid()
    if generation == "2024":
        square = (fit.side, fit.side)
        h, w = fit.cut
        probability = F.interpolate(probability, size=square, mode="bilinear", align_corners=False)[..., :h, :w]
    return F.interpolate(probability, size=fit.original, mode="bilinear", align_corners=False)[:, 0] >= 0.5
