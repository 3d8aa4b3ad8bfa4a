"""Referring segmentation from files: two folders of mask pictures with equal names, the truth and the result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from rsgeoseg.errors import UsageError
from rsgeoseg.evaluate.referring import ReferringScore

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from rsgeoseg.evaluate.referring import ReferringResult

_KINDS = (".png", ".tif", ".tiff", ".bmp")


def score_mask_folders(truth: Path, result: Path) -> ReferringResult:
    """Score every mask of a folder against the one of the same name, one per expression.

    Args:
        truth: folder of true masks: lossless pictures, nonzero = object.
        result: folder of found masks.

    Raises:
        UsageError: a folder is missing or has no masks, a name is in one folder only, or sizes differ.
    """
    true, found = _masks(truth), _masks(result)
    for some, others, where in ((true, found, result), (found, true, truth)):
        alone = sorted(set(some) - set(others))
        if alone:
            first = ", ".join(alone[:3]) + (", ..." if len(alone) > 3 else "")
            msg = f"{where}: {len(alone)} of {len(some)} masks are missing: {first}; nothing found is a black mask"
            raise UsageError(msg)
    score = ReferringScore()
    for name, path in true.items():
        try:
            score.add(read_mask(found[name]), read_mask(path))
        except UsageError as error:
            msg = f"{name}: {error}"
            raise UsageError(msg) from error
    return score.result()


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Read a mask picture, (H, W) bool: True where any colour is not 0; transparency does not count.

    Raises:
        UsageError: it cannot be read as a picture.
    """
    try:
        with Image.open(path) as picture:
            values: NDArray[Any] = np.asarray(picture)
            bands = picture.getbands()
    except (OSError, UnidentifiedImageError) as error:
        msg = f"{path}: cannot be read as a mask; give a PNG"
        raise UsageError(msg) from error
    if values.ndim == 2:
        return np.asarray(values != 0, np.bool_)
    colours = [i for i, band in enumerate(bands) if band != "A"]
    return np.asarray((values[..., colours] != 0).any(axis=2), np.bool_)


def _masks(folder: Path) -> dict[str, Path]:
    """Mask pictures of a folder by name without extension."""
    if not folder.is_dir():
        msg = f"{folder}: no such folder; give a folder of masks"
        raise UsageError(msg)
    masks = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in _KINDS}
    if not masks:
        msg = f"{folder} has no masks; give PNG files, nonzero = object"
        raise UsageError(msg)
    return masks
