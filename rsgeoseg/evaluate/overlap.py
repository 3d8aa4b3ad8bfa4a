"""Pixels that two masks share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rsgeoseg.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def as_mask(values: NDArray[Any], what: str) -> NDArray[np.bool_]:
    """Take an array as a mask.

    Args:
        values: (H, W) bool or integer, nonzero = object.
        what: its name in messages.

    Raises:
        UsageError: it is not (H, W), or holds floats: a probability above zero is not yet an object.
    """
    values = np.asarray(values)
    if values.ndim != 2:
        msg = f"the {what} mask has shape {values.shape}; give one mask (H, W)"
        raise UsageError(msg)
    if values.dtype.kind not in "bui":
        msg = f"the {what} mask holds {values.dtype}; compare it with its threshold first and give bool"
        raise UsageError(msg)
    return np.asarray(values != 0, np.bool_)


def as_mask_pair(predicted: NDArray[Any], truth: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Take two arrays as masks of one image.

    Args:
        predicted: (H, W) bool or integer, nonzero = object.
        truth: likewise.

    Raises:
        UsageError: one is no mask, or their sizes differ.
    """
    found, true = as_mask(predicted, "predicted"), as_mask(truth, "true")
    if found.shape != true.shape:
        sizes = f"{found.shape[1]} x {found.shape[0]} and the true one {true.shape[1]} x {true.shape[0]}"
        msg = f"the predicted mask is {sizes} pixels; bring the prediction to the size of its truth"
        raise UsageError(msg)
    return found, true


def count_overlap(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> tuple[int, int]:
    """Count the pixels of the intersection and of the union of two masks (H, W)."""
    intersection = int(np.count_nonzero(predicted & truth))
    return intersection, int(np.count_nonzero(predicted)) + int(np.count_nonzero(truth)) - intersection
