"""Windows: hand-counted plans, and every sentence of the docstring as a property."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgeoseg.errors import UsageError
from rsgeoseg.geo.windows import Box, WindowPlan, plan_windows


@st.composite
def plans(draw) -> WindowPlan:
    chip_size = draw(st.integers(1, 40))
    overlap = draw(st.integers(0, chip_size // 2))
    height, width = draw(st.integers(1, 150)), draw(st.integers(1, 150))
    return plan_windows(height, width, chip_size=chip_size, overlap=overlap)


@given(plans())
def test_cores_partition_the_scene(plan):
    owners = np.zeros((plan.height, plan.width), int)
    for window in plan.windows:
        owners[window.core.as_slices()] += 1
    assert (owners == 1).all()


@given(plans())
def test_read_boxes_are_full_size_and_stay_inside(plan):
    whole = Box(0, 0, plan.width, plan.height)
    for window in plan.windows:
        assert whole.contains(window.read)
        assert window.read.width == min(plan.chip_size, plan.width)
        assert window.read.height == min(plan.chip_size, plan.height)


@given(plans())
def test_every_core_has_a_margin_of_half_the_overlap_inside_its_read_box(plan):
    margin = plan.overlap // 2
    for window in plan.windows:
        read, core = window.read, window.core
        assert read.contains(core)
        assert core.x0 == 0 or core.x0 - read.x0 >= margin
        assert core.y0 == 0 or core.y0 - read.y0 >= margin
        assert core.x1 == plan.width or read.x1 - core.x1 >= margin
        assert core.y1 == plan.height or read.y1 - core.y1 >= margin


@given(plans())
def test_neighbours_share_at_least_the_overlap(plan):
    for row in range(plan.rows):
        for col in range(plan.cols - 1):
            assert plan.at(row, col).read.x1 - plan.at(row, col + 1).read.x0 >= plan.overlap
    for col in range(plan.cols):
        for row in range(plan.rows - 1):
            assert plan.at(row, col).read.y1 - plan.at(row + 1, col).read.y0 >= plan.overlap


@given(plans())
def test_no_smaller_number_of_windows_would_do(plan):
    step = plan.chip_size - plan.overlap
    for length, count in ((plan.height, plan.rows), (plan.width, plan.cols)):
        assert count == 1 or plan.chip_size + (count - 2) * step < length
        assert plan.chip_size + (count - 1) * step >= length


@given(plans())
def test_order_is_row_major_and_read_boxes_differ(plan):
    assert [window.index for window in plan.windows] == list(range(plan.rows * plan.cols))
    assert [(w.row, w.col) for w in plan.windows] == [(r, c) for r in range(plan.rows) for c in range(plan.cols)]
    assert len({window.read for window in plan.windows}) == len(plan.windows)


@given(plans(), st.data())
def test_touching_is_a_search_over_all_windows(plan, data):
    x0, y0 = data.draw(st.integers(-5, plan.width + 5)), data.draw(st.integers(-5, plan.height + 5))
    box = Box(x0, y0, x0 + data.draw(st.integers(1, 60)), y0 + data.draw(st.integers(1, 60)))
    assert plan.touching(box) == [window for window in plan.windows if window.read.intersection(box)]


@given(plans())
def test_neighbours_are_the_windows_that_see_a_common_pixel(plan):
    window = plan.windows[len(plan.windows) // 2]
    expected = [o for o in plan.windows if o.index != window.index and o.read.intersection(window.read)]
    assert plan.neighbours(window) == expected


def test_plan_counted_by_hand():
    # 20 pixels, chips of 8 sharing 2: starts 0, 6, 12; cores meet in the middle of what is shared.
    plan = plan_windows(8, 20, chip_size=8, overlap=2)
    assert [(w.read.x0, w.read.x1) for w in plan.windows] == [(0, 8), (6, 14), (12, 20)]
    assert [(w.core.x0, w.core.x1) for w in plan.windows] == [(0, 7), (7, 13), (13, 20)]


def test_odd_overlap_is_the_total_not_per_side():
    plan = plan_windows(10, 17, chip_size=10, overlap=3)
    assert [(w.read.x0, w.read.x1) for w in plan.windows] == [(0, 10), (7, 17)]
    assert [(w.core.x0, w.core.x1) for w in plan.windows] == [(0, 8), (8, 17)]


def test_zero_overlap_on_a_multiple_is_a_plain_grid():
    plan = plan_windows(1024, 2048, chip_size=512, overlap=0)
    assert all(window.read == window.core for window in plan.windows)
    assert (plan.rows, plan.cols) == (2, 4)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (100, 100), (512, 512), (3, 512)])
def test_a_scene_no_larger_than_a_chip_is_one_window(height, width):
    (window,) = plan_windows(height, width, chip_size=512, overlap=64).windows
    assert window.read == window.core == Box(0, 0, width, height)


@pytest.mark.parametrize(
    ("chip_size", "overlap", "words"), [(0, 0, "chip size 0"), (10, 6, "0 to 5"), (10, -1, "overlap -1")]
)
def test_wrong_sizes_say_what_to_give(chip_size, overlap, words):
    with pytest.raises(UsageError, match=words):
        plan_windows(100, 100, chip_size=chip_size, overlap=overlap)


def test_an_empty_scene_is_refused():
    with pytest.raises(ValueError, match="at least 1 x 1"):
        plan_windows(0, 5, chip_size=4, overlap=0)


def test_box_arithmetic():
    box = Box(2, 3, 7, 9)
    assert (box.width, box.height, box.area) == (5, 6, 30)
    assert box.intersection(Box(6, 0, 10, 4)) == Box(6, 3, 7, 4)
    assert box.intersection(Box(7, 3, 8, 9)) is None
    assert box.contains(box)
    assert not box.contains(Box(2, 3, 8, 9))
    assert box.shifted(-2, 1) == Box(0, 4, 5, 10)
    assert np.arange(100).reshape(10, 10)[box.as_slices()].shape == (6, 5)


@pytest.mark.parametrize("sides", [(0, 0, 0, 1), (0, 5, 1, 5), (3, 0, 2, 1)])
def test_an_empty_box_cannot_be_made(sides):
    with pytest.raises(ValueError, match="x0 < x1"):
        Box(*sides)
