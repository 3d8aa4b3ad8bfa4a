import cv2
import numpy as np
import pytest

from rsgeoseg.datasets.yolo import YoloInstances
from rsgeoseg.errors import UsageError


def make_folder(
    root, *, yaml, images="images/train", labels="labels/train", line="1 0.25 0.25 0.75 0.25 0.75 0.5 0.25 0.5\n"
):
    (root / images).mkdir(parents=True)
    (root / labels).mkdir(parents=True)
    for name in ("b", "a"):
        cv2.imwrite(str(root / images / f"{name}.png"), np.full((40, 80, 3), 7, np.uint8))
    (root / labels / "a.txt").write_text(line)
    (root / "data.yaml").write_text(yaml)
    return root


YAML = "train: images/train\nval: images/val\nnames:\n  0: tree\n  1: roof\n"


def test_polygons_are_shares_of_width_and_height(tmp_path):
    data = YoloInstances(make_folder(tmp_path, yaml=YAML))
    assert data.classes == ("tree", "roof")
    assert [image.name for image in data.images] == ["images/train/a.png", "images/train/b.png"]
    sample = data[0]
    assert sample["bbox_xyxy"].tolist() == [[20, 10, 60, 20]]
    assert sample["label"].tolist() == [1]
    assert data[1]["mask"].shape == (0, 40, 80)  # no label file: an image of nothing


@pytest.mark.parametrize(
    "yaml",
    [
        "train: train/images\nnames: [tree, roof]\n",
        "train: ../train/images\nnames: [tree, roof]\nnc: 2\n",
        "path: .\ntrain: [train/images]\nnames: [tree, roof]\n",
        "path: somewhere/else\ntrain: train/images\nnames: [tree, roof]\n",
    ],
)
def test_the_other_usual_layout(tmp_path, yaml):
    data = YoloInstances(make_folder(tmp_path, yaml=yaml, images="train/images", labels="train/labels"))
    assert [len(image.labels) for image in data.images] == [1, 0]


def test_a_list_of_images(tmp_path):
    root = make_folder(tmp_path, yaml="train: train.txt\nnames: [tree, roof]\n")
    (root / "train.txt").write_text("./images/train/a.png\n\n")
    assert [image.name for image in YoloInstances(root / "data.yaml").images] == ["images/train/a.png"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 0.5 0.5 0.1 0.1\n", "box"),
        ("0 0.5 0.5 0.1 0.1 0.2\n", "6 numbers"),
        ("7 0 0 1 0 1 1\n", "class 7"),
        ("0 0 0 90 0 90 20\n", "between 0 and 1"),
        ("0 zero 0 1 0 1 1\n", "numbers"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, words):
    with pytest.raises(UsageError, match=words) as found:
        YoloInstances(make_folder(tmp_path, yaml=YAML, line="0 0 0 1 0 1 1\n" + line))
    assert "a.txt, line 2" in str(found.value)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        YoloInstances(tmp_path)
    root = make_folder(tmp_path / "x", yaml=YAML)
    with pytest.raises(UsageError, match="no split test; it has train, val"):
        YoloInstances(root, "test")
    with pytest.raises(UsageError, match="neither a folder"):
        YoloInstances(root, "val")
    for text, words in (("names: 3", "does not describe"), ("a: [", "not YAML"), ("- 1", "does not describe")):
        (root / "data.yaml").write_text(text)
        with pytest.raises(UsageError, match=words):
            YoloInstances(root)
