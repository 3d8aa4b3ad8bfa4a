"""A folder that shows how good a model or a map is: ``report.html``, its pictures, and the figures as JSON."""

from __future__ import annotations

import html
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsgeoseg.errors import OutputError
from rsgeoseg.evaluate.curves import precision_recall
from rsgeoseg.evaluate.report_plots import check_matplotlib, plot_confusion, plot_curves
from rsgeoseg.evaluate.worst_cases import draw_sheet, worst_cases

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rsgeoseg.evaluate.evidence import Evidence

PAGE = "report.html"
FIGURES = "figures.json"
_PICTURES = ("precision_recall.png", "confusion.png", "worst_cases.png")
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1500px;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0}"
    "td,th{padding:.25em .8em;border-bottom:1px solid #ddd;text-align:right}"
    "td:first-child,th:first-child{text-align:left}img{max-width:100%}"
)


def check_report_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that a report cannot become, before the work.

    Raises:
        OutputError: it is a file, holds something, or its parent folder is missing.
        UsageError: matplotlib is missing.
    """
    check_matplotlib()
    if not folder.resolve().parent.is_dir():
        msg = f"cannot write {folder}: the folder {folder.resolve().parent} does not exist; create it or choose another"
        raise OutputError(msg)
    if folder.exists() and not folder.is_dir():
        msg = f"cannot write {folder}: it is a file; give the name of a folder"
        raise OutputError(msg)
    held = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if held and not overwrite:
        msg = f"{folder} exists and is not empty; choose another name or use --overwrite"
        raise OutputError(msg)
    foreign = [name for name in held if name not in (PAGE, FIGURES, *_PICTURES)]
    if foreign:  # replacing a folder must never take along what is not ours
        msg = f"{folder} holds {', '.join(foreign[:3])}, which is not of a report; choose another folder"
        raise OutputError(msg)


def write_report(
    folder: Path,
    evidence: Evidence,
    figures: dict[str, Any],
    tables: Iterable[tuple[str, Sequence[str], Sequence[Sequence[str]]]],
    *,
    score: float,
    overwrite: bool = False,
) -> None:
    """Write a report; the folder appears whole, or not at all.

    Args:
        folder: what to create.
        evidence: what was compared.
        figures: plain JSON values, for ``figures.json``.
        tables: title, header and rows, for the page.
        score: results below count neither in the confusion matrix nor in the pictures.
        overwrite: whether an earlier report may be replaced.

    Raises:
        OutputError: the folder cannot be written.
        UsageError: matplotlib is missing.
    """
    check_report_folder(folder, overwrite=overwrite)
    folder = folder.resolve()
    try:
        with tempfile.TemporaryDirectory(prefix=f".{folder.name[:60]}.", suffix=".part", dir=folder.parent) as scratch:
            new = Path(scratch) / "new"
            new.mkdir()
            _fill(new, evidence, figures, tables, score)
            if folder.exists():
                folder.replace(Path(scratch) / "old")
            try:
                new.replace(folder)
            except OSError:
                if (Path(scratch) / "old").exists():
                    (Path(scratch) / "old").replace(folder)
                raise
    except OSError as error:
        msg = f"cannot write {folder}: {' '.join(str(error).split())[:300]}; choose another folder"
        raise OutputError(msg) from error


def _fill(
    folder: Path,
    evidence: Evidence,
    figures: dict[str, Any],
    tables: Iterable[tuple[str, Sequence[str], Sequence[Sequence[str]]]],
    score: float,
) -> None:
    confusion = evidence.confusion(score)
    curves = {f"{iou:.2f}": precision_recall(evidence.comparisons, evidence.classes, iou=iou) for iou in (0.5, 0.75)}
    plot_curves(curves).savefig(folder / "precision_recall.png", dpi=110)
    plot_confusion(confusion).savefig(folder / "confusion.png", dpi=110)
    worst = worst_cases(evidence.cases(score))
    if worst:
        draw_sheet(worst).save(folder / "worst_cases.png")
    everything = {
        **figures,
        "confusion": confusion.to_dict(),
        "precision_recall": {
            iou: {name: [_rounded(value) for value in curve.tolist()] for name, curve in by_class.items()}
            for iou, by_class in curves.items()
        },
        "worst_cases": [case.to_dict() for case in worst],
    }
    (folder / FIGURES).write_text(json.dumps(everything, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / PAGE).write_text(_page(evidence.title, tables, score=score, worst=bool(worst)), encoding="utf-8")


def _rounded(value: float) -> float | None:
    return None if value != value else round(value, 4)  # noqa: PLR0124  (NaN is not itself)


def _page(
    title: str,
    tables: Iterable[tuple[str, Sequence[str], Sequence[Sequence[str]]]],
    *,
    score: float,
    worst: bool,
) -> str:
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for name, header, rows in tables:
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows)
        parts.append(f"<h2>{html.escape(name)}</h2><table><tr>{head}</tr>{body}</table>")
    parts += _section("Precision and recall", "precision_recall.png", "Masks or polygons, class by class.")
    text = f"Objects with a score of at least {score:g}. Rows: what is there; columns: what was found."
    parts += _section("Confusion", "confusion.png", text)
    if worst:
        text = "Most misses and false alarms first. Green: found; red: missed; yellow: false alarm or wrong class."
        parts += _section("Worst cases", "worst_cases.png", text)
    else:
        parts.append("<h2>Worst cases</h2><p>None: nothing was missed and nothing made up.</p>")
    head = f"<meta charset='utf-8'><title>{html.escape(title)}</title><style>{_STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _section(title: str, picture: str, text: str) -> list[str]:
    return [f"<h2>{title}</h2><p>{html.escape(text)}</p><p><img src='{picture}' alt='{title}'></p>"]
