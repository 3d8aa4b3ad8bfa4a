"""RefSegRS: lines of a split's file, masks that are white where the object is."""

import pickle

import cv2
import numpy as np
import pytest

from rsgeoseg.datasets.refsegrs import RefSegRS
from rsgeoseg.errors import UsageError


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, pixels)[1].tobytes())


def write(root, suffix=".tif", mask=None):
    if mask is None:
        mask = np.zeros((6, 8), np.uint8)
        mask[1:3, 2:7] = 255
    for stem, grey in (("7", 70), ("12", 120)):
        save(root / "images" / f"{stem}{suffix}", np.full((6, 8, 3), (0, 0, grey), np.uint8))
        save(root / "masks" / f"{stem}{suffix}", mask)
    (root / "output_phrase_train.txt").write_text("12 road marking\n7 car on the left\n\n12 vehicle\n")
    (root / "output_phrase_val.txt").write_text("7 car\n")
    (root / "output_phrase_test.txt").write_text("12 van in the parking area\n", newline="\r\n")
    return root


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_samples_are_lines_in_the_order_of_the_file(tmp_path, suffix):
    dataset = RefSegRS(write(tmp_path, suffix), "train")
    found = [dataset.expression(i) for i in range(len(dataset))]
    assert [(one.name, one.image_id, one.text) for one in found] == [
        (f"images/12{suffix}", 1, "road marking"),
        (f"images/7{suffix}", 2, "car on the left"),
        (f"images/12{suffix}", 1, "vehicle"),
    ]
    sample = dataset[1]
    assert sorted(sample) == ["image", "mask", "text"]
    assert sample["image"][:, 0, 0].tolist() == [70, 0, 0]  # red comes first
    assert np.argwhere(sample["mask"].numpy()).min(0).tolist() == [1, 2]
    assert sample["mask"].sum() == 10


def test_the_other_splits_and_line_ends_of_windows(tmp_path):
    write(tmp_path)
    assert RefSegRS(tmp_path, "val")[0]["text"] == "car"
    assert RefSegRS(tmp_path, "test")[0]["text"] == "van in the parking area"
    with pytest.raises(UsageError, match="has no split 'dev'"):
        RefSegRS(tmp_path, "dev")


def test_it_can_be_sent_to_worker_processes(tmp_path):
    assert pickle.loads(pickle.dumps(RefSegRS(write(tmp_path), "val")))[0]["mask"].sum() == 10


def test_greys_of_resampled_masks_are_object_above_fifty(tmp_path):
    mask = np.zeros((6, 8), np.uint8)
    mask[0, :4] = 50, 51, 200, 255
    assert RefSegRS(write(tmp_path, mask=mask), "val")[0]["mask"][0].tolist() == [0, 1, 1, 1, 0, 0, 0, 0]


def test_masks_of_zero_and_one_are_refused_and_empty_ones_stay(tmp_path):
    dataset = RefSegRS(write(tmp_path, mask=np.eye(6, 8, dtype=np.uint8)), "val")
    with pytest.raises(UsageError, match=r"7\.tif: the mask's highest value is 1, but white is object"):
        dataset.expression(0)
    write(tmp_path, mask=np.zeros((6, 8), np.uint8))
    assert dataset[0]["mask"].sum() == 0


def test_a_mask_of_another_size_is_refused_by_name(tmp_path):
    dataset = RefSegRS(write(tmp_path, mask=np.zeros((6, 9), np.uint8)), "val")
    with pytest.raises(UsageError, match=r"masks.7\.tif: the mask is 9 x 6 and its image 8 x 6"):
        dataset[0]


@pytest.mark.parametrize("line", ["12", "12   ", "../secret car", "folder/12 car"])
def test_lines_that_are_not_an_id_and_words_are_refused(tmp_path, line):
    write(tmp_path)
    (tmp_path / "output_phrase_val.txt").write_text(f"7 car\n{line}\n")
    with pytest.raises(UsageError, match=r"output_phrase_val\.txt: line 2 is not an ID and an expression"):
        RefSegRS(tmp_path, "val")


def test_missing_files_are_named_with_the_layout(tmp_path):
    write(tmp_path)
    (tmp_path / "masks/12.tif").unlink()
    with pytest.raises(UsageError, match=r"(?s)1 of 4 expected files are missing: masks/12.tif.*white = object"):
        RefSegRS(tmp_path, "train")
    with pytest.raises(UsageError, match=r"output_phrase_val\.txt"):
        RefSegRS(tmp_path / "nowhere", "val")


def test_plot_takes_a_sample_without_box_and_class(tmp_path):
    dataset = RefSegRS(write(tmp_path), "train")
    figure = dataset.plot(dataset[0])
    assert figure.get_suptitle() == "road marking"
    assert not figure.axes[1].patches
