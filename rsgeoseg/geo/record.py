"""The run record beside an output, and plain JSON values for it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import date
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from rsgeoseg.geo.commit import staged

if TYPE_CHECKING:
    from os import PathLike


def record_path(path: str | PathLike[str]) -> Path:
    """Return the path of an output's run record: ``scene.gpkg`` to ``scene.gpkg.run.json``."""
    path = Path(path)
    return path.with_name(path.name + ".run.json")


def write_record(path: str | PathLike[str], record: Mapping[str, Any]) -> Path:
    """Write the run record of an output beside it, replacing an earlier one.

    Args:
        path: the output.
        record: anything `to_jsonable` takes.

    Returns:
        The record's path.

    Raises:
        OutputError: it cannot be written.
    """
    final = record_path(path)
    text = json.dumps(to_jsonable(record), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with staged(final, overwrite=True, need=len(text)) as temporary:
        temporary.write_text(text, encoding="utf-8")
        if temporary.read_text(encoding="utf-8") != text:
            msg = "the record could not be read back"
            raise OSError(msg)
    return final


def to_jsonable(value: Any) -> Any:
    """Turn a value into what JSON holds: numpy values to numbers and lists, NaN and infinities to None.

    Raises:
        TypeError: a value of a kind that has no plain form.
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_jsonable(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, set | frozenset):
        return sorted((to_jsonable(item) for item in value), key=str)
    if isinstance(value, list | tuple):
        return [to_jsonable(item) for item in value]
    return _scalar(value)


def _scalar(value: Any) -> bool | int | float | str | None:
    """Turn a single value into what JSON holds."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, date):
        return value.isoformat()
    msg = f"a run record cannot hold a {type(value).__name__}"
    raise TypeError(msg)
