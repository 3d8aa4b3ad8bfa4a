"""Models by name. Names map to ``"module:function"`` strings, so that listing them imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, cast

from rsgeoseg.errors import ModelError
from rsgeoseg.weights.cards import WeightsCard, bundled_cards

if TYPE_CHECKING:
    from pathlib import Path

    from rsgeoseg.contract import Segmenter

ENTRY_POINTS = "rsgeoseg.models"
"""Entry-point group by which another package adds a model: name = "module:load"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What a person needs to choose a model."""

    name: str
    """Registry name."""
    summary: str
    """One line."""
    paper: str
    """Publication."""
    backbones: tuple[str, ...]
    """Image encoders it builds on."""
    loader: str
    """``"module:function"`` taking (weights, device) and giving a Segmenter."""
    weights: tuple[WeightsCard, ...] = ()
    """Weights that come with the package; the first is the default."""


_BUILT_IN = (
    ModelCard(
        name="rsprompter-query",
        summary="finds objects of known classes; learned queries prompt SAM's mask decoder",
        paper="Chen et al., RSPrompter, IEEE TGRS 2024",
        backbones=("lite", "sam-vit-b", "sam-vit-l", "sam-vit-h"),
        loader="rsgeoseg.models.rsprompter_query:load",
    ),
)


def list_models() -> list[ModelCard]:
    """Cards of every model: built in, and added by other packages through entry points."""
    bundled = bundled_cards()
    cards = [
        ModelCard(
            name=card.name,
            summary=card.summary,
            paper=card.paper,
            backbones=card.backbones,
            loader=card.loader,
            weights=tuple(w for w in bundled if w.model == card.name),
        )
        for card in _BUILT_IN
    ]
    known = {card.name for card in cards}
    cards += [
        ModelCard(name=point.name, summary=f"from {point.value}", paper="", backbones=(), loader=point.value)
        for point in entry_points(group=ENTRY_POINTS)
        if point.name not in known
    ]
    return cards


def card(name: str) -> ModelCard:
    """Find a model's card.

    Raises:
        ModelError: no such model; the message lists the known ones.
    """
    cards = list_models()
    for found in cards:
        if found.name == name.replace("_", "-"):
            return found
    msg = f"model {name!r} is unknown; known: {', '.join(c.name for c in cards)}"
    raise ModelError(msg)


def load_model(name: str, weights: str | Path | None = None, device: str = "auto") -> Segmenter:
    """Build a model with its weights, ready to segment.

    Args:
        name: registry name.
        weights: id or path; None = the bundled default.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.

    Raises:
        ModelError: unknown model or device.
        WeightsError: weights missing, damaged, or for another model.
    """
    module, _, function = card(name).loader.partition(":")
    return cast("Segmenter", getattr(import_module(module), function)(weights, device))
