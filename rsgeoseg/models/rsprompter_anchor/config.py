"""Sizes and options of RSPrompter-anchor, and the weights of its loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rsgeoseg.backbones.fitted import Resize
    from rsgeoseg.nn.enhancer import Aggregate, Numerics

Generation = Literal["2023", "2024"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorConfig:
    """Sizes and options of the network; saved with the weights."""

    classes: tuple[str, ...]
    """Class names, background not counted."""
    prompts_per_roi: int = 5
    """K_p, prompt embeddings per box (paper section IV-C: 5)."""
    generation: Generation = "2024"
    """Pyramid and anchors: "2024" as in the paper (strides 4-64), "2023" as in the published weights (8-32)."""
    numerics: Numerics = "paper"
    """Where paper and released code differ: aggregator order, sine rule, decoder norm. "released" also computes in
    float32 on every device, as the authors' tests did."""
    aggregate: Aggregate = "blocks"
    """What the enhancer reads of a plain ViT; "embedding" is what the authors' configs with LoRA have."""
    image_size: int = 1024
    """Side of a SAM encoder's square, which its positions are for, pixels; 512 in the authors' configs with LoRA."""
    resize: Resize = "none"
    """What becomes of a chip: padded ("none"); or resized as the authors' pipelines of 2023 ("squash") and 2024
    ("longest") did, for weights that were trained so, and then the masks go back as their code takes them."""
    width: int = 256
    """Channels of the feature pyramid."""
    box_hidden: int = 1024
    """Width of the box head."""
    proposals: int = 1000
    """Proposals per image when testing."""
    decoder_mlp: int = 2048
    """Hidden width of SAM's two-way transformer."""
    coarse_masks: bool = False
    """A 28 x 28 mask from the box's features is the dense prompt, and SAM's decoder adds to it (not in the paper; for
    a decoder that learns from scratch)."""
    decoder_share: float = 1.0
    """With coarse masks: how much of what SAM's decoder adds to them is taken. Below one, the mask lies between the
    coarse and the decoded one, which is steadier where the decoder was trained briefly."""
    skips: bool = False
    """Mask upscaling sees the encoder's maps at stride 4 and 8, as SAM 2's does (not in the paper)."""
    mask_scores: bool = False
    """Score = class probability x mean mask probability, as RSPrompter-query's (the paper's: the first factor)."""

    def __post_init__(self) -> None:
        """Refuse combinations that cannot work."""
        if self.generation == "2023" and (self.coarse_masks or self.aggregate == "embedding"):
            option = "coarse_masks" if self.coarse_masks else "aggregate 'embedding'"
            msg = f"{option} is for the pyramid of 2024; the published weights of 2023 have no such thing"
            raise ValueError(msg)
        if not 0 <= self.decoder_share <= 1:
            msg = f"decoder_share is {self.decoder_share}; it must lie between 0 and 1"
            raise ValueError(msg)

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the pyramid, fine to coarse."""
        return (8, 16, 32) if self.generation == "2023" else (4, 8, 16, 32, 64)

    @property
    def anchor_scales(self) -> tuple[float, ...]:
        """Sides of the anchors in cells."""
        return (2.0, 4.0, 8.0, 16.0, 32.0, 64.0) if self.generation == "2023" else (4.0, 8.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """Weights and options of the loss."""

    rois: int = 256
    """Proposals per image in the loss of the box head."""
    fine_masks: int = 10_000
    """Most boxes per image that go through SAM's decoder, drawn at random; coarse masks are learned from all."""
    points: int = 0
    """Points at which masks are compared, near uncertain ones; 0 = every pixel of the image, as the paper does."""
    mask_weight: float = 1.0
    """Binary cross-entropy of the masks."""
    dice_weight: float = 0.0
    """Dice of the masks (not in the paper)."""
    coarse_weight: float = 1.0
    """Binary cross-entropy of the 28 x 28 masks, where there are some."""
