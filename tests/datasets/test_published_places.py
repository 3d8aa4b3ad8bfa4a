"""Published COCO sets as they are unpacked, their checksums, and torchgeo's numbering."""

import json

import pytest
from coco_folders import document, write_coco, write_images
from torchgeo.datasets import VHR10

from rsgeoseg.datasets.hrsid import HRSID
from rsgeoseg.datasets.nwpu import NWPUVHR10
from rsgeoseg.errors import UsageError

NAMES = ["001.jpg", "002.jpg", "003.jpg"]
FOLDER = "NWPU VHR-10 dataset"


def test_hrsid_is_found_in_the_folder_of_its_archive(tmp_path):
    write_images(tmp_path / "HRSID_JPG" / "JPEGImages", NAMES)
    write_coco(tmp_path / "HRSID_JPG" / "annotations" / "test2017.json", NAMES, ["ship"])
    assert len(HRSID(tmp_path, "test")) == len(HRSID(tmp_path / "HRSID_JPG", "test")) == 3


def positive(root):
    """Image ids from 0, file names from 001.jpg: the numbering of the published file."""
    content = document(NAMES, NWPUVHR10.classes)
    for image in content["images"]:
        image["id"] -= 1
    for annotation in content["annotations"]:
        annotation["image_id"] -= 1
    write_images(root / FOLDER / "positive image set", NAMES)
    (root / FOLDER / "annotations.json").write_text(json.dumps(content))
    (root / VHR10.image_meta["filename"]).touch()  # torchgeo asks for the archive


def test_objects_are_those_that_torchgeo_gives(tmp_path):
    positive(tmp_path)
    ours, theirs = NWPUVHR10(tmp_path, "positive"), VHR10(str(tmp_path), "positive")
    assert len(ours) == len(theirs) == 3
    for index in range(2):  # torchgeo cannot tell the masks of an image of nothing
        mine, other = ours[index], theirs[index]
        assert mine["image"].equal(other["image"])
        assert mine["mask"].equal(other["mask"].to(mine["mask"].dtype))
        assert mine["bbox_xyxy"].equal(other["bbox_xyxy"])
        assert mine["label"].equal(other["label"] - 1)  # torchgeo's class 0 is the background


def test_a_checksum_can_be_asked_for_where_one_is_known(tmp_path):
    positive(tmp_path)
    with pytest.raises(UsageError, match=r"annotations\.json: is not the file that torchgeo downloads"):
        NWPUVHR10(tmp_path, "positive", checksum=True)
    with pytest.raises(UsageError, match="no checksums"):
        NWPUVHR10(tmp_path, "train", checksum=True)
