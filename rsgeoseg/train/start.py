"""Start a training from weights of another one: whatever fits by name and shape."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rsgeoseg.errors import WeightsError
from rsgeoseg.weights.cards import bundled_cards
from rsgeoseg.weights.files import read_weights

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Start:
    """What a network took from a weights file."""

    taken: tuple[str, ...]
    """Names of the tensors that were copied."""
    fresh: tuple[str, ...]
    """Names of the network's tensors that keep their random start: not in the file, or of another shape."""


def start_from(network: nn.Module, weights: str) -> Start:
    """Copy every tensor that the file has under the same name and shape.

    With weights of the same model and other classes this is all but the class layers; with weights of another model on
    the same backbone, the encoder and SAM's decoder.

    Args:
        network: changed in place.
        weights: id of bundled weights, or path of a file of `rsgeoseg train` or `rsgeoseg weights convert`.

    Raises:
        WeightsError: the file cannot be read, is for another backbone, or nothing of it fits.
    """
    cards = {card.id: card for card in bundled_cards()}
    card = cards.get(weights)
    path = Path(weights) if card is None else card.path
    file = read_weights(path, sha256=None if card is None else card.sha256)
    own = network.state_dict()
    taken = {name: x for name, x in file.tensors.items() if name in own and own[name].shape == x.shape}
    if not taken:
        holds = f"{file.description.get('model')} on {file.description.get('backbone')}"
        msg = f"{path}: nothing of it fits ({holds}); choose weights of the same backbone"
        raise WeightsError(msg)
    network.load_state_dict(taken, strict=False)
    return Start(tuple(taken), tuple(name for name in own if name not in taken))
