"""What commands share: messages, logging, tables, and options that several of them take."""

from __future__ import annotations

import json
import logging
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rsgeoseg.weights.cards import WeightsCard
    from rsgeoseg.weights.published import PublishedCard

Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Say more; an error shows where it arose.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")]


def set_up(*, verbose: bool = False, quiet: bool = False) -> None:
    """Send the library's log to stderr, one line per message."""
    logger = logging.getLogger("rsgeoseg")
    logger.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.WARNING)
    if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        logger.addHandler(_StderrHandler())
    logger.propagate = False


class _StderrHandler(logging.Handler):
    """Writes to whatever stderr is now: a progress bar puts its own there to keep lines apart."""

    def emit(self, record: logging.LogRecord) -> None:
        complain(record.levelname.lower(), record.getMessage())


def complain(level: str, message: str) -> None:
    """Print ``level: message`` on stderr, in one line."""
    print(f"{level}: {' '.join(message.split())}", file=sys.stderr)


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_pairs(pairs: Iterable[tuple[str, Any]]) -> None:
    """Print names and values in two columns."""
    rows = [(name, str(value)) for name, value in pairs]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table: numbers to the right, words to the left."""
    cells = [[str(cell) for cell in row] for row in rows]
    columns = list(zip(*([list(header), *cells]), strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [bool(cells) and all(_is_number(row[i]) for row in cells) for i in range(len(header))]
    for line in [list(header), *cells]:
        parts = [f"{cell:>{w}}" if r else f"{cell:<{w}}" for cell, w, r in zip(line, widths, right, strict=True)]
        print("  ".join(parts).rstrip())


def weights_state(card: WeightsCard | PublishedCard) -> str:
    """Tell whether weights are ``bundled``, ``cached``, ``partial`` (a broken download) or ``to fetch``."""
    from rsgeoseg.weights import cache
    from rsgeoseg.weights.published import PublishedCard

    if not isinstance(card, PublishedCard):
        return "bundled"
    state = cache.state(card)
    return "to fetch" if state is cache.CacheState.absent else state.value


def _is_number(text: str) -> bool:
    return text == "-" or text.replace(".", "", 1).replace(",", "").replace("-", "", 1).isdigit()


def human_bytes(count: float) -> str:
    """Write a number of bytes for people: ``1.4 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
