"""Potsdam: regions of buildings and cars, tiles read by window, and the known defects of its labels."""

import numpy as np
import pytest
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from scipy import ndimage
from torchgeo.datasets import Potsdam2D

from rsgeoseg.datasets.potsdam import PotsdamInstances, decode_classes
from rsgeoseg.errors import UsageError

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
assert NotGeoreferencedWarning
BUILDING, CAR, TREE, BACKGROUND = (0, 0, 255), (255, 255, 0), (0, 255, 0), (255, 0, 0)
TEST_SPLIT = sorted(Potsdam2D.splits["test"])


def write(path, bands):
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = bands.shape
    with rasterio.open(path, "w", driver="GTiff", height=height, width=width, count=count, dtype=bands.dtype) as file:
        file.write(bands)


def pair(root, name, rgb_label, *, labels="5_Labels_all", image_size=None):
    height, width = image_size or rgb_label.shape[:2]
    image = np.random.default_rng(len(name)).integers(0, 256, (4, height, width), dtype=np.uint8)
    write(root / "4_Ortho_RGBIR" / f"{name}_RGBIR.tif", image)
    write(root / labels / f"{name}_label.tif", rgb_label.transpose(2, 0, 1))
    return image


def blank(height=8, width=8):
    return np.full((height, width, 3), BACKGROUND, np.uint8)


def street():
    """40 x 50 pixels with two houses, which meet at a corner, and two cars."""
    label = blank(40, 50)
    label[2:12, 2:12] = BUILDING
    label[12:20, 12:22] = BUILDING
    label[30:40, 30:36] = TREE
    label[25:28, 4:10] = CAR
    label[25:28, 40:46] = CAR
    return label


def city(root, label, *, first=TEST_SPLIT[0], **options):
    """The whole test split: one image with a label and 13 small blank ones."""
    image = pair(root, first, label, **options)
    for name in TEST_SPLIT:
        if name != first:
            pair(root, name, blank(), labels=options.get("labels", "5_Labels_all"))
    return image


@pytest.mark.parametrize("labels", ["5_Labels_all", "."])
def test_each_closed_region_is_an_object(tmp_path, labels):
    label = street()
    image = city(tmp_path, label, labels=labels)
    dataset = PotsdamInstances(tmp_path, "test", tile_size=64, overlap=0)
    assert len(dataset) == len(TEST_SPLIT) == 14
    labelled = dataset.labelled(0)
    assert labelled.name == TEST_SPLIT[0]
    np.testing.assert_array_equal(labelled.read(), image[:3].transpose(1, 2, 0))
    # the houses meet at a corner, so they are one region; then two cars
    assert labelled.labels.tolist() == [0, 1, 1]
    assert labelled.masks().sum((1, 2)).tolist() == [180, 18, 18]
    assert labelled.cut.tolist() == [False, False, False]
    assert PotsdamInstances(tmp_path, "test", tile_size=64, overlap=0, smallest=19).labelled(0).labels.tolist() == [0]


def test_tiles_have_the_regions_of_their_window(tmp_path):
    label = street()
    image = city(tmp_path, label)
    dataset = PotsdamInstances(tmp_path, "test", tile_size=24, overlap=8)
    tiles = [dataset.labelled(i) for i in range(len(dataset))]
    tiles = [tile for tile in tiles if tile.name.startswith(TEST_SPLIT[0] + "_")]
    assert len(tiles) == 2 * 3  # rows 0 and 16; columns 0, 16 and 32, shifted to 26
    for tile in tiles:
        y0, y1, x0, x1 = (int(part) for part in tile.name.split("_")[-4:])
        np.testing.assert_array_equal(tile.read(), image[:3, y0:y1, x0:x1].transpose(1, 2, 0))
        for number, colour in enumerate((BUILDING, CAR)):
            inside = (label[y0:y1, x0:x1] == colour).all(-1)
            _, count = ndimage.label(inside, np.ones((3, 3)))
            mine = tile.masks()[tile.labels == number]
            assert len(mine) == count
            np.testing.assert_array_equal(mine.any(0), inside)
    assert any(tile.cut.any() for tile in tiles)


def test_colours_are_torchgeos_classes():
    rgb = np.array([Potsdam2D.colormap], np.uint8)
    classes, unknown = decode_classes(rgb, rounded=False)
    assert (classes.tolist(), unknown) == ([list(range(6))], 0)


def test_rounding_by_hand():
    rgb = np.array([[(9, 222, 221), (225, 227, 227), (252, 255, 0), (88, 0, 255), (0, 0, 0), (255, 0, 255)]], np.uint8)
    classes, unknown = decode_classes(rgb, rounded=True)
    assert [Potsdam2D.classes[c] for c in classes[0, :3]] == ["Low Vegetation", "Impervious surfaces", "Car"]
    assert (classes[0, 3:].tolist(), unknown) == ([255, 255, 255], 3)
    assert decode_classes(rgb, rounded=False)[1] == 6


def test_unknown_colours_are_refused_with_file_and_count(tmp_path):
    label = street()
    label[0, :5] = (252, 255, 0)
    city(tmp_path, label)
    dataset = PotsdamInstances(tmp_path, "test", tile_size=64, overlap=0)
    with pytest.raises(UsageError, match=rf"{TEST_SPLIT[0]}_label.tif: 5 pixels .*\(252, 255, 0\)"):
        dataset.labelled(0)
    assert len(PotsdamInstances(tmp_path, "test", leave_out=[TEST_SPLIT[0]])) == 13


def test_the_two_labels_known_to_be_off_are_rounded(tmp_path):
    for name in Potsdam2D.splits["train"]:
        pair(tmp_path, name, blank())
    off = blank()
    off[2:4, 2:4] = (252, 255, 0)
    pair(tmp_path, "top_potsdam_6_7", off)
    dataset = PotsdamInstances(tmp_path, "train")
    found = {item.name: item.labels.tolist() for item in map(dataset.labelled, range(len(dataset)))}
    assert found.pop("top_potsdam_6_7") == [1]
    assert len(found) == 23
    assert not any(found.values())


def test_missing_and_unequal_files_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"4_Ortho_RGBIR"):
        PotsdamInstances(tmp_path)
    city(tmp_path, street(), image_size=(40, 48))
    with pytest.raises(UsageError, match="is 50 x 40, its image 48 x 40"):
        PotsdamInstances(tmp_path, "test")
    (tmp_path / "5_Labels_all" / f"{TEST_SPLIT[3]}_label.tif").unlink()
    with pytest.raises(UsageError, match=f"1 of 28 .*5_Labels_all/{TEST_SPLIT[3]}_label.tif"):
        PotsdamInstances(tmp_path, "test")
    with pytest.raises(UsageError, match=r"isprs\.org"):
        PotsdamInstances(tmp_path, download=True)
    with pytest.raises(UsageError, match=r"4_Ortho_RGBIR.zip: is missing"):
        PotsdamInstances(tmp_path, checksum=True)
