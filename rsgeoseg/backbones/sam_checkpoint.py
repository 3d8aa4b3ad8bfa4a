"""Files of SAM as three named groups of tensors, as the segment-anything package divides it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rsgeoseg.errors import WeightsError
from rsgeoseg.weights.foreign import read_foreign, require_backbone

if TYPE_CHECKING:
    from torch import Tensor

_PREFIXES = {
    "image_encoder": "encoder.image_encoder.",
    "prompt_encoder": "sam.prompt_encoder.",
    "mask_decoder": "sam.mask_decoder.",
}


def split_sam_checkpoint(path: Path, backbone: str | None = None) -> dict[str, dict[str, Tensor]]:
    """Read a SAM file and split it into its three networks, without running any code from it.

    Args:
        path: official ``sam_vit_*.pth``, Hugging Face's form of it, or what `rsgeoseg weights convert` made of one.
        backbone: ``sam-vit-b``, ``sam-vit-l`` or ``sam-vit-h`` where only that will do.

    Returns:
        ``image_encoder``, ``prompt_encoder`` and ``mask_decoder``: float32 tensors by name without that prefix, which
        may be mapped from the file.

    Raises:
        WeightsError: the file is missing, damaged, not a SAM file, of another size, or holds values that are not
            finite.
    """
    path = Path(path)
    file = read_foreign(path)
    if file.description["model"] != "sam":
        msg = f"{path}: not a SAM file, it holds {file.description['model']}; use an official one"
        raise WeightsError(msg)
    if backbone is not None:
        require_backbone(file, backbone, path)
    return {
        part: {name.removeprefix(prefix): x for name, x in file.tensors.items() if name.startswith(prefix)}
        for part, prefix in _PREFIXES.items()
    }
