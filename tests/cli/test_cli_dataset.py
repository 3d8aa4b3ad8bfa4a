import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rsgeoseg.datasets.coco import CocoInstances
from rsgeoseg.datasets.yolo import YoloInstances
from rsgeoseg.testing.scenes import generate_scene


@pytest.fixture
def ground(tmp_path):
    generate_scene(tmp_path / "t.tif", height=400, width=600, seed=3, density=60, truth=tmp_path / "t.gpkg")
    return "t.tif", "--polygons", "t.gpkg", "--class-field", "class_name", "--chip-size", 200


def test_chips_then_info_then_another_format(cli, ground):
    made = cli("dataset", "chips", *ground, "-o", "coco")
    assert made.code == 0, made.err
    assert made.out.startswith("coco: train ")
    train = CocoInstances(Path("coco/images"), Path("coco/annotations/instances_train.json"))
    facts = json.loads(cli("dataset", "info", "coco", "--json").out)
    assert set(facts) == {"train", "val"}
    assert facts["train"]["images"] == len(train)
    assert facts["train"]["objects"] == sum(len(image.labels) for image in train.images)
    assert sum(facts["val"]["per_class"].values()) == facts["val"]["objects"] > 0
    assert cli("dataset", "export", "coco", "-o", "yolo", "--format", "yolo").code == 0
    assert len(YoloInstances("yolo", "train")) == len(train)
    again = json.loads(cli("dataset", "info", "yolo", "--json").out)
    assert again["val"]["per_class"] == facts["val"]["per_class"]


def test_info_of_scenes_writes_nothing_but_a_sheet(cli, ground, tmp_path):
    before = set(tmp_path.iterdir())
    seen = cli("dataset", "info", *ground, "--val-share", 0.3, "--sheet", "sheet.png")
    assert seen.code == 0, seen.err
    header = seen.out.splitlines()[0].split()
    assert header == ["class", "train", "val"]
    assert "0.5 - 0.5" in seen.out  # metres per pixel
    assert set(tmp_path.iterdir()) - before == {tmp_path / "sheet.png"}
    sheet = np.asarray(Image.open("sheet.png"))
    assert sheet.ndim == 3
    assert sheet.std() > 10
    cli("dataset", "info", *ground, "--sheet", "sheet.png").fails(5, "exists")


def test_no_split(cli, ground):
    assert cli("dataset", "chips", *ground, "-o", "all", "--val-share", 0, "-q").out == ""
    assert [p.name for p in Path("all/annotations").iterdir()] == ["instances_train.json"]


def test_it_refuses_in_words(cli, ground, tmp_path):
    cli("dataset", "chips", "t.tif", "-o", "x", "--polygons", "no.gpkg").fails(3, "no.gpkg", "no such file")
    cli("dataset", "chips", "t.tif", "-o", "x", "--polygons", "t.gpkg", "--class-field", "kind").fails(2, "class_name")
    cli("dataset", "chips", *ground, "-o", "x", "--bands", "red").fails(2, "1,2,3")
    cli("dataset", "chips", *ground, "-o", "x", "--val-share", 1.5).fails(2, "0.2")
    cli("dataset", "chips", *ground, "-o", tmp_path).fails(5, "exists")
    cli("dataset", "info", "t.tif").fails(2, "is no dataset")
    cli("dataset", "info", "t.tif", "t.tif").fails(2, "--polygons")
    assert not Path("x").exists()
