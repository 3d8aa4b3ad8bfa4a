"""The ten classes as seen from above: size, outline and paint of each, in the object's own frame (u length, v width).

Sizes are in pixels and follow the spread of the ten classes in aerial benchmark images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rsgeoseg.testing.draw_sites import SITE_LOOKS
from rsgeoseg.testing.draw_transport import APPROACH, TRANSPORT_LOOKS
from rsgeoseg.testing.drawing import fill_mask

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rsgeoseg.testing.drawing import Frame
    from rsgeoseg.testing.looks import Look

TEN_CLASSES = (
    "airplane", "ship", "storage_tank", "baseball_diamond", "tennis_court",
    "basketball_court", "ground_track_field", "harbor", "bridge", "vehicle",
)  # fmt: skip
"""Names in the order of the ten-class benchmark; an object's label indexes this tuple or the caller's own."""

LOOKS: dict[str, Look] = {**TRANSPORT_LOOKS, **SITE_LOOKS}
"""Kind of thing -> how it is made."""


@dataclass(frozen=True, slots=True)
class Thing:
    """One drawn thing: an object of a class, or clutter (tree, building) that is no object."""

    kind: str
    """Class name, ``tree`` or ``building``."""
    frame: Frame
    """Where it lies."""
    length: float
    """Extent along u, pixels."""
    width: float
    """Extent along v, pixels."""
    style: int
    """Seed of its colours and details."""
    instance: int = 0
    """Instance id > 0 of an object, 0 for clutter."""

    @property
    def crop(self) -> tuple[int, int, int, int]:
        """Scene pixels x0 y0 x1 y1 that hold its paint, surround and shadow."""
        look = LOOKS[self.kind]
        half_u, half_v = self.length / 2 + look.around, self.width / 2 + look.around
        if self.kind == "bridge":
            half_u = self.length / 2 + APPROACH
        return self.frame.crop(half_u, half_v, 4 + int(np.ceil(look.height)))

    @property
    def footprint(self) -> tuple[float, float]:
        """Half sides along u and v of the place that it needs, surround included, pixels."""
        look = LOOKS[self.kind]
        return self.length / 2 + look.around, self.width / 2 + look.around

    def mask(self) -> tuple[tuple[int, int, int, int], NDArray[np.bool_]]:
        """Exact pixels of the object: its box x0 y0 x1 y1 (scene pixels, tight) and the mask cropped to it."""
        x0, y0, x1, y1 = self.frame.crop(self.length / 2, self.width / 2, 2)
        full = fill_mask(self.frame, (x0, y0, x1, y1), LOOKS[self.kind].outline(self.length, self.width))
        rows, cols = np.flatnonzero(full.any(1)), np.flatnonzero(full.any(0))
        top, bottom, left, right = rows[0], rows[-1] + 1, cols[0], cols[-1] + 1
        return (x0 + int(left), y0 + int(top), x0 + int(right), y0 + int(bottom)), full[top:bottom, left:right]
