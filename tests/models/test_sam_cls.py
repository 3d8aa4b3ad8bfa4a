"""SAM-cls on `lite` and on a small plain encoder: contract, names from crops, CLIP, gradients, learning."""

import dataclasses

import numpy as np
import pytest
import tiny_chips
import torch
from clip_folder import save_clip
from plain_encoder import PlainEncoder

from rsgeoseg.backbones.build import build_encoder
from rsgeoseg.backbones.everything import find_everything
from rsgeoseg.contract import Segmenter
from rsgeoseg.errors import ModelError
from rsgeoseg.models import sam_cls as model
from rsgeoseg.models.sam_cls.config import ClsConfig
from rsgeoseg.models.sam_cls.crops import MaskCrops
from rsgeoseg.models.sam_cls.network import SamCls
from rsgeoseg.models.sam_cls.samples import SampleConfig
from rsgeoseg.models.sam_cls.segmenter import everything_config, ranked
from rsgeoseg.nn.targets import Target
from rsgeoseg.testing.contract import SegmenterContract, check_instances
from rsgeoseg.weights.files import read_weights, write_weights

CLASSES = ("disc", "square")
FEW = {"points_per_side": 4, "stability": 0.0, "nms": 1.0, "crop_side": 32}


def promising(network):
    """Random weights that promise something, draw masks with some contrast, and tell crops apart."""
    for mlp in network.sam.mask_decoder.output_hypernetworks_mlps:
        mlp.layers[-1].weight.data *= 20
    torch.nn.init.constant_(network.sam.mask_decoder.iou_prediction_head.layers[-1].bias, 0.8)
    if network.clip is None:
        torch.nn.init.normal_(network.labeller.fc.weight, std=0.3)
    return network.eval()


def lite_network(seed=0, **options):
    torch.manual_seed(seed)
    config = dataclasses.replace(model.default_config("lite", CLASSES), **{**FEW, **options})
    return promising(model.build("lite", config, SampleConfig(objects=4, background=4), pretrained=False))


def plain_network(seed=0, **options):
    """The paper's settings: SAM is taken as it is."""
    torch.manual_seed(seed)
    return promising(SamCls(PlainEncoder(), ClsConfig(classes=CLASSES, **{**FEW, **options})))


def chip_of(segmenter, seed=3, **size):
    return SegmenterContract().chip(segmenter, seed, **size)


class TestLiteContract(SegmenterContract):
    @pytest.fixture(scope="class")
    def segmenter(self):
        return model.segmenter(lite_network(), score_threshold=0.1)

    def test_is_a_segmenter_that_finds_something(self, segmenter):
        assert isinstance(segmenter, Segmenter)
        assert len(segmenter.segment([self.chip(segmenter)])[0]) > 0


class TestPlainContract(SegmenterContract):
    @pytest.fixture(scope="class")
    def segmenter(self):
        return model.segmenter(plain_network(1), score_threshold=0.1, overlap=64)

    def test_finds_something(self, segmenter):
        assert len(segmenter.segment([self.chip(segmenter)])[0]) > 0


class TestClipContract(SegmenterContract):
    @pytest.fixture(scope="class")
    def segmenter(self, clip_folder):
        network = plain_network(labeller="clip", clip_folder=str(clip_folder))
        return model.segmenter(network, score_threshold=0.1, overlap=64)

    def test_finds_something(self, segmenter):
        assert len(segmenter.segment([self.chip(segmenter)])[0]) > 0


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    pytest.importorskip("transformers", reason="NOT RUN: transformers is not installed")
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.mark.parametrize("quality_scores", [False, True])
def test_masks_are_everything_modes_and_names_the_labellers(quality_scores):
    """Every large mask of everything mode, its name and score recomputed from its blurred crop."""
    network = plain_network(quality_scores=quality_scores)
    segmenter = model.segmenter(network, score_threshold=0.0)
    segmenter.autocast = False
    chip = chip_of(segmenter)
    with torch.inference_mode():
        masks = find_everything(network, network.see([chip]).one(0), chip.valid, everything_config(network.config))
        expected = []
        for box, mask, quality in zip(masks.boxes.tolist(), masks.masks, masks.scores.tolist(), strict=True):
            if min(box[2] - box[0], box[3] - box[1]) < 4:
                continue
            crop = torch.from_numpy(MaskCrops(chip.image).resized([(tuple(box), mask)], 32))
            probability = network.label(crop).softmax(-1)[0, :-1]
            expected.append((float(probability.max()) * (quality if quality_scores else 1), int(probability.argmax())))
    found = segmenter.segment([chip])[0]
    check_instances(segmenter, chip, found)
    expected.sort(key=lambda pair: -pair[0])
    assert 1 < len(found) == len(expected)
    np.testing.assert_allclose(found.scores, [score for score, _ in expected], rtol=1e-3, atol=1e-5)
    assert sorted(found.labels.tolist()) == sorted(label for _, label in expected)


def test_a_threshold_leaves_out_what_scores_less():
    segmenter = model.segmenter(plain_network(), score_threshold=0.0)
    chip = chip_of(segmenter)
    everyone = segmenter.segment([chip])[0]
    assert (np.diff(everyone.scores) <= 0).all()
    middle = float(np.median(everyone.scores))
    strict = segmenter.at_threshold(middle)
    assert strict.spec.score_threshold == middle
    some = strict.segment([chip])[0]
    keep = everyone.scores >= middle
    assert 0 < keep.sum() < len(everyone)
    np.testing.assert_array_equal(some.boxes, everyone.boxes[keep])
    np.testing.assert_array_equal(some.scores, everyone.scores[keep])


def test_ranking_as_in_the_paper_and_as_released():
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 3.0], [0.0, 0.5, 0.0]])
    once = logits.softmax(1).numpy()
    ones = np.ones(3, np.float32)
    scores, labels, rows = ranked(logits, "paper", ones)
    assert (rows.tolist(), labels.tolist()) == ([0, 2, 1], [0, 1, 1])
    np.testing.assert_allclose(scores, [once[0, 0], once[2, 1], once[1, 1]], rtol=1e-6)
    scores, labels, rows = ranked(logits, "released", ones)
    twice = torch.from_numpy(once).softmax(1).numpy()
    assert len(scores) == 6  # every pair of mask and class
    assert scores[0] == pytest.approx(twice[0, 0])
    assert scores.max() < 0.6  # the second softmax draws all scores together
    assert {(row, label) for row, label in zip(rows.tolist(), labels.tolist(), strict=True)} == {
        (row, label) for row in range(3) for label in range(2)
    }
    halved, _, first = ranked(logits, "paper", np.array([0.1, 1, 1], np.float32))
    assert first[0] == 2
    assert halved[-1] == pytest.approx(once[1, 1]) or halved[-1] == pytest.approx(0.1 * once[0, 0])


def test_clip_names_masks_without_training(clip_folder):
    """Another sentence, another name: the labeller's answer comes from CLIP and its own crop size."""
    options = {"labeller": "clip", "clip_folder": str(clip_folder)}
    network = plain_network(**options)
    assert network.crop_side == 32
    assert not any(name.startswith(("labeller", "clip")) for name in network.state_dict())
    swapped = SamCls(network.encoder, dataclasses.replace(network.config, classes=CLASSES[::-1]))
    swapped.sam.load_state_dict(network.sam.state_dict())
    chip = chip_of(model.segmenter(network))
    a, b = (model.segmenter(n.eval(), score_threshold=0.0).segment([chip])[0] for n in (network, swapped))
    assert len(a) > 0
    np.testing.assert_array_equal(a.boxes, b.boxes)
    np.testing.assert_array_equal(a.labels, 1 - b.labels)


def test_clip_with_sam_as_it_is_has_nothing_to_train(clip_folder):
    network = plain_network(labeller="clip", clip_folder=str(clip_folder))
    with pytest.raises(ModelError, match="nothing to train"):
        network.loss(noise(), [objects(), objects(1)])


def test_clip_comes_back_from_its_folder(clip_folder, tmp_path):
    network = lite_network(labeller="clip", clip_folder=str(clip_folder))
    write_weights(tmp_path / "w.safetensors", network.state_dict(), model.describe(network), dtype=None)
    loaded = model.load(tmp_path / "w.safetensors", "cpu").at_threshold(0.0)
    chip = chip_of(loaded)
    a, b = loaded.segment([chip])[0], model.segmenter(network, score_threshold=0.0).segment([chip])[0]
    assert len(a) > 0
    np.testing.assert_array_equal(a.scores, b.scores)
    description = model.describe(network)
    description["config"]["clip_folder"] = str(tmp_path / "gone")
    write_weights(tmp_path / "w.safetensors", network.state_dict(), description, dtype=None)
    with pytest.raises(ModelError, match="clip_folder"):
        model.load(tmp_path / "w.safetensors", "cpu")


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


def test_on_lite_everything_is_trained_for_clicks():
    network = lite_network().train()
    terms = network.loss(noise(), [objects(), objects(1)])
    assert set(terms) == {"mask", "dice", "iou", "label"}
    sum(terms.values()).backward()
    # everything mode clicks on objects and takes one of three masks; which one is best may always be the same
    others = ("point_embeddings.0", "point_embeddings.2", "point_embeddings.3", "output_hypernetworks_mlps.")
    assert [n for n in without_gradient(network) if not any(other in n for other in others)] == []


def test_the_papers_trains_the_labeller_alone():
    network = plain_network().train()
    terms = network.loss(noise(), [objects(), objects(1)])
    assert set(terms) == {"label"}
    terms["label"].backward()
    assert not any(p.requires_grad for part in (network.encoder, network.sam) for p in part.parameters())
    assert without_gradient(network) == []


@pytest.mark.parametrize("make", [lite_network, plain_network])
def test_an_image_without_objects_has_a_loss(make):
    network = make().train()
    for some in ([objects(), objects(0)], [objects(0), objects(0)]):
        terms = network.loss(noise(), some)
        assert all(torch.isfinite(term) for term in terms.values())
        sum(terms.values()).backward()


def test_a_batch_without_crops_has_a_loss():
    network = plain_network()
    network.samples = SampleConfig(objects=0, background=0)
    loss = network.train().loss(noise(), [objects(0), objects(0)])["label"]
    assert loss.item() == 0
    loss.backward()


def test_saved_weights_come_back(tmp_path):
    network = lite_network()
    network.load_state_dict(
        {n: t.half().float() if t.is_floating_point() else t for n, t in network.state_dict().items()}
    )
    write_weights(tmp_path / "w.safetensors", network.state_dict(), model.describe(network))
    loaded = model.load(tmp_path / "w.safetensors", "cpu")
    assert loaded.network.config == network.config
    assert loaded.spec.weights_id.startswith("w.safetensors@")
    assert read_weights(tmp_path / "w.safetensors").description["model"] == "sam-cls"
    chip = chip_of(loaded)
    a = loaded.at_threshold(0.1).segment([chip])[0]
    b = model.segmenter(network, score_threshold=0.1).segment([chip])[0]
    assert len(a) > 0
    np.testing.assert_array_equal(a.boxes, b.boxes)
    np.testing.assert_array_equal(a.scores, b.scores)


def test_defaults_are_the_papers_on_sam():
    paper = model.default_config("sam-vit-h", CLASSES)
    assert (paper.labeller, paper.crop_side, paper.points_per_side, paper.train_sam) == ("resnet18", 224, 32, False)
    assert (paper.pred_iou, paper.stability, paper.nms, paper.min_region) == (0.5, 0.6, 0.5, 16)


def test_lite_takes_no_sam_file(tmp_path):
    with pytest.raises(ModelError, match="sam-vit-b"):
        model.build("lite", model.default_config("lite", CLASSES), sam_checkpoint=tmp_path / "sam.pth")


def test_the_labeller_starts_from_a_file_of_torchvision(tmp_path):
    from torchvision.models import resnet18

    torch.manual_seed(0)
    given = resnet18(weights=None).state_dict()
    torch.save(given, tmp_path / "resnet18.pth")
    config = dataclasses.replace(model.default_config("lite", CLASSES), crop_side=32)
    network = model.build("lite", config, pretrained=False, labeller_weights=tmp_path / "resnet18.pth")
    for name, tensor in network.labeller.state_dict().items():
        assert name.startswith("fc.") or torch.equal(tensor, given[name]), name
    assert network.labeller.fc.out_features == len(CLASSES) + 1


@pytest.mark.slow
def test_builds_on_sam2():
    pytest.importorskip("sam2", reason="NOT RUN: sam2 is not installed")
    torch.manual_seed(0)
    encoder = build_encoder("sam2-hiera-t", image_size=256, layers=())
    network = promising(SamCls(encoder, ClsConfig(classes=CLASSES, **FEW)))
    segmenter = model.segmenter(network, score_threshold=0.1, overlap=64)
    chip = chip_of(segmenter, height=100, width=128)
    instances = segmenter.segment([chip])[0]
    assert len(instances) > 0
    check_instances(segmenter, chip, instances)


@pytest.mark.slow
def test_it_learns():
    """From random heads, 300 steps: a grid of points finds the objects, and the labeller names them."""
    torch.manual_seed(0)
    pictures = tiny_chips.close_ups()
    config = dataclasses.replace(
        model.default_config("lite", tiny_chips.CLASSES), points_per_side=16, crop_side=32, smallest_box=6
    )
    network = model.build("lite", config, SampleConfig(objects=2, background=2))
    network.loss_config = dataclasses.replace(network.loss_config, objects=12, beside=12, points=512)
    before, after = tiny_chips.learn(network, 300, 1e-3, per_step=4, pictures=pictures)
    assert after < before / 5
    assert tiny_chips.mask_ap50(model.segmenter(network, score_threshold=0.05), pictures=pictures) >= 0.9
