import json
import logging
import pickle

import geopandas as gpd
import numpy as np
import pytest
import shapely
from affine import Affine
from rasters import UTM, write_raster
from shapely.affinity import translate

from rsgeoseg.datasets.geo_instances import SLIVER_PIXELS, GeoInstances, to_shape
from rsgeoseg.datasets.labelled import LabelledImage
from rsgeoseg.errors import SceneError, UsageError
from rsgeoseg.geo.scene import Scene
from rsgeoseg.testing.scenes import generate_scene

GSD = 0.5
AFFINE = Affine(GSD, 0, 500_000, 0, -GSD, 5_400_000)


def world(shape):
    """Pixels to the world of `AFFINE`."""
    return shapely.transform(shape, lambda xy: np.column_stack([500_000 + xy[:, 0] * GSD, 5_400_000 - xy[:, 1] * GSD]))


def frame(shapes, crs=UTM, **columns):
    return gpd.GeoDataFrame(columns, geometry=[None if s is None else world(s) for s in shapes], crs=crs)


def scene(path, height=256, width=256, seed=0, dtype=np.uint8, top=255, **options):
    values = np.random.default_rng(seed).integers(1, top, (3, height, width)).astype(dtype)
    return write_raster(path, values, **options)


@pytest.fixture
def raster(tmp_path):
    return scene(tmp_path / "ground.tif")


def warnings_of(caplog):
    return " | ".join(record.getMessage() for record in caplog.records)


@pytest.fixture
def log(caplog):
    logging.getLogger("rsgeoseg").propagate = True
    caplog.set_level(logging.WARNING, "rsgeoseg")
    return caplog


def test_chips_show_the_truth_pixel_by_pixel(tmp_path):
    truth = generate_scene(tmp_path / "t.tif", height=500, width=700, seed=3, density=40, truth=tmp_path / "t.gpkg")
    data = GeoInstances(tmp_path / "t.tif", tmp_path / "t.gpkg", class_field="class_name", chip_size=256, overlap=32)
    objects = {o.instance: o for o in truth.objects()}
    read = Scene.open(tmp_path / "t.tif")
    seen = set()
    for i in range(len(data)):
        image = data.labelled(i)
        y, x = (int(part[1:]) for part in image.name.split("_")[-2:])
        ids = truth.labels((x, y, x + image.width, y + image.height))
        drawn = np.zeros_like(ids)
        for mask, label in zip(image.masks(), image.labels, strict=True):
            (number,) = np.unique(ids[mask > 0])
            assert data.classes[label] == truth.classes[objects[number].label]
            drawn[mask > 0] = number
            seen.add(number)
        missing = ids[(drawn != ids)]
        for number in np.unique(missing):  # only slivers are not labelled
            part = (ids == number).sum()
            assert part < SLIVER_PIXELS
            assert part < 0.1 * objects[number].mask.sum()
        whole = read.read(shift_box(x, y, image))
        np.testing.assert_array_equal(image.read(), np.moveaxis(whole.image, 0, -1))
    assert seen == set(objects)


def shift_box(x, y, image):
    from rsgeoseg.geo.windows import Box

    return Box(x, y, x + image.width, y + image.height)


def test_holes_are_not_objects_and_parts_are_one(raster):
    ring = shapely.box(20, 20, 60, 60).difference(shapely.box(30, 30, 50, 50))
    pair = shapely.MultiPolygon([shapely.box(100, 20, 110, 30), shapely.box(120, 20, 130, 30)])
    data = GeoInstances(raster, frame([ring, pair]))
    sample = data[0]
    assert sample["mask"].sum((1, 2)).tolist() == [40 * 40 - 20 * 20, 200]
    assert sample["mask"][0, 40, 40] == 0
    assert sample["bbox_xyxy"].tolist() == [[20, 20, 60, 60], [100, 20, 130, 30]]
    shapes = data.labelled(0).shapes
    assert isinstance(shapes[0], dict)  # rings cannot hold holes
    assert isinstance(shapes[1], tuple)


def test_parts_at_a_chips_edge_are_cut_and_slivers_left_out(raster):
    # chips of 128: x 0-128 and 128-256; 25 % of the first lies right, 5 % of the second, too few pixels to count
    quarter = shapely.box(98, 10, 138, 40)
    sliver = shapely.box(90, 60, 130, 100)
    inside = shapely.box(10, 10, 30, 30)
    data = GeoInstances(raster, frame([quarter, sliver, inside]), chip_size=128)
    left, right = data.labelled(0), data.labelled(1)
    assert left.masks().sum((1, 2)).tolist() == [30 * 30, 38 * 40, 400]
    assert left.cut.tolist() == [True, True, False]
    assert right.masks().sum((1, 2)).tolist() == [10 * 30]
    assert right.cut.tolist() == [True]


def test_a_field_larger_than_a_chip_is_labelled_everywhere(raster):
    data = GeoInstances(raster, frame([shapely.box(-500, -500, 900, 900)]), chip_size=64)
    assert len(data) == 16
    assert all(data.labelled(i).masks().all() and data.labelled(i).cut.all() for i in range(16))


def test_without_an_area_chips_without_objects_are_left_out(raster):
    one = frame([shapely.box(10, 10, 30, 30)])
    assert len(GeoInstances(raster, one, chip_size=64)) == 1
    assert len(GeoInstances(raster, one, chip_size=64, negatives=3)) == 4


def test_an_area_keeps_empty_chips_and_hides_the_rest(raster):
    aoi = world(shapely.box(0, 0, 128, 200))
    shapes = [shapely.box(10, 10, 30, 30), shapely.box(100, 100, 160, 140), shapely.box(200, 10, 230, 40)]
    data = GeoInstances(raster, frame(shapes), chip_size=64, aoi=aoi)
    assert all(image.width == 64 for image in data.images)
    assert len(data) == 2 * 4
    area = sum(data.labelled(i).masks().sum() for i in range(len(data)))
    # Rows of chips begin at 0, 45, 90 and 136. Of the second object x 100-128 counts: rows 100-109, all, and 136-140,
    # which is a sliver.
    assert area == 20 * 20 + 28 * 9 + 28 * 40
    slanted = world(shapely.Polygon([(0, 0), (128, 0), (0, 128)]))
    image = GeoInstances(raster, frame(shapes), chip_size=128, aoi=slanted).labelled(0)
    assert not image.read()[100, 100].any()
    assert image.read()[10, 10].all()


def test_every_scene_places_the_polygons_in_its_own_crs(tmp_path):
    first = scene(tmp_path / "a.tif")
    second = scene(tmp_path / "b.tif", affine=Affine(GSD, 0, 500_200, 0, -GSD, 5_400_000))
    boxes = [shapely.box(20, 20, 60, 60), shapely.box(420, 30, 470, 60)]
    polygons = frame(boxes).to_crs("EPSG:4326")
    polygons.to_file(tmp_path / "p.geojson")
    data = GeoInstances([second, first], tmp_path / "p.geojson")
    assert [image.name for image in data.images] == ["a_y000000_x000000", "b_y000000_x000000"]
    assert data[0]["bbox_xyxy"].tolist() == [[20, 20, 60, 60]]
    assert data[1]["bbox_xyxy"].tolist() == [[20, 30, 70, 60]]
    other = data.scenes[0].grid.crs.to_wkt()
    assert "31N" in other


def test_a_rotated_scene(tmp_path):
    affine = Affine.translation(500_000, 5_400_000) * Affine.rotation(30) * Affine.scale(0.5, -0.5)
    path = scene(tmp_path / "r.tif", affine=affine)
    corner = shapely.box(10, 20, 50, 40)
    turned = shapely.transform(corner, lambda xy: np.array([affine * tuple(p) for p in xy]))
    data = GeoInstances(path, gpd.GeoDataFrame(geometry=[turned], crs=UTM))
    assert data[0]["mask"].sum() == 40 * 20
    assert data[0]["bbox_xyxy"].tolist() == [[10, 20, 50, 40]]


def test_without_any_crs_polygons_are_in_pixels(tmp_path):
    path = write_raster(tmp_path / "p.tif", np.ones((3, 64, 64), np.uint8), crs=None, affine=Affine.identity())
    data = GeoInstances(path, gpd.GeoDataFrame(geometry=[shapely.box(4, 8, 20, 30)]))
    assert data[0]["bbox_xyxy"].tolist() == [[4, 8, 20, 30]]


def test_one_stretch_for_all_chips_as_in_a_run(tmp_path):
    values = np.linspace(0, 4000, 3 * 256 * 256).reshape(3, 256, 256).astype(np.uint16)
    path = write_raster(tmp_path / "deep.tif", values)
    data = GeoInstances(path, frame([shapely.box(i, i, i + 30, i + 30) for i in (10, 100, 200)]), chip_size=128)
    whole = Scene.open(path)
    for image in data.images:
        y, x = (int(part[1:]) for part in image.name.split("_")[-2:])
        expected = whole.read(shift_box(x, y, image)).image
        np.testing.assert_array_equal(image.read(), np.moveaxis(expected, 0, -1))


def test_readers_travel_to_other_processes(raster):
    data = GeoInstances(raster, frame([shapely.box(10, 10, 30, 30)]), aoi=frame([shapely.box(0, 0, 100, 100)]))
    image = data.labelled(0)
    again = pickle.loads(pickle.dumps(image))
    assert isinstance(again, LabelledImage)
    np.testing.assert_array_equal(again.read(), image.read())
    assert len(pickle.dumps(image.reader)) < 20_000


def test_classes_are_sorted_or_as_asked(raster, log):
    boxes = [shapely.box(20 * i, 10, 20 * i + 10, 20) for i in range(4)]
    polygons = frame(boxes, kind=["roof", "ship", "roof", "car"], number=[10, 9, 10, 2])
    assert GeoInstances(raster, polygons, class_field="kind").classes == ("car", "roof", "ship")
    assert GeoInstances(raster, polygons, class_field="number").classes == ("2", "9", "10")
    some = GeoInstances(raster, polygons, class_field="kind", classes=["ship", "roof"])
    assert some.labelled(0).labels.tolist() == [1, 0, 1]
    assert "1 polygons of other classes" in warnings_of(log)
    assert GeoInstances(raster, polygons).classes == ("object",)
    assert GeoInstances(raster, polygons, classes=["thing"]).classes == ("thing",)


def test_rows_that_cannot_be_used_are_counted(raster, log):
    bow_tie = shapely.Polygon([(100, 100), (140, 140), (140, 100), (100, 140)])
    good = shapely.box(10, 10, 30, 30)
    shapes = [good, bow_tie, None, shapely.Polygon(), translate(good, 5000), shapely.box(10, 10, 30, 30.5)]
    data = GeoInstances(raster, frame(shapes))
    said = warnings_of(log)
    for words in ("2 rows without", "1 invalid", "1 of 4 polygons lie outside", "1 pairs of polygons"):
        assert words in said
    assert data[0]["mask"].shape[0] == 3
    assert data[0]["mask"][1].sum() > 700  # both wings of the bow tie


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda s: frame([shapely.box(9000, 0, 9010, 10)]), ["none of the 1 polygons", "CRS"]),
        (lambda s: frame([shapely.Point(1, 1), shapely.LineString([(0, 0), (9, 9)])]), ["1 Point", "1 LineString"]),
        (lambda s: frame([shapely.box(1, 1, 9, 9)], crs=None), ["no CRS", "Assign"]),
        (lambda s: frame([None]), ["holds no polygon"]),
        (lambda s: frame([shapely.Polygon([(1, 1), (5, 5), (1, 1)])]), ["no polygon has an area"]),
        (lambda s: frame([shapely.box(10.1, 10.1, 10.2, 10.2)]), ["slivers or smaller than a pixel"]),
    ],
)
def test_polygons_of_no_use_are_refused(raster, make, words):
    with pytest.raises((UsageError, SceneError)) as found:
        GeoInstances(raster, make(raster))
    for word in words:
        assert word in str(found.value)
    assert "\n" not in str(found.value)


def test_bad_classes_are_refused(raster):
    polygons = frame([shapely.box(1, 1, 9, 9), shapely.box(20, 1, 29, 9)], kind=["a", None], size=[1, 2])
    with pytest.raises(UsageError, match="no column typ; its columns are kind, size"):
        GeoInstances(raster, polygons, class_field="typ")
    with pytest.raises(UsageError, match="1 of 2 polygons have no kind"):
        GeoInstances(raster, polygons, class_field="kind")
    with pytest.raises(UsageError, match="no polygon is of class ship"):
        GeoInstances(raster, polygons, class_field="size", classes=["ship"])
    with pytest.raises(UsageError, match="no class field"):
        GeoInstances(raster, polygons, classes=["a", "b"])


def test_bad_files_are_refused(raster, tmp_path):
    (tmp_path / "no.gpkg").write_text("nothing")
    two = tmp_path / "two.gpkg"
    frame([shapely.box(1, 1, 9, 9)]).to_file(two, layer="roofs")
    frame([shapely.box(1, 1, 9, 9), shapely.box(20, 1, 29, 9)]).to_file(two, layer="ships")
    with pytest.raises(UsageError, match="cannot be read as a vector file"):
        GeoInstances(raster, tmp_path / "no.gpkg")
    with pytest.raises(SceneError, match="no such file"):
        GeoInstances(raster, tmp_path / "absent.gpkg")
    with pytest.raises(UsageError, match="layers roofs, ships"):
        GeoInstances(raster, two)
    with pytest.raises(UsageError, match="no layer cars"):
        GeoInstances(raster, two, layer="cars")
    assert GeoInstances(raster, two, layer="ships")[0]["mask"].shape[0] == 2
    with pytest.raises(UsageError, match="given twice"):
        GeoInstances([raster, raster], two, layer="ships")
    with pytest.raises(UsageError, match="no scene"):
        GeoInstances([], two, layer="ships")


@pytest.mark.parametrize("ending", ["gpkg", "shp", "geojson", "parquet", "fgb"])
def test_vector_formats(raster, tmp_path, ending):
    polygons = frame([shapely.box(10, 10, 30, 30)], kind=["roof"])
    path = tmp_path / f"p.{ending}"
    if ending == "parquet":
        polygons.to_parquet(path)
    else:
        polygons.to_file(path)
    data = GeoInstances(raster, path, class_field="kind")
    assert data[0]["mask"].sum() == 400
    assert data.classes == ("roof",)


def test_scenes_of_the_same_name_keep_apart(tmp_path):
    paths = []
    for i, folder in enumerate(("one", "two")):
        (tmp_path / folder).mkdir()
        paths.append(scene(tmp_path / folder / "s.tif", affine=Affine(GSD, 0, 500_000 + 200 * i, 0, -GSD, 5_400_000)))
    data = GeoInstances(paths, frame([shapely.box(10, 10, 30, 30), shapely.box(410, 10, 430, 30)]))
    assert len({image.name for image in data.images}) == 2
    assert len({image.image_id for image in data.images}) == 2


def test_a_shape_that_covers_no_pixel_is_none():
    assert to_shape(shapely.box(0.1, 0.1, 0.2, 0.2), 8, 8) is None


def test_the_document_is_json(raster):
    ring = shapely.box(20, 20, 60, 60).difference(shapely.box(30, 30, 50, 50))
    document = json.loads(json.dumps(GeoInstances(raster, frame([ring])).to_coco()))
    assert document["annotations"][0]["area"] == 1200
    assert document["annotations"][0]["bbox"] == [20, 20, 40, 40]
