"""How much of an exact truth a joining rule gave back, and what it broke."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import shapely

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SAME, _GOOD = 0.5, 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Figures of one result."""

    recovered: dict[str, tuple[int, int]]
    """By kind: objects that are matched with IoU >= 0.8, and all."""
    duplicates: int
    """Results that have IoU >= 0.5 with an object that a better result already has."""
    fragments: int
    """Results without IoU >= 0.5 with any object."""
    merged: int
    """Results that hold at least half of each of two objects."""


def score(truth: NDArray[np.object_], kinds: list[str], found: NDArray[np.object_]) -> Score:
    """Match a result with the truth, best IoU first.

    Args:
        truth: (N,) valid shapely polygons.
        kinds: of each.
        found: (M,) valid shapely polygons.
    """
    of, which = shapely.STRtree(found).query(truth, predicate="intersects")
    common = shapely.area(shapely.intersection(truth[of], found[which]))
    true_area, found_area = shapely.area(truth), shapely.area(found)
    iou = common / (true_area[of] + found_area[which] - common)
    partner, quality = np.full(len(found), -1), np.zeros(len(truth))
    taken = np.zeros(len(truth), np.bool_)
    for k in np.argsort(-iou, kind="stable"):
        if iou[k] < _SAME:
            break
        if partner[which[k]] < 0 and not taken[of[k]]:
            partner[which[k]], taken[of[k]], quality[of[k]] = of[k], True, iou[k]
    near = np.zeros(len(found))
    np.maximum.at(near, which, iou)
    halves = np.bincount(which[common >= _SAME * true_area[of]], minlength=len(found))
    every = np.array(kinds)
    return Score(
        recovered={kind: (int((quality[every == kind] >= _GOOD).sum()), int((every == kind).sum())) for kind in
                   dict.fromkeys(kinds)},
        duplicates=int(((partner < 0) & (near >= _SAME)).sum()),
        fragments=int((near < _SAME).sum()),
        merged=int((halves >= 2).sum()),
    )  # fmt: skip
