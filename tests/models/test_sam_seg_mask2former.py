"""SAM-seg (Mask2Former) on `lite` and on a small plain encoder: contract, savings, gradients, learning."""

import dataclasses
import math

import numpy as np
import pytest
import tiny_chips
import torch
from plain_encoder import PlainEncoder

from rsgeoseg.contract import Segmenter
from rsgeoseg.errors import ModelError
from rsgeoseg.models import sam_seg_mask2former as model
from rsgeoseg.models.sam_seg_mask2former.config import Mask2FormerConfig
from rsgeoseg.models.sam_seg_mask2former.network import SamSegMask2Former
from rsgeoseg.nn.targets import Target
from rsgeoseg.testing.contract import SegmenterContract
from rsgeoseg.weights.files import write_weights

CLASSES = ("disc", "square")
UNUSED = ("encoder.lateral.", "encoder.neck.", "encoder.out.")
"""The embedding for SAM's mask decoder, which SAM-seg has none of."""


def seeing(network):
    """Random weights that are sure of some classes."""
    torch.nn.init.normal_(network.cls_embed.weight, std=0.3)
    return network.eval()


def lite_network(seed=0):
    torch.manual_seed(seed)
    return seeing(model.build("lite", model.default_config("lite", CLASSES), pretrained=False))


def plain_network(seed=0):
    torch.manual_seed(seed)
    config = Mask2FormerConfig(
        classes=CLASSES,
        num_queries=12,
        width=32,
        heads=4,
        encoder_layers=1,
        encoder_hidden=64,
        decoder_layers=4,
        decoder_hidden=64,
        points=256,
    )
    return seeing(SamSegMask2Former(PlainEncoder(), config))


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


def test_dropping_hopeless_queries_leaves_the_result_unchanged():
    network = lite_network()
    everything = model.segmenter(network, score_threshold=0.0)
    everything.autocast, everything.max_instances = False, 10_000
    chip = SegmenterContract().chip(everything, 3)
    a, b = everything.segment([chip])[0], everything.at_threshold(0.4).segment([chip])[0]
    keep = a.scores >= 0.4
    assert 0 < keep.sum() < len(a)
    np.testing.assert_allclose(a.scores[keep], b.scores, atol=1e-5)
    np.testing.assert_array_equal(a.boxes[keep], b.boxes)


def test_most_objects_of_a_chip():
    few = model.segmenter(lite_network(), score_threshold=0.0)
    few.max_instances = 5
    found = few.segment([SegmenterContract().chip(few, 3)])[0]
    assert len(found) == 5
    assert (np.diff(found.scores) <= 0).all()


def test_logits_at_points_equal_the_map():
    network = plain_network()
    with torch.no_grad():
        scene = network.look(torch.randn(2, 3, 256, 256))
        prediction = network.decode(scene)[-1]
        every = torch.arange(12)
        full = network.mask_logits(scene, prediction, torch.ones(12, dtype=torch.int64), every)
        rows, columns = torch.tensor([3, 17, 63]), torch.tensor([8, 0, 31])
        points = torch.stack([(columns + 0.5) / 64, (rows + 0.5) / 64], -1)
        at = network.mask_logits_at(scene, prediction, 1, points)
    torch.testing.assert_close(at, full[:, rows, columns], atol=1e-4, rtol=1e-4)


def test_masks_of_a_batch_go_to_their_images():
    network = plain_network()
    with torch.no_grad():
        images = torch.randn(2, 3, 256, 256)
        scene = network.look(images)
        prediction = network.decode(scene)[-1]
        mixed = network.mask_logits(scene, prediction, torch.tensor([1, 0, 1]), torch.tensor([4, 4, 5]))
        for row, (image, query) in enumerate(((1, 4), (0, 4), (1, 5))):
            alone = network.look(images[image : image + 1])
            last = network.decode(alone)[-1]
            expected = network.mask_logits(alone, last, torch.tensor([0]), torch.tensor([query]))[0]
            torch.testing.assert_close(mixed[row], expected, atol=1e-3, rtol=1e-3)


def test_there_is_a_prediction_before_every_layer_and_after_the_last():
    network = plain_network()
    with torch.no_grad():
        scene = network.look(torch.randn(1, 3, 256, 256))
        sets = network.decode(scene)
    assert len(sets) == 5
    assert [m.shape for m in scene.memories] == [(4, 4), (8, 8), (16, 16)]
    assert sets[0].class_logits.shape == (1, 12, 3)
    assert scene.mask_feature.shape == (1, 32, 64, 64)


def objects(count=2, side=128):
    masks = torch.zeros(count, side, side, dtype=torch.uint8)
    boxes = torch.tensor([[8.0 + 40 * i, 16, 40 + 40 * i, 60] for i in range(count)]).reshape(-1, 4)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = 1
    return Target(labels=torch.arange(count) % 2, boxes=boxes, masks=masks)


@pytest.mark.parametrize("make", [lite_network, plain_network])
def test_loss_has_gradients_everywhere(make):
    network = make().train()
    for layer in network.pixel_decoder.encoder:  # start at zero, which hides the levels' positions from the first step
        torch.nn.init.normal_(layer.self_attn.sampling_offsets.weight, std=0.02)
        torch.nn.init.normal_(layer.self_attn.attention_weights.weight, std=0.02)
    images = torch.randint(0, 255, (2, 3, 128, 128), dtype=torch.uint8)
    terms = network.loss(images, [objects(), objects(1)])
    assert set(terms) == {"class", "mask", "dice"}
    sum(terms.values()).backward()
    trained = [(n, p) for n, p in network.named_parameters() if p.requires_grad and not n.startswith(UNUSED)]
    assert [n for n, p in trained if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_an_image_without_objects_has_a_loss():
    network = plain_network().train()
    images = torch.randint(0, 255, (2, 3, 128, 128), dtype=torch.uint8)
    for some in ([objects(), objects(0)], [objects(0), objects(0)]):
        terms = network.loss(images, some)
        assert all(torch.isfinite(term) for term in terms.values())
        sum(terms.values()).backward()
    assert terms["mask"].item() == terms["dice"].item() == 0
    assert terms["class"].item() > 0


def test_loss_of_a_network_that_knows_nothing():
    """Zero logits everywhere, five sets: class 2 ln 3, mask 5 ln 2 each; dice of probability one half, 5 (1 - ...)."""
    network = plain_network().train()
    for layer in (network.cls_embed, network.mask_embed[-1]):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    whole = Target(
        labels=torch.tensor([0]),
        boxes=torch.tensor([[0.0, 0, 128, 128]]),
        masks=torch.ones(1, 128, 128, dtype=torch.uint8),
    )
    terms = network.loss(torch.zeros(1, 3, 128, 128, dtype=torch.uint8), [whole])
    assert terms["class"].item() == pytest.approx(5 * 2 * math.log(3), rel=1e-5)
    assert terms["mask"].item() == pytest.approx(5 * 5 * math.log(2), rel=1e-5)
    points = network.config.points
    assert terms["dice"].item() == pytest.approx(5 * 5 * (1 - (points + 1) / (1.5 * points + 1)), rel=1e-5)


def test_a_crop_takes_a_random_place_of_the_frame_only_where_the_encoder_takes_any_size():
    images = torch.randint(0, 255, (1, 3, 128, 128), dtype=torch.uint8)
    for network, moves in ((lite_network(), True), (plain_network(), False)):
        origins = []
        look = network.look
        network.look = lambda x, origin, look=look, origins=origins: origins.append(origin) or look(x, origin)
        with torch.no_grad():
            network.loss(images, [objects()])
            network.loss(images, [objects()])
        assert (origins[0] != origins[1]) == moves
        room = 1280 - 128 if moves else 0
        assert all(0 <= place <= room for origin in origins for place in origin)


def test_saved_weights_come_back(tmp_path):
    config = dataclasses.replace(model.default_config("lite", CLASSES), width=64, decoder_layers=1, num_queries=9)
    torch.manual_seed(0)
    network = seeing(model.build("lite", config, pretrained=False))
    half = {n: t.half().float() if t.is_floating_point() else t for n, t in network.state_dict().items()}
    network.load_state_dict(half)
    write_weights(tmp_path / "w.safetensors", network.state_dict(), model.describe(network))
    loaded = model.load(tmp_path / "w.safetensors", "cpu")
    assert loaded.network.config == config
    assert loaded.spec.weights_id.startswith("w.safetensors@")
    chip = SegmenterContract().chip(loaded, 3)
    expected = model.segmenter(network, score_threshold=0.1).segment([chip])[0]
    found = loaded.at_threshold(0.1).segment([chip])[0]
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    np.testing.assert_array_equal(found.scores, expected.scores)


def test_lite_takes_no_sam_file(tmp_path):
    with pytest.raises(ModelError, match="sam-vit-b"):
        model.build("lite", model.default_config("lite", CLASSES), sam_checkpoint=tmp_path / "sam.pth")


@pytest.mark.slow
def test_a_sam_encoder_is_frozen():
    torch.manual_seed(0)
    config = dataclasses.replace(
        model.default_config("sam-vit-b", CLASSES), width=32, encoder_layers=1, decoder_layers=1, points=64
    )
    network = model.build("sam-vit-b", config).train()
    assert not any(p.requires_grad for p in network.encoder.parameters())
    images = torch.randint(0, 255, (1, 3, 128, 128), dtype=torch.uint8)
    sum(network.loss(images, [objects()]).values()).backward()
    assert all(p.grad is None for p in network.encoder.parameters())
    assert network.neck.feature_aggregator.fusion_conv[-1].weight.grad.abs().sum() > 0


@pytest.mark.slow
def test_it_learns():
    """From random heads, a short training finds every object of its own pictures."""
    torch.manual_seed(0)
    network = model.build("lite", model.default_config("lite", tiny_chips.CLASSES))
    before, after = tiny_chips.learn(network, 300, 5e-4, per_step=1)
    assert after < before / 5
    assert tiny_chips.mask_ap50(model.segmenter(network, score_threshold=0.05)) >= 0.9
