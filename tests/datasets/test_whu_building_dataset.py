"""WHU building, aerial: label rasters become buildings."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.ndimage import label as number_regions

from rsgeoseg.datasets.whu_building import WHUBuilding
from rsgeoseg.errors import UsageError

SHARED = Path(os.environ.get("RSGEOSEG_SHARED_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))


def write(folder, count=2, side=64):
    for name in ("image", "label"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        label = np.zeros((side, side), np.uint8)
        label[5:15, 5 : 20 + number] = 255
        label[40:64, 50:64] = 255  # at the edge
        label[30, 30] = 255
        cv2.imwrite(str(folder / "label" / f"{number}.tif"), label)
        cv2.imwrite(str(folder / "image" / f"{number}.tif"), rng.integers(0, 255, (side, side, 3)).astype(np.uint8))


@pytest.mark.parametrize(("split", "place"), [("train", "train"), ("val", "images/val"), ("test", "test"), ("all", "")])
def test_layouts(tmp_path, split, place):
    write(tmp_path / place)
    data = WHUBuilding(tmp_path, split)
    assert (len(data), data.classes) == (2, ("building",))
    image = data.labelled(1)
    assert image.masks().sum((1, 2)).tolist() == [10 * 16, 1, 24 * 14]
    assert image.cut.tolist() == [False, False, True]
    assert data[1]["bbox_xyxy"].tolist()[0] == [5, 5, 21, 15]
    assert len(WHUBuilding(tmp_path, split, smallest=2).labelled(0).labels) == 2


def test_what_is_missing_or_strange_is_said(tmp_path):
    with pytest.raises(UsageError, match="has no folder train/image"):
        WHUBuilding(tmp_path)
    write(tmp_path)
    with pytest.raises(UsageError, match="that is split all"):
        WHUBuilding(tmp_path)
    (tmp_path / "label" / "1.tif").unlink()
    with pytest.raises(UsageError, match=r"1 of 2 expected files are missing: label/1\.tif"):
        WHUBuilding(tmp_path, "all")
    (tmp_path / "image" / "1.tif").unlink()
    data = WHUBuilding(tmp_path, "all")
    cv2.imwrite(str(tmp_path / "label" / "0.tif"), np.full((64, 64), 7, np.uint8))
    with pytest.raises(UsageError, match=r"4096 pixels have values of no class \(7\)"):
        data.labelled(0)
    cv2.imwrite(str(tmp_path / "label" / "0.tif"), np.zeros((60, 64), np.uint8))
    with pytest.raises(UsageError, match="64 x 64 but annotated as 64 x 60"):
        data[0]
    with pytest.raises(UsageError, match="cannot be downloaded"):
        WHUBuilding(tmp_path, "all", download=True)


def test_real_tiles():
    """Two real tiles: as many objects as scipy counts, every pixel in one."""
    root = SHARED / "whu_sample"
    if not root.is_dir():
        pytest.skip(f"NOT TESTED: real files of WHU building are not at {root}")
    data = WHUBuilding(root, "all")
    assert [len(data.labelled(index).labels) for index in range(2)] == [0, 5]  # the first one shows none
    for index in range(2):
        image = data.labelled(index)
        raster = cv2.imread(str(root / "label" / Path(image.name).name), cv2.IMREAD_UNCHANGED)
        _, count = number_regions(raster, np.ones((3, 3)))
        masks = image.masks()
        assert len(masks) == count
        np.testing.assert_array_equal(masks.sum(0), (raster > 0).astype(int))
        assert data[index]["image"].shape == (3, 512, 512)
