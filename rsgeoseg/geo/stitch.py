"""Instances of single chips to whole objects, while the chips stream in.

Joining: views of the same class from different chips are one object when they agree in the strip that both chips see
(``seams.views_agree``); agreement is transitive. Composing: each pixel is decided by the chip that owns it. Then mask
NMS between whole objects. Every decision depends on the views alone, so the result does not depend on arrival order.

Streaming: a view waits for the windows that can see it and have not come. An object is composed when none of its views
waits, and leaves when, besides, no object that shares pixels with it is still growing, nor with those in conflict with
it. All that can ever share pixels with it is known by then, because every window that sees the place has come.

In parts: a stitcher that was given only some of the windows has let go of everything that no other window can change.
What it still holds (``remainder``) goes to another stitcher of the same plan (``absorb``), which then stands as if it
had been given those windows itself. So a scene may be cut into any parts, by any number of processes.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from rsgeoseg.geo.remainder import Remainder, pack, unpack
from rsgeoseg.geo.seams import (
    NO_MASK,
    Cluster,
    View,
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

_PAIRS_AT_ONCE = 1 << 20
"""Pairs of boxes that are compared at once, about: bounds the memory."""


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

    @property
    def held_bytes(self) -> int:
        """Bytes of masks held now."""
        return self._held_bytes

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
        return self._arrive([index], self._views(window, instances))

    def absorb(self, remainder: Remainder) -> list[StitchedObject]:
        """Take what another stitcher of the same plan still held, and its counts, in place of its windows.

        Args:
            remainder: of a stitcher whose windows have not come here yet.

        Returns:
            Objects that are finished now, in the order of their first view (window index, local id).

        Raises:
            ValueError: one of its windows is not of this plan or came before.
        """
        windows = remainder.windows.tolist()
        if windows and not 0 <= min(windows) <= max(windows) < len(self._arrived):
            msg = f"windows {min(windows)} to {max(windows)} are not of this plan of {len(self._arrived)}"
            raise ValueError(msg)
        twice = np.flatnonzero(self._arrived[remainder.windows])
        if len(twice):
            msg = f"window {windows[twice[0]]} came twice: take each part of a scene once"
            raise ValueError(msg)
        for name, value in remainder.counts.items():
            known = self._counts[name]
            self._counts[name] = max(known, value) if name.startswith("frontier") else known + value
        return self._arrive(windows, unpack(remainder, self._plan))

    def remainder(self) -> Remainder:
        """Return what could not be decided without other windows, to be absorbed elsewhere; then this one is spent.

        Of a stitcher that had every window it holds no view.
        """
        views = {id(view): view for held in self._waiting.values() for view in held}
        clusters = {id(view.cluster): view.cluster for view in views.values()}
        around = list(clusters.values())
        while around:  # composed objects wait for those that grow, or for others that do
            found = {id(other): other for cluster in around for other in _rivals(cluster) if id(other) not in clusters}
            clusters |= found
            around = list(found.values())
        assert sum(len(cluster.views) for cluster in clusters.values()) == self._held, "an object was left behind"
        return pack(np.flatnonzero(self._arrived), list(clusters.values()), dict(self._counts))

    def _arrive(self, indices: list[int], views: list[View]) -> list[StitchedObject]:
        """Book windows as come, compare what they see with what waited for them, and let go of what is finished."""
        self._arrived[indices] = True
        known = [view for index in indices for view in self._waiting.pop(index, ())]
        self._register(views)
        self._link([view for view in views if view.cluster.whole is None], list({id(v): v for v in known}.values()))
        for view in known:
            view.cluster.pending -= 1
        ready = {id(view.cluster): view.cluster for view in (*known, *views)}
        done = self._settle(item for item in ready.values() if not item.pending and item.whole is None)
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
        """Turn a chip's instances into views, each an object of its own so far, without the chip's own duplicates."""
        if not len(instances):
            return []
        local = instances.boxes.astype(np.int64)
        if local[:, :2].min() < 0 or (local[:, 2:] > (window.read.width, window.read.height)).any():
            msg = f"window {window.index} {window.read}: an instance leaves its chip; boxes must be in chip pixels"
            raise ValueError(msg)
        boxes = local + np.tile([window.read.x0, window.read.y0], 2)
        core = corners(window.core)
        inside = ((boxes[:, :2] >= core[:2]) & (boxes[:, 2:] <= core[2:])).all(axis=1)
        views = []
        columns = zip(
            map(tuple, boxes.tolist()), instances.masks, instances.labels.tolist(), instances.scores.tolist(),
            inside.tolist(), strict=True,
        )  # fmt: skip
        for number, (box, given, label, score, whole) in enumerate(columns):
            # A crop that is a view would keep the model's whole array alive as long as the object waits.
            mask = given.copy() if given.base is not None else given
            area = int(np.count_nonzero(mask))
            if area:
                owned = area if whole else count_inside(mask, box, core)
                views.append(View(window, number, box, mask, label, score, area, owned, Cluster()))
        views = self._drop_duplicates(views)
        for view in views:
            view.cluster.views.append(view)
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
            if col1 - col0 > 1 or row1 - row0 > 1:
                indices = [row * self._plan.cols + col for row in range(row0, row1) for col in range(col0, col1)]
                coming = [index for index in indices if not self._arrived[index]]
                view.cluster.pending += len(coming)
                for index in coming:
                    self._waiting[index].append(view)
            self._held_bytes += view.mask.nbytes
        self._held += len(views)
        wholes = {id(view.cluster): view.cluster.whole for view in views if view.cluster.whole is not None}
        self._held_bytes += sum(whole.mask.nbytes for whole in wholes.values())

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
        alone = seed.whole
        if alone is not None and not any(view.rivals for view in seed.views):
            self._forget(seed)
            return [alone]
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
    a, b = (np.array([(*view.box, view.label) for view in group]) for group in (views, others))
    pairs = []
    for i, j in _near(a, b):
        if views[i] is not others[j]:
            shared = count_shared(views[i].mask, views[i].box, others[j].mask, others[j].box)
            if shared:
                pairs.append((views[i], others[j], shared))
    return pairs


def _near(a: NDArray[np.int64], b: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Pairs of rows (x0 y0 x1 y1 class) whose boxes share a pixel and whose classes are one, in order.

    Sorted along the axis on which ``b`` is more spread, only those that begin between the start of a box less the
    longest of ``b`` and its end can meet it.
    """
    axis = int(np.ptp(b[:, 1]) > np.ptp(b[:, 0]))
    order = np.argsort(b[:, axis], kind="stable")
    starts, longest = b[order, axis], (b[:, axis + 2] - b[:, axis]).max()
    first = np.searchsorted(starts, a[:, axis] - longest, "right")
    counts = np.searchsorted(starts, a[:, axis + 2], "left") - first
    pairs: list[tuple[int, int]] = []
    for rows in np.split(np.arange(len(a)), np.flatnonzero(np.diff(np.cumsum(counts) // _PAIRS_AT_ONCE)) + 1):
        many = counts[rows]
        i = np.repeat(rows, many)
        j = order[np.arange(len(i)) - np.repeat(np.cumsum(many) - many - first[rows], many)]
        near = (a[i, :2] < b[j, 2:4]).all(axis=1) & (b[j, :2] < a[i, 2:4]).all(axis=1) & (a[i, 4] == b[j, 4])
        pairs += sorted(zip(i[near].tolist(), j[near].tolist(), strict=True))
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
