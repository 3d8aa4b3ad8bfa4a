"""Plots of a report. Needs matplotlib, which the extra ``train`` brings."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from rsgeoseg.errors import UsageError
from rsgeoseg.evaluate.matching import RECALLS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from rsgeoseg.evaluate.confusion import Confusion

_COLUMNS = 4
_MOST_NUMBERS = 30
"""Classes up to which a confusion matrix is drawn with its numbers."""


def check_matplotlib() -> None:
    """Say what to install where matplotlib is missing.

    Raises:
        UsageError: it is.
    """
    if find_spec("matplotlib") is None:
        msg = "a report needs matplotlib, which is not installed: pip install 'rsgeoseg[train]'"
        raise UsageError(msg)


def plot_curves(curves: Mapping[str, Mapping[str, NDArray[np.float64]]]) -> Figure:
    """Draw precision over recall, one panel per class.

    Args:
        curves: by IoU, as it is to be named, then by class: (101,) precision, NaN where the truth has no such object.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  (optional)

    first = next(iter(curves.values()))
    names = [name for name, curve in first.items() if not np.isnan(curve).any()]
    columns = min(_COLUMNS, max(len(names), 1))
    rows = max(-(-len(names) // columns), 1)
    figure = Figure(figsize=(3.2 * columns, 3 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    for axis, name in zip(axes, names, strict=False):
        for label, by_class in curves.items():
            area = float(by_class[name].mean())
            axis.plot(RECALLS, by_class[name], label=f"IoU {label}: {100 * area:.1f}")
        axis.set(title=name, xlim=(0, 1), ylim=(0, 1.02))
        axis.grid(alpha=0.3)
        axis.tick_params(labelbottom=True, labelleft=True)
        axis.legend(loc="lower left", fontsize="small", title="AP", title_fontsize="small")
    figure.supxlabel("recall")
    figure.supylabel("precision")
    return figure


def plot_confusion(confusion: Confusion) -> Figure:
    """Draw a confusion matrix: colours by share of the row, numbers are objects."""
    from matplotlib.figure import Figure  # noqa: PLC0415  (optional)

    counts = confusion.counts
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2.5 + 0.55 * len(counts)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axis = figure.subplots()
    picture = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(counts))
    axis.set_xticks(ticks, [*confusion.classes, "missed"], rotation=60, ha="right")
    axis.set_yticks(ticks, [*confusion.classes, "false alarm"])
    axis.set(xlabel="found", ylabel="true")
    axis.set_title(f"IoU at least {confusion.iou:g}, score at least {confusion.score:g}", fontsize="medium")
    if len(confusion.classes) <= _MOST_NUMBERS:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if share[row, column] > 0.6 else "black"
            if count:
                axis.text(column, row, str(count), ha="center", va="center", color=colour, fontsize="small")
    figure.colorbar(picture, ax=axis, label="share of the row", shrink=0.8)
    return figure
