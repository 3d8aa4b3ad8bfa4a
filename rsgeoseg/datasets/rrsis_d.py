"""RRSIS-D: referring segmentation of 17 402 images of DIOR, 800 x 800 pixels, 20 classes.

Source: Liu et al., Rotated Multi-Scale Interaction Network for Referring Remote Sensing Image Segmentation (CVPR 2024);
train / val / test have 12 181 / 1 740 / 3 481 expressions.
"""

from __future__ import annotations

from typing import ClassVar

from rsgeoseg.datasets.refcoco import RefCocoDataset


class RrsisD(RefCocoDataset):
    """RRSIS-D in the layout of its authors.

    Two defects of the published files:

    - Some images are not 800 x 800 as annotated (09976.jpg is 800 x 801, 15324.jpg 800 x 787) and do not fit their
      masks. They are refused with their names; ``misfits`` leaves them out or stretches their masks. Published figures
      are of all images, with image and mask squeezed to one square each, which is what ``stretch`` reproduces.
    - Only the last expression of each image of DIOR-RSVG got a mask and an entry in the list, so an image has one
      expression even where several things in it were described. The missing ones cannot be had from these files;
      ``without_expression`` counts annotated objects that no entry speaks of.
    """

    FOLDERS: ClassVar[tuple[str, ...]] = ("rrsisd", "rrsis_d", "rsdata")
    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    LAYOUT: ClassVar[str] = """  ROOT/
    images/rrsisd/JPEGImages/00001.jpg ...
    rrsisd/instances.json    COCO instances
    rrsisd/refs(unc).p       expressions and splits
  (the folders may also be called rrsis_d or rsdata)"""
