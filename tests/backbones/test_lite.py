"""The `lite` encoder: folded batch norms, number formats, and what training leaves alone."""

import copy

import pytest
import torch
from torch import nn

from rsgeoseg.backbones.lite import LiteEncoder, fold_batch_norms


@pytest.fixture
def encoder():
    """Random weights, with statistics and scales that a wrong folding would show."""
    torch.manual_seed(0)
    encoder = LiteEncoder(pretrained=False).eval()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return encoder


def maps_of(features):
    return [features.embedding, *features.hidden]


def test_folding_changes_nothing_but_rounding(encoder):
    images = torch.randn(2, 3, 96, 64)
    expected = [x.detach() for x in maps_of(encoder(images))]  # with gradients: the trunk as it is
    with torch.no_grad():
        found = maps_of(encoder(images))
    for a, b in zip(found, expected, strict=True):
        assert ((a - b).norm() / b.norm()).item() < 1e-5
    folded = fold_batch_norms(copy.deepcopy(encoder.trunk))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules())


def test_it_computes_in_float32_under_autocast(encoder):
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        plain = maps_of(encoder(images))
        with torch.autocast("cpu", torch.bfloat16):
            inside = maps_of(encoder(images))
    for a, b in zip(inside, plain, strict=True):
        assert a.dtype is torch.float32
        assert torch.equal(a, b)


@pytest.mark.parametrize("change", ["in place", "loaded", "statistics"])
def test_changed_weights_are_seen(encoder, change):
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = encoder(images).embedding
        if change == "in place":
            encoder.trunk.conv_stem.weight.mul_(1.5)
        elif change == "loaded":
            encoder.load_state_dict({name: x * 1.1 for name, x in encoder.state_dict().items()})
        else:
            encoder.trunk.bn1.running_mean.add_(0.3)
        after = encoder(images).embedding
    assert not torch.allclose(before, after)
    with torch.enable_grad():
        expected = encoder(images).embedding.detach()
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-4)


def test_the_folded_copy_is_no_part_of_the_weights(encoder):
    names = set(encoder.state_dict())
    with torch.no_grad():
        encoder(torch.randn(1, 3, 64, 64))
    assert set(encoder.state_dict()) == names
    assert sum(1 for _ in encoder.parameters()) == sum(1 for _ in LiteEncoder(pretrained=False).parameters())


def test_training_leaves_the_statistics_alone(encoder):
    encoder.train()
    before = encoder.trunk.bn1.running_mean.clone()
    encoder(torch.randn(2, 3, 64, 64))
    assert torch.equal(encoder.trunk.bn1.running_mean, before)
