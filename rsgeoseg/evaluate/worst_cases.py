"""The pictures that went worst, with what was found, missed and made up drawn on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

FOUND, MISSED, FALSE = (60, 220, 90), (240, 60, 60), (250, 210, 40)
"""RGB of what was found (green), missed (red) and found where there is no such thing (yellow)."""
SHOWN = 12
"""Cases on a sheet."""
_COLUMNS = 4
_SIDE = 360
_TITLE = 40
_GAP = 8
_PAPER, _INK = (255, 255, 255), (20, 20, 20)
_NO_PICTURE = 70

Rings: TypeAlias = "list[NDArray[np.float64]]"
"""Outlines of one object, (K, 2) x y each, pixels of the picture."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Case:
    """One image, or one part of a map."""

    name: str
    """File name, or place."""
    width: int
    """Columns of the picture."""
    height: int
    """Rows of the picture."""
    n_found: int
    n_missed: int
    n_false: int
    rings: Callable[[], list[tuple[tuple[int, int, int], Rings]]]
    """Gives each object's colour and outlines."""
    picture: Callable[[], NDArray[np.uint8]] | None
    """Gives the pixels (height, width, 3) RGB; None where they are not at hand."""

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, 0-1; 1 where there was nothing to find and nothing was found."""
        wrong = self.n_missed + self.n_false
        return 2 * self.n_found / (2 * self.n_found + wrong) if self.n_found or wrong else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        counts = {"found": self.n_found, "missed": self.n_missed, "false": self.n_false}
        return {"name": self.name, **counts, "f1": round(self.f1, 4)}


def worst_cases(cases: Iterable[Case], count: int = SHOWN) -> list[Case]:
    """Choose cases with most misses and false alarms, of equal ones those with the lowest F1; none without fault."""
    wrong = [case for case in cases if case.n_missed + case.n_false]
    return sorted(wrong, key=lambda case: (-case.n_missed - case.n_false, case.f1, case.name))[:count]


def draw_sheet(cases: Sequence[Case]) -> Image.Image:
    """Draw cases on one sheet, four in a row, each with its name and counts."""
    pictures = [draw_case(case, _SIDE) for case in cases]
    columns = min(_COLUMNS, max(len(cases), 1))
    heights = [max(len(p) for p in pictures[i : i + columns]) + _TITLE + _GAP for i in range(0, len(cases), columns)]
    sheet = Image.new("RGB", (columns * (_SIDE + _GAP) + _GAP, sum(heights) + _GAP + _TITLE), _PAPER)
    pen = ImageDraw.Draw(sheet)
    _legend(pen)
    for i, (case, picture) in enumerate(zip(cases, pictures, strict=True)):
        x, y = _GAP + i % columns * (_SIDE + _GAP), _TITLE + _GAP + sum(heights[: i // columns])
        counts = f"{case.n_found} found, {case.n_missed} missed, {case.n_false} false"
        pen.text((x, y), _shortened(case.name), fill=_INK, font=_font(15))
        pen.text((x, y + 18), counts, fill=_INK, font=_font(14))
        sheet.paste(Image.fromarray(picture), (x, y + _TITLE))
    return sheet


def draw_case(case: Case, side: int) -> NDArray[np.uint8]:
    """Draw one case.

    Args:
        case: what to draw.
        side: longer side of the result, pixels.

    Returns:
        (h, w, 3) RGB.
    """
    scale = side / max(case.width, case.height)
    size = max(round(case.width * scale), 1), max(round(case.height * scale), 1)
    if case.picture is None:
        canvas = np.full((size[1], size[0], 3), _NO_PICTURE, np.uint8)
    else:
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        canvas = np.ascontiguousarray(cv2.resize(case.picture(), size, interpolation=method), np.uint8)
    factor = np.array(size) / (case.width, case.height)
    for colour, rings in case.rings():
        # cv2 counts from pixel centres and, with shift 4, in sixteenths of a pixel
        lines = [np.rint((ring * factor - 0.5) * 16).astype(np.int32) for ring in rings]
        cv2.polylines(canvas, lines, isClosed=True, color=colour, thickness=2, lineType=cv2.LINE_AA, shift=4)
    return canvas


def mask_rings(mask: NDArray[np.uint8]) -> Rings:
    """Outline a mask (H, W), nonzero = object, along the middle of its border pixels."""
    lines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return [line.reshape(-1, 2).astype(np.float64) + 0.5 for line in lines]


def _legend(pen: ImageDraw.ImageDraw) -> None:
    x = _GAP
    for colour, text in ((FOUND, "found"), (MISSED, "missed"), (FALSE, "false alarm")):
        pen.rectangle((x, 12, x + 18, 28), fill=colour, outline=_INK)
        pen.text((x + 25, 12), text, fill=_INK, font=_font(15))
        x += 110


def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _shortened(name: str, limit: int = 42) -> str:
    return name if len(name) <= limit else "..." + name[3 - limit :]
