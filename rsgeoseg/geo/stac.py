"""STAC items: which of an item's assets is the scene, and where it is.

An item is a small JSON file that lists the rasters of one acquisition with their roles and media types. Items are read
as they are, without a client library: searching catalogues is another program's work.

Source: SpatioTemporal Asset Catalog, Item Specification 1.0 and 1.1, and its list of asset roles.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib import error, request
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from rsgeoseg.errors import SceneError, UsageError
from rsgeoseg.geo import opening, remote, vsi

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

ALL = "*"
"""Stands for every raster of an item."""
MAX_BYTES = 16 << 20
TIMEOUT_S = 30.0
_NO_SCENE = frozenset({"thumbnail", "overview", "metadata"})
"""Roles of rasters that are not the data."""
_PREFERRED = ("visual", "data")
_SUFFIXES = (".json", ".geojson")


def is_item(source: object) -> bool:
    """Tell whether something is to be read as a STAC item rather than opened as a raster."""
    if isinstance(source, Mapping):
        return True
    if not isinstance(source, (str, Path)):
        return False
    path = urlsplit(source).path if isinstance(source, str) and remote.is_remote(source) else str(source)
    return path.lower().endswith(_SUFFIXES)


def item_assets(source: str | os.PathLike[str] | Mapping[str, Any], asset: str | None = None) -> list[str]:
    """Return where the scenes of a STAC item are.

    Without a name, the item's only raster is taken, else the one called ``visual``, else the only one whose role is
    ``visual``, else the only one whose role is ``data``.

    Args:
        source: path or address of an item or of a collection of items (search results), or its JSON as a dict.
        asset: name of an asset, or ``*`` for every raster of the item.

    Returns:
        Paths and addresses for ``Scene.open``: one per item, or several for ``*``.

    Raises:
        SceneError: it cannot be read, is no item, or has no raster of a kind that is read.
        UsageError: there is no such asset, or several would do; the message lists them.
    """
    if isinstance(source, Mapping):
        base, content = None, dict(source)
        what = f"STAC item {content.get('id', 'without id')}"
    else:
        base, content = _load(source)
        what = remote.without_secrets(base)
    scenes = [scene for item in _items(content, what) for scene in _choose(item, asset, base, what)]
    if not scenes:
        msg = f"{what} holds no items"
        raise SceneError(msg)
    return scenes


def only_scene(source: str | os.PathLike[str] | Mapping[str, Any], asset: str | None = None) -> str:
    """Return where the one scene of a STAC item is, as ``item_assets`` chooses it.

    Raises:
        SceneError: as ``item_assets``.
        UsageError: as ``item_assets``, or there are several.
    """
    scenes = item_assets(source, asset)
    if len(scenes) > 1:
        what = "the STAC item" if isinstance(source, Mapping) else remote.without_secrets(str(source))
        msg = f"{what} leads to {len(scenes)} rasters: name one asset, or give one of its items"
        raise UsageError(msg)
    return scenes[0]


def _items(content: Any, what: str) -> Iterator[dict[str, Any]]:
    kind = content.get("type") if isinstance(content, dict) else None
    if kind == "FeatureCollection" and isinstance(content.get("features"), list):
        for item in content["features"]:
            yield from _items(item, what)
    elif kind == "Feature" and isinstance(content.get("assets"), dict):
        yield content
    else:
        known = f"a STAC {kind}" if kind in {"Collection", "Catalog"} else "another kind of JSON"
        msg = f"{what} is no STAC item but {known}: give one of the items, a Feature with assets"
        raise SceneError(msg)


def _choose(item: dict[str, Any], asset: str | None, base: str | None, what: str) -> list[str]:
    rasters = {name: entry for name, entry in item["assets"].items() if _is_raster(entry)}
    if asset == ALL:
        chosen = list(rasters)
    elif asset is not None:
        if asset not in rasters:
            msg = f"{what} has no raster called {asset!r}: {_listed(rasters)}"
            raise UsageError(msg)
        chosen = [asset]
    else:
        chosen = [_preferred(rasters, what)] if rasters else []
    if not chosen:
        msg = f"{what} has no asset that is read as a raster ({' '.join(opening.DRIVERS)})"
        raise SceneError(msg)
    return [_resolve(rasters[name]["href"], base or _self_link(item), what) for name in chosen]


def _is_raster(entry: Any) -> bool:
    """Tell by the extension, which chooses the driver, and by the roles."""
    if not isinstance(entry, dict) or not isinstance(entry.get("href"), str):
        return False
    return _suffix(entry["href"]) in opening.DRIVERS and not _NO_SCENE & set(_roles(entry))


def _suffix(href: str) -> str:
    path = href.partition("?")[0] if remote.is_remote(href) else href
    return PurePosixPath(unquote(path)).suffix.lower()


def _roles(entry: dict[str, Any]) -> list[str]:
    roles = entry.get("roles")
    return [role for role in roles if isinstance(role, str)] if isinstance(roles, list) else []


def _preferred(rasters: dict[str, Any], what: str) -> str:
    if len(rasters) == 1:
        return next(iter(rasters))
    if "visual" in rasters:
        return "visual"
    for role in _PREFERRED:
        having = [name for name, entry in rasters.items() if role in _roles(entry)]
        if len(having) == 1:
            return having[0]
    msg = f"{what} has {len(rasters)} rasters, name one with --asset: {_listed(rasters)}"
    raise UsageError(msg)


def _listed(rasters: dict[str, Any]) -> str:
    words = []
    for name, entry in rasters.items():
        about = [str(entry["title"])] if entry.get("title") else []
        about += ["/".join(_roles(entry))] if _roles(entry) else []
        words.append(f"{name} ({', '.join(about)})" if about else name)
    return " ".join("; ".join(words).split())[:1000] or "it has none"


def _self_link(item: dict[str, Any]) -> str | None:
    links = item.get("links")
    for link in links if isinstance(links, list) else []:
        href = link.get("href") if isinstance(link, dict) and link.get("rel") == "self" else None
        if isinstance(href, str) and (remote.is_remote(href) or Path(href).is_absolute()):
            return href
    return None


def _resolve(href: str, base: str | None, what: str) -> str:
    """Make an address or a path of an asset's, which may be relative to its item's."""
    if remote.is_remote(href):
        return href
    if base is not None and remote.is_remote(base):
        if "://" in href or href.startswith("/vsi"):
            msg = f"{what} names {remote.without_secrets(href)}, which is no address on a server"
            raise SceneError(msg)
        place, _, _ = base.partition("?")
        scheme, _, rest = place.partition("://")
        # urljoin knows the rules of http only; they are the same for object stores.
        return f"{scheme}://" + urljoin(f"http://{rest}", href).partition("://")[2]
    if href.startswith("file://"):
        return request.url2pathname(urlsplit(href).path)
    if "://" in href or href.startswith("/vsi"):
        msg = f"{what} names {remote.without_secrets(href)}, which is opened neither as a file nor from a server"
        raise SceneError(msg)
    if base is None and not Path(href).is_absolute():
        msg = (
            f"{what} names {href} and does not say where it itself is: give its file or address instead of its content"
        )
        raise SceneError(msg)
    return str((Path(base).parent if base is not None else Path()) / href)


def _load(source: str | os.PathLike[str]) -> tuple[str, Any]:
    """Return where an item is, and its content."""
    if remote.is_remote(source):
        file = remote.parse_address(source)
        base, what, text = file.url, str(file), _fetch(file)
    else:
        path = opening.plain_path(source, "STAC item")
        base = what = str(path)
        try:
            text = path.read_bytes()[: MAX_BYTES + 1]
        except OSError as failure:
            msg = f"{path} cannot be read: {failure.strerror}"
            raise SceneError(msg) from failure
    if len(text) > MAX_BYTES:
        msg = f"{what} is larger than {MAX_BYTES >> 20} MB: this is no STAC item"
        raise SceneError(msg)
    try:
        return base, json.loads(text)
    except (ValueError, RecursionError) as failure:
        msg = f"{what} is not JSON, so no STAC item: {failure}"
        raise SceneError(msg) from failure


def _fetch(file: remote.RemoteFile) -> bytes:
    """Return a small file from a server; unlike rasters, interfaces that make items need not answer range requests."""
    try:
        if file.vsi.startswith("/vsicurl/"):
            return _fetch_web(file)
        with opening.gdal_env(**remote.settings()), vsi.open_file(file.vsi) as handle:
            return handle.read(0, min(handle.size(), MAX_BYTES + 1))
    except error.HTTPError as failure:
        why = remote.reason(file, RuntimeError(f"response code: {failure.code}"))
    except (OSError, ValueError, vsi.VsiError) as failure:
        why = remote.reason(file, failure)
    msg = f"{file} cannot be fetched: {why}"
    raise SceneError(msg) from None


def _fetch_web(file: remote.RemoteFile) -> bytes:
    parts = urlsplit(file.url)
    login, at, host = parts.netloc.rpartition("@")
    headers = {"Accept": "application/geo+json, application/json", "Accept-Encoding": "identity"}
    if at:
        headers["Authorization"] = "Basic " + base64.b64encode(unquote(login).encode()).decode()
    asked = request.Request(urlunsplit(parts._replace(netloc=host)), headers=headers)  # noqa: S310  (http or https)
    with request.urlopen(asked, timeout=TIMEOUT_S) as answer:  # noqa: S310
        return bytes(answer.read(MAX_BYTES + 1))
