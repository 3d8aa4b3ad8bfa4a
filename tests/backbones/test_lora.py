"""Low-rank adaptation of SAM's encoders: nothing changes at first, only the thin matrices learn, merging is exact."""

import pytest
import torch
from tiny_sam import tiny_sam

from rsgeoseg.backbones.lite import LiteEncoder
from rsgeoseg.backbones.lora import add_lora, merge_lora
from rsgeoseg.backbones.sam_vit import SamVit
from rsgeoseg.errors import UsageError


@pytest.fixture
def encoder():
    theirs, _ = tiny_sam()
    return SamVit(theirs.image_encoder, name="sam-vit-b", layers=(0, 1), image_size=256, precision="fp32")


def test_with_gradients_the_encoder_gives_the_same(encoder):
    """The package's blocks, which learn, against the prepared ones, which run."""
    images = torch.randn(2, 3, 64, 64)
    fast = encoder(images)
    add_lora(encoder, 4)
    slow = encoder(images)
    assert slow.embedding.requires_grad
    torch.testing.assert_close(slow.embedding, fast.embedding, rtol=1e-4, atol=1e-4)
    for x, y in zip(slow.hidden, fast.hidden, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


def test_only_the_thin_matrices_learn_and_merging_keeps_what_they_learned(encoder):
    names = set(encoder.state_dict())
    before = {name: x.clone() for name, x in encoder.state_dict().items()}
    count = add_lora(encoder, 4)
    assert count == len(encoder.image_encoder.blocks)
    learned = [p for p in encoder.parameters() if p.requires_grad]
    assert len(learned) == 2 * count
    images = torch.randn(1, 3, 64, 64)
    optimiser = torch.optim.SGD(learned, lr=0.5)
    for _ in range(3):
        optimiser.zero_grad()
        encoder(images).embedding.square().mean().backward()
        optimiser.step()
    changed = encoder(images).embedding.detach()
    merge_lora(encoder)
    assert set(encoder.state_dict()) == names
    encoder.requires_grad_(requires_grad=False)
    torch.testing.assert_close(encoder(images).embedding, changed, rtol=1e-4, atol=1e-4)
    moved = [name for name, x in encoder.state_dict().items() if not torch.equal(x, before[name])]
    assert moved
    assert all(name.endswith("attn.qkv.weight") for name in moved)


def test_the_change_has_the_rank_that_was_asked_for(encoder):
    before = encoder.image_encoder.blocks[0].attn.qkv.weight.detach().clone()
    add_lora(encoder, 3)
    module = encoder.image_encoder.blocks[0].attn.qkv
    torch.nn.init.normal_(module.parametrizations.weight[0].up)
    change = module.weight.detach() - before
    assert torch.linalg.matrix_rank(change, rtol=1e-4) == 3


def test_a_cnn_has_no_place_for_it():
    with pytest.raises(UsageError, match="SAM"):
        add_lora(LiteEncoder(pretrained=False), 4)
