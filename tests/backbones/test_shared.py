"""Frozen encoders that several models have in common."""

import dataclasses
import gc
import weakref

import pytest
import torch

import rsgeoseg
from rsgeoseg.models import rsprompter_anchor, sam_seg_maskrcnn
from rsgeoseg.weights.files import read_weights, write_weights

CLASSES = ("disc", "square")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Weights of two models on one SAM encoder, and of one on another encoder."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    one, two = (
        model.build(
            "sam-vit-b", dataclasses.replace(model.default_config("sam-vit-b", CLASSES), width=32, box_hidden=32)
        )
        for model in (rsprompter_anchor, sam_seg_maskrcnn)
    )
    two.encoder.load_state_dict(one.encoder.state_dict())
    write_weights(folder / "anchor", one.state_dict(), rsprompter_anchor.describe(one))
    write_weights(folder / "seg", two.state_dict(), sam_seg_maskrcnn.describe(two))
    name = "encoder.image_encoder.neck.0.weight"
    changed = one.state_dict() | {name: one.state_dict()[name] + 1}
    write_weights(folder / "changed", changed, rsprompter_anchor.describe(one))
    return folder


@pytest.mark.slow
def test_models_on_one_encoder_hold_one_encoder(files):
    """Same weights, same object, whatever the model; other weights, another one; nobody left, nothing kept."""
    anchor = rsgeoseg.load_model("rsprompter-anchor", weights=files / "anchor", device="cpu").network
    seg = rsgeoseg.load_model("sam-seg-maskrcnn", weights=files / "seg", device="cpu").network
    changed = rsgeoseg.load_model("rsprompter-anchor", weights=files / "changed", device="cpu").network
    assert anchor.encoder is seg.encoder
    assert changed.encoder is not anchor.encoder
    assert not any(p.requires_grad for p in anchor.encoder.parameters())
    stored = read_weights(files / "seg").tensors
    for name, tensor in seg.state_dict().items():
        assert torch.equal(tensor, stored[name]), name
    gone = weakref.ref(anchor.encoder)
    del anchor
    gc.collect()
    assert gone() is not None
    del seg
    gc.collect()
    assert gone() is None


def test_a_lite_encoder_is_its_models_own():
    """It is trained with each model, and small."""
    one, two = (rsgeoseg.load_model("rsprompter-query", device="cpu").network for _ in range(2))
    assert one.encoder is not two.encoder
