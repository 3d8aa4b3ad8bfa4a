"""Cards of weights: what a file is, where it came from, how good it was measured to be."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

BUNDLED = Path(__file__).parent / "bundled"
"""Weights that come with the package."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsCard:
    """One weights file."""

    id: str
    """Name to ask for, e.g. ``rsprompter-query-lite-nwpu``."""
    model: str
    """Registry name of the model it belongs to."""
    backbone: str
    """Image encoder."""
    file: str
    """File name inside the package, or a URL's last part."""
    bytes: int
    """Size of the file."""
    sha256: str
    """Digest of the file."""
    classes: tuple[str, ...]
    """Class names."""
    licence: str
    """Licence of the weights and limits of the training images."""
    data: str
    """What it was trained on and what was held out."""
    recipe: str
    """How it was trained; seeds and steps."""
    accuracy: dict[str, float] = field(default_factory=dict)
    """Measured metrics on the held-out images."""
    limits: str = ""
    """What it cannot do."""
    chip_size: int = 1024
    """Side of the chips it wants, pixels."""
    overlap: int = 128
    """Overlap between neighbouring chips, pixels."""
    score_threshold: float = 0.5
    """Score below which objects are left off a map."""
    gsd_range: tuple[float, float] | None = None
    """Metres per pixel of the training images."""

    @property
    def path(self) -> Path:
        """Where the file is once it is here."""
        return BUNDLED / self.file

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "classes": list(self.classes)}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> WeightsCard:
        """Read what ``to_dict`` wrote; fields it does not know are an error."""
        known = {f.name for f in fields(WeightsCard)}
        unknown = set(values) - known
        if unknown:
            msg = f"weights card has unknown fields {sorted(unknown)}"
            raise ValueError(msg)
        gsd = values.get("gsd_range")
        return WeightsCard(
            **{**values, "classes": tuple(values["classes"]), "gsd_range": tuple(gsd) if gsd is not None else None}
        )


def bundled_cards() -> list[WeightsCard]:
    """Cards of the weights inside the package, by id."""
    return [WeightsCard.from_dict(json.loads(path.read_text())) for path in sorted(BUNDLED.glob("*.json"))]


def find_card(model: str, weights: str | None) -> WeightsCard | None:
    """Find a bundled card: the model's first one for None, else by id; None where there is no such card."""
    cards = [card for card in bundled_cards() if card.model == model]
    if weights is None:
        return cards[0] if cards else None
    return next((card for card in cards if card.id == weights), None)
