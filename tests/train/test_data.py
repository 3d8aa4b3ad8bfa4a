"""COCO folders, the hold-out rule, crops: geometry exact, reproducible, resumable."""

import json

import cv2
import numpy as np
import pytest

from rsgeoseg.datasets.coco import CocoInstances
from rsgeoseg.errors import UsageError
from rsgeoseg.train.augment import AugmentConfig, draw_crop
from rsgeoseg.train.samples import CropStream


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path, 7)


def make_folder(root, count, side=96):
    images, annotations = [], []
    rng = np.random.default_rng(0)
    for i in range(count):
        name = f"{count - i:03d}.png"  # file order differs from id order
        pixels = rng.integers(0, 60, (side, side, 3)).astype(np.uint8)
        x, y = 20 + 2 * i, 30
        pixels[y : y + 24, x : x + 16] = 250
        cv2.imwrite(str(root / name), pixels)
        images.append({"id": i, "file_name": name, "width": side, "height": side})
        ring = [x, y, x + 16, y, x + 16, y + 24, x, y + 24]
        annotations.append(
            {
                "id": i,
                "image_id": i,
                "category_id": 4 + i % 2,
                "segmentation": [ring],
                "iscrowd": 0,
                "bbox": [x, y, 16, 24],
                "area": 16 * 24,
            }
        )
    document = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 5, "name": "b"}, {"id": 4, "name": "a"}],
    }
    (root / "coco.json").write_text(json.dumps(document))
    return root


def test_images_come_by_file_name_and_every_fifth_is_held_out(folder):
    data = CocoInstances(folder, folder / "coco.json")
    names = [image.name for image in data.images]
    assert names == sorted(names)
    assert data.classes == ("a", "b")
    assert data.category_ids == (4, 5)
    kept, held = data.split()
    assert [held.labelled(i).name for i in range(len(held))] == [names[0], names[5]]
    assert [kept.labelled(i).name for i in range(len(kept))] == [n for k, n in enumerate(names) if k not in (0, 5)]


def test_missing_image_is_named(folder):
    (folder / "003.png").unlink()
    with pytest.raises(UsageError, match=r"003\.png"):
        CocoInstances(folder, folder / "coco.json")


def test_size_that_differs_from_the_annotation_is_refused(folder):
    cv2.imwrite(str(folder / "002.png"), np.zeros((90, 96, 3), np.uint8))
    data = CocoInstances(folder, folder / "coco.json")
    with pytest.raises(UsageError, match="annotated as 96 x 96"):
        data.images[1].read()


@pytest.mark.parametrize("text", ["{}", "no json", '{"images": []}'])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UsageError, match=r"x\.json"):
        CocoInstances(tmp_path, tmp_path / "x.json")


def test_a_mask_lies_exactly_on_its_object_in_any_geometry(folder):
    """The bright square is the object: after scale, turn, mirror and shift its mask covers it alone."""
    data = CocoInstances(folder, folder / "coco.json")
    config = AugmentConfig(crop=128, scale=(0.9, 1.6), mosaic=0, colour=0, blur=0, centred=1.0)
    seen = 0
    for seed in range(40):
        image = data.images[seed % 7]
        crop = draw_crop([image.read()], [image], config, np.random.default_rng(seed))
        bright = crop.image[..., 0] > 160
        if not len(crop.labels):
            continue
        seen += 1
        mask = crop.masks[0].astype(bool)
        assert (bright & mask).sum() / (bright | mask).sum() > 0.9
        x0, y0, x1, y1 = crop.boxes[0].astype(int)
        assert mask[y0:y1, x0:x1].sum() == mask.sum()
        assert all(line.any() for line in (mask[y0], mask[y1 - 1], mask[:, x0], mask[:, x1 - 1]))
    assert seen >= 35


def test_mosaic_keeps_objects_in_their_quarter(folder):
    data = CocoInstances(folder, folder / "coco.json")
    config = AugmentConfig(crop=128, scale=(1.0, 1.0), mosaic=1, colour=0, blur=0, centred=1.0)
    images = list(data.images[:4])
    crop = draw_crop([i.read() for i in images], images, config, np.random.default_rng(0))
    assert len(crop.labels) >= 3
    for mask in crop.masks.astype(bool):
        quarters = [mask[r : r + 64, c : c + 64].any() for r in (0, 64) for c in (0, 64)]
        assert sum(quarters) == 1


def test_stream_is_a_function_of_seed_and_number(folder):
    data = CocoInstances(folder, folder / "coco.json")
    config = AugmentConfig(crop=64)
    whole = CropStream(data, config, seed=3, start=0, length=20)
    resumed = CropStream(data, config, seed=3, start=8, length=4)
    other = CropStream(data, config, seed=4, start=8, length=4)
    for k in range(4):
        np.testing.assert_array_equal(whole[8 + k].image, resumed[k].image)
        np.testing.assert_array_equal(whole[8 + k].masks, resumed[k].masks)
    assert any((resumed[k].image != other[k].image).any() for k in range(4))
    with pytest.raises(IndexError):
        whole[20]
