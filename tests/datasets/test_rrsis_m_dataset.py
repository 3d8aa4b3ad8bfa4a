"""RRSIS-M: RefCOCO's format in the layout that we assume, several objects of one image."""

import pytest
from refcoco_files import annotation, block, document, reference, references, write

from rsgeoseg.datasets.rrsis_m import RrsisM
from rsgeoseg.errors import UsageError


@pytest.mark.parametrize("folder", ["rrsism", "rrsis_m"])
def test_several_objects_of_one_image_are_samples_of_their_own(tmp_path, folder):
    instances = document()
    instances["annotations"].append(annotation(14, 3, block(0, 0, 3, 3)))
    refs = [*references(), reference(14, 3, "test", "the dam in the corner")]
    dataset = RrsisM(write(tmp_path, folder, instances=instances, refs=refs), "test")
    assert [(one.image_id, one.text) for one in dataset.expressions] == [
        (3, "a small dam"), (3, "the dam in the corner"),
    ]  # fmt: skip
    assert dataset[0]["bbox_xyxy"].tolist() == [7, 1, 9, 2]
    assert dataset[1]["bbox_xyxy"].tolist() == [0, 0, 3, 3]
    assert (dataset[1]["mask"].numpy() == block(0, 0, 3, 3)).all()


def test_it_has_no_validation_split_and_says_which_layout_it_assumes(tmp_path):
    with pytest.raises(UsageError, match="choose from train, test"):
        RrsisM(write(tmp_path, "rrsism"), "val")
    with pytest.raises(UsageError, match="the published layout is not known"):
        RrsisM(tmp_path / "nowhere", "test")
