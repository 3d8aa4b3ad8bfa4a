"""A scene cut into parts by any number of stitchers gives what one stitcher gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_stitch_properties import Soup, answers, identity, prop, soups

from rsgeoseg.geo.remainder import Remainder
from rsgeoseg.geo.stitch import Stitcher
from rsgeoseg.geo.windows import plan_windows
from rsgeoseg.testing.oracle import NoisyOracle, OracleSegmenter, oracle_spec

DECISIONS = ("joined", "duplicates_removed", "fragments_dropped", "objects", "seam_objects")


def whole(plan, found, **options):
    stitcher = Stitcher(plan, **options)
    done = [item for window in plan.windows for item in stitcher.add(window, found[window.index])]
    return done + stitcher.finish(), stitcher.report.to_dict()


def in_parts(plan, found, parts, order, **options):
    """Give each part to a stitcher of its own, send what is left as bytes, in the given order."""
    main = Stitcher(plan, **options)
    done = []
    for number in order:
        part = Stitcher(plan, **options)
        for index in parts[number]:
            done += part.add(plan.windows[index], found[index])
        done += main.absorb(Remainder.from_bytes(part.remainder().to_bytes()))
    return done + main.finish(), main.report.to_dict()


def same(got, want):
    assert sorted(map(identity, got[0])) == sorted(map(identity, want[0]))
    assert {name: got[1][name] for name in DECISIONS} == {name: want[1][name] for name in DECISIONS}


@given(soup=soups(), nms=st.sampled_from([0.3, 0.5, 0.9]), data=st.data())
@prop(200)
def test_any_parts_in_any_order_give_the_same_objects(soup: Soup, nms, data):
    count = len(soup.plan.windows)
    owner = data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    parts = [[index for index in soup.order if owner[index] == number] for number in range(4)]
    order = data.draw(st.permutations(range(4)))
    same(in_parts(soup.plan, soup.found, parts, order, nms=nms), whole(soup.plan, soup.found, nms=nms))


@pytest.mark.parametrize("rows_at_once", [1, 2, 5])
def test_bands_of_a_noisy_scene_give_what_the_stream_gives(rows_at_once):
    rng = np.random.default_rng(3)
    truth = np.zeros((260, 200), np.int32)
    for value in range(1, 60):
        y, x, h, w = rng.integers(0, [250, 190, 60, 60])
        region = truth[y : y + h + 2, x : x + w + 2]
        region[region == 0] = value
    plan = plan_windows(260, 200, chip_size=64, overlap=16)
    noisy = NoisyOracle(inner=OracleSegmenter(spec=oracle_spec()), miss=0.1)
    found = answers(truth, plan, noisy)
    bands = [
        [window.index for window in plan.windows if window.row // rows_at_once == band] for band in range(plan.rows)
    ]
    bands = [band for band in bands if band]
    same(in_parts(plan, found, bands, range(len(bands))), whole(plan, found))


def test_a_part_keeps_only_what_its_border_can_change():
    truth = np.zeros((64, 200), np.int32)
    truth[10:20, 10:20], truth[10:20, 40:160], truth[40:50, 180:190] = 1, 2, 3
    plan = plan_windows(64, 200, chip_size=64, overlap=16)
    found = answers(truth, plan, OracleSegmenter(spec=oracle_spec()))
    part = Stitcher(plan)
    first = part.add(plan.windows[0], found[0]) + part.add(plan.windows[1], found[1])
    left = part.remainder()
    assert [item.box.x0 for item in first] == [10], "what no other window sees leaves at once"
    assert len(left.views) == 2, "the long object, seen by both windows"
    assert left.windows.tolist() == [0, 1]
    assert len(left.bits) < 300, "masks travel as bits"


def test_a_whole_scene_leaves_nothing_behind():
    truth = np.zeros((64, 100), np.int32)
    truth[5:20, 5:90] = 1
    plan = plan_windows(64, 100, chip_size=64, overlap=16)
    stitcher = Stitcher(plan)
    for window, found in zip(plan.windows, answers(truth, plan, OracleSegmenter(spec=oracle_spec())), strict=True):
        stitcher.add(window, found)
    assert len(stitcher.remainder().views) == 0


def test_a_part_that_comes_twice_or_from_elsewhere_is_refused():
    plan = plan_windows(64, 100, chip_size=64, overlap=16)
    part, main = Stitcher(plan), Stitcher(plan)
    empty = answers(np.zeros((64, 100), np.int32), plan, OracleSegmenter(spec=oracle_spec()))
    part.add(plan.windows[0], empty[0])
    left = part.remainder()
    main.absorb(left)
    with pytest.raises(ValueError, match="came twice"):
        main.absorb(left)
    other = Stitcher(plan_windows(64, 64, chip_size=64, overlap=16))
    part.add(plan.windows[1], empty[1])
    with pytest.raises(ValueError, match="not of this plan"):
        other.absorb(part.remainder())
    with pytest.raises(ValueError, match="not the remainder"):
        Remainder.from_bytes(b"something else")
