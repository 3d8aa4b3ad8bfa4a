"""Sizes and options of RSPrompter-query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rsgeoseg.backbones.fitted import Resize
    from rsgeoseg.nn.enhancer import Aggregate, Numerics


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryConfig:
    """Sizes and options of the network; saved with the weights."""

    classes: tuple[str, ...]
    """Class names, background not counted."""
    num_queries: int = 70
    """N_p, groups of prompts per image (paper: 100 WHU, 70 NWPU, 30 SSDD)."""
    prompts_per_query: int = 5
    """K_p, prompt embeddings per group (paper section IV-C)."""
    width: int = 128
    """Channels of pixel decoder and queries."""
    mask_channels: int = 256
    """Channels of the mask feature."""
    hidden: int = 512
    """Width of the feed-forward networks."""
    heads: int = 8
    """Attention heads."""
    encoder_layers: int = 3
    """Layers of the transformer encoder (paper: 3)."""
    decoder_layers: int = 6
    """Layers of the transformer decoder (paper: 6)."""
    numerics: Numerics = "paper"
    """Where paper and released code differ: aggregator order, sine rule, depth of the prompt head, decoder norm.
    "released" also computes in float32 on every device, as the authors' tests did."""
    aggregate: Aggregate = "blocks"
    """What the enhancer reads of a plain ViT; "embedding" is what the authors' configs with LoRA have."""
    image_size: int = 1024
    """Side of a SAM encoder's square, which its positions are for, pixels; 512 in the authors' configs with LoRA."""
    resize: Resize = "none"
    """What becomes of a chip: padded ("none"); or resized as the authors' pipeline did ("longest"), for weights that
    were trained so, and then objects are chosen and masks go back as in their code."""
    decoder_mlp: int = 2048
    """Hidden width of SAM's two-way transformer."""
    centre_queries: bool = False
    """Queries start at centres found on the pixel decoder's maps instead of being learned (not in the paper)."""
    local_masks: bool = False
    """Coarse masks have a learned elliptic term around the query's centre (not in the paper; needs centre_queries)."""
    refine_coarse: bool = False
    """SAM's decoder adds to the coarse logits instead of replacing them (not in the paper; for one from scratch)."""
    skips: bool = False
    """Mask upscaling sees the encoder's maps at stride 4 and 8, as SAM 2's does (not in the paper)."""

    def __post_init__(self) -> None:
        """Refuse combinations that cannot work."""
        if self.local_masks and not self.centre_queries:
            msg = "local_masks needs centre_queries: a learned query has no centre"
            raise ValueError(msg)
        if self.resize != "none" and self.centre_queries:
            msg = "resize is for weights of the authors' code, whose queries are learned; leave out centre_queries"
            raise ValueError(msg)
