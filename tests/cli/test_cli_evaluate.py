import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasters import draw_ids

from rsgeoseg.evaluate.coco import encode_mask
from rsgeoseg.testing.oracle import encode_ids

CLASSES = ["storage tank", "ship", "bridge"]


@pytest.fixture
def annotated(tmp_path):
    """Six PNG images that spell ids, and their COCO annotations with other ids and another order of classes."""
    images, annotations = [], []
    (tmp_path / "images").mkdir()
    for number in range(6):
        ids = draw_ids(150, 210, seed=number, count=8)
        name = f"{number:03d}.png"
        with rasterio.open(
            tmp_path / "images" / name, "w", driver="PNG", height=150, width=210, count=3, dtype="uint8"
        ) as sink:
            sink.write(encode_ids(ids))
        images.append({"id": 100 + number, "file_name": name, "height": 150, "width": 210})
        for value in range(1, ids.max() + 1):
            mask = encode_mask(ids == value, (0, 0), height=150, width=210)
            label = value % 3
            annotations.append(
                {"image_id": 100 + number, "category_id": 30 - label, "segmentation": mask, "iscrowd": 0}
            )
    categories = [{"id": 30 - label, "name": name} for label, name in enumerate(CLASSES)]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    return tmp_path / "truth.json", tmp_path / "images"


def test_an_oracle_scores_full_marks_on_images(cli, annotated):
    truth, images = annotated
    result = cli("evaluate", truth, "--images", images, "--json", "-q")
    assert result.code == 0, result.err
    figures = json.loads(result.out)
    assert figures["ap"] == pytest.approx(1)
    assert sum(row["n_truth"] for row in figures["per_class"]) == 48
    fewer = json.loads(cli("evaluate", truth, "--images", images, "--every", 3, "--start", 1, "--json", "-q").out)
    assert sum(row["n_truth"] for row in fewer["per_class"]) == 16
    table = cli("evaluate", truth, "--images", images, "-q").out
    assert "100.0" in table
    assert "storage tank" in table


def test_a_map_is_judged_by_polygons(cli, ids_scene):
    path, ids = ids_scene()
    cli("run", path, "--stretch", "none", "-o", "truth.gpkg")
    cli("run", path, "--stretch", "none", "-o", "ships.gpkg", "--classes", "ship")
    full = json.loads(cli("evaluate", "truth.gpkg", "truth.gpkg", "--json").out)
    assert full["ap"] == pytest.approx(1)
    assert full["n_found"] == len(np.unique(ids)) - 1
    part = json.loads(cli("evaluate", "truth.gpkg", "ships.gpkg", "--json").out)
    assert part["ap"] == pytest.approx(1 / 3)


def test_it_refuses_in_words(cli, annotated):
    truth, images = annotated
    cli("evaluate", truth).fails(2, "--images")
    cli("evaluate", "absent.json", "--images", images).fails(2, "absent.json")
    cli("evaluate", truth, "--images", "absent").fails(3, "absent")
    cli("evaluate", truth, "--images", images, "--start", 9).fails(2, "start")
    broken = json.loads(truth.read_text())
    broken["categories"] = [{"id": 1, "name": "moon"}]
    Path("moon.json").write_text(json.dumps(broken))
    cli("evaluate", "moon.json", "--images", images).fails(2, "moon", "storage tank")
