"""Official SAM files: names and shapes of the segment-anything package (commit dca509f)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rsgeoseg.weights.layouts import Layout, Misfit, Shapes, norm, perceptron, weight_bias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

DIM = 256
"""Channels of SAM's image embedding, prompts and decoder."""
FOURIER = "sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
"""The matrix of SAM's positional encoding."""


@dataclass(frozen=True, slots=True)
class VitSize:
    """Dimensions of a published encoder."""

    title: str
    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]


VIT_SIZES = {
    "sam-vit-b": VitSize("ViT-B", 768, 12, 12, (2, 5, 8, 11)),
    "sam-vit-l": VitSize("ViT-L", 1024, 24, 16, (5, 11, 17, 23)),
    "sam-vit-h": VitSize("ViT-H", 1280, 32, 16, (7, 15, 23, 31)),
}
GRID, PATCH = 64, 16
"""Tokens a side at 1024 pixels, and pixels a side of a token."""
_WINDOW = 14  # tokens a side of a window


def find_vit(tensors: Mapping[str, Tensor], prefix: str, blocks: str) -> str:
    """Tell a SAM encoder's backbone name from its width and depth.

    Args:
        tensors: of the file.
        prefix: of the encoder's tensors, with its dot.
        blocks: what its list of blocks is called there.

    Raises:
        Misfit: no position table, or none of the published sizes.
    """
    name = f"{prefix}pos_embed"
    if name not in tensors:
        msg = f"keys differ: 1 missing ({name}); use an official file"
        raise Misfit(msg)
    shape = tuple(tensors[name].shape)
    start = f"{prefix}{blocks}."
    depth = len({key.removeprefix(start).partition(".")[0] for key in tensors if key.startswith(start)})
    for backbone, size in VIT_SIZES.items():
        if shape[-1:] == (size.width,) and depth == size.depth:
            return backbone
    titles = ", ".join(size.title for size in VIT_SIZES.values())
    msg = f"tensor '{name}' has shape {shape} and there are {depth} blocks: none of {titles}; use an official file"
    raise Misfit(msg)


def vit_shapes(backbone: str, grid: int = GRID) -> Shapes:
    """Shapes of SAM's ViT under our names; its position tables are for a square of ``grid`` cells of 16 pixels."""
    size, prefix = VIT_SIZES[backbone], "encoder.image_encoder"
    width, head = size.width, size.width // size.heads
    shapes: Shapes = {f"{prefix}.pos_embed": (1, grid, grid, width)}
    shapes |= weight_bias(f"{prefix}.patch_embed.proj", width, 3, PATCH, PATCH)
    for index in range(size.depth):
        block = f"{prefix}.blocks.{index}"
        side = grid if index in size.global_blocks else _WINDOW
        shapes |= norm(f"{block}.norm1", width) | norm(f"{block}.norm2", width)
        shapes |= {f"{block}.attn.rel_pos_{axis}": (2 * side - 1, head) for axis in "hw"}
        shapes |= weight_bias(f"{block}.attn.qkv", 3 * width, width)
        shapes |= weight_bias(f"{block}.attn.proj", width, width)
        shapes |= weight_bias(f"{block}.mlp.lin1", 4 * width, width)
        shapes |= weight_bias(f"{block}.mlp.lin2", width, 4 * width)
    shapes |= {f"{prefix}.neck.0.weight": (DIM, width, 1, 1), f"{prefix}.neck.2.weight": (DIM, DIM, 3, 3)}
    return shapes | norm(f"{prefix}.neck.1", DIM) | norm(f"{prefix}.neck.3", DIM)


def prompt_encoder_shapes() -> Shapes:
    """Shapes of SAM's prompt encoder, under our names."""
    prefix = "sam.prompt_encoder"
    shapes: Shapes = {FOURIER: (2, DIM // 2)}
    shapes |= {f"{prefix}.point_embeddings.{index}.weight": (1, DIM) for index in range(4)}
    shapes |= {f"{prefix}.{name}.weight": (1, DIM) for name in ("not_a_point_embed", "no_mask_embed")}
    shapes |= weight_bias(f"{prefix}.mask_downscaling.0", 4, 1, 2, 2) | norm(f"{prefix}.mask_downscaling.1", 4)
    shapes |= weight_bias(f"{prefix}.mask_downscaling.3", 16, 4, 2, 2) | norm(f"{prefix}.mask_downscaling.4", 16)
    return shapes | weight_bias(f"{prefix}.mask_downscaling.6", DIM, 16, 1, 1)


def mask_decoder_shapes() -> Shapes:
    """Shapes of SAM's mask decoder, under our names."""
    prefix, half = "sam.mask_decoder", DIM // 2
    shapes: Shapes = {f"{prefix}.iou_token.weight": (1, DIM), f"{prefix}.mask_tokens.weight": (4, DIM)}
    for index in range(2):
        layer = f"{prefix}.transformer.layers.{index}"
        shapes |= _attention(f"{layer}.self_attn", DIM)
        shapes |= _attention(f"{layer}.cross_attn_token_to_image", half)
        shapes |= _attention(f"{layer}.cross_attn_image_to_token", half)
        shapes |= weight_bias(f"{layer}.mlp.lin1", 2048, DIM) | weight_bias(f"{layer}.mlp.lin2", DIM, 2048)
        for number in range(1, 5):
            shapes |= norm(f"{layer}.norm{number}", DIM)
    shapes |= _attention(f"{prefix}.transformer.final_attn_token_to_image", half)
    shapes |= norm(f"{prefix}.transformer.norm_final_attn", DIM)
    # Transposed convolutions: inputs first.
    shapes |= {f"{prefix}.output_upscaling.0.weight": (DIM, 64, 2, 2), f"{prefix}.output_upscaling.0.bias": (64,)}
    shapes |= norm(f"{prefix}.output_upscaling.1", 64)
    shapes |= {f"{prefix}.output_upscaling.3.weight": (64, 32, 2, 2), f"{prefix}.output_upscaling.3.bias": (32,)}
    for index in range(4):
        shapes |= perceptron(f"{prefix}.output_hypernetworks_mlps.{index}", DIM, DIM, DIM, 32)
    return shapes | perceptron(f"{prefix}.iou_prediction_head", DIM, DIM, DIM, 4)


def sam_shapes(backbone: str) -> Shapes:
    """Shapes of a whole SAM, under our names."""
    return vit_shapes(backbone) | prompt_encoder_shapes() | mask_decoder_shapes()


def sam_layout(tensors: Mapping[str, Tensor]) -> Layout:
    """Layout of an official SAM file: ``image_encoder.*``, ``prompt_encoder.*``, ``mask_decoder.*``.

    Raises:
        Misfit: the encoder is of no published size.
    """
    backbone = find_vit(tensors, "image_encoder.", "blocks")
    return Layout(
        model="sam",
        backbone=backbone,
        name="sam",
        shapes=sam_shapes(backbone),
        theirs=lambda ours: ours.removeprefix("encoder.").removeprefix("sam."),
    )


def _attention(name: str, inner: int) -> Shapes:
    """Shapes of the decoder's attention, whose inner width may be half of its outer one."""
    shapes = weight_bias(f"{name}.out_proj", DIM, inner)
    for part in "qkv":
        shapes |= weight_bias(f"{name}.{part}_proj", inner, DIM)
    return shapes
