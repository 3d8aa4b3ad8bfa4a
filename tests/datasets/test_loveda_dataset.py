"""LoveDA Urban: buildings of the masks, torchgeo's layout, no test masks."""

import cv2
import numpy as np
import pytest

from rsgeoseg.datasets.loveda import LoveDAUrban
from rsgeoseg.errors import UsageError

NO_DATA, BACKGROUND, BUILDING, ROAD = 0, 1, 2, 3


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())


def scene(root, number, mask, *, split="Train", kind="Urban", size=None):
    height, width = size or mask.shape
    image = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    write(root / split / kind / "images_png" / f"{number}.png", image)
    write(root / split / kind / "masks_png" / f"{number}.png", mask)
    return image[..., ::-1]


def village():
    mask = np.full((32, 40), BACKGROUND, np.uint8)
    mask[:4] = NO_DATA
    mask[10:14, 10:16] = BUILDING
    mask[20:22, 30:40] = BUILDING
    mask[28] = ROAD
    return mask


def test_buildings_are_value_two_and_no_data_is_none(tmp_path):
    image = scene(tmp_path, 1366, village())
    scene(tmp_path, 3, np.full((32, 40), NO_DATA, np.uint8))
    scene(tmp_path, 9, village(), kind="Rural")
    dataset = LoveDAUrban(tmp_path)
    assert dataset.classes == ("building",)
    assert [dataset.labelled(i).name for i in range(len(dataset))] == [
        "Train/Urban/images_png/1366.png",
        "Train/Urban/images_png/3.png",
    ]
    labelled = dataset.labelled(0)
    assert labelled.masks().sum((1, 2)).tolist() == [24, 20]
    assert labelled.cut.tolist() == [False, True]
    np.testing.assert_array_equal(labelled.read(), image)
    assert dataset[0]["bbox_xyxy"].tolist() == [[10, 10, 16, 14], [30, 20, 40, 22]]
    assert dataset.labelled(1).shapes == ()
    assert dataset[1]["mask"].shape == (0, 32, 40)
    assert len(LoveDAUrban(tmp_path, smallest=21).labelled(0).shapes) == 1


def test_test_masks_do_not_exist(tmp_path):
    with pytest.raises(UsageError, match="held back"):
        LoveDAUrban(tmp_path, "test")
    with pytest.raises(UsageError, match="train, val, test"):
        LoveDAUrban(tmp_path, "rural")


def test_defects_are_refused(tmp_path):
    with pytest.raises(UsageError, match="download=True"):
        LoveDAUrban(tmp_path, "val")
    odd = village()
    odd[0, :3] = 8
    scene(tmp_path, 1, odd)
    with pytest.raises(UsageError, match=r"masks_png/1.png: 3 pixels .*\(8\)"):
        LoveDAUrban(tmp_path).labelled(0)
    scene(tmp_path, 2, village(), size=(32, 41))
    with pytest.raises(UsageError, match=r"2.png: is 41 x 32 but annotated as 40 x 32"):
        LoveDAUrban(tmp_path)[1]
    (tmp_path / "Train/Urban/masks_png/2.png").unlink()
    with pytest.raises(UsageError, match=r"1 of 2 .*Train/Urban/masks_png/2.png"):
        LoveDAUrban(tmp_path)
