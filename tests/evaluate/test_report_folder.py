"""Reports: the pictures show what was found and missed where it lies, and a folder appears whole or not at all."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from PIL import Image
from shapely.geometry import box

from rsgeoseg.errors import OutputError, UsageError
from rsgeoseg.evaluate.cases import map_cases
from rsgeoseg.evaluate.coco import read_truth
from rsgeoseg.evaluate.comparison import compare_map
from rsgeoseg.evaluate.evidence import image_evidence
from rsgeoseg.evaluate.map_objects import MapObjects
from rsgeoseg.evaluate.report import check_report_folder, write_report
from rsgeoseg.evaluate.worst_cases import FALSE, FOUND, MISSED, Case, draw_case, worst_cases

HEIGHT, WIDTH = 60, 120
TABLES = [("Figures", ("class", "AP"), (("<ship>", "51.0"),))]


def ring(x, y, side=20):
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


@pytest.fixture
def evidence():
    """Two images: one flawless, one with a hit at x 10, a miss at x 50 and a false alarm at x 90."""
    images = [{"id": i, "file_name": name, "height": HEIGHT, "width": WIDTH} for i, name in ((1, "good"), (2, "bad"))]
    annotations = [
        {"image_id": 1, "category_id": 1, "segmentation": ring(10, 20)},
        {"image_id": 2, "category_id": 1, "segmentation": ring(10, 20)},
        {"image_id": 2, "category_id": 1, "segmentation": ring(50, 20)},
    ]
    truth = read_truth({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "<ship>"}]})
    found = [
        {"image_id": 1, "category_id": 1, "score": 0.9, "segmentation": ring(10, 20)},
        {"image_id": 2, "category_id": 1, "score": 0.9, "segmentation": ring(10, 20)},
        {"image_id": 2, "category_id": 1, "score": 0.8, "segmentation": ring(90, 20)},
    ]
    blue = np.full((HEIGHT, WIDTH, 3), (0, 0, 200), np.uint8)
    return image_evidence("How good?", truth, found, picture=lambda _image: blue)


def near(pixel, colour):
    return np.abs(np.asarray(pixel, int) - colour).max() < 40


def test_colours_lie_on_the_outlines(evidence):
    good, bad = evidence.cases(0.5)
    assert (good.f1, bad.n_found, bad.n_missed, bad.n_false) == (1, 1, 1, 1)
    assert bad.f1 == pytest.approx(0.5)
    drawn = draw_case(bad, 4 * WIDTH)
    for x, colour in ((10, FOUND), (50, MISSED), (90, FALSE)):
        assert near(drawn[4 * 30, 4 * x + 2], colour)  # the middle of the left border's pixels
        assert near(drawn[4 * 30, 4 * (x + 10)], (0, 0, 200))  # inside, the picture is seen
        assert near(drawn[4 * 20 + 2, 4 * (x + 10)], colour)  # the upper border


def test_worst_first_and_flawless_ones_stay_out(evidence):
    assert [case.name for case in worst_cases(evidence.cases(0.5))] == ["bad"]
    many = [made(name, missed) for name, missed in (("a", 1), ("b", 3), ("c", 0), ("d", 2))]
    assert [case.name for case in worst_cases(many, 2)] == ["b", "d"]


def made(name, missed):
    return Case(name=name, width=9, height=9, n_found=1, n_missed=missed, n_false=0, rings=list, picture=lambda: None)


def test_a_report_is_whole(tmp_path, evidence):
    folder = tmp_path / "report"
    write_report(folder, evidence, {"ap": 0.5}, TABLES, score=0.5)
    names = ["confusion.png", "figures.json", "precision_recall.png", "report.html", "worst_cases.png"]
    assert sorted(path.name for path in folder.iterdir()) == names
    figures = json.loads((folder / "figures.json").read_text())
    assert figures["ap"] == 0.5
    assert figures["confusion"]["counts"] == [[2, 1], [1, 0]]
    assert figures["worst_cases"] == [{"name": "bad", "found": 1, "missed": 1, "false": 1, "f1": 0.5}]
    assert len(figures["precision_recall"]["0.50"]["<ship>"]) == 101
    page = (folder / "report.html").read_text()
    assert "&lt;ship&gt;" in page
    assert "<ship>" not in page
    for name in names:
        if name.endswith(".png"):
            assert name in page
            with Image.open(folder / name) as picture:
                assert picture.width > 300
                assert len(picture.convert("RGB").getcolors(1 << 24)) > 10
    assert [path.name for path in tmp_path.iterdir()] == ["report"]  # no scratch is left


def test_an_earlier_report_is_replaced_only_when_asked(tmp_path, evidence):
    folder = tmp_path / "report"
    folder.mkdir()
    write_report(folder, evidence, {"ap": 0.1}, TABLES, score=0.5)  # an empty folder is free
    with pytest.raises(OutputError, match="not empty"):
        write_report(folder, evidence, {"ap": 0.2}, TABLES, score=0.5)
    write_report(folder, evidence, {"ap": 0.3}, TABLES, score=0.5, overwrite=True)
    assert json.loads((folder / "figures.json").read_text())["ap"] == 0.3
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"notes\.txt"):
        write_report(folder, evidence, {"ap": 0.4}, TABLES, score=0.5, overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_failure_leaves_the_earlier_report(tmp_path, evidence):
    folder = tmp_path / "report"
    write_report(folder, evidence, {"ap": 0.1}, TABLES, score=0.5)
    with pytest.raises(TypeError):
        write_report(folder, evidence, {"ap": object()}, TABLES, score=0.5, overwrite=True)
    assert json.loads((folder / "figures.json").read_text())["ap"] == 0.1
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_refusals_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="it is a file"):
        check_report_folder(tmp_path / "file", overwrite=True)
    with pytest.raises(OutputError, match="does not exist"):
        check_report_folder(tmp_path / "none" / "report", overwrite=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("rsgeoseg.evaluate.report_plots.find_spec", lambda _name: None)
    with pytest.raises(UsageError, match=r"pip install 'rsgeoseg\[train\]'"):
        check_report_folder(tmp_path / "report", overwrite=False)


def objects(shapes):
    return MapObjects(
        shapes=np.array(shapes, object),
        classes=np.full(len(shapes), "ship", object),
        scores=np.linspace(1, 0.6, len(shapes)),
        crs=None,
        columns=(),
    )


def test_parts_of_a_map():
    """A hit in the first part, a miss in the second that reaches into the first, a false alarm at the scene's end."""
    truth = objects([box(10, 10, 60, 60), box(500, 100, 560, 160)])
    found = objects([box(980, 20, 1000, 50), box(10, 10, 60, 60)])
    asked = []

    def read(x0, y0, x1, y1):
        asked.append((x0, y0, x1, y1))
        return np.zeros((y1 - y0, x1 - x0, 3), np.uint8)

    comparison = compare_map("map", truth, found, ("ship",))
    first, second = map_cases(comparison, truth.shapes, found.shapes, size=(1000, 200), score=0.5, read=read)
    assert (first.n_found, first.n_missed, first.n_false) == (1, 0, 0)
    assert (second.n_found, second.n_missed, second.n_false) == (0, 1, 1)
    assert (first.width, first.height, second.width) == (576, 200, 552)
    drawn = draw_case(first, 576)
    assert asked == [(0, 0, 576, 200)]
    assert near(drawn[35, 10], FOUND)
    assert near(drawn[130, 500], MISSED)  # shown, though it counts next door
    assert near(draw_case(second, 552)[130, 500 - 448], MISSED)
