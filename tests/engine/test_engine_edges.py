import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rsgeoseg.contract import Chip, Instances
from rsgeoseg.engine.edges import DataEdge, clip_to_valid, select
from rsgeoseg.geo.stitch import StitchedObject
from rsgeoseg.geo.windows import Box, Window


def one(box, mask=None, label=0, score=0.9):
    x0, y0, x1, y1 = box
    return Instances(
        boxes=np.array([box], np.int32),
        masks=[np.ones((y1 - y0, x1 - x0), bool) if mask is None else mask],
        scores=np.array([score], np.float32),
        labels=np.array([label], np.int64),
    )


def test_select_keeps_score_and_class():
    both = Instances(
        boxes=np.array([[0, 0, 1, 1], [2, 2, 3, 3], [4, 4, 5, 5]], np.int32),
        masks=[np.ones((1, 1), bool)] * 3,
        scores=np.array([0.5, 0.49, 0.9], np.float32),
        labels=np.array([0, 0, 1]),
    )
    assert select(both, score_threshold=0.5, labels=None).boxes[:, 0].tolist() == [0, 4]
    assert select(both, score_threshold=0.0, labels=frozenset({1})).boxes[:, 0].tolist() == [4]
    assert select(both, score_threshold=0.0, labels=None) is both


def test_clip_makes_boxes_tight_again():
    valid = np.ones((10, 10), bool)
    valid[:, 5:] = False
    clipped = clip_to_valid(one((3, 2, 8, 6)), valid)
    assert clipped.boxes.tolist() == [[3, 2, 5, 6]]
    assert clipped.masks[0].shape == (4, 2)
    assert len(clip_to_valid(one((6, 2, 8, 6)), valid)) == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_clip_is_the_and_of_both_masks(seed):
    rng = np.random.default_rng(seed)
    valid = rng.random((12, 9)) < 0.7
    mask = rng.random((5, 6)) < 0.6
    whole = np.zeros_like(valid)
    whole[4:9, 2:8] = mask
    clipped = clip_to_valid(one((2, 4, 8, 9), mask), valid)
    painted = np.zeros_like(valid)
    for (x0, y0, x1, y1), part in zip(clipped.boxes.tolist(), clipped.masks, strict=True):
        painted[y0:y1, x0:x1] |= part
        assert part.any(axis=0)[[0, -1]].all()
        assert part.any(axis=1)[[0, -1]].all()
    assert (painted == (whole & valid)).all()


def whole_object(box, label=0):
    mask = np.ones((box.height, box.width), bool)
    return StitchedObject(box=box, mask=mask, label=label, score=1.0, n_chips=1, seam=False, truncated=False)


def test_objects_beside_missing_data_are_flagged_by_the_core_that_owns_the_place():
    valid = np.ones((400, 400), bool)
    valid[:, 300:] = False
    chip = Chip(image=np.zeros((3, 400, 400), np.uint8), valid=valid)
    window = Window(index=0, row=0, col=0, read=Box(1000, 2000, 1400, 2400), core=Box(1000, 2000, 1400, 2200))
    edge = DataEdge()
    edge.note(window, chip, one((290, 10, 300, 20)))  # beside the hole, inside the core
    edge.note(window, chip, one((280, 250, 300, 260)))  # beside the hole, outside the core: another chip's business
    edge.note(window, chip, one((100, 10, 120, 20)))  # far from it
    objects = [
        whole_object(Box(1290, 2010, 1300, 2020)),
        whole_object(Box(1280, 2250, 1300, 2260)),
        whole_object(Box(1100, 2010, 1120, 2020)),
        whole_object(Box(1290, 2010, 1300, 2020), label=1),
        whole_object(Box(1299, 2019, 1700, 2600)),
    ]
    assert [item.truncated for item in edge.flag(objects)] == [True, False, False, False, True]


def test_a_scene_without_holes_costs_nothing():
    objects = [whole_object(Box(0, 0, 5, 5))]
    assert DataEdge().flag(objects) is objects
