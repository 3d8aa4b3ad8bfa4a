"""Small rasters and vectors for the scene tests, made in code, and where the real ones are."""

import os
import warnings
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning

UTM = "EPSG:32631"
NORTH_UP = Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)
SHARED = Path(os.environ.get("RSGEOSEG_SHARED_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


def real_scene(name: str) -> Path:
    path = SHARED / "scenes" / name
    if not path.is_file():
        pytest.skip(f"REAL SCENE NOT TESTED: {path} is absent; set RSGEOSEG_SHARED_DATA to the folder of real data")
    return path


def noise(bands, height, width, dtype="uint8", seed=0):
    """Values from 1 to 200 (uint8) or 1 to 5000, so that 0 is free for nodata."""
    rng = np.random.default_rng(seed)
    high = 200 if np.dtype(dtype).itemsize == 1 else 5000
    return rng.integers(1, high, (bands, height, width)).astype(dtype)


def write(
    path, image, *, driver="GTiff", crs=UTM, transform=NORTH_UP, mask=None, colors=None, overviews=None, **profile
):
    bands, height, width = image.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(
            path, "w", driver=driver, height=height, width=width, count=bands, dtype=image.dtype, crs=crs,
            transform=transform, **profile,
        ) as dataset:  # fmt: skip
            if colors is not None:
                dataset.colorinterp = colors
            dataset.write(image)
            if mask is not None:
                dataset.write_mask(mask)
            if overviews:
                dataset.build_overviews(overviews)
    return path


def tiled(block=16, **profile):
    return {"tiled": True, "blockxsize": block, "blockysize": block, **profile}


def write_area(path, shapes, crs=UTM):
    geopandas.GeoSeries(shapes, crs=crs).to_file(path)
    return path
