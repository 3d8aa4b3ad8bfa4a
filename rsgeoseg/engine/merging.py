"""Results of several scenes become one file, without any of them being in memory whole."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pyproj
import shapely
from geopandas import GeoDataFrame

from rsgeoseg.engine.record import rate
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
    """Return what the ``scene`` column says: file names, or what the user gave where two are alike.

    Raises:
        UsageError: a scene is given twice.
    """
    places = [scene if "://" in scene else str(Path(scene).resolve()) for scene in scenes]
    twice = [place for place, count in Counter(places).items() if count > 1]
    if twice:
        msg = f"{without_secrets(twice[0])} is given twice: its objects would be in the result twice"
        raise UsageError(msg)
    shown = [without_secrets(scene) for scene in scenes]
    names = [scene.rstrip("/").rpartition("/")[2] if "://" in scene else Path(scene).name for scene in shown]
    return shown if len(set(names)) < len(names) else names


def check_merged(output: Path, crs: Sequence[tuple[str, Any]], format_name: str | None, dst_crs: str | None) -> None:
    """Refuse what could not be merged, before the work starts.

    Args:
        output: the merged file.
        crs: of each scene, with its name.
        format_name: of the output; None = by extension.
        dst_crs: CRS of the output; None = that of the scenes.

    Raises:
        UsageError: scenes in several CRSs without ``dst_crs`` or in none, or a format in pixels.
    """
    entry = find_format(output, format_name)
    if entry.on_grid:
        msg = f"a {entry.title} is in pixels of one scene: give a vector format for several, or a folder"
        raise UsageError(msg)
    (first, known), *others = crs
    nowhere = [name for name, found in crs if found is None]
    if nowhere and (dst_crs is not None or len(nowhere) < len(crs)):
        msg = f"{nowhere[0]} has no CRS: it cannot be merged with scenes that lie somewhere; run it alone"
        raise UsageError(msg)
    for name, found in others:
        if found != known and dst_crs is None:
            msg = f"{first} and {name} are in different CRSs: give --dst-crs to merge them"
            raise UsageError(msg)


def merge_outputs(
    outputs: Sequence[SceneOutput], output: Path, *, format_name: str | None, overwrite: bool
) -> dict[str, Any]:
    """Write the objects of several scenes to one file, scene after scene, with a ``scene`` column and ids 1, 2, ...

    Args:
        outputs: of the scenes, in order; all in one CRS.
        output: the file.
        format_name: of the output; None = by extension.
        overwrite: replace an existing file.

    Returns:
        The record of the merged run: sums over the scenes, and each scene's own record.

    Raises:
        OutputError: it cannot be written.
    """
    record = _sum([each.record for each in outputs])
    record["scenes"] = [{"name": each.scene, "record": each.record} for each in outputs]
    found = record["objects"]
    write_batches(
        _batches(outputs),
        output,
        rows=found["total"],
        vertices=found["vertices"],
        overwrite=overwrite,
        format=format_name,
    )
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
    with pq.ParquetFile(path) as file:
        about = json.loads(file.metadata.metadata[b"geo"])["columns"]["geometry"].get("crs")
        crs = None if about is None else pyproj.CRS.from_json_dict(about)
        batches = file.iter_batches(BATCH_ROWS) if file.metadata.num_rows else iter([file.read()])
        for batch in batches:
            names = [name for name in batch.schema.names if name not in ("geometry", "bbox")]
            geometry = shapely.from_wkb(batch.column("geometry").to_pandas())
            yield GeoDataFrame(batch.select(names).to_pandas(), geometry=np.asarray(geometry), crs=crs)


def _sum(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    chips: Counter[str] = Counter()
    per_class: Counter[str] = Counter()
    for record in records:
        chips.update(record["chips"])
        per_class.update(record["objects"]["per_class"])
    pixels, seconds = sum(record["pixels"] for record in records), sum(record["seconds"] for record in records)
    return {
        **{name: records[-1][name] for name in ("versions", "finished", "model")},
        "chips": dict(chips),
        "objects": {
            "total": sum(record["objects"]["total"] for record in records),
            "vertices": sum(record["objects"]["vertices"] for record in records),
            "per_class": dict(per_class),
        },
        "pixels": pixels,
        "seconds": round(seconds, 6),
        "mpx_per_s": rate(pixels, seconds),
        "peak_memory_bytes": max((record["peak_memory_bytes"] or 0 for record in records), default=0) or None,
    }
