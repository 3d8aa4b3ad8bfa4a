"""Training and validation share no pixel and no object, whatever the scenes."""

import geopandas as gpd
import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasters import UTM, write_raster

from rsgeoseg.datasets.geo_instances import GeoInstances
from rsgeoseg.datasets.split import Site, split_sites
from rsgeoseg.errors import UsageError
from rsgeoseg.geo.windows import Box


def make_site(rng, count, width, height, classes, largest=40):
    corner = rng.uniform(0, (width, height), (count, 2))
    boxes = np.column_stack([corner, np.minimum(corner + rng.uniform(2, largest, (count, 2)), (width, height))])
    return Site(
        name=str(rng.integers(1e9)), width=width, height=height, boxes=boxes, labels=rng.integers(0, classes, count)
    )


def objects_in(site, box):
    if box is None:
        return np.zeros(len(site.boxes), bool)
    x0, y0, x1, y1 = site.boxes.T
    return (x0 < box.x1) & (x1 > box.x0) & (y0 < box.y1) & (y1 > box.y0)


@given(
    seed=st.integers(0, 10_000),
    count=st.integers(5, 60),
    width=st.integers(200, 3000),
    height=st.integers(200, 3000),
    share=st.sampled_from([0.1, 0.2, 0.35]),
)
@settings(max_examples=60, deadline=None)
def test_a_line_parts_pixels_and_objects(seed, count, width, height, share):
    rng = np.random.default_rng(seed)
    site = make_site(rng, count, width, height, 3)
    (sides,) = split_sites([site], share, 512)
    assert sides.train is not None
    assert sides.val is not None
    assert sides.train.intersection(sides.val) is None
    assert Box(0, 0, width, height).contains(sides.train)
    assert Box(0, 0, width, height).contains(sides.val)
    train, val = objects_in(site, sides.train), objects_in(site, sides.val)
    assert not (train & val).any()
    assert train.any()
    assert val.any()
    order = rng.permutation(count)
    again = Site(name="x", width=width, height=height, boxes=site.boxes[order], labels=site.labels[order])
    assert split_sites([again], share, 512) == [sides]


@pytest.mark.parametrize("seed", range(8))
def test_the_share_is_near_what_was_wanted(seed):
    site = make_site(np.random.default_rng(seed), 200, 4000, 3000, 4)
    (sides,) = split_sites([site], 0.2, 512)
    train, val = objects_in(site, sides.train), objects_in(site, sides.val)
    assert abs(val.mean() - 0.2) < 0.08
    assert train.mean() + val.mean() > 0.9  # few are lost between
    assert set(site.labels[train]) == set(site.labels[val]) == {0, 1, 2, 3}


def test_a_line_between_the_objects_loses_none():
    # 8 objects in the left three quarters, 2 at the right: the only clean line with a share of 0.2
    boxes = np.array(
        [[20 + 90 * i, 50, 60 + 90 * i, 350] for i in range(8)] + [[800, 10, 990, 190], [800, 210, 990, 390]]
    )
    site = Site(name="s", width=1000, height=400, boxes=boxes.astype(float), labels=np.zeros(10, int))
    (sides,) = split_sites([site], 0.2, 512)
    assert objects_in(site, sides.val).tolist() == [False] * 8 + [True] * 2
    assert objects_in(site, sides.train).tolist() == [True] * 8 + [False] * 2


def test_thirty_polygons_in_a_small_scene_give_a_validation_set(tmp_path):
    rng = np.random.default_rng(1)
    site = make_site(rng, 30, 600, 500, 1)
    (sides,) = split_sites([site], 0.2, 512)
    assert 3 <= objects_in(site, sides.val).sum() <= 10
    assert objects_in(site, sides.train).sum() >= 15


def test_what_cannot_be_parted_is_refused():
    whole = Site(name="s", width=300, height=300, boxes=np.array([[0, 0, 300.0, 300]] * 3), labels=np.zeros(3, int))
    with pytest.raises(UsageError, match="cannot be split by place"):
        split_sites([whole], 0.2, 512)
    single = Site(name="s", width=300, height=300, boxes=np.array([[0, 0, 30.0, 30]]), labels=np.zeros(1, int))
    with pytest.raises(UsageError, match="1 objects cannot be split"):
        split_sites([single], 0.2, 512)
    with pytest.raises(UsageError, match="share of 1"):
        split_sites([whole], 1, 512)


def test_many_scenes_are_held_out_whole_and_beside_each_other():
    rng = np.random.default_rng(0)
    sites = []
    for i in range(10):
        one = make_site(rng, 10, 512, 512, 2)
        sites.append(
            Site(name=f"s{i}", width=512, height=512, boxes=one.boxes, labels=one.labels, centre=(5 + i / 100, 48))
        )
    sides = split_sites(sites, 0.2, 512)
    held = {site.name for site, side in zip(sites, sides, strict=True) if side.val is not None}
    assert held in ({"s0", "s1"}, {"s8", "s9"})
    assert all((side.train is None) != (side.val is None) for side in sides)
    order = rng.permutation(10)
    again = split_sites([sites[i] for i in order], 0.2, 512)
    assert again == [sides[i] for i in order]


def write_scene(path, x=0, y=0, side=256, gsd=0.5):
    values = np.random.default_rng(0).integers(1, 255, (3, side, side)).astype(np.uint8)
    return write_raster(path, values, affine=Affine(gsd, 0, 500_000 + x * gsd, 0, -gsd, 5_400_000 - y * gsd))


def polygons_at(boxes, gsd=0.5):
    world = [
        shapely.box(500_000 + a * gsd, 5_400_000 - d * gsd, 500_000 + c * gsd, 5_400_000 - b * gsd)
        for a, b, c, d in boxes
    ]
    return gpd.GeoDataFrame({"number": range(len(world))}, geometry=world, crs=UTM)


def shown(data, origins):
    """World pixels that the chips of a dataset cover, and centres of the objects in them."""
    covered = set()
    for image in data.images:
        stem, y, x = image.name.rsplit("_", 2)
        x0, y0 = origins[stem][0] + int(x[1:]), origins[stem][1] + int(y[1:])
        ys, xs = np.mgrid[y0 : y0 + image.height, x0 : x0 + image.width]
        covered |= set((ys * 100_000 + xs).ravel().tolist())
    return covered


@pytest.mark.parametrize("overlap", [0, 24])
def test_chips_of_one_scene_are_apart(tmp_path, overlap):
    rng = np.random.default_rng(4)
    corners = rng.integers(0, 470, (60, 2))
    polygons = polygons_at([(x, y, x + 20, y + 20) for x, y in corners.tolist()])
    path = write_scene(tmp_path / "a.tif", side=500)
    how = {"chip_size": 96, "overlap": overlap}
    train = GeoInstances(path, polygons, split="train", **how)
    val = GeoInstances(path, polygons.sample(frac=1, random_state=1), split="val", **how)
    origins = {"a": (0, 0)}
    ground, held = shown(train, origins), shown(val, origins)
    assert not ground & held
    for x, y in corners.tolist():  # no object has pixels in both
        pixels = {(y + j) * 100_000 + x + i for j in range(20) for i in range(20)}
        assert not (pixels & ground and pixels & held)
    assert len(val) >= 4


def test_scenes_that_overlap_share_nothing(tmp_path):
    """Five scenes in a row, each over a quarter of the next, with an object on each seam."""
    paths, origins = [], {}
    for i in range(6):
        paths.append(write_scene(tmp_path / f"s{i}.tif", x=192 * i))
        origins[f"s{i}"] = (192 * i, 0)
    rng = np.random.default_rng(0)
    boxes = [
        (192 * i + a, b, 192 * i + a + 12, b + 12) for i in range(6) for a, b in rng.integers(70, 180, (6, 2)).tolist()
    ]
    boxes += [(192 * i + 10, 20, 192 * i + 50, 40) for i in range(1, 6)]
    polygons = polygons_at(boxes)
    train = GeoInstances(paths, polygons, split="train", chip_size=128)
    val = GeoInstances(paths[::-1], polygons, split="val", chip_size=128)
    assert not shown(train, origins) & shown(val, origins)
    assert len(train) > len(val) > 0
    assert GeoInstances(paths[::-1], polygons, split="train", chip_size=128).to_coco() == train.to_coco()


def test_neighbouring_scenes_share_no_object(tmp_path):
    """An object across the seam of two scenes of which one is held out is in validation alone."""
    paths = [write_scene(tmp_path / f"s{i}.tif", x=256 * i) for i in range(5)]
    boxes = [(256 * i + 100 + d, 60, 256 * i + 110 + d, 80) for i in range(5) for d in (0, 30, 60)]
    across = [(256 * i - 20, 200, 256 * i + 20, 240) for i in range(1, 5)]
    polygons = polygons_at(boxes + across)
    train = GeoInstances(paths, polygons, split="train", chip_size=128)
    val = GeoInstances(paths, polygons, split="val", chip_size=128)
    scenes = {image.name[:2] for image in val.images}
    assert scenes in ({"s0"}, {"s4"})
    near = "s3_y000128_x000128" if scenes == {"s4"} else "s1_y000128_x000000"
    assert near not in {image.name for image in train.images}
    assert near in {image.name for image in GeoInstances(paths, polygons, chip_size=128).images}
