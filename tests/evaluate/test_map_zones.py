"""Maps of any tool, core and seams apart: strips, zones against pycocotools, columns, CRS and broken geometry."""

from __future__ import annotations

import contextlib
import io
import json
import logging

import geopandas
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from shapely.geometry import LineString, MultiPolygon, Point, Polygon, box

from rsgeoseg.errors import UsageError
from rsgeoseg.evaluate.coco import coco_scores
from rsgeoseg.evaluate.polygons import MapArea, ground_km2, polygon_metrics
from rsgeoseg.evaluate.seam_zones import place, seam_strips, touches_strip

NAMES = ("ship", "tank", "court")
STRIP = np.array([box(150, 0, 250, 400)], object)


def frame(shapes, names="ship", crs="EPSG:32631", **columns):
    classes = [names] * len(shapes) if isinstance(names, str) else names
    return geopandas.GeoDataFrame({"class_name": classes, **columns}, geometry=list(shapes), crs=crs)


def test_strips_are_what_two_chips_share():
    chips = [(0, 0, 100, 100), (80, 0, 180, 100), (0, 90, 100, 190), (80, 90, 180, 190)]
    strips = seam_strips(chips)
    bounds = sorted(strip.bounds for strip in strips)
    corner = (80, 90, 100, 100)
    assert bounds == sorted(
        [(80, 0, 100, 100), (0, 90, 100, 100), (80, 90, 180, 100), (80, 90, 100, 190), corner, corner]
    )
    assert len(seam_strips([(0, 0, 10, 10), (10, 0, 20, 10)])) == 0  # side by side is no overlap
    assert len(seam_strips([(0, 0, 10, 10)])) == 0


def test_touching_needs_shared_area():
    shapes = np.array([box(0, 0, 80, 10), box(0, 0, 80.5, 10), box(90, 0, 95, 10), box(200, 0, 210, 10)], object)
    strips = np.array([box(80, 0, 100, 100)], object)
    assert touches_strip(shapes, strips).tolist() == [False, True, True, False]
    assert not touches_strip(shapes, strips[:0]).any()


def test_strips_are_carried_through_the_whole_affine_and_crs():
    strip = np.array([box(10, 20, 30, 40)], object)
    (world,) = place(strip, (2, 0, 500000, 0, -2, 5400000), None, None)
    assert world.bounds == (500020, 5399920, 500060, 5399960)
    (turned,) = place(strip, (0, 1, 0, 1, 0, 0), None, None)  # x and y exchanged
    assert turned.bounds == (20, 10, 40, 30)
    series = geopandas.GeoSeries([world], crs=32631)
    (degrees,) = place(strip, (2, 0, 500000, 0, -2, 5400000), series.crs, geopandas.GeoSeries(crs=4326).crs)
    assert degrees.intersection(series.to_crs(4326)[0]).area / degrees.area == pytest.approx(1, abs=1e-6)


def test_zones_by_hand():
    truth = frame([box(0, 0, 10, 10), box(20, 0, 30, 10), box(145, 0, 155, 10), box(200, 0, 210, 10)])
    shapes = [box(0, 0, 10, 10), box(145, 0, 155, 10), box(160, 50, 170, 60), box(100, 50, 110, 60)]
    found = frame(shapes, score=[0.9, 0.8, 0.85, 0.95])
    core, seam = polygon_metrics(truth, found, strips=STRIP).zones
    # core: 2 true; the false alarm at x 100 is best, then the hit: precision 1/2 up to recall 1/2
    assert (core.name, core.n_truth, core.n_found, core.n_matched, core.recall) == ("core", 2, 2, 1, 0.5)
    assert core.ap == pytest.approx(51 / 101 / 2)
    # seam: 2 true; false alarm 0.85 before hit 0.8
    assert (seam.n_truth, seam.n_found, seam.n_matched, seam.recall) == (2, 2, 1, 0.5)
    assert seam.ap50 == pytest.approx(51 / 101 / 2)


def test_a_result_matched_across_zones_counts_in_none():
    truth = frame([box(140, 0, 150, 10), box(200, 0, 210, 10)])  # core (touches the strip's edge only), seam
    found = frame([box(140, 0, 152, 10), box(200, 0, 210, 10)], score=[0.9, 0.8])  # the first reaches into the strip
    core, seam = polygon_metrics(truth, found, strips=STRIP).zones
    assert (core.ap50, core.n_found, core.n_matched) == (1, 1, 1)
    assert (seam.ap50, seam.n_found, seam.n_matched) == (1, 1, 1)


def random_map(seed):
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 360, (70, 2))
    boxes = np.concatenate([corners, corners + rng.integers(4, 40, (70, 2))], axis=1)
    labels = rng.integers(0, 3, 70)
    kept = np.concatenate([np.flatnonzero(rng.random(70) < 0.9), np.arange(15)])
    again = boxes[kept] + rng.integers(-3, 4, (len(kept), 4))
    again = np.clip(again, 0, 400)
    again[:, 2:] = np.maximum(again[:, 2:], again[:, :2] + 1)
    again_labels = np.where(rng.random(len(kept)) < 0.9, labels[kept], 2)
    return boxes, labels, again, again_labels, np.round(rng.random(len(again)), 2)


def as_coco(boxes, labels):
    rings = [[x0, y0, x1, y0, x1, y1, x0, y1] for x0, y0, x1, y1 in boxes.tolist()]
    pairs = zip(rings, labels.tolist(), strict=True)
    return [{"image_id": 1, "category_id": label + 1, "segmentation": [ring]} for ring, label in pairs]


def document(boxes, labels):
    return {
        "info": {},
        "images": [{"id": 1, "height": 401, "width": 401}],
        "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES, start=1)],
        "annotations": as_coco(boxes, labels),
    }


@pytest.mark.parametrize("seed", range(6))
def test_a_pixel_aligned_map_scores_as_its_coco_file(tmp_path, seed):
    boxes, labels, again, again_labels, scores = random_map(seed)
    found = [{**item, "score": float(s)} for item, s in zip(as_coco(again, again_labels), scores, strict=True)]
    (tmp_path / "truth.json").write_text(json.dumps(document(boxes, labels)))
    (tmp_path / "found.json").write_text(json.dumps(found))
    expected = coco_scores(tmp_path / "truth.json", tmp_path / "found.json").masks
    frame([box(*b) for b in boxes.tolist()], [NAMES[i] for i in labels]).to_file(tmp_path / "truth.gpkg")
    shapes = [box(*b) for b in again.tolist()]
    frame(shapes, [NAMES[i] for i in again_labels], score=scores).to_file(tmp_path / "found.gpkg")
    result = polygon_metrics(tmp_path / "truth.gpkg", tmp_path / "found.gpkg")
    assert max(np.bincount(again_labels)) <= 100
    assert 0.05 < expected.ap < 0.95
    for name in ("ap", "ap50", "ap75"):
        assert getattr(result, name) == pytest.approx(getattr(expected, name), abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_zones_follow_the_rule_of_pycocotools_for_ranges_of_size(seed):
    """Sizes are free to set in COCO: here 1 says core and 5,000 says seam."""
    boxes, labels, again, again_labels, scores = random_map(seed)
    size = {False: 1.0, True: 5000.0}
    true_shapes, found_shapes = ([box(*b) for b in s.tolist()] for s in (boxes, again))
    truth = document(boxes, labels)
    for i, (item, inside) in enumerate(zip(truth["annotations"], in_strip(true_shapes), strict=True), start=1):
        item |= {"id": i, "iscrowd": 0, "area": size[inside], "bbox": [0, 0, 1, 1]}
    found = [{**item, "score": float(s)} for item, s in zip(as_coco(again, again_labels), scores, strict=True)]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        for item in found:  # loadRes takes run lengths for the size of a detection
            item["segmentation"] = coco_runs(item["segmentation"])
        results = coco.loadRes(found)
        for item, inside in zip(results.dataset["annotations"], in_strip(found_shapes), strict=True):
            item["area"] = size[inside]
        job = COCOeval(coco, results, "segm")
        job.evaluate()
        job.accumulate()
    truth_map = frame(true_shapes, [NAMES[i] for i in labels])
    zones = polygon_metrics(
        truth_map, frame(found_shapes, [NAMES[i] for i in again_labels], score=scores), strips=STRIP
    )
    for zone, area in zip(zones.zones, (1, 2), strict=True):  # small, medium
        precision = job.eval["precision"][..., area, -1]
        assert zone.ap == pytest.approx(precision[precision > -1].mean(), abs=1e-9)
        assert zone.ap50 == pytest.approx(precision[0][precision[0] > -1].mean(), abs=1e-9)
        assert 0 < zone.n_truth < 70


def coco_runs(segmentation):
    from pycocotools import mask as rle

    return rle.merge(rle.frPyObjects(segmentation, 401, 401))


def in_strip(shapes):
    return touches_strip(np.array(shapes, object), STRIP).tolist()


def test_columns_of_other_tools(tmp_path, caplog):
    truth = frame([box(0, 0, 10, 10), box(20, 0, 30, 10)], ["storage_tank", "ship"])
    other = frame([box(0, 0, 10, 10), box(20, 0, 30, 10)]).drop(columns="class_name")
    other = other.assign(label=["Storage Tank", "ship"], confidence=[0.3, 0.9])
    assert polygon_metrics(truth, other, class_column="label").ap == 1
    assert polygon_metrics(truth, other, class_column="label", score_column="confidence").ap == 1
    with caplog.at_level(logging.WARNING, logger="rsgeoseg"):
        unaware = polygon_metrics(truth, other)
    assert "no column class_name (it has label, confidence)" in caplog.text
    assert [row.name for row in unaware.per_class] == ["*"]
    with pytest.raises(UsageError, match="no column kind; its columns are class_name"):
        polygon_metrics(truth, other, class_column="kind")
    with pytest.raises(UsageError, match="the truth has no column class_name; its columns are label, confidence"):
        polygon_metrics(other, truth)
    with pytest.raises(UsageError, match="no column quality"):
        polygon_metrics(truth, other, class_column="label", score_column="quality")
    with pytest.raises(UsageError, match="label holds other things than numbers"):
        polygon_metrics(truth, other, class_column="label", score_column="label")
    with pytest.raises(UsageError, match="1 of 2 objects have no score"):
        polygon_metrics(truth, truth.assign(score=[0.5, None]))


def test_broken_geometry_is_counted_and_said(caplog):
    bow = Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])
    nan = Polygon([(0, 0), (1, float("nan")), (1, 0)])
    shapes = [box(20, 0, 30, 10), bow, nan, None, Polygon(), Point(1, 1), LineString([(0, 0), (1, 1)])]
    with caplog.at_level(logging.WARNING, logger="rsgeoseg"):
        result = polygon_metrics(frame([box(20, 0, 30, 10)]), frame(shapes))
    assert (result.n_found, result.found_repaired, result.found_left_out) == (2, 1, 5)
    assert (result.truth_repaired, result.truth_left_out) == (0, 0)
    assert "1 invalid polygons were repaired" in caplog.text
    assert "5 rows without a usable polygon are left out" in caplog.text
    assert result.n_matched == 1


def test_multipolygons_and_heights_are_as_good_as_polygons():
    parts = MultiPolygon([box(0, 0, 10, 10), box(20, 0, 30, 10)])
    high = Polygon([(50, 0, 7), (60, 0, 7), (60, 10, 7), (50, 10, 7)])
    result = polygon_metrics(frame([parts, high]), frame([parts, box(50, 0, 60, 10)]))
    assert result.ap == 1


def test_another_crs_and_none_at_all(caplog):
    truth = frame([box(500000, 5400000, 500100, 5400100)])
    assert polygon_metrics(truth, truth.to_crs(3857)).ap50 == 1
    with caplog.at_level(logging.WARNING, logger="rsgeoseg"):
        assert polygon_metrics(truth, truth.set_crs(None, allow_override=True)).ap == 1
    assert "the result has no CRS" in caplog.text


def test_densities_say_what_they_are_of():
    square = [box(500000, 5400000, 501000, 5401000)]
    pair = frame(square * 2, score=[0.9, 0.8])
    hull = polygon_metrics(frame(square), pair)
    assert hull.area_km2 == pytest.approx(1, rel=2e-3)  # UTM's scale at the central meridian is 0.9996
    assert hull.area_of == "convex hull of the truth"
    assert hull.duplicates_per_km2 == pytest.approx(1, rel=2e-3)
    given = polygon_metrics(frame(square), pair, area=MapArea(km2=4, what="scene"))
    assert (given.duplicates_per_km2, given.area_of) == (0.25, "scene")
    degrees = geopandas.GeoSeries(square, crs=32631).to_crs(4326)
    assert ground_km2(degrees[0], degrees.crs) == pytest.approx(hull.area_km2, rel=1e-6)
    bare = polygon_metrics(frame(square, crs=None), frame(square, crs=None)).to_dict()
    assert bare["area_km2"] is None
    assert bare["duplicates_per_km2"] is None


def test_an_empty_result_is_zero(tmp_path):
    truth = frame([box(0, 0, 1, 1)])
    (tmp_path / "none.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    result = polygon_metrics(truth, tmp_path / "none.geojson", strips=STRIP)
    assert (result.ap, result.recall, result.n_found) == (0, 0, 0)
    core, seam = result.zones
    assert core.ap == 0
    assert np.isnan(seam.ap)
