"""Everything mode as a model on `lite`: contract, files, learning."""

import dataclasses

import numpy as np
import pytest
import tiny_chips
import torch

from rsgeoseg.backbones.everything import EverythingConfig
from rsgeoseg.backbones.prompt_loss import PromptLoss
from rsgeoseg.contract import Segmenter
from rsgeoseg.models import sam_everything
from rsgeoseg.testing.contract import SegmenterContract
from rsgeoseg.weights.files import write_weights

FEW = EverythingConfig(points_per_side=5, pred_iou=0.5, stability=0.0, nms=1.0)


def random_network():
    """Random weights whose quality head promises something."""
    torch.manual_seed(0)
    network = sam_everything.build("lite", pretrained=False)
    torch.nn.init.constant_(network.sam.mask_decoder.iou_prediction_head.layers[-1].bias, 0.7)
    return network


class TestContract(SegmenterContract):
    @pytest.fixture(scope="class")
    def segmenter(self):
        return sam_everything.segmenter(random_network(), config=FEW)

    def test_is_a_segmenter_that_finds_something(self, segmenter):
        assert isinstance(segmenter, Segmenter)
        instances = segmenter.segment([self.chip(segmenter)])[0]
        assert len(instances) > 1
        assert (np.diff(instances.scores) <= 0).all()

    def test_threshold_is_the_predicted_iou(self, segmenter):
        chip = self.chip(segmenter)
        everyone = segmenter.segment([chip])[0]
        middle = float(np.median(everyone.scores))
        strict = segmenter.at_threshold(middle)
        assert strict.spec.score_threshold == middle
        assert strict.segment([chip])[0].scores.min() > middle


def test_settings_go_through_a_file(tmp_path):
    network = random_network()
    path = tmp_path / "mine.safetensors"
    description = sam_everything.describe(network)
    description["config"] = dataclasses.asdict(FEW)
    write_weights(path, network.state_dict(), description, dtype=None)
    loaded = sam_everything.load(path, "cpu")
    assert loaded.config == FEW
    assert loaded.spec.score_threshold == FEW.pred_iou
    chip = SegmenterContract().chip(loaded)
    direct = sam_everything.segmenter(network, config=FEW).segment([chip])[0]
    np.testing.assert_array_equal(loaded.segment([chip])[0].boxes, direct.boxes)


def test_takes_the_weights_of_sam_prompt(tmp_path):
    network = random_network()
    path = tmp_path / "prompt.safetensors"
    description = {"model": "sam-prompt", "backbone": "lite", "config": dataclasses.asdict(PromptLoss())}
    write_weights(path, network.state_dict(), description)
    assert sam_everything.load(path, "cpu").config == EverythingConfig()


@pytest.mark.slow
def test_it_learns():
    """From random heads, 300 steps: a grid of points alone finds the objects, and little else."""
    torch.manual_seed(0)
    pictures = tiny_chips.close_ups()
    network = sam_everything.build("lite")
    before, after = tiny_chips.learn(network, 300, 1e-3, per_step=4, pictures=pictures)
    assert after < before / 5
    config = EverythingConfig(points_per_side=16, pred_iou=0.5, stability=0.5, nms=0.5, min_area=50)
    segmenter = sam_everything.segmenter(network, config=config)
    assert tiny_chips.mask_ap50(segmenter, by_class=False, pictures=pictures) >= 0.9
