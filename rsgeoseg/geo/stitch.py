"""Instances of single chips to whole objects, while the chips stream in.

Joining: views of the same class from different chips are one object when they agree in the strip that both chips see
(``seams.views_agree``); agreement is transitive. Composing: each pixel is decided by the chip that owns it. Then mask
NMS between whole objects. Every decision depends on the views alone, so the result does not depend on arrival order.

Streaming: a view waits for the windows that can see it and have not come. An object is composed when none of its views
waits, and leaves when, besides, no object that shares pixels with it is still growing, nor with those in conflict with
it. All that can ever share pixels with it is known by then, because every window that sees the place has come.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from rsgeoseg.geo.seams import (
    NO_MASK,
    Cluster,
    View,
    clip,
    compose,
    conflict,
    corners,
    count_inside,
    count_shared,
    suppress,
    views_agree,
)
from rsgeoseg.geo.windows import Box

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from rsgeoseg.contract import Instances
    from rsgeoseg.geo.seams import Whole
    from rsgeoseg.geo.windows import Window, WindowPlan

    Key = tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class StitchedObject:
    """A whole object of the scene."""

    box: Box
    """Tight around the mask, scene pixels."""
    mask: NDArray[np.bool_]
    """(box.height, box.width), True = object."""
    label: int
    """Index into the model's classes."""
    score: float
    """Best score among the chips that see a part of it in their own core, 0 to 1: a view cut by a chip's border,
    which is worth little and owns nothing, neither lifts nor lowers it."""
    n_chips: int
    """Chips that saw it."""
    seam: bool
    """Put together from pixels of more than one chip."""
    truncated: bool
    """Touches the scene's border."""


@dataclass(frozen=True, slots=True)
class SeamReport:
    """What the stitcher did. All but the peaks is independent of the order of arrival."""

    joined: int
    """Pairs of views joined."""
    duplicates_removed: int
    """Views and objects removed by mask NMS."""
    fragments_dropped: int
    """Truncated views of something that the chip owning the place does not have, and objects left without a pixel."""
    objects: int
    """Objects that left."""
    seam_objects: int
    """Objects put together from pixels of more than one chip."""
    frontier_peak: int
    """Most views held between two chips."""
    frontier_peak_bytes: int
    """Most bytes of masks held between two chips."""

    def to_dict(self) -> dict[str, int]:
        """Plain values, for the run record."""
        return asdict(self)


class Stitcher:
    """Joins the instances of overlapping chips into whole objects, each pixel decided once.

    Every window of the plan is added once, in any order (row-major keeps the least in memory, about one row of chips);
    a window that was skipped or failed is added with ``Instances.empty()``. Not thread-safe: one caller at a time.

    An object that was seen only outside the core of each chip that saw it, and that stops at a read border, is dropped
    when nothing joined it to the chip that owns the place: it is a truncated view that its owner does not confirm. One
    that is complete in the strip is kept.

    Args:
        plan: the windows.
        match_iou: least IoU, inside the strip that two chips both see, of two views of one object; in (0, 1].
        nms: largest share of the smaller of two objects of one class that the other may cover; in (0, 1], 1 = no NMS.

    Raises:
        ValueError: a threshold out of range.
    """

    def __init__(self, plan: WindowPlan, *, match_iou: float = 0.5, nms: float = 0.5) -> None:
        for name, value in (("match_iou", match_iou), ("nms", nms)):
            if not 0 < value <= 1:
                msg = f"{name} is a share: give a number above 0 and up to 1, not {value}"
                raise ValueError(msg)
        self._plan = plan
        self._scene = (plan.width, plan.height)
        self._match_iou = match_iou
        self._nms = nms
        rows = [plan.at(row, 0).read for row in range(plan.rows)]
        cols = [plan.at(0, col).read for col in range(plan.cols)]
        self._starts = np.array([box.x0 for box in cols]), np.array([box.y0 for box in rows])
        self._stops = np.array([box.x1 for box in cols]), np.array([box.y1 for box in rows])
        self._arrived = np.zeros(len(plan.windows), np.bool_)
        self._waiting: defaultdict[int, list[View]] = defaultdict(list)
        self._held = self._held_bytes = 0
        self._counts = dict.fromkeys(SeamReport.__dataclass_fields__, 0)

    @property
    def report(self) -> SeamReport:
        """Counts up to now."""
        return SeamReport(**self._counts)

    def add(self, window: Window, instances: Instances) -> list[StitchedObject]:
        """Take the instances of one window.

        Args:
            window: a window of the plan.
            instances: what a model found in it; boxes in pixels of the window's read box.

        Returns:
            Objects that are finished now, in the order of their first view (window index, local id).

        Raises:
            ValueError: the window is not of this plan or came before, or an instance leaves its chip.
        """
        index = window.index
        if not 0 <= index < len(self._arrived) or self._plan.windows[index] != window:
            msg = f"window {index} {window.core} is not of this plan: add the windows of the stitcher's own plan"
            raise ValueError(msg)
        if self._arrived[index]:
            msg = f"window {index} {window.core} came twice: add each window once"
            raise ValueError(msg)
        views = self._views(window, instances)
        self._arrived[index] = True
        known = self._waiting.pop(index, [])
        self._link(views, known)
        for view in known:
            view.cluster.pending -= 1
        ready = {id(view.cluster): view.cluster for view in (*known, *views) if not view.cluster.pending}
        done = self._settle(ready.values())
        self._counts["frontier_peak"] = max(self._counts["frontier_peak"], self._held)
        self._counts["frontier_peak_bytes"] = max(self._counts["frontier_peak_bytes"], self._held_bytes)
        return done

    def finish(self) -> list[StitchedObject]:
        """End the scene.

        Returns:
            Objects still held: none, because the last window set them free.

        Raises:
            ValueError: windows are missing.
        """
        missing = np.flatnonzero(~self._arrived)
        if len(missing):
            msg = f"{len(missing)} windows are missing, first {missing[0]}: add Instances.empty() for skipped ones"
            raise ValueError(msg)
        assert self._held == 0, "an object was left behind"
        return []

    def _views(self, window: Window, instances: Instances) -> list[View]:
        """Turn a chip's instances into views, without the chip's own duplicates, and book who waits for whom."""
        if not len(instances):
            return []
        local = instances.boxes.astype(np.int64)
        if local[:, :2].min() < 0 or (local[:, 2:] > (window.read.width, window.read.height)).any():
            msg = f"window {window.index} {window.read}: an instance leaves its chip; boxes must be in chip pixels"
            raise ValueError(msg)
        boxes = local + np.tile([window.read.x0, window.read.y0], 2)
        core = corners(window.core)
        views = []
        columns = zip(
            boxes.tolist(), instances.masks, instances.labels.tolist(), instances.scores.tolist(), strict=True
        )
        for number, (box, given, label, score) in enumerate(columns):
            # A crop that is a view would keep the model's whole array alive as long as the object waits.
            mask = given.copy() if given.base is not None else given
            area = int(np.count_nonzero(mask))
            if area:
                owned = area if clip(box, core) == tuple(box) else count_inside(mask, tuple(box), core)
                views.append(View(window, number, tuple(box), mask, label, score, area, owned, Cluster()))
        views = self._drop_duplicates(views)
        self._register(views)
        return views

    def _drop_duplicates(self, views: list[View]) -> list[View]:
        """Mask NMS within a chip; two views of one chip that overlap less are rivals."""
        pairs = [(a, b, shared) for a, b, shared in _overlapping(views, views) if a.local < b.local]
        rivals: dict[Key, set[Key]] = defaultdict(set)
        for a, b, shared in pairs:
            if shared > self._nms * min(a.area, b.area):
                rivals[a.key].add(b.key)
                rivals[b.key].add(a.key)
        removed: set[Key] = set()
        for view in sorted(views, key=lambda view: (-view.score, view.local)) if rivals else ():
            if view.key not in removed:
                removed |= rivals[view.key]
        self._counts["duplicates_removed"] += len(removed)
        for a, b, _ in pairs:
            if not {a.key, b.key} & removed:
                a.rivals.append(b)
                b.rivals.append(a)
        return [view for view in views if view.key not in removed] if removed else views

    def _register(self, views: list[View]) -> None:
        """Let each view wait for the other windows that can see it and have not come."""
        if not views:
            return
        boxes = np.array([view.box for view in views])
        first = [np.searchsorted(self._stops[axis], boxes[:, axis], "right").tolist() for axis in (0, 1)]
        last = [np.searchsorted(self._starts[axis], boxes[:, axis + 2], "left").tolist() for axis in (0, 1)]
        for view, col0, row0, col1, row1 in zip(views, *first, *last, strict=True):
            own = view.window.index
            view.cluster.views.append(view)
            if col1 - col0 > 1 or row1 - row0 > 1:
                indices = [row * self._plan.cols + col for row in range(row0, row1) for col in range(col0, col1)]
                coming = [index for index in indices if index != own and not self._arrived[index]]
                view.cluster.pending = len(coming)
                for index in coming:
                    self._waiting[index].append(view)
            self._held += 1
            self._held_bytes += view.mask.nbytes

    def _link(self, views: list[View], known: list[View]) -> None:
        """Join what agrees; remember as rivals what overlaps without agreeing."""
        for a, b, shared in _overlapping(views, known):
            if views_agree(a, b, shared, self._match_iou):
                self._counts["joined"] += 1
                _unite(a.cluster, b.cluster)
            else:
                a.rivals.append(b)
                b.rivals.append(a)

    def _settle(self, ready: Iterable[Cluster]) -> list[StitchedObject]:
        """Compose the clusters that are complete, and release the objects whose fate is known."""
        seeds: dict[int, Cluster] = {}
        for cluster in ready:
            around = [other for other in _rivals(cluster) if other.whole is not None]
            self._compose(cluster)
            # A neighbour may have waited only for this one to be complete.
            seeds.update((id(item), item) for item in (cluster, *around))
        done: list[Whole] = []
        for cluster in seeds.values():
            if not cluster.released:
                done += self._release(cluster)
        done.sort(key=lambda whole: whole.key)
        return [self._result(whole) for whole in done]

    def _compose(self, cluster: Cluster) -> None:
        whole = compose(cluster.views, self._scene)
        if not whole.area or (whole.cut and not whole.owned):
            self._counts["fragments_dropped"] += 1
            self._forget(cluster)
            return
        cluster.whole = whole
        if len(cluster.views) > 1:
            self._held_bytes += whole.mask.nbytes - sum(view.mask.nbytes for view in cluster.views)
        for view in cluster.views:
            view.mask = NO_MASK  # no window that could still be compared with it is to come

    def _release(self, seed: Cluster) -> list[Whole]:
        """Decide the group of objects in conflict around a complete one; nothing where the group must wait."""
        group: dict[Key, Cluster] = {}
        against: dict[Key, set[Key]] = {}
        stack = [seed]
        while stack:
            cluster = stack.pop()
            whole = cluster.whole
            assert whole is not None
            if whole.key in group:
                continue
            around = _rivals(cluster)
            if any(other.whole is None for other in around):
                return []  # what it becomes may come into conflict with this one
            foes = [other for other in around if other.whole and conflict(whole, other.whole, self._nms)]
            group[whole.key] = cluster
            against[whole.key] = {other.whole.key for other in foes if other.whole}
            stack += foes
        wholes = [cluster.whole for cluster in group.values() if cluster.whole]
        kept = suppress(wholes, against)
        self._counts["duplicates_removed"] += len(wholes) - len(kept)
        for cluster in group.values():
            self._forget(cluster)
        return [whole for whole in wholes if whole.key in kept]

    def _forget(self, cluster: Cluster) -> None:
        """Free what a cluster holds; clears the references so that no cycle keeps masks alive."""
        self._held -= len(cluster.views)
        masks = [cluster.whole.mask] if cluster.whole else [view.mask for view in cluster.views]
        self._held_bytes -= sum(mask.nbytes for mask in masks)
        for view in cluster.views:
            view.mask = NO_MASK
            view.rivals.clear()
        cluster.views.clear()
        cluster.whole = None
        cluster.released = True

    def _result(self, whole: Whole) -> StitchedObject:
        box, (width, height) = Box(*whole.box), self._scene
        self._counts["objects"] += 1
        self._counts["seam_objects"] += whole.seam
        return StitchedObject(
            box=box,
            mask=whole.mask,
            label=whole.label,
            score=whole.score,
            n_chips=whole.n_chips,
            seam=whole.seam,
            truncated=box.x0 == 0 or box.y0 == 0 or box.x1 == width or box.y1 == height,
        )


def _overlapping(views: list[View], others: list[View]) -> list[tuple[View, View, int]]:
    """Pairs of one class that share pixels, with their number."""
    if not views or not others:
        return []
    ax0, ay0, ax1, ay1, a_label = np.array([(*view.box, view.label) for view in views]).T[..., None]
    bx0, by0, bx1, by1, b_label = np.array([(*view.box, view.label) for view in others]).T
    near = (ax0 < bx1) & (bx0 < ax1) & (ay0 < by1) & (by0 < ay1) & (a_label == b_label)
    pairs = []
    for i, j in np.argwhere(near).tolist():
        if views[i] is not others[j]:
            shared = count_shared(views[i].mask, views[i].box, others[j].mask, others[j].box)
            if shared:
                pairs.append((views[i], others[j], shared))
    return pairs


def _unite(a: Cluster, b: Cluster) -> None:
    """Make two clusters one; the smaller moves, so that n unions cost n log n."""
    if a is b:
        return
    if len(a.views) < len(b.views):
        a, b = b, a
    for view in b.views:
        view.cluster = a
    a.views += b.views
    a.pending += b.pending


def _rivals(cluster: Cluster) -> list[Cluster]:
    """Other clusters, not yet released, that share pixels with this one."""
    found = {id(rival.cluster): rival.cluster for view in cluster.views for rival in view.rivals}
    return [other for other in found.values() if other is not cluster and not other.released]
