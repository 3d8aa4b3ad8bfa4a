"""Download one file whose size and digest are known: resumed where it broke, never trusted before it is checked.

The standard library does it: ``pooch`` and ``requests`` neither resume nor bound what a server may send, and would be
two more dependencies. The bytes that have come are kept in ``NAME.part`` and outlive the process; as the digest is
known, whoever goes on with them needs no other state. Within one call the server's ETag guards against going on with
another version of the file (``If-Range``, RFC 9110 section 13.1.5).
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import logging
import os
import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING
from urllib import error, request
from urllib.parse import urlsplit

from rsgeoseg import __version__
from rsgeoseg.errors import WeightsError

if TYPE_CHECKING:
    from pathlib import Path

Progress = Callable[[int, int], None]
"""Told how many bytes of how many are here; the first number goes back when a server starts over."""

ATTEMPTS = 5
"""Attempts in a row that bring next to nothing before the download is given up."""
BACKOFF_S = 1.0
"""Pause after the first of them; each further one is twice as long."""
TIMEOUT_S = 30.0
"""Silence of a server after which the connection counts as cut."""

_logger = logging.getLogger(__name__)
_CHUNK = 1 << 18
_WORTH = 1 << 20  # an attempt that brought so many bytes is progress: a slow line may break any number of times
_TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_HTML = re.compile(rb"\s*<(!doctype\s+html|html)", re.IGNORECASE)


def sha256_of(path: Path) -> str:
    """Digest a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def partial_path(target: Path) -> Path:
    """Return where the bytes of an unfinished download are."""
    return target.with_name(f"{target.name}.part")


def download(url: str, target: Path, *, size: int, sha256: str, progress: Progress | None = None) -> None:
    """Fetch a file; it appears under its name only when it is whole and its digest is right.

    The caller sees to it that nobody else fetches to the same place (``cache.fetch`` does).

    Args:
        url: http or https; redirects may not leave these two, nor go from https to http.
        target: where to; its folder exists. What came before under ``partial_path(target)`` is gone on with.
        size: bytes that the file has.
        sha256: digest that the file has.
        progress: told (bytes here, ``size``).

    Raises:
        WeightsError: the server cannot be reached, has no such file or sends another one; the disk is full. What has
            come is kept where it may be part of the file, and removed where it is not.
    """
    _refuse_odd(url)
    transfer = _Transfer(url, partial_path(target), size, progress or (lambda _done, _size: None))
    try:
        _persist(transfer)
        found = sha256_of(transfer.part)
        if found != sha256:
            transfer.part.unlink()
            msg = (
                f"{url}: sha256 is {found[:12]}..., expected {sha256[:12]}...; what came is not the published file and "
                "was removed: run again, or name a mirror with RSGEOSEG_MIRROR"
            )
            raise WeightsError(msg)
        os.replace(transfer.part, target)  # noqa: PTH105  (atomic on every system)
    except OSError as failure:  # of the disk: those of the network are handled where they arise
        raise WeightsError(_disk_message(transfer.part, failure)) from failure


def _persist(transfer: _Transfer) -> None:
    """Attempt until all bytes are here."""
    failures = 0
    while (had := transfer.here()) != transfer.size:
        try:
            transfer.attempt()
        except _CutError as cut:
            here = transfer.here()
            failures = 1 if here - had >= _WORTH else failures + 1
            if failures >= ATTEMPTS:
                msg = (
                    f"cannot fetch {transfer.url} ({cut}); {here:,} of {transfer.size:,} bytes are here: run again to "
                    "go on, or name a mirror with RSGEOSEG_MIRROR"
                )
                raise WeightsError(msg) from cut
            pause = BACKOFF_S * 2 ** (failures - 1)
            _logger.warning("%s: %s; going on in %g s", transfer.url, cut, pause)
            time.sleep(pause)


class _CutError(Exception):
    """The connection failed in a way that another attempt may mend."""


class _Redirects(request.HTTPRedirectHandler):
    """Follows redirects between web addresses, none to weaker protection."""

    def redirect_request(
        self, req: request.Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage, newurl: str
    ) -> request.Request | None:
        _refuse_odd(newurl)
        if req.type == "https" and urlsplit(newurl).scheme == "http":
            text = f"{req.full_url}: redirects to {newurl}, from https to http; name a mirror with RSGEOSEG_MIRROR"
            raise WeightsError(text)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _refuse_odd(url: str) -> None:
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        fits = False
    if not fits:
        msg = f"{url}: is no web address of http or https, and weights are fetched from no other"
        raise WeightsError(msg)


def _opener() -> request.OpenerDirector:
    """Build an opener of http and https (proxies from the environment), without urllib's file, ftp and data."""
    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler(),
        request.UnknownHandler(),
        request.HTTPHandler(),
        request.HTTPSHandler(),
        _Redirects(),
        request.HTTPDefaultErrorHandler(),
        request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


@dataclass(slots=True)
class _Transfer:
    """One file on its way."""

    url: str
    part: Path
    size: int
    progress: Progress
    etag: str | None = None
    """Strong validator of the version that the bytes here are of; known once this process has got some."""
    ranges: bool = True
    """Whether to ask for the missing bytes alone; a server that answers such a question wrongly is not asked again."""

    def here(self) -> int:
        """Count the bytes that have come; more than the file has are not of this file, and go."""
        try:
            count = self.part.stat().st_size
        except FileNotFoundError:
            return 0
        if count > self.size:
            self.part.unlink()
            return 0
        return count

    def attempt(self) -> None:
        """Ask for what is missing and append it.

        Raises:
            _CutError: another attempt may go on.
            WeightsError: none will.
        """
        have = self.here() if self.ranges else 0
        with self._open(have) as response:
            start = self._start(response, have)
            self.progress(start, self.size)
            with self.part.open("r+b" if start else "wb") as file:
                file.seek(start)
                self._copy(response, file, start)
                file.flush()
                os.fsync(file.fileno())

    def _open(self, have: int) -> http.client.HTTPResponse:
        headers = {"User-Agent": f"rsgeoseg/{__version__}", "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if self.etag:
                headers["If-Range"] = self.etag
        question = request.Request(self.url, headers=headers)  # noqa: S310  (the scheme was looked at)
        try:
            response: http.client.HTTPResponse = _opener().open(question, timeout=TIMEOUT_S)
        except error.HTTPError as failure:
            failure.close()
            raise self._meaning_of_status(failure) from failure
        except (OSError, http.client.HTTPException, ValueError) as failure:
            raise self._meaning(failure) from failure
        return response

    def _meaning_of_status(self, failure: error.HTTPError) -> Exception:
        said = " ".join(f"HTTP {failure.code} {failure.reason}".split())
        if failure.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            self.ranges = False
            return _CutError(said)
        if failure.code in _TRY_AGAIN:
            return _CutError(said)
        return WeightsError(f"cannot fetch {self.url} ({said}); is the address right? RSGEOSEG_MIRROR names a mirror")

    def _meaning(self, failure: Exception) -> Exception:
        reason = failure.reason if isinstance(failure, error.URLError) else failure
        if isinstance(reason, ssl.SSLCertVerificationError):
            return WeightsError(f"{self.url}: the server cannot prove who it is ({reason.verify_message}); not fetched")
        if isinstance(reason, (http.client.InvalidURL, ValueError)):
            return WeightsError(f"{self.url}: is no web address, or redirects to none ({reason})")
        return _CutError(_words(reason))

    def _start(self, response: http.client.HTTPResponse, have: int) -> int:
        """Return the offset of the body in the file, once what the server says of it fits the card."""
        if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
            raise self._web_page()
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            msg = f"{self.url}: the server sends it compressed, against what was asked; RSGEOSEG_MIRROR names a mirror"
            raise WeightsError(msg)
        etag = response.headers.get("ETag")
        if response.status == http.client.PARTIAL_CONTENT:
            self._refuse_other_part(response, have, etag)
            return have
        if response.status != http.client.OK:
            msg = f"cannot fetch {self.url} (HTTP {response.status} {response.reason})"
            raise WeightsError(msg)
        length = response.headers.get("Content-Length")
        if length is not None and length.strip() != str(self.size):
            msg = f"{self.url}: announces {length} bytes, the published file has {self.size}; it is another file"
            raise WeightsError(msg)
        self.etag = etag if etag and etag.startswith('"') else None  # weak ones do not promise equal bytes
        return 0

    def _refuse_other_part(self, response: http.client.HTTPResponse, have: int, etag: str | None) -> None:
        """Raise unless an answer holds the bytes from ``have`` on, of the version that is here.

        The next attempt then asks for the whole file.
        """
        said = response.headers.get("Content-Range", "no range")
        match = _RANGE.fullmatch(said.strip())
        if not match or not have or int(match[1]) != have or match[3] not in ("*", str(self.size)):
            self.ranges = False
            msg = f"asked for the bytes from {have} of {self.size} on, the server answers with {said!r}"
            raise _CutError(msg)
        if self.etag and etag and etag != self.etag:
            self.ranges = False
            msg = "the file changed on the server"
            raise _CutError(msg)

    def _copy(self, response: http.client.HTTPResponse, file: IO[bytes], start: int) -> None:
        done = start
        while chunk := self._read(response, min(_CHUNK, self.size - done + 1)):
            if not done and _HTML.match(chunk):
                raise self._web_page()
            if done + len(chunk) > self.size:
                file.truncate(0)
                msg = f"{self.url}: sends more than the {self.size:,} bytes of the published file; it is another file"
                raise WeightsError(msg)
            file.write(chunk)
            done += len(chunk)
            self.progress(done, self.size)
        if done < self.size:
            msg = f"the connection ended after {done:,} of {self.size:,} bytes"
            raise _CutError(msg)

    def _read(self, response: http.client.HTTPResponse, count: int) -> bytes:
        try:
            return response.read1(count)
        except (OSError, http.client.HTTPException, ValueError) as failure:  # ValueError: lengths that are no numbers
            raise _CutError(_words(failure)) from failure

    def _web_page(self) -> WeightsError:
        return WeightsError(
            f"{self.url}: it is a web page, not the file; a login page of the network, or a wrong address or mirror"
        )


def _words(failure: object) -> str:
    if isinstance(failure, TimeoutError):
        return f"no answer for {TIMEOUT_S:g} s"
    return " ".join(str(failure).split()) or type(failure).__name__


def _disk_message(part: Path, failure: OSError) -> str:
    if failure.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{part}: no space ({failure.strerror}); make room and run again to go on, or set RSGEOSEG_CACHE"
    return f"{part}: cannot be written ({failure.strerror}); choose another folder with RSGEOSEG_CACHE"
