"""The still form of a preview: translucent fills, cased outlines, scores where they fit, a legend beside."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import shapely
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rsgeoseg.geo.preview import Preview

_FILL = 0.30  # opacity
_SHIFT = 4  # binary digits after the point that OpenCV draws with
_INK, _PAPER, _FAINT = (235, 238, 242), (22, 26, 31), (150, 158, 168)


def draw_png(preview: Preview) -> bytes:
    """Draw a preview as PNG."""
    image = preview.image.copy()
    names = list(preview.counts)
    members = {name: [s for s, c in zip(preview.shapes, preview.classes, strict=True) if c == name] for name in names}
    for name in names:
        _fill(image, members[name], _rgb(preview.colours[name]))
    for name in names:
        _outline(image, members[name], _rgb(preview.colours[name]))
    canvas = Image.fromarray(image)
    _write_scores(canvas, preview)
    return _encode(_with_legend(canvas, preview))


def _fill(image: NDArray[np.uint8], shapes: list[Any], colour: tuple[int, int, int]) -> None:
    mask = np.zeros(image.shape[:2], np.uint8)
    for shape in shapes:
        cv2.fillPoly(mask, _fixed(shape), 255, lineType=cv2.LINE_AA, shift=_SHIFT)
    alpha = mask[..., None].astype(np.float32) * (_FILL / 255)
    image[:] = np.rint(image * (1 - alpha) + np.asarray(colour, np.float32) * alpha).astype(np.uint8)


def _outline(image: NDArray[np.uint8], shapes: list[Any], colour: tuple[int, int, int]) -> None:
    """Draw a thin line in the class colour on a wider one that contrasts with it, so that it shows on any ground."""
    rings = [ring for shape in shapes for ring in _fixed(shape)]
    casing = (20, 20, 20) if _brightness(colour) > 90 else (240, 240, 240)
    cased = image.copy()
    cv2.polylines(cased, rings, True, casing, 4, cv2.LINE_AA, _SHIFT)
    cv2.addWeighted(cased, 0.45, image, 0.55, 0, dst=image)
    cv2.polylines(image, rings, True, colour, 2 if max(image.shape) > 900 else 1, cv2.LINE_AA, _SHIFT)


def _fixed(shape: Any) -> list[NDArray[np.int32]]:
    """All rings of a geometry in OpenCV's fixed-point pixels, whose origin is the centre of the first pixel."""
    rings = []
    for part in shapely.get_parts(shape):
        if part.geom_type == "Polygon":
            for ring in (part.exterior, *part.interiors):
                points = (np.asarray(ring.coords)[:, :2] - 0.5) * (1 << _SHIFT)
                rings.append(np.rint(points).astype(np.int32))
    return rings


def _write_scores(canvas: Image.Image, preview: Preview) -> None:
    """Write scores inside objects that have room, best first, never one over another."""
    draw, font = ImageDraw.Draw(canvas, "RGBA"), _font(min(max(max(canvas.size) / 125, 11), 18))
    taken = np.zeros((canvas.height // 4 + 1, canvas.width // 4 + 1), bool)
    scored = [(score, shape) for score, shape in zip(preview.scores, preview.shapes, strict=True) if score is not None]
    for score, shape in sorted(scored, key=lambda item: -item[0]):
        text = f"{score:.2f}"
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        width, height = right - left + 6, bottom - top + 5
        x0, y0, x1, y1 = shape.bounds
        if x1 - x0 < width + 2 or y1 - y0 < height + 2:
            continue
        spot = shape.representative_point()
        x = int(min(max(spot.x - width / 2, 0), canvas.width - width))
        y = int(min(max(spot.y - height / 2, 0), canvas.height - height))
        place = (slice(y // 4, (y + height) // 4 + 1), slice(x // 4, (x + width) // 4 + 1))
        if taken[place].any():
            continue
        taken[place] = True
        draw.rounded_rectangle((x, y, x + width, y + height), 3, fill=(*_PAPER, 190))
        draw.text((x + 3 - left, y + 2 - top), text, font=font, fill=_INK)


def _with_legend(picture: Image.Image, preview: Preview) -> Image.Image:
    """Put a legend to the right of the picture: title, total, classes with their colours and counts."""
    unit = min(max(max(picture.size) / 64, 12), 24)  # the body's letter size; all other sizes follow
    title, body, small = _font(1.2 * unit), _font(unit), _font(0.88 * unit)
    margin, swatch, line = round(1.2 * unit), round(1.1 * unit), round(1.75 * unit)
    measure = ImageDraw.Draw(picture).textlength
    total = sum(preview.counts.values())
    heading = f"{total:,} object{'' if total == 1 else 's'}"
    name = _shortened(preview.title, title, 20 * unit, measure)
    names = max((measure(text, font=body) for text in preview.counts), default=0)
    numbers = max((measure(f"{count:,}", font=body) for count in preview.counts.values()), default=0)
    entry = swatch + 0.7 * unit + names + 1.6 * unit + numbers
    width = round(max(entry, measure(name, font=title), measure(heading, font=small))) + 2 * margin
    top = margin + round(4 * unit)
    height = max(picture.height, top + line * len(preview.counts) + margin)
    sheet = Image.new("RGB", (picture.width + width, height), _PAPER)
    sheet.paste(picture, (0, (height - picture.height) // 2))
    draw, left, right = ImageDraw.Draw(sheet), picture.width + margin, picture.width + width - margin
    draw.text((left, margin), name, font=title, fill=_INK)
    draw.text((left, margin + 1.7 * unit), heading, font=small, fill=_FAINT)
    for row, (label, count) in enumerate(preview.counts.items()):
        y = top + row * line
        colour = _rgb(preview.colours[label])
        soft = tuple(round(c * 0.55 + p * 0.45) for c, p in zip(colour, _PAPER, strict=True))
        draw.rounded_rectangle((left, y, left + swatch, y + swatch), 3, fill=soft, outline=colour, width=2)
        draw.text((left + swatch + 0.7 * unit, y + swatch / 2), label, font=body, fill=_INK, anchor="lm")
        draw.text((right, y + swatch / 2), f"{count:,}", font=body, fill=_FAINT, anchor="rm")
    return sheet


def _shortened(text: str, font: Any, limit: float, measure: Any) -> str:
    if measure(text, font=font) <= limit:
        return text
    while len(text) > 1 and measure(text + "…", font=font) > limit:
        text = text[:-1]
    return text + "…"


def _font(size: float) -> Any:
    return ImageFont.load_default(size)


def _encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=False)
    return buffer.getvalue()


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _brightness(colour: tuple[int, int, int]) -> float:
    return 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]
