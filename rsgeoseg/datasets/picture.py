"""Samples as pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_OPACITY = 0.5


def draw_instances(
    sample: dict[str, Any],
    panels: Sequence[tuple[str, str | None, str | None]],
    classes: Sequence[str],
    *,
    show_titles: bool,
    suptitle: str | None,
) -> Figure:
    """Draw the image of a sample once per panel, with the masks under the panel's keys.

    Args:
        sample: with ``image`` (3, H, W) 0-255.
        panels: (title, key of masks (N, H, W) or None, key of labels (N,) or None).
        classes: names for the legend.
        show_titles: name the panels.
        suptitle: a title over all.
    """
    rgb = np.clip(sample["image"].permute(1, 2, 0).numpy() / 255, 0, 1)
    figure = Figure(figsize=(5 * len(panels), 5), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, mask_key, label_key) in zip(axes, panels, strict=True):
        shown, labels = rgb, np.zeros(0, np.int64)
        if mask_key is not None and label_key is not None:
            labels = sample[label_key].numpy()
            shown = overlay(rgb, sample[mask_key].numpy(), labels)
        axis.imshow(shown)
        axis.axis("off")
        if show_titles:
            axis.set_title(title)
        present = np.unique(labels).tolist()
        if present:
            handles = [Patch(color=_colour(label), label=classes[label]) for label in present]
            axis.legend(handles=handles, loc="lower right", fontsize="small", framealpha=0.8)
    if suptitle is not None:
        figure.suptitle(suptitle)
    return figure


def overlay(rgb: NDArray[Any], masks: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[Any]:
    """Tint objects in their class's colour, each with a full-colour rim so that neighbours can be told apart.

    Args:
        rgb: (H, W, 3) 0-1.
        masks: (N, H, W), nonzero = object.
        labels: (N,).
    """
    out = np.array(rgb, np.float32)
    for mask, label in zip(masks != 0, labels.tolist(), strict=True):
        colour = np.array(_colour(label), np.float32)
        inner = mask.copy()
        inner[1:] &= mask[:-1]
        inner[:-1] &= mask[1:]
        inner[:, 1:] &= mask[:, :-1]
        inner[:, :-1] &= mask[:, 1:]
        out[inner] = (1 - _OPACITY) * out[inner] + _OPACITY * colour
        out[mask & ~inner] = colour
    return out


def _colour(label: int) -> tuple[float, float, float]:
    red, green, blue, _ = colormaps["tab20"](label % 20)
    return red, green, blue
