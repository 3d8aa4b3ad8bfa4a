"""Blocks hold every batch once, are nearly square, and are as large as memory and sharing allow."""

import pytest

from rsgeoseg.engine.blocks import MAX_CHIPS, SHARES, block_chips, plan_blocks
from rsgeoseg.engine.options import PipelineOptions
from rsgeoseg.engine.pipeline import window_groups
from rsgeoseg.geo.windows import plan_windows


def options(batch_size=1):
    return PipelineOptions(chip_size=64, overlap=16, batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("chips", [1, 4, 9, 64, 10_000])
def test_every_batch_is_in_one_block(batch_size, chips):
    plan = plan_windows(700, 900, chip_size=64, overlap=16)
    groups = window_groups(plan, batch_size)
    blocks = plan_blocks(groups, batch_size, chips)
    assert sorted(group[0].index for block in blocks for group in block) == [group[0].index for group in groups]
    for block in blocks:
        assert sum(map(len, block)) <= max(chips, batch_size) * 1.6
        assert [group[0].index for group in block] == sorted(group[0].index for group in block)


def test_blocks_are_nearly_square():
    plan = plan_windows(16 * 48 + 16, 16 * 48 + 16, chip_size=64, overlap=16)  # 16 x 16 chips
    for batch_size in (1, 4):
        blocks = plan_blocks(window_groups(plan, batch_size), batch_size, 64)
        assert len(blocks) == 4
        for block in blocks:
            rows, cols = ({getattr(window, side) for group in block for window in group} for side in ("row", "col"))
            assert len(rows) == len(cols) == 8


def test_what_is_left_of_a_run_keeps_its_blocks():
    plan = plan_windows(500, 500, chip_size=64, overlap=16)
    groups = window_groups(plan, 2)
    whole = {tuple(group[0].index for group in block) for block in plan_blocks(groups, 2, 8)}
    left = plan_blocks(groups[10:], 2, 8)
    assert all(any(set(part) <= set(block) for block in whole) for part in ([g[0].index for g in b] for b in left))


def test_a_block_is_a_share_and_no_more_than_most():
    assert block_chips(10**6, 4, options(), 10**6, None) == MAX_CHIPS
    assert block_chips(64, 4, options(), 10**6, None) == 64 // (4 * SHARES)
    assert block_chips(3, 4, options(), 10**6, None) == 1
    assert block_chips(25, 1, options(), 10**6, None) == 25  # nobody to share with
    assert block_chips(10**6, 1, options(), 10**6, None) == MAX_CHIPS
    assert block_chips(3, 4, options(16), 10**6, None) == 16  # whole batches


def test_a_budget_makes_blocks_smaller():
    assert block_chips(10**6, 4, options(), 4 << 20, 16 << 20) == 8  # half a chip each
    assert block_chips(10**6, 4, options(), 4 << 20, 1) == 1
    assert block_chips(10**6, 4, options(), 4 << 20, 1 << 40) == MAX_CHIPS
