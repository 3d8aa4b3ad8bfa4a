"""Features of a frozen encoder, remembered: the same numbers, less work, never another encoder's."""

import dataclasses

import pytest
import torch
from test_data import make_folder

from rsgeoseg.backbones.features import Features
from rsgeoseg.backbones.lite import LiteEncoder
from rsgeoseg.datasets.coco import CocoInstances
from rsgeoseg.train.augment import AugmentConfig
from rsgeoseg.train.config import TrainConfig
from rsgeoseg.train.feature_cache import FeatureCache
from rsgeoseg.train.fit import train
from rsgeoseg.train.samples import CropStream


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return LiteEncoder(pretrained=False).requires_grad_(requires_grad=False)


def maps(features: Features):
    return [features.embedding, *features.hidden, *(features.skips or ())]


def test_it_gives_what_the_encoder_gives_and_computes_once(encoder, tmp_path):
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        plain = encoder(images)
    cache = FeatureCache(encoder, tmp_path)
    first, second = encoder(images), encoder(images[[2, 0]])
    assert (cache.misses, cache.hits) == (3, 2)
    for x, y in zip(maps(plain), maps(first), strict=True):
        torch.testing.assert_close(x, y, rtol=2e-3, atol=2e-3)  # kept in float16
    for x, y in zip(maps(first), maps(second), strict=True):
        assert torch.equal(x[[2, 0]], y)  # remembered or not: the same numbers


def test_other_pixels_and_other_encoders_are_other_features(encoder, tmp_path):
    image = torch.randn(1, 3, 64, 64)
    cache = FeatureCache(encoder, tmp_path)
    encoder(image)
    encoder(image + 1e-3)
    assert (cache.misses, cache.hits) == (2, 0)
    torch.manual_seed(1)
    other = LiteEncoder(pretrained=False)
    cache = FeatureCache(other, tmp_path)
    other(image)
    assert (cache.misses, cache.hits) == (1, 0)


def test_a_file_cut_short_is_computed_again(encoder, tmp_path):
    image = torch.randn(1, 3, 64, 64)
    FeatureCache(encoder, tmp_path)
    before = encoder(image)
    (path,) = tmp_path.glob("*/*.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    assert torch.equal(encoder(image).embedding, before.embedding)
    assert len(path.read_bytes()) > 1000


def test_crops_come_again_after_so_many_variants(tmp_path):
    data = CocoInstances(make_folder(tmp_path, 5), tmp_path / "coco.json")
    stream = CropStream(data, AugmentConfig(crop=64, mosaic=0), seed=0, start=0, length=200, variants=2)
    seen = {stream[i].image.tobytes() for i in range(200)}
    assert len(seen) == 2 * len(stream._order)


@pytest.mark.slow
def test_a_training_with_a_cache_learns_and_leaves_no_cache_behind(tmp_path):
    (tmp_path / "coco").mkdir()
    folder = make_folder(tmp_path / "coco", 6, side=128)
    config = TrainConfig(
        images=str(folder),
        annotations=str(folder / "coco.json"),
        steps=3,
        interval=3,
        batch_size=2,
        crop=64,
        freeze_encoder=True,
        cache_features=1,
    )
    result = train(config, tmp_path / "run", device="cpu")
    assert result.steps == 3
    assert not (tmp_path / "run" / "features").exists()
    again = train(dataclasses.replace(config, seed=0), tmp_path / "other", device="cpu")
    assert (tmp_path / "run" / "curve.csv").read_text() == (tmp_path / "other" / "curve.csv").read_text()
    assert again.step == result.step
