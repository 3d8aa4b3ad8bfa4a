"""Training end to end: an interrupted run equals an uninterrupted one, and its weights load and segment."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from test_data import make_folder
from typer.testing import CliRunner

import rsgeoseg
from rsgeoseg.cli.main import build_app
from rsgeoseg.contract import Chip
from rsgeoseg.errors import ModelError, UsageError, WeightsError
from rsgeoseg.testing.contract import check_instances
from rsgeoseg.train.config import TrainConfig
from rsgeoseg.train.curve import Curve
from rsgeoseg.train.fit import share_of, train
from rsgeoseg.train.network import build_network
from rsgeoseg.weights.files import read_weights, write_weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("coco"), 6, side=128)


@pytest.fixture(scope="module")
def config(folder):
    return TrainConfig(
        images=str(folder), annotations=str(folder / "coco.json"), steps=4, batch_size=2, interval=2, crop=64, lr=1e-4
    )


@pytest.fixture(scope="module")
def uninterrupted(config, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole")
    return train(config, output, device="cpu")


class Stopped(RuntimeError):
    """The training was killed."""


@pytest.mark.slow
@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize("stop_at", [2, 4])
def test_resumed_training_equals_an_uninterrupted_one(config, uninterrupted, tmp_path, stop_at, measured):
    """Killed after ``stop_at`` steps, it goes on from there: the same weights and curve, to the last bit."""

    def stop(step, _result):
        if step == stop_at:
            raise Stopped

    with pytest.raises(Stopped):
        train(config, tmp_path, device="cpu", on_validation=stop)
    assert (tmp_path / "last.ckpt").is_file()
    if not measured:  # killed between checkpoint and measurement
        Curve(tmp_path / "validation.csv").cut(stop_at - 1)
    again = []
    result = train(config, tmp_path, device="cpu", on_validation=lambda step, _r: again.append(step))
    # nothing was done twice, and what was saved but not measured was measured first
    assert again == [step for step in (2, 4) if step > stop_at or (step == stop_at and not measured)]
    whole, resumed = read_weights(uninterrupted.weights), read_weights(result.weights)
    for curve in ("curve.csv", "validation.csv"):
        assert (tmp_path / curve).read_text() == (uninterrupted.weights.parent / curve).read_text()
    assert (result.step, result.accuracy) == (uninterrupted.step, uninterrupted.accuracy)
    assert result.steps == uninterrupted.steps == 4
    for name, tensor in whole.tensors.items():
        torch.testing.assert_close(resumed.tensors[name], tensor, rtol=0, atol=0, msg=name)


def test_other_settings_do_not_resume(config, uninterrupted):
    with pytest.raises(UsageError, match="lr"):
        train(dataclasses.replace(config, lr=1e-3), uninterrupted.weights.parent, device="cpu")


def test_weights_load_by_path_and_segment(uninterrupted):
    segmenter = rsgeoseg.load_model("rsprompter-query", weights=uninterrupted.weights, device="cpu")
    assert segmenter.spec.classes == ("a", "b")
    chip = Chip(image=np.full((3, 64, 64), 90, np.uint8), valid=np.ones((64, 64), np.bool_))
    thorough = segmenter.at_threshold(0.0)
    check_instances(thorough, chip, thorough.segment([chip])[0])
    half = read_weights(uninterrupted.weights)
    loaded = segmenter.network.state_dict()
    for name, tensor in half.tensors.items():
        torch.testing.assert_close(loaded[name], tensor, rtol=0, atol=0, msg=name)
    assert half.description["training"]["steps"] == 4


def test_not_finite_loss_stops_and_says_where(config, folder, tmp_path):
    with pytest.raises(ModelError, match=r"the loss is (nan|inf) at step \d+, on crops of 00\d\.png"):
        train(dataclasses.replace(config, lr=1e30, warmup=0, steps=6, interval=1), tmp_path, device="cpu")
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)  # of the step before, whole
    assert last["global_step"] >= 1


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_devices_together_draw_what_one_alone_draws(devices):
    """Batch by batch: 0-3, 4-7, 8-11, each cut into equal shares in order."""
    shares = [share_of(12, 4, devices, rank) for rank in range(devices)]
    width = 4 // devices
    for batch in range(3):
        together = [n for share in shares for n in share[batch * width : (batch + 1) * width]]
        assert together == [4 * batch, 4 * batch + 1, 4 * batch + 2, 4 * batch + 3]


@pytest.mark.slow
def test_an_adapted_sam_encoder_is_a_plain_one_when_it_is_exported(folder, tmp_path):
    """Two steps of low-rank adaptation on SAM's ViT-B at 256 pixels, random weights."""
    config = TrainConfig(
        images=str(folder),
        annotations=str(folder / "coco.json"),
        backbone="sam-vit-b",
        lora=4,
        model_options={"image_size": 256},
        steps=2,
        interval=2,
        batch_size=1,
        crop=64,
        warmup=0,
        lr=1e-2,
        average=0.0,
    )
    result = train(config, tmp_path, device="cpu")
    tensors = read_weights(result.weights).tensors
    assert not [name for name in tensors if "parametrizations" in name]
    torch.manual_seed(config.seed)
    before = build_network(dataclasses.replace(config, lora=0), ("a", "b")).encoder.state_dict()
    moved = {
        name.removeprefix("encoder.")
        for name, tensor in tensors.items()
        if name.startswith("encoder.") and not torch.equal(tensor, before[name.removeprefix("encoder.")].half().float())
    }
    assert moved
    assert all(name.endswith("attn.qkv.weight") for name in moved)
    loaded = rsgeoseg.load_model("rsprompter-query", weights=result.weights, device="cpu")
    assert loaded.spec.classes == ("a", "b")


def test_what_cannot_be_trained_leaves_nothing_behind(config, tmp_path):
    with pytest.raises(UsageError, match="none"):
        train(dataclasses.replace(config, annotations=str(tmp_path / "none.json")), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_unknown_model_and_silly_numbers(config):
    with pytest.raises(ModelError, match="rsprompter-query"):
        dataclasses.replace(config, model="yolo")
    with pytest.raises(UsageError, match="multiple of 64"):
        dataclasses.replace(config, crop=100)


def test_command_line(folder, tmp_path):
    arguments = [
        "train",
        str(folder),
        str(folder / "coco.json"),
        "-o",
        str(tmp_path / "run"),
        "--steps",
        "1",
        "--interval",
        "1",
        "--batch-size",
        "1",
        "--crop",
        "64",
        "--device",
        "cpu",
        "-q",
    ]
    result = CliRunner().invoke(build_app(), arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["steps"] == 1
    assert (tmp_path / "run" / "weights.safetensors").is_file()


class TestWeightsFile:
    def test_damaged(self, uninterrupted, tmp_path):
        data = bytearray(uninterrupted.weights.read_bytes())
        (tmp_path / "cut.safetensors").write_bytes(data[: len(data) // 2])
        with pytest.raises(WeightsError, match="damaged"):
            rsgeoseg.load_model("rsprompter-query", weights=tmp_path / "cut.safetensors", device="cpu")

    def test_html(self, tmp_path):
        (tmp_path / "x.safetensors").write_text("<html>not found</html>" * 50)
        with pytest.raises(WeightsError, match="web page"):
            rsgeoseg.load_model("rsprompter-query", weights=tmp_path / "x.safetensors", device="cpu")

    def test_missing(self, tmp_path):
        with pytest.raises(WeightsError, match="no such"):
            rsgeoseg.load_model("rsprompter-query", weights=tmp_path / "none.safetensors", device="cpu")

    def test_of_another_network(self, uninterrupted, tmp_path):
        file = read_weights(uninterrupted.weights)
        tensors = {n: t for n, t in file.tensors.items() if n != "post_norm.weight"}
        write_weights(tmp_path / "x.safetensors", tensors, file.description)
        with pytest.raises(WeightsError, match=r"lacks 1 tensors, first post_norm\.weight"):
            rsgeoseg.load_model("rsprompter-query", weights=tmp_path / "x.safetensors", device="cpu")

    def test_not_finite(self, uninterrupted, tmp_path):
        file = read_weights(uninterrupted.weights)
        file.tensors["post_norm.weight"][3] = float("nan")
        write_weights(tmp_path / "x.safetensors", file.tensors, file.description)
        with pytest.raises(WeightsError, match="not finite"):
            rsgeoseg.load_model("rsprompter-query", weights=tmp_path / "x.safetensors", device="cpu")

    def test_wrong_digest(self, uninterrupted):
        with pytest.raises(WeightsError, match="sha256"):
            read_weights(uninterrupted.weights, sha256="0" * 64)

    def test_unknown_device(self, uninterrupted):
        with pytest.raises(ModelError, match="cuda:7"):
            rsgeoseg.load_model("rsprompter-query", weights=uninterrupted.weights, device="cuda:7")
