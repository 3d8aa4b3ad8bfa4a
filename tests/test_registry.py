"""Every model of the registry: its card is true, its weights load by path, and it keeps the contract."""

from importlib import import_module

import pytest
import torch
from typer.testing import CliRunner

import rsgeoseg
from rsgeoseg import registry
from rsgeoseg.cli.main import build_app
from rsgeoseg.contract import Promptable, Segmenter
from rsgeoseg.errors import ModelError, UsageError, WeightsError
from rsgeoseg.testing.contract import SegmenterContract
from rsgeoseg.train.models import TRAINABLE
from rsgeoseg.weights.files import write_weights

CLASSES = ("disc", "square")
CARDS = {card.name: card for card in rsgeoseg.list_models()}
NAMES_OF_THE_PAPER = {
    "rsprompter-query",
    "rsprompter-anchor",
    "sam-seg-maskrcnn",
    "sam-seg-mask2former",
    "sam-det",
    "sam-cls",
    "sam-everything",
    "sam-prompt",
    "sam2-prompt",
}


def module_of(name):
    return import_module(CARDS[name].loader.partition(":")[0])


def write_random(name, folder):
    """Weights of a model as a training leaves them, on the smallest backbone it builds on."""
    module, backbone = module_of(name), CARDS[name].backbones[0]
    torch.manual_seed(0)
    network = module.build(backbone, module.default_config(backbone, CLASSES), pretrained=False)
    path = folder / f"{name}.safetensors"
    write_weights(path, network.state_dict(), module.describe(network))
    return path


@pytest.fixture(scope="module", params=list(CARDS))
def segmenter(request, tmp_path_factory):
    path = write_random(request.param, tmp_path_factory.mktemp("weights"))
    return rsgeoseg.load_model(request.param, weights=path, device="cpu")


class TestEveryModel(SegmenterContract):
    def test_is_what_its_card_says(self, segmenter):
        card = CARDS[segmenter.spec.name]
        assert isinstance(segmenter, Segmenter)
        assert segmenter.spec.needs_prompts == card.needs_prompts
        assert isinstance(segmenter, Promptable) or not card.needs_prompts
        assert segmenter.spec.source
        assert segmenter.spec.weights_id.startswith(f"{card.name}.safetensors@")


def test_all_methods_are_there():
    assert set(CARDS) >= NAMES_OF_THE_PAPER
    assert set(TRAINABLE) == NAMES_OF_THE_PAPER - {"sam-everything", "sam-prompt", "sam2-prompt"}  # have no classes


@pytest.mark.parametrize("name", list(CARDS))
def test_backbones_on_the_card_are_the_modules(name):
    module = module_of(name)
    assert CARDS[name].backbones == tuple(module.BACKBONES)
    assert name == module.NAME


@pytest.mark.parametrize("name", list(CARDS))
def test_weights_of_another_model_are_refused(name, tmp_path):
    other = "sam-seg-maskrcnn" if name != "sam-seg-maskrcnn" else "rsprompter-anchor"
    path = write_random(other, tmp_path)
    with pytest.raises(WeightsError, match=f"holds '{other}', not {name}"):
        rsgeoseg.load_model(name, weights=path, device="cpu")


@pytest.mark.parametrize("name", [name for name, card in CARDS.items() if card.needs_prompts])
def test_a_run_without_prompts_is_refused_before_weights_are_fetched(name, ids_scene, monkeypatch, tmp_path):
    monkeypatch.setenv("RSGEOSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RSGEOSEG_OFFLINE", "1")
    path, _ = ids_scene()
    with pytest.raises(UsageError, match="answers prompts"):
        rsgeoseg.run(path, model=name)


@pytest.mark.parametrize("name", [name for name, card in CARDS.items() if not (card.weights or card.published)])
def test_models_without_weights_say_what_to_do(name):
    with pytest.raises(WeightsError, match="rsgeoseg train"):
        rsgeoseg.load_model(name, device="cpu")


def test_an_unknown_model_lists_the_known():
    with pytest.raises(ModelError, match="rsprompter-anchor"):
        registry.card("yolo")


class TestTable:
    """``rsgeoseg models``."""

    def show(self, *arguments):
        result = CliRunner().invoke(build_app(), ["models", *arguments], catch_exceptions=False)
        assert result.exit_code == 0
        return result.output

    def test_names_everything_that_decides_a_choice(self):
        text = self.show()
        for name, card in CARDS.items():
            assert name in text
            assert all(weights.id in text for weights in card.weights)
        for word in ("sam2-hiera-t/s/b+/l", "sam-vit-b/l/h", "Kirillov", "Apache-2.0", "10 classes", "bundled"):
            assert word in text
        query = CARDS["rsprompter-query"].weights[0].accuracy
        assert f"{query['mask_ap']:.3f} / {query['mask_ap50']:.3f}" in text

    def test_tells_what_is_here_and_what_is_to_be_fetched(self, monkeypatch, tmp_path):
        monkeypatch.setenv("RSGEOSEG_CACHE", str(tmp_path))
        assert "cached" not in self.show()
        card = next(w for w in CARDS["sam2-prompt"].published if w.id == "sam2.1-hiera-t")
        with (tmp_path / card.file).open("wb") as file:
            file.truncate(card.bytes)  # its size decides here; its digest is checked before use
        assert "1 cached, 3 to fetch" in " ".join(self.show().split())

    def test_one_model_in_full(self):
        text = self.show("rsprompter-anchor")
        for word in ("WHU_anchor.pth", "173e97dfcc82766ae8f700141556be0e785f8d0d6e8de8340c1334a9233d962d", "to fetch"):
            assert word in text
