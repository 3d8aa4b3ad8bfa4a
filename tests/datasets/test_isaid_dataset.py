"""iSAID: masks decoded, whole images cut as the devkit does, tiles on disk equal to those cut on the fly."""

import os
import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from rsgeoseg.datasets.instances import count_by_class
from rsgeoseg.datasets.isaid import ISAID, tile_dataset
from rsgeoseg.datasets.isaid_masks import COLOURS, VOC_COLOURS, decode_colours
from rsgeoseg.errors import OutputError, UsageError

SHARED = Path(os.environ.get("RSGEOSEG_SHARED_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
SAMPLE = SHARED / "isaid_sample"
SHIP, PLANE = COLOURS[ISAID.classes.index("ship")], COLOURS[ISAID.classes.index("plane")]


def write(path, rgb):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", np.ascontiguousarray(rgb[..., ::-1]))[1].tobytes())


def picture(folder, stem, height, width, objects, *, seed=0, beside=True, masks=(None, None)):
    """Write an image and its masks; objects are (y slice, x slice, colour, R G B of the id)."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    colours, ids = (np.zeros((height, width, 3), np.uint8) for _ in range(2))
    for ys, xs, colour, number in objects:
        colours[ys, xs], ids[ys, xs] = colour, number
    write(folder / "images" / f"{stem}.png", image)
    places = (
        (folder / "images",) * 2 if beside else (folder / "Semantic_masks/images", folder / "Instance_masks/images")
    )
    write(places[0] / f"{stem}_instance_color_RGB.png", colours if masks[0] is None else masks[0])
    write(places[1] / f"{stem}_instance_id_RGB.png", ids if masks[1] is None else masks[1])
    return image, decode_colours(ids)


def harbour(root, *, beside=True):
    """A whole image of 60 x 50 pixels; the second plane has two parts and the ship lies across the tiles."""
    objects = [
        (slice(2, 6), slice(2, 6), PLANE, (1, 2, 3)),
        (slice(30, 33), slice(40, 50), SHIP, (0, 0, 9)),
        (slice(10, 12), slice(4, 6), PLANE, (200, 0, 0)),
        (slice(50, 52), slice(4, 6), PLANE, (200, 0, 0)),
    ]
    return picture(root / "train", "P0001", 60, 50, objects, beside=beside)


def test_an_id_is_red_and_256_green_and_65536_blue():
    rgb = np.array([[(0, 0, 0), (255, 0, 0), (1, 2, 3), (255, 255, 255)]], np.uint8)
    assert decode_colours(rgb).tolist() == [[0, 255, 1 + 2 * 256 + 3 * 65536, 2**24 - 1]]


def test_classes_are_in_the_devkits_order():
    assert len(ISAID.classes) == len(COLOURS) == len(VOC_COLOURS) == 15
    assert len({*COLOURS, *VOC_COLOURS}) == 30
    assert COLOURS[ISAID.classes.index("Small_Vehicle")] == (0, 0, 127)
    assert COLOURS[ISAID.classes.index("Harbor")] == (0, 100, 155)
    # PASCAL VOC's map spreads the bits of the class id over the channels, highest first
    ids = np.arange(1, 16)
    channels = [sum(((ids >> (3 * bit + band) & 1) << (7 - bit)) for bit in range(2)) for band in range(3)]
    assert [tuple(colour) for colour in np.stack(channels, 1).tolist()] == list(VOC_COLOURS)


@pytest.mark.parametrize("beside", [True, False])
def test_a_whole_image_is_read_in_both_layouts(tmp_path, beside):
    image, ids = harbour(tmp_path, beside=beside)
    dataset = ISAID(tmp_path, tile_size=100, overlap=20)
    assert len(dataset) == 1
    labelled = dataset.labelled(0)
    assert (labelled.name, labelled.width, labelled.height) == ("P0001.png", 50, 60)
    assert [dataset.classes[label] for label in labelled.labels] == ["plane", "plane", "ship"]  # by id
    np.testing.assert_array_equal(labelled.read(), image)
    for mask, number in zip(labelled.masks(), sorted(set(ids[ids > 0].tolist())), strict=True):
        np.testing.assert_array_equal(mask, ids == number)
    assert labelled.cut.tolist() == [False, False, True]  # the ship touches the right edge
    assert count_by_class(dataset)["plane"] == 2


def test_objects_cut_by_tiles_are_marked(tmp_path):
    image, ids = harbour(tmp_path)
    dataset = ISAID(tmp_path, tile_size=40, overlap=10)
    tiles = {item.name: item for item in map(dataset.labelled, range(len(dataset)))}
    assert list(tiles) == [
        "P0001_0_40_0_40.png",
        "P0001_0_40_10_50.png",
        "P0001_20_60_0_40.png",
        "P0001_20_60_10_50.png",
    ]
    upper_left = tiles["P0001_0_40_0_40.png"]
    # of the plane with two parts only one is in the tile, though nothing touches the tile's edge
    assert upper_left.labels.tolist() == [13, 13]
    assert upper_left.cut.tolist() == [True, False]
    for name, tile in tiles.items():
        y0, y1, x0, x1 = (int(part) for part in name.removesuffix(".png").split("_")[1:])
        np.testing.assert_array_equal(tile.read(), image[y0:y1, x0:x1])
        np.testing.assert_array_equal(tile.masks().sum(0), ids[y0:y1, x0:x1] > 0)
    assert len({tile.image_id for tile in tiles.values()}) == 4


def test_a_sample_has_torchgeos_keys_and_survives_pickling(tmp_path):
    harbour(tmp_path)
    sample = pickle.loads(pickle.dumps(ISAID(tmp_path, tile_size=40, overlap=10)))[0]
    assert sample["image"].shape == (3, 40, 40)
    assert sample["mask"].shape == (2, 40, 40)
    assert sample["bbox_xyxy"].tolist() == [[4, 10, 6, 12], [2, 2, 6, 6]]


def test_written_tiles_are_those_cut_on_the_fly(tmp_path):
    harbour(tmp_path / "whole")
    picture(tmp_path / "whole/train", "P0002", 20, 90, [(slice(3, 9), slice(60, 70), SHIP, (7, 0, 0))], seed=1)
    assert tile_dataset(tmp_path / "whole", tmp_path / "tiles", tile_size=40, overlap=10) == 5
    assert sorted(path.name for path in (tmp_path / "tiles/train/images").glob("P0001_0_40_0_40*")) == [
        "P0001_0_40_0_40.png",
        "P0001_0_40_0_40_instance_color_RGB.png",
        "P0001_0_40_0_40_instance_id_RGB.png",
    ]
    assert [path.name for path in (tmp_path / "tiles").iterdir()] == ["train"]
    flying = ISAID(tmp_path / "whole", tile_size=40, overlap=10)
    written = ISAID(tmp_path / "tiles", tile_size=40, overlap=10)
    assert len(flying) == len(written) == 5
    for left, right in zip(map(flying.labelled, range(5)), map(written.labelled, range(5)), strict=True):
        assert (left.name, left.width, left.height) == (right.name, right.width, right.height)
        assert left.labels.tolist() == right.labels.tolist()
        np.testing.assert_array_equal(left.masks(), right.masks())
        np.testing.assert_array_equal(left.read(), right.read())


def test_written_tiles_never_replace_others(tmp_path):
    harbour(tmp_path / "whole")
    (tmp_path / "tiles/train").mkdir(parents=True)
    (tmp_path / "tiles/train/mine.txt").write_text("keep")
    with pytest.raises(OutputError, match="exists"):
        tile_dataset(tmp_path / "whole", tmp_path / "tiles")
    assert [path.name for path in (tmp_path / "tiles").rglob("*")] == ["train", "mine.txt"]


def test_a_failed_tiling_leaves_nothing(tmp_path):
    harbour(tmp_path / "whole")
    picture(tmp_path / "whole/train", "P0002", 90, 90, [], masks=(None, np.zeros((80, 90, 3), np.uint8)))
    with pytest.raises(UsageError, match=r"P0002_instance_id_RGB.png: is 90 x 80, its image 90 x 90"):
        tile_dataset(tmp_path / "whole", tmp_path / "tiles", tile_size=40, overlap=10)
    assert list((tmp_path / "tiles").iterdir()) == []


def test_test_images_are_tiled_but_not_trained_on(tmp_path):
    write(tmp_path / "test/images/P0006.png", np.zeros((50, 60, 3), np.uint8))
    assert tile_dataset(tmp_path, tmp_path / "tiles", split="test", tile_size=40, overlap=10) == 4
    assert len(list((tmp_path / "tiles/test/images").iterdir())) == 4
    with pytest.raises(UsageError, match="held back"):
        ISAID(tmp_path, "test")


def defect_cases():
    blank = np.zeros((20, 20, 3), np.uint8)
    one_class, two_classes, odd, one_id = blank.copy(), blank.copy(), blank.copy(), blank.copy()
    one_id[5:9, 5:9] = (4, 0, 0)
    one_class[5:9, 5:9] = SHIP
    two_classes[5:9, 5:7], two_classes[5:9, 7:9] = SHIP, PLANE
    odd[5:9, 5:9] = (1, 2, 3)
    yield "two classes", two_classes, one_id, r"1 instances have several classes .*id 4"
    yield "unknown colour", odd, one_id, r"colours of no class of iSAID: \(1, 2, 3\)"
    yield "no id", one_class, blank, "16 pixels have an instance but no class"
    yield "no class", blank, one_id, "16 pixels have an instance but no class"
    yield "masks differ", one_class[:15], one_id, "is 20 x 20, but .* 20 x 15"
    yield "image differs", one_class[:15], one_id[:15], "is 20 x 15, its image 20 x 20"


@pytest.mark.parametrize(("colours", "ids", "message"), [case[1:] for case in defect_cases()])
def test_defects_are_refused_and_can_be_left_out(tmp_path, colours, ids, message):
    harbour(tmp_path)
    picture(tmp_path / "train", "P0003", 20, 20, [], masks=(colours, ids))
    with pytest.raises(UsageError, match=message) as caught:
        ISAID(tmp_path).labelled(1)
    assert "P0003_instance" in str(caught.value)
    assert len(ISAID(tmp_path, leave_out=["P0003"])) == 1


def test_a_tile_of_another_size_than_its_name_is_refused(tmp_path):
    picture(tmp_path / "train", "P0003_0_20_0_20", 20, 15, [])
    with pytest.raises(UsageError, match="15 x 20"):
        ISAID(tmp_path).labelled(0)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UsageError, match="train/images"):
        ISAID(tmp_path)
    harbour(tmp_path, beside=False)
    (tmp_path / "train/Instance_masks/images/P0001_instance_id_RGB.png").unlink()
    with pytest.raises(UsageError, match=r"1 of 2 .*Instance_masks/images/P0001_instance_id_RGB.png"):
        ISAID(tmp_path)
    with pytest.raises(UsageError, match="train, val, test"):
        ISAID(tmp_path, "dev")
    with pytest.raises(UsageError, match="captain-whu"):
        ISAID(tmp_path, download=True)


def test_real_tiles_in_the_devkits_naming(tmp_path):
    if not SAMPLE.is_dir():
        pytest.skip(f"REAL TILES NOT TESTED: {SAMPLE} is absent; set RSGEOSEG_SHARED_DATA to the folder of real data")
    (tmp_path / "train").mkdir()
    shutil.copytree(SAMPLE, tmp_path / "train/images")
    dataset = ISAID(tmp_path)
    few, many = map(dataset.labelled, range(len(dataset)))
    # counted in a picture of the outlines: ten ships in the river, none at an edge
    assert (few.name, len(few.shapes), int(few.cut.sum())) == ("P0094_0_800_3000_3800.png", 10, 0)
    assert (many.name, len(many.shapes), int(many.cut.sum())) == ("P0119_2400_3200_6000_6800.png", 122, 0)
    assert count_by_class(dataset)["ship"] == 132
    # pixels of the class mask, which is another file than that of the instances
    assert int(few.masks().sum()) == 5729
    assert int(many.masks().sum()) == 16454
    # the longest ship lies at the quay
    assert max(few.masks().sum((1, 2)).tolist()) == 2298
    assert few.read().shape == (800, 800, 3)


def test_constructing_reads_headers_and_a_picture_is_decoded_once(tmp_path):
    harbour(tmp_path)
    dataset = ISAID(tmp_path, tile_size=40, overlap=10)
    dataset.labelled(0).read()
    for path in (tmp_path / "train/images").iterdir():
        path.write_bytes(b"no longer an image")
    assert dataset.labelled(3).read().shape == (40, 40, 3)

    harbour(tmp_path / "other")
    (tmp_path / "other/train/images/P0001_instance_id_RGB.png").write_bytes(b"not an image")
    unread = ISAID(tmp_path / "other", tile_size=40, overlap=10)
    with pytest.raises(UsageError, match=r"P0001_instance_id_RGB.png: cannot be read"):
        unread.labelled(0)
