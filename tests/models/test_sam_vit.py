"""The SAM ViT encoder against the segment-anything package's own forward pass; official files, whole and damaged."""

import copy
import pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from segment_anything import sam_model_registry
from segment_anything.modeling import ImageEncoderViT
from torch import nn

from rsgeoseg.backbones.attention import blocked_attention, folded_attention, relative_bias, relative_table
from rsgeoseg.backbones.packed import PackedLinear, compute_dtype
from rsgeoseg.backbones.sam_vit import SamVit, build_sam_vit, split_sam_checkpoint
from rsgeoseg.errors import WeightsError
from rsgeoseg.weights.files import write_weights

CPU = torch.device("cpu")
needs_bf16 = pytest.mark.skipif(compute_dtype(CPU) is torch.float32, reason="this processor has no bf16 products")


def randomise(module, seed=0):
    """Give every parameter a value that matters: the package starts positions at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            fan = value[0].numel() if value.ndim > 1 else 1
            scale = 0.3 if "pos" in name or value.ndim == 1 else fan**-0.5
            value.copy_(torch.randn(value.shape, generator=generator) * scale + (value.ndim == 1 and "norm" in name))
    return module


def small_package_encoder(img_size=128, *, dim=40, heads=2, window=3):
    """Eight tokens a side, which a window of 3 does not divide; head width 20, whose scale is no power of two."""
    encoder = ImageEncoderViT(
        img_size=img_size, patch_size=16, embed_dim=dim, depth=4, num_heads=heads, out_chans=24, use_rel_pos=True,
        window_size=window, global_attn_indexes=(1, 3), norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    return randomise(encoder).eval()


def wrap(vit, *, layers=(0, 1, 3), image_size=128, precision="fp32"):
    return SamVit(vit, name="small", layers=layers, image_size=image_size, precision=precision)


def relative_error(ours, reference):
    return ((ours - reference).norm() / reference.norm()).item()


def images(b=1, h=128, w=128, seed=1):
    return torch.randn(b, 3, h, w, generator=torch.Generator().manual_seed(seed))


def eager_attention(q, k, v, rel_h, rel_w, grid):
    """Definition, with loops: score of a pair = q.k + q.Rh[dy] + q.Rw[dx]."""
    h, w = grid
    bias = torch.zeros(len(q), h * w, h * w, dtype=q.dtype)
    for i in range(h * w):
        for j in range(h * w):
            dy, dx = i // w - j // w, i % w - j % w
            bias[:, i, j] = q[:, i] @ rel_h[dy + h - 1] + q[:, i] @ rel_w[dx + w - 1]
    return torch.softmax(q @ k.transpose(1, 2) + bias, -1) @ v


@settings(max_examples=15, deadline=None)
@given(h=st.integers(1, 5), w=st.integers(1, 5), heads=st.integers(1, 3), seed=st.integers(0, 1000))
def test_both_attention_forms_are_the_definition(h, w, heads, seed):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, heads, h * w, 6, generator=generator, dtype=torch.float64)
    rel_h = torch.randn(2 * h - 1, 6, generator=generator, dtype=torch.float64)
    rel_w = torch.randn(2 * w - 1, 6, generator=generator, dtype=torch.float64)
    table = torch.cat([relative_table(rel_h, h), relative_table(rel_w, w)], 1)
    expected = eager_attention(q, k, v, rel_h, rel_w, (h, w))
    torch.testing.assert_close(folded_attention(q, k, v, table, (h, w)), expected, rtol=1e-9, atol=1e-9)
    out = torch.full_like(q, torch.nan)
    blocked_attention(q, k, v, table, (h, w), out)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)


def test_blocks_cover_every_query_when_rows_do_not_divide(monkeypatch):
    monkeypatch.setattr("rsgeoseg.backbones.attention.BLOCK_QUERIES", 8)
    q, k, v = torch.randn(3, 2, 7 * 3, 4, dtype=torch.float64)  # two rows of three a block, seven rows
    table = torch.randn(4, 13 + 5, dtype=torch.float64)
    out = torch.full_like(q, torch.nan)
    blocked_attention(q, k, v, table, (7, 3), out)
    torch.testing.assert_close(out, folded_attention(q, k, v, table, (7, 3)))


def test_relative_bias_by_hand():
    rel = torch.tensor([[1.0], [2.0], [3.0]])  # distances -1, 0, +1 of query - key
    table = torch.cat([relative_table(rel, 2), relative_table(rel * 10, 2)], 1)
    q = torch.tensor([[[1.0], [1.0], [100.0], [1.0]]])  # 2 x 2 tokens, row-major
    to_rows, to_columns = relative_bias(q, table, (2, 2))
    assert to_rows[0, 0, 0].tolist() == [2, 1]  # first row: key row 0 at distance 0, key row 1 at -1
    assert to_rows[0, 1, 0].tolist() == [300, 200]
    assert to_columns[0, 0, 0].tolist() == [20, 10]
    assert to_columns[0, 0, 1].tolist() == [30, 20]


def test_packed_linear_is_linear():
    weight, bias, x = torch.randn(7, 5), torch.randn(7), torch.randn(2, 3, 5)
    torch.testing.assert_close(PackedLinear(weight, bias, torch.float32)(x), F.linear(x, weight, bias))
    gelu = PackedLinear(weight, None, torch.float32)(x, gelu=True)
    torch.testing.assert_close(gelu, F.gelu(F.linear(x, weight)), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_equals_the_package_in_fp32():
    vit = small_package_encoder()
    outputs = []
    hooks = [vit.blocks[i].register_forward_hook(lambda _m, _i, out: outputs.append(out)) for i in (0, 1, 3)]
    reference = vit(images(2))
    for hook in hooks:
        hook.remove()
    features = wrap(vit)(images(2))
    assert relative_error(features.embedding, reference) < 1e-5
    assert features.embedding.shape == (2, 24, 8, 8)
    for ours, theirs in zip(features.hidden, outputs, strict=True):
        assert relative_error(ours.permute(0, 2, 3, 1), theirs) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("window", [4, 14], ids=["divides", "larger than the image"])
def test_equals_the_package_for_other_windows(window):
    vit = small_package_encoder(window=window)
    assert relative_error(wrap(vit)(images()).embedding, vit(images())) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize(("h", "w"), [(96, 96), (64, 128), (16, 16)])
def test_smaller_images_resize_positions(h, w):
    vit = small_package_encoder()
    resized = copy.deepcopy(vit)
    grid = F.interpolate(vit.pos_embed.permute(0, 3, 1, 2), size=(h // 16, w // 16), mode="bicubic")
    resized.pos_embed = nn.Parameter(grid.permute(0, 2, 3, 1))  # the package itself resizes relative positions only
    assert relative_error(wrap(vit)(images(1, h, w)).embedding, resized(images(1, h, w))) < 1e-5


@needs_bf16
@torch.no_grad()
def test_bf16_is_close_and_returns_fp32():
    vit = small_package_encoder(dim=64)
    reference = wrap(vit)(images())
    features = wrap(vit, precision="bf16")(images())
    assert features.embedding.dtype == torch.float32
    error = relative_error(features.embedding, reference.embedding)
    assert 1e-5 < error < 2e-2  # really rounded, and only rounded


def test_auto_precision_follows_the_processor():
    encoder = wrap(small_package_encoder(), precision="auto")
    encoder(images())
    assert encoder._prepared[1] is compute_dtype(CPU)


def test_a_batch_is_its_images_and_strides_do_not_matter():
    encoder = wrap(small_package_encoder())
    batch = images(3).to(memory_format=torch.channels_last)
    together = encoder(batch)
    for i in range(3):
        alone = encoder(batch[i : i + 1].contiguous())
        assert torch.equal(together.embedding[i : i + 1], alone.embedding)
        assert all(torch.equal(a[i : i + 1], b) for a, b in zip(together.hidden, alone.hidden, strict=True))


def test_accelerator_path_has_the_same_shapes():
    encoder = wrap(small_package_encoder()).to("meta")
    features = encoder(images(2, 96, 128).to("meta"))
    assert features.embedding.shape == (2, 24, 6, 8)
    assert [tuple(h.shape) for h in features.hidden] == [(2, 40, 6, 8)] * 3


def test_accelerator_path_has_the_same_values():
    encoder = wrap(small_package_encoder())
    blocked = encoder(images(1, 96, 128)).embedding
    for block in encoder._prepared[2].blocks:
        block.blocked = False  # the form used on accelerators, run on the CPU
    folded = encoder(images(1, 96, 128)).embedding
    assert not torch.equal(folded, blocked)
    assert relative_error(folded, blocked) < 1e-5


def test_frozen_and_without_gradients():
    encoder = nn.Sequential(wrap(small_package_encoder())).train()
    assert not encoder[0].training
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not encoder(images().requires_grad_()).embedding.requires_grad
    with torch.inference_mode():
        encoder(images())
    out = encoder(images()).embedding  # weights prepared in inference mode serve outside it
    (out * torch.ones((), requires_grad=True)).sum().backward()


def test_prepared_weights_follow_the_parameters():
    encoder = wrap(small_package_encoder())
    before = encoder(images()).embedding
    other = randomise(small_package_encoder(), seed=5)
    nn.ModuleDict({"encoder": encoder}).load_state_dict(
        {f"encoder.image_encoder.{k}": v for k, v in other.state_dict().items()}
    )
    after = encoder(images()).embedding
    assert relative_error(after, before) > 0.1
    assert torch.equal(after, wrap(other)(images()).embedding)
    restored = pickle.loads(pickle.dumps(encoder))
    assert torch.equal(restored(images()).embedding, after)


@pytest.mark.parametrize("shape", [(1, 3, 100, 128), (1, 3, 144, 128), (1, 4, 128, 128), (3, 128, 128), (1, 3, 0, 16)])
def test_wrong_image_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="multiple of 16 up to 128"):
        wrap(small_package_encoder())(torch.zeros(shape))


@pytest.mark.parametrize("layers", [(0, 4), (1, 0), (0, 0), (-1,)])
def test_wrong_layers_are_refused(layers):
    with pytest.raises(ValueError, match=r"within 0\.\.3"):
        wrap(small_package_encoder(), layers=layers)


@pytest.mark.parametrize(("size", "maps", "width"), [("b", 6, 768), ("l", 12, 1024), ("h", 16, 1280)])
def test_published_sizes_are_the_package_s(size, maps, width):
    with torch.device("meta"):
        encoder = build_sam_vit(size)
        package = sam_model_registry[f"vit_{size}"]()
    theirs = {k: v.shape for k, v in package.state_dict().items() if k.startswith("image_encoder.")}
    assert {k: v.shape for k, v in encoder.state_dict().items()} == theirs
    windows = [[block.window_size for block in sam.image_encoder.blocks] for sam in (encoder, package)]
    assert windows[0] == windows[1]
    assert windows[0].count(0) == 4
    assert len(encoder.spec.hidden) == maps
    assert encoder.spec.hidden[0].channels == width
    assert encoder.spec.embedding.channels == 256


# --- files ---------------------------------------------------------------------------------------------------------


def write(tmp_path, state):
    path = tmp_path / "sam.pth"
    torch.save(state, path)
    return path


def sam_state(size):
    """A whole SAM of one number per tensor, which takes no memory."""
    with torch.device("meta"):
        sam = sam_model_registry[f"vit_{size}"]()
    return {name: torch.full((1,), 0.5).expand(tensor.shape) for name, tensor in sam.state_dict().items()}


def message(call):
    with pytest.raises(WeightsError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_size_is_named(tmp_path):
    path = write(tmp_path, sam_state("h"))
    assert "expected ViT-B, found 1280-wide ViT-H" in message(lambda: build_sam_vit("b", checkpoint=path))
    assert "expected ViT-L, found 1280-wide ViT-H" in message(lambda: split_sam_checkpoint(path, "sam-vit-l"))


def test_missing_keys_are_named(tmp_path):
    state = sam_state("b")
    del state["image_encoder.blocks.0.attn.proj.bias"]
    text = message(lambda: build_sam_vit("b", checkpoint=write(tmp_path, state)))
    assert "keys differ" in text
    assert "blocks.0.attn.proj.bias" in text


def test_other_weights_are_no_sam(tmp_path):
    path = tmp_path / "own.safetensors"
    write_weights(path, {"a": torch.zeros(1)}, {"model": "rsprompter-query"})
    assert "not a SAM file, it holds rsprompter-query" in message(lambda: split_sam_checkpoint(path))


def test_a_network_outlives_changes_of_its_file(tmp_path):
    path = write(tmp_path, sam_state("b"))
    encoder = build_sam_vit("b", checkpoint=path)
    with path.open("r+b") as file:  # in place, as a training that saves to the same name does
        file.write(bytes(path.stat().st_size))
    assert all((tensor == 0.5).all() for tensor in encoder.state_dict().values())


@pytest.mark.slow
@torch.no_grad()
def test_vit_b_from_a_file_equals_the_package(tmp_path):
    sam = sam_model_registry["vit_b"]()
    randomise(sam.image_encoder)
    path = write(tmp_path, sam.state_dict())
    parts = split_sam_checkpoint(path)
    for key, value in sam.state_dict().items():
        part, _, name = key.partition(".")
        assert torch.equal(parts[part].pop(name), value)
    assert parts == {"image_encoder": {}, "prompt_encoder": {}, "mask_decoder": {}}
    encoder = build_sam_vit("b", checkpoint=path, precision="fp32")
    x = images(1, 512, 512)  # a quarter of the full cost; the package resizes relative positions by itself
    grid = F.interpolate(sam.image_encoder.pos_embed.permute(0, 3, 1, 2), size=(32, 32), mode="bicubic")
    sam.image_encoder.pos_embed = nn.Parameter(grid.permute(0, 2, 3, 1))
    assert relative_error(encoder(x).embedding, sam.image_encoder(x)) < 1e-4
