"""What a stitcher still holds when its windows are through, as plain arrays: it travels and is kept on disk.

A part of a scene can finish only what no other part can change. The rest, objects at its border and those that overlap
them, is written down here, masks as bits, without any code that runs on loading.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rsgeoseg.geo.seams import NO_MASK, Cluster, View, Whole

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from rsgeoseg.geo.windows import WindowPlan

    Ints = NDArray[np.int64]

_ARRAYS = ("windows", "views", "scores", "wholes", "whole_scores", "rivals", "bits")


@dataclass(frozen=True, slots=True, eq=False)
class Remainder:
    """Views and composed objects that wait for other windows. All boxes are in scene pixels."""

    windows: Ints
    """(W,) indices of the windows that are behind the stitcher."""
    views: Ints
    """(V, 10): window, local id, x0, y0, x1, y1, label, area, owned, row of its object in ``wholes`` or of its cluster:
    clusters are numbered 0, 1, ..., composed ones first."""
    scores: NDArray[np.float64]
    """(V,)"""
    wholes: Ints
    """(C, 12): x0, y0, x1, y1, area, label, n_chips, seam, cut, owned, window and local id of the key."""
    whole_scores: NDArray[np.float64]
    """(C,)"""
    rivals: Ints
    """(R, 2) rows of ``views`` that overlap without being one object; each pair both ways."""
    bits: NDArray[np.uint8]
    """Masks one after the other, each packed to whole bytes: of ``wholes``, then of views that are not composed."""
    counts: Mapping[str, int]
    """Of the seam report."""

    def to_bytes(self) -> bytes:
        """Return the arrays as an ``.npz`` archive; ``from_bytes`` reads it."""
        buffer = io.BytesIO()
        text = np.frombuffer(json.dumps(dict(self.counts)).encode(), np.uint8)
        np.savez_compressed(buffer, counts=text, **{name: getattr(self, name) for name in _ARRAYS})
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Remainder:
        """Read what ``to_bytes`` wrote; no code in it can run.

        Raises:
            ValueError: it is something else.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                arrays: dict[str, Any] = {name: archive[name] for name in _ARRAYS}
                counts = json.loads(archive["counts"].tobytes())
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            msg = f"this is not the remainder of a part: {error}"
            raise ValueError(msg) from error
        return cls(**arrays, counts=counts)


def pack(windows: Ints, clusters: Sequence[Cluster], counts: Mapping[str, int]) -> Remainder:
    """Write down clusters of views, with what they overlap."""
    clusters = sorted(clusters, key=lambda cluster: cluster.whole is None)
    place = {id(cluster): number for number, cluster in enumerate(clusters)}
    views = [view for cluster in clusters for view in cluster.views]
    row = {id(view): number for number, view in enumerate(views)}
    wholes = [cluster.whole for cluster in clusters if cluster.whole is not None]
    rivals = [(row[id(view)], row[id(rival)]) for view in views for rival in view.rivals if id(rival) in row]
    masks = [whole.mask for whole in wholes] + [view.mask for view in views if view.cluster.whole is None]
    packed = [np.packbits(mask) for mask in masks]
    columns = [(v.window.index, v.local, *v.box, v.label, v.area, v.owned, place[id(v.cluster)]) for v in views]
    objects = [(*w.box, w.area, w.label, w.n_chips, w.seam, w.cut, w.owned, *w.key) for w in wholes]
    return Remainder(
        windows=np.asarray(windows, np.int64),
        views=np.array(columns, np.int64).reshape(-1, 10),
        scores=np.array([view.score for view in views], np.float64),
        wholes=np.array(objects, np.int64).reshape(-1, 12),
        whole_scores=np.array([whole.score for whole in wholes], np.float64),
        rivals=np.array(rivals, np.int64).reshape(-1, 2),
        bits=np.concatenate(packed) if packed else np.zeros(0, np.uint8),
        counts=counts,
    )


def unpack(remainder: Remainder, plan: WindowPlan) -> list[View]:
    """Build the views again, in their clusters and with their rivals; nothing is pending yet."""
    masks = _Masks(remainder.bits)
    clusters: dict[int, Cluster] = {}
    for number, (values, score) in enumerate(
        zip(remainder.wholes.tolist(), remainder.whole_scores.tolist(), strict=True)
    ):
        x0, y0, x1, y1, area, label, n_chips, seam, cut, owned, window, local = values
        clusters[number] = Cluster(
            whole=Whole(
                box=(x0, y0, x1, y1),
                mask=masks.take(y1 - y0, x1 - x0),
                area=area,
                label=label,
                score=score,
                n_chips=n_chips,
                seam=bool(seam),
                cut=bool(cut),
                owned=bool(owned),
                key=(window, local),
            )
        )
    views = []
    for values, score in zip(remainder.views.tolist(), remainder.scores.tolist(), strict=True):
        window, local, x0, y0, x1, y1, label, area, owned, number = values
        cluster = clusters.setdefault(number, Cluster())
        mask = NO_MASK if cluster.whole is not None else masks.take(y1 - y0, x1 - x0)
        view = View(plan.windows[window], local, (x0, y0, x1, y1), mask, label, score, area, owned, cluster)
        cluster.views.append(view)
        views.append(view)
    for a, b in remainder.rivals.tolist():
        views[a].rivals.append(views[b])
    return views


class _Masks:
    """Takes masks off a string of bits, one after the other."""

    def __init__(self, bits: NDArray[np.uint8]) -> None:
        self._bits, self._at = bits, 0

    def take(self, height: int, width: int) -> NDArray[np.bool_]:
        count = height * width
        end = self._at + -(-count // 8)
        mask = np.unpackbits(self._bits[self._at : end], count=count).view(np.bool_).reshape(height, width)
        self._at = end
        return mask
