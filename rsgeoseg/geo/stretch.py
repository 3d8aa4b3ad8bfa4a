"""From a scene's values to 0-255: one mapping per band for the whole scene.

A mapping per chip would show the same ground differently in two chips and so make seams.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rsgeoseg.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

logger = logging.getLogger(__name__)

Kind = Literal["none", "percentile", "minmax"]

_DEFAULT_PERCENTILES = (2.0, 98.0)


@dataclass(frozen=True, slots=True)
class StretchRule:
    """How a stretch is found, as the user asked for it."""

    kind: Literal["auto", "none", "percentile", "minmax"]
    """``auto``: uint8 stays as it is, anything else takes percentiles 2 and 98."""
    low: float = 0.0
    """Percentile, or value, that becomes 0."""
    high: float = 0.0
    """Percentile, or value, that becomes 255."""

    def settled(self, dtype: DTypeLike) -> StretchRule:
        """Return the rule with ``auto`` decided for a dtype."""
        if self.kind != "auto":
            return self
        if np.dtype(dtype) == np.uint8:
            return StretchRule("none")
        return StretchRule("percentile", *_DEFAULT_PERCENTILES)


@dataclass(frozen=True, slots=True)
class Stretch:
    """A linear mapping per band: ``low`` becomes 0, ``high`` becomes 255, clipped and rounded to nearest."""

    kind: Kind
    """``none``: values are 0-255 already, and are only clipped and rounded where they are not uint8."""
    low: tuple[float, ...] = ()
    """Value of each band that becomes 0; empty for ``none``."""
    high: tuple[float, ...] = ()
    """Value of each band that becomes 255; empty for ``none``."""

    def __post_init__(self) -> None:
        """Check once, here."""
        pairs = list(zip(self.low, self.high, strict=False))
        if len(self.low) != len(self.high) or (self.kind == "none") != (not pairs):
            msg = f"a stretch needs as many low as high values, and none for kind none: {self.low} {self.high}"
            raise ValueError(msg)
        if not all(math.isfinite(low) and math.isfinite(high) and low < high for low, high in pairs):
            msg = f"a stretch needs finite low < high in each band, got {pairs}"
            raise ValueError(msg)

    def apply(self, image: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> NDArray[np.uint8]:
        """Map an image to 0-255.

        Args:
            image: (bands, h, w), any real dtype; as many bands as the stretch has (any for ``none``).
            valid: (h, w), False where the result shall be 0; None = all valid.

        Returns:
            (bands, h, w) uint8. For uint8 with kind ``none`` and no ``valid`` it is ``image`` itself, not a copy.

        Raises:
            ValueError: the number of bands is not the stretch's.
        """
        if self.low and len(image) != len(self.low):
            msg = f"the stretch has {len(self.low)} bands, the image {len(image)}"
            raise ValueError(msg)
        if self.kind == "none" and image.dtype == np.uint8:
            out: NDArray[np.uint8] = image if valid is None else image.copy()
        else:
            out = np.empty(image.shape, np.uint8)
            for index, band in enumerate(image):
                low, high = (self.low[index], self.high[index]) if self.low else (0.0, 255.0)
                _map_band(band, low, high, out[index])
        if valid is not None:
            np.multiply(out, valid, out=out)
        return out

    def take(self, order: tuple[int, ...]) -> Stretch:
        """Return the stretch of other bands: positions of this one's bands, repeats allowed."""
        if not self.low:
            return self
        return Stretch(self.kind, tuple(self.low[i] for i in order), tuple(self.high[i] for i in order))

    def to_dict(self) -> dict[str, Any]:
        """JSON values for the run record; ``from_dict`` gives an equal stretch back."""
        return {"kind": self.kind, "low": list(self.low), "high": list(self.high)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Stretch:
        """Read what ``to_dict`` wrote."""
        return cls(values["kind"], tuple(values["low"]), tuple(values["high"]))


def parse_stretch(text: str) -> StretchRule:
    """Read ``auto``, ``none``, ``percentile:2,98`` or ``minmax:0,3000``.

    Raises:
        UsageError: anything else.
    """
    name, colon, rest = text.strip().lower().partition(":")
    if name in ("auto", "none") and not colon:
        return StretchRule("auto" if name == "auto" else "none")
    if name == "percentile" and not colon:
        return StretchRule("percentile", *_DEFAULT_PERCENTILES)
    try:
        low, high = (float(part) for part in rest.split(","))
    except ValueError:
        low = high = math.nan
    if name == "percentile" and 0 <= low < high <= 100:
        return StretchRule("percentile", low, high)
    if name == "minmax" and math.isfinite(low) and math.isfinite(high) and low < high:
        return StretchRule("minmax", low, high)
    msg = f"stretch {text!r} is not usable: give auto, none, percentile:2,98 or minmax:0,3000 (low below high)"
    raise UsageError(msg)


def estimate_stretch(rule: StretchRule, sample: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> Stretch:
    """Find the mapping of a scene from a sample of its pixels.

    A band whose two percentiles are equal takes its smallest and largest value instead; a constant band becomes 0
    everywhere. Without a valid pixel 0-1 becomes 0-255, which nobody will see.

    Args:
        rule: what the user asked for.
        sample: (bands, h, w), any real dtype.
        valid: (h, w), False where a pixel does not count; None = all count. NaN and infinities never count.
    """
    rule = rule.settled(sample.dtype)
    if rule.kind == "none":
        return Stretch("none")
    if rule.kind == "minmax":
        return Stretch("minmax", (rule.low,) * len(sample), (rule.high,) * len(sample))
    pairs = [_percentiles(band if valid is None else band[valid], rule.low, rule.high) for band in sample]
    return Stretch("percentile", tuple(low for low, _ in pairs), tuple(high for _, high in pairs))


def _percentiles(values: NDArray[Any], low: float, high: float) -> tuple[float, float]:
    if not np.issubdtype(values.dtype, np.integer):
        values = values[np.isfinite(values)]
    if values.size == 0:
        logger.warning("no valid pixel to find a stretch from")
        return 0.0, 1.0
    first, last = (float(value) for value in np.percentile(values, (low, high)))
    if first >= last:
        first, last = float(values.min()), float(values.max())
    # A constant band: the next number up keeps the mapping defined, also where 1 is lost in the value's magnitude.
    return (first, last) if first < last else (first, max(first + 1.0, math.nextafter(first, math.inf)))


def _map_band(band: NDArray[Any], low: float, high: float, out: NDArray[np.uint8]) -> None:
    if band.dtype in (np.uint8, np.uint16):
        np.take(_table(band.dtype.str, low, high), band, out=out, mode="clip")
    elif band.dtype == np.int16:
        np.take(_table(band.dtype.str, low, high), band.view(np.uint16), out=out, mode="clip")
    else:
        out[...] = _linear(band, low, high)


@lru_cache(maxsize=64)
def _table(dtype: str, low: float, high: float) -> NDArray[np.uint8]:
    """Mapped value of every value of a small integer dtype, indexed by its bits."""
    kind = np.dtype(dtype)
    bits = np.arange(1 << (8 * kind.itemsize), dtype=f"u{kind.itemsize}")
    return _linear(bits.view(kind), low, high)


def _linear(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    # float32 keeps the difference well enough once the offset is gone, and halves the memory traffic.
    exact = np.float32 if values.dtype in (np.float16, np.float32) else np.float64
    scaled = np.subtract(values, low, dtype=exact)
    scaled *= 255.0 / (high - low)
    np.nan_to_num(scaled, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
    np.clip(scaled, 0.0, 255.0, out=scaled)
    scaled += 0.5
    mapped: NDArray[np.uint8] = scaled.astype(np.uint8)
    return mapped
