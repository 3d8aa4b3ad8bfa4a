"""Simulated clicks: cases worked out by hand, and what holds for every mask."""

from __future__ import annotations

import json
import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rsgeoseg.errors import UsageError
from rsgeoseg.evaluate.interactive import Click, InteractiveScore, next_click, noc, simulate_clicks


def drawn(*rows):
    """A mask drawn with characters: # is the object."""
    return np.array([[pixel == "#" for pixel in line] for line in rows])


NOTHING = np.zeros((5, 7), bool)
SQUARE = drawn(
    ".......",
    ".###...",
    ".###...",
    ".###...",
    ".......",
)
masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9))
pairs = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9).flatmap(
    lambda shape: st.tuples(hnp.arrays(np.bool_, shape), hnp.arrays(np.bool_, shape))
)


def test_the_first_click_is_the_middle_of_the_object():
    assert next_click(NOTHING, SQUARE) == Click(2, 2, positive=True)


def test_the_deeper_error_decides_and_its_kind_is_the_sign():
    found = drawn(
        "....###",
        ".###...",
        ".###...",
        ".......",
        "....###",
    )
    # missing: the square's last row, depth 1; surplus: two rows, depth 1 as well: surplus wins, its first pixel
    assert next_click(found, SQUARE) == Click(4, 0, positive=False)
    found[3, 1] = True  # missing (2, 3) and (3, 3) only; still equally deep
    assert next_click(found, SQUARE) == Click(4, 0, positive=False)
    assert next_click(SQUARE & False, SQUARE | found) == Click(2, 2, positive=True)


def test_the_image_edge_bounds_an_error():
    # without a rim the depth would grow towards the corner; with it the middle is deepest
    assert next_click(np.zeros((3, 3), bool), np.ones((3, 3), bool)) == Click(1, 1, positive=True)
    assert next_click(np.ones((1, 4), bool), np.zeros((1, 4), bool)) == Click(0, 0, positive=False)


def test_clicked_pixels_are_not_clicked_again_and_then_nothing_is_left():
    truth, clicks = drawn("##"), []
    for expected in (Click(0, 0, positive=True), Click(1, 0, positive=True), None):
        click = next_click(drawn(".."), truth, clicks)
        assert click == expected
        clicks += [click]
    assert next_click(truth, truth) is None


@given(pairs)
def test_a_click_lies_in_the_error_of_its_sign_as_deep_as_opencv_says(pair):
    found, truth = pair
    click = next_click(found, truth)
    if click is None:
        assert (found == truth).all()
        return
    missing, surplus = truth & ~found, found & ~truth
    assert (missing if click.positive else surplus)[click.y, click.x]
    depths = [
        cv2.distanceTransform(np.pad(error, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
        for error in (missing, surplus)
    ]
    mine, other = depths if click.positive else depths[::-1]
    assert mine[click.y, click.x] == pytest.approx(mine.max())
    assert mine.max() >= other.max() - 1e-6
    assert click.positive == (depths[0].max() > depths[1].max() + 1e-6)


def test_a_run_by_hand():
    """The predictor marks the object's rows of each clicked column."""

    def columns(clicks):
        mask = np.zeros((5, 7), bool)
        for click in clicks:
            mask[1:4, click.x] = click.positive
        return mask

    run = simulate_clicks(columns, SQUARE)
    # the middle column, then the first pixel of the left and of the right one
    assert run.clicks == (Click(2, 2, positive=True), Click(1, 1, positive=True), Click(3, 1, positive=True))
    assert run.ious == pytest.approx([3 / 9, 6 / 9] + [1] * 18)
    assert simulate_clicks(columns, SQUARE, target=6 / 9).ious == pytest.approx([3 / 9, 6 / 9])
    assert simulate_clicks(columns, SQUARE, max_clicks=1).ious == pytest.approx([3 / 9])


def test_a_run_with_background_clicks_by_hand():
    """The predictor marks everything up to the first background click."""

    def left_of(clicks):
        mask = np.ones((1, 6), bool)
        mask[0, min([click.x for click in clicks if not click.positive], default=6) :] = False
        return mask

    run = simulate_clicks(left_of, drawn("##...."), max_clicks=3)
    # all six pixels, then four surplus ones of equal depth: the first is clicked
    assert run.clicks == (Click(0, 0, positive=True), Click(2, 0, positive=False))
    assert run.ious == pytest.approx([2 / 6, 1, 1])


def test_a_perfect_predictor_needs_one_click_and_stays_perfect():
    run = simulate_clicks(lambda clicks: SQUARE, SQUARE, max_clicks=4)
    assert len(run.clicks) == 1
    assert run.ious.tolist() == [1, 1, 1, 1]
    assert noc(run.ious, 0.9, 4) == 1


def test_a_predictor_that_ignores_clicks_ends_when_every_error_was_clicked():
    run = simulate_clicks(lambda clicks: drawn("#..."), drawn("##.."), max_clicks=5)
    assert run.clicks == (Click(0, 0, positive=True), Click(1, 0, positive=True))
    assert run.ious.tolist() == [0.5] * 5
    assert noc(run.ious, 0.8, 5) == 5


@given(masks.filter(np.any), st.integers(1, 4))
@settings(max_examples=50)
def test_a_predictor_that_learns_each_click_never_clicks_twice_and_never_gets_worse(truth, limit):
    def pixels(clicks):
        mask = np.zeros_like(truth)
        for click in clicks:
            mask[click.y, click.x] = click.positive
        return mask

    run = simulate_clicks(pixels, truth, max_clicks=limit)
    places = [(click.x, click.y) for click in run.clicks]
    assert len(set(places)) == len(places)
    assert all(click.positive and truth[click.y, click.x] for click in run.clicks)
    assert len(run.ious) == limit
    assert (np.diff(run.ious) >= 0).all()
    assert run.ious[-1] == pytest.approx(min(limit, truth.sum()) / truth.sum())


@given(st.lists(st.floats(0, 1), min_size=20, max_size=20), st.floats(0, 1), st.floats(0, 1))
def test_noc_rises_with_the_target(ious, a, b):
    low, high = sorted((a, b))
    assert 1 <= noc(ious, low) <= noc(ious, high) <= 20


def test_figures_by_hand():
    score = InteractiveScore(max_clicks=4)
    score.add([0.5, 0.8, 0.85, 0.9])  # reaches each target exactly, the last one at the last click: no failure
    score.add([0.95])  # a run that stopped
    score.add([0.1, 0.86, 0.7, 0.2])  # reached and lost again: the first time counts
    score.add([0.0, 0.0, 0.0, 0.79])
    result = score.result()
    assert (result.n, result.max_clicks) == (4, 4)
    assert (result.noc80, result.noc85, result.noc90) == ((2 + 1 + 2 + 4) / 4, (3 + 1 + 2 + 4) / 4, (4 + 1 + 4 + 4) / 4)
    assert (result.nof80, result.nof85, result.nof90) == (1, 1, 2)
    means = [
        (0.5 + 0.95 + 0.1 + 0) / 4,
        (0.8 + 0.95 + 0.86) / 4,
        (0.85 + 0.95 + 0.7) / 4,
        (0.9 + 0.95 + 0.2 + 0.79) / 4,
    ]
    assert result.curve == pytest.approx(means)
    assert json.loads(json.dumps(result.to_dict()))["nof90"] == 2


def test_no_objects_are_nan_and_none_in_json():
    result = InteractiveScore(2).result()
    assert (result.n, result.nof80) == (0, 0)
    assert math.isnan(result.noc80)
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["curve"] == [None, None]


def test_a_run_that_stopped_below_a_target_is_refused_and_leaves_no_trace():
    score = InteractiveScore()
    with pytest.raises(UsageError, match=r"stopped after 2 of 20 clicks at IoU 0\.860.*0\.9 would be reached"):
        score.add([0.3, 0.86])
    with pytest.raises(UsageError, match="0 IoU values"):
        score.add([])
    with pytest.raises(UsageError, match="21 IoU values"):
        score.add([0.5] * 21)
    assert score.result().n == 0


@pytest.mark.parametrize(
    ("predict", "truth", "options", "match"),
    [
        (lambda clicks: SQUARE, NOTHING, {}, "true mask is empty"),
        (lambda clicks: SQUARE, SQUARE, {"max_clicks": 0}, "allow one or more"),
        (lambda clicks: SQUARE[:4], SQUARE, {}, "7 x 4 and the true one 7 x 5"),
        (lambda clicks: SQUARE * 0.4, SQUARE, {}, "float64; compare it with its threshold"),
    ],
)
def test_what_cannot_be_simulated_is_refused(predict, truth, options, match):
    with pytest.raises(UsageError, match=match):
        simulate_clicks(predict, truth, **options)
