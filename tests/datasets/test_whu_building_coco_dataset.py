"""WHU building as RSPrompter's COCO files beside the rasters they are made of."""

import json

import cv2
import numpy as np
import pytest
from pycocotools import mask as rle
from scipy.ndimage import label as number_regions

from rsgeoseg.datasets.whu_building import WHUBuilding, WHUBuildingCoco
from rsgeoseg.errors import UsageError

ARCHIVE = "3. The cropped image tiles and raster labels"


def raster():
    """Three buildings, two of which touch at a corner."""
    label = np.zeros((32, 40), np.uint8)
    label[2:6, 2:10] = 255
    label[10:14, 10:14] = 255
    label[14:20, 14:24] = 255
    return label


def write_rasters(folder, count=2):
    for kind in ("image", "label"):
        (folder / kind).mkdir(parents=True)
    for number in range(count):
        cv2.imwrite(str(folder / "image" / f"{number}.tif"), np.full((32, 40, 3), 90, np.uint8))
        cv2.imwrite(str(folder / "label" / f"{number}.tif"), raster() if number == 0 else np.zeros((32, 40), np.uint8))


def write_annotations(path):
    """As whu2coco.py: 4-connected regions, run lengths, ids from 0."""
    numbers, count = number_regions(raster(), np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]]))
    annotations = []
    for number in range(1, count + 1):
        encoded = rle.encode(np.asfortranarray(numbers == number, np.uint8))
        annotations.append(
            {
                "id": number - 1,
                "image_id": 0,
                "category_id": 1,
                "iscrowd": 0,
                "area": int(rle.area(encoded)),
                "bbox": rle.toBbox(encoded).tolist(),
                "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode()},
            }
        )
    images = [{"id": i, "file_name": f"{i}.tif", "segm_file": f"{i}.tif", "height": 32, "width": 40} for i in range(2)]
    document = {"images": images, "categories": [{"id": 1, "name": "building"}], "annotations": annotations}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("folder", ["imgs", "images", "."])
def test_corners_join_in_the_rasters_and_not_in_the_coco_files(tmp_path, folder):
    write_rasters(tmp_path / folder / "test")
    write_annotations(tmp_path / "annotations" / "WHU_building_test.json")
    coco, rasters = WHUBuildingCoco(tmp_path, "test"), WHUBuilding(tmp_path, "test")
    assert len(coco) == len(rasters) == 2
    assert coco.labelled(0).masks().sum((1, 2)).tolist() == [32, 16, 60]
    assert rasters.labelled(0).masks().sum((1, 2)).tolist() == [32, 76]
    np.testing.assert_array_equal(coco[0]["mask"].any(0), rasters[0]["mask"].any(0))
    assert len(coco[1]["label"]) == len(rasters[1]["label"]) == 0
    assert coco[0]["image"].unique().tolist() == [90]


def test_the_archive_is_found_where_it_is_unpacked(tmp_path):
    write_rasters(tmp_path / ARCHIVE / "val")
    assert WHUBuilding(tmp_path, "val").labelled(1).name == f"{ARCHIVE}/val/image/1.tif"
    assert WHUBuilding(tmp_path / ARCHIVE, "val").labelled(1).name == "val/image/1.tif"


def test_missing_coco_files_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"annotations/WHU_building_train\.json.*whu2coco"):
        WHUBuildingCoco(tmp_path)
    write_annotations(tmp_path / "annotations" / "WHU_building_train.json")
    with pytest.raises(UsageError, match="imgs/train/image"):
        WHUBuildingCoco(tmp_path)
