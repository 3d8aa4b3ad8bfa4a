"""Pixels of a chip, read from its scene when asked for, in any process."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from rsgeoseg.geo.scene import Scene, SceneOptions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rsgeoseg.geo.stretch import Stretch
    from rsgeoseg.geo.windows import Box

_OPEN_SCENES = 16
"""Scenes that a process keeps open."""


@dataclass(frozen=True, slots=True)
class SceneChip:
    """Reads a window of a scene as RGB; can be pickled, and opens the scene once per process."""

    options: SceneOptions
    """How the scene is opened; hashable."""
    stretch: Stretch
    """The scene's one mapping to 0-255."""
    box: Box
    """The window, pixels of the scene's working grid."""

    @classmethod
    def of(cls, scene: Scene, box: Box) -> SceneChip:
        """Make the reader of a window; finds the scene's stretch, if that was not done before."""
        assert scene.stretch  # finding it here once saves every worker from doing so
        _, (options, stretch) = scene.__reduce__()
        assert stretch is not None
        # the area as a geometry: a frame could not be told from another, and its file may go
        return cls(replace(options, aoi=scene.aoi_geometry), stretch, box)

    def __call__(self) -> NDArray[np.uint8]:
        """Read the window, (h, w, 3) uint8; 0 where the scene has no data.

        Raises:
            SceneError: the scene is gone or cannot be read.
        """
        chip = _scene(self.options, self.stretch, os.getpid()).read(self.box)
        return np.ascontiguousarray(np.moveaxis(chip.image, 0, -1), np.uint8)


@lru_cache(maxsize=_OPEN_SCENES)
def _scene(options: SceneOptions, stretch: Stretch, _process: int) -> Scene:
    """Open a scene; a forked process opens its own, since handles share their place in the file."""
    return Scene(options, stretch)
