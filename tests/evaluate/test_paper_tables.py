"""Published tables: complete, looked up by name, and every number stands in the paper's text."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

import pytest

from rsgeoseg.errors import UsageError
from rsgeoseg.evaluate.paper_tables import paper_table, paper_tables

SHARED = Path(os.environ.get("RSGEOSEG_SHARED_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
PAPERS = SHARED.parent / "papers"
TEXTS = {
    "rsprompter": "rsprompter.txt",
    "rs2sam2": "rs2-sam2.txt",
    "pslg": "pslg-sam.txt",
    "rsisrefiner": "rs-isrefiner.txt",
    "insight": "insight-any-instance.txt",
}


def test_rows_that_are_known_by_heart():
    nwpu = paper_table("rsprompter-nwpu")
    rows = dict(nwpu.rows)
    assert nwpu.columns == ("boxes.ap", "boxes.ap50", "boxes.ap75", "masks.ap", "masks.ap50", "masks.ap75")
    assert rows["RSPrompter-query"] == (68.4, 90.3, 74.0, 67.5, 91.7, 74.8)
    assert rows["SOLOv2"][:3] == (None, None, None)
    assert dict(paper_table("rs2sam2-rrsisd-test").rows)["RS2-SAM2"][-2:] == (78.99, 66.72)
    assert dict(paper_table("rsisrefiner-nwpu").rows)["RS-ISRefiner (ViT-B)"] == (2.53, 3.83, 6.56, 3, 72, 299)


def test_our_figures_stand_in_the_same_columns():
    figures = {"masks": {"ap": 0.5, "ap50": 0.75, "ap75": None}, "boxes": {"ap": 0.25}}
    nwpu = paper_table("rsprompter-nwpu")
    assert nwpu.ours(figures) == (25, None, None, 50, 75, None)
    assert nwpu.words(nwpu.ours(figures)) == ("25.0", "-", "-", "50.0", "75.0", "-")
    assert nwpu.ours({"masks": {"ap": 0.5}, "boxes": None})[0] is None
    clicks = paper_table("rsisrefiner-nwpu")
    assert clicks.words(clicks.ours({"noc80": 2.5, "nof90": 7})) == ("2.50", "-", "-", "-", "-", "7")
    assert paper_table("pslg-rrsisd").ours({"oiou": 0.5})[5] == 50


def test_an_unknown_table_names_the_known_ones():
    with pytest.raises(UsageError, match="rsprompter-whu, rsprompter-nwpu"):
        paper_table("table 2")


@pytest.mark.parametrize("name", list(paper_tables()))
def test_every_row_stands_in_the_paper(name):
    path = PAPERS / TEXTS[name.split("-")[0]]
    if not path.is_file():
        pytest.skip(f"{path} is not here: the numbers are not compared with the paper")
    table = paper_table(name)
    assert len({method for method, _ in table.rows}) == len(table.rows)
    for method, values in table.rows:
        if name.startswith("rs2sam2"):  # val and test take turns
            which = int(name.endswith("-test"))
            found = any(run[which::2] == values for run in runs(path, 14))
        elif name.startswith("rsisrefiner"):  # five data sets side by side, in two tables
            triples = [run[k : k + 3] for run in runs(path, 15) for k in range(0, 15, 3)]
            found = values[:3] in triples and values[3:] in triples
        else:
            found = values in runs(path, len(values))
        assert found, (method, values)


@cache
def runs(path, length):
    """All stretches of so many numbers (or dashes, None) in a row."""
    tokens = re.sub(r"</?b>", "", path.read_text(encoding="utf-8")).split()
    numbers = [bool(re.fullmatch(r"\d+(\.\d+)?|-", token)) for token in tokens]
    starts = [i for i in range(len(tokens) - length + 1) if all(numbers[i : i + length])]
    return [tuple(None if t == "-" else float(t) for t in tokens[i : i + length]) for i in starts]
