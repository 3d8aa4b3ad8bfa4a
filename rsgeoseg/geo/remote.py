"""Rasters on servers: which addresses are taken, how GDAL is to read them, and what went wrong in words.

Only an address that the user gives is opened, never one that a file names. It goes to GDAL's ``/vsicurl/`` or to the
handler of an object store, with one named driver, and nothing else: no chains of handlers, no folders, no sidecars.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import threading
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar
from urllib.parse import unquote, urlsplit

from rsgeoseg.errors import SceneError
from rsgeoseg.network import OFFLINE, is_offline

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")

DRIVERS = {".tif": "GTiff", ".tiff": "GTiff", ".jp2": "JP2OpenJPEG"}
"""Formats that can be read in parts, by the extension of the address; PNG and JPEG cannot."""

STORES = {"s3": "vsis3", "gs": "vsigs", "az": "vsiaz"}
"""GDAL's handler of each kind of object store, by the scheme of its addresses."""

PAUSES_S = (0.5, 2.0, 6.0)
"""Waits before a failed read is tried again: longer than a hiccup, shorter than the user's patience."""

SETTINGS = {
    # No listing of the folder and no probing for sidecars: neither exists on most servers, and each costs a round trip.
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    # Neighbouring blocks in one request: a round trip costs more than the bytes between them.
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    # Ranges of one read run side by side on one connection where the server can do HTTP/2; plain HTTP stays at 1.1.
    "GDAL_HTTP_MULTIPLEX": "YES",
    "GDAL_HTTP_VERSION": "2TLS",
    # Directories of large files come whole with the first request, which costs no more time than 16 KB.
    "GDAL_INGESTED_BYTES_AT_OPEN": "65536",
    # Decoded tiles are kept by the scene, so that no block is asked for twice: a second cache would only take memory.
    "VSI_CACHE": "NO",
    # A server that takes no connection in 10 s, or sends nothing for 15 s, has gone. The last is for one that drips.
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1",
    "GDAL_HTTP_LOW_SPEED_TIME": "15",
    "GDAL_HTTP_TIMEOUT": "180",
    # A request that the server turns away (429, 5xx) is repeated alone, after 0.5 s and about 1 s more. GDAL's own list
    # of such answers is left as it is: any other with a 0 in it makes it repeat after silence as well, at 15 s each.
    # What breaks off is not repeated by GDAL but remembered: whole reads are repeated here, with `PAUSES_S`.
    "GDAL_HTTP_MAX_RETRY": "2",
    "GDAL_HTTP_RETRY_DELAY": "0.5",
}
"""GDAL's settings for addresses, each with its reason. One that the environment sets is left as it is there."""

_URL = re.compile(r"^([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_VSI = re.compile(r"^/(vsi[a-z0-9_]+)/(.*)$", re.DOTALL)

_WORDS = (
    (
        r"response code: 404|NoSuchKey|NoSuchBucket|BlobNotFound|not exist|No such",
        "there is no such file (404): check it",
    ),
    (
        r"response code: 40[13]|AccessDenied|Access Denied|Forbidden|InvalidAccessKey|SignatureDoesNotMatch",
        "the server refuses it (401 or 403): give credentials, or a new link if it was a signed one",
    ),
    (
        r"(?:KEY|ACCESS|SIGN_REQUEST|CREDENTIALS|CONNECTION_STRING).*(?:not defined|not filled|configuration)",
        "there are no credentials for it: set them as GDAL wants them, or AWS_NO_SIGN_REQUEST=YES if it is public",
    ),
    (r"Range downloading not supported", "the server does not answer range requests: download the file"),
    (r"resolve host", "there is no such host, or no network: check the address"),
    (r"onnect to|Connection refused", "the server cannot be reached: check the address and the network"),
    (r"too slow|imed? ?out|no answer", "the server does not answer: try again later"),
    (r"certificate|SSL|TLS", "its certificate cannot be checked: see CURL_CA_BUNDLE"),
    (r"response code: (429|5\d\d)", r"the server is busy or broken (\1): try again later"),
    (r"IReadBlock|TIFFRead|decod", "what came is no pixels: the connection broke, or the file is damaged"),
    (r"code: 30\d|redirect", "the server sends from place to place: give the final address"),
)
"""What GDAL says, and what that means to the user."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file on a server. As text it has no secrets; what has them is for GDAL only."""

    url: str = field(repr=False)
    """The address with everything: user, password, query."""
    vsi: str = field(repr=False)
    """The address as GDAL has it."""
    shown: str
    """The address without user, password and query."""

    @property
    def name(self) -> str:
        """Name of the file, without its folder."""
        return PurePosixPath(unquote(urlsplit(self.shown).path)).name

    @property
    def suffix(self) -> str:
        """Extension of the file, with the dot."""
        return PurePosixPath(self.name).suffix

    @property
    def driver(self) -> str:
        """The one driver that may open it.

        Raises:
            SceneError: an extension that is not on the list.
        """
        driver = DRIVERS.get(self.suffix.lower())
        if driver is None:
            what = f"files named {self.suffix}" if self.suffix else "files without an extension"
            msg = f"{self}: {what} are not read from servers; download it, or give {' '.join(DRIVERS)}"
            raise SceneError(msg)
        return driver

    def clean(self, text: str) -> str:
        """Return a text with this address wherever it is, but without its secrets."""
        path, _, query = self.url.partition("?")
        for secret in (self.vsi, self.url, self.url.rpartition("/")[2] if query else "", path):
            text = text.replace(secret, str(self)) if secret else text
        for part in filter(None, (query, urlsplit(self.url).password)):
            text = text.replace(part, "...")
        return " ".join(text.split())

    def __str__(self) -> str:
        return self.shown


def is_remote(source: object) -> TypeGuard[str]:
    """Tell whether something is an address of a kind that scenes are opened from."""
    if not isinstance(source, str):
        return False
    url, vsi = _URL.match(source), _VSI.match(source)
    handler, scheme = vsi[1] if vsi else "", url[1].lower() if url else ""
    return handler in {"vsicurl", *STORES.values()} or scheme in {"http", "https", *STORES}


def without_secrets(text: str) -> str:
    """Return a scene's name as records and messages may hold it: addresses without user, password and query."""
    if "://" not in text:
        return text
    return re.sub(r"//[^/@]*@", "//", re.split(r"[?#]", text, maxsplit=1)[0])


def parse_address(source: str) -> RemoteFile:
    """Check an address and put it as GDAL wants it; nothing is asked of any server.

    Args:
        source: ``https://``, ``http://``, ``s3://``, ``gs://`` or ``az://``, or GDAL's ``/vsicurl/https://...``,
            ``/vsis3/...``, ``/vsigs/...``, ``/vsiaz/...``.

    Raises:
        SceneError: not such an address, or the network is switched off.
    """
    shown = without_secrets(source)[:200]
    if any(character.isspace() or not character.isprintable() for character in source):
        msg = f"{shown!r} is no address: write spaces as %20"
        raise SceneError(msg)
    scheme, rest = _scheme(source)
    if scheme not in {"http", "https", *STORES}:
        msg = f"{shown} is no address of http, https, {', '.join(STORES)}: chains of GDAL's handlers are not opened"
        raise SceneError(msg)
    if is_offline():
        msg = f"{shown} is on a server, and the network is switched off (--offline or {OFFLINE}): give a local file"
        raise SceneError(msg)
    return _in_store(scheme, rest) if scheme in STORES else _on_web(scheme, rest)


def _scheme(source: str) -> tuple[str, str]:
    """Split an address into its scheme, in lower case, and the rest; no scheme where GDAL's handler does not fit."""
    vsi = _VSI.match(source)
    if vsi is not None and vsi[1] != "vsicurl":
        return next(scheme for scheme, handler in STORES.items() if handler == vsi[1]), vsi[2]
    scheme, _, rest = (source if vsi is None else vsi[2]).partition("://")
    return "" if vsi is not None and scheme.lower() in STORES else scheme.lower(), rest


def _in_store(scheme: str, rest: str) -> RemoteFile:
    bucket, _, key = rest.partition("/")
    if not re.fullmatch(r"[\w.-]+", bucket) or not key or "?" in key:
        msg = f"{scheme}://{without_secrets(rest)} is no {scheme} address: give {scheme}://BUCKET/KEY"
        raise SceneError(msg)
    return RemoteFile(f"{scheme}://{rest}", f"/{STORES[scheme]}/{rest}", shown=f"{scheme}://{rest}")


def _on_web(scheme: str, rest: str) -> RemoteFile:
    url = f"{scheme}://{rest}".partition("#")[0]
    shown = without_secrets(url)
    try:
        host, _ = urlsplit(url).hostname, urlsplit(url).port
    except ValueError:
        host = None
    if not host:  # the text is not shown: who knows where its password ends
        msg = f"this {scheme} address has no host, or a port that is no number: give {scheme}://HOST/PATH"
        raise SceneError(msg)
    _refuse_host(host, shown)
    return RemoteFile(url, f"/vsicurl/{url}", shown=shown)


def settings() -> dict[str, Any]:
    """Return GDAL's settings for addresses, without those that the environment sets."""
    return {name: value for name, value in SETTINGS.items() if name not in os.environ}


def reason(file: RemoteFile, error: Exception) -> str:
    """Return why a server did not give what was asked, in words, without secrets."""
    text = " ".join(str(error.__cause__ or error).split())
    for pattern, words in _WORDS:
        match = re.search(pattern, text)
        if match:
            return match.expand(words)
    return file.clean(text).rstrip(".")


class Patience:
    """Tries again what failed, after growing pauses; once that was in vain, only once until something succeeds.

    So a hiccup costs seconds and no error, and a server that has gone costs the long wait once, not for every window.

    Args:
        refresh: called before another attempt.
    """

    def __init__(self, refresh: Callable[[], None]) -> None:
        self._refresh = refresh
        self._hopeless = False
        self._stop = threading.Event()

    def attempt(self, do: Callable[[], Result], errors: tuple[type[Exception], ...]) -> Result:
        """Return what ``do`` returns.

        Raises:
            Exception: one of ``errors``, of the last attempt; any other one at once.
        """
        stop = self._stop
        for pause in (*(() if self._hopeless else PAUSES_S), None):
            try:
                result = do()
            except errors:
                self._refresh()
                if pause is None or stop.wait(pause):
                    self._hopeless = True
                    raise
            else:
                self._hopeless = False
                return result
        raise AssertionError  # the last attempt returns or raises

    def interrupt(self) -> None:
        """Let those who wait now give up."""
        self._stop.set()
        self._stop = threading.Event()


def is_passing(error: Exception) -> bool:
    """Tell whether the answer may be another one in a moment."""
    passing = r"response code: (0|408|425|429|5\d\d)|too slow|imed? ?out|reset|broken|mpty reply|no answer"
    return bool(re.search(passing, str(error)))


def _refuse_host(host: str, shown: str) -> None:
    """Refuse addresses at which machines answer for themselves (cloud metadata), and those that are no host.

    Private networks are fine: the user's own server is the usual case.
    """
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return  # perhaps a proxy knows it; else the request says that there is none
    for text in found:
        address = ipaddress.ip_address(str(text).partition("%")[0])
        if address.is_link_local or address.is_multicast or address.is_unspecified:
            msg = f"{shown}: {host} is an address of the machine itself or of a group, from which no scene is read"
            raise SceneError(msg)
