"""What two chips say about one object: do their views agree, and which pixels does the object then have.

Pure functions on views; ``stitch.py`` keeps the books. All boxes are half-open ``(x0, y0, x1, y1)`` in scene pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from rsgeoseg.geo.windows import Box, Window

    Bool = NDArray[np.bool_]
    Corners = tuple[int, int, int, int]

MIN_EVIDENCE = 12
"""Pixels. Where two masks share fewer, chance explains it as well as identity: then they must agree exactly."""
MINOR_PIECE_IOU = 0.9
"""IoU asked of two pieces that are less than half of either mask in the strip: a speck must not glue two objects."""
NO_MASK: Bool = np.zeros((0, 0), np.bool_)
"""Stands where a view's mask was."""


@dataclass(slots=True, eq=False)
class View:
    """One object as one chip sees it."""

    window: Window
    """The chip."""
    local: int
    """Position in the chip's ``Instances``."""
    box: Corners
    """Where the mask lies; inside ``window.read``."""
    mask: Bool
    """(h, w) of ``box``; emptied when the object is composed."""
    label: int
    """Class."""
    score: float
    """Score in this chip."""
    area: int
    """Pixels."""
    owned: int
    """Pixels inside the chip's own core."""
    cluster: Cluster
    """The views that are one object with this one."""
    rivals: list[View] = field(default_factory=list)
    """Views of the same class that share pixels with this one but were not joined to it."""

    @property
    def key(self) -> tuple[int, int]:
        """Identity in the scene."""
        return self.window.index, self.local


@dataclass(slots=True, eq=False)
class Cluster:
    """Views joined so far."""

    views: list[View] = field(default_factory=list)
    """Members, in order of arrival; emptied on release."""
    pending: int = 0
    """Sum over members of the windows still to come that can see them; 0 = nothing can be joined any more."""
    whole: Whole | None = None
    """The composed object, once nothing is pending."""
    released: bool = False
    """Left the stitcher, as a result or suppressed."""


@dataclass(frozen=True, slots=True, eq=False)
class Whole:
    """An object put together from its views."""

    box: Corners
    """Tight around ``mask``."""
    mask: Bool
    """(h, w) of ``box``."""
    area: int
    """Pixels; 0 where the owners' views left nothing."""
    label: int
    """Class."""
    score: float
    """The best score among the views that hold pixels of their own core (all views where none does)."""
    n_chips: int
    """Chips that saw it."""
    seam: bool
    """Pixels of more than one chip were put together."""
    cut: bool
    """It stops at a chip's read border, and the chip that owns that place does not have it."""
    owned: bool
    """At least one chip sees a part of it in its own core."""
    key: tuple[int, int]
    """Smallest (window index, local id) of its views."""


def clip(a: Corners, b: Corners) -> Corners | None:
    """Intersection of two boxes; None where they share no pixel."""
    ax0, ay0, ax1, ay1 = a
    bx0, by0, bx1, by1 = b
    # Comparisons, not max and min: this is called more often than anything else.
    x0, x1 = ax0 if ax0 > bx0 else bx0, ax1 if ax1 < bx1 else bx1  # noqa: FURB136
    y0, y1 = ay0 if ay0 > by0 else by0, ay1 if ay1 < by1 else by1  # noqa: FURB136
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def corners(box: Box) -> Corners:
    """Box as plain numbers."""
    return box.x0, box.y0, box.x1, box.y1


def crop(mask: Bool, box: Corners, part: Corners) -> Bool:
    """Part of a mask that lies in ``box``; ``part`` is inside ``box``. A view, not a copy."""
    return mask[part[1] - box[1] : part[3] - box[1], part[0] - box[0] : part[2] - box[0]]


def count_inside(mask: Bool, box: Corners, region: Corners) -> int:
    """Count pixels of a mask inside a region."""
    part = clip(box, region)
    return 0 if part is None else int(np.count_nonzero(crop(mask, box, part)))


def count_shared(mask_a: Bool, box_a: Corners, mask_b: Bool, box_b: Corners) -> int:
    """Count pixels that two masks share."""
    part = clip(box_a, box_b)
    if part is None:
        return 0
    return int(np.count_nonzero(crop(mask_a, box_a, part) & crop(mask_b, box_b, part)))


def conflict(a: Whole, b: Whole, nms: float) -> bool:
    """Whether two objects are one too many: shared pixels / smaller area > nms (IoU is never larger than that)."""
    limit, part = nms * min(a.area, b.area), clip(a.box, b.box)
    if part is None or (part[2] - part[0]) * (part[3] - part[1]) <= limit:
        return False
    return count_shared(a.mask, a.box, b.mask, b.box) > limit


def views_agree(a: View, b: View, shared: int, match_iou: float) -> bool:
    """Decide whether views of two different chips are one object, from the strip that both chips see.

    They are, when their masks agree in the strip, or when one 4-connected piece of the one agrees there with one piece
    of the other and runs out of the strip. The second rule joins a U whose arms are one object in a chip and two in the
    next. It is exact for connected components, 4- or 8-connected: chips that both see the strip see the same pieces in
    it, and a piece that does not reach the strip's edge is a whole object in both.

    Args:
        a: a view.
        b: a view of the same class from another chip.
        shared: pixels that the two masks share.
        match_iou: least IoU.
    """
    strip = clip(corners(a.window.read), corners(b.window.read))
    if strip is None or shared == 0:
        return False
    if _within(a.box, strip) and _within(b.box, strip):
        return _enough(shared, a.area, b.area, match_iou)  # no piece of either runs out of the strip
    in_a, in_b = count_inside(a.mask, a.box, strip), count_inside(b.mask, b.box, strip)
    if _enough(shared, in_a, in_b, match_iou):
        return True
    return _pieces_agree(a, b, strip, min(in_a, in_b), match_iou)


def _within(box: Corners, strip: Corners) -> bool:
    """Whether a box lies in a strip without touching its edge."""
    return box[0] > strip[0] and box[1] > strip[1] and box[2] < strip[2] and box[3] < strip[3]


def _enough(shared: int, in_a: int, in_b: int, least: float) -> bool:
    union = in_a + in_b - shared
    return shared == union or (shared >= MIN_EVIDENCE and shared >= least * union)


def _pieces_agree(a: View, b: View, strip: Corners, smaller: int, match_iou: float) -> bool:
    """Find a pair of pieces that agree; see ``views_agree``."""
    bounds = (min(a.box[0], b.box[0]), min(a.box[1], b.box[1]), max(a.box[2], b.box[2]), max(a.box[3], b.box[3]))
    frame = clip(bounds, strip)
    assert frame is not None
    pieces_a, pieces_b = _pieces(a, frame), _pieces(b, frame)
    sizes_a, sizes_b = np.bincount(pieces_a.ravel()), np.bincount(pieces_b.ravel())
    if len(sizes_a) == len(sizes_b) == 2:  # background and one piece each: already compared
        return False
    both = (pieces_a > 0) & (pieces_b > 0)
    pairs, counts = np.unique(pieces_a[both].astype(np.int64) * len(sizes_b) + pieces_b[both], return_counts=True)
    leaving_a, leaving_b = (_labels_on_edge(pieces, frame, strip) for pieces in (pieces_a, pieces_b))
    for pair, shared in zip(pairs.tolist(), counts.tolist(), strict=True):
        piece_a, piece_b = divmod(pair, len(sizes_b))
        least = match_iou if 2 * shared >= smaller else max(match_iou, MINOR_PIECE_IOU)
        leaves = piece_a in leaving_a or piece_b in leaving_b
        if leaves and _enough(shared, int(sizes_a[piece_a]), int(sizes_b[piece_b]), least):
            return True
    return False


def _pieces(view: View, frame: Corners) -> NDArray[np.int32]:
    canvas: Bool = np.zeros((frame[3] - frame[1], frame[2] - frame[0]), np.bool_)
    part = clip(view.box, frame)
    assert part is not None
    crop(canvas, frame, part)[...] = crop(view.mask, view.box, part)
    return cv2.connectedComponents(canvas.view(np.uint8), connectivity=4)[1].astype(np.int32, copy=False)


def _labels_on_edge(labels: NDArray[np.int32], frame: Corners, strip: Corners) -> set[int]:
    lines = (labels[:, 0], labels[0], labels[:, -1], labels[-1])
    return {
        label
        for line, at, edge in zip(lines, frame, strip, strict=True)
        if at == edge
        for label in np.unique(line).tolist()
    }


def compose(views: Sequence[View], scene: tuple[int, int]) -> Whole:
    """Put an object together: each pixel is decided by the chip that owns it, where that chip has the object.

    Pixels that belong to chips without a view of the object are taken from the others.

    Args:
        views: joined views, at least one.
        scene: width and height of the scene; at its border nothing is cut.
    """
    views = sorted(views, key=lambda view: view.key)
    only = views[0] if len(views) == 1 else _only_owner(views)
    box, mask, parts = _assemble(views) if only is None else (only.box, only.mask, 1)
    box, mask = _tighten(box, mask)
    deciding = [view.score for view in views if view.owned] or [view.score for view in views]
    return Whole(
        box=box,
        mask=mask,
        area=int(np.count_nonzero(mask)) if only is None else only.area,
        label=views[0].label,
        score=max(deciding),
        n_chips=len({view.window.index for view in views}),
        seam=parts > 1,
        cut=_is_cut(views, scene),
        owned=any(view.owned for view in views),
        key=views[0].key,
    )


def _only_owner(views: Sequence[View]) -> View | None:
    """The view whose chip owns all pixels that any view has, where it is that chip's only one: it decides alone."""
    owners = [view for view in views if view.owned]
    if len(owners) != 1 or owners[0].owned < owners[0].area:
        return None
    core = corners(owners[0].window.core)
    inside = all(
        core[0] <= box[0] and core[1] <= box[1] and box[2] <= core[2] and box[3] <= core[3]
        for box in (view.box for view in views)
    )
    return owners[0] if inside else None


def _assemble(views: Sequence[View]) -> tuple[Corners, Bool, int]:
    """Union of views, then each owner's word in its core; also the number of chips whose pixels were used."""
    x0, y0, x1, y1 = zip(*(view.box for view in views), strict=True)
    box = (min(x0), min(y0), max(x1), max(y1))
    mask = np.zeros((box[3] - box[1], box[2] - box[0]), np.bool_)
    chips: dict[int, list[View]] = {}
    for view in views:
        crop(mask, box, view.box)[...] |= view.mask
        chips.setdefault(view.window.index, []).append(view)
    parts = by_owners = 0
    for group in chips.values():
        core = clip(corners(group[0].window.core), box)
        if core is None:
            continue
        region = crop(mask, box, core)
        region[...] = False
        for view in group:
            part = clip(view.box, core)
            if part is not None:
                crop(mask, box, part)[...] |= crop(view.mask, view.box, part)
        pixels = int(np.count_nonzero(region))
        by_owners += pixels
        parts += pixels > 0
    return box, mask, parts + (int(np.count_nonzero(mask)) > by_owners)


def _tighten(box: Corners, mask: Bool) -> tuple[Corners, Bool]:
    """Cut empty rows and columns off; an empty mask keeps its box."""
    if mask[0].any() and mask[-1].any() and mask[:, 0].any() and mask[:, -1].any():
        return box, mask
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return box, mask
    tight = (box[0] + int(cols[0]), box[1] + int(rows[0]), box[0] + int(cols[-1]) + 1, box[1] + int(rows[-1]) + 1)
    return tight, crop(mask, box, tight).copy()


def _is_cut(views: Sequence[View], scene: tuple[int, int]) -> bool:
    """Whether a view stops at its chip's read border where no other view answers for the pixels."""
    edges = [(view, side) for view in views for side in _cut_sides(view, scene)]
    if not edges or len(views) == 1:
        return bool(edges)
    cores = np.array([corners(view.window.core) for view in views])
    return any(_unanswered(view, side, cores) for view, side in edges)


def _cut_sides(view: View, scene: tuple[int, int]) -> list[int]:
    """Sides (0 left, 1 top, 2 right, 3 bottom) of its read box, inside the scene, on which the mask has pixels."""
    read, limits = corners(view.window.read), (0, 0, *scene)
    return [side for side in range(4) if view.box[side] == read[side] != limits[side] and _line(view.mask, side).any()]


def _line(mask: Bool, side: int) -> Bool:
    return (mask[:, 0], mask[0], mask[:, -1], mask[-1])[side]


def _unanswered(view: View, side: int, cores: NDArray[np.int64]) -> bool:
    across, along = side % 2, 1 - side % 2
    at = view.box[side] - (side >= 2)
    start = view.box[along]
    line = _line(view.mask, side).copy()
    for first, last in cores[(cores[:, across] <= at) & (at < cores[:, across + 2])][:, [along, along + 2]].tolist():
        line[max(first - start, 0) : max(last - start, 0)] = False
    return bool(line.any())


def suppress(wholes: Iterable[Whole], rivals: dict[tuple[int, int], set[tuple[int, int]]]) -> set[tuple[int, int]]:
    """Mask NMS among objects of which each is in conflict with some other.

    First, an object that is cut at a chip's border gives way to an uncut one that is at least as large, whatever their
    scores: a truncated view never replaces a complete one. Then the higher score wins (ties: the smaller key).

    Args:
        wholes: objects, with their ``key``.
        rivals: by key, keys of the objects in conflict with it.

    Returns:
        Keys of the objects that stay.
    """
    by_key = {whole.key: whole for whole in wholes}

    def gives_way(whole: Whole) -> bool:
        others = (by_key[key] for key in rivals[whole.key])
        return whole.cut and any(not other.cut and other.area >= whole.area for other in others)

    kept: set[tuple[int, int]] = set()
    for whole in sorted(by_key.values(), key=lambda item: (-item.score, item.key)):
        if not gives_way(whole) and not rivals[whole.key] & kept:
            kept.add(whole.key)
    return kept
