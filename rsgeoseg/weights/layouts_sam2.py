"""Official files of SAM 2.0 and 2.1: names and shapes of the sam2 package (commit 2b90b9f)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rsgeoseg.weights.layouts import Layout, Misfit, Shapes, norm, perceptron, weight_bias
from rsgeoseg.weights.layouts_sam import DIM, mask_decoder_shapes, prompt_encoder_shapes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


@dataclass(frozen=True, slots=True)
class HieraSize:
    """Dimensions of a published encoder."""

    title: str
    width: int
    stages: tuple[int, int, int, int]
    grid: int
    """Side of the position table that is spread over the whole image."""


HIERA_SIZES = {
    "sam2-hiera-t": HieraSize("Hiera-T", 96, (1, 2, 7, 2), 7),
    "sam2-hiera-s": HieraSize("Hiera-S", 96, (1, 2, 11, 2), 7),
    "sam2-hiera-b+": HieraSize("Hiera-B+", 112, (2, 3, 16, 3), 14),
    "sam2-hiera-l": HieraSize("Hiera-L", 144, (2, 6, 36, 4), 7),
}
ONLY_IN_2_1 = ("no_obj_embed_spatial", "obj_ptr_tpos_proj.")
"""Prefixes that tell 2.1 from 2.0."""
VIDEO_MEMORY = (
    "memory_attention.", "memory_encoder.", "obj_ptr_proj.", "no_mem_pos_enc", "maskmem_tpos_enc", "no_obj_ptr",
    "mask_downsample.", *ONLY_IN_2_1,
)  # fmt: skip
"""Prefixes of what tracks objects through videos, which images do not need."""
_TRUNK = "encoder.image_encoder.trunk"
_OBJECT_SCORE = ("conv_s0", "conv_s1", "obj_score_token", "pred_obj_score_head")


def sam2_layout(tensors: Mapping[str, Tensor]) -> Layout:
    """Layout of an official SAM 2 file, unwrapped.

    Raises:
        Misfit: the encoder is of no published size.
    """
    backbone = _find_hiera(tensors)
    shapes = _trunk_shapes(HIERA_SIZES[backbone]) | prompt_encoder_shapes() | mask_decoder_shapes()
    shapes |= {"encoder.no_mem_embed": (1, 1, DIM), "sam.obj_score_token.weight": (1, DIM)}
    shapes |= weight_bias("sam.conv_s0", DIM // 8, DIM, 1, 1) | weight_bias("sam.conv_s1", DIM // 4, DIM, 1, 1)
    shapes |= perceptron("sam.pred_obj_score_head", DIM, DIM, DIM, 1)
    newer = any(name.startswith(ONLY_IN_2_1) for name in tensors)
    return Layout(
        model="sam2",
        backbone=backbone,
        name="sam2.1" if newer else "sam2",
        shapes=shapes,
        theirs=_theirs,
        ignored=VIDEO_MEMORY,
    )


def _theirs(ours: str) -> str:
    if ours.startswith("encoder."):
        return ours.removeprefix("encoder.")
    name = ours.removeprefix("sam.")
    if name.startswith(_OBJECT_SCORE):
        return f"sam_mask_decoder.{name}"
    return "sam_" + re.sub(r"\.mlp\.lin([12])\.", lambda found: f".mlp.layers.{int(found[1]) - 1}.", name)


def _find_hiera(tensors: Mapping[str, Tensor]) -> str:
    name = "image_encoder.trunk.pos_embed"
    if name not in tensors:
        msg = f"keys differ: 1 missing ({name}); use an official file"
        raise Misfit(msg)
    shape = tuple(tensors[name].shape)
    start = "image_encoder.trunk.blocks."
    depth = len({key.removeprefix(start).partition(".")[0] for key in tensors if key.startswith(start)})
    for backbone, size in HIERA_SIZES.items():
        if shape[1:2] == (size.width,) and depth == sum(size.stages):
            return backbone
    titles = ", ".join(size.title for size in HIERA_SIZES.values())
    msg = f"tensor '{name}' has shape {shape} and there are {depth} blocks: none of {titles}; use an official file"
    raise Misfit(msg)


def _trunk_shapes(size: HieraSize) -> Shapes:
    """Shapes of Hiera and its neck; every stage but the first doubles the width in its first block."""
    shapes: Shapes = {
        f"{_TRUNK}.pos_embed": (1, size.width, size.grid, size.grid),
        f"{_TRUNK}.pos_embed_window": (1, size.width, 8, 8),
    }
    shapes |= weight_bias(f"{_TRUNK}.patch_embed.proj", size.width, 3, 7, 7)
    index, before = 0, size.width
    for stage, blocks in enumerate(size.stages):
        width = size.width * 2**stage
        shapes |= weight_bias(f"encoder.image_encoder.neck.convs.{3 - stage}.conv", DIM, width, 1, 1)
        for _ in range(blocks):
            shapes |= _block_shapes(f"{_TRUNK}.blocks.{index}", before, width)
            index, before = index + 1, width
    return shapes


def _block_shapes(block: str, before: int, width: int) -> Shapes:
    shapes = norm(f"{block}.norm1", before) | norm(f"{block}.norm2", width)
    shapes |= weight_bias(f"{block}.attn.qkv", 3 * width, before) | weight_bias(f"{block}.attn.proj", width, width)
    shapes |= perceptron(f"{block}.mlp", width, 4 * width, width)
    return shapes | (weight_bias(f"{block}.proj", width, before) if before != width else {})
