"""Opening raster files that may be hostile: plain local files, one named driver each, caps before any pixel.

GDAL guesses a driver from a file's content, so that a VRT text named ``scene.tif`` would return the bytes of another
file; and it takes many strings that are not paths for data sets. Neither is possible through this module.
"""

from __future__ import annotations

import os
import re
import threading
import warnings
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.env import getenv, hasenv
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from rsgeoseg.errors import SceneError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rasterio.io import DatasetReader

    from rsgeoseg.geo.remote import RemoteFile

DRIVERS = {
    ".tif": "GTiff",
    ".tiff": "GTiff",
    ".vrt": "VRT",
    ".jp2": "JP2OpenJPEG",
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
}
"""The one driver that may open a file, by its extension."""

SERIAL_DRIVERS = frozenset({"PNG", "JPEG"})
"""Decoders that read from top to bottom: every further handle would decode the rows above again."""

MAX_BANDS = 1024
MAX_PIXELS = 10**12
"""A million by a million: the largest national mosaics at 0.3 m stay below."""
MAX_BLOCK_BYTES = 256 << 20
"""Decoding one pixel costs the memory of its whole block."""
SAFE_BLOCK_BYTES = 16 << 20
MAX_RATIO = 10_000
"""Declared bytes to file bytes. Only refused with blocks above ``SAFE_BLOCK_BYTES``: sparse files are legitimate."""
GDAL_CACHE_BYTES = 32 << 20
"""GDAL's block cache; scenes have their own cache of tiles, so that each block is asked for once."""

READ_ERRORS = (RasterioError, CPLE_BaseError, UnicodeDecodeError)
"""What rasterio raises for a bad file: its own errors, GDAL's as they are in places, those of text that is none."""

MAGIC = {
    "GTiff": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "PNG": (b"\x89PNG",),
    "JPEG": (b"\xff\xd8\xff",),
    "JP2OpenJPEG": (b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51"),
}
"""How files of each driver begin."""
_URL = re.compile(r"^[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_open_lock = threading.Lock()


def gdal_env(cache_bytes: int = GDAL_CACHE_BYTES, **settings: str) -> Any:
    """Return the GDAL settings that every open and read of this package runs under.

    Folders are not listed (slow on shares, and a folder may hold anything); sidecars are still found by name.

    Args:
        cache_bytes: GDAL's block cache, which the whole process shares.
        settings: further ones, which go before these.
    """
    usual = {
        "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE",
        "GDAL_VRT_ENABLE_PYTHON": "NO",
        "GDAL_PNG_WHOLE_IMAGE_OPTIM": "NO",  # that path returns stray memory for a truncated file, without an error
    }
    options = {"GDAL_CACHEMAX": cache_bytes, **usual, **settings}
    if hasenv() and options.items() <= getenv().items():
        return nullcontext()
    return rasterio.Env(**options)


def keep_gdal_env() -> None:
    """Run the calling thread under these settings to its end, for threads of our own: entering looks at files."""
    gdal_env().__enter__()


def plain_path(source: str | os.PathLike[str], what: str = "scene") -> Path:
    """Return the absolute path of an existing regular file.

    Args:
        source: what the user gave.
        what: what it is for, for the message.

    Raises:
        SceneError: a URL, inline XML, a GDAL virtual path, or nothing that exists as a file.
    """
    text = os.fspath(source)
    shown = text if len(text) <= 200 else text[:200] + "..."
    if "\0" in text or "\n" in text or text.lstrip().startswith("<"):
        msg = f"{what} {shown.splitlines()[0]!r} is not a path: give the name of a file"
        raise SceneError(msg)
    if _URL.match(text):
        msg = f"{what} {_without_secrets(shown)} is a URL of a kind that is not opened: download it and give the file"
        raise SceneError(msg)
    path = Path(os.path.abspath(os.path.expanduser(text)))  # noqa: PTH100, PTH111  (Path.resolve would follow links)
    if path.as_posix().lower().startswith("/vsi"):
        msg = f"{what} {_without_secrets(shown)} is a GDAL virtual path: unpack or download it and give the file"
        raise SceneError(msg)
    if not path.exists():
        msg = f"{what} {shown}: no such file; check the path"
        raise SceneError(msg)
    if not path.is_file():
        msg = (
            f"{what} {shown} is not a file; give the raster itself" if what == "scene" else f"{what} {shown} is no file"
        )
        raise SceneError(msg)
    return path


def driver_for(path: Path) -> str:
    """Return the name of the driver for a path.

    Raises:
        SceneError: an extension that is not on the list.
    """
    driver = DRIVERS.get(path.suffix.lower())
    if driver is None:
        msg = f"{path}: rasters named {path.suffix or 'without an extension'} are not read; give {' '.join(DRIVERS)}"
        raise SceneError(msg)
    return driver


def has_magic(path: Path, driver: str) -> bool:
    """Whether a file begins as files of this driver do."""
    with path.open("rb") as file:
        return file.read(16).startswith(MAGIC[driver])


def open_dataset(path: Path, driver: str) -> DatasetReader:
    """Open a raster with one driver.

    Raises:
        SceneError: the driver cannot open it.
    """
    with unwarned(), gdal_env():
        try:
            return rasterio.open(path, driver=driver)
        except READ_ERRORS as error:
            msg = f"{path} cannot be opened as {driver}: {reason(error, path)}; check that it is complete"
            raise SceneError(msg) from error


@contextmanager
def unwarned() -> Iterator[None]:
    """Keep rasterio from warning of a missing georeference, which is reported by Scene; for one thread at a time."""
    # The lock is for warnings.catch_warnings, which is not made for threads.
    with _open_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def reason(error: Exception, path: Path) -> str:
    """Return GDAL's words in one line, without the path they often begin with."""
    text = " ".join(str(error.__cause__ or error).split())
    for start in (f"'{path}' ", f"{path}: ", f"{path.name}, ", f"{path.name}: "):
        text = text.removeprefix(start)
    return text.rstrip(".")


def check_sidecars(path: Path) -> None:
    """Refuse overview, mask and metadata sidecars that would lead GDAL to other files.

    Raises:
        SceneError: naming the sidecar.
    """
    for suffix in (".ovr", ".msk", ".OVR", ".MSK"):
        sidecar = path.with_name(path.name + suffix)
        if sidecar.is_file() and not has_magic(sidecar, "GTiff"):
            msg = f"{sidecar} is not a TIFF: remove it, then rebuild it with gdaladdo if it is needed"
            raise SceneError(msg)
    notes = path.with_name(path.name + ".aux.xml")
    if notes.is_file():
        text = notes.read_bytes()
        if b"OVERVIEW_FILE" in text and (b"/vsi" in text or b"://" in text):
            msg = f"{notes} names overviews elsewhere: remove it, or build overviews beside the scene with gdaladdo"
            raise SceneError(msg)


def check_caps(dataset: DatasetReader, path: Path | RemoteFile, driver: str, size: int) -> None:
    """Refuse rasters whose header asks for more than a scene can be, before reading a pixel.

    Args:
        dataset: just opened.
        path: for the message.
        driver: that opened it.
        size: bytes of the file.

    Raises:
        SceneError: naming the file, the figure and the cap.
    """
    count, width, height = dataset.count, dataset.width, dataset.height
    if count < 1:
        msg = f"{path} has no bands (a container of several rasters?): give one of them"
        raise SceneError(msg)
    if count > MAX_BANDS:
        msg = f"{path} declares {count} bands, more than {MAX_BANDS}: extract the ones you need with gdal_translate -b"
        raise SceneError(msg)
    if width * height > MAX_PIXELS:
        msg = f"{path} declares {width} x {height} pixels, more than {MAX_PIXELS:.0e}: cut it into parts"
        raise SceneError(msg)
    if any("complex" in dtype for dtype in dataset.dtypes):
        msg = f"{path} holds complex numbers: convert it to amplitude first"
        raise SceneError(msg)
    item = max(np.dtype(dtype).itemsize for dtype in dataset.dtypes)
    rows, cols = dataset.block_shapes[0]
    together = count if dataset.interleaving is not None and dataset.interleaving.value.lower() == "pixel" else 1
    block = rows * cols * item * together
    if block > MAX_BLOCK_BYTES:
        msg = (
            f"{path} is stored in blocks of {cols} x {rows} pixels ({block >> 20} MB each, at most"
            f" {MAX_BLOCK_BYTES >> 20}): rewrite it with gdal_translate -co TILED=YES"
        )
        raise SceneError(msg)
    declared = width * height * count * item
    sparse_possible = driver == "VRT" or (driver == "GTiff" and block <= SAFE_BLOCK_BYTES)
    if not sparse_possible and declared > MAX_RATIO * max(size, 1):
        msg = f"{path} declares {declared} bytes of pixels in {size} bytes of file: it is damaged or made to do harm"
        raise SceneError(msg)


def _without_secrets(url: str) -> str:
    """Return a URL without user, password and query."""
    return re.sub(r"//[^/@]*@", "//", url).partition("?")[0]
