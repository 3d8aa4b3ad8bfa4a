"""``rsgeoseg models``: which models are there, and what weights do they have?"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rsgeoseg.cli import common

if TYPE_CHECKING:
    from rsgeoseg.registry import ModelCard


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
        rows = [
            (c.name, ", ".join(c.backbones) or "-", ", ".join(w.id for w in c.weights) or "-", c.summary) for c in cards
        ]
        common.print_table(("model", "backbones", "weights", "what it does"), rows)
    else:
        _print_card(cards[0])


def to_dict(card: ModelCard) -> dict[str, Any]:
    """Return the JSON form of a card."""
    return {**asdict(card), "weights": [weights.to_dict() for weights in card.weights]}


def _print_card(card: ModelCard) -> None:
    common.print_pairs(
        [
            ("model", card.name),
            ("what it does", card.summary),
            ("paper", card.paper or "-"),
            ("backbones", ", ".join(card.backbones) or "-"),
        ]
    )
    for weights in card.weights:
        print()
        accuracy = ", ".join(f"{name} {value:g}" for name, value in weights.accuracy.items())
        gsd = "-" if weights.gsd_range is None else f"{weights.gsd_range[0]:g} to {weights.gsd_range[1]:g} m per pixel"
        common.print_pairs(
            [
                ("weights", weights.id),
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
    if not card.weights:
        print("\nno weights come with the package: give a file with --weights")
