"""RRSIS-M: referring segmentation of 5 465 images, 800 x 800 pixels, 20 classes, masks drawn by hand.

Source: PSLG-SAM (Li et al., 2025), section 4.1: 4 361 images for training and 1 104 for testing.
"""

from __future__ import annotations

from typing import ClassVar

from rsgeoseg.datasets.refcoco import RefCocoDataset


class RrsisM(RefCocoDataset):
    """RRSIS-M in RefCOCO's format.

    The paper says that the annotations come in RefCOCO's format and as pairs of mask and image, and names no files. We
    assume the files of RRSIS-D, which is in the same format; a copy that looks different is refused with the layout
    below. The pairs of mask and image hold no expressions and are not read.
    """

    FOLDERS: ClassVar[tuple[str, ...]] = ("rrsism", "rrsis_m")
    splits: ClassVar[tuple[str, ...]] = ("train", "test")
    LAYOUT: ClassVar[str] = """  ROOT/
    images/rrsism/JPEGImages/00001.jpg ...
    rrsism/instances.json    COCO instances
    rrsism/refs(unc).p       expressions and splits
  (the folders may also be called rrsis_m; the published layout is not known, this is RRSIS-D's)"""
