"""What the labeller of SAM-cls sees: enlarged boxes, blurred surroundings, training crops; and CLIP from a folder."""

import sys

import numpy as np
import pytest
import torch
from clip_folder import save_clip

from rsgeoseg.errors import ModelError
from rsgeoseg.models.sam_cls.clip import ClipLabeller
from rsgeoseg.models.sam_cls.crops import MaskCrops, double_box
from rsgeoseg.models.sam_cls.samples import SampleConfig, draw_crops
from rsgeoseg.nn.targets import Target


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((40, 30, 50, 36), (35, 27, 55, 39)),  # 10 x 6 about (45, 33): 20 x 12
        ((40, 30, 45, 31), (37, 29, 47, 31)),  # odd sides: the middle is rounded down
        ((2, 1, 12, 9), (0, 0, 17, 13)),  # cut at the upper left
        ((88, 50, 98, 60), (83, 45, 100, 60)),  # cut at the right and below
        ((0, 0, 100, 60), (0, 0, 100, 60)),  # the whole image stays
    ],
)
def test_a_box_is_doubled_and_cut_at_the_edge(box, expected):
    assert double_box(box, (60, 100)) == expected


def test_surroundings_are_blurred_by_seven_and_the_mask_stays_sharp():
    """One bright pixel of 49 * 4 spreads as 4 over its 7 x 7 window, outside the mask only."""
    image = np.zeros((3, 40, 40), np.uint8)
    image[:, 20, 20] = 196
    mask = np.zeros((4, 6), np.bool_)  # box x 17-23, y 18-22
    mask[2, 3] = mask[1, 0] = True  # the pixel (20, 20), and (17, 19)
    crop = MaskCrops(image).crop((17, 18, 23, 22), mask)
    expected = np.zeros((8, 12), np.uint8)  # the doubled box: x 14-26, y 16-24
    expected[17 - 16 : 24 - 16, 17 - 14 : 24 - 14] = 4  # the window reaches y 17-23, x 17-23
    expected[20 - 16, 20 - 14] = 196
    expected[19 - 16, 17 - 14] = 0  # inside the mask: the dark pixel as it was
    for band in range(3):
        np.testing.assert_array_equal(crop[..., band], expected)


def test_crops_are_cut_from_the_blurred_image_not_blurred_alone():
    """The blur at a crop's edge sees the pixels beyond it."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (3, 30, 30)).astype(np.uint8)
    box, nothing = (12, 12, 16, 16), np.zeros((4, 4), np.bool_)
    crop = MaskCrops(image).crop(box, nothing)
    at = (10, 10)  # the crop's corner pixel; its window is 7-13
    assert abs(int(crop[0, 0, 1]) - image[1, at[0] - 3 : at[0] + 4, at[1] - 3 : at[1] + 4].mean()) <= 0.51
    assert crop.shape == (8, 8, 3)


def test_crops_are_squares_in_order():
    image = np.zeros((3, 64, 64), np.uint8)
    image[0, :, 32:] = 200
    whole = np.ones((8, 8), np.bool_)
    crops = MaskCrops(image).resized([((4, 4, 12, 12), whole), ((44, 4, 52, 12), whole)], 24)
    assert crops.shape == (2, 3, 24, 24)
    assert crops[0].max() == 0
    assert crops[1, 0].min() == 200
    assert MaskCrops(image).resized([], 24).shape == (0, 3, 24, 24)


def rectangles():
    """Two objects of different colours on black, 40 x 20 red (class 0) and 16 x 16 green (class 1)."""
    image = torch.zeros(3, 128, 128, dtype=torch.uint8)
    masks = torch.zeros(2, 128, 128, dtype=torch.uint8)
    boxes = torch.tensor([[20, 30, 60, 50], [90, 90, 106, 106]])
    for index, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        masks[index, y0:y1, x0:x1] = 1
        image[index, y0:y1, x0:x1] = 200
    return image, Target(labels=torch.tensor([0, 1]), boxes=boxes.float(), masks=masks)


def test_training_crops_show_what_their_labels_say():
    torch.manual_seed(0)
    image, target = rectangles()
    crops, labels = draw_crops(image[None], [target], SampleConfig(objects=20, background=30), side=32, background=2)
    assert crops.shape[1:] == (3, 32, 32)
    assert (labels < 2).sum() == 20
    assert 25 <= (labels == 2).sum() <= 30
    middle = crops[:, :, 12:20, 12:20].float().mean((2, 3))
    assert (middle[labels == 0, 0] > 150).all()  # an object is in the middle of its crop
    assert (middle[labels == 1, 1] > 150).all()
    assert (crops[labels == 0, 1].float().mean((1, 2)) < 10).all()


def test_training_without_objects_has_background_alone():
    torch.manual_seed(0)
    image, _ = rectangles()
    empty = Target(
        labels=torch.zeros(0, dtype=torch.int64), boxes=torch.zeros(0, 4), masks=torch.zeros(0, 128, 128).byte()
    )
    crops, labels = draw_crops(image[None], [empty], SampleConfig(objects=4, background=6), side=16, background=2)
    assert labels.tolist() == [2] * len(crops)
    assert 0 < len(crops) <= 6


def test_small_training_crops_are_left_out():
    torch.manual_seed(0)
    image, target = rectangles()
    _, labels = draw_crops(
        image[None], [target], SampleConfig(objects=40, background=0, smallest_crop=38), side=16, background=2
    )
    assert set(labels.tolist()) == {0}  # of the 16 x 16 object no jitter makes 38 pixels


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A random CLIP with a tokenizer of letters."""
    pytest.importorskip("transformers", reason="NOT RUN: transformers is not installed")
    return save_clip(tmp_path_factory.mktemp("clip"))


def test_clip_logits_are_those_of_the_whole_model(clip_folder):
    """The text tower's share is computed once; the result is CLIPModel's own, with background sentences pooled."""
    from transformers import AutoTokenizer, CLIPModel

    labeller = ClipLabeller(
        clip_folder, ("storage_tank", "ship"), prompt="an aerial photo of a {class}", background=("grass", "sea")
    )
    assert labeller.side == 32
    crops = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    model, tokenizer = CLIPModel.from_pretrained(clip_folder).eval(), AutoTokenizer.from_pretrained(clip_folder)
    sentences = ["an aerial photo of a storage tank", "an aerial photo of a ship", "grass", "sea"]
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    with torch.no_grad():
        tokens = tokenizer(sentences, padding=True, return_tensors="pt")
        whole = model(pixel_values=(crops / 255 - mean) / std, **tokens).logits_per_image
        logits = labeller(crops)
    torch.testing.assert_close(logits[:, :2], whole[:, :2], rtol=1e-4, atol=1e-4)
    probability = whole.softmax(1)
    torch.testing.assert_close(logits.softmax(1)[:, 2], probability[:, 2:].sum(1), rtol=1e-4, atol=1e-5)


def test_clip_without_a_folder_says_so(tmp_path):
    with pytest.raises(ModelError, match="clip_folder"):
        ClipLabeller(None, ("ship",), prompt="{class}", background=("sea",))
    with pytest.raises(ModelError, match="clip_folder"):
        ClipLabeller(tmp_path / "nowhere", ("ship",), prompt="{class}", background=("sea",))
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')  # no weights beside it
    pytest.importorskip("transformers", reason="NOT RUN: transformers is not installed")
    with pytest.raises(ModelError, match="cannot be read"):
        ClipLabeller(tmp_path, ("ship",), prompt="{class}", background=("sea",))


def test_clip_without_transformers_says_what_to_install(clip_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)  # what import does when a package is absent
    with pytest.raises(ModelError, match=r"rsgeoseg\[text\]"):
        ClipLabeller(clip_folder, ("ship",), prompt="{class}", background=("sea",))
