"""RRSIS-D: samples of a small copy, its published defects, and a list of expressions that is read as data only."""

import collections
import logging
import os
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra import numpy as hnp
from refcoco_files import block, document, packed, picture, reference, references, write
from torch.utils.data import DataLoader

from rsgeoseg.datasets.labelled import bounds, encode_masks, tight_boxes
from rsgeoseg.datasets.rrsis_d import RrsisD
from rsgeoseg.errors import UsageError


def test_samples_are_sentences_in_the_order_of_the_list(tmp_path):
    dataset = RrsisD(write(tmp_path), "train")
    assert dataset.classes == ("ship", "dam")
    assert [dataset.expression(i).text for i in range(len(dataset))] == [
        "A dam at the Top", "the upper half", "the ship",
    ]  # fmt: skip
    first = dataset.expression(0)
    assert (first.name, first.image_id, first.width, first.height) == ("images/rrsisd/JPEGImages/00002.jpg", 2, 12, 10)
    sample = dataset[2]
    assert sorted(sample) == ["bbox_xyxy", "image", "label", "mask", "text"]
    assert sample["image"].shape == (3, 10, 12)
    assert sample["image"].dtype == torch.float32
    assert sample["image"].mean() == pytest.approx(40, abs=2)
    assert sample["mask"].dtype == torch.uint8
    assert (sample["mask"].numpy() == block(2, 3, 6, 8)).all()
    assert sample["bbox_xyxy"].tolist() == [2, 3, 6, 8]
    assert (sample["label"].item(), sample["label"].dtype) == (0, torch.int64)


def test_the_splits_are_apart_and_transforms_are_applied(tmp_path):
    dataset = RrsisD(write(tmp_path), "test", transforms=lambda sample: {**sample, "seen": True})
    assert [(one.image_id, one.text) for one in dataset.expressions] == [(3, "a small dam")]
    assert dataset[0]["seen"]
    with pytest.raises(UsageError, match="has no expression of the split val; it has test, train"):
        RrsisD(tmp_path, "val")
    with pytest.raises(UsageError, match="has no split 'testA'; choose from train, val, test"):
        RrsisD(tmp_path, "testA")


def test_worker_processes_can_read_it(tmp_path):
    dataset = RrsisD(write(tmp_path), "train")
    again = pickle.loads(pickle.dumps(dataset))
    assert again[1]["text"] == "the upper half"
    batch = next(iter(DataLoader(dataset, batch_size=3)))
    assert batch["mask"].shape == (3, 10, 12)
    assert batch["text"][0] == "A dam at the Top"


@pytest.mark.parametrize("folder", ["rrsis_d", "rsdata"])
def test_other_names_of_its_folders(tmp_path, folder):
    assert RrsisD(write(tmp_path, folder), "train").expression(0).name == f"images/{folder}/JPEGImages/00002.jpg"


def test_missing_files_are_named_with_the_layout(tmp_path):
    write(tmp_path)
    (tmp_path / "images/rrsisd/JPEGImages/00003.jpg").unlink()
    with pytest.raises(UsageError, match=r"(?s)1 of 1 expected.*JPEGImages/00003.jpg.*refs\(unc\).p"):
        RrsisD(tmp_path, "test")
    (tmp_path / "rrsisd/instances.json").unlink()
    with pytest.raises(UsageError, match=r"rrsisd/instances\.json"):
        RrsisD(tmp_path, "test")


# images that do not fit their masks


def misfit(root):
    write(root)
    picture(root / "images/rrsisd/JPEGImages/00002.jpg", 80, height=20, width=12)
    return root


def test_images_of_another_size_than_their_mask_are_refused_by_name(tmp_path):
    with pytest.raises(
        UsageError, match=r"1 images have another size.*00002.jpg; the first is 12 x 20 and its mask 12 x 10"
    ):
        RrsisD(misfit(tmp_path), "train")
    assert RrsisD(tmp_path, "test").misfits == ()


def test_images_that_do_not_fit_can_be_left_out(tmp_path):
    dataset = RrsisD(misfit(tmp_path), "train", misfits="leave_out")
    assert dataset.misfits == ("images/rrsisd/JPEGImages/00002.jpg",)
    assert [one.text for one in dataset.expressions] == ["the ship"]


def test_masks_can_be_stretched_to_their_image(tmp_path):
    dataset = RrsisD(misfit(tmp_path), "train", misfits="stretch")
    sample = dataset[1]
    assert sample["image"].shape == (3, 20, 12)
    assert (sample["mask"].numpy() == block(0, 0, 12, 10, height=20)).all()
    assert sample["bbox_xyxy"].tolist() == [0, 0, 12, 10]
    assert (dataset[2]["mask"].numpy() == block(2, 3, 6, 8)).all()


def test_an_image_changed_after_the_check_is_refused_when_read(tmp_path):
    dataset = RrsisD(write(tmp_path), "test")
    picture(tmp_path / "images/rrsisd/JPEGImages/00003.jpg", 80, height=11)
    with pytest.raises(UsageError, match="12 x 11 but annotated as 12 x 10"):
        dataset[0]


# objects and expressions that do not belong together


def test_objects_that_nothing_speaks_of_are_counted_and_logged(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "rsgeoseg"):
        dataset = RrsisD(write(tmp_path, refs=references()[:2]), "train")
    assert dataset.without_expression == 1
    assert "1 annotated objects have no expression" in caplog.text


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        (reference(99, 1, "train", "the pier"), "annotation 99 on image 1, and the file has no such thing: 'the pier'"),
        (reference(11, 2, "train", "the pier"), "annotation 11 on image 2"),
        (reference(11, 1, "train", "the pier", category=7), "category 7, which the file lacks"),
        (reference(11, 1, "train"), "entry 0 has no words"),
        (reference(11, 1, "train", "the pier", "  "), "entry 0 has no words"),
        ({"ref_id": 1}, "entry 0 is no expression of RefCOCO's format"),
        ("text", "entry 0 is no expression"),
    ],
)
def test_expressions_of_nothing_are_refused(tmp_path, entry, match):
    with pytest.raises(UsageError, match=match):
        RrsisD(write(tmp_path, refs=[entry]), "train")


def segmentation(tmp_path, value):
    instances = document()
    instances["annotations"][0]["segmentation"] = value
    return RrsisD(write(tmp_path, instances=instances), "train")


def runs(mask):
    """Uncompressed encoding: lengths of zeros and ones in turn, by columns."""
    changes = np.flatnonzero(np.diff(mask.T.ravel(), prepend=0))
    return np.diff(changes, prepend=0, append=mask.size).tolist()


BOTH = block(2, 3, 6, 8) | block(4, 5, 9, 9)


@pytest.mark.parametrize(
    "value",
    [
        packed(BOTH),
        [packed(BOTH)],
        [packed(block(2, 3, 6, 8)), packed(block(4, 5, 9, 9))],
        {"size": [10, 12], "counts": runs(BOTH)},
        [[2, 3, 6, 3, 6, 8, 2, 8], [4, 5, 9, 5, 9, 9, 4, 9]],
    ],
    ids=["encoding", "encoding in a list", "two encodings", "uncompressed", "polygons"],
)  # fmt: skip
def test_every_spelling_of_a_mask_and_parts_united(tmp_path, value):
    sample = segmentation(tmp_path, value)[2]
    assert (sample["mask"].numpy() == BOTH).all()
    assert sample["bbox_xyxy"].tolist() == [2, 3, 9, 9]


@pytest.mark.parametrize(
    "value",
    [None, [], {}, [[1, 1, 2, 2]], [7], [packed(block(0, 0, 1, 1)), packed(block(0, 0, 1, 1, width=13))]],
)
def test_a_mask_that_is_none_is_refused(tmp_path, value):
    with pytest.raises(UsageError, match="annotation 11 has no usable mask"):
        segmentation(tmp_path, value)


def test_an_empty_mask_stays_in(tmp_path):
    sample = segmentation(tmp_path, [packed(block(0, 0, 0, 0))])[2]
    assert sample["mask"].sum() == 0
    assert sample["bbox_xyxy"].tolist() == [0, 0, 0, 0]


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=7), elements={"max_value": 1}))
def test_the_box_of_an_encoding_is_the_tight_box(mask):
    assert list(bounds(encode_masks(mask[None])[0])) == tight_boxes(mask[None])[0].tolist()


# the pickled list


class Evil:
    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", range(6))
def test_the_list_is_read_in_every_protocol(tmp_path, protocol):
    assert RrsisD(write(tmp_path, protocol=protocol), "test")[0]["text"] == "a small dam"


@pytest.mark.parametrize("hidden", [False, True])
def test_code_in_the_list_is_refused_and_not_run(tmp_path, hidden):
    evil = Evil()
    evil.path = str(tmp_path / "made by the pickle")
    refs = [{**references()[0], "tokens": evil}] if hidden else evil
    with pytest.raises(UsageError, match=r"(posix|nt)\.mkdir"):
        RrsisD(write(tmp_path, refs=pickle.dumps(refs)), "train")
    assert not (tmp_path / "made by the pickle").exists()


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(references())[:-20],
        b"",
        b"<html>",
        pickle.dumps({"refs": []}),
        pickle.dumps([np.int64(3)]),
        pickle.dumps([{**references()[0], "tokens": collections.deque()}]),
    ],
    ids=["cut off", "empty", "page", "dict", "numpy", "deque"],
)
def test_what_is_no_list_of_plain_values_is_refused(tmp_path, content):
    with pytest.raises(UsageError, match=r"refs\(unc\)\.p: .*nothing of it was run"):
        RrsisD(write(tmp_path, refs=content), "train")


# pictures


def test_plot_shows_the_mask_the_box_and_the_expression(tmp_path):
    dataset = RrsisD(write(tmp_path), "train")
    sample = dataset[2]
    figure = dataset.plot(sample)
    assert figure.get_suptitle() == "the ship"
    assert [axis.get_title() for axis in figure.axes] == ["Image", "Referred to"]
    plain, shown = (axis.images[0].get_array() for axis in figure.axes)
    changed = np.abs(np.asarray(plain, float) - np.asarray(shown, float)).max(-1) > 0.01
    assert (changed == block(2, 3, 6, 8)).all()
    edge = next(patch for patch in figure.axes[1].patches)
    assert (edge.get_xy(), edge.get_width(), edge.get_height()) == ((1.5, 2.5), 4, 5)
    sample["prediction_mask"] = torch.zeros_like(sample["mask"])
    figure = dataset.plot(sample, suptitle="three", show_titles=False)
    assert (len(figure.axes), figure.get_suptitle(), figure.axes[0].get_title()) == (3, "three", "")
