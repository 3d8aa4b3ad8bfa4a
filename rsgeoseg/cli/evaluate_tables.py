"""Figures of an evaluation as tables: the same for the terminal and for a report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rsgeoseg.cli import common

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rsgeoseg.evaluate.paper_tables import PaperTable

_SIZES = {"AP": "ap", "AP50": "ap50", "AP75": "ap75", "APs": "ap_small", "APm": "ap_medium", "APl": "ap_large"}


@dataclass(frozen=True, slots=True)
class Table:
    """Cells of a table, as text."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def coco_tables(kinds: dict[str, Any]) -> list[Table]:
    """Show COCO figures.

    Args:
        kinds: figures as ``masks`` and ``boxes``, either may be None.
    """
    shown = {name: figures for name, figures in kinds.items() if figures is not None}
    rows = [
        (name, *(_percent(figures[key]) for key in _SIZES.values()), _percent(figures["ar"]))
        for name, figures in shown.items()
    ]
    tables = [Table("Average precision, per cent", ("", *_SIZES, "AR"), tuple(rows))]
    classes = list(zip(*(figures["per_class"] for figures in shown.values()), strict=True))
    by_class = [
        (
            same[0]["name"],
            *(_percent(row[key]) for row in same for key in ("ap", "ap50")),
            str(same[0]["n_truth"]),
            str(same[0]["n_found"]),
        )
        for same in classes
    ]
    singular = {"masks": "mask", "boxes": "box"}
    header = [f"{singular[name]} {key}" for name in shown for key in ("AP", "AP50")]
    return [*tables, Table("By class", ("class", *header, "truth", "found"), tuple(by_class))]


def map_tables(figures: dict[str, Any], seams_from: str | None) -> list[Table]:
    """Show the figures of a map.

    Args:
        figures: of ``PolygonResult``.
        seams_from: where the seam strips are known from; None = they are not.
    """
    parts = [("all", figures), *((zone["name"], zone) for zone in figures["zones"])]
    rows = [
        (
            name,
            *(_percent(part[key]) if key in part else "-" for key in ("ap", "ap50", "ap75", "recall")),
            *(str(part[key]) for key in ("n_truth", "n_found", "n_matched")),
        )
        for name, part in parts
    ]
    header = ("polygons", "AP", "AP50", "AP75", "recall", "truth", "found", "matched")
    by_class = [
        (
            row["name"],
            _percent(row["ap"]),
            _percent(row["ap50"]),
            *(str(row[key]) for key in ("n_truth", "n_found", "n_matched")),
        )
        for row in figures["per_class"]
    ]
    return [
        Table("Average precision on the map, per cent", header, tuple(rows)),
        Table("What tiling does to a map", ("", ""), tuple(_map_notes(figures, seams_from))),
        Table("By class", ("class", "AP", "AP50", "truth", "found", "matched"), tuple(by_class)),
    ]


def referring_tables(figures: dict[str, Any]) -> list[Table]:
    """Show the figures of referring segmentation."""
    names = {"oiou": "oIoU", "miou": "mIoU", **{f"pr{at}": f"Pr@0.{at // 10}" for at in (50, 60, 70, 80, 90)}}
    row = (*(_percent(figures[key]) for key in names), str(figures["n"]))
    return [Table("Referring segmentation, per cent", (*names.values(), "expressions"), (row,))]


def interactive_tables(figures: dict[str, Any]) -> list[Table]:
    """Show the figures of interactive segmentation: clicks needed, failures, and the curve of IoU per click."""
    at = (80, 85, 90)
    titles = (*(f"NoC@{level}" for level in at), *(f"NoF@{level}" for level in at), "objects")
    needed = ("-" if figures[f"noc{level}"] is None else f"{figures[f'noc{level}']:.2f}" for level in at)
    row = (*needed, *(str(figures[f"nof{level}"]) for level in at), str(figures["n"]))
    curve = tuple((str(click), _percent(iou)) for click, iou in enumerate(figures["curve"], start=1))
    about = f"Simulated clicks, at most {figures['max_clicks']} per object"
    return [Table(about, titles, (row,)), Table("Mean IoU, per cent", ("click", "mIoU"), curve)]


def paper_listing(tables: Iterable[PaperTable]) -> Table:
    """List the tables of papers."""
    rows = [(table.name, table.about, table.table, table.paper) for table in tables]
    return Table("Tables of papers", ("name", "about", "table", "paper"), tuple(rows))


def paper_rows(table: PaperTable, figures: dict[str, Any], name: str) -> Table:
    """Show a table of a paper, our figures in its last row.

    Args:
        table: the paper's.
        figures: ours, for ``PaperTable.ours``.
        name: of our row.
    """
    rows = [(method, *table.words(values)) for method, values in table.rows]
    ours = (name, *table.words(table.ours(figures)))
    title = f"{table.table} of {table.paper}: {table.about}"
    return Table(title, ("method", *table.titles), (*rows, ours))


def print_tables(tables: Sequence[Table], *, titles: bool = False) -> None:
    """Print tables with an empty line between."""
    for number, table in enumerate(tables):
        if number:
            print()
        if titles:
            print(table.title)
        if any(table.header):
            common.print_table(table.header, table.rows)
        else:
            common.print_pairs((row[0], row[1]) for row in table.rows)


def _map_notes(figures: dict[str, Any], seams_from: str | None) -> Iterable[tuple[str, str]]:
    for key, name in (("duplicates", "duplicates"), ("fragmented", "fragments")):
        density = figures[f"{key}_per_km2"]
        yield name, f"{figures[key]}" if density is None else f"{figures[key]} ({density:.2f} per km2)"
    if figures["area_km2"] is not None:
        yield "area", f"{figures['area_km2']:.4g} km2 ({figures['area_of']})"
    yield "seams", "not known: no run record, and no --chip-size" if seams_from is None else f"as in {seams_from}"
    for key in ("truth", "found"):
        repaired, left_out = figures[f"{key}_repaired"], figures[f"{key}_left_out"]
        if repaired or left_out:
            name = "truth" if key == "truth" else "result"
            yield f"{name} geometry", f"{repaired} repaired, {left_out} left out"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
