"""Sizes and options of SAM-cls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rsgeoseg.nn.enhancer import Numerics

Labeller = Literal["resnet18", "clip"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClsConfig:
    """Sizes and options of the network; saved with the weights.

    "Released" below is KyanChen/RSPrompter, branch lightning, ``tools/ins_seg/sam/sam_cls``.
    """

    classes: tuple[str, ...]
    """Class names, background not counted."""
    labeller: Labeller = "resnet18"
    """Who names a mask: a ResNet-18 trained for it, or CLIP without training (paper section III-C2)."""
    crop_side: int = 224
    """Side that the ResNet-18's crops are resized to, pixels; CLIP has its own."""
    clip_folder: str | None = None
    """Folder of a ``CLIPModel`` of transformers; it is read from there whenever the network is built."""
    clip_prompt: str = "an aerial photo of a {class}"
    """Sentence for a class."""
    clip_background: tuple[str, ...] = ("an aerial photo of bare ground", "an aerial photo of vegetation")
    """Sentences for what is no object (not in the paper: CLIP names everything unless something else is on offer)."""
    points_per_side: int = 32
    """Points of everything mode's grid (paper: 32 x 32)."""
    pred_iou: float = 0.5
    """Masks must have a higher predicted IoU (released)."""
    stability: float = 0.6
    """Least stability of a mask (released)."""
    nms: float = 0.5
    """Box IoU above which the mask of lower predicted IoU goes (released)."""
    min_region: int = 16
    """Holes and parts of a mask of fewer pixels are cleaned away (released)."""
    smallest_box: int = 4
    """Masks with a shorter side of the box are left out, pixels (released)."""
    numerics: Numerics = "paper"
    """"paper": a mask has one label, its most probable class, and that probability as score. "released": the softmax
    is taken twice, so that scores lie close together and below 0.5, and the best 100 pairs of mask and class are kept:
    use it with a low score threshold."""
    quality_scores: bool = False
    """Score = class probability x SAM's predicted IoU (the paper's: the first factor)."""
    train_sam: bool = False
    """Train SAM's encoder and decoder along, on simulated prompts (not in the paper, which takes SAM as it is; for one
    from scratch)."""
