"""Where the pixels of a raster lie on Earth: shape, full affine and CRS, as one immutable value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyproj
from affine import Affine
from pyproj.exceptions import CRSError as ProjCRSError
from pyproj.exceptions import ProjError
from rasterio.errors import CRSError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from rasterio.crs import CRS

    from rsgeoseg.geo.windows import Box

_SCALE_TOLERANCE = 0.01
"""A projection's scale is corrected from here on: UTM (0.04 %) is left alone, Web Mercator at 50 degrees (55 %) not."""


@dataclass(frozen=True, slots=True)
class GeoGrid:
    """A raster's pixel grid in the world.

    Pixel coordinates are x right, y down, (0, 0) at the outer corner of the upper-left pixel. The affine may rotate,
    shear or run south-up: it is always applied whole.

    Raises:
        ValueError: the grid is empty or its affine cannot be inverted.
    """

    height: int
    """Rows."""
    width: int
    """Columns."""
    affine: Affine
    """Pixel (x, y) to world (X, Y), in CRS units."""
    crs: CRS | None
    """None: the world is pixel coordinates (or those of a world file)."""

    def __post_init__(self) -> None:
        """Check once, here."""
        if self.height < 1 or self.width < 1:
            msg = f"a grid needs at least 1 x 1 pixel, got {self.width} x {self.height}"
            raise ValueError(msg)
        determinant = self.affine.determinant
        if not math.isfinite(determinant) or determinant == 0:
            msg = f"the affine {tuple(self.affine)[:6]} cannot be inverted"
            raise ValueError(msg)

    @property
    def is_geographic(self) -> bool:
        """Whether world coordinates are longitude and latitude."""
        return self.crs is not None and bool(self.crs.is_geographic)

    @property
    def is_axis_aligned(self) -> bool:
        """Whether rows and columns run along the world's axes (north-up or south-up)."""
        return bool(self.affine.b == 0 and self.affine.d == 0)

    def xy(self, points: ArrayLike) -> NDArray[np.float64]:
        """Pixel coordinates to world coordinates, (N, 2) x y to (N, 2) X Y, exactly as ``affine * point``."""
        return _apply(self.affine, points)

    def pixels(self, world: ArrayLike) -> NDArray[np.float64]:
        """World coordinates to pixel coordinates, (N, 2) X Y to (N, 2) x y."""
        # Subtracting the origin first keeps the digits that a large false northing would cost.
        affine = self.affine
        linear = ~Affine(affine.a, affine.b, 0.0, affine.d, affine.e, 0.0)
        return _apply(linear, np.asarray(world, np.float64).reshape(-1, 2) - (affine.c, affine.f))

    @property
    def corners(self) -> NDArray[np.float64]:
        """(4, 2) world X Y of the outer corners: upper left, upper right, lower right, lower left of the image."""
        return self.xy([(0, 0), (self.width, 0), (self.width, self.height), (0, self.height)])

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Smallest and largest world coordinates: X min, Y min, X max, Y max."""
        low, high = self.corners.min(axis=0), self.corners.max(axis=0)
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])

    @property
    def pixel_size(self) -> tuple[float, float] | None:
        """Ground length in metres of one pixel step along a row and down a column, at the centre of the grid.

        None where there is no CRS or its unit is unknown.
        """
        steps = self._metre_steps()
        return None if steps is None else (math.hypot(*steps[0]), math.hypot(*steps[1]))

    @property
    def gsd(self) -> float | None:
        """Ground sampling distance: the square root of a pixel's ground area, metres per pixel, at the centre.

        Geographic coordinates are measured on the ellipsoid. Projected coordinates are taken at their word unless the
        projection's own scale there is off by more than 1 % (Web Mercator), which is then corrected. None where there
        is no CRS or its unit is unknown.
        """
        steps = self._metre_steps()
        if steps is None:
            return None
        (x_east, x_north), (y_east, y_north) = steps
        return math.sqrt(abs(x_east * y_north - x_north * y_east))

    def subgrid(self, box: Box) -> GeoGrid:
        """Return the grid of a window of this one."""
        affine = self.affine * Affine.translation(box.x0, box.y0)
        return GeoGrid(box.height, box.width, affine, self.crs)

    def resampled(self, height: int, width: int, factor_x: float, factor_y: float) -> GeoGrid:
        """Return the grid with the same origin whose pixels are larger by the two factors."""
        return GeoGrid(height, width, self.affine * Affine.scale(factor_x, factor_y), self.crs)

    def _metre_steps(self) -> tuple[tuple[float, float], tuple[float, float]] | None:
        """(east, north) metres of one step in x and of one step in y, at the centre."""
        if self.crs is None:
            return None
        affine = self.affine
        centre = self.xy([(self.width / 2, self.height / 2)])[0]
        if self.crs.is_geographic:
            east, north = _metres_per_unit(self.crs, float(centre[1]))
        else:
            try:
                _, unit = self.crs.linear_units_factor
            except CRSError:
                return None
            east = north = float(unit) / _point_scale(self.crs, float(centre[0]), float(centre[1]))
        return (affine.a * east, affine.d * north), (affine.b * east, affine.e * north)


def _apply(affine: Affine, points: ArrayLike) -> NDArray[np.float64]:
    """Apply an affine to (N, 2) points, term by term in the order that ``Affine * point`` uses."""
    points = np.asarray(points, np.float64).reshape(-1, 2)
    x, y = points[:, 0], points[:, 1]
    return np.stack([x * affine.a + y * affine.b + affine.c, x * affine.d + y * affine.e + affine.f], axis=1)


def _metres_per_unit(crs: CRS, latitude: float) -> tuple[float, float]:
    """Metres east and north per unit of a geographic CRS at a latitude given in that unit."""
    _, radians_per_unit = crs.units_factor
    phi = min(max(latitude * radians_per_unit, -math.pi / 2), math.pi / 2)
    geod = pyproj.CRS.from_user_input(crs).get_geod() or pyproj.Geod(ellps="WGS84")
    root = math.sqrt(1 - geod.es * math.sin(phi) ** 2)
    # Radii of curvature: prime vertical times cos(latitude) along a parallel, meridional along a meridian.
    east = geod.a / root * math.cos(phi)
    north = geod.a * (1 - geod.es) / root**3
    return max(east, 1e-9) * radians_per_unit, north * radians_per_unit


def _point_scale(crs: CRS, x: float, y: float) -> float:
    """Linear scale of a projection at a point, as the root of its areal scale; 1 where it is near 1 or unknown."""
    try:
        projection = pyproj.Proj(pyproj.CRS.from_user_input(crs))
        longitude, latitude = projection(x, y, inverse=True, errcheck=True)
        scale = math.sqrt(abs(projection.get_factors(longitude, latitude).areal_scale))
    except (ProjError, ProjCRSError):
        return 1.0
    return scale if math.isfinite(scale) and abs(scale - 1) > _SCALE_TOLERANCE else 1.0
