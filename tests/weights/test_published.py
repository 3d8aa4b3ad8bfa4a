import inspect
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from rsgeoseg.weights.cards import bundled_cards
from rsgeoseg.weights.published import default_card, find_published, published_cards, settings_of

NOTES = Path(__file__).parents[3] / "shared" / "research" / "upstream.md"
CARDS = published_cards()


def test_ids_are_those_promised_and_unlike_the_bundled_ones():
    hiera = ["hiera-t", "hiera-s", "hiera-b+", "hiera-l"]
    expected = ["sam-vit-b", "sam-vit-l", "sam-vit-h"]
    expected += [f"{version}-{size}" for version in ("sam2", "sam2.1") for size in hiera]
    expected += ["rsprompter-anchor-nwpu", "rsprompter-anchor-whu", "rsprompter-anchor-ssdd"]
    assert [card.id for card in CARDS] == expected
    assert not set(expected) & {card.id for card in bundled_cards()}


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.id)
def test_card_is_whole(card):
    assert re.fullmatch("[0-9a-f]{64}", card.sha256)
    assert card.bytes > 150_000_000
    assert urlsplit(card.url).scheme == "https"
    assert urlsplit(card.url).path.endswith(f"/{card.file}")
    assert card.models
    assert card.licence.startswith("Apache-2.0")


def test_no_two_cards_share_a_file():
    """They lie in one folder, here and on mirrors."""
    for field in ("id", "file", "url", "sha256", "bytes"):
        assert len({getattr(card, field) for card in CARDS}) == len(CARDS)


def test_official_sam_files_carry_their_version_in_the_name():
    """The six digits are the start of the file's MD5, which cannot be derived from what the card says: only shape."""
    for card in CARDS[:3]:
        assert re.fullmatch(r"sam_vit_[blh]_[0-9a-f]{6}\.pth", card.file)
        assert card.backbone == card.id


def test_bytes_and_digests_are_those_of_the_notes():
    if not NOTES.is_file():
        pytest.skip(f"NOT RUN: {NOTES.name} is not in this checkout")
    rows = re.findall(r"^\| (\S+\.(?:pth|pt)) \| ([\d ]+) \|.*?([0-9a-f]{64})", NOTES.read_text(), re.MULTILINE)
    noted = {file: (int(count.replace(" ", "")), sha256) for file, count, sha256 in rows}
    assert len(noted) == 14
    assert {card.file: (card.bytes, card.sha256) for card in CARDS} == noted


def test_defaults_are_the_smallest_files_that_serve_a_model():
    for model in ("sam-prompt", "sam2-prompt"):
        chosen = default_card(model)
        newest = [card for card in CARDS if model in card.models and not card.id.startswith("sam2-")]
        assert chosen.bytes == min(card.bytes for card in newest)
    assert default_card("sam-everything").id == "sam-vit-b"
    for model in ("rsprompter-anchor", "rsprompter-query", "sam-det", "sam-cls", "no-such-model"):
        assert default_card(model) is None


def test_find():
    assert find_published("sam2.1-hiera-b+").file == "sam2.1_hiera_base_plus.pt"
    assert find_published("sam2.1_hiera_base_plus.pt") is None


def test_settings_of_files_with_classes_are_their_names():
    nwpu = find_published("rsprompter-anchor-nwpu")
    bundled = next(card for card in bundled_cards() if card.id == "rsprompter-query-lite-nwpu")
    assert settings_of(nwpu) == {"classes": list(bundled.classes)}
    assert settings_of(find_published("rsprompter-anchor-whu")) == {"classes": ["building"]}
    assert settings_of(find_published("rsprompter-anchor-ssdd")) == {"classes": ["ship"]}
    assert settings_of(find_published("sam-vit-h")) == settings_of(find_published("sam2-hiera-t")) == {}


def test_settings_agree_with_the_packages_of_the_authors():
    torch = pytest.importorskip("torch")
    from segment_anything import sam_model_registry
    from segment_anything.modeling import Sam

    with torch.device("meta"):
        sam = sam_model_registry["vit_b"]()
    settings = find_published("sam-vit-b").settings
    defaults = inspect.signature(Sam).parameters
    assert tuple(defaults["pixel_mean"].default) == settings.mean
    assert tuple(defaults["pixel_std"].default) == settings.std
    assert sam.mask_threshold == settings.mask_threshold
    assert {m.eps for m in sam.mask_decoder.transformer.modules() if isinstance(m, torch.nn.LayerNorm)} == {
        settings.decoder_eps
    }


def test_sam2_statistics_are_the_package_s():
    pytest.importorskip("torch")
    transforms = pytest.importorskip("sam2.utils.transforms", reason="NOT RUN: sam2 is not installed")
    theirs = transforms.SAM2Transforms(1024, 0.0)
    settings = find_published("sam2.1-hiera-l").settings
    assert settings.mean == pytest.approx([255 * value for value in theirs.mean])
    assert settings.std == pytest.approx([255 * value for value in theirs.std])
