"""What is written is read back: exactly as COCO, nearly as YOLO."""

import json
import logging

import numpy as np
import pytest
from pycocotools import mask as rle

from rsgeoseg.datasets.coco import CocoInstances
from rsgeoseg.datasets.export import safe_names, write_coco, write_yolo
from rsgeoseg.datasets.geo_instances import GeoInstances
from rsgeoseg.datasets.instances import InstanceDataset
from rsgeoseg.datasets.labelled import LabelledImage
from rsgeoseg.datasets.yolo import YoloInstances
from rsgeoseg.errors import OutputError, UsageError
from rsgeoseg.testing.scenes import generate_scene


class Pixels:
    """Noise, the same every time."""

    def __init__(self, seed):
        self.seed = seed

    def __call__(self):
        return np.random.default_rng(self.seed).integers(0, 255, (60, 80, 3)).astype(np.uint8)


class Few(InstanceDataset):
    def __init__(self, names, shapes, classes=("a", "b")):
        super().__init__(classes)
        self.names, self.shapes = names, shapes

    def __len__(self):
        return len(self.names)

    def labelled(self, index):
        labels = np.arange(len(self.shapes)) % len(self.classes)
        return LabelledImage(
            name=self.names[index], image_id=index + 1, width=80, height=60, labels=labels, shapes=tuple(self.shapes),
            reader=Pixels(index),
        )  # fmt: skip


RING = np.array([[3.5, 4.25], [30, 6], [25, 40.125]])


def with_hole():
    mask = np.zeros((60, 80), np.uint8, order="F")
    mask[10:40, 40:75] = 1
    mask[20:30, 50:60] = 0
    return rle.encode(mask)


@pytest.fixture
def splits(tmp_path):
    generate_scene(tmp_path / "t.tif", height=400, width=600, seed=3, density=60, truth=tmp_path / "t.gpkg")
    how = {"class_field": "class_name", "chip_size": 200}
    return {s: GeoInstances(tmp_path / "t.tif", tmp_path / "t.gpkg", split=s, **how) for s in ("train", "val")}


def test_coco_comes_back_the_same(splits, tmp_path):
    folder = write_coco(splits, tmp_path / "new" / "coco")
    for split, data in splits.items():
        again = CocoInstances(folder / "images", folder / "annotations" / f"instances_{split}.json")
        assert again.classes == data.classes
        assert len(again) == len(data)
        for i in range(len(data)):
            one, other = data.labelled(i), again.labelled(i)
            assert other.name == f"{one.name}.png"
            np.testing.assert_array_equal(one.read(), other.read())
            np.testing.assert_array_equal(one.masks(), other.masks())
            np.testing.assert_array_equal(one.labels, other.labels)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["coco"]


def test_yolo_comes_back_nearly_the_same(splits, tmp_path):
    folder = write_yolo(splits, tmp_path / "yolo")
    for split, data in splits.items():
        again = YoloInstances(folder, split)
        assert again.classes == data.classes
        assert len(again) == len(data)
        for i in range(len(data)):
            one, other = data.labelled(i), again.labelled(i)
            np.testing.assert_array_equal(one.read(), other.read())
            np.testing.assert_array_equal(one.labels, other.labels)
            for a, b in zip(one.masks().astype(bool), other.masks().astype(bool), strict=True):
                assert (a & b).sum() / (a | b).sum() >= 0.99


def test_holes_stay_in_coco_and_are_told_in_yolo(tmp_path, caplog):
    pair = (np.array([[1.0, 50], [9, 50], [9, 58], [1, 58]]), np.array([[20.0, 50], [24, 50], [24, 54], [20, 54]]))
    data = Few(["x.png"], [(RING,), with_hole(), pair])
    coco = write_coco({"train": data}, tmp_path / "coco")
    again = CocoInstances(coco / "images", coco / "annotations" / "instances_train.json")
    np.testing.assert_array_equal(again.labelled(0).masks(), data.labelled(0).masks())
    logging.getLogger("rsgeoseg").propagate = True
    yolo = write_yolo({"train": data}, tmp_path / "yolo")
    assert "holes of 1 objects" in caplog.text
    assert "of 1 objects in several" in caplog.text
    drawn = YoloInstances(yolo).labelled(0).masks().sum((1, 2))
    true = data.labelled(0).masks().sum((1, 2))
    assert drawn.tolist() == [true[0], 30 * 35, 64]


def test_an_existing_folder_is_left_alone(tmp_path):
    data = Few(["x.png"], [(RING,)])
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("mine")
    for write in (write_coco, write_yolo):
        for name in ("there", "file"):
            with pytest.raises(OutputError, match="exists"):
                write({"train": data}, tmp_path / name)
    assert not list((tmp_path / "there").iterdir())
    assert (tmp_path / "file").read_text() == "mine"


def test_nothing_is_left_of_a_folder_that_fails(tmp_path):
    class Broken(Few):
        def labelled(self, index):
            image = super().labelled(index)
            return LabelledImage(
                name=image.name, image_id=image.image_id, width=81, height=60, labels=image.labels, shapes=image.shapes,
                reader=image.reader,
            )  # fmt: skip

    with pytest.raises(UsageError, match="annotated as 81"):
        write_coco({"train": Broken(["x.png"], [(RING,)])}, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_file_names_hold_on_every_system(tmp_path):
    names = ["a/b.jpg", "a-b.png", "A:b?.tif", "con", "x" * 300, "tail. ", "näher.png", "v1.2", "a\\b"]
    safe = safe_names(names)
    assert len({name.lower() for name in safe}) == len(names)
    assert safe[0] == "a-b"
    assert safe[1] == "a-b_2"
    assert safe[2] == "A_b_"
    assert safe[3] == "_con"
    assert safe[6:8] == ["näher", "v1.2"]
    assert all(len(name) <= 122 and not set(name) & set('<>:"/\\|?*') for name in safe)
    folder = write_coco({"train": Few(names, [(RING,)])}, tmp_path / "out")
    assert len(list((folder / "images").iterdir())) == len(names)
    document = json.loads((folder / "annotations" / "instances_train.json").read_text("utf-8"))
    assert {i["file_name"] for i in document["images"]} == {f"{name}.png" for name in safe}


def test_odd_class_names_survive_yaml(tmp_path):
    classes = ('say "hi": yes', "on", "- 1", "für")
    folder = write_yolo({"train": Few(["x"], [(RING,)], classes)}, tmp_path / "yolo")
    assert YoloInstances(folder).classes == classes


def test_splits_of_different_classes_are_refused(tmp_path):
    with pytest.raises(UsageError, match="different"):
        write_yolo({"train": Few(["x"], []), "val": Few(["x"], [], ("c",))}, tmp_path / "yolo")
    with pytest.raises(UsageError, match="split's name"):
        write_coco({"../up": Few(["x"], [])}, tmp_path / "coco")
