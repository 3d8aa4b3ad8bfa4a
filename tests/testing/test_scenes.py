"""The scene generator: repeatable, independent of blocks, exact to the pixel, small in memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import geopandas
import numpy as np
import pytest
import rasterio
from rasterio.features import rasterize

from rsgeoseg.errors import UsageError
from rsgeoseg.testing.drawing import Frame, fill_mask
from rsgeoseg.testing.render import draw_ids, draw_scene
from rsgeoseg.testing.scenes import TEN_CLASSES, SceneTruth, generate_scene

ROOT = Path(__file__).parents[2]


def pixels(path: Path) -> np.ndarray:
    with rasterio.open(path) as source:
        return source.read()


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scene")
    truth = generate_scene(
        folder / "s.tif", height=1500, width=1700, seed=3, density=25, truth=folder / "truth.gpkg", block=512
    )
    return folder, truth


def test_same_seed_same_scene_and_another_seed_another(tmp_path):
    first = generate_scene(tmp_path / "a.tif", height=300, width=400, seed=5)
    second = generate_scene(tmp_path / "b.tif", height=300, width=400, seed=5)
    other = generate_scene(tmp_path / "c.tif", height=300, width=400, seed=6)
    assert np.array_equal(pixels(tmp_path / "a.tif"), pixels(tmp_path / "b.tif"))
    assert np.array_equal(first.labels(), second.labels())
    assert not np.array_equal(pixels(tmp_path / "a.tif"), pixels(tmp_path / "c.tif"))
    assert other.seed == 6


@pytest.mark.parametrize("oracle_ids", [False, True])
def test_block_size_does_not_change_a_pixel(tmp_path, oracle_ids):
    size = {"height": 900, "width": 1100, "seed": 3, "oracle_ids": oracle_ids}
    generate_scene(tmp_path / "a.tif", block=208, **size)
    generate_scene(tmp_path / "b.tif", block=2048, **size)
    assert np.array_equal(pixels(tmp_path / "a.tif"), pixels(tmp_path / "b.tif"))


def test_any_window_can_be_drawn_alone(scene):
    folder, truth = scene
    whole, labels = pixels(folder / "s.tif"), truth.labels()
    for x0, y0, x1, y1 in ((0, 0, 1, 1), (613, 377, 1214, 1001), (1637, 1433, 1700, 1500)):
        assert np.array_equal(draw_scene(truth, (x0, y0, x1, y1)), whole[:, y0:y1, x0:x1])
        assert np.array_equal(truth.labels((x0, y0, x1, y1)), labels[y0:y1, x0:x1])


def test_polygons_are_the_label_picture(scene):
    folder, truth = scene
    labels, frame = truth.labels(), truth.frame()
    assert frame.is_valid.all()
    assert set(frame.geom_type) == {"Polygon"}
    drawn = rasterize(
        zip(frame.geometry, frame["id"], strict=True), labels.shape, transform=truth.affine, dtype="int32"
    )
    assert np.array_equal(drawn, labels)
    # Areas agree to the last pixel (0.25 m2), so no two objects overlap.
    assert frame.area.sum() == np.count_nonzero(labels) * 0.25
    assert sorted(frame["id"]) == sorted(set(np.unique(labels)) - {0})
    stored = geopandas.read_file(folder / "truth.gpkg")
    assert stored["id"].tolist() == frame["id"].tolist()
    assert stored["class_name"].tolist() == [truth.classes[label] for label in frame["class_id"]]
    assert stored.geometry.geom_equals(frame.geometry).all()
    assert stored.crs == frame.crs == "EPSG:32631"


def test_objects_are_whole_and_never_touch(scene):
    _, truth = scene
    labels = truth.labels()
    count, parts = cv2.connectedComponents((labels > 0).astype(np.uint8), connectivity=8)
    assert count - 1 == len(truth.frame())
    pairs = set(zip(parts[labels > 0].tolist(), labels[labels > 0].tolist(), strict=True))
    assert len(pairs) == count - 1


def test_ids_carry_the_class_and_fit_the_bytes(scene):
    _, truth = scene
    box = (200, 300, 900, 800)
    red, green, blue = draw_ids(truth, box).astype(np.int32)
    labels = truth.labels(box)
    assert np.array_equal(red << 16 | green << 8 | blue, labels)
    frame = truth.frame()
    assert np.array_equal(truth.label_of(frame["id"].to_numpy()), frame["class_id"])
    assert frame["id"].max() <= truth.last_instance()


def test_density_and_classes(tmp_path):
    truth = generate_scene(tmp_path / "a.tif", height=3000, width=3000, seed=1, density=20, oracle_ids=True)
    frame = truth.frame()
    assert 0.8 * 180 < len(frame) < 1.2 * 180
    assert set(frame["class_name"]) == set(TEN_CLASSES)
    only = generate_scene(tmp_path / "b.tif", height=900, width=900, classes=("vehicle", "ship"), oracle_ids=True)
    assert set(only.frame()["class_name"]) <= {"vehicle", "ship"}
    assert len(only.frame()) > 5


def test_empty_density_gives_no_object(tmp_path):
    truth = generate_scene(tmp_path / "a.tif", height=200, width=200, density=0, truth=tmp_path / "t.gpkg")
    assert len(truth.frame()) == 0
    assert len(geopandas.read_file(tmp_path / "t.gpkg")) == 0


def test_georeference(tmp_path):
    path = tmp_path / "a.tif"
    truth = generate_scene(path, height=64, width=96, gsd=0.25, crs="EPSG:32719", origin=(1000.0, 2000.0), tile=64)
    with rasterio.open(path) as source:
        assert source.crs == "EPSG:32719"
        assert source.transform == truth.affine
        assert tuple(source.bounds) == (1000.0, 1984.0, 1024.0, 2000.0)
        assert source.profile["tiled"]
        assert source.profile["compress"] == "deflate"
        assert source.block_shapes[0] == (64, 64)


def test_objects_stand_out_of_the_ground_where_the_truth_says(scene):
    """An airplane is brighter than the apron around it; a shifted truth would not be."""
    _, truth = scene
    found = [thing for thing in truth.objects() if truth.classes[thing.label] == "airplane"]
    assert len(found) >= 3
    for thing in found:
        x0, y0, x1, y1 = thing.box
        if min(x0, y0) < 4 or x1 > truth.width - 4 or y1 > truth.height - 4:
            continue
        grey = draw_scene(truth, (x0 - 4, y0 - 4, x1 + 4, y1 + 4)).mean(0)
        mask = np.pad(thing.mask, 4)
        inner = cv2.erode(mask.astype(np.uint8), np.ones((3, 3))).astype(bool)
        rim = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5))).astype(bool) & ~mask
        assert grey[inner].mean() > grey[rim].mean() + 12


def test_mask_of_a_square_is_its_pixels():
    square = np.array([[-3.0, -2], [3, -2], [3, 2], [-3, 2]])
    mask = fill_mask(Frame(10, 8, 0.0), (0, 0, 20, 16), [square])
    expected = np.zeros((16, 20), bool)
    expected[6:10, 7:13] = True
    assert np.array_equal(mask, expected)


def test_mask_keeps_one_piece_without_holes():
    ring = [np.array([[-6.0, -6], [6, -6], [6, -4], [-6, -4]]), np.array([[-6.0, 4], [6, 4], [6, 6], [-6, 6]]),
            np.array([[-6.0, -6], [-4, -6], [-4, 6], [-6, 6]]), np.array([[4.0, -6], [6, -6], [6, 6], [4, 6]]),
            np.array([[8.0, 8], [9, 8], [9, 9], [8, 9]])]  # fmt: skip
    mask = fill_mask(Frame(12, 12, 0.0), (0, 0, 24, 24), ring)
    expected = np.zeros((24, 24), bool)
    expected[6:18, 6:18] = True
    assert np.array_equal(mask, expected)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"height": 0, "width": 5}, "height"),
        ({"height": 5, "width": 5, "classes": ("zeppelin",)}, "zeppelin"),
        ({"height": 5, "width": 5, "block": 100}, "multiple of 16"),
        ({"height": 300_000, "width": 300_000}, "24 bits"),
    ],
)
def test_wrong_options_are_refused_before_a_file_appears(tmp_path, options, words):
    with pytest.raises(UsageError, match=words):
        generate_scene(tmp_path / "a.tif", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory of one process needs Linux's /proc")
def test_memory_stays_small(tmp_path):
    """8192 x 8192 x 3 bytes are 192 MiB: much more than the growth allowed here."""
    # VmHWM and not ru_maxrss: the latter starts at the parent's size.
    code = """
import re, sys
from pathlib import Path
from rsgeoseg.testing.scenes import generate_scene
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
generate_scene(sys.argv[1], height=512, width=512, oracle_ids=True, truth=sys.argv[1] + ".gpkg")
before = peak()
generate_scene(sys.argv[1], height=8192, width=8192, oracle_ids=True, truth=sys.argv[1] + ".gpkg")
print(before, peak())
"""
    command = [sys.executable, "-c", code, str(tmp_path / "a.tif")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    before, after = (int(word) / 1024 for word in done.stdout.split())
    assert after < 350
    assert after - before < 80


def test_the_example_is_what_its_script_makes():
    example = ROOT / "examples" / "harbour_town.tif"
    if not example.exists():
        pytest.skip("examples/ is not part of this copy")
    assert example.stat().st_size < 3_000_000
    frame = geopandas.read_file(example.with_name("harbour_town_truth.gpkg"))
    assert set(frame["class_name"]) == set(TEN_CLASSES)
    with rasterio.open(example) as source:
        assert source.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert source.crs == frame.crs == "EPSG:32631"
        assert source.overviews(1) == [2, 4]
        stored = source.read().astype(int)
        truth = SceneTruth(example, *source.shape, 20, 20.0, TEN_CLASSES, source.transform, "EPSG:32631")
    window = (1200, 700, 1400, 900)
    drawn = draw_scene(truth, window).astype(int)
    assert np.abs(drawn - stored[:, 700:900, 1200:1400]).mean() < 4  # JPEG's loss
    assert truth.frame()["id"].tolist() == frame["id"].tolist()
