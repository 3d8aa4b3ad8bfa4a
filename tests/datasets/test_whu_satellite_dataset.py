"""WHU's satellite datasets: both real layouts, 8-bit and 1-bit labels."""

import cv2
import numpy as np
import pytest
from PIL import Image

from rsgeoseg.datasets.whu_satellite import WHUSatellite
from rsgeoseg.errors import UsageError

CROPPED = "Satellite dataset Ⅱ (East Asia)/1. The cropped image data and raster labels"


def pair(folder, name, label):
    image = np.random.default_rng(0).integers(0, 256, (*label.shape, 3), dtype=np.uint8)
    for kind in ("image", "label"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    (folder / "image" / name).write_bytes(cv2.imencode(".tif", image)[1].tobytes())
    (folder / "label" / name).write_bytes(cv2.imencode(".tif", label)[1].tobytes())
    return image[..., ::-1]


def block():
    label = np.zeros((24, 20), np.uint8)
    label[2:6, 3:9] = 255
    label[10:24, 15:18] = 255
    return label


@pytest.mark.parametrize("root", [".", "Satellite dataset Ⅱ (East Asia)", CROPPED])
def test_east_asia_is_found_where_it_is_unpacked(tmp_path, root):
    image = pair(tmp_path / CROPPED / "train", "1_10.tif", block())
    pair(tmp_path / CROPPED / "train", "1_2.tif", np.zeros((24, 20), np.uint8))
    pair(tmp_path / CROPPED / "test", "0.tif", block())
    dataset = WHUSatellite(tmp_path / root)
    assert [dataset.labelled(i).name.split("/")[-1] for i in range(len(dataset))] == ["1_10.tif", "1_2.tif"]
    labelled = dataset.labelled(0)
    np.testing.assert_array_equal(labelled.read(), image)
    assert labelled.masks().sum((1, 2)).tolist() == [24, 42]
    assert labelled.cut.tolist() == [False, True]
    assert len(WHUSatellite(tmp_path / root, "test")) == 1


def test_global_cities_have_no_split(tmp_path):
    pair(tmp_path / "Satellite dataset I (global cities)", "1.tif", block())
    dataset = WHUSatellite(tmp_path, "all", part="global-cities")
    assert len(dataset.labelled(0).shapes) == 2
    with pytest.raises(UsageError, match="choose from all"):
        WHUSatellite(tmp_path, part="global-cities")
    with pytest.raises(UsageError, match="train, test, train_no, test_no"):
        WHUSatellite(tmp_path, "all")
    with pytest.raises(UsageError, match="no part"):
        WHUSatellite(tmp_path, part="aerial")


def test_bits_are_read_with_their_stated_polarity(tmp_path):
    pair(tmp_path / "train", "0.tif", block())
    path = tmp_path / "train/label/0.tif"
    # white is zero, as in WHU's 1-bit labels: PhotometricInterpretation 0 (tag 262)
    Image.fromarray(block() == 0).save(path, compression="group4", tiffinfo={262: 0})
    assert Image.open(path).tag_v2[262] == 0
    shown = np.asarray(Image.open(path))
    mask = WHUSatellite(tmp_path).labelled(0).masks().any(0)
    np.testing.assert_array_equal(mask, shown)


def test_defects_are_refused(tmp_path):
    with pytest.raises(UsageError, match="has no folder train/image"):
        WHUSatellite(tmp_path)
    odd = block()
    odd[0, 0] = 128
    pair(tmp_path / "train", "0.tif", odd)
    with pytest.raises(UsageError, match=r"label/0.tif: 1 pixels .*\(128\)"):
        WHUSatellite(tmp_path).labelled(0)
    (tmp_path / "train/label/0.tif").unlink()
    with pytest.raises(UsageError, match=r"1 of 1 .*train/label/0.tif"):
        WHUSatellite(tmp_path)
    with pytest.raises(UsageError, match=r"gpcv\.whu\.edu\.cn"):
        WHUSatellite(tmp_path, download=True)
    with pytest.raises(UsageError, match="no checksums"):
        WHUSatellite(tmp_path, checksum=True)
    pair(tmp_path / "again/train", "0.tif", block())
    with pytest.raises(UsageError, match="several folders"):
        WHUSatellite(tmp_path)
