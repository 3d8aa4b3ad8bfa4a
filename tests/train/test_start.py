"""Starting a training from other weights, and training the heads alone."""

import dataclasses

import pytest
import torch
from test_data import make_folder

from rsgeoseg.errors import WeightsError
from rsgeoseg.models import rsprompter_anchor, rsprompter_query, sam_seg_maskrcnn
from rsgeoseg.train.config import TrainConfig
from rsgeoseg.train.fit import train
from rsgeoseg.train.start import start_from
from rsgeoseg.weights.cards import bundled_cards
from rsgeoseg.weights.files import read_weights, write_weights

BUNDLED = "rsprompter-query-lite-nwpu"


def fresh(package, classes=("a", "b")):
    torch.manual_seed(0)
    return package.build("lite", package.default_config("lite", classes), pretrained=False)


def test_other_classes_of_the_same_model_keep_all_but_the_class_layers():
    network = fresh(rsprompter_query)
    start = start_from(network, BUNDLED)
    assert start.fresh
    assert all(name.startswith(("centre_head.", "content.0.", "cls_embed.2.")) for name in start.fresh)
    own, file = network.state_dict(), read_weights(next(c.path for c in bundled_cards() if c.id == BUNDLED)).tensors
    for name in start.taken:
        assert torch.equal(own[name], file[name])


def test_another_model_on_the_same_backbone_takes_encoder_and_decoder():
    network = fresh(rsprompter_anchor)
    before = {name: x.clone() for name, x in network.state_dict().items()}
    start = start_from(network, BUNDLED)
    assert {name.split(".")[0] for name in start.taken} == {"encoder", "sam"}
    assert {name.split(".")[0] for name in start.fresh} == {"neck", "rpn", "box_head", "prompt_head", "coarse_head"}
    for name in start.fresh:
        assert torch.equal(network.state_dict()[name], before[name])


def test_weights_of_which_nothing_fits_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    write_weights(path, {"x": torch.zeros(3)}, {"model": "m", "backbone": "b"})
    with pytest.raises(WeightsError, match="m on b"):
        start_from(fresh(sam_seg_maskrcnn), str(path))
    with pytest.raises(WeightsError, match="no such weights"):
        start_from(fresh(sam_seg_maskrcnn), str(tmp_path / "none.safetensors"))


@pytest.mark.slow
def test_a_frozen_encoder_stays_as_it_started(tmp_path):
    (tmp_path / "coco").mkdir()
    folder = make_folder(tmp_path / "coco", 6, side=128)
    config = TrainConfig(
        images=str(folder),
        annotations=str(folder / "coco.json"),
        model="rsprompter-anchor",
        start=BUNDLED,
        freeze_encoder=True,
        steps=2,
        batch_size=1,
        interval=2,
        lr=3e-2,  # of which the second step of the warm-up has little: enough to show in half precision
        crop=64,
    )
    result = train(config, tmp_path / "frozen", device="cpu")
    trained = read_weights(result.weights)
    begun = fresh(rsprompter_anchor)
    start_from(begun, BUNDLED)
    for name, tensor in begun.state_dict().items():
        if name.startswith("encoder."):
            assert torch.equal(trained.tensors[name], tensor.half().float() if tensor.is_floating_point() else tensor)
    assert not torch.equal(trained.tensors["rpn.head.conv.0.0.weight"], begun.state_dict()["rpn.head.conv.0.0.weight"])
    moving = train(dataclasses.replace(config, freeze_encoder=False), tmp_path / "moving", device="cpu")
    deep = "encoder.neck.1.weight"
    assert not torch.equal(read_weights(moving.weights).tensors[deep], trained.tensors[deep])
