"""NWPU VHR-10, SSDD, HRSID and SandBar in the layouts that they are handed out in."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from coco_folders import write_coco, write_images

from rsgeoseg.datasets.hrsid import HRSID
from rsgeoseg.datasets.nwpu import NWPUVHR10
from rsgeoseg.datasets.sandbar import SandBar
from rsgeoseg.datasets.ssdd import SSDD
from rsgeoseg.errors import UsageError

SHARED = Path(os.environ.get("RSGEOSEG_SHARED_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
NAMES = ["001.jpg", "002.jpg", "010.jpg"]
LAYOUTS = [
    (NWPUVHR10, "train", "imgs", "annotations/NWPU_instances_train.json"),
    (NWPUVHR10, "val", "imgs", "annotations/NWPU_instances_val.json"),
    (NWPUVHR10, "train", "images", "instances_train.json"),
    (NWPUVHR10, "positive", "NWPU VHR-10 dataset/positive image set", "NWPU VHR-10 dataset/annotations.json"),
    (SSDD, "train", "imgs", "annotations/SSDD_instances_train.json"),
    (SSDD, "val", "imgs", "annotations/SSDD_instances_val.json"),
    (HRSID, "train", "JPEGImages", "annotations/train2017.json"),
    (HRSID, "test", "JPEGImages", "annotations/test2017.json"),
    (HRSID, "all", "images", "annotations/train_test2017.json"),
    (SandBar, "train", "train", "annotations/instances_train.json"),
    (SandBar, "val", "images/val", "annotations/instances_val.json"),
]


@pytest.mark.parametrize(("kind", "split", "images", "annotations"), LAYOUTS)
def test_every_layout_gives_the_same_samples(tmp_path, kind, split, images, annotations):
    write_images(tmp_path / images, NAMES)
    write_coco(tmp_path / annotations, NAMES, kind.classes)
    data = kind(tmp_path, split)
    assert [data.labelled(i).name for i in range(len(data))] == NAMES
    assert data.classes == kind.classes
    sample = data[1]
    assert sample["image"].shape == (3, 60, 80)
    assert sample["mask"].sum((1, 2)).tolist() == [200, 200]
    assert sample["bbox_xyxy"].tolist() == [[5, 11, 25, 21], [35, 11, 55, 21]]
    assert sample["label"].tolist() == [1 % len(kind.classes), 2 % len(kind.classes)]
    assert len(data[2]["label"]) == 0  # an image of nothing stays


@pytest.mark.parametrize("kind", [NWPUVHR10, SSDD, HRSID, SandBar])
def test_what_is_missing_is_said_with_the_layout(tmp_path, kind):
    with pytest.raises(UsageError, match="has no annotations of") as caught:
        kind(tmp_path)
    assert "ROOT/" in str(caught.value)
    (images, annotations) = next((i, a) for k, s, i, a in LAYOUTS if k is kind and s == "train")
    write_coco(tmp_path / annotations, NAMES, kind.classes)
    with pytest.raises(UsageError, match="has no images of"):
        kind(tmp_path)
    write_images(tmp_path / images, NAMES[:1])
    with pytest.raises(UsageError, match=r"2 of 3 expected files are missing: 002\.jpg, 010\.jpg"):
        kind(tmp_path)
    with pytest.raises(UsageError, match="has no split"):
        kind(tmp_path, "nothing")
    with pytest.raises(UsageError, match="cannot be downloaded"):
        kind(tmp_path, download=True)


def test_spellings_of_classes_are_one(tmp_path):
    """torchgeo's file says ``ships`` and ``storage tank``."""
    names = [name.replace("_", " ") for name in NWPUVHR10.classes]
    names[1] = "ships"
    folder = tmp_path / "NWPU VHR-10 dataset"
    write_images(folder / "positive image set", NAMES)
    write_coco(folder / "annotations.json", NAMES, names)
    assert NWPUVHR10(tmp_path, "positive").classes[:3] == ("airplane", "ship", "storage_tank")


def test_other_classes_are_refused(tmp_path):
    write_images(tmp_path / "imgs", NAMES)
    write_coco(tmp_path / "annotations" / "SSDD_instances_train.json", NAMES, ["boat"])
    with pytest.raises(UsageError, match="has the classes boat; SSDD has ship"):
        SSDD(tmp_path)


def test_a_picture_shows_the_objects(tmp_path):
    write_images(tmp_path / "imgs", NAMES)
    write_coco(tmp_path / "annotations" / "SSDD_instances_train.json", NAMES, ["ship"])
    data = SSDD(tmp_path)
    figure = data.plot(data[0], suptitle="SSDD")
    plain, tinted = (axis.images[0].get_array() for axis in figure.axes)
    changed = (np.asarray(plain) != np.asarray(tinted)).any(-1)
    np.testing.assert_array_equal(changed, data[0]["mask"].any(0).numpy())
    assert [text.get_text() for text in figure.axes[1].get_legend().get_texts()] == ["ship"]


def test_real_annotations_of_ssdd_name_the_missing_images():
    root = SHARED / "ssdd_sample"
    if not root.is_dir():
        pytest.skip(f"NOT TESTED: real files of SSDD are not at {root}")
    with pytest.raises(UsageError, match=r"(927|928) of 928 expected files are missing"):
        SSDD(root)
    document = json.loads((root / "annotations" / "SSDD_instances_train.json").read_text())
    assert {len(entry["segmentation"]) for entry in document["annotations"]} >= {1}


def test_real_nwpu():
    root = SHARED / "nwpu_vhr10"
    if not root.is_dir():
        pytest.skip(f"NOT TESTED: real files of NWPU VHR-10 are not at {root}")
    data = NWPUVHR10(root)
    assert len(data) == 520
    assert sum(len(data.labelled(i).labels) for i in range(len(data))) == 3178
    sample = data[0]
    assert sample["mask"].shape[1:] == sample["image"].shape[1:]
    boxes = data.document["annotations"]
    first = next(a for a in boxes if a["image_id"] == data.labelled(0).image_id)
    x, y, w, h = first["bbox"]
    np.testing.assert_allclose(sample["bbox_xyxy"][0].numpy(), [x, y, x + w, y + h], atol=2)
