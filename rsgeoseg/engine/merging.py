"""Results of several scenes become one file, without any of them being in memory whole."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pyproj
import shapely
from geopandas import GeoDataFrame

from rsgeoseg.errors import UsageError
from rsgeoseg.geo.formats import find_format
from rsgeoseg.geo.remote import without_secrets
from rsgeoseg.geo.writers import BATCH_ROWS, write_batches, write_record

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneOutput:
    """The finished result of one scene."""

    scene: str
    """As in the ``scene`` column."""
    path: Path
    """A GeoParquet file."""
    record: dict[str, Any]
    """Its run record."""


def scenes_folder(output: Path) -> Path:
    """Return the folder that holds the results of single scenes until they are merged into an output."""
    return output.with_name(output.name + ".scenes")


def scene_names(scenes: Sequence[str]) -> list[str]:
    """Return what the ``scene`` column says: file names, or what the user gave where two are alike."""
    names = [
        scene.partition("?")[0].rstrip("/").rpartition("/")[2] if "://" in scene else Path(scene).name
        for scene in scenes
    ]
    scenes = [without_secrets(scene) if "://" in scene else scene for scene in scenes]
    return list(scenes) if len(set(names)) < len(names) else names


def check_merged(output: Path, crs: Sequence[tuple[str, Any]], format_name: str | None, dst_crs: str | None) -> None:
    """Refuse what could not be merged, before the work starts.

    Args:
        output: the merged file.
        crs: of each scene, with its name.
        format_name: of the output; None = by extension.
        dst_crs: CRS of the output; None = that of the scenes.

    Raises:
        UsageError: scenes in several CRSs without ``dst_crs``, or a format in pixels.
    """
    entry = find_format(output, format_name)
    if entry.on_grid:
        msg = f"a {entry.title} is in pixels of one scene: give a vector format for several, or a folder"
        raise UsageError(msg)
    if dst_crs is None:
        (first, known), *others = crs
        for name, found in others:
            if found != known:
                msg = f"{first} and {name} are in different CRSs: give --dst-crs to merge them"
                raise UsageError(msg)


def merge_outputs(
    outputs: Sequence[SceneOutput], output: Path, *, format_name: str | None, overwrite: bool, about: dict[str, Any]
) -> dict[str, Any]:
    """Write the objects of several scenes to one file, scene after scene, with a ``scene`` column and ids 1, 2, ...

    Args:
        outputs: of the scenes, in order; all in one CRS.
        output: the file.
        format_name: of the output; None = by extension.
        overwrite: replace an existing file.
        about: further entries of the record.

    Returns:
        The record of the merged run: sums over the scenes, and each scene's own record.

    Raises:
        OutputError: it cannot be written.
    """
    rows = sum(pq.read_metadata(each.path).num_rows for each in outputs)
    vertices = sum(_vertices(each.path) for each in outputs)
    write_batches(_batches(outputs), output, rows=rows, vertices=vertices, overwrite=overwrite, format=format_name)
    record = _sum([each.record for each in outputs]) | about
    record["scenes"] = [{"name": each.scene, "record": each.record} for each in outputs]
    write_record(output, record)
    return record


def _batches(outputs: Sequence[SceneOutput]) -> Iterator[GeoDataFrame]:
    behind = 0
    empty: GeoDataFrame | None = None
    for each in outputs:
        for frame in _read(each.path):
            frame["id"] = np.arange(behind + 1, behind + len(frame) + 1, dtype=np.int64)
            frame.insert(len(frame.columns) - 1, "scene", pd.Series([each.scene] * len(frame), dtype="str"))
            if len(frame):
                behind += len(frame)
                yield frame
            else:
                empty = frame
    if not behind and empty is not None:
        yield empty


def _read(path: Path) -> Iterator[GeoDataFrame]:
    """Yield the rows of a file in batches; one empty frame where it has none."""
    crs = _crs(path)
    with _open(path) as file:
        batches = file.iter_batches(BATCH_ROWS) if file.metadata.num_rows else iter([file.read()])
        for batch in batches:
            names = [name for name in batch.schema.names if name not in ("geometry", "bbox")]
            geometry = shapely.from_wkb(batch.column("geometry").to_pandas())
            yield GeoDataFrame(batch.select(names).to_pandas(), geometry=np.asarray(geometry), crs=crs)


@contextmanager
def _open(path: Path) -> Iterator[pq.ParquetFile]:
    with pq.ParquetFile(path) as file:
        yield file


def _vertices(path: Path) -> int:
    return sum(int(shapely.get_num_coordinates(frame.geometry.to_numpy()).sum()) for frame in _read(path))


def _crs(path: Path) -> pyproj.CRS | None:
    import json  # noqa: PLC0415

    about = json.loads(pq.read_metadata(path).metadata[b"geo"])["columns"]["geometry"]
    found = about.get("crs")
    return None if found is None else pyproj.CRS.from_json_dict(found)


def _sum(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    chips = {name: sum(record["chips"][name] for record in records) for name in ("total", "done", "empty", "failed")}
    per_class: dict[str, int] = {}
    for record in records:
        for name, count in record["objects"]["per_class"].items():
            per_class[name] = per_class.get(name, 0) + count
    pixels, seconds = sum(r["pixels"] for r in records), sum(r["seconds"] for r in records)
    return {
        "versions": records[-1]["versions"],
        "finished": records[-1]["finished"],
        "model": records[-1]["model"],
        "chips": chips,
        "objects": {"total": sum(record["objects"]["total"] for record in records), "per_class": per_class},
        "pixels": pixels,
        "seconds": round(seconds, 6),
        "mpx_per_s": round(pixels / 1e6 / max(seconds, 1e-9), 3),
        "peak_memory_bytes": max((r["peak_memory_bytes"] or 0 for r in records), default=0) or None,
    }
