"""Boxes from deltas as mmdet decodes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torchvision.models.detection._utils import BoxCoder

if TYPE_CHECKING:
    from torch import Tensor


class BoundedCoder(BoxCoder):  # type: ignore[misc]
    """torchvision's coder, with sides bounded below as well: a box is never less than 16/1000 of its anchor's side.

    Source: mmdet ``DeltaXYWHBBoxCoder``, ``wh_ratio_clip``; torchvision bounds sides above only.
    """

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """Decode deltas (R, 4 K) on boxes (R, 4) x0 y0 x1 y1: (R, 4 K)."""
        place, side = torch.split(rel_codes.reshape(len(rel_codes), rel_codes.shape[1] // 4, 4), 2, -1)
        lowest = side.new_tensor(self.weights[2:]) * -self.bbox_xform_clip
        bounded = torch.cat([place, side.maximum(lowest)], -1)
        decoded: Tensor = super().decode_single(bounded.reshape(rel_codes.shape), boxes)
        return decoded
