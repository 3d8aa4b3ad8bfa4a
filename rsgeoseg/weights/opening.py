"""From what a user calls weights (nothing, an id, a path) to tensors under our names, checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsgeoseg.errors import WeightsError
from rsgeoseg.weights.cache import fetch
from rsgeoseg.weights.cards import find_card
from rsgeoseg.weights.files import WeightsFile, is_own_file, read_weights
from rsgeoseg.weights.foreign import read_foreign
from rsgeoseg.weights.published import public_card, settings_of

if TYPE_CHECKING:
    from collections.abc import Collection


@dataclass(frozen=True, slots=True)
class OpenedWeights:
    """Weights ready to be loaded into a network."""

    file: WeightsFile
    """Tensors and what to build."""
    path: Path
    """Where they were read, for messages."""
    score_threshold: float
    """Score below which objects are left off a map."""
    about: dict[str, Any]
    """Further fields of ``ModelSpec``: ``weights_id``, ``licence``, ``chip_size``, ..."""


def open_weights(model: str, weights: str | Path | None, *, accepts: Collection[str] | None = None) -> OpenedWeights:
    """Find, fetch where needed, verify and read weights.

    Args:
        model: registry name of the model that asks.
        weights: id of bundled or published weights, or a path to a file of `rsgeoseg train` or `rsgeoseg weights
            convert`, or to a file of the authors in a known layout; None = the model's bundled weights, or else its
            default published ones.
        accepts: names under which files may say they are for this model; None = its own alone.

    Raises:
        WeightsError: the weights are missing, damaged, cannot be fetched, or belong to another model.
    """
    card = find_card(model, None if weights is None else str(weights))
    if card is not None:
        about: dict[str, Any] = {"licence": card.licence, "overlap": card.overlap, "chip_size": card.chip_size}
        file = read_weights(card.path, sha256=card.sha256)
        about |= {"gsd_range": card.gsd_range, "weights_id": _identity(card.id, file)}
        opened = OpenedWeights(file, card.path, card.score_threshold, about)
    else:
        opened = _published(model, weights) or _file(Path(str(weights)))
    holds = opened.file.description.get("model")
    if holds not in (accepts or (model,)):
        msg = f"{opened.path}: holds {holds!r}, not {model}; choose the model or the file that fits"
        raise WeightsError(msg)
    return opened


def _published(model: str, weights: str | Path | None) -> OpenedWeights | None:
    card = public_card(model, None if weights is None else str(weights))
    if card is None and weights is None:
        msg = f"{model} has no bundled and no public weights; give --weights PATH, or train it with `rsgeoseg train`"
        raise WeightsError(msg)
    if card is None:
        return None
    path = fetch(card)
    file = read_foreign(path, classes=card.classes or None, digest=card.sha256)
    file.description.setdefault("config", {}).update(settings_of(card))
    about = {"licence": card.licence, "weights_id": _identity(card.id, file)}
    return OpenedWeights(file, path, card.score_threshold, about)


def _file(path: Path) -> OpenedWeights:
    file = read_weights(path) if is_own_file(path) or not path.is_file() else read_foreign(path)
    return OpenedWeights(file, path, 0.5, {"weights_id": _identity(path.name, file)})


def _identity(name: str, file: WeightsFile) -> str:
    return f"{name}@{file.digest[:16]}"
