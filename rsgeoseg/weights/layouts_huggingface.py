"""Hugging Face's names of SAM, the names of two other encoders with them, and LoRA adapters merged into their weights.

Sources: transformers ``SamModel`` (4.38 to 5); mmpretrain ``ViTSAM``; peft's names of adapters; Hu et al., LoRA, 2021,
section 4.1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rsgeoseg.weights.layouts import Layout, Misfit
from rsgeoseg.weights.layouts_sam import FOURIER, find_vit, sam_shapes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

_ENCODER = (
    (r"^blocks\.(\d+)\.norm([12])\.", r"layers.\1.layer_norm\2."),
    (r"^blocks\.", "layers."),
    (r"^patch_embed\.proj\.", "patch_embed.projection."),
    (r"^neck\.0\.", "neck.conv1."),
    (r"^neck\.1\.", "neck.layer_norm1."),
    (r"^neck\.2\.", "neck.conv2."),
    (r"^neck\.3\.", "neck.layer_norm2."),
)
_MASK_EMBED = {"0": "conv1", "1": "layer_norm1", "3": "conv2", "4": "layer_norm2", "6": "conv3"}
_UPSCALING = {"0": "upscale_conv1", "1": "upscale_layer_norm", "3": "upscale_conv2"}
_PERCEPTRON = {"0": "proj_in", "1": "layers.0", "2": "proj_out"}  # the middle layer counts from 0 again
_VIT_SAM = (  # mmpretrain's names of the encoder -> Hugging Face's
    (r"^(layers\.\d+)\.ln([12])\.", r"\1.layer_norm\2."),
    (r"^(layers\.\d+)\.ffn\.layers\.0\.0\.", r"\1.mlp.lin1."),
    (r"^(layers\.\d+)\.ffn\.layers\.1\.", r"\1.mlp.lin2."),
    (r"^channel_reduction\.0\.", "neck.conv1."),
    (r"^channel_reduction\.1\.", "neck.layer_norm1."),
    (r"^channel_reduction\.2\.", "neck.conv2."),
    (r"^channel_reduction\.3\.", "neck.layer_norm2."),
)
_COPY = "prompt_encoder.shared_embedding.positional_embedding"
_ORIGINAL = "shared_image_embedding.positional_embedding"


def encoder_name(name: str) -> str:
    """Hugging Face's name of a tensor of SAM's encoder, both without prefix."""
    for pattern, replacement in _ENCODER:
        name, changed = re.subn(pattern, replacement, name)
        if changed:
            break
    return name


def mask_embed_name(name: str) -> str:
    """Hugging Face's name of a tensor of SAM's ``mask_downscaling``, both without prefix."""
    index, _, rest = name.partition(".")
    return f"{_MASK_EMBED[index]}.{rest}"


def decoder_name(name: str) -> str:
    """Hugging Face's name of a tensor of SAM's mask decoder, both without prefix."""
    name = re.sub(r"^output_upscaling\.(\d)", lambda found: _UPSCALING[found[1]], name)
    name = name.replace("norm_final_attn", "layer_norm_final_attn")
    name = re.sub(r"^(transformer\.layers\.\d)\.norm(\d)", r"\1.layer_norm\2", name)
    return re.sub(
        r"^(output_hypernetworks_mlps\.\d|iou_prediction_head)\.layers\.(\d)",
        lambda found: f"{found[1]}.{_PERCEPTRON[found[2]]}",
        name,
    )


def huggingface_layout(tensors: Mapping[str, Tensor]) -> Layout:
    """Layout of transformers' ``SamModel``.

    Raises:
        Misfit: the encoder is of no published size, or the two copies of the positional matrix differ.
    """
    matrices = [tensors[name].float() for name in (_COPY, _ORIGINAL) if name in tensors]
    if len(matrices) == 2 and not torch.equal(*matrices):
        msg = f"tensors '{_COPY}' and '{_ORIGINAL}' differ, but are one matrix in SAM; save the model again"
        raise Misfit(msg)
    backbone = find_vit(tensors, "vision_encoder.", "layers")
    return Layout(
        model="sam",
        backbone=backbone,
        name="hf-sam",
        shapes=sam_shapes(backbone),
        theirs=_theirs,
        ignored=(_COPY,),
    )


def _theirs(ours: str) -> str:
    if ours == FOURIER:
        return _ORIGINAL
    for prefix, theirs, rename in (
        ("encoder.image_encoder.", "vision_encoder.", encoder_name),
        ("sam.mask_decoder.", "mask_decoder.", decoder_name),
        ("sam.prompt_encoder.mask_downscaling.", "prompt_encoder.mask_embed.", mask_embed_name),
    ):
        if ours.startswith(prefix):
            return theirs + rename(ours.removeprefix(prefix))
    return ours.removeprefix("sam.").replace("point_embeddings", "point_embed")


@dataclass(frozen=True, slots=True)
class Lora:
    """Low-rank adapters that were merged into weights: W + alpha / r * B A."""

    rank: int
    """r, read from the shapes."""
    alpha: float
    """Scale."""
    alpha_given: bool
    """False: no file holds alpha, 2 r was taken, as the authors' configs have it (r = 16, alpha = 32)."""
    layers: int
    """Weights that had an adapter."""


def plain_encoder(
    tensors: Mapping[str, Tensor], prefix: str, *, alpha: float | None = None
) -> tuple[dict[str, Tensor], Lora | None]:
    """Give an encoder Hugging Face's names, with its adapters merged, whatever wrapped it.

    Args:
        tensors: of the whole file.
        prefix: of the encoder, with its dot.
        alpha: LoRA's scale; None = 2 r.

    Returns:
        All tensors of the file, those of the encoder renamed, and what was merged.

    Raises:
        Misfit: an adapter lacks its other half or its weight, or does not fit it.
    """
    plain: dict[str, Tensor] = {}
    halves: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if not name.startswith(prefix):
            plain[name] = tensor
            continue
        inner = name.removeprefix(prefix).removeprefix("base_model.model.").replace(".base_layer.", ".")
        for pattern, replacement in _VIT_SAM:
            inner = re.sub(pattern, replacement, inner)
        adapter = re.fullmatch(r"(.+)\.lora_([AB])\.default\.weight", inner)
        if adapter:
            halves.setdefault(f"{prefix}{adapter[1]}.weight", {})[adapter[2]] = tensor
        else:
            plain[f"{prefix}{inner}"] = tensor
    if not halves:
        return plain, None
    ranks = set()
    for name, pair in halves.items():
        plain[name], rank = _merged(name, plain.get(name), pair, alpha)
        ranks.add(rank)
    if len(ranks) > 1:
        msg = f"LoRA adapters have the ranks {sorted(ranks)}; only one rank in a file can be read"
        raise Misfit(msg)
    rank = ranks.pop()
    return plain, Lora(rank, 2.0 * rank if alpha is None else alpha, alpha is not None, len(halves))


def _merged(name: str, weight: Tensor | None, pair: dict[str, Tensor], alpha: float | None) -> tuple[Tensor, int]:
    if weight is None or pair.keys() != {"A", "B"}:
        msg = f"the LoRA adapter of '{name}' lacks its weight or one of lora_A and lora_B; save the model again"
        raise Misfit(msg)
    down, up = pair["A"].float(), pair["B"].float()
    if up.ndim != 2 or down.ndim != 2 or len(down) != up.shape[1] or (len(up), down.shape[1]) != weight.shape:
        shapes = tuple(tuple(tensor.shape) for tensor in (up, down, weight))
        msg = f"the LoRA adapter of '{name}' does not fit: B {shapes[0]}, A {shapes[1]}, weight {shapes[2]}"
        raise Misfit(msg)
    rank = len(down)
    scale = 2.0 if alpha is None else alpha / rank
    return weight.float() + scale * (up @ down), rank
