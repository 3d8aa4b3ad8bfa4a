"""The models that can be trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rsgeoseg.models import (
    rsprompter_anchor,
    rsprompter_query,
    sam_cls,
    sam_det,
    sam_seg_mask2former,
    sam_seg_maskrcnn,
)

if TYPE_CHECKING:
    from types import ModuleType

TRAINABLE: dict[str, ModuleType] = {
    module.NAME: module
    for module in (
        rsprompter_query,
        rsprompter_anchor,
        sam_seg_maskrcnn,
        sam_seg_mask2former,
        sam_det,
        sam_cls,
    )
}
"""Each module gives ``default_config``, ``build``, ``segmenter`` and ``describe``."""
