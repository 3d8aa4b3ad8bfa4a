"""Memory is shared out as docs/scale.md says, and a limit that cannot be held is refused with one that can."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgeoseg.contract import Chip
from rsgeoseg.engine.budget import FIXED_BYTES, MOST_ROWS, ROW_BYTES, share_out, working_memory
from rsgeoseg.engine.memory import peak_memory, resident_memory
from rsgeoseg.engine.options import PipelineOptions, parse_bytes
from rsgeoseg.errors import UsageError
from rsgeoseg.testing.oracle import OracleSegmenter, oracle_spec

GB = 10**9


def options(**changes):
    return PipelineOptions(**{"chip_size": 1024, "overlap": 128, **changes})


@given(
    limit=st.integers(GB // 2, 64 * GB),
    processes=st.integers(1, 16),
    resident=st.integers(10**8, 2 * GB),
    working=st.integers(0, 2 * GB),
    batch=st.sampled_from([1, 4, 16]),
)
def test_the_shares_never_exceed_the_limit(limit, processes, resident, working, batch):
    chip = 1024 * 1024 * 4
    given_options = options(batch_size=batch)
    try:
        budget = share_out(
            limit, processes=processes, resident=resident, working=working, chip_bytes=chip, options=given_options
        )
    except UsageError as error:
        enough = float(re.search(r"give ([\d.]+)GB", str(error))[1]) * GB + 0.01 * GB * processes
        share_out(
            int(enough), processes=processes, resident=resident, working=working, chip_bytes=chip, options=given_options
        )
        return
    used = budget.cache_bytes + budget.ahead * chip + budget.frontier_bytes + budget.batch_rows * ROW_BYTES
    assert processes * (resident + working + FIXED_BYTES + used) <= limit * 1.0001
    assert budget.ahead >= batch
    assert budget.batch_rows <= MOST_ROWS


def test_plenty_of_memory_changes_nothing():
    budget = share_out(64 * GB, processes=1, resident=GB, working=GB, chip_bytes=4 << 20, options=options(batch_size=4))
    assert budget.ahead == 2 * 2 + 4
    assert budget.batch_rows == MOST_ROWS


def test_too_little_says_what_would_do():
    with pytest.raises(UsageError, match=r"max-memory 0.5 GB is too little: 2 x .*give \d+\.\d+GB or more"):
        share_out(GB // 2, processes=2, resident=GB, working=0, chip_bytes=4 << 20, options=options())


def test_what_a_model_takes_is_measured():
    class Hungry(OracleSegmenter):
        def segment(self, chips, prompts=None):
            np.ones((2 * (peak_memory() - resident_memory()) + (400 << 20)) // 8)
            return super().segment(chips)

    chip = Chip(image=np.zeros((3, 64, 64), np.uint8), valid=np.ones((64, 64), bool), gsd=None)
    taken = working_memory(Hungry(spec=oracle_spec(chip_size=64)), [chip], 2)
    assert taken > 380 << 20


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2GB", 2 * GB),
        ("500 MB", 500 * 10**6),
        ("1.5GiB", 3 << 29),
        ("1073741824", 1 << 30),
        (4096, 4096),
        ("2g", 2 * GB),
    ],
)
def test_amounts_of_memory(text, wanted):
    assert parse_bytes(text) == wanted


@pytest.mark.parametrize("text", ["", "much", "-2GB", "0", "2XB", "GB", "i", True, "1e9"])
def test_what_is_no_amount_is_refused(text):
    with pytest.raises(UsageError, match="such as 2GB"):
        parse_bytes(text)


def test_a_frontier_above_its_share_is_said(caplog):
    budget = share_out(4 * GB, processes=1, resident=GB, working=0, chip_bytes=4 << 20, options=options())
    budget.compare(budget.frontier_bytes)
    assert not caplog.messages
    budget.compare(budget.frontier_bytes + GB)
    assert "1.00 GB more than max-memory had" in caplog.text
