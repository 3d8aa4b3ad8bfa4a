"""SAM and SAM 2 with prompts on `lite`: contract, files, learning."""

import numpy as np
import pytest
import tiny_chips
import torch

from rsgeoseg.backbones.lite import LiteEncoder
from rsgeoseg.backbones.prompt_loss import PromptLoss
from rsgeoseg.backbones.promptable import PromptableSam
from rsgeoseg.backbones.sam2_parts import Sam2PromptedDecoder
from rsgeoseg.contract import Promptable, Prompts, Segmenter
from rsgeoseg.errors import ModelError, PromptError, WeightsError
from rsgeoseg.models import sam2_prompt, sam_prompt
from rsgeoseg.testing.contract import SegmenterContract, check_instances
from rsgeoseg.weights.files import write_weights


class PromptContract(SegmenterContract):
    """The contract with prompts for every chip."""

    def prompts(self, chip, kinds):
        h, w = chip.valid.shape
        boxes = np.array([[0, 0, w, h], [w / 4, h / 4, w / 2 + 1, h / 2 + 1]], np.float32)
        points = np.array([[w / 2, h / 2], [w / 3, h / 4]], np.float32)
        return Prompts(
            boxes=boxes if "boxes" in kinds else np.zeros((0, 4), np.float32),
            points=points if "points" in kinds else np.zeros((0, 2), np.float32),
            point_labels=np.array([1, 0]) if "points" in kinds else np.zeros(0, np.int64),
            mask=np.linspace(-4, 4, h * w, dtype=np.float32).reshape(h, w) if "mask" in kinds else None,
        )

    @pytest.mark.parametrize("kinds", ["boxes", "points", "mask", "points mask", "boxes points mask"])
    def test_keeps_the_contract_with_prompts(self, segmenter, kinds):
        chips = [self.chip(segmenter, 1), self.chip(segmenter, 2, height=70, width=53), self.chip(segmenter, 3)]
        chips[2].valid[:, :60] = False
        results = segmenter.segment(chips, [self.prompts(chip, kinds) for chip in chips])
        assert sum(len(instances) for instances in results) > 0
        for chip, instances in zip(chips, results, strict=True):
            check_instances(segmenter, chip, instances)
            assert len(instances) <= 2 * ("boxes" in kinds) + ("points" in kinds or kinds == "mask")

    def test_some_chips_have_no_prompts(self, segmenter):
        chips = [self.chip(segmenter, seed) for seed in (1, 2)]
        both = segmenter.segment(chips, [None, self.prompts(chips[1], "boxes")])
        assert len(both[0]) == 0
        assert len(both[1]) > 0

    def test_a_chip_without_data_stays_empty(self, segmenter):
        chip = self.chip(segmenter, 1)
        chip.valid[:] = False
        assert len(segmenter.segment([chip], [self.prompts(chip, "boxes points")])[0]) == 0

    def test_refuses_text(self, segmenter):
        with pytest.raises(PromptError, match="boxes, mask, points"):
            segmenter.segment([self.chip(segmenter)], [Prompts(text="ships")])

    def test_is_promptable(self, segmenter):
        assert isinstance(segmenter, Segmenter)
        assert isinstance(segmenter, Promptable)


class TestSamContract(PromptContract):
    @pytest.fixture(scope="class")
    def segmenter(self):
        torch.manual_seed(0)
        return sam_prompt.segmenter(sam_prompt.build("lite", pretrained=False))


class TestSam2Contract(PromptContract):
    @pytest.fixture(scope="class")
    def segmenter(self):
        torch.manual_seed(0)
        sam = Sam2PromptedDecoder(dim=128, mlp_dim=64, grid=80, skip_channels=(24, 40))
        return sam2_prompt.segmenter(PromptableSam(LiteEncoder(pretrained=False), sam))


def test_weights_go_through_a_file(tmp_path):
    torch.manual_seed(0)
    network = sam_prompt.build("lite", pretrained=False)
    path = tmp_path / "mine.safetensors"
    write_weights(path, network.state_dict(), sam_prompt.describe(network), dtype=None)
    loaded = sam_prompt.load(path, "cpu")
    chip = SegmenterContract().chip(loaded)
    prompts = [Prompts(boxes=np.array([[10, 20, 90, 70]], np.float32))]
    before, after = sam_prompt.segmenter(network).segment([chip], prompts)[0], loaded.segment([chip], prompts)[0]
    np.testing.assert_array_equal(before.boxes, after.boxes)
    np.testing.assert_array_equal(before.scores, after.scores)
    assert loaded.spec.weights_id.startswith("mine.safetensors@")
    with pytest.raises(WeightsError, match="sam2-prompt"):
        sam2_prompt.load(path, "cpu")


def test_each_builds_on_its_own_backbones():
    with pytest.raises(ModelError, match="sam2-hiera-t"):
        sam_prompt.build("sam2-hiera-t")
    with pytest.raises(ModelError, match="lite"):
        sam2_prompt.build("lite")


def overlap(instances, truth):
    """IoU of the only object with the truth; 0 where there is none."""
    if not len(instances):
        return 0.0
    (x0, y0, x1, y1), canvas = instances.boxes[0], np.zeros_like(truth)
    canvas[y0:y1, x0:x1] = instances.masks[0]
    return (canvas & truth).sum() / (canvas | truth).sum()


def check_learning(segmenter, pictures):
    """Boxes, a click inside each object, and a ruined mask with that click all give the true masks."""
    prompts = [Prompts(boxes=target.boxes.numpy()) for _, target in pictures]
    assert tiny_chips.mask_ap50(segmenter, prompts, by_class=False, pictures=pictures) >= 0.9
    found, refined = [], []
    for chip, (_, target) in zip(tiny_chips.as_chips(pictures), pictures, strict=True):
        seen = segmenter.encode(chip)
        for truth in target.masks.numpy().astype(np.bool_):
            ys, xs = np.nonzero(truth)
            middle = np.argmin((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2)
            click = {"points": np.array([[xs[middle], ys[middle]]], np.float32), "point_labels": np.array([1])}
            half = truth & (np.arange(truth.shape[1]) < xs.mean())
            ruined = np.where(half, 8, -8).astype(np.float32)
            found.append(overlap(segmenter.decode(seen, Prompts(**click)), truth))
            refined.append(overlap(segmenter.decode(seen, Prompts(**click, mask=ruined)), truth))
    assert np.mean(np.array(found) >= 0.5) >= 0.9
    assert np.mean(np.array(refined) >= 0.6) >= 0.8  # half a mask has an IoU of about 0.5


@pytest.mark.slow
def test_it_learns():
    """From random heads, 300 steps: the loss falls by five, and every kind of prompt gives the true masks."""
    torch.manual_seed(0)
    pictures = tiny_chips.close_ups()
    network = sam_prompt.build("lite", PromptLoss(points=512))
    before, after = tiny_chips.learn(network, 300, 1e-3, per_step=4, pictures=pictures)
    assert after < before / 5
    check_learning(sam_prompt.segmenter(network), pictures)


@pytest.mark.slow
def test_sam2_learns():
    """The same with SAM 2's decoder; on `lite`, because a Hiera without public weights learns nothing in 300 steps."""
    torch.manual_seed(0)
    pictures = tiny_chips.close_ups()
    sam = Sam2PromptedDecoder(dim=128, mlp_dim=512, grid=80, skip_channels=(24, 40))
    network = PromptableSam(LiteEncoder(), sam, PromptLoss(points=512))
    before, after = tiny_chips.learn(network, 300, 1e-3, per_step=4, pictures=pictures)
    assert after < before / 5
    check_learning(sam2_prompt.segmenter(network), pictures)
