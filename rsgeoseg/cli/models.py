"""``rsgeoseg models``: which models are there, and what weights do they have?"""

from __future__ import annotations

import sys
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rsgeoseg.cli import common

if TYPE_CHECKING:
    from rsgeoseg.registry import ModelCard
    from rsgeoseg.weights.cards import WeightsCard
    from rsgeoseg.weights.published import PublishedCard

PLAIN_WIDTH = 180
"""Columns of the table where it is not shown on a terminal."""
_COLUMNS = (  # name, most characters, narrowest terminal that has room for it
    ("model and method", 34, 0),
    ("paper", 24, 140),
    ("backbones", 20, 140),
    ("weights", 30, 0),
    ("classes", 10, 105),
    ("licence", 12, 105),
    ("state", 20, 0),
    ("AP / AP50", 13, 0),
)
_FOLDING = 2  # columns that hold sentences; the others line up and stay whole


def models(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show all about one model.")] = None,
    as_json: common.Json = False,
) -> None:
    """List the models, or show all about one."""
    from rsgeoseg import registry

    cards = registry.list_models() if name is None else [registry.card(name)]
    if as_json:
        values = [to_dict(card) for card in cards]
        common.print_json(values if name is None else values[0])
    elif name is None:
        _print_table(cards)
    else:
        _print_card(cards[0])


def to_dict(card: ModelCard) -> dict[str, Any]:
    """Return the JSON form of a card; bundled weights first, each with its state."""
    cards: list[WeightsCard | PublishedCard] = [*card.weights, *card.published]
    weights = [{**w.to_dict(), "state": common.weights_state(w)} for w in cards]
    return {**asdict(card), "weights": weights, "published": [w.id for w in card.published]}


def _print_table(cards: list[ModelCard]) -> None:
    """Print a line per model and family of weights, folded to the width of the terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False)
    shown = [console.width >= least for *_, least in _COLUMNS]
    table = Table(box=None, header_style="bold", padding=(0, 2, 1, 0))
    for index, (name, most, _) in enumerate(_COLUMNS):
        if shown[index]:
            table.add_column(name, max_width=most, no_wrap=index >= _FOLDING)
    for card in cards:
        about = (f"[bold]{card.name}[/bold]\n{card.summary}", card.paper or "-", "\n".join(_families(card.backbones)))
        weights = ("\n".join(column) for column in zip(*_weights_rows(card), strict=True))
        table.add_row(*(cell for cell, show in zip((*about, *weights), shown, strict=True) if show))
    console.print(table)
    print("*: the training images have limits of their own. AP: of masks, measured by this project on held-out images")
    print("of the weights' own data; -: not measured here. `rsgeoseg models NAME` shows all about one model.")


def _weights_rows(card: ModelCard) -> list[tuple[str, str, str, str, str]]:
    """Give weights, classes, licence, state and accuracy: bundled files first, public ones by family."""
    rows = [(w.id, _classes(w.classes), _short(w.licence), "bundled", _accuracy(w)) for w in card.weights]
    for _, group in groupby(card.published, lambda w: (w.id.partition("-")[0], w.classes, w.licence)):
        files = list(group)
        states = [common.weights_state(w) for w in files]
        kinds = [f"{states.count(s)} {s}" for s in dict.fromkeys(states)] if len(set(states)) > 1 else states[:1]
        ids = ", ".join(_families([w.id for w in files]))
        rows.append((ids, _classes(files[0].classes), _short(files[0].licence), ", ".join(kinds), "-"))
    return rows or [("train your own", "yours", "yours", "-", "-")]


def _families(names: tuple[str, ...] | list[str]) -> list[str]:
    """Shorten names that differ in their last part alone: ``sam-vit-b/l/h``."""
    families: dict[str, list[str]] = {}
    for name in names:
        stem, _, last = name.rpartition("-")
        families.setdefault(stem, []).append(last)
    return [f"{stem}-{'/'.join(last)}" if stem else "/".join(last) for stem, last in families.items()]


def _classes(classes: tuple[str, ...]) -> str:
    return "none" if not classes else ", ".join(classes) if len(classes) < 3 else f"{len(classes)} classes"


def _short(licence: str) -> str:
    """First word of a licence, with a star where there is more to it."""
    first = licence.split(maxsplit=1)[0].rstrip(";")
    return first if first == licence else f"{first} *"


def _accuracy(card: WeightsCard) -> str:
    found = card.accuracy
    return f"{found['mask_ap']:.3f} / {found['mask_ap50']:.3f}" if "mask_ap" in found else "-"


def _print_card(card: ModelCard) -> None:
    common.print_pairs(
        [
            ("model", card.name),
            ("what it does", card.summary),
            ("paper", card.paper or "-"),
            ("backbones", ", ".join(card.backbones) or "-"),
            ("a run", "refuses it: it answers prompts, from Python" if card.needs_prompts else "finds by itself"),
        ]
    )
    for weights in card.weights:
        _print_bundled(weights)
    for published in card.published:
        _print_published(published)
    if not (card.weights or card.published):
        print("\nno weights come with the package: train it (`rsgeoseg train`), or give a file with --weights")


def _print_bundled(weights: WeightsCard) -> None:
    accuracy = ", ".join(f"{name} {value:g}" for name, value in weights.accuracy.items())
    gsd = "-" if weights.gsd_range is None else f"{weights.gsd_range[0]:g} to {weights.gsd_range[1]:g} m per pixel"
    print()
    common.print_pairs(
        [
            ("weights", weights.id),
            ("state", "bundled"),
            ("backbone", weights.backbone),
            ("size", common.human_bytes(weights.bytes)),
            ("sha256", weights.sha256),
            ("classes", ", ".join(weights.classes)),
            ("chips", f"{weights.chip_size} pixels, overlap {weights.overlap}"),
            ("ground", gsd),
            ("data", weights.data),
            ("recipe", weights.recipe),
            ("accuracy", accuracy or "-"),
            ("limits", weights.limits or "-"),
            ("licence", weights.licence),
        ]
    )


def _print_published(weights: PublishedCard) -> None:
    print()
    common.print_pairs(
        [
            ("weights", weights.id),
            ("state", common.weights_state(weights)),
            ("backbone", weights.backbone),
            ("size", common.human_bytes(weights.bytes)),
            ("sha256", weights.sha256),
            ("url", weights.url),
            ("classes", ", ".join(weights.classes) or "none"),
            ("source", weights.source),
            ("notes", weights.notes or "-"),
            ("licence", weights.licence),
        ]
    )
