"""Published tables to set our own figures beside; the numbers stand in ``paper_tables.toml``."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from rsgeoseg.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

_TITLES = {
    "boxes.ap": "box AP",
    "boxes.ap50": "box AP50",
    "boxes.ap75": "box AP75",
    "boxes.ap_small": "box APs",
    "boxes.ap_medium": "box APm",
    "boxes.ap_large": "box APl",
    "masks.ap": "mask AP",
    "masks.ap50": "mask AP50",
    "masks.ap75": "mask AP75",
    "masks.ap_small": "mask APs",
    "masks.ap_medium": "mask APm",
    "masks.ap_large": "mask APl",
    "oiou": "oIoU",
    "miou": "mIoU",
    **{f"pr{at}": f"Pr@0.{at // 10}" for at in (50, 60, 70, 80, 90)},
    **{f"noc{at}": f"NoC@{at}" for at in (80, 85, 90)},
    **{f"nof{at}": f"NoF@{at}" for at in (80, 85, 90)},
}
_COUNTS = ("noc", "nof")


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperTable:
    """One table of a paper."""

    name: str
    """What it is called here."""
    paper: str
    """Authors and title."""
    table: str
    """Its number there."""
    about: str
    """Dataset and task."""
    columns: tuple[str, ...]
    """Our name of each column's figure, such as ``masks.ap``."""
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]
    """Method and its numbers as printed: per cent, clicks or objects; None = not given."""

    @property
    def titles(self) -> tuple[str, ...]:
        """Column titles for people."""
        return tuple(_TITLES[column] for column in self.columns)

    def words(self, values: tuple[float | None, ...]) -> tuple[str, ...]:
        """Write numbers as the table does: AP to tenths, IoU and clicks to hundredths, objects whole; - = not given."""
        digits = [0 if c.startswith("nof") else 1 if c.startswith(("masks", "boxes")) else 2 for c in self.columns]
        return tuple("-" if v is None else f"{v:.{d}f}" for v, d in zip(values, digits, strict=True))

    def ours(self, figures: Mapping[str, Any]) -> tuple[float | None, ...]:
        """Put our figures into the table's columns and units.

        Args:
            figures: with ``masks`` and ``boxes`` of COCO figures, or the figures of referring or interactive
                segmentation themselves; 0-1.
        """
        out: list[float | None] = []
        for column in self.columns:
            value: Any = figures
            for key in column.split("."):
                value = value.get(key) if isinstance(value, dict) else None
            factor = 1 if column.startswith(_COUNTS) else 100
            out.append(None if value is None else factor * float(value))
        return tuple(out)

    def to_dict(self, figures: Mapping[str, Any]) -> dict[str, Any]:
        """Return plain JSON values, with our figures as ``ours``."""
        return {
            "name": self.name,
            "paper": self.paper,
            "table": self.table,
            "about": self.about,
            "columns": list(self.columns),
            "rows": [{"method": method, "values": list(values)} for method, values in self.rows],
            "ours": list(self.ours(figures)),
        }


def paper_table(name: str) -> PaperTable:
    """Look a table up.

    Raises:
        UsageError: there is none of that name; the message lists all.
    """
    tables = paper_tables()
    if name not in tables:
        msg = f"there is no paper table {name}; there are {', '.join(tables)}"
        raise UsageError(msg)
    return tables[name]


@cache
def paper_tables() -> Mapping[str, PaperTable]:
    """Read all tables, by name."""
    text = files("rsgeoseg.evaluate").joinpath("paper_tables.toml").read_text(encoding="utf-8")
    return {name: _parse(name, entry) for name, entry in tomllib.loads(text).items()}


def _parse(name: str, entry: Mapping[str, Any]) -> PaperTable:
    rows = []
    for line in entry["rows"].strip().splitlines():
        method, _, numbers = line.partition(" | ")
        values = tuple(None if text == "-" else float(text) for text in numbers.split())
        if len(values) != len(entry["columns"]):
            msg = f"paper_tables.toml: {name}: {line!r} needs {len(entry['columns'])} numbers"
            raise ValueError(msg)
        rows.append((method, values))
    return PaperTable(
        name=name,
        paper=entry["paper"],
        table=entry["table"],
        about=entry["about"],
        columns=tuple(entry["columns"]),
        rows=tuple(rows),
    )
