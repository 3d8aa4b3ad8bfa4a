"""Figures of referring segmentation: cases counted by hand and the rules at the edges."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgeoseg.errors import UsageError
from rsgeoseg.evaluate.referring import ReferringScore, referring_metrics


def row(start, stop, length=20):
    """A mask of one row whose pixels start to stop - 1 are the object."""
    mask = np.zeros((1, length), bool)
    mask[0, start:stop] = True
    return mask


def test_three_expressions_by_hand():
    # 4 of 4, then 6 shared of 10 together, then 2 shared of 18 together
    pairs = [(row(0, 4), row(0, 4)), (row(0, 8), row(2, 10)), (row(0, 10), row(8, 18))]
    result = referring_metrics(pairs)
    assert result.n == 3
    assert result.oiou == pytest.approx((4 + 6 + 2) / (4 + 10 + 18))
    assert result.miou == pytest.approx((1 + 0.6 + 2 / 18) / 3)
    precision = (result.pr50, result.pr60, result.pr70, result.pr80, result.pr90)
    assert precision == pytest.approx((2 / 3, 2 / 3, 1 / 3, 1 / 3, 1 / 3))


@pytest.mark.parametrize(("tenths", "expected"), [(5, 1), (6, 2), (7, 3), (8, 4), (9, 5), (10, 5), (4, 0)])
def test_an_iou_equal_to_the_threshold_counts(tenths, expected):
    result = referring_metrics([(row(0, tenths), row(0, 10))])
    assert result.pr50 + result.pr60 + result.pr70 + result.pr80 + result.pr90 == expected


def test_both_masks_empty_is_iou_zero_and_one_wrong_pixel_too():
    result = referring_metrics([(row(0, 0), row(0, 0)), (row(0, 5), row(0, 5)), (row(3, 4), row(0, 0))])
    assert result.miou == pytest.approx(1 / 3)
    assert result.oiou == pytest.approx(5 / 6)
    assert result.pr50 == pytest.approx(1 / 3)


def test_only_empty_masks_have_no_overall_iou_but_a_mean():
    result = referring_metrics([(row(0, 0), row(0, 0))])
    assert math.isnan(result.oiou)
    assert result.miou == 0


def test_no_expressions_are_nan_and_none_in_json():
    result = referring_metrics([])
    assert result.n == 0
    assert math.isnan(result.miou)
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["pr50"] is None


def test_classes_by_hand():
    score = ReferringScore(["ship", "dam", "airport"])
    assert score.add(row(0, 10), row(0, 10), 0) == 1
    assert score.add(row(0, 5), row(0, 10), 0) == 0.5
    assert score.add(row(0, 2), row(0, 10), 1) == pytest.approx(0.2)
    result = score.result()
    ship, dam, airport = result.per_class
    assert (ship.name, ship.n, ship.miou, ship.oiou, ship.pr80) == ("ship", 2, 0.75, 0.75, 0.5)
    assert (dam.name, dam.n, dam.pr50) == ("dam", 1, 0)
    assert airport.n == 0
    assert math.isnan(airport.oiou)
    assert result.class_miou == pytest.approx((0.75 + 0.2) / 2)
    assert result.miou == pytest.approx((1 + 0.5 + 0.2) / 3)
    assert result.to_dict()["per_class"][2] == {
        "n": 0, "oiou": None, "miou": None, "pr50": None, "pr60": None, "pr70": None, "pr80": None, "pr90": None,
        "name": "airport",
    }  # fmt: skip


def test_integer_masks_of_any_value_are_objects_where_nonzero():
    assert referring_metrics([(np.array([[0, 255]], np.uint8), np.array([[0, 1]], np.int64))]).miou == 1


@pytest.mark.parametrize(
    ("predicted", "truth", "label", "match"),
    [
        (row(0, 1, 20), row(0, 1, 21), None, "20 x 1 and the true one 21 x 1"),
        (row(0, 1)[None], row(0, 1), None, r"predicted mask has shape \(1, 1, 20\)"),
        (row(0, 1).astype(np.float32), row(0, 1), None, "float32; compare it with its threshold"),
        (row(0, 1), row(0, 1), 0, "0 does not go with 0 classes"),
    ],
)
def test_what_cannot_be_scored_is_refused(predicted, truth, label, match):
    score = ReferringScore()
    with pytest.raises(UsageError, match=match):
        score.add(predicted, truth, label)
    assert score.result().n == 0


@pytest.mark.parametrize("label", [None, 2, -1])
def test_with_classes_every_expression_needs_one_of_them(label):
    with pytest.raises(UsageError, match="does not go with 2 classes"):
        ReferringScore(["a", "b"]).add(row(0, 1), row(0, 1), label)


masks = st.lists(st.booleans(), min_size=6, max_size=6).map(lambda bits: np.array(bits).reshape(2, 3))


@given(st.lists(st.tuples(masks, masks), min_size=1, max_size=5))
def test_figures_are_symmetric_ordered_and_independent_of_order(pairs):
    result = referring_metrics(pairs)
    assert referring_metrics([(b, a) for a, b in pairs]).to_dict() == result.to_dict()
    backwards = referring_metrics(pairs[::-1])
    assert backwards.miou == pytest.approx(result.miou)
    assert backwards.pr70 == result.pr70
    assert 1 >= result.pr50 >= result.pr60 >= result.pr70 >= result.pr80 >= result.pr90 >= 0
    assert result.pr90 * 0.9 <= result.miou + 1e-12
    if not math.isnan(result.oiou):
        ious = [(a & b).sum() / max((a | b).sum(), 1) for a, b in pairs if (a | b).any()]
        assert min(ious) - 1e-12 <= result.oiou <= max(ious) + 1e-12
