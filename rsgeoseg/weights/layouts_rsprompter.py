"""Files of RSPrompter's authors: the published anchor weights of 2023, and what the code of 2024 saves.

Of 2024 there are two forms: the paper's, on the outputs of many blocks at 1024 pixels, and that of the configs with
LoRA, whose enhancer reads the image embedding alone and whose encoder has tables for its own size (512 pixels).

Source: KyanChen/RSPrompter, branches lightning and huggingface (2023) and release (2024, commit f4e73c3).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from rsgeoseg.weights.layouts import Layout, Misfit, Shapes, batch_norm, norm, rows, weight_bias
from rsgeoseg.weights.layouts_huggingface import decoder_name, encoder_name, mask_embed_name
from rsgeoseg.weights.layouts_sam import (
    DIM,
    FOURIER,
    GRID,
    PATCH,
    VIT_SIZES,
    find_vit,
    mask_decoder_shapes,
    prompt_encoder_shapes,
    sam_shapes,
    vit_shapes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

VISION = "backbone.vision_encoder."
"""Prefix of the encoder in files of 2024."""
_FUSION = "neck.feature_aggregator.channel_fusion.0.weight"
_RAW = 2 * DIM  # raw numbers per prompt: a sine half and a plain half
_REDUCED = 32  # channels of the aggregator's recursion
_FIRST_BLOCK_2023 = 4  # blocks 4, 6, ... of the ViT are aggregated; 0, 2, ... in 2024
_QUERY, _QUERY_HIDDEN, _QUERY_LAYERS, _PIXEL_LAYERS = 128, 512, 6, 3
_RPN = {"conv.0.0": "rpn_conv", "cls_logits": "rpn_cls", "bbox_pred": "rpn_reg"}
_POINTS, _NOT_A_POINT, _MASK, _NO_MASK = (
    f"sam.prompt_encoder.{name}"
    for name in ("point_embeddings.", "not_a_point_embed.", "mask_downscaling.", "no_mask_embed.")
)


def anchor_2023_layout(tensors: Mapping[str, Tensor]) -> Layout:
    """Layout of the published ``*_anchor.pth``: ``backbone.*`` is SAM, ``panoptic_head.*`` the task's part.

    Raises:
        Misfit: the sizes cannot be read off the shapes.
    """
    backbone = find_vit(tensors, "backbone.image_encoder.", "blocks")
    depth = VIT_SIZES[backbone].depth
    maps = len(range(_FIRST_BLOCK_2023, depth, 2))
    classes, prompts = _anchor_sizes(tensors, "panoptic_head.roi_head.")

    def theirs(ours: str) -> str:
        sam = re.sub(r"^(encoder|sam)\.", "backbone.", ours)
        return sam if sam != ours else f"panoptic_head.{_anchor_name(ours)}"

    return Layout(
        model="rsprompter-anchor",
        backbone=backbone,
        name="rsprompter-2023",
        shapes=sam_shapes(backbone)
        | _neck_2023_shapes(VIT_SIZES[backbone].width, maps)
        | _anchor_shapes(classes, prompts, anchors=18),
        theirs=theirs,
        classes=classes,
        config={"prompts_per_roi": prompts, "generation": "2023", "numerics": "released", "resize": "squash"},
    )


def anchor_2024_layout(tensors: Mapping[str, Tensor]) -> Layout:
    """Layout of an anchor model of 2024, its encoder under Hugging Face's names.

    Raises:
        Misfit: the sizes cannot be read off the shapes.
    """
    classes, prompts = _anchor_sizes(tensors, "roi_head.")
    return _layout_2024(
        tensors,
        model="rsprompter-anchor",
        head=_anchor_shapes(classes, prompts, anchors=6),
        theirs=_anchor_name,
        decoder="roi_head.mask_head.",
        absent=(_POINTS, _NOT_A_POINT, _MASK),
        classes=classes,
        config={"prompts_per_roi": prompts, "generation": "2024", "numerics": "released", "resize": "longest"},
    )


def query_2024_layout(tensors: Mapping[str, Tensor]) -> Layout:
    """Layout of a query model of 2024, its encoder under Hugging Face's names.

    Raises:
        Misfit: the sizes cannot be read off the shapes.
    """
    queries = rows(tensors, "panoptic_head.query_feat.weight")
    prompts = rows(tensors, "panoptic_head.point_emb.4.weight", _RAW)
    classes = rows(tensors, "panoptic_head.cls_embed.2.weight") - 1
    return _layout_2024(
        tensors,
        model="rsprompter-query",
        head=_query_shapes(classes, queries, prompts),
        theirs=_query_name,
        decoder="panoptic_head.",
        absent=(_POINTS, _NOT_A_POINT, _NO_MASK),
        classes=classes,
        config={
            "num_queries": queries,
            "prompts_per_query": prompts,
            "numerics": "released",
            "resize": "longest",
        },
    )


def _layout_2024(
    tensors: Mapping[str, Tensor],
    *,
    model: str,
    head: Shapes,
    theirs: Callable[[str], str],
    decoder: str,
    absent: tuple[str, ...],
    classes: int,
    config: dict[str, Any],
) -> Layout:
    backbone = find_vit(tensors, VISION, "layers")
    grid = tuple(tensors[f"{VISION}pos_embed"].shape)[1]
    prompt = {name: shape for name, shape in prompt_encoder_shapes().items() if not name.startswith(absent)}

    fused, about = None, {}
    if _FUSION in tensors:
        fused, about = rows(tensors, _FUSION), {"aggregate": "embedding"}

    def name(ours: str) -> str:
        if ours == FOURIER:
            return "shared_image_embedding.shared_image_embedding.positional_embedding"
        for prefix, place, rename in (
            ("encoder.image_encoder.", VISION, encoder_name),
            ("sam.mask_decoder.", f"{decoder}mask_decoder.mask_decoder.", decoder_name),
            (_MASK, f"{decoder}sam_mask_embed.", mask_embed_name),
        ):
            if ours.startswith(prefix):
                return place + rename(ours.removeprefix(prefix))
        if ours.startswith("sam.prompt_encoder."):
            return decoder + ours.removeprefix("sam.prompt_encoder.")
        return ours if ours.startswith("neck.") else theirs(ours)

    return Layout(
        model=model,
        backbone=backbone,
        name="rsprompter-2024",
        shapes=vit_shapes(backbone, grid)
        | prompt
        | mask_decoder_shapes()
        | _splitter_shapes()
        | (_aggregator_shapes(backbone) if fused is None else _fusion_shapes(fused))
        | head,
        theirs=name,
        ignored=("data_preprocessor.",),
        absent=absent,
        classes=classes,
        config=config | ({} if grid == GRID else {"image_size": grid * PATCH}) | about,
    )


def _anchor_sizes(tensors: Mapping[str, Tensor], head: str) -> tuple[int, int]:
    """Classes and prompts per RoI."""
    classes = rows(tensors, f"{head}bbox_head.fc_cls.weight") - 1
    if classes < 1:
        msg = f"tensor '{head}bbox_head.fc_cls.weight' has one row, background alone; use a trained file"
        raise Misfit(msg)
    return classes, rows(tensors, f"{head}mask_head.point_emb.8.weight", _RAW)


def _anchor_name(ours: str) -> str:
    """Their name, but for the prefix of 2023, of a tensor of the two-stage detector."""
    if ours.startswith("rpn.head."):
        layer, _, part = ours.removeprefix("rpn.head.").rpartition(".")
        return f"rpn_head.{_RPN[layer]}.{part}"
    ours = re.sub(r"^box_head\.", "roi_head.bbox_head.", ours)
    return re.sub(r"^prompt_head\.", "roi_head.mask_head.", ours)


def _query_name(ours: str) -> str:
    """Their name of a tensor of the query head."""
    ours = re.sub(r"^pixel_decoder\.encoder\.", "pixel_decoder.encoder.layers.", ours)
    ours = re.sub(r"^(layers|post_norm)\.", r"transformer_decoder.\1.", ours)
    if ours.startswith("transformer_decoder."):  # the pixel decoder's attention has no wrapper
        ours = re.sub(r"\.(self|cross)_attn\.", r".\1_attn.attn.", ours)
    ours = ours.replace(".ffn.0.", ".ffn.layers.0.0.").replace(".ffn.2.", ".ffn.layers.1.")
    return f"panoptic_head.{ours}"


def _anchor_shapes(classes: int, prompts: int, *, anchors: int) -> Shapes:
    """Shapes of proposal network, box head and prompt head."""
    shapes = weight_bias("rpn.head.conv.0.0", DIM, DIM, 3, 3)
    shapes |= weight_bias("rpn.head.cls_logits", anchors, DIM, 1, 1)
    shapes |= weight_bias("rpn.head.bbox_pred", 4 * anchors, DIM, 1, 1)
    shapes |= weight_bias("box_head.shared_fcs.0", 1024, DIM * 7 * 7) | weight_bias("box_head.shared_fcs.1", 1024, 1024)
    shapes |= weight_bias("box_head.fc_cls", classes + 1, 1024) | weight_bias("box_head.fc_reg", 4 * classes, 1024)
    shapes |= weight_bias("prompt_head.point_emb.0", DIM, DIM, 3, 3) | batch_norm("prompt_head.point_emb.1", DIM)
    shapes |= weight_bias("prompt_head.point_emb.4", DIM, DIM * 7 * 7) | weight_bias(
        "prompt_head.point_emb.6", DIM, DIM
    )
    return shapes | weight_bias("prompt_head.point_emb.8", _RAW * prompts, DIM)


def _neck_2023_shapes(width: int, maps: int) -> Shapes:
    """Shapes of the enhancer of 2023."""
    shapes: Shapes = {}

    def conv_norm(name: str, *shape: int) -> None:
        shapes.update({f"neck.{name}.conv.weight": shape, **batch_norm(f"neck.{name}.bn", shape[0])})

    for index in range(maps):
        conv_norm(f"down_sample_layers.{index}.0", _REDUCED, width, 1, 1)
        conv_norm(f"down_sample_layers.{index}.1", _REDUCED, _REDUCED, 3, 3)
        conv_norm(f"fusion_layers.{index}", _REDUCED, _REDUCED, 3, 3)
    for index in range(2):
        conv_norm(f"up_layers.0.{index}", _REDUCED, _REDUCED, 3, 3)
    conv_norm("up_layers.1", DIM, _REDUCED, 1, 1)
    for name in ("0.1", "0.2", "2.1", "2.2"):
        conv_norm(f"up_sample_layers.{name}", DIM, DIM, 3, 3)
    return shapes


def _fusion_shapes(hidden: int) -> Shapes:
    """Shapes of what stands in the aggregator's place where the enhancer reads the embedding alone."""
    shapes: Shapes = {}
    for index, (after, before, kernel) in enumerate(((hidden, DIM, 1), (hidden, hidden, 3), (DIM, hidden, 3))):
        place = "neck.feature_aggregator.channel_fusion"
        shapes |= {f"{place}.{2 * index}.weight": (after, before, kernel, kernel)}
        shapes |= norm(f"{place}.{2 * index + 1}", after)
    return shapes


def _aggregator_shapes(backbone: str) -> Shapes:
    """Shapes of the aggregator of 2024."""
    size, joined = VIT_SIZES[backbone], "neck.feature_aggregator"
    width, maps = size.width, size.depth // 2
    shapes: Shapes = {}
    for index in range(maps):
        shapes |= weight_bias(f"{joined}.downconvs.{index}.0", _REDUCED, width, 1, 1)
        shapes |= batch_norm(f"{joined}.downconvs.{index}.1", _REDUCED)
        for name in (f"downconvs.{index}.3", f"hidden_convs.{index}.0"):
            shapes |= weight_bias(f"{joined}.{name}", _REDUCED, _REDUCED, 3, 3)
        for name in (f"downconvs.{index}.4", f"hidden_convs.{index}.1"):
            shapes |= batch_norm(f"{joined}.{name}", _REDUCED)
    shapes |= weight_bias(f"{joined}.fusion_conv.0", DIM, _REDUCED, 1, 1) | batch_norm(f"{joined}.fusion_conv.1", DIM)
    shapes |= weight_bias(f"{joined}.fusion_conv.3", DIM, DIM, 3, 3) | batch_norm(f"{joined}.fusion_conv.4", DIM)
    return shapes | weight_bias(f"{joined}.fusion_conv.6", DIM, DIM, 3, 3)


def _splitter_shapes() -> Shapes:
    """Shapes of the splitter of 2024."""
    split = "neck.feature_spliter"
    shapes: Shapes = {}
    half, quarter = DIM // 2, DIM // 4
    # Transposed convolutions: inputs first.
    for name, before, after in (("fpn1.0", DIM, half), ("fpn1.3", half, quarter), ("fpn2.0", DIM, half)):
        shapes |= {f"{split}.{name}.weight": (before, after, 2, 2), f"{split}.{name}.bias": (after,)}
    shapes |= norm(f"{split}.fpn1.1", half)
    for level, before in enumerate((quarter, half, DIM, DIM)):
        for name, shape in (("lateral_convs", (DIM, before, 1, 1)), ("fpn_convs", (DIM, DIM, 3, 3))):
            shapes |= {f"{split}.{name}.{level}.conv.weight": shape}
            shapes |= norm(f"{split}.{name}.{level}.norm_layer", DIM)
    return shapes


def _query_shapes(classes: int, queries: int, prompts: int) -> Shapes:
    """Shapes of pixel decoder, query decoder and the query's heads."""
    width = _QUERY
    shapes: Shapes = {
        "query_feat.weight": (queries, width),
        "query_embed.weight": (queries, width),
        "level_embed.weight": (3, width),
        "pixel_decoder.level_encoding.weight": (3, width),
    }
    for index in range(3):
        shapes |= weight_bias(f"pixel_decoder.input_convs.{index}.conv", width, DIM, 1, 1)
        shapes |= norm(f"pixel_decoder.input_convs.{index}.gn", width)
    for index in range(2):
        shapes |= {f"pixel_decoder.lateral_convs.{index}.conv.weight": (width, DIM, 1, 1)}
        shapes |= {f"pixel_decoder.output_convs.{index}.conv.weight": (width, width, 3, 3)}
        shapes |= norm(f"pixel_decoder.lateral_convs.{index}.gn", width)
        shapes |= norm(f"pixel_decoder.output_convs.{index}.gn", width)
    shapes |= weight_bias("pixel_decoder.mask_feature", DIM, width, 1, 1)
    for index in range(_PIXEL_LAYERS):
        layer = f"pixel_decoder.encoder.{index}"
        for name, size in (("sampling_offsets", 192), ("attention_weights", 96), ("value_proj", width)):
            shapes |= weight_bias(f"{layer}.self_attn.{name}", size, width)
        shapes |= weight_bias(f"{layer}.self_attn.output_proj", width, width) | _feed_forward(layer, norms=2)
    for index in range(_QUERY_LAYERS):
        layer = f"layers.{index}"
        for attention in ("self_attn", "cross_attn"):
            shapes |= {f"{layer}.{attention}.in_proj_weight": (3 * width, width)}
            shapes |= {f"{layer}.{attention}.in_proj_bias": (3 * width,)}
            shapes |= weight_bias(f"{layer}.{attention}.out_proj", width, width)
        shapes |= _feed_forward(layer, norms=3)
    shapes |= norm("post_norm", width)
    for name, last in (("cls_embed.2", classes + 1), ("mask_embed.4", DIM)):
        shapes |= weight_bias(name, last, width)
    for name in ("cls_embed.0", "mask_embed.0", "mask_embed.2"):
        shapes |= weight_bias(name, width, width)
    half = width // 2
    shapes |= weight_bias("point_emb.0", half, width) | weight_bias("point_emb.2", half, half)
    return shapes | weight_bias("point_emb.4", _RAW * prompts, half)


def _feed_forward(layer: str, *, norms: int) -> Shapes:
    """Shapes of a transformer layer's feed-forward part and its norms."""
    shapes = weight_bias(f"{layer}.ffn.0", _QUERY_HIDDEN, _QUERY) | weight_bias(f"{layer}.ffn.2", _QUERY, _QUERY_HIDDEN)
    for index in range(norms):
        shapes |= norm(f"{layer}.norms.{index}", _QUERY)
    return shapes
