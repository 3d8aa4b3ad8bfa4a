"""The four stitching promises, on truths, plans and arrival orders that Hypothesis makes up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from rsgeoseg.contract import Chip, Instances
from rsgeoseg.geo.seams import Cluster, View, views_agree
from rsgeoseg.geo.stitch import StitchedObject, Stitcher
from rsgeoseg.geo.windows import Box, Window, WindowPlan
from rsgeoseg.testing.oracle import NoisyOracle, OracleSegmenter, encode_ids, oracle_spec
from rsgeoseg.testing.strategies import Tiling, arrival_orders, tilings, truth_rasters, window_plans

if TYPE_CHECKING:
    from rsgeoseg.contract import Segmenter

CLASSES = ("a", "b", "c", "d")
EIGHT = np.ones((3, 3))
FOUR = ndimage.generate_binary_structure(2, 1)


def prop(examples):
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def chip_of(truth, valid, box: Box) -> Chip:
    part = box.as_slices()
    return Chip(image=encode_ids(truth[part]), valid=np.ascontiguousarray(valid[part]))


def answers(truth, plan, segmenter: Segmenter, valid=None) -> list[Instances]:
    valid = np.ones(truth.shape, bool) if valid is None else valid
    return segmenter.segment([chip_of(truth, valid, window.read) for window in plan.windows])


def run(plan, found, order, **options) -> tuple[list[StitchedObject], Stitcher]:
    stitcher = Stitcher(plan, **options)
    done = [item for index in order for item in stitcher.add(plan.windows[index], found[index])]
    return done + stitcher.finish(), stitcher


def identity(item: StitchedObject) -> tuple:
    """All of an object, comparable."""
    box = (item.box.x0, item.box.y0, item.box.x1, item.box.y1)
    return box, item.label, item.mask.tobytes(), item.score, item.n_chips, item.seam, item.truncated


def shape_of(label, mask) -> tuple:
    """Class, place and pixels of a scene-sized mask."""
    (rows,), (cols,) = (np.nonzero(mask.any(axis=axis)) for axis in (1, 0))
    part = mask[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    return (cols[0], rows[0], cols[-1] + 1, rows[-1] + 1), label, np.ascontiguousarray(part).tobytes()


def components(truth, structure) -> list[tuple]:
    """Whole-scene answer, by another library than the one under test."""
    shapes = []
    for value in np.unique(truth[truth > 0]):
        parts, count = ndimage.label(truth == value, structure)
        shapes += [shape_of(int(value) % len(CLASSES), parts == part) for part in range(1, count + 1)]
    return sorted(shapes)


def shapes(items) -> list[tuple]:
    return sorted(identity(item)[:3] for item in items)


# ------------------------------------------------------------------------------------------- 1. exact on an oracle


@pytest.mark.slow
@pytest.mark.parametrize("connectivity", [4, 8])
@prop(300)
@given(tiling=tilings())
def test_components_come_out_as_in_the_whole_scene(connectivity, tiling: Tiling):
    oracle = OracleSegmenter(spec=oracle_spec(CLASSES), mode="components", connectivity=connectivity)
    done, _ = run(tiling.plan, answers(tiling.truth, tiling.plan, oracle), tiling.order)
    assert shapes(done) == components(tiling.truth, EIGHT if connectivity == 8 else FOUR)


@prop(200)
@given(tiling=tilings(values=6), one_class=st.booleans())
def test_instances_that_touch_keep_their_identity(tiling: Tiling, one_class):
    ids = np.zeros_like(tiling.truth)
    for value in np.unique(tiling.truth[tiling.truth > 0]):
        parts, count = ndimage.label(tiling.truth == value, EIGHT)
        ids += np.where(parts, parts + ids.max(), 0).astype(ids.dtype)
        assert count
    class_of = np.zeros(ids.max() + 1, np.int64) if one_class else np.arange(ids.max() + 1) % len(CLASSES)
    oracle = OracleSegmenter(spec=oracle_spec(CLASSES), class_of=class_of)
    done, _ = run(tiling.plan, answers(ids, tiling.plan, oracle), tiling.order)
    assert shapes(done) == sorted(shape_of(int(class_of[i]), ids == i) for i in range(1, ids.max() + 1))


@prop(150)
@given(tiling=tilings(), data=st.data())
def test_nodata_and_aoi_are_background(tiling: Tiling, data):
    height, width = tiling.truth.shape
    valid = np.zeros((height, width), bool)
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    valid[y : y + data.draw(st.integers(1, height)), x : x + data.draw(st.integers(1, width))] = True
    valid &= np.random.default_rng(data.draw(st.integers(0, 99))).random(valid.shape) > 0.02
    oracle = OracleSegmenter(spec=oracle_spec(CLASSES), mode="components")
    found = answers(tiling.truth, tiling.plan, oracle, valid)
    done, _ = run(tiling.plan, found, tiling.order)
    assert shapes(done) == components(tiling.truth * valid, EIGHT)


def clamped_axis(length, size, overlap, extra):
    """Windows at a fixed stride, the last ones pushed back inside: some read the same pixels."""
    size = min(size, length)
    stride = size - overlap if size > overlap else 1
    count = -(-max(length - size, 0) // stride) + 1 + extra
    starts = [min(i * stride, length - size) for i in range(count)]
    edges = [0]
    for i in range(1, count):  # any edge does that keeps cores non-empty and inside their read boxes
        edges.append(max(edges[-1] + 1, min(starts[i] + 1, starts[i - 1] + size - 1)))
    return [(s, s + size, a, b) for s, a, b in zip(starts, edges, [*edges[1:], length], strict=True)]


@prop(150)
@given(
    truth=truth_rasters(max_side=60),
    size=st.integers(6, 24),
    extra=st.integers(0, 2),
    data=st.data(),
)
def test_clamped_windows_may_read_the_same_pixels(truth, size, extra, data):
    overlap = data.draw(st.integers(2, size // 2))
    axes = [clamped_axis(length, size, overlap, extra) for length in truth.shape]
    if any(a >= b or a < s or b > e for axis in axes for s, e, a, b in axis):
        return  # the extra windows do not fit so small a scene
    windows = tuple(
        Window(row * len(axes[1]) + col, row, col, Box(x[0], y[0], x[1], y[1]), Box(x[2], y[2], x[3], y[3]))
        for row, y in enumerate(axes[0])
        for col, x in enumerate(axes[1])
    )
    plan = WindowPlan(*truth.shape, size, overlap, len(axes[0]), len(axes[1]), windows)
    oracle = OracleSegmenter(spec=oracle_spec(CLASSES), mode="components")
    done, _ = run(plan, answers(truth, plan, oracle), data.draw(arrival_orders(len(windows))))
    assert shapes(done) == components(truth, EIGHT)


# ----------------------------------------------------------------- 2. and 3. any segmenter, against a slow reference


@dataclass(frozen=True)
class Soup:
    """Answers of a segmenter that agrees with itself only sometimes."""

    plan: WindowPlan
    found: list[Instances]
    order: tuple[int, ...]


@st.composite
def soups(draw, max_side=40):
    """Overlapping blobs, seen by each chip with jitter, misses and its own inventions; some chips see noise."""
    height, width = (draw(st.one_of(st.integers(20, max_side), st.integers(1, max_side))) for _ in range(2))
    plan = draw(window_plans(height=height, width=width, min_overlap=draw(st.integers(2, 4)), spread=8))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    count, jitter = draw(st.integers(2, 10)), draw(st.integers(0, 2))
    centre = rng.uniform(0, (width, height), (count, 2))
    half = rng.uniform(1, draw(st.integers(3, 16)), (count, 2))
    labels = rng.integers(0, 2, count)
    found = []
    for window in plan.windows:
        here = np.random.default_rng([seed, window.index])
        rows = []
        for which in range(count):
            x0, y0 = np.round(centre[which] - half[which] + here.integers(-jitter, jitter + 1, 2)).astype(int)
            x1, y1 = np.round(centre[which] + half[which] + here.integers(-jitter, jitter + 1, 2)).astype(int)
            mask = np.zeros((height, width), bool)
            mask[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = True
            if here.random() < 0.3:
                mask &= here.random(mask.shape) < 0.8
            if here.random() > 0.15:
                rows.append((mask[window.read.as_slices()], int(labels[which])))
        found.append(instances_of(rows, here))
    return Soup(plan, found, draw(arrival_orders(len(plan.windows))))


def instances_of(rows, rng) -> Instances:
    boxes, masks, labels = [], [], []
    for mask, label in rows:
        if mask.any():
            x0, y0, x1, y1 = shape_of(0, mask)[0]
            boxes.append((x0, y0, x1, y1))
            masks.append(mask[y0:y1, x0:x1])
            labels.append(label)
    scores = rng.integers(1, 5, len(boxes)).astype(np.float32) / 4  # ties are likely
    return Instances(
        boxes=np.array(boxes, np.int32).reshape(-1, 4), masks=masks, scores=scores, labels=np.array(labels, np.int64)
    )


def scene_mask(plan, item_box, mask):
    full = np.zeros((plan.height, plan.width), bool)
    x0, y0, x1, y1 = item_box
    full[y0:y1, x0:x1] = mask
    return full


def overlap_share(a, b):
    return np.count_nonzero(a & b) / min(np.count_nonzero(a), np.count_nonzero(b))


def reference(soup: Soup, match_iou, nms) -> list[tuple]:
    """The promises word by word, with scene-sized arrays, all pairs, and no streaming."""
    views = []  # (window, local, label, score, scene mask, View)
    for window, found in zip(soup.plan.windows, soup.found, strict=True):
        mine = []
        for local in sorted(range(len(found)), key=lambda i: (-found.scores[i], i)):
            x0, y0, x1, y1 = (found.boxes[local] + np.tile([window.read.x0, window.read.y0], 2)).tolist()
            full = scene_mask(soup.plan, (x0, y0, x1, y1), found.masks[local])
            label, score = int(found.labels[local]), float(found.scores[local])
            if all(label != other[2] or overlap_share(full, other[4]) <= nms for other in mine):
                view = View(window, local, (x0, y0, x1, y1), found.masks[local], label, score, 0, 0, Cluster())
                mine.append((window, local, label, score, full, view))
        views += mine
    groups = [[view] for view in views]
    for i, a in enumerate(views):
        for b in views[:i]:
            shared = np.count_nonzero(a[4] & b[4])
            if a[0] is not b[0] and a[2] == b[2] and shared and views_agree(a[5], b[5], shared, match_iou):
                ga, gb = (next(g for g in groups if any(v is x for x in g)) for v in (a, b))
                if ga is not gb:
                    ga += gb
                    groups = [g for g in groups if g is not gb]
    owner = np.zeros((soup.plan.height, soup.plan.width), int)
    for window in soup.plan.windows:
        owner[window.core.as_slices()] = window.index
    wholes = [whole for group in groups if (whole := reference_whole(group, owner, soup.plan)) is not None]
    return reference_nms(wholes, nms)


def reference_whole(group, owner, plan):
    """One object, pixel by pixel."""
    chips = {view[0].index for view in group}
    mask = np.zeros(owner.shape, bool)
    for y, x in np.ndindex(owner.shape):
        askable = [view for view in group if view[0].index == owner[y, x]] if owner[y, x] in chips else group
        mask[y, x] = any(view[4][y, x] for view in askable)
    cut, owning = False, []
    for window, _, _, score, full, _ in group:
        if full[window.core.as_slices()].any():
            owning.append(score)
        r = window.read
        border = np.zeros(owner.shape, bool)
        for line, inside in (
            ((slice(r.y0, r.y1), r.x0), r.x0 > 0),
            ((r.y0, slice(r.x0, r.x1)), r.y0 > 0),
            ((slice(r.y0, r.y1), r.x1 - 1), r.x1 < plan.width),
            ((r.y1 - 1, slice(r.x0, r.x1)), r.y1 < plan.height),
        ):
            border[line] |= inside
        cut |= bool((full & border & ~np.isin(owner, list(chips))).any())
    if not mask.any() or (cut and not owning):
        return None
    key = min((view[0].index, view[1]) for view in group)
    score = max(owning or [view[3] for view in group])
    return {"mask": mask, "cut": cut, "label": group[0][2], "score": score, "key": key, "chips": len(chips)}


def reference_nms(wholes, nms):
    def foes(a):
        return [
            b for b in wholes if b is not a and b["label"] == a["label"] and overlap_share(a["mask"], b["mask"]) > nms
        ]

    def area(a):
        return np.count_nonzero(a["mask"])

    left = [a for a in wholes if not (a["cut"] and any(not b["cut"] and area(b) >= area(a) for b in foes(a)))]
    kept = []
    for a in sorted(left, key=lambda a: (-a["score"], a["key"])):
        if not any(b is c for b in foes(a) for c in kept):
            kept.append(a)
    return sorted((*shape_of(a["label"], a["mask"]), a["score"], a["chips"]) for a in kept)


@pytest.mark.slow
@prop(400)
@given(soup=soups(), match_iou=st.sampled_from((0.3, 0.5, 0.8)), nms=st.sampled_from((0.2, 0.5, 1.0)))
def test_any_segmenter_gives_what_the_promises_say_in_any_order(soup: Soup, match_iou, nms):
    done, stitcher = run(soup.plan, soup.found, soup.order, match_iou=match_iou, nms=nms)
    assert sorted(identity(item)[:5] for item in done) == reference(soup, match_iou, nms)
    in_order, other = run(soup.plan, soup.found, range(len(soup.found)), match_iou=match_iou, nms=nms)
    assert sorted(map(identity, done)) == sorted(map(identity, in_order))
    for name in ("joined", "duplicates_removed", "fragments_dropped", "objects", "seam_objects"):
        assert getattr(stitcher.report, name) == getattr(other.report, name)


@prop(150)
@given(soup=soups(), nms=st.sampled_from((0.1, 0.3, 0.5, 0.7)))
def test_no_two_objects_of_a_class_are_duplicates(soup: Soup, nms):
    done, _ = run(soup.plan, soup.found, soup.order, nms=nms)
    full = [scene_mask(soup.plan, identity(item)[0], item.mask) for item in done]
    for i, a in enumerate(done):
        for j in range(i):
            if a.label == done[j].label:
                assert overlap_share(full[i], full[j]) <= nms


@prop(100)
@given(tiling=tilings(max_side=60, min_overlap=4))
def test_noisy_answers_stitch_the_same_in_any_order(tiling: Tiling):
    noisy = NoisyOracle(inner=OracleSegmenter(spec=oracle_spec(CLASSES), mode="components"), miss=0.1)
    found = answers(tiling.truth, tiling.plan, noisy)
    done, _ = run(tiling.plan, found, tiling.order)
    in_order, _ = run(tiling.plan, found, range(len(found)))
    assert sorted(map(identity, done)) == sorted(map(identity, in_order))


# -------------------------------------------------------------------------------------------------- 4. streaming


@prop(150)
@given(tiling=tilings())
def test_an_object_leaves_with_the_last_window_that_sees_it(tiling: Tiling):
    oracle = OracleSegmenter(spec=oracle_spec(CLASSES), mode="components")
    found = answers(tiling.truth, tiling.plan, oracle)
    place = {index: when for when, index in enumerate(tiling.order)}
    due = {}
    for shape in components(tiling.truth, EIGHT):
        due[shape] = max(place[window.index] for window in tiling.plan.touching(Box(*map(int, shape[0]))))
    stitcher = Stitcher(tiling.plan)
    for when, index in enumerate(tiling.order):
        for item in stitcher.add(tiling.plan.windows[index], found[index]):
            assert due.pop(identity(item)[:3]) >= when
        assert all(last > when for last in due.values()), "an object is held although nothing can touch it"
    assert stitcher.finish() == []
    assert not due
