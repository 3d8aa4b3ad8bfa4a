"""The mosaic benchmark's layout: every image where its truth says, nothing overlaps, held-out images only."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import cv2
import geopandas
import numpy as np
import pytest
import rasterio
from rasterio.features import rasterize

from rsgeoseg.datasets.coco import CocoInstances
from rsgeoseg.evaluate.polygons import polygon_metrics

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "mosaic.py"


@pytest.fixture(scope="module")
def mosaic():
    if not SCRIPT.exists():
        pytest.skip("benchmarks/ is not part of this copy")
    spec = importlib.util.spec_from_file_location("benchmark_mosaic", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("gap", [0, 3])
def test_shelves_hold_every_rectangle_without_overlap(mosaic, gap):
    rng = np.random.default_rng(4)
    sizes = [tuple(size) for size in rng.integers(3, 40, (50, 2)).tolist()]
    corners, height, width = mosaic.pack_shelves(sizes, gap)
    sheet = np.zeros((height, width), int)
    for (h, w), (x0, y0) in zip(sizes, corners, strict=True):
        assert x0 + w <= width
        assert y0 + h <= height
        sheet[y0 : y0 + h, x0 : x0 + w] += 1
    assert sheet.max() == 1
    assert sheet.mean() > (0.6 if gap == 0 else 0.4)
    assert 0.7 < width / height < 1.5


def make_set(folder):
    """Seven small images, one white square each, at a place that depends on the image."""
    images, annotations = [], []
    for i in range(7):
        height, width = 20 + i, 30 + 2 * i
        pixels = np.full((height, width, 3), 10 * i, np.uint8)
        x, y = 3 + i, 4
        pixels[y : y + 6, x : x + 8] = 255
        cv2.imwrite(str(folder / f"{i}.png"), pixels)
        images.append({"id": i + 1, "file_name": f"{i}.png", "height": height, "width": width})
        ring = [x, y, x + 8, y, x + 8, y + 6, x, y + 6]
        annotations.append(
            {"id": i + 1, "image_id": i + 1, "category_id": 1 + i % 2, "segmentation": [ring], "area": 48, "iscrowd": 0}
        )
    categories = [{"id": 1, "name": "ship"}, {"id": 2, "name": "tank"}]
    (folder / "a.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return CocoInstances(folder, folder / "a.json")


def test_scene_and_truth_agree(tmp_path, mosaic):
    data = make_set(tmp_path)
    made = mosaic.build_mosaic(data.images, data.classes, tmp_path, gap=2)
    truth = geopandas.read_file(made.truth)
    assert sorted(truth["class_name"]) == ["ship"] * 4 + ["tank"] * 3
    with rasterio.open(made.scene) as source:
        pixels = source.read()
        assert source.crs == truth.crs
        drawn = rasterize(truth.geometry, source.shape, transform=source.transform)
    assert pixels.shape == (3, made.height, made.width)
    assert np.array_equal(pixels[0] == 255, drawn == 1)
    assert polygon_metrics(truth, truth).ap == 1


def test_only_every_fifth_image_is_held_out(tmp_path, mosaic):
    held = make_set(tmp_path).split()[1]
    assert [held.labelled(i).name for i in range(len(held))] == ["0.png", "5.png"]
    made = mosaic.build_mosaic([held.labelled(i) for i in range(len(held))], held.classes, tmp_path)
    assert len(geopandas.read_file(made.truth)) == 2
