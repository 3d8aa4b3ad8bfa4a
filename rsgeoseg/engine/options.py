"""Options of a run: what a user may write, turned into values that cannot be wrong."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from rsgeoseg.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rsgeoseg.contract import ModelSpec

OnChipError = Literal["raise", "skip"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineOptions:
    """How one scene is cut, segmented and joined; every value is final (no "auto" left)."""

    chip_size: int
    """Side of a chip, pixels of the working grid."""
    overlap: int
    """Pixels that neighbouring chips share."""
    batch_size: int = 1
    """Chips per call of the model; halved when memory runs out."""
    score_threshold: float = 0.5
    """Objects below are dropped before stitching."""
    labels: frozenset[int] | None = None
    """Class indices to keep; None = all."""
    nms: float = 0.5
    """Mask IoU or containment above which two whole objects of one class are duplicates."""
    readers: int = 2
    """Threads that read ahead of the model."""
    ahead: int | None = None
    """Chips read ahead of the model at most; None = enough for the readers and a batch."""
    on_chip_error: OnChipError = "raise"
    """What a chip that cannot be read or segmented means: stop, or leave a recorded hole."""

    def __post_init__(self) -> None:
        """Check ranges once, here."""
        require_positive("chip-size", self.chip_size)
        require_positive("batch-size", self.batch_size)
        require_positive("readers", self.readers)
        if self.ahead is not None:
            require_positive("ahead", self.ahead)
        require_fraction("score-threshold", self.score_threshold)
        require_fraction("nms", self.nms)
        require_overlap(self.overlap)
        if self.on_chip_error not in ("raise", "skip"):
            msg = f"on-chip-error {self.on_chip_error!r} is unknown: use raise or skip"
            raise UsageError(msg)

    def to_dict(self, spec: ModelSpec) -> dict[str, Any]:
        """Return the JSON form, with class names in place of labels."""
        names = None if self.labels is None else [spec.classes[label] for label in sorted(self.labels)]
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "labels"}
        return {**values, "classes": names}


def require_positive(name: str, value: object) -> None:
    """Refuse anything but an integer of at least 1.

    Raises:
        UsageError: otherwise.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        msg = f"{name} {value!r} is not usable: give a whole number of at least 1"
        raise UsageError(msg)


def require_fraction(name: str, value: object) -> None:
    """Refuse anything but a number from 0 to 1.

    Raises:
        UsageError: otherwise.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        msg = f"{name} {value!r} is not usable: give a number from 0 to 1"
        raise UsageError(msg)


def require_overlap(value: object) -> None:
    """Refuse anything but a whole number of pixels, 0 or more; whether it fits the chips, ``plan_windows`` says.

    Raises:
        UsageError: otherwise.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        msg = f"overlap {value!r} is not usable: give a whole number of pixels, 0 or more"
        raise UsageError(msg)


def parse_numbers(name: str, value: str | Iterable[object], *, whole: bool = False) -> tuple[float, ...]:
    """Read a list of numbers.

    Args:
        name: the option, for the message.
        value: ``"1,2,3"`` or a sequence of numbers.
        whole: whether only whole numbers will do.

    Returns:
        The numbers; ints where ``whole``.

    Raises:
        UsageError: an item is not such a number.
    """
    items = value.split(",") if isinstance(value, str) else list(value)
    kind = int if whole else float
    try:
        return tuple(kind(item) for item in items)  # type: ignore[arg-type, call-overload]
    except (TypeError, ValueError):
        want = "whole numbers" if whole else "numbers"
        msg = f"{name} {value!r} is not usable: give {want} with commas between"
        raise UsageError(msg) from None


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_bytes(value: str | int) -> int:
    """Read an amount of memory: bytes, or ``2GB``, ``500 MB``, ``1.5GiB``.

    Raises:
        UsageError: anything else, or nothing at all.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", str(value), re.IGNORECASE)
    amount = int(float(match[1]) * _UNITS[match[2].lower()]) if match and match[2].lower() in _UNITS else 0
    if amount < 1 or isinstance(value, bool):
        msg = f"max-memory {value!r} is not usable: give an amount such as 2GB or 500MB"
        raise UsageError(msg)
    return amount


def parse_names(value: str | Iterable[str]) -> tuple[str, ...]:
    """Split ``"a, b"`` or take a sequence of names; blanks around them are dropped."""
    items = value.split(",") if isinstance(value, str) else value
    return tuple(name for name in (item.strip() for item in items) if name)


def class_labels(names: Sequence[str] | None, spec: ModelSpec) -> frozenset[int] | None:
    """Look class names up in a model.

    Args:
        names: names as the user wrote them; case, blanks, ``_`` and ``-`` do not matter. None or empty = all.
        spec: the model.

    Returns:
        Indices into ``spec.classes``, or None for all.

    Raises:
        UsageError: a name the model does not know; the message lists those it does.
    """
    if not names:
        return None
    known = {_plain(name): index for index, name in enumerate(spec.classes)}
    unknown = [name for name in names if _plain(name) not in known]
    if unknown:
        msg = f"class {', '.join(map(repr, unknown))} is unknown to {spec.name}: choose from {', '.join(spec.classes)}"
        raise UsageError(msg)
    return frozenset(known[_plain(name)] for name in names)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().lower()
