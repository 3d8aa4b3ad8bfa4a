"""Stitching, by hand: small cases whose answer can be read off the test."""

from __future__ import annotations

import numpy as np
import pytest

from rsgeoseg.contract import Chip, Instances
from rsgeoseg.errors import PromptError
from rsgeoseg.geo.stitch import Stitcher
from rsgeoseg.geo.windows import Box, Window, WindowPlan, plan_windows
from rsgeoseg.testing.oracle import NoisyOracle, OracleSegmenter, decode_ids, encode_ids, find_instances, oracle_spec

PAIR = plan_windows(100, 180, chip_size=100, overlap=20)
"""Two chips side by side: left reads 0-100 and owns 0-90, right reads 80-180 and owns 90-180."""
LEFT, RIGHT = PAIR.windows


def rect(x0, y0, x1, y1):
    """Boolean scene-sized mask of the pair."""
    mask = np.zeros((100, 180), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def instances(window, *rows) -> Instances:
    """Scene-sized masks, each with an optional score and class, as the window sees them."""
    boxes, masks, scores, labels = [], [], [], []
    for row in rows:
        mask, score, label = (*row, *(1.0, 0)[len(row) - 1 :])
        mask = mask[window.read.as_slices()]
        ys, xs = np.nonzero(mask)
        boxes.append((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))
        masks.append(mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1])
        scores.append(score)
        labels.append(label)
    return Instances(
        boxes=np.array(boxes, np.int32).reshape(-1, 4),
        masks=masks,
        scores=np.array(scores, np.float32),
        labels=np.array(labels, np.int64),
    )


def stitch(left, right, **options):
    """Objects of the pair, from left to right, with their scene-sized masks, and the report."""
    stitcher = Stitcher(PAIR, **options)
    done = stitcher.add(LEFT, instances(LEFT, *left)) + stitcher.add(RIGHT, instances(RIGHT, *right))
    assert stitcher.finish() == []
    full = []
    for item in sorted(done, key=lambda item: item.box):
        mask = np.zeros((100, 180), bool)
        mask[item.box.as_slices()] = item.mask
        full.append((item, mask))
    return full, stitcher.report


def test_the_pair_is_what_the_tests_below_believe():
    assert [(w.read.x0, w.read.x1, w.core.x0, w.core.x1) for w in PAIR.windows] == [(0, 100, 0, 90), (80, 180, 90, 180)]


def test_one_object_over_the_seam_becomes_one():
    ((item, mask),), report = stitch([(rect(50, 10, 100, 30), 0.6)], [(rect(80, 10, 130, 30), 0.9)])
    assert np.array_equal(mask, rect(50, 10, 130, 30))
    assert (item.box, item.label, item.n_chips, item.seam, item.truncated) == (Box(50, 10, 130, 30), 0, 2, True, False)
    assert item.score == pytest.approx(0.9)
    assert (report.joined, report.objects, report.seam_objects, report.duplicates_removed) == (1, 1, 1, 0)


def test_each_pixel_is_decided_by_its_owner():
    # Left says rows 10-30, right says rows 12-32: the step must lie on the border between the cores, at x = 90.
    ((_, mask),), _ = stitch([(rect(50, 10, 100, 30),)], [(rect(80, 12, 130, 32),)])
    assert np.array_equal(mask, rect(50, 10, 90, 30) | rect(90, 12, 130, 32))


def test_pixels_of_a_chip_without_the_object_come_from_the_others():
    ((item, mask),), _ = stitch([(rect(70, 10, 95, 30),)], [])
    assert np.array_equal(mask, rect(70, 10, 95, 30))
    assert (item.n_chips, item.seam) == (1, False)


def test_a_u_that_is_two_objects_in_one_chip_is_one():
    u = rect(20, 10, 30, 80) | rect(20, 10, 130, 20) | rect(20, 70, 130, 80)
    arms = [(rect(80, 10, 130, 20),), (rect(80, 70, 130, 80),)]
    ((_, mask),), report = stitch([(u,)], arms)
    assert np.array_equal(mask, u)
    assert report.joined == 2


def test_unequal_arms_join_too():
    # The thick arm holds 80 % of the left mask in the strip, the thin one 20 %: an IoU over the whole strip loses it.
    u = rect(20, 10, 30, 90) | rect(20, 10, 130, 50) | rect(20, 80, 130, 90)
    ((_, mask),), _ = stitch([(u,)], [(rect(80, 10, 130, 50),), (rect(80, 80, 130, 90),)])
    assert np.array_equal(mask, u)


def test_neighbours_that_overlap_by_jitter_stay_apart():
    left = [(rect(50, 10, 100, 31),), (rect(50, 30, 100, 50),)]
    right = [(rect(80, 10, 130, 30),), (rect(80, 29, 130, 50),)]
    full, report = stitch(left, right)
    assert [item.box.as_slices() for item, _ in full] == [
        (slice(10, 31), slice(50, 130)),
        (slice(29, 50), slice(50, 130)),
    ]
    assert report.joined == 2


def test_a_common_speck_does_not_glue_two_objects():
    # Both masks hold the same 4 x 4 speck at the strip's edge, a small part of either: too little to be one object if
    # they disagree about one pixel of it.
    speck = rect(80, 60, 84, 64)
    left = [(rect(40, 10, 100, 30) | speck | rect(60, 60, 80, 64),)]
    chipped = speck.copy()
    chipped[63, 80:82] = False
    right = [(rect(80, 40, 130, 58) | chipped,)]
    full, report = stitch(left, right)
    assert (len(full), report.joined) == (2, 0)


def test_a_common_piece_inside_the_strip_does_not_join():
    # The same 6 x 6 patch in both, but it ends inside the strip: no evidence that one object goes on across it.
    patch = rect(88, 60, 94, 66)
    left, right = rect(40, 10, 100, 30) | patch, rect(80, 40, 130, 58) | patch
    full, report = stitch([(left,)], [(right,)])
    assert (len(full), report.joined) == (2, 0)
    # At the strip's edge the same patch does go on, and joins.
    patch = rect(80, 60, 86, 66)
    left, right = rect(40, 10, 100, 30) | rect(60, 60, 86, 66), rect(80, 40, 130, 58) | patch
    assert stitch([(left,)], [(right,)])[1].joined == 1


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_piece_that_leaves_the_strip_in_one_chip_only_joins_in_any_order(order):
    # The patch runs out of the strip as left sees it; right's ends a pixel before the strip's edge.
    found = (
        instances(LEFT, (rect(40, 10, 100, 30) | rect(60, 60, 96, 68),)),
        instances(RIGHT, (rect(80, 40, 130, 58) | rect(81, 60, 96, 68),)),
    )
    stitcher = Stitcher(PAIR)
    for index in order:
        stitcher.add(PAIR.windows[index], found[index])
    assert stitcher.report.joined == 1


def test_other_classes_are_never_joined_nor_suppressed():
    full, report = stitch([(rect(50, 10, 100, 30), 0.6, 0)], [(rect(80, 10, 130, 30), 0.9, 1)])
    assert sorted(item.label for item, _ in full) == [0, 1]
    assert (report.joined, report.duplicates_removed) == (0, 0)


def test_disagreement_in_the_strip_is_measured_against_match_iou():
    left, right = [(rect(50, 10, 100, 30),)], [(rect(80, 10, 130, 24),)]  # strip: 20 x 14 of 20 x 20 = 0.7
    assert stitch(left, right, match_iou=0.65)[1].joined == 1
    assert stitch(left, right, match_iou=0.75)[1].joined == 0


def test_a_truncated_view_with_a_better_score_does_not_replace_the_whole():
    # Left sees 15 px of the object, too fat to be joined; right sees all of it.
    ((item, mask),), report = stitch([(rect(85, 15, 100, 45), 0.99)], [(rect(85, 20, 130, 40), 0.6)], match_iou=0.7)
    assert np.array_equal(mask, rect(85, 20, 130, 40))
    assert item.score == pytest.approx(0.6)
    assert (report.joined, report.duplicates_removed) == (0, 1)


def test_an_unconfirmed_fragment_is_dropped():
    # Left sees something cut by its border, in the right chip's core; right, which owns the place, sees nothing.
    full, report = stitch([(rect(92, 10, 100, 30),)], [])
    assert (full, report.fragments_dropped) == ([], 1)


def test_a_complete_object_outside_the_core_is_kept():
    ((_, mask),), report = stitch([(rect(91, 10, 98, 30),)], [])
    assert np.array_equal(mask, rect(91, 10, 98, 30))
    assert report.fragments_dropped == 0


def test_the_score_comes_from_chips_that_own_a_part():
    # Left sees it at its border only, and is sure; right owns all of it.
    ((item, _),), _ = stitch([(rect(92, 10, 100, 30), 0.99)], [(rect(92, 10, 130, 30), 0.7)])
    assert item.score == pytest.approx(0.7)
    assert (item.n_chips, item.seam) == (2, False)


def test_duplicates_within_a_chip_and_between_chips_are_removed():
    full, report = stitch([(rect(10, 10, 40, 40), 0.5), (rect(12, 10, 40, 40), 0.8)], [])
    assert [item.score for item, _ in full] == [pytest.approx(0.8)]
    assert report.duplicates_removed == 1
    # A small object inside a large one: contained, whatever its IoU.
    full, report = stitch([(rect(40, 10, 98, 60), 0.9)], [(rect(82, 20, 96, 40), 0.8)])
    assert [item.score for item, _ in full] == [pytest.approx(0.9)]
    assert report.duplicates_removed == 1
    assert len(stitch([(rect(40, 10, 98, 60), 0.9)], [(rect(82, 20, 96, 40), 0.8)], nms=1.0)[0]) == 2


def test_a_duplicate_of_what_still_grows_waits_for_it():
    # Row of three: the first object is complete when the first two have come, but its rival goes on to the third.
    plan = plan_windows(20, 100, chip_size=40, overlap=10)
    assert [w.read.x0 for w in plan.windows] == [0, 30, 60]

    def see(window, *rows):
        masks = [(np.pad(np.ones((10, x1 - x0), bool), ((5, 5), (x0, 100 - x1))), score) for x0, x1, score in rows]
        return instances(window, *masks)

    stitcher = Stitcher(plan)
    first = stitcher.add(plan.windows[0], see(plan.windows[0], (20, 34, 0.6)))
    assert first == []
    assert stitcher.add(plan.windows[1], see(plan.windows[1], (32, 70, 0.9))) == []  # rivals: 2 px shared, no duplicate
    last = stitcher.add(plan.windows[2], see(plan.windows[2], (60, 80, 0.9)))
    assert [item.box for item in last] == [Box(20, 5, 34, 15), Box(32, 5, 80, 15)]


def test_the_scene_border_truncates_and_the_chip_border_does_not():
    full, _ = stitch(
        [(rect(0, 10, 20, 30),), (rect(30, 90, 50, 100),), (rect(60, 10, 79, 30),)], [(rect(170, 5, 180, 9),)]
    )
    assert [item.truncated for item, _ in full] == [True, True, False, True]


def test_interior_objects_leave_at_once_and_nothing_is_held():
    stitcher = Stitcher(PAIR)
    done = stitcher.add(LEFT, instances(LEFT, (rect(10, 10, 40, 40),), (rect(70, 10, 81, 40),)))
    assert [item.box for item in done] == [Box(10, 10, 40, 40)]
    assert (stitcher.report.frontier_peak, stitcher.report.frontier_peak_bytes) == (1, 11 * 30)
    assert len(stitcher.add(RIGHT, Instances.empty())) == 1


def test_the_frontier_is_a_row_of_chips_however_long_the_scene():
    peaks = []
    for rows in (8, 32):
        plan = plan_windows(48 * rows + 16, 48 * 6 + 16, chip_size=64, overlap=16)
        rng = np.random.default_rng(7)
        ids = np.zeros((plan.height, plan.width), np.int32)
        for i in range(
            rows * 30
        ):  # jittered below: touching neighbours overlap, which must not chain through the scene
            y, x = rng.integers(0, plan.height - 12), rng.integers(0, plan.width - 12)
            ids[y : y + 12, x : x + 12] = i + 1
        noisy = NoisyOracle(inner=OracleSegmenter(spec=oracle_spec()), jitter=0.9)
        stitcher = Stitcher(plan)
        for window in plan.windows:
            part = np.ascontiguousarray(ids[window.read.as_slices()])
            chip = Chip(image=encode_ids(part), valid=np.ones(part.shape, bool))
            stitcher.add(window, noisy.segment([chip])[0])
        stitcher.finish()
        peaks.append((stitcher.report.frontier_peak, stitcher.report.frontier_peak_bytes))
    assert peaks[1][0] <= 1.5 * peaks[0][0]
    assert peaks[1][1] <= 1.5 * peaks[0][1]


def test_masks_do_not_keep_the_models_arrays_alive():
    whole = np.zeros((100, 100), bool)
    whole[10:20, 70:90] = True
    stitcher = Stitcher(PAIR)
    given = Instances(
        boxes=np.array([[70, 10, 90, 20]], np.int32),
        masks=[whole[10:20, 70:90]],
        scores=np.ones(1, np.float32),
        labels=np.zeros(1, np.int64),
    )
    assert stitcher.add(LEFT, given) == []
    whole[:] = False
    (item,) = stitcher.add(RIGHT, Instances.empty())
    assert item.mask.all()
    assert item.mask.base is None


def test_empty_masks_and_loose_boxes_are_taken_as_they_are():
    mask = np.zeros((10, 10), bool)
    loose = mask.copy()
    loose[2:5, 3:7] = True
    given = Instances(
        boxes=np.array([[0, 0, 10, 10], [20, 20, 30, 30]], np.int32),
        masks=[mask, loose],
        scores=np.ones(2, np.float32),
        labels=np.zeros(2, np.int64),
    )
    (item,) = Stitcher(PAIR).add(LEFT, given)
    assert (item.box, item.mask.all()) == (Box(23, 22, 27, 25), True)


def test_wrong_use_is_refused():
    with pytest.raises(ValueError, match="match_iou is a share"):
        Stitcher(PAIR, match_iou=0)
    with pytest.raises(ValueError, match="nms is a share"):
        Stitcher(PAIR, nms=1.5)
    stitcher = Stitcher(PAIR)
    stitcher.add(LEFT, Instances.empty())
    with pytest.raises(ValueError, match="came twice"):
        stitcher.add(LEFT, Instances.empty())
    with pytest.raises(ValueError, match="1 windows are missing, first 1"):
        stitcher.finish()
    with pytest.raises(ValueError, match="not of this plan"):
        stitcher.add(Window(1, 0, 1, RIGHT.read, LEFT.core), Instances.empty())
    outside = Instances(
        boxes=np.array([[95, 0, 105, 5]], np.int32),
        masks=[np.ones((5, 10), bool)],
        scores=np.ones(1, np.float32),
        labels=np.zeros(1, np.int64),
    )
    with pytest.raises(ValueError, match="leaves its chip"):
        stitcher.add(RIGHT, outside)
    assert len(stitcher.add(RIGHT, instances(RIGHT, (rect(100, 10, 120, 30),)))) == 1  # a refused chip may come again


def test_identical_read_boxes_are_different_chips():
    read = Box(0, 0, 10, 10)
    windows = (Window(0, 0, 0, read, Box(0, 0, 5, 10)), Window(1, 0, 1, read, Box(5, 0, 10, 10)))
    plan = WindowPlan(10, 10, 10, 5, 1, 2, windows)
    mask = np.zeros((10, 10), bool)
    mask[2:8, 2:9] = True
    stitcher = Stitcher(plan)
    assert stitcher.add(windows[1], instances(windows[1], (mask,))) == []
    (item,) = stitcher.add(windows[0], instances(windows[0], (mask,)))
    assert (item.box, item.n_chips, stitcher.report.joined) == (Box(2, 2, 9, 8), 2, 1)


# ----------------------------------------------------------------------------------------------------- the oracle


def test_ids_survive_the_pixels():
    ids = np.array([[0, 1, 255], [256, 65536, (1 << 24) - 1]], np.int32)
    chip = Chip(image=encode_ids(ids), valid=np.ones((2, 3), bool))
    assert np.array_equal(decode_ids(chip), ids)
    with pytest.raises(ValueError, match="24 bits"):
        encode_ids(np.array([[1 << 24]], np.int32))


def test_instances_are_found_by_id():
    ids = np.array([[7, 7, 0, 7], [0, 3, 3, 0], [3, 0, 0, 900000]], np.int32)
    found, boxes = find_instances(ids)
    assert found.tolist() == [3, 7, 900000]
    assert boxes.tolist() == [[0, 1, 3, 3], [0, 0, 4, 1], [3, 2, 4, 3]]
    chip = Chip(image=encode_ids(ids), valid=np.ones((3, 4), bool))
    count = {
        (mode, connectivity): len(
            OracleSegmenter(spec=oracle_spec(), mode=mode, connectivity=connectivity).segment([chip])[0]
        )
        for mode in ("instances", "components")
        for connectivity in (4, 8)
    }
    assert count == {
        ("instances", 4): 3,
        ("instances", 8): 3,
        ("components", 4): 5,
        ("components", 8): 4,
    }


def test_classes_come_from_the_id_or_a_table():
    chip = Chip(image=encode_ids(np.array([[1, 0, 2, 0, 3]], np.int32)), valid=np.ones((1, 5), bool))
    spec = oracle_spec(("a", "b"))
    assert OracleSegmenter(spec=spec).segment([chip])[0].labels.tolist() == [1, 0, 1]
    table = np.array([0, 0, 1, 0])
    assert OracleSegmenter(spec=spec, class_of=table).segment([chip])[0].labels.tolist() == [0, 1, 0]


def test_the_oracle_sees_no_invalid_pixel_and_takes_no_prompt():
    from rsgeoseg.contract import Prompts

    ids = np.full((4, 4), 5, np.int32)
    valid = np.zeros((4, 4), bool)
    oracle = OracleSegmenter(spec=oracle_spec())
    assert len(oracle.segment([Chip(image=encode_ids(ids), valid=valid)])[0]) == 0
    valid[1:3, 2:] = True
    assert oracle.segment([Chip(image=encode_ids(ids), valid=valid)])[0].boxes.tolist() == [[2, 1, 4, 3]]
    with pytest.raises(PromptError):
        oracle.segment([Chip(image=encode_ids(ids), valid=valid)], [Prompts(text="a house")])


def test_the_noisy_oracle_is_noisy_repeatable_and_stays_on_valid_pixels():
    ids = np.zeros((60, 60), np.int32)
    for i in range(16):
        ids[i // 4 * 15 : i // 4 * 15 + 11, i % 4 * 15 : i % 4 * 15 + 11] = i + 1
    valid = np.ones((60, 60), bool)
    valid[:, 30:40] = False
    chip = Chip(image=encode_ids(ids), valid=valid)
    oracle = OracleSegmenter(spec=oracle_spec())
    (truth,) = oracle.segment([chip])
    first, again = (NoisyOracle(inner=oracle, seed=3, miss=0.2).segment([chip])[0] for _ in range(2))
    assert np.array_equal(first.boxes, again.boxes)
    assert np.array_equal(first.scores, again.scores)
    assert 0 < len(first) < len(truth)
    assert not {tuple(box) for box in first.boxes.tolist()} <= {tuple(box) for box in truth.boxes.tolist()}
    for (x0, y0, x1, y1), mask, score in zip(first.boxes.tolist(), first.masks, first.scores, strict=True):
        assert 0 <= x0 < x1 <= 60
        assert 0 <= y0 < y1 <= 60
        assert not (mask & ~valid[y0:y1, x0:x1]).any()
        assert mask[0].any()
        assert mask[:, -1].any()
        assert 0 < score < 1
