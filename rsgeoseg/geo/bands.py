"""Which bands of a scene a model sees."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from rasterio.enums import ColorInterp

from rsgeoseg.errors import SceneError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rsgeoseg.geo.source import SourceInfo

logger = logging.getLogger(__name__)

_RGB = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)


def choose_bands(info: SourceInfo, bands: Sequence[int] | None, count: int) -> tuple[int, ...]:
    """Return ``count`` band numbers, from 1.

    Given bands are taken as they are; one given band is repeated. Without, the alpha band is left aside, and then:
    bands marked red, green and blue if three are wanted; one or two bands: the first, repeated; more: the first ones.
    A choice that is a guess is said in the log.

    Args:
        info: the scene's header.
        bands: the user's choice, or None.
        count: how many bands the model takes.

    Raises:
        SceneError: band numbers the scene does not have, or too few bands.
        UsageError: not as many bands as the model takes.
    """
    name = info.name
    if bands is not None:
        return _given(info, tuple(int(band) for band in bands), count)
    if info.colors[0] == ColorInterp.palette:
        logger.warning("%s has a colour table: its indexes are used as grey values; see gdal_translate -expand", name)
    plain = [band for band in range(1, info.count + 1) if info.colors[band - 1] != ColorInterp.alpha] or [1]
    if count == 3 and all(color in info.colors for color in _RGB):
        chosen = tuple(info.colors.index(color) + 1 for color in _RGB)
        if len(plain) > 3:
            logger.info("%s has %d bands: using its red, green and blue, %s", name, info.count, chosen)
        return chosen
    if len(plain) in (1, 2) and len(plain) < count:
        logger.warning("%s has %d band(s): using band %d as all %d", name, len(plain), plain[0], count)
        return (plain[0],) * count
    if len(plain) < count:
        msg = (
            f"{info.location} has {info.count} bands, the model takes {count}: choose {count} of them, repeats allowed"
        )
        raise SceneError(msg)
    chosen = tuple(plain[:count])
    if len(plain) > count:
        logger.warning("%s has %d bands: using the first, %s; choose others if needed", name, info.count, chosen)
    return chosen


def _given(info: SourceInfo, bands: tuple[int, ...], count: int) -> tuple[int, ...]:
    wrong = [band for band in bands if not 1 <= band <= info.count]
    if wrong:
        msg = f"{info.location} has no band {', '.join(map(str, wrong))}: it has {info.count}, numbered from 1"
        raise SceneError(msg)
    if len(bands) == 1:
        return bands * count
    if len(bands) != count:
        msg = f"bands {','.join(map(str, bands))} are {len(bands)}, but {count} are wanted: name {count}, or one"
        raise UsageError(msg)
    return bands
