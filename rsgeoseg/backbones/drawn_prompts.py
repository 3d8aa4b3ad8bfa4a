"""Prompts drawn as maps, for networks that are too small to learn from coordinates alone.

SAM tells its decoder where a prompt is by a Fourier code of its coordinates, and learned on a billion masks to read it.
A small network learns far sooner from a picture of the prompt, as in interactive segmentation (Sofiiuk et al., RITM,
2021: clicks as discs). The picture goes where SAM takes an earlier mask, and what the image shows under it is added to
the tokens that masks and qualities are read from: there is no new parameter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from rsgeoseg.nn.masks import CELL

if TYPE_CHECKING:
    from torch import Tensor

BOX = 4.0
"""Logit inside a box; outside it is the negative."""
CLICK = 8.0
"""Logit at a click on the object; on the background it is the negative."""
CLICK_RADIUS = 8.0
"""Standard deviation of a click's bump, pixels."""


def draw_prompts(
    shape: tuple[int, int], *, points: Tensor | None = None, point_labels: Tensor | None = None, boxes: Tensor | None
) -> Tensor:
    """Draw each prompt as mask logits.

    Args:
        shape: h, w of the maps, in cells of four pixels.
        points: (P, N, 2) x y pixels.
        point_labels: (P, N) 1 = object, 0 = background, -1 = no point.
        boxes: (P, 4) x0 y0 x1 y1 pixels.

    Returns:
        (P, h, w) float32; zero where nothing is said.
    """
    given = boxes if boxes is not None else points
    assert given is not None
    xs = (torch.arange(shape[1], device=given.device) + 0.5) * CELL
    ys = (torch.arange(shape[0], device=given.device) + 0.5) * CELL
    drawn = torch.zeros(len(given), *shape, device=given.device)
    if boxes is not None:
        x0, y0, x1, y1 = boxes.float()[..., None].unbind(1)
        across, down = (xs >= x0) & (xs < x1), (ys >= y0) & (ys < y1)
        drawn = drawn + torch.where(down[:, :, None] & across[:, None, :], BOX, -BOX)
    if points is not None and point_labels is not None:
        sign = torch.where(point_labels > 0, 1.0, -1.0) * (point_labels >= 0)
        x, y = points.float()[..., None].unbind(2)
        across, down = (torch.exp(-(((at - to) / CLICK_RADIUS) ** 2) / 2) for at, to in ((xs, x), (ys, y)))
        drawn = drawn + CLICK * torch.einsum("pn,pnh,pnw->phw", sign, down, across)
    return drawn


def under_prompts(image: Tensor, drawn: Tensor) -> Tensor:
    """Average what an image shows where its prompts say "object".

    Args:
        image: (P, C, h, w) image embedding of each prompt.
        drawn: (P, 4h, 4w) what :func:`draw_prompts` gave.

    Returns:
        (P, C); zeros where no prompt says so.
    """
    weights = F.avg_pool2d(drawn.clamp(min=0).unsqueeze(1), 4).squeeze(1).to(image.dtype)
    shares = weights / weights.sum((1, 2), keepdim=True).clamp(min=1e-6)
    return torch.einsum("phw,pchw->pc", shares, image)
