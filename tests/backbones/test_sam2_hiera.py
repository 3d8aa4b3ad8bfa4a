"""SAM 2's Hiera encoders against the sam2 package, built from its own configurations, with the same random weights."""

import functools
import math
import pickle
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from rsgeoseg.backbones.attention import blocked_attention, plain_attention
from rsgeoseg.backbones.nested import finer, inverse, nested_order
from rsgeoseg.backbones.packed import compute_dtype
from rsgeoseg.backbones.sam2_hiera import SIZES, build_sam2_hiera
from rsgeoseg.errors import ModelError

CPU = torch.device("cpu")
needs_bf16 = pytest.mark.skipif(compute_dtype(CPU) is torch.float32, reason="this processor has no bf16 products")


@functools.cache
def package_encoder(size):
    """Build the package's encoder by its own configuration, every parameter with a value that matters."""
    import sam2
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    config = OmegaConf.load(Path(sam2.__file__).parent / "configs" / "sam2.1" / f"sam2.1_hiera_{size}.yaml")
    encoder = instantiate(config.model.image_encoder)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in encoder.named_parameters():
            fan = value[0].numel() if value.ndim > 1 else 1
            scale = 0.3 if "pos" in name or value.ndim == 1 else fan**-0.5
            value.copy_(torch.randn(value.shape, generator=generator) * scale + (value.ndim == 1 and "norm" in name))
    return encoder.eval()


NO_MEMORY = torch.randn(1, 1, 256, generator=torch.Generator().manual_seed(9))


@functools.cache
def ours_of(size, precision="fp32"):
    """Ours with the package's weights, loaded strictly by name."""
    ours = build_sam2_hiera(size, precision=precision)
    state = {f"image_encoder.{name}": x for name, x in package_encoder(size).state_dict().items()}
    ours.load_state_dict(state | {"no_mem_embed": NO_MEMORY})
    return ours


@torch.no_grad()
def expected(size, x):
    """Every map of the package, in the order of ``maps_of``."""
    encoder = package_encoder(size)
    fine, middle, deep = encoder(x)["backbone_fpn"]
    return [deep + NO_MEMORY.view(1, -1, 1, 1), fine, middle, *encoder.trunk(x)]


def maps_of(features):
    return [features.embedding, *features.skips, *features.hidden]


def images(b=1, h=256, w=256, seed=1):
    return torch.randn(b, 3, h, w, generator=torch.Generator().manual_seed(seed))


def relative_error(ours, reference):
    assert ours.shape == reference.shape
    return ((ours - reference).norm() / reference.norm()).item()


# 7 cells of stride 32 (t, s, b+) or 8 (l) make a window: whole ones only, cut on the right, below, on both sides, and
# images smaller than a window
SHAPES = [(224, 224), (256, 256), (96, 320), (480, 224), (32, 64)]
CASES = [
    (size, shape) for size in SIZES for shape in SHAPES if size in {"t", "s"} or shape not in {(480, 224), (224, 224)}
]


@pytest.mark.parametrize(("size", "shape"), CASES)
def test_equals_the_package_in_fp32(size, shape):
    x = images(1, *shape)
    for ours, theirs in zip(maps_of(ours_of(size)(x)), expected(size, x), strict=True):
        assert ours.dtype == torch.float32
        assert relative_error(ours, theirs) < 1e-5


@pytest.mark.slow
def test_equals_the_package_at_full_size():
    x = images(1, 1024, 1024)
    for ours, theirs in zip(maps_of(ours_of("t")(x)), expected("t", x), strict=True):
        assert relative_error(ours, theirs) < 1e-5


@needs_bf16
@pytest.mark.parametrize("size", ["t", "b+"])
def test_bf16_is_close_and_returns_fp32(size):
    rounded = maps_of(ours_of(size, "bf16")(images(1, 256, 320)))
    for ours, theirs in zip(rounded, expected(size, images(1, 256, 320)), strict=True):
        assert ours.dtype == torch.float32
        assert 1e-5 < relative_error(ours, theirs) < 2e-2  # really rounded, and only rounded


@needs_bf16
@torch.no_grad()
def test_bf16_draws_the_same_masks():
    """Mean IoU >= 0.99 between masks of the fast path and of the package's encoder in fp32, one decoder for both."""
    from rsgeoseg.backbones.sam2_parts import Sam2PromptedDecoder

    torch.manual_seed(0)
    decoder = Sam2PromptedDecoder(skip_channels=(256, 256)).eval()
    smooth = F.interpolate(images(1, 12, 12), size=(512, 512), mode="bicubic")
    boxes = torch.tensor([[40.0, 60, 200, 220], [100, 100, 480, 300], [10, 300, 90, 500], [250, 20, 500, 200]])

    def logits(maps):
        index = torch.zeros(len(boxes), dtype=torch.int64)
        skips = decoder.project_skips(maps[1:3])
        sparse, dense = decoder.sparse_prompts(boxes=boxes), decoder.no_mask()
        attended = decoder.attend(maps[0], decoder.image_pe(32, 32), index, sparse, dense, skips)
        return decoder.masks(attended, slice(None)).flatten(0, 1).flatten(1)

    fast, exact = logits(maps_of(ours_of("t", "bf16")(smooth))), logits(expected("t", smooth))
    ious = []
    for share in (0.5, 0.75, 0.9):  # a random decoder has no meaningful zero: cut at quantiles of the exact logits
        cut = exact.quantile(share, dim=1, keepdim=True)
        a, b = fast > cut, exact > cut
        ious.append((a & b).sum(1) / (a | b).sum(1))
    assert torch.cat(ious).mean() >= 0.99


def test_a_batch_is_its_images_and_strides_do_not_matter():
    encoder, batch = ours_of("t"), images(3, 256, 320).to(memory_format=torch.channels_last)
    together = maps_of(encoder(batch))
    for i in range(3):
        for many, one in zip(together, maps_of(encoder(batch[i : i + 1].contiguous())), strict=True):
            assert torch.equal(many[i : i + 1], one)


def test_a_few_windows_at_a_time_or_all_is_the_same(monkeypatch):
    encoder, x = ours_of("t"), images(1, 256, 320)  # 80 cells
    usual = maps_of(encoder(x))
    for cells in (1, 7, 80, 1000):
        monkeypatch.setattr("rsgeoseg.backbones.sam2_hiera._CHUNK", cells)
        for few, many in zip(maps_of(encoder(x)), usual, strict=True):
            torch.testing.assert_close(few, many, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_accelerator_path_has_the_shapes_of_the_spec(size):
    encoder = build_sam2_hiera(size).to("meta")
    spec = encoder.spec
    levels = [spec.embedding, *spec.skips, *spec.hidden]
    maps = maps_of(encoder(images(2, 256, 320).to("meta")))
    assert [tuple(x.shape) for x in maps] == [(2, at.channels, 256 // at.stride, 320 // at.stride) for at in levels]


# --- training ------------------------------------------------------------------------------------------------------


def test_with_gradients_the_package_runs_and_afterwards_the_weights_are_new():
    encoder, x = build_sam2_hiera("t", precision="fp32"), images(1, 64, 64)
    frozen = encoder(x)
    assert not frozen.embedding.requires_grad
    encoder.requires_grad_(requires_grad=True)
    trained = encoder(x)
    for ours, theirs in zip(maps_of(frozen), maps_of(trained), strict=True):
        assert relative_error(ours, theirs.detach()) < 1e-5
    (trained.embedding.sum() + trained.skips[0].sum()).backward()
    assert encoder.no_mem_embed.grad.abs().sum() > 0
    assert encoder.image_encoder.trunk.blocks[0].attn.qkv.weight.grad.abs().sum() > 0
    with torch.no_grad():  # as an optimiser does: in place, unseen
        encoder.image_encoder.trunk.blocks[0].mlp.layers[0].weight.mul_(2)
    encoder.requires_grad_(requires_grad=False)
    assert relative_error(encoder(x).embedding, frozen.embedding) > 0.05


def test_prepared_weights_follow_the_parameters():
    encoder, x = build_sam2_hiera("t", precision="fp32"), images(1, 64, 64)
    before = encoder(x).embedding
    nn.ModuleDict({"encoder": encoder}).load_state_dict(ours_of("t").state_dict(prefix="encoder."))
    after = encoder(x).embedding
    assert relative_error(after, before) > 0.1
    assert torch.equal(after, ours_of("t")(x).embedding)
    assert torch.equal(pickle.loads(pickle.dumps(encoder))(x).embedding, after)


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 3, 100, 128), (1, 3, 1056, 128), (1, 4, 128, 128), (3, 128, 128), (1, 3, 0, 32)])
def test_wrong_image_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="multiple of 32 up to 1024"):
        ours_of("t")(torch.zeros(shape))


def test_wrong_precision_is_refused():
    with pytest.raises(ValueError, match="auto, fp32, bf16, got 'fp8'"):
        build_sam2_hiera("t", precision="fp8")


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sam2.modeling.backbones.hieradet", None)
    with pytest.raises(ModelError, match=r"pip install 'rsgeoseg\[sam2\]'"):
        build_sam2_hiera("t")


# --- the order of tokens -------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(h=st.integers(1, 20), w=st.integers(1, 20), side=st.integers(1, 9))
def test_every_window_is_a_run_of_neighbours(h, w, side):
    order, windows = nested_order(h, w, side)
    assert order.sort().values.tolist() == list(range(h * w))
    assert order[inverse(order)].tolist() == list(range(h * w))
    start, seen = 0, set()
    for group in windows:
        assert group.start == start
        for number in range(group.count):
            cells = order[start + number * group.cells : start + (number + 1) * group.cells]
            homes = {(int(cell) // w // side, int(cell) % w // side) for cell in cells}
            assert len(homes) == 1
            assert not homes & seen
            seen |= homes
            assert len(cells) + group.missing == side * side
        start = group.stop
    assert start == h * w
    assert len(seen) == math.ceil(h / side) * math.ceil(w / side)


@settings(max_examples=30, deadline=None)
@given(h=st.integers(1, 6), w=st.integers(1, 6), seed=st.integers(0, 100))
def test_every_cell_is_followed_by_its_four(h, w, seed):
    order = torch.randperm(h * w, generator=torch.Generator().manual_seed(seed))
    fine = finer(order, w)
    assert fine.sort().values.tolist() == list(range(4 * h * w))
    for cell, four in zip(order.tolist(), fine.view(-1, 4).tolist(), strict=True):
        y, x = divmod(cell, w)
        assert [divmod(one, 2 * w) for one in four] == [(2 * y + dy, 2 * x + dx) for dy in (0, 1) for dx in (0, 1)]


# --- attention without positions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bf16)])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(12, 12), (5, 20), (40, 40)])
def test_plain_attention_is_the_definition(monkeypatch, dtype, with_bias, queries, keys):
    monkeypatch.setattr("rsgeoseg.backbones.attention.BLOCK_QUERIES", 16)  # 40 queries go by blocks
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, generator=generator).to(dtype) for n in (queries, keys, keys))
    bias = torch.randn(keys, generator=generator).to(dtype) if with_bias else None
    scores = q.double() @ k.double().transpose(2, 3) + (0 if bias is None else bias.double())
    wanted = (scores.softmax(-1) @ v.double()).transpose(1, 2)
    error = relative_error(plain_attention(q, k, v, bias).double(), wanted)
    assert error < (1e-6 if dtype is torch.float32 else 1e-2)


def test_blocks_without_positions_cover_every_query(monkeypatch):
    monkeypatch.setattr("rsgeoseg.backbones.attention.BLOCK_QUERIES", 8)
    q, k, v = torch.randn(3, 2, 21, 4, dtype=torch.float64)
    out = torch.full_like(q, torch.nan)
    blocked_attention(q, k, v, None, (21, 1), out)
    torch.testing.assert_close(out, torch.softmax(q @ k.transpose(1, 2), -1) @ v)
