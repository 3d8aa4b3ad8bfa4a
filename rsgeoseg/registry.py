"""Models by name. Names map to ``"module:function"`` strings, so that listing them imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, cast

from rsgeoseg.errors import ModelError
from rsgeoseg.heap import keep_freed_memory, no_collection
from rsgeoseg.weights.cards import WeightsCard, bundled_cards
from rsgeoseg.weights.published import PublishedCard, published_cards

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
    needs_prompts: bool = False
    """It answers prompts and finds nothing by itself."""
    weights: tuple[WeightsCard, ...] = ()
    """Weights that come with the package; the first is the default."""
    published: tuple[PublishedCard, ...] = ()
    """Public weights that it loads; fetched once, when they are first used."""


_SAM = ("sam-vit-b", "sam-vit-l", "sam-vit-h")
_SAM2 = ("sam2-hiera-t", "sam2-hiera-s", "sam2-hiera-b+", "sam2-hiera-l")
_ALL = ("lite", *_SAM, *_SAM2)
_RSPROMPTER = "Chen et al., RSPrompter, IEEE TGRS 2024"
_SAM_PAPER = "Kirillov et al., Segment Anything, ICCV 2023"
_SAM2_PAPER = "Ravi et al., SAM 2, ICLR 2025"


def _built_in(
    name: str, summary: str, paper: str, backbones: tuple[str, ...], *, needs_prompts: bool = False
) -> ModelCard:
    """Card of a model in the module of its name."""
    loader = f"rsgeoseg.models.{name.replace('-', '_')}:load"
    return ModelCard(
        name=name, summary=summary, paper=paper, backbones=backbones, loader=loader, needs_prompts=needs_prompts
    )


_BUILT_IN = (
    _built_in(
        "rsprompter-query",
        "objects of known classes: learned queries prompt SAM's mask decoder",
        _RSPROMPTER,
        _ALL,
    ),
    _built_in(
        "rsprompter-anchor",
        "objects of known classes: boxes of a two-stage detector prompt SAM's mask decoder",
        _RSPROMPTER,
        _ALL,
    ),
    _built_in(
        "sam-seg-maskrcnn",
        "objects of known classes: Mask R-CNN on SAM's image encoder",
        f"{_RSPROMPTER} (SAM-seg)",
        _ALL,
    ),
    _built_in(
        "sam-seg-mask2former",
        "objects of known classes: Mask2Former on SAM's image encoder",
        f"{_RSPROMPTER} (SAM-seg)",
        _ALL,
    ),
    _built_in(
        "sam-det",
        "objects of known classes: the boxes of a Faster R-CNN, or of yours, prompt SAM",
        f"{_RSPROMPTER} (SAM-det)",
        _ALL,
    ),
    _built_in(
        "sam-cls",
        "objects of known classes: everything that SAM sees, named by a ResNet-18 or CLIP",
        f"{_RSPROMPTER} (SAM-cls)",
        _ALL,
    ),
    _built_in(
        "sam-everything",
        "every object, without classes: a grid of points prompts SAM or SAM 2",
        f"{_SAM_PAPER}; {_SAM2_PAPER}",
        _ALL,
    ),
    _built_in(
        "sam-prompt",
        "what your points, boxes and masks mean",
        _SAM_PAPER,
        ("lite", *_SAM),
        needs_prompts=True,
    ),
    _built_in("sam2-prompt", "what your points, boxes and masks mean", _SAM2_PAPER, _SAM2, needs_prompts=True),
)


def list_models() -> list[ModelCard]:
    """Cards of every model: built in, and added by other packages through entry points."""
    bundled, public = bundled_cards(), published_cards()
    cards = [
        replace(
            card,
            weights=tuple(w for w in bundled if w.model == card.name),
            published=tuple(w for w in public if card.name in w.models),
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
        weights: id of bundled or public weights, or path of a file of `rsgeoseg train`, `rsgeoseg weights convert` or
            the authors; None = the bundled default, else the model's default public file.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.

    Raises:
        ModelError: unknown model or device.
        WeightsError: weights missing, damaged, or for another model.
    """
    module, _, function = card(name).loader.partition(":")
    keep_freed_memory()
    with no_collection():
        return cast("Segmenter", getattr(import_module(module), function)(weights, device))
