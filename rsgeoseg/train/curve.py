"""The curve of a training as tables: what was learned at which step, also over an interruption."""

from __future__ import annotations

import csv
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class Curve:
    """A CSV file with a row per step, in the order of the steps.

    Rows are written at once. A training that goes on from step k drops the rows after k that the stopped one had
    written, so the file is the same as without the interruption.

    Args:
        path: of the file.
        columns: after ``step``.
    """

    def __init__(self, path: Path, columns: tuple[str, ...] | None = None) -> None:
        self.path = path
        self.columns = columns

    def rows(self) -> list[dict[str, str]]:
        """Read all rows; a torn last line is left out."""
        if not self.path.is_file():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if None not in row.values() and None not in row]

    def cut(self, step: int) -> None:
        """Drop the rows after a step."""
        kept = [row for row in self.rows() if int(row["step"]) <= step]
        if not self.path.is_file():
            return
        beside = self.path.with_name(f".{self.path.name}.part")
        with beside.open("w", newline="", encoding="utf-8") as file:
            if kept:
                writer = csv.DictWriter(file, list(kept[0]))
                writer.writeheader()
                writer.writerows(kept)
        os.replace(beside, self.path)  # noqa: PTH105  (atomic on every system)

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Append a row; the first one names the columns."""
        before = self.rows()[:1] if self.columns is None else []
        names = self.columns or (tuple(name for name in before[0] if name != "step") if before else tuple(values))
        self.columns = names
        fresh = not self.path.is_file() or not self.path.stat().st_size
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["step", *names], extrasaction="ignore")
            if fresh:
                writer.writeheader()
            writer.writerow({"step": step, **values})
