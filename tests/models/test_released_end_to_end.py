"""Whole files of the authors' layouts: converted, loaded by name, and a chip segmented as their code would.

Values follow the formula of the reference numbers. The heads are compared with those numbers elsewhere
(``test_anchor_golden``, ``test_query_golden``); here the way in and the way out are written down a second time, and the
steps between are run on the features that the encoder gave.
"""

import argparse
import functools
import importlib.util
from pathlib import Path

import cv2
import golden
import numpy as np
import pytest
import torch
import typer.testing
from torch.nn import functional as F

import rsgeoseg
from rsgeoseg.backbones.features import Features
from rsgeoseg.cli.weights import weights_app
from rsgeoseg.contract import Chip
from rsgeoseg.nn.box_head import detect
from rsgeoseg.weights.files import read_weights
from rsgeoseg.weights.layouts_huggingface import encoder_name

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not golden.FOLDER.is_dir(), reason="NOT RUN: reference numbers ../shared/golden are absent"),
]

_PLACE = importlib.util.spec_from_file_location("upstream", Path(__file__).parents[1] / "weights" / "upstream.py")
upstream = importlib.util.module_from_spec(_PLACE)
_PLACE.loader.exec_module(upstream)

CLASSES = tuple(f"kind {index}" for index in range(10))
MEAN, STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
COMPARED = 16
"""Masks that are decoded a second time."""


def formula(shapes, overrides):
    return {
        name: torch.tensor(7) if name.endswith("num_batches_tracked") else golden.fill(name, tuple(shape), overrides)
        for name, shape in shapes.items()
    }


def anchor_2023():
    """The layout of 2023 at the size of ViT-B: the published ViT-H differs in widths and number of maps alone."""
    description, _ = golden.load("rsprompter_v1_anchor_vit_h_head")
    shapes = {name: shape for name, shape in description["keys"].items() if not name.startswith("backbone.")}
    for name in [n for n in shapes if "down_sample_layers" in n or "fusion_layers" in n]:
        if int(name.split(".")[3]) >= 4:  # blocks 4, 6, 8, 10
            del shapes[name]
        elif "down_sample" in name and name.endswith("0.conv.weight"):
            shapes[name] = (32, 768, 1, 1)
    shapes |= {name: tuple(tensor.shape) for name, tensor in upstream.sam("b", "backbone.").items()}
    return formula(shapes, description["formula_overrides"])


def of_2024(name):
    description, _ = golden.load(name)
    return formula(description["keys"], description["formula_overrides"])


def of_lora_configs(name):
    """What the configs ``*-peft-512.py`` save: another aggregator, and an encoder of mmpretrain with tables for 512."""
    description, _ = golden.load(name)
    shapes = {n: shape for n, shape in description["keys"].items() if not n.startswith("neck.feature_aggregator.")}
    place = "neck.feature_aggregator.channel_fusion"
    for index, shape in enumerate(((512, 256, 1, 1), (512, 512, 3, 3), (256, 512, 3, 3))):
        shapes |= {f"{place}.{2 * index}.weight": shape}
        shapes |= {f"{place}.{2 * index + 1}.{part}": shape[:1] for part in ("weight", "bias")}
    shapes["backbone.vision_encoder.pos_embed"] = (1, 32, 32, 768)
    for block in (2, 5, 8, 11):
        for axis in "hw":
            shapes[f"backbone.vision_encoder.layers.{block}.attn.rel_pos_{axis}"] = (63, 64)
    return formula(shapes, description["formula_overrides"])


_MMPRETRAIN = {
    ".layer_norm1.": ".ln1.",
    ".layer_norm2.": ".ln2.",
    ".mlp.lin1.": ".ffn.layers.0.0.",
    ".mlp.lin2.": ".ffn.layers.1.",
    "neck.conv1.": "channel_reduction.0.",
    "neck.layer_norm1.": "channel_reduction.1.",
    "neck.conv2.": "channel_reduction.2.",
    "neck.layer_norm2.": "channel_reduction.3.",
}


def mmpretrain(state):
    """The encoder under mmpretrain's names."""
    renamed = {}
    for name, tensor in state.items():
        theirs = name
        if name.startswith("backbone."):
            for hugging_face, other in sorted(_MMPRETRAIN.items(), key=lambda pair: -len(pair[0])):
                theirs = theirs.replace(hugging_face, other)
        renamed[theirs] = tensor
    return renamed


def with_small_lora(state):
    """peft's adapters of rank 16 on every ``qkv``, as the authors have them, too small to drown the weights."""
    wrapped = upstream.with_lora(state, rank=16)
    return {name: 0.02 * x if ".lora_" in name else x for name, x in wrapped.items()}


def merged(state, wrapped):
    """W + alpha / r B A with alpha = 32 and r = 16."""
    whole = dict(state)
    for name in [n for n in state if n.endswith("qkv.weight")]:
        layer = name.replace("vision_encoder.", "vision_encoder.base_model.model.").removesuffix(".weight")
        a, b = (wrapped[f"{layer}.lora_{half}.default.weight"] for half in "AB")
        whole[name] = state[name] + 2.0 * (b @ a)
    return whole


def mmengine(state):
    return {
        "meta": {"dataset_meta": {"classes": CLASSES}},
        "state_dict": state,
        "message_hub": argparse.Namespace(),
        "optimizer": {"state": {}, "param_groups": []},
    }


def lightning(state):
    return {"state_dict": state, "pytorch-lightning_version": "2.0.6", "hyper_parameters": argparse.Namespace()}


@pytest.fixture
def folder(tmp_path):
    """Hundreds of megabytes are not left behind."""
    yield tmp_path
    for path in tmp_path.iterdir():
        path.unlink()


def converted(folder, name, content, *options):
    """Save in the authors' layout, then `rsgeoseg weights convert`."""
    source, target = upstream.saved(folder / f"{name}.pth", content), folder / f"{name}.safetensors"
    result = typer.testing.CliRunner().invoke(weights_app, ["convert", str(source), "-o", str(target), *options])
    assert result.exit_code == 0, (result.output, result.exception)
    source.unlink()
    return target


def loaded(folder, name, content, *options):
    """What a user does: convert, load by name."""
    target = converted(folder, "ours", content, *options)
    model = rsgeoseg.load_model(name, weights=target, device="cpu")
    assert model.spec.weights_id.startswith("ours.safetensors@")
    assert model.spec.classes == CLASSES
    return model


def picture(height, width):
    rng = np.random.default_rng(height)
    image = rng.integers(60, 120, (3, height, width)).astype(np.uint8)
    for _ in range(12):
        y, x = int(rng.integers(0, height - 40)), int(rng.integers(0, width - 60))
        image[:, y : y + 40, x : x + 60] = rng.integers(130, 255, (3, 1, 1))
    return Chip(image=image, valid=np.ones((height, width), np.bool_))


def prepared(image, policy, side):
    """The authors' test pipelines on a BGR image as OpenCV reads it: (1, 3, side, side) normalised RGB."""
    bgr = np.ascontiguousarray(image[::-1].transpose(1, 2, 0))
    if policy == "squash":  # whole numbers in, whole numbers out
        square = cv2.resize(bgr, (side, side), interpolation=cv2.INTER_LINEAR).astype(np.float32)
    else:  # to_float32, keep_ratio, padded with the mean
        h, w = bgr.shape[:2]
        scale = side / max(h, w)
        size = int(w * scale + 0.5), int(h * scale + 0.5)
        resized = cv2.resize(bgr.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
        square = np.empty((side, side, 3), np.float32)
        square[:] = MEAN[::-1]
        square[: size[1], : size[0]] = resized
    return torch.from_numpy(((square[..., ::-1] - MEAN) / STD).astype(np.float32).transpose(2, 0, 1))[None]


def segmented(model, chip, policy):
    """Instances of a chip, and the features that they were made from; the encoder must have seen the right pixels."""
    seen = {}
    handle = model.network.encoder.register_forward_hook(lambda _, given, out: seen.update(given=given[0], out=out))
    try:
        (found,) = model.segment([chip])
    finally:
        handle.remove()
    torch.testing.assert_close(
        seen["given"], prepared(chip.image, policy, model.network.encoder.spec.image_size), atol=1e-5, rtol=0
    )
    assert seen["out"].embedding.dtype == torch.float32
    return found, Features(seen["out"].embedding.clone(), tuple(x.clone() for x in seen["out"].hidden))


def resized(maps, size):
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def compare(found, masks, scores, labels):
    """The best instances, mask for mask; ``masks``, ``scores`` and ``labels`` in order of score, none of them empty."""
    assert len(masks) >= 4
    np.testing.assert_allclose(found.scores[: len(scores)], scores, atol=1e-5)
    np.testing.assert_array_equal(found.labels[: len(labels)], labels)
    for mask, box, cut in zip(masks, found.boxes.tolist(), found.masks, strict=False):
        pasted = np.zeros(mask.shape, np.bool_)
        pasted[box[1] : box[3], box[0] : box[2]] = cut
        # the decoder adds up batches of another size in another order
        assert (pasted != mask).sum() <= 5


def check_anchor(model, chip, policy):
    """What ``test_cfg`` and the mask heads of both generations prescribe."""
    found, features = segmented(model, chip, policy)
    network, (h, w) = model.network, chip.valid.shape
    side = network.encoder.spec.image_size
    with torch.inference_mode():
        scene = network.describe(features, (side, side))
        proposals, _ = network.rpn.propose(scene.maps, scene.size)
        logits, deltas = network.classify(scene, proposals)
        boxes = detect(logits, deltas, proposals[0], (side, side), score_threshold=0.05, nms=0.5, most=100, flat=True)
        masks, _ = network.masks(scene, [boxes.boxes[:COMPARED]])
    probability = masks.sigmoid()
    if policy == "longest":
        scale_w, scale_h = int(w * side / max(h, w) + 0.5) / w, int(h * side / max(h, w) + 0.5) / h
        probability = resized(probability, (side, side))[:, : int(h * scale_h), : int(w * scale_w)]
    full = (resized(probability, (h, w)) >= 0.5).numpy()
    some = full.any((1, 2))
    assert len(found) <= len(boxes.boxes) <= 100
    assert found.scores.min() > 0.05
    compare(found, full[some], boxes.scores.numpy()[:COMPARED][some], boxes.labels.numpy()[:COMPARED][some])
    return found, features


def check_query(model, chip, policy):
    """What the fusion head prescribes; every query has a mask."""
    found, features = segmented(model, chip, policy)
    network, (h, w) = model.network, chip.valid.shape
    side = network.encoder.spec.image_size
    with torch.inference_mode():
        scene = network.describe(features)
        last = network.decode(scene, network.start(scene))[-1]
        count = network.config.num_queries
        probability, index = last.class_logits[0].softmax(-1)[:, :-1].flatten().topk(count)
        query, label = index // len(CLASSES), index % len(CLASSES)
        image = torch.zeros_like(query)
        logits = network.fine_logits(scene, last, network.coarse_logits(scene, last, None, image, query), image, query)
    scale_w, scale_h = int(w * side / max(h, w) + 0.5) / w, int(h * side / max(h, w) + 0.5) / h
    full = resized(resized(logits, (side, side))[:, : int(h * scale_h), : int(w * scale_w)], (h, w))
    masks = full > 0
    quality = (full.sigmoid() * masks).sum((1, 2)) / (masks.sum((1, 2)) + 1e-6)
    scores = (probability * quality).numpy()
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] > 1e-6]
    assert len(found) == len(order)
    compare(found, masks.numpy()[order], scores[order], label.numpy()[order])
    return found, features


def test_anchor_of_2023_from_lightning(folder):
    """Resized, and at the encoder's own size, where nothing is but masks still go back as probabilities."""
    state = anchor_2023()
    model = loaded(folder, "rsprompter-anchor", lightning(state), "--classes", ",".join(CLASSES))
    assert model.network.config.generation == "2023"
    assert model.spec.score_threshold == 0.5
    found, _ = check_anchor(model, picture(150, 220), "squash")
    assert found.scores.min() < 0.5
    check_anchor(model.at_threshold(float(found.scores[8])), picture(1024, 1024), "squash")
    flat = upstream.saved(folder / "NWPU_anchor.pth", state)  # the published files are like this, and load as they are
    again = rsgeoseg.load_model("rsprompter-anchor", weights=flat, device="cpu").network.state_dict()
    assert all(torch.equal(again[name], x) for name, x in model.network.state_dict().items())


def test_anchor_of_2024_from_mmengine_with_lora(folder):
    state = of_2024("rsprompter_v2_anchor_head")
    wrapped = with_small_lora(state)
    model = loaded(folder, "rsprompter-anchor", mmengine(wrapped))
    whole = merged(state, wrapped)
    for index, block in enumerate(model.network.encoder.image_encoder.blocks):
        expected = whole[f"backbone.vision_encoder.layers.{index}.attn.qkv.weight"]
        torch.testing.assert_close(block.attn.qkv.weight, expected, atol=1e-6, rtol=1e-6)
    check_anchor(model, picture(333, 500), "longest")


def test_query_of_2024_from_mmengine(folder, monkeypatch):
    state = of_2024("rsprompter_v2_query_head")
    model = loaded(folder, "rsprompter-query", mmengine(state))
    found, features = check_query(model, picture(333, 500), "longest")
    monkeypatch.setattr(model.network.encoder, "forward", lambda _: features)
    thrifty = model.at_threshold(0.3).segment([picture(333, 500)])[0]
    assert 0 < len(thrifty) == (found.scores >= 0.3).sum()
    np.testing.assert_allclose(thrifty.scores, found.scores[: len(thrifty)], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "reference", "check"),
    [
        ("rsprompter-anchor", "rsprompter_v2_anchor_head", check_anchor),
        ("rsprompter-query", "rsprompter_v2_query_head", check_query),
    ],
    ids=["anchor", "query"],
)
def test_the_configs_with_lora(folder, name, reference, check):
    """512 pixels, the enhancer on the image embedding alone, adapters on mmpretrain's encoder."""
    from segment_anything.modeling import ImageEncoderViT

    state = of_lora_configs(reference)
    wrapped = with_small_lora(state)
    model = loaded(folder, name, mmengine(mmpretrain(wrapped)))
    config = model.network.config
    assert (config.aggregate, config.image_size, config.resize) == ("embedding", 512, "longest")
    assert model.spec.chip_size == 512
    chip = picture(200, 317)
    _, features = check(model, chip, "longest")
    size = {"depth": 12, "embed_dim": 768, "num_heads": 12, "global_attn_indexes": (2, 5, 8, 11)}
    norm = functools.partial(torch.nn.LayerNorm, eps=1e-6)
    package = ImageEncoderViT(img_size=512, use_rel_pos=True, window_size=14, norm_layer=norm, **size)
    whole = merged(state, wrapped)
    package.load_state_dict(
        {n: whole[f"backbone.vision_encoder.{encoder_name(n)}"] for n in package.state_dict()}, strict=True
    )
    with torch.no_grad():
        expected = package(prepared(chip.image, "longest", 512))
    torch.testing.assert_close(features.embedding, expected, atol=1e-3, rtol=1e-3)


def test_lora_merged_by_the_trainer_or_here_is_one_network(folder):
    """Merged weights need nothing; adapters are merged on import, under the names of either encoder."""
    state = of_2024("rsprompter_v2_query_head")
    wrapped = with_small_lora(state)
    files = {}
    for name, content in (("merged", merged(state, wrapped)), ("adapters", wrapped)):
        files[name] = read_weights(converted(folder, name, mmengine(content)))
    assert files["adapters"].description["lora"] == {"rank": 16, "alpha": 32.0, "alpha_given": False, "layers": 12}
    assert files["adapters"].description["config"] == files["merged"].description["config"]
    assert files["adapters"].description["config"]["resize"] == "longest"
    for name, tensor in files["merged"].tensors.items():
        torch.testing.assert_close(files["adapters"].tensors[name], tensor, atol=1e-6, rtol=1e-6)
