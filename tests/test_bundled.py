"""The weights that come with the package: whole, small, and good on the example."""

from pathlib import Path

import geopandas
import numpy as np
import pytest
import torch

import rsgeoseg
from rsgeoseg.engine.tuning import sample_chips
from rsgeoseg.errors import ModelError, WeightsError
from rsgeoseg.evaluate.polygons import polygon_metrics
from rsgeoseg.geo.scene import Scene
from rsgeoseg.weights import files
from rsgeoseg.weights.cards import WeightsCard, bundled_cards

EXAMPLES = Path(__file__).parents[1] / "examples"
QUERY = next(card for card in bundled_cards() if card.id == "rsprompter-query-lite-nwpu")


def test_every_bundled_file_is_the_one_on_its_card():
    cards = bundled_cards()
    assert cards
    for card in cards:
        assert card.path.stat().st_size == card.bytes <= 30e6
        assert files.sha256_of(card.path) == card.sha256
        assert "research" in card.licence  # the training images are for research use: it must say so
        assert card.accuracy["mask_ap"] > 0


def test_card_round_trip():
    card = QUERY
    assert WeightsCard.from_dict(card.to_dict()) == card
    with pytest.raises(ValueError, match="flavour"):
        WeightsCard.from_dict({**card.to_dict(), "flavour": "vanilla"})


def test_the_default_weights_are_bundled_and_named_in_the_spec():
    model = rsgeoseg.load_model("rsprompter-query", device="cpu")
    card = QUERY
    assert model.spec.weights_id == f"{card.id}@{card.sha256[:16]}"
    assert model.spec.classes == card.classes
    by_id = rsgeoseg.load_model("rsprompter_query", weights=card.id, device="cpu")  # underscores are accepted
    assert by_id.spec == model.spec


def test_a_damaged_bundled_file_is_refused(tmp_path, monkeypatch):
    card = QUERY
    data = bytearray(card.path.read_bytes())
    data[len(data) // 2] ^= 1  # one bit
    (tmp_path / card.file).write_bytes(data)
    monkeypatch.setattr("rsgeoseg.weights.cards.BUNDLED", tmp_path)
    monkeypatch.setattr("rsgeoseg.weights.opening.find_card", lambda *_: card)
    with pytest.raises(WeightsError, match="sha256"):
        rsgeoseg.load_model("rsprompter-query", device="cpu")


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ModelError, match="rsprompter-query"):
        rsgeoseg.load_model("yolo")
    with pytest.raises(WeightsError, match="no such weights"):
        rsgeoseg.load_model("rsprompter-query", weights="no-such-id", device="cpu")


def test_list_models():
    card = next(c for c in rsgeoseg.list_models() if c.name == "rsprompter-query")
    assert card.weights[0].backbone == "lite"
    assert {"lite", "sam-vit-h", "sam2-hiera-l"} <= set(card.backbones)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["rsprompter-query", "rsprompter-anchor"])
def test_the_example_is_mapped_well(tmp_path, model):
    """The README's commands: most true objects of the example are found, with sane sizes and no duplicates."""
    truth = geopandas.read_file(EXAMPLES / "harbour_town_truth.gpkg")
    found = rsgeoseg.run(EXAMPLES / "harbour_town.tif", model=model, output=tmp_path / "found.gpkg")
    result = polygon_metrics(truth, found)
    assert result.n_matched >= 0.75 * result.n_truth
    assert result.n_found <= 1.15 * result.n_truth
    assert result.duplicates == 0
    assert found.crs == truth.crs
    pools = found[found.class_name == "storage_tank"]
    assert pools.area_m2.between(20, 3000).all()
    assert found.is_valid.all()
    record = found.attrs["rsgeoseg"]
    assert record["chips"]["done"] == record["chips"]["total"]


@pytest.mark.parametrize(("size", "chips"), [(128, 6), (192, 6), (256, 6), (320, 4), (1024, 1)])
@pytest.mark.parametrize("name", ["rsprompter-query", "rsprompter-anchor"])
def test_the_number_of_threads_changes_no_bit(name, size, chips):
    """Two processes with one thread each must give the map that one with two gives."""
    model = rsgeoseg.load_model(name, device="cpu").at_threshold(0.1)
    with Scene.open(EXAMPLES / "harbour_town.tif") as scene:
        looked = sample_chips(scene, size, chips)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 6, 12, 64):
            torch.set_num_threads(threads)
            found.append([model.segment([chip])[0] for chip in looked])
    finally:
        torch.set_num_threads(before)
    assert sum(len(instances) for instances in found[0]) >= 3
    for others in found[1:]:
        for first, other in zip(found[0], others, strict=True):
            assert other.scores.tobytes() == first.scores.tobytes()
            assert np.array_equal(other.boxes, first.boxes)
            assert np.array_equal(other.labels, first.labels)
            assert all(np.array_equal(a, b) for a, b in zip(other.masks, first.masks, strict=True))


@pytest.mark.parametrize("name", ["rsprompter-query", "rsprompter-anchor"])
def test_objects_do_not_depend_on_the_other_chips_of_a_batch(name):
    model = rsgeoseg.load_model(name, device="cpu").at_threshold(0.02)
    with Scene.open(EXAMPLES / "harbour_town.tif") as scene:
        chips = sample_chips(scene, 64, 8)
    together = model.segment(chips)
    assert sum(len(found) for found in together) > 1
    for chip, found in zip(chips, together, strict=True):
        alone = model.segment([chip])[0]
        np.testing.assert_allclose(alone.scores, found.scores, rtol=1e-3)
        assert np.array_equal(alone.labels, found.labels)
        np.testing.assert_allclose(alone.boxes, found.boxes, atol=1)
