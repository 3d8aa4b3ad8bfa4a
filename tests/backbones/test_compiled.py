"""The switch for torch.compile: same values, and no failure where it cannot work."""

import logging
import shutil
from functools import partial

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT
from torch import nn

from rsgeoseg.backbones.attention import folded_attention, looked_up_attention, relative_table
from rsgeoseg.backbones.compiled import COMPILE, Compiled
from rsgeoseg.backbones.packed import PackedLinear
from rsgeoseg.backbones.sam_vit import SamVit

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="NOT RUN: no compiler on this machine")


def small_vit(**options):
    torch.manual_seed(0)
    vit = ImageEncoderViT(
        img_size=128, patch_size=16, embed_dim=32, depth=2, num_heads=2, out_chans=24, use_rel_pos=True,
        window_size=3, global_attn_indexes=(1,), norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    for name, value in vit.named_parameters():
        if "pos" in name:
            nn.init.normal_(value)
    return SamVit(vit, name="small", layers=(0,), image_size=128, precision="fp32", **options)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("grid", [(4, 4), (3, 5)])
def test_looked_up_attention_is_the_folded_one(grid):
    h, w = grid
    q, k, v = torch.randn(3, 2, 3, h * w, 16)
    table = torch.cat([relative_table(torch.randn(2 * side - 1, 16), side) for side in grid], 1)
    found = looked_up_attention(q, k, v, table, grid)
    expected = folded_attention(*(x.flatten(0, 1) for x in (q, k, v)), table, grid)
    torch.testing.assert_close(found.flatten(0, 1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_compiled_form_of_vit_has_the_same_values():
    encoder, x = small_vit(), torch.randn(2, 3, 96, 128)
    prepared = encoder._weights(x.device)
    for layers in ((), (0, 1)):
        plain = prepared(x, layers)
        form = prepared._encode(x, layers, *prepared.positions((6, 8)), compiled=True)
        for ours, theirs in zip(form, plain, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@needs_compiler
@pytest.mark.slow
@torch.no_grad()
def test_it_really_compiles(monkeypatch, caplog):
    """On a CPU with plain products in place of the prepacked ones, which are not for compiling."""
    monkeypatch.setattr("rsgeoseg.backbones.packed._onednn_operators", lambda _: None)
    encoder, x = small_vit(), torch.randn(1, 3, 128, 128)
    prepared = encoder._weights(x.device)
    arguments = (x, (0,))
    plain = prepared(*arguments)
    prepared.compile()
    with caplog.at_level(logging.WARNING):
        for ours, theirs in zip(prepared(*arguments), plain, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert not [record for record in caplog.records if record.name.startswith("rsgeoseg")]
    assert prepared._compiled._fast is not None


def test_a_failure_is_said_once_and_the_function_runs(caplog):
    """Prepacked products refuse to be compiled, as a missing compiler does."""
    layer, x = PackedLinear(torch.randn(8, 8), torch.randn(8), torch.float32), torch.randn(4, 8)
    if layer._apply is None:
        pytest.skip("this machine has no prepacked products")
    call = Compiled(layer, layer)
    with caplog.at_level(logging.WARNING), torch.no_grad():
        results = [call(x) for _ in range(3)]
    said = [record.message for record in caplog.records if record.name.startswith("rsgeoseg")]
    assert len(said) == 1
    assert said[0].startswith("torch.compile failed")
    assert "\n" not in said[0]
    assert all(torch.equal(result, layer(x)) for result in results)


@pytest.mark.parametrize("kind", [RuntimeError, ImportError, OSError])
def test_any_way_of_failing_is_survived(caplog, monkeypatch, kind):
    def broken(*_, **__):
        msg = "no such thing"
        raise kind(msg)

    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken)
    assert Compiled(len, len)("abc") == 3
    assert "no such thing" in caplog.text


def test_running_out_of_memory_is_no_failure_to_compile(monkeypatch):
    def full(*_):
        msg = "full"
        raise torch.OutOfMemoryError(msg)

    monkeypatch.setattr(torch, "compile", lambda call, **_: call)
    call = Compiled(full, len)
    with pytest.raises(torch.OutOfMemoryError):
        call("abc")
    assert call._fast is not None


@pytest.mark.parametrize(("value", "on"), [(None, False), ("0", False), ("off", False), ("", False), ("1", True)])
def test_the_environment_switches_it(monkeypatch, value, on):
    if value is None:
        monkeypatch.delenv(COMPILE, raising=False)
    else:
        monkeypatch.setenv(COMPILE, value)
    encoder = small_vit()
    assert encoder.compiled is on
    encoder(torch.randn(1, 3, 64, 64))
    assert encoder._prepared[2]._compiled is None  # never on a CPU
