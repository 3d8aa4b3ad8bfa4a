"""A raster on a server as a source of scenes: found, identified, and read with patience."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import rasterio
from rasterio.errors import RasterioIOError

from rsgeoseg.errors import SceneError
from rsgeoseg.geo import opening, remote, vsi
from rsgeoseg.geo.raster import Raster, RasterInfo, read_header
from rsgeoseg.geo.source import Pixels, SourceInfo, resampling_factors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from rasterio.io import DatasetReader

    from rsgeoseg.geo.remote import RemoteFile
    from rsgeoseg.geo.windows import Box

Answer = TypeVar("Answer")

logger = logging.getLogger(__name__)

FETCHED_SIDE = 1024
"""Pixels of a side that are fetched at once: twice what local scenes decode at once, since a request takes longer."""
HASHED_BYTES = 64 << 10
"""Bytes of each end of a file that tell it from others; the first ones hold the header, which is read anyway."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteInfo(RasterInfo):
    """What a remote raster's header says, checked, and what its server says."""

    path: RemoteFile  # type: ignore[assignment]  # every method of the base that needs a Path is below
    identity: dict[str, Any]
    """Size, ETag, time of change and a hash of the ends, when it was opened."""

    @property
    def location(self) -> str:
        """Address without secrets."""
        return str(self.path)

    @property
    def file(self) -> Path | None:
        """None: it is not a file of this machine."""
        return None

    @property
    def files(self) -> tuple[Path, ...]:
        """None."""
        return ()

    @property
    def recipe(self) -> str:
        """The address with its secrets, which another process needs as well."""
        return self.path.url

    @property
    def settings(self) -> dict[str, Any]:
        """GDAL's settings while it is read."""
        return remote.settings()

    def reader(self, bands: tuple[int, ...], gsd: float | None) -> RemoteRaster:
        """Return the pixels of some bands, see ``SourceInfo``."""
        return RemoteRaster(self, bands, resampling_factors(self, gsd))

    def fingerprint(self) -> dict[str, Any]:
        """Return what the server said when the file was opened, and a hash of the file's ends."""
        return dict(self.identity)

    def has_changed(self, since: Mapping[str, Any]) -> bool:
        """Ask the server for the file's size, ETag and time once more; what does not answer has not changed."""
        vsi.forget(self.path.vsi)
        try:
            with opening.gdal_env(**self.settings):
                return _differs(_version(self.path), since)
        except vsi.VsiError as error:
            logger.debug("%s: %s", self.path, error)
            return False

    def reason(self, error: Exception) -> str:
        """Return why the server did not give what was asked, in one line without secrets."""
        return remote.reason(self.path, error)


def _satisfies(info: RemoteInfo) -> SourceInfo:
    return info  # checked by mypy


class RemoteRaster(Raster):
    """Bands of a raster on a server, see ``Raster``; what fails is tried again."""

    info: RemoteInfo

    def __init__(self, info: RemoteInfo, bands: tuple[int, ...], factors: tuple[float, float] | None = None) -> None:
        super().__init__(info, bands, factors)
        self._patience = remote.Patience(lambda: vsi.forget(info.path.vsi))

    def read(self, box: Box) -> Pixels:
        """Read a box of the grid, see ``Raster.read``."""
        return self._patiently(partial(super().read, box))

    def read_decimated(self, box: Box, rows: int, cols: int) -> Pixels:
        """Read a box of the grid averaged, see ``Raster.read_decimated``."""
        return self._patiently(partial(super().read_decimated, box, rows, cols))

    def sample(self, max_side: int = 2048) -> Pixels:
        """Read enough pixels to find a stretch, see ``Raster.sample``."""
        return self._patiently(partial(super().sample, max_side))

    def close(self) -> None:
        """Close idle handles, and let those who wait for another attempt give up soon."""
        self._patience.interrupt()
        super().close()

    def _patiently(self, do: Callable[[], Pixels]) -> Pixels:
        try:
            return self._patience.attempt(do, opening.READ_ERRORS)
        except opening.READ_ERRORS as error:
            raise RasterioIOError(remote.reason(self.info.path, error)) from None  # the error's own text has secrets

    def _open_file(self) -> DatasetReader:
        if _differs(_version(self.info.path), self.info.identity):
            msg = f"{self.info.path} has changed on the server since it was opened: run again"
            raise SceneError(msg)
        return rasterio.open(self.info.path.vsi, driver=self.info.driver)


def inspect_remote(source: str) -> RemoteInfo:
    """Ask the server for a raster, open it with its one driver, check the header; read no pixel.

    Raises:
        SceneError: anything that makes it unusable.
    """
    file = remote.parse_address(source)
    driver = file.driver
    with opening.gdal_env(**remote.settings()):
        identity = _identify(file, driver)
        try:
            with opening.unwarned():
                dataset = rasterio.open(file.vsi, driver=driver)
            with dataset:
                header = read_header(dataset, file, driver, identity["bytes"])
        except opening.READ_ERRORS as error:
            msg = f"{file} cannot be opened as {driver}: {remote.reason(file, error)}; check the file on the server"
            raise SceneError(msg) from None
    header["block"] = _together(header["block"], header["grid"].width)
    return RemoteInfo(path=file, driver=driver, identity=identity, sources=(), **header)


def _together(block: tuple[int, int], width: int) -> tuple[int, int]:
    """Return rows and columns of the whole blocks that are fetched at once: GDAL asks for them side by side."""
    rows, cols = block
    if cols >= width:  # strips
        return rows, cols
    return rows * max(1, FETCHED_SIDE // rows), cols * max(1, FETCHED_SIDE // cols)


def _identify(file: RemoteFile, driver: str) -> dict[str, Any]:
    """Return the size, version and hash of the ends of a remote file.

    Raises:
        SceneError: the server does not give it, or not in parts, or it is not of this driver's kind.
    """
    vsi.forget(file.vsi)  # what an earlier scene of this address was told may be out of date
    patience = remote.Patience(lambda: vsi.forget(file.vsi))
    try:
        version = patience.attempt(lambda: _passing(lambda: _version(file)), (_PassingError,))
        size, count = version["bytes"], min(HASHED_BYTES, version["bytes"])
        head = patience.attempt(lambda: _passing(lambda: _range(file, 0, count)), (_PassingError,))
        tail = patience.attempt(lambda: _passing(lambda: _range(file, size - count, count)), (_PassingError,))
    except vsi.VsiError as error:
        msg = f"{file} cannot be opened: {remote.reason(file, error)}"
        raise SceneError(msg) from None
    if not head.startswith(opening.MAGIC[driver]):
        what = "a web page" if head.lstrip()[:1] == b"<" else "something else"
        msg = f"{file} is not a {driver} file: the server sends {what if head else 'an empty file'}; check the address"
        raise SceneError(msg)
    return {**version, "sha256_ends": hashlib.sha256(head + tail).hexdigest()}


class _PassingError(vsi.VsiError):
    """The server may give another answer in a moment."""


def _passing(ask: Callable[[], Answer]) -> Answer:
    """Return an answer, and mark failures that may pass."""
    try:
        return ask()
    except vsi.VsiError as error:
        if remote.is_passing(error):
            raise _PassingError(str(error)) from None
        raise


def _range(file: RemoteFile, start: int, count: int) -> bytes:
    with vsi.open_file(file.vsi) as handle:
        found = handle.read(start, count)
    if len(found) < count:
        msg = "the connection was broken"
        raise vsi.VsiError(msg)
    return found


def _differs(version: Mapping[str, Any], then: Mapping[str, Any]) -> bool:
    """Tell whether a server now says something else of a file; what it leaves out does not count."""
    return any(None not in (value, then[name]) and value != then[name] for name, value in version.items())


def _version(file: RemoteFile) -> dict[str, Any]:
    """Return what tells versions of a file apart, as the server says it."""
    with vsi.open_file(file.vsi) as handle:
        size = handle.size()
    headers = vsi.headers(file.vsi)
    if not headers:
        msg = "no answer"
        raise vsi.VsiError(msg)
    etag = headers.get("etag")
    if etag is not None:
        etag = etag.removeprefix("W/")  # proxies weaken the tags of what they pass on
    return {"bytes": size, "etag": etag, "last_modified": headers.get("last-modified")}
