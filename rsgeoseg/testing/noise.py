"""Repeatable randomness for made scenes: everything is a function of seed and place, never of the order of drawing."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def place_rng(seed: int, *keys: int) -> np.random.Generator:
    """Return a generator that belongs to one place.

    Args:
        seed: the scene's seed, >= 0.
        keys: non-negative integers that name the place (cell row, cell column, purpose).
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *keys])))


def hash_unit(seed: int, rows: NDArray[np.int64], cols: NDArray[np.int64], salt: int = 0) -> NDArray[np.float64]:
    """Hash lattice points to [0, 1).

    Args:
        seed: the scene's seed.
        rows: integers of any shape.
        cols: integers that broadcast with ``rows``.
        salt: purpose, so that one place has several independent numbers.

    Returns:
        float64 of the broadcast shape.
    """
    with np.errstate(over="ignore"):
        h = np.asarray(rows).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        h = h ^ (np.asarray(cols).astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F))
        h = h ^ np.uint64((seed * 0x165667B19E3779F9 + salt * 0x27D4EB2F165667C5) & 0xFFFFFFFFFFFFFFFF)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            h = (h ^ (h >> np.uint64(shift))) * np.uint64(factor)
        h = h ^ (h >> np.uint64(31))
    unit: NDArray[np.float64] = (h >> np.uint64(11)).astype(np.float64) / float(1 << 53)
    return unit


@lru_cache(maxsize=32)
def texture(seed: int, salt: int, period: int, feature: float) -> NDArray[np.float32]:
    """Make a periodic noise picture; it tiles without a seam.

    Args:
        seed: the scene's seed.
        salt: purpose.
        period: side of the square, pixels.
        feature: size of its blobs (standard deviation of the Gaussian), pixels.

    Returns:
        (period, period) float32, mean 0, standard deviation 1, clipped to +-3. Shared: do not write into it.
    """
    white = place_rng(seed, 9001, salt).standard_normal((period, period))
    freq_y, freq_x = np.fft.fftfreq(period)[:, None], np.fft.rfftfreq(period)[None, :]
    damp = np.exp(-2 * (np.pi * feature) ** 2 * (freq_y**2 + freq_x**2))
    damp[0, 0] = 0
    smooth = np.fft.irfft2(np.fft.rfft2(white) * damp, s=white.shape)
    out: NDArray[np.float32] = np.clip(smooth / smooth.std(), -3, 3).astype(np.float32)
    out.flags.writeable = False
    return out


@lru_cache(maxsize=8)
def line_texture(seed: int, salt: int, period: int, feature: float) -> NDArray[np.float32]:
    """Make a periodic noise line: (period,) float32, mean 0, in [-1, 1]. Shared: do not write into it."""
    white = place_rng(seed, 9002, salt).standard_normal(period)
    damp = np.exp(-2 * (np.pi * feature * np.fft.rfftfreq(period)) ** 2)
    damp[0] = 0
    smooth = np.fft.irfft(np.fft.rfft(white) * damp, n=period)
    out: NDArray[np.float32] = (smooth / np.abs(smooth).max()).astype(np.float32)
    out.flags.writeable = False
    return out


def sample(tile: NDArray[np.float32], ys: NDArray[np.int64], xs: NDArray[np.int64]) -> NDArray[np.float32]:
    """Read a periodic picture at rows ``ys`` and columns ``xs``: (len(ys), len(xs)) float32."""
    period = len(tile)
    picked: NDArray[np.float32] = np.take(np.take(tile, ys % period, axis=0), xs % period, axis=1)
    return picked
