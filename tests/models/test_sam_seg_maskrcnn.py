"""SAM-seg (Mask R-CNN) on `lite` and on a small plain encoder: contract, savings, gradients, learning."""

import dataclasses
import math

import numpy as np
import pytest
import tiny_chips
import torch
from plain_encoder import PlainEncoder

from rsgeoseg.contract import Segmenter
from rsgeoseg.errors import ModelError
from rsgeoseg.models import sam_seg_maskrcnn as model
from rsgeoseg.models.sam_seg_maskrcnn.config import MaskRcnnConfig
from rsgeoseg.models.sam_seg_maskrcnn.network import SamSegMaskRcnn
from rsgeoseg.nn.targets import Target
from rsgeoseg.testing.contract import SegmenterContract
from rsgeoseg.weights.files import read_weights, write_weights

CLASSES = ("disc", "square")
UNUSED = ("encoder.lateral.", "encoder.neck.")
"""The embedding for SAM's mask decoder, which SAM-seg has none of."""


def seeing(network):
    """Random weights that do tell boxes and pixels apart."""
    torch.nn.init.normal_(network.detector.box_head.fc_cls.weight, std=0.3)
    torch.nn.init.normal_(network.detector.box_head.fc_reg.weight, std=0.05)
    return network.eval()


def lite_network(seed=0):
    torch.manual_seed(seed)
    return seeing(model.build("lite", model.default_config("lite", CLASSES), pretrained=False))


def plain_network(seed=0):
    torch.manual_seed(seed)
    config = MaskRcnnConfig(classes=CLASSES, width=32, box_hidden=64, samples=32, proposals=50)
    return seeing(SamSegMaskRcnn(PlainEncoder(), config))


class TestLiteContract(SegmenterContract):
    @pytest.fixture(scope="class")
    def segmenter(self):
        return model.segmenter(lite_network(), score_threshold=0.2)

    def test_is_a_segmenter_that_finds_something(self, segmenter):
        assert isinstance(segmenter, Segmenter)
        assert len(segmenter.segment([self.chip(segmenter)])[0]) > 0


class TestPlainContract(SegmenterContract):
    @pytest.fixture(scope="class")
    def segmenter(self):
        return model.segmenter(plain_network(1), score_threshold=0.2, overlap=64)


def test_a_threshold_before_nms_equals_one_after():
    network = plain_network()
    chip = SegmenterContract().chip(model.segmenter(network), 3)
    everything = model.segmenter(network, score_threshold=0.0)
    everything.autocast, everything.max_instances = False, 10_000
    a = everything.segment([chip])[0]
    threshold = float(np.median(a.scores))
    b = everything.at_threshold(threshold).segment([chip])[0]
    keep = a.scores > threshold
    assert 0 < keep.sum() < len(a)
    np.testing.assert_array_equal(a.boxes[keep], b.boxes)
    np.testing.assert_array_equal(a.scores[keep], b.scores)
    assert a.scores.min() > 0.05


def test_masks_lie_where_their_boxes_are():
    """Each instance's tight box is inside the box that was found, give or take the pixel it begins in."""
    network = plain_network()
    segmenter = model.segmenter(network, score_threshold=0.3)
    segmenter.autocast = False
    chip = SegmenterContract().chip(segmenter, 3)
    from rsgeoseg.backbones.chips import images_of

    with torch.inference_mode():
        scene = network.look(images_of([chip], network.encoder.spec, torch.device("cpu")))
        detections = network.detect(scene, score_threshold=0.3, most=100)[0]
    found = segmenter.segment([chip])[0]
    assert 0 < len(found) <= len(detections.boxes)
    of_score = {float(s): box for s, box in zip(detections.scores, detections.boxes.numpy(), strict=True)}
    for box, score in zip(found.boxes, found.scores.tolist(), strict=True):
        whole = of_score[score]
        assert (box[:2] >= np.floor(whole[:2])).all()
        assert (box[2:] <= np.ceil(whole[2:])).all()


def objects(count=2, side=128):
    masks = torch.zeros(count, side, side, dtype=torch.uint8)
    boxes = torch.tensor([[8.0 + 40 * i, 16, 40 + 40 * i, 60] for i in range(count)]).reshape(-1, 4)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = 1
    return Target(labels=torch.arange(count) % 2, boxes=boxes, masks=masks)


@pytest.mark.parametrize("make", [lite_network, plain_network])
def test_loss_has_gradients_everywhere(make):
    network = make().train()
    images = torch.randint(0, 255, (2, 3, 128, 128), dtype=torch.uint8)
    terms = network.loss(images, [objects(), objects(1)])
    assert set(terms) == {"rpn_class", "rpn_box", "class", "box", "mask"}
    sum(terms.values()).backward()
    unused = (*UNUSED, "encoder.out.")
    trained = [(n, p) for n, p in network.named_parameters() if p.requires_grad and not n.startswith(unused)]
    assert [n for n, p in trained if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_an_image_without_objects_has_a_loss():
    network = plain_network().train()
    images = torch.randint(0, 255, (2, 3, 128, 128), dtype=torch.uint8)
    for some in ([objects(), objects(0)], [objects(0), objects(0)]):
        terms = network.loss(images, some)
        assert all(torch.isfinite(term) for term in terms.values())
        sum(terms.values()).backward()
    assert terms["mask"].item() == terms["box"].item() == 0
    assert terms["class"].item() > 0


def test_a_fresh_class_head_costs_the_logarithm_of_the_classes():
    torch.manual_seed(0)
    config = MaskRcnnConfig(classes=CLASSES, width=32, box_hidden=64, samples=32)
    network = SamSegMaskRcnn(PlainEncoder(), config).train()
    terms = network.loss(torch.randint(0, 255, (1, 3, 128, 128), dtype=torch.uint8), [objects()])
    assert terms["class"].item() == pytest.approx(math.log(3), abs=0.15)
    assert terms["rpn_class"].item() == pytest.approx(math.log(2), abs=0.05)


def test_saved_weights_come_back(tmp_path):
    config = dataclasses.replace(model.default_config("lite", CLASSES), width=64, box_hidden=64, proposals=50)
    torch.manual_seed(0)
    network = seeing(model.build("lite", config, pretrained=False))
    network.load_state_dict(
        {n: t.half().float() if t.is_floating_point() else t for n, t in network.state_dict().items()}
    )
    write_weights(tmp_path / "w.safetensors", network.state_dict(), model.describe(network))
    loaded = model.load(tmp_path / "w.safetensors", "cpu")
    assert loaded.network.config == config
    assert loaded.spec.weights_id.startswith("w.safetensors@")
    assert read_weights(tmp_path / "w.safetensors").description["model"] == "sam-seg-maskrcnn"
    chip = SegmenterContract().chip(loaded, 3)
    a, b = loaded.segment([chip])[0], model.segmenter(network).segment([chip])[0]
    np.testing.assert_array_equal(a.boxes, b.boxes)
    np.testing.assert_array_equal(a.scores, b.scores)


def test_lite_takes_no_sam_file(tmp_path):
    with pytest.raises(ModelError, match="sam-vit-b"):
        model.build("lite", model.default_config("lite", CLASSES), sam_checkpoint=tmp_path / "sam.pth")


@pytest.mark.slow
def test_a_sam_encoder_is_frozen():
    """Nothing of the encoder is trained, and training mode changes none of its numbers."""
    torch.manual_seed(0)
    config = dataclasses.replace(model.default_config("sam-vit-b", CLASSES), width=32, box_hidden=32, samples=32)
    network = model.build("sam-vit-b", config).train()
    assert not any(p.requires_grad for p in network.encoder.parameters())
    images = torch.randint(0, 255, (1, 3, 128, 128), dtype=torch.uint8)
    sum(network.loss(images, [objects()]).values()).backward()
    assert all(p.grad is None for p in network.encoder.parameters())
    assert network.neck.feature_aggregator.fusion_conv[-1].weight.grad.abs().sum() > 0
    with torch.no_grad():
        training = network.encoder(images.float()).hidden
        evaluating = network.eval().encoder(images.float()).hidden
    for a, b in zip(training, evaluating, strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_builds_on_an_official_sam_file(tmp_path):
    from segment_anything import sam_model_registry

    torch.manual_seed(0)
    official = sam_model_registry["vit_b"]().state_dict()
    torch.save(official, tmp_path / "sam_vit_b.pth")
    config = dataclasses.replace(model.default_config("sam-vit-b", CLASSES), width=32, box_hidden=32)
    network = model.build("sam-vit-b", config, sam_checkpoint=tmp_path / "sam_vit_b.pth")
    ours = network.state_dict()
    encoder = {name: x for name, x in official.items() if name.startswith("image_encoder.")}
    assert encoder
    for name, tensor in encoder.items():
        assert torch.equal(ours[f"encoder.{name}"], tensor), name
    assert not any(p.requires_grad for p in network.encoder.parameters())
    assert all(p.requires_grad for p in network.mask_head.parameters())


@pytest.mark.slow
def test_it_learns():
    """From random heads, a short training finds every object of its own pictures."""
    torch.manual_seed(0)
    config = dataclasses.replace(model.default_config("lite", tiny_chips.CLASSES), width=64, samples=64, box_hidden=256)
    network = model.build("lite", config)
    before, after = tiny_chips.learn(network, 300, 5e-4, per_step=1)
    assert after < before / 5
    assert tiny_chips.mask_ap50(model.segmenter(network, score_threshold=0.05)) >= 0.9
