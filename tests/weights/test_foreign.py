"""The authors' layouts: every tensor by value, strictness, what is read off the shapes, LoRA."""

import functools
import importlib.util
import re
from pathlib import Path

import pytest
import torch
import upstream

from rsgeoseg.errors import WeightsError
from rsgeoseg.weights.foreign import name_tensors, read_foreign, require_backbone
from rsgeoseg.weights.layouts_sam2 import VIDEO_MEMORY
from rsgeoseg.weights.pickles import TensorFile
from rsgeoseg.weights.published import find_published

PATH = Path("given.pth")
needs_golden = pytest.mark.skipif(
    not upstream.FOLDER.is_dir(), reason="NOT RUN: reference numbers ../shared/golden are absent"
)


def named(state, **options):
    """Read a state dict without a file around it."""
    container_classes = options.pop("found", None)
    return name_tensors(TensorFile(state, "flat", container_classes), PATH, **options)


def message(call, *arguments, **options):
    with pytest.raises(WeightsError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- names, said a second time and the other way round: theirs -> ours ---------------------------------------------

_HF_ENCODER = {
    "patch_embed.projection": "patch_embed.proj",
    "layer_norm": "norm",
    "neck.conv1": "neck.0",
    "neck.norm1": "neck.1",
    "neck.conv2": "neck.2",
    "neck.norm2": "neck.3",
}


def ours_from_hf_encoder(name):
    name = re.sub(r"^layers\.", "blocks.", name)
    for theirs, ours in _HF_ENCODER.items():
        name = name.replace(theirs, ours)
    return f"encoder.image_encoder.{name}"


@functools.cache
def golden():
    """The mapping by which the query head reproduces the authors' numbers."""
    place = Path(__file__).parents[1] / "models" / "golden.py"
    spec = importlib.util.spec_from_file_location("golden_names", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ours_from_sam(name):
    return f"encoder.{name}" if name.startswith("image_encoder.") else f"sam.{name}"


def ours_from_hf(name):
    if name.startswith("vision_encoder."):
        return ours_from_hf_encoder(name.removeprefix("vision_encoder."))
    if name.startswith("shared_image_embedding."):
        return "sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    if name.startswith("mask_decoder."):
        return "sam.mask_decoder." + golden()._decoder_name(name.removeprefix("mask_decoder."))
    if name.startswith("prompt_encoder.mask_embed."):
        return golden().query_name(f"panoptic_head.sam_mask_embed.{name.removeprefix('prompt_encoder.mask_embed.')}")
    if name.startswith("prompt_encoder.shared_embedding."):
        return None
    return f"sam.{name}".replace(".point_embed.", ".point_embeddings.")


def ours_from_sam2(name):
    if name.startswith(("image_encoder.", "no_mem_embed")):
        return f"encoder.{name}"
    extra = re.fullmatch(r"sam_mask_decoder\.((conv_s|obj_score|pred_obj).*)", name)
    if extra:
        return f"sam.{extra[1]}"
    if name.startswith("sam_"):
        name = name.replace(".mlp.layers.0.", ".mlp.lin1.").replace(".mlp.layers.1.", ".mlp.lin2.")
        return f"sam.{name.removeprefix('sam_')}"
    return None


def ours_from_anchor(name):
    name = name.replace("rpn_head.rpn_conv.", "rpn.head.conv.0.0.").replace("rpn_head.rpn_cls.", "rpn.head.cls_logits.")
    name = name.replace("rpn_head.rpn_reg.", "rpn.head.bbox_pred.").replace("roi_head.bbox_head.", "box_head.")
    return name.replace("roi_head.mask_head.point_emb.", "prompt_head.point_emb.")


def ours_from_2023(name):
    if name.startswith("backbone."):
        return ours_from_sam(name.removeprefix("backbone."))
    return ours_from_anchor(name.removeprefix("panoptic_head."))


def ours_from_anchor_2024(name):
    if name.startswith("backbone.vision_encoder."):
        return ours_from_hf_encoder(name.removeprefix("backbone.vision_encoder."))
    if name.startswith("roi_head.mask_head.mask_decoder."):
        return ours_from_hf(name.removeprefix("roi_head.mask_head.mask_decoder."))
    if name.startswith("roi_head.mask_head.no_mask_embed."):
        return name.replace("roi_head.mask_head.", "sam.prompt_encoder.")
    return ours_from_hf(name) if name.startswith("shared") else ours_from_anchor(name)


def ours_from_query_2024(name):
    if name.startswith("backbone.vision_encoder."):
        return ours_from_hf_encoder(name.removeprefix("backbone.vision_encoder."))
    return golden().query_name(name)


SAM2_T, SAM2_1_T = "configs/sam2/sam2_hiera_t.yaml", "configs/sam2.1/sam2.1_hiera_t.yaml"
SAM2_S, SAM2_B, SAM2_L = (f"configs/sam2.1/sam2.1_hiera_{size}.yaml" for size in ("s", "b+", "l"))
NO_POINTS = ["sam.prompt_encoder.point_embeddings.", "sam.prompt_encoder.not_a_point_embed."]
ANCHOR = {"prompts_per_roi": 5, "numerics": "released"}
TEN = [f"class{index}" for index in range(10)]
CASES = {
    "sam-b": (functools.partial(upstream.sam, "b"), ours_from_sam, ("sam", "sam-vit-b", "sam"), {}, []),
    "sam-l": (functools.partial(upstream.sam, "l"), ours_from_sam, ("sam", "sam-vit-l", "sam"), {}, []),
    "sam-h": (functools.partial(upstream.sam, "h"), ours_from_sam, ("sam", "sam-vit-h", "sam"), {}, []),
    "hf": (upstream.huggingface, ours_from_hf, ("sam", "sam-vit-b", "hf-sam"), {}, []),
    "sam2-t": (functools.partial(upstream.sam2, SAM2_T), ours_from_sam2, ("sam2", "sam2-hiera-t", "sam2"), {}, []),
    "sam2.1-t": (
        functools.partial(upstream.sam2, SAM2_1_T),
        ours_from_sam2,
        ("sam2", "sam2-hiera-t", "sam2.1"),
        {},
        [],
    ),
    "2023": (
        upstream.anchor_2023,
        ours_from_2023,
        ("rsprompter-anchor", "sam-vit-h", "rsprompter-2023"),
        {"classes": TEN, **ANCHOR, "generation": "2023", "resize": "squash"},
        [],
    ),
    "2023-whu": (
        functools.partial(upstream.anchor_2023, "WHU"),
        ours_from_2023,
        ("rsprompter-anchor", "sam-vit-h", "rsprompter-2023"),
        {"classes": TEN[:1], **ANCHOR, "prompts_per_roi": 4, "generation": "2023", "resize": "squash"},
        [],
    ),
    "anchor-2024": (
        upstream.anchor_2024,
        ours_from_anchor_2024,
        ("rsprompter-anchor", "sam-vit-b", "rsprompter-2024"),
        {"classes": TEN, **ANCHOR, "generation": "2024", "resize": "longest"},
        [*NO_POINTS, "sam.prompt_encoder.mask_downscaling."],
    ),
    "query-2024": (
        upstream.query_2024,
        ours_from_query_2024,
        ("rsprompter-query", "sam-vit-b", "rsprompter-2024"),
        {"classes": TEN, "num_queries": 20, "prompts_per_query": 5, "numerics": "released", "resize": "longest"},
        [*NO_POINTS, "sam.prompt_encoder.no_mask_embed."],
    ),
}
GOLDEN = {"2023", "2023-whu", "anchor-2024", "query-2024", "hf"}
HEAVY = {"sam2-t", "sam2.1-t"}  # real modules are built, for their names
EVERY = [
    pytest.param(name, marks=[needs_golden] * (name in GOLDEN) + [pytest.mark.slow] * (name in HEAVY)) for name in CASES
]


@functools.cache
def state_of(case):
    return CASES[case][0]()


@pytest.mark.parametrize("case", EVERY)
def test_every_tensor_by_value(case):
    _, ours, (model, backbone, layout), config, absent = CASES[case]
    state = state_of(case)
    tensors, description = named(state)
    expected = {ours(name): tensor for name, tensor in state.items() if ours(name) is not None}
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensors[name], tensor), name
    assert (description["model"], description["backbone"], description["layout"]) == (model, backbone, layout)
    assert description["config"] == config
    assert description["absent"] == absent
    ignored = tuple(description["ignored"])
    assert {name for name in state if ours(name) is None} == {n for n in state if ignored and n.startswith(ignored)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "backbone"), [(SAM2_S, "sam2-hiera-s"), (SAM2_B, "sam2-hiera-b+"), (SAM2_L, "sam2-hiera-l")]
)
def test_larger_sam2(config, backbone):
    state = upstream.sam2(config)
    tensors, description = named(state)
    assert description["backbone"] == backbone
    assert description["layout"] == "sam2.1"
    assert {ours_from_sam2(name) for name in state} - {None} == tensors.keys()


# --- the networks take what is read --------------------------------------------------------------------------------


@needs_golden
@pytest.mark.parametrize("case", ["2023", "anchor-2024", "query-2024"])
def test_the_networks_have_these_names(case):
    """Read tensors plus the absent ones are the network's state dict, name by name and shape by shape."""
    from rsgeoseg.models import rsprompter_anchor, rsprompter_query
    from rsgeoseg.models.rsprompter_anchor.config import AnchorConfig
    from rsgeoseg.models.rsprompter_query.config import QueryConfig
    from rsgeoseg.weights.files import config_from_json

    tensors, description = named(state_of(case))
    module, kind = (rsprompter_query, QueryConfig) if case == "query-2024" else (rsprompter_anchor, AnchorConfig)
    with torch.device("meta"):
        network = module.build(description["backbone"], config_from_json(kind, description["config"]), pretrained=False)
    own = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    absent = tuple(description["absent"])
    wanted = {name: shape for name, shape in own.items() if not (absent and name.startswith(absent))}
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == wanted


@pytest.mark.slow
@pytest.mark.parametrize("case", ["sam-b", "sam2.1-t"])
def test_encoders_and_decoders_have_these_names(case):
    from rsgeoseg.backbones.build import build_encoder
    from rsgeoseg.backbones.sam2_parts import Sam2PromptedDecoder
    from rsgeoseg.backbones.sam_parts import SamPromptedDecoder

    tensors, description = named(state_of(case))
    decoder = SamPromptedDecoder() if case == "sam-b" else Sam2PromptedDecoder(skip_channels=(256, 256))
    own = build_encoder(description["backbone"], pretrained=False).state_dict(prefix="encoder.")
    own |= decoder.state_dict(prefix="sam.")
    assert {name: tensor.shape for name, tensor in tensors.items()} == {name: t.shape for name, t in own.items()}


@needs_golden
@torch.no_grad()
def test_hugging_face_decoder_computes_the_same():
    """The middle layers' names shift by one: only a computation tells a swap of equal shapes for sure."""
    from transformers import SamConfig
    from transformers.models.sam.modeling_sam import SamMaskDecoder

    from rsgeoseg.backbones.sam_parts import SamPromptedDecoder

    torch.manual_seed(0)
    config = SamConfig().mask_decoder_config
    config.layer_norm_eps = 1e-5  # segment-anything's
    theirs = SamMaskDecoder(config).eval()
    for parameter in theirs.parameters():
        parameter.normal_(std=0.1)
    state = {f"mask_decoder.{name}": tensor for name, tensor in theirs.state_dict().items()}
    tensors, _ = named(upstream.huggingface() | state)
    ours = SamPromptedDecoder(grid=8).eval()
    ours.load_state_dict({n.removeprefix("sam."): t for n, t in tensors.items() if n.startswith("sam.")})
    embedding, pe = torch.randn(1, 256, 8, 8), torch.randn(1, 256, 8, 8)
    sparse, dense = torch.randn(2, 3, 256), torch.randn(1, 256, 8, 8)
    masks, tokens = ours(embedding, pe, torch.zeros(2, dtype=torch.int64), sparse, dense)
    expected, iou = theirs(
        image_embeddings=embedding,
        image_positional_embeddings=pe,
        sparse_prompt_embeddings=sparse[None],
        dense_prompt_embeddings=dense,
        multimask_output=False,
    )[:2]
    torch.testing.assert_close(masks, expected[0, :, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.iou(tokens), iou[0, :, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@needs_golden
@torch.no_grad()
def test_hugging_face_encoder_computes_the_same():
    """Three blocks, two with windows and one without, and the neck."""
    from transformers import SamConfig
    from transformers.models.sam.modeling_sam import SamVisionEncoder

    from rsgeoseg.backbones.sam_vit import build_sam_vit

    torch.manual_seed(0)
    config = SamConfig().vision_config
    config._attn_implementation = "eager"
    theirs = SamVisionEncoder(config).eval()
    for name, parameter in theirs.named_parameters():
        parameter.normal_(mean=float("norm" in name and name.endswith("weight")), std=0.02)
    state = {f"vision_encoder.{name}": tensor for name, tensor in theirs.state_dict().items()}
    tensors, _ = named(upstream.huggingface() | state)
    ours = build_sam_vit("b", layers=[0], precision="fp32")
    ours.load_state_dict({n.removeprefix("encoder."): t for n, t in tensors.items() if n.startswith("encoder.")})
    theirs.layers, ours.image_encoder.blocks = theirs.layers[:3], ours.image_encoder.blocks[:3]
    image = torch.randn(1, 3, 1024, 1024)
    found, expected = ours(image).embedding, theirs(image).last_hidden_state
    assert (found - expected).norm() / expected.norm() < 1e-4


# --- strictness ----------------------------------------------------------------------------------------------------

STRICT = [p for p in EVERY if p.values[0] in ("sam-b", "hf", "sam2.1-t", "2023-whu", "anchor-2024", "query-2024")]


def some_names(state):
    """A spread of names, and the ones that sizes are read off."""
    other = (*VIDEO_MEMORY, "prompt_encoder.shared_embedding.", "shared_image_embedding.positional")  # tested apart
    names = [n for n in state if not n.startswith(other)]
    sizes = ("pos_embed", "fc_cls.weight", "point_emb.8.weight", "point_emb.4.weight", "query_feat.weight")
    return sorted({*names[:: len(names) // 8], *(n for n in names if n.endswith(sizes))})


@pytest.mark.parametrize("case", STRICT)
def test_a_missing_tensor_is_named(case):
    state = state_of(case)
    for name in some_names(state):
        text = message(named, {key: value for key, value in state.items() if key != name})
        assert f"1 missing ({name})" in text


@pytest.mark.parametrize("case", STRICT)
def test_an_unknown_tensor_is_named(case):
    for name in ("head.weight", f"{some_names(state_of(case))[0]}.extra", "zz"):
        text = message(named, state_of(case) | {name: torch.zeros(1)})
        assert f"0 missing, 1 unknown ({name})" in text
        assert str(PATH) in text


@pytest.mark.parametrize("case", STRICT)
def test_another_shape_is_named(case):
    state = state_of(case)
    for name in some_names(state)[::2]:
        wrong = torch.zeros(*state[name].shape, 2)
        text = message(named, state | {name: wrong})
        assert f"'{name}'" in text
        assert str(tuple(wrong.shape)) in text


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_named(bad):
    name = "mask_decoder.iou_token.weight"
    wrong = torch.zeros(1, 256)
    wrong[0, 17] = bad
    assert f"'{name}' holds NaN or infinite" in message(named, state_of("sam-b") | {name: wrong})


def test_unknown_layouts_and_sizes():
    assert "not a layout that can be read (first tensors layer1.weight)" in message(
        named, {"layer1.weight": torch.zeros(1)}
    )
    odd = {n: t for n, t in state_of("sam-b").items() if ".blocks.11." not in n}
    text = message(named, odd)
    assert "11 blocks: none of ViT-B, ViT-L, ViT-H" in text
    encoder_only = {n: t for n, t in state_of("sam-b").items() if n.startswith("image_encoder.")}
    assert "missing (mask_decoder." in message(named, encoder_only)


@needs_golden
def test_the_two_copies_of_hugging_face_s_matrix():
    state, copy = state_of("hf"), "prompt_encoder.shared_embedding.positional_embedding"
    assert copy in named(state)[1]["ignored"]
    assert named({n: t for n, t in state.items() if n != copy})[1]["ignored"] == []
    assert f"'{copy}'" in message(named, state | {copy: torch.zeros(2, 128)})


@needs_golden
def test_odd_head_sizes():
    state = state_of("anchor-2024")
    name = "roi_head.mask_head.point_emb.8.weight"
    assert f"'{name}' has shape (2561, 256), expected a multiple of 512 rows" in message(
        named, state | {name: torch.zeros(2561, 256)}
    )
    name = "roi_head.bbox_head.fc_cls.weight"
    assert "background alone" in message(named, state | {name: torch.zeros(1, 1024)})


@needs_golden
def test_normalisation_constants_are_ignored_by_name():
    state = state_of("anchor-2024") | {"data_preprocessor.mean": torch.zeros(3, 1, 1)}
    assert named(state)[1]["ignored"] == ["data_preprocessor."]


def test_numbers_become_float32():
    state = {name: tensor.half() for name, tensor in state_of("sam-b").items()}
    tensors, _ = named(state)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert all(torch.equal(tensors[ours_from_sam(name)], tensor.float()) for name, tensor in state.items())


# --- classes -------------------------------------------------------------------------------------------------------


@needs_golden
def test_class_names_come_from_the_caller_then_the_file():
    state, ten = state_of("anchor-2024"), [f"kind {index}" for index in range(10)]
    assert named(state, found=tuple(TEN))[1]["config"]["classes"] == TEN
    assert named(state, found=("a", "b"), classes=ten)[1]["config"]["classes"] == ten
    assert "has 10 classes, but 2 names are given" in message(named, state, classes=["a", "b"])
    assert "has 10 classes, but 3 names are in its meta data" in message(named, state, found=("a", "b", "c"))
    assert "has no classes to name" in message(named, state_of("sam-b"), classes=["a"])


@needs_golden
def test_a_published_file_is_known_by_its_digest(tmp_path, monkeypatch):
    path = upstream.saved(tmp_path / "whatever.pth", state_of("2023"))
    assert read_foreign(path).description["config"]["classes"] == TEN
    card = find_published("rsprompter-anchor-nwpu")
    assert read_foreign(path, digest=card.sha256).description["config"]["classes"] == list(card.classes)


# --- LoRA ----------------------------------------------------------------------------------------------------------


@needs_golden
@pytest.mark.parametrize("base", ["anchor-2024", "query-2024"])
@pytest.mark.parametrize(("alpha", "scale"), [(None, 2.0), (6.0, 1.5)])
def test_lora_is_merged(base, alpha, scale):
    state = state_of(base)
    wrapped = upstream.with_lora(state, rank=4)
    assert not any(n.startswith("backbone.vision_encoder.layers") for n in wrapped)
    tensors, description = named(wrapped, lora_alpha=alpha)
    plain, _ = named(state)
    assert description["lora"] == {"rank": 4, "alpha": alpha or 8.0, "alpha_given": alpha is not None, "layers": 12}
    assert tensors.keys() == plain.keys()
    for name, tensor in plain.items():
        if not name.endswith("attn.qkv.weight"):
            assert torch.equal(tensors[name], tensor), name
    for block in range(12):
        layer = f"backbone.vision_encoder.base_model.model.layers.{block}.attn.qkv"
        a, b = (wrapped[f"{layer}.lora_{half}.default.weight"].double() for half in "AB")
        by_hand = state[f"backbone.vision_encoder.layers.{block}.attn.qkv.weight"].double()
        by_hand = by_hand + scale * sum(b[:, r, None] * a[None, r] for r in range(4))
        merged = tensors[f"encoder.image_encoder.blocks.{block}.attn.qkv.weight"]
        torch.testing.assert_close(merged, by_hand.float(), rtol=1e-6, atol=1e-5)


@needs_golden
def test_lora_under_mmpretrain_s_names_and_without_base_layer():
    """mmpretrain's ViTSAM, and peft before it had ``base_layer``."""
    names = (
        (r"layer_norm([12])\.(weight|bias)$", r"ln\1.\2"),
        (r"mlp\.lin1\.", "ffn.layers.0.0."),
        (r"mlp\.lin2\.", "ffn.layers.1."),
        (r"\.neck\.conv1\.", ".channel_reduction.0."),
        (r"\.neck\.ln1\.", ".channel_reduction.1."),
        (r"\.neck\.conv2\.", ".channel_reduction.2."),
        (r"\.neck\.ln2\.", ".channel_reduction.3."),
        (r"\.base_layer\.", "."),
    )
    renamed = {}
    for name, tensor in upstream.with_lora(state_of("anchor-2024")).items():
        theirs = name
        for pattern, replacement in names if name.startswith("backbone.") else ():
            theirs = re.sub(pattern, replacement, theirs)
        renamed[theirs] = tensor
    assert "backbone.vision_encoder.base_model.model.channel_reduction.3.bias" in renamed
    assert "backbone.vision_encoder.base_model.model.layers.0.ffn.layers.0.0.weight" in renamed
    tensors, _ = named(renamed)
    expected, _ = named(upstream.with_lora(state_of("anchor-2024")))
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())


@needs_golden
def test_broken_adapters_are_named():
    wrapped = upstream.with_lora(state_of("anchor-2024"))
    layer = "backbone.vision_encoder.base_model.model.layers.3.attn.qkv"
    name = "'backbone.vision_encoder.layers.3.attn.qkv.weight'"
    half = {key: value for key, value in wrapped.items() if key != f"{layer}.lora_A.default.weight"}
    assert f"adapter of {name} lacks" in message(named, half)
    without = {key: value for key, value in wrapped.items() if key != f"{layer}.base_layer.weight"}
    assert f"adapter of {name} lacks" in message(named, without)
    for shape in ((4, 700), (5, 768), (768,)):
        text = message(named, wrapped | {f"{layer}.lora_A.default.weight": torch.zeros(shape)})
        assert f"adapter of {name} does not fit" in text
    odd = {
        f"{layer}.lora_A.default.weight": torch.zeros(2, 768),
        f"{layer}.lora_B.default.weight": torch.zeros(2304, 2),
    }
    assert "ranks [2, 4]" in message(named, wrapped | odd)


# --- files ---------------------------------------------------------------------------------------------------------


def test_a_file_of_another_size_is_named(tmp_path):
    path = upstream.saved(tmp_path / "sam_vit_h.pth", upstream.sam("h"))
    file = read_foreign(path)
    require_backbone(file, "sam-vit-h", path)
    assert "expected ViT-B, found 1280-wide ViT-H" in message(require_backbone, file, "sam-vit-b", path)
    assert "expected Hiera-B+, found 1280-wide ViT-H" in message(require_backbone, file, "sam2-hiera-b+", path)
    assert "expected lite, found 1280-wide ViT-H" in message(require_backbone, file, "lite", path)


def test_digest(tmp_path):
    import hashlib

    path = upstream.saved(tmp_path / "a.pth", state_of("sam-b"))
    assert read_foreign(path).digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_foreign(path, digest="given").digest == "given"
