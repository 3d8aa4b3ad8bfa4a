"""SAM-det on `lite`, and as in the paper with its own detector: contract, boxes as prompts, gradients, learning."""

import dataclasses

import numpy as np
import pytest
import tiny_chips
import torch
from plain_encoder import PlainEncoder

from rsgeoseg.backbones.build import build_encoder
from rsgeoseg.backbones.resnet import ResNetEncoder
from rsgeoseg.contract import Chip, Prompts, Segmenter
from rsgeoseg.errors import ModelError, PromptError
from rsgeoseg.models import sam_det as model
from rsgeoseg.models.sam_det.config import DetConfig
from rsgeoseg.models.sam_det.network import SamDet
from rsgeoseg.nn.targets import Target
from rsgeoseg.testing.contract import SegmenterContract, check_instances
from rsgeoseg.weights.files import read_weights, write_weights

CLASSES = ("disc", "square")
BOXES = np.array([[10, 20, 90, 100], [60, 5, 120, 40], [4, 60, 50, 110]], np.float32)


def seeing(network):
    """Random weights that do tell boxes apart, and whose masks cover something."""
    torch.nn.init.normal_(network.detector.box_head.fc_cls.weight, std=0.3)
    torch.nn.init.normal_(network.detector.box_head.fc_reg.weight, std=0.05)
    torch.nn.init.constant_(network.sam.mask_decoder.output_hypernetworks_mlps[0].layers[-1].bias, 1.0)
    return network.eval()


def lite_network(seed=0):
    torch.manual_seed(seed)
    return seeing(model.build("lite", model.default_config("lite", CLASSES), pretrained=False))


def two_trunks(seed=0, trunk="resnet18"):
    """A small frozen SAM of fixed input size, and a detector on a ResNet of its own."""
    torch.manual_seed(seed)
    config = DetConfig(classes=CLASSES, trunk=trunk, width=32, box_hidden=64, samples=32, proposals=50)
    return seeing(SamDet(PlainEncoder(), config, ResNetEncoder(trunk)))


@pytest.fixture(scope="module")
def lite():
    return model.segmenter(lite_network(), score_threshold=0.2)


@pytest.fixture(scope="module")
def paper():
    segmenter = model.segmenter(two_trunks(), score_threshold=0.2, overlap=64)
    segmenter.autocast = False
    return segmenter


class TestLiteContract(SegmenterContract):
    @pytest.fixture(scope="class")
    def segmenter(self, lite):
        return lite

    def test_is_a_segmenter_that_finds_something(self, segmenter):
        assert isinstance(segmenter, Segmenter)
        assert len(segmenter.segment([self.chip(segmenter)])[0]) > 0


class TestTwoTrunksContract(SegmenterContract):
    @pytest.fixture(scope="class")
    def segmenter(self, paper):
        return paper

    def test_finds_something(self, segmenter):
        assert len(segmenter.segment([self.chip(segmenter)])[0]) > 0


def chip_of(segmenter, seed=3, **size):
    return SegmenterContract().chip(segmenter, seed, **size)


def full(instances, row, shape=(128, 128)):
    canvas = np.zeros(shape, np.bool_)
    x0, y0, x1, y1 = instances.boxes[row]
    canvas[y0:y1, x0:x1] = instances.masks[row]
    return canvas


def test_a_threshold_before_nms_equals_one_after(paper):
    chip = chip_of(paper)
    everything = paper.at_threshold(0.0)
    everything.autocast, everything.max_instances = False, 10_000
    a = everything.segment([chip])[0]
    threshold = float(np.median(a.scores))
    b = everything.at_threshold(threshold).segment([chip])[0]
    keep = a.scores > threshold
    assert 0 < keep.sum() < len(a)
    np.testing.assert_array_equal(a.boxes[keep], b.boxes)
    np.testing.assert_array_equal(a.scores[keep], b.scores)
    assert a.scores.min() > 0.05


@pytest.mark.parametrize("which", ["lite", "paper"])
def test_what_is_found_is_what_sam_answers_to_its_boxes(which, request):
    """Detections given back as prompts have the same masks; only their scores become 1."""
    segmenter = request.getfixturevalue(which)
    segmenter.autocast = False
    network, chip = segmenter.network, chip_of(segmenter)
    with torch.inference_mode():
        features, size = segmenter._features([chip])
        found = network.detector.find(network.pyramid(features), size, score_threshold=0.2, most=100)[0]
    instances = segmenter.segment([chip])[0]
    assert 1 < len(instances) == len(found.boxes)
    again = segmenter.segment_boxes(chip, found.boxes.numpy(), found.labels.numpy())
    np.testing.assert_array_equal(instances.labels, again.labels)
    assert (again.scores == 1).all()
    for a, b in zip(instances.masks, again.masks, strict=True):
        np.testing.assert_array_equal(a, b)


class TestBoxesAsPrompts:
    """The paper's oracle (Table XI): boxes take the detector's place."""

    @pytest.mark.parametrize("which", ["lite", "paper"])
    def test_instances_follow_the_boxes(self, which, request):
        segmenter = request.getfixturevalue(which)
        chip = chip_of(segmenter)
        instances = segmenter.segment([chip], [Prompts(boxes=BOXES)])[0]
        check_instances(segmenter, chip, instances)
        assert len(instances) == len(BOXES)
        assert instances.scores.tolist() == [1, 1, 1]
        for row, box in enumerate(BOXES):
            alone = segmenter.segment([chip], [Prompts(boxes=box[None])])[0]
            assert alone.labels[0] == instances.labels[row]
            agree = full(alone, 0) == full(instances, row)
            assert agree.mean() > 0.999  # products of three rows and of one differ in the last bit

    def test_names_are_the_box_heads(self, paper):
        chip = chip_of(paper)
        with torch.inference_mode():
            maps = paper.network.pyramid(paper._features([chip])[0])
            logits, _ = paper.network.detector.classify(maps, [torch.from_numpy(BOXES)])
        instances = paper.segment([chip], [Prompts(boxes=BOXES)])[0]
        assert instances.labels.tolist() == logits[:, :-1].argmax(1).tolist()

    def test_known_labels_are_kept(self, paper):
        instances = paper.segment_boxes(chip_of(paper), BOXES, np.array([1, 0, 1]))
        assert instances.labels.tolist() == [1, 0, 1]
        assert instances.scores.tolist() == [1, 1, 1]

    def test_chips_with_and_without_boxes_go_together(self, paper):
        chips = [chip_of(paper, seed) for seed in (1, 2, 3)]
        together = paper.segment(chips, [None, Prompts(boxes=BOXES[:2]), Prompts()])
        assert len(together[1]) == 2
        for row in (0, 2):
            alone = paper.segment([chips[row]])[0]
            assert len(alone) > 0
            assert len(together[row]) == len(alone)
            np.testing.assert_allclose(together[row].scores, alone.scores, atol=1e-3)

    def test_no_boxes_and_no_data_are_no_objects(self, paper):
        chip = chip_of(paper)
        assert len(paper.segment_boxes(chip, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))) == 0
        nothing = Chip(image=np.zeros_like(chip.image), valid=np.zeros_like(chip.valid))
        assert len(paper.segment([nothing], [Prompts(boxes=BOXES)])[0]) == 0

    @pytest.mark.parametrize(
        ("boxes", "says"),
        [
            (np.array([[5, 5, 5, 9]], np.float32), "x0 < x1"),
            (np.array([[5, np.nan, 9, 9]], np.float32), "x0 < x1"),
            (np.array([[5, 5, np.inf, 9]], np.float32), "x0 < x1"),
            (np.array([5, 5, 9, 9, 1], np.float32), r"\(5,\)"),
        ],
    )
    def test_refuses_boxes_that_cannot_be_meant(self, paper, boxes, says):
        with pytest.raises(PromptError, match=says):
            paper.segment([chip_of(paper)], [Prompts(boxes=boxes)])

    @pytest.mark.parametrize("labels", [[0], [0, 1, 2], [-1, 0, 1]])
    def test_refuses_labels_that_do_not_fit(self, paper, labels):
        with pytest.raises(PromptError, match="labels of 0-1"):
            paper.segment_boxes(chip_of(paper), BOXES, np.array(labels))


def test_a_chip_that_sam_sees_resized_has_masks_at_its_own_size(paper):
    """SAM's input has 256 pixels a side here: this chip is doubled for it, and only for it."""
    chip = chip_of(paper, 5, height=70, width=128)
    wide = np.array([[0, 0, 128, 70]], np.float32)
    instances = paper.segment([chip], [Prompts(boxes=wide)])[0]
    check_instances(paper, chip, instances)
    with torch.inference_mode():
        scene = paper.network.see([chip])
        answer = paper.network.decode(scene, torch.zeros(1, dtype=torch.int64), boxes=torch.from_numpy(wide))
    doubled = torch.nn.functional.interpolate(answer.logits, size=(256, 256), mode="bilinear")[:, :, :140]
    expected = torch.nn.functional.interpolate(doubled, size=(70, 128), mode="bilinear")[0, 0] > 0
    assert scene.fit.resized == (140, 256)
    overlap = full(instances, 0, (70, 128)) & expected.numpy()
    assert overlap.sum() >= 0.5 * expected.sum() > 0  # small parts are left out


def objects(count=2, side=128):
    masks = torch.zeros(count, side, side, dtype=torch.uint8)
    boxes = torch.tensor([[8.0 + 40 * i, 16, 40 + 40 * i, 60] for i in range(count)]).reshape(-1, 4)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = 1
    return Target(labels=torch.arange(count) % 2, boxes=boxes, masks=masks)


def noise(count=2):
    return torch.randint(0, 255, (count, 3, 128, 128), dtype=torch.uint8)


def without_gradient(network):
    return [n for n, p in network.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]


def test_on_lite_everything_is_trained_for_boxes():
    network = lite_network().train()
    terms = network.loss(noise(), [objects(), objects(1)])
    assert set(terms) == {"rpn_class", "rpn_box", "class", "box", "mask", "dice", "iou"}
    sum(terms.values()).backward()
    # SAM-det asks with boxes and takes the first mask: clicks, earlier masks and the other three are not for it
    other = ("point_embeddings.0", "point_embeddings.1", "not_a_point_embed")
    others = tuple(f"sam.mask_decoder.output_hypernetworks_mlps.{i}." for i in (1, 2, 3))
    silent = [n for n in without_gradient(network) if not n.startswith(others) and not any(o in n for o in other)]
    assert silent == []


@pytest.mark.parametrize("trunk", ["resnet18", "resnet50"])
def test_with_a_trunk_of_its_own_sam_stays_as_it_is(trunk):
    """The paper's: a detector is trained, and SAM taken as it is."""
    network = two_trunks(trunk=trunk).train()
    terms = network.loss(noise(), [objects(), objects(1)])
    assert set(terms) == {"rpn_class", "rpn_box", "class", "box"}
    sum(terms.values()).backward()
    assert not any(p.requires_grad for part in (network.encoder, network.sam) for p in part.parameters())
    assert without_gradient(network) == []


def test_sam_can_be_trained_beside_a_trunk_of_its_own():
    torch.manual_seed(0)
    config = DetConfig(classes=CLASSES, trunk="resnet18", width=32, box_hidden=64, samples=32, train_sam=True)
    network = SamDet(PlainEncoder(), config, ResNetEncoder("resnet18")).train()
    sum(network.loss(noise(), [objects(), objects(1)]).values()).backward()
    assert network.encoder.patch.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("make", [lite_network, two_trunks])
def test_an_image_without_objects_has_a_loss(make):
    network = make().train()
    for some in ([objects(), objects(0)], [objects(0), objects(0)]):
        terms = network.loss(noise(), some)
        assert all(torch.isfinite(term) for term in terms.values())
        sum(terms.values()).backward()
    assert terms["box"].item() == 0
    assert terms["class"].item() > 0


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
    assert read_weights(tmp_path / "w.safetensors").description["model"] == "sam-det"
    chip = chip_of(loaded)
    loaded = loaded.at_threshold(0.2)
    a, b = loaded.segment([chip])[0], model.segmenter(network, score_threshold=0.2).segment([chip])[0]
    assert len(a) > 0
    np.testing.assert_array_equal(a.boxes, b.boxes)
    np.testing.assert_array_equal(a.scores, b.scores)


def test_defaults_are_the_papers_on_sam():
    paper = model.default_config("sam-vit-h", CLASSES)
    assert (paper.trunk, paper.train_sam, paper.anchor_scales) == ("resnet50", False, (8.0,))
    assert model.default_config("lite", CLASSES).trunk == "encoder"


def test_lite_takes_no_sam_file(tmp_path):
    with pytest.raises(ModelError, match="sam-vit-b"):
        model.build("lite", model.default_config("lite", CLASSES), sam_checkpoint=tmp_path / "sam.pth")


@pytest.mark.slow
def test_builds_on_official_files(tmp_path):
    """SAM and an ImageNet ResNet-50 from their files, by name; only the detector is trained, from its second stage."""
    from segment_anything import sam_model_registry
    from torchvision.models import resnet50

    torch.manual_seed(0)
    sam, resnet = sam_model_registry["vit_b"]().state_dict(), resnet50(weights=None).state_dict()
    torch.save(sam, tmp_path / "sam_vit_b.pth")
    torch.save(resnet, tmp_path / "resnet50.pth")
    config = dataclasses.replace(model.default_config("sam-vit-b", CLASSES), width=32, box_hidden=32)
    network = model.build(
        "sam-vit-b", config, sam_checkpoint=tmp_path / "sam_vit_b.pth", trunk_weights=tmp_path / "resnet50.pth"
    )
    ours = network.state_dict()
    for name, tensor in sam.items():
        part = "encoder" if name.startswith("image_encoder.") else "sam"
        assert torch.equal(ours[f"{part}.{name}"], tensor), name
    for name, tensor in resnet.items():
        assert name.startswith("fc.") or torch.equal(ours[f"trunk.body.{name}"], tensor), name
    trained = {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {"trunk", "neck", "detector"}
    body = network.trunk.body
    assert not any(p.requires_grad for part in (body.conv1, body.bn1, body.layer1) for p in part.parameters())
    assert all(p.requires_grad for p in body.layer2.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("trunk", ["resnet18", "encoder"])
def test_builds_on_sam2(trunk):
    """SAM 2's encoder and decoder prompted by a detector of its own, and by one on the encoder's pyramid."""
    pytest.importorskip("sam2", reason="NOT RUN: sam2 is not installed")
    torch.manual_seed(0)
    config = DetConfig(classes=CLASSES, trunk=trunk, width=32, box_hidden=64, samples=32, proposals=50)
    own = None if trunk == "encoder" else ResNetEncoder(trunk)
    network = seeing(SamDet(build_encoder("sam2-hiera-t", image_size=256), config, own))
    segmenter = model.segmenter(network, score_threshold=0.2, overlap=64)
    chip = chip_of(segmenter, height=100, width=128)
    instances = segmenter.segment([chip])[0]
    assert len(instances) > 0
    check_instances(segmenter, chip, instances)
    sum(network.train().loss(noise(), [objects(), objects(1)]).values()).backward()
    assert without_gradient(network) == []


@pytest.mark.slow
def test_it_learns():
    """From random heads, 300 steps: it finds every object of its own pictures, and true boxes give their true masks."""
    torch.manual_seed(0)
    pictures = tiny_chips.close_ups()
    config = dataclasses.replace(model.default_config("lite", tiny_chips.CLASSES), width=64, samples=64, box_hidden=256)
    network = model.build("lite", config)
    network.loss_config = dataclasses.replace(network.loss_config, points=512)
    before, after = tiny_chips.learn(network, 300, 1e-3, per_step=4, pictures=pictures)
    assert after < before / 5
    segmenter = model.segmenter(network, score_threshold=0.05)
    assert tiny_chips.mask_ap50(segmenter, pictures=pictures) >= 0.9
    oracle = [
        segmenter.segment_boxes(chip, target.boxes.numpy(), target.labels.numpy())
        for chip, (_, target) in zip(tiny_chips.as_chips(pictures), pictures, strict=True)
    ]
    assert tiny_chips.instances_ap50(oracle, pictures=pictures) >= 0.9
