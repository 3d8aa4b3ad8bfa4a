"""The base of all referring datasets: one sample is an image, an expression, and the mask or box it speaks of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.patches import Rectangle
from torchgeo.datasets import NonGeoDataset

from rsgeoseg.datasets.labelled import LabelledImage
from rsgeoseg.datasets.picture import draw_instances
from rsgeoseg.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

    from rsgeoseg.datasets.instances import Transforms
    from rsgeoseg.datasets.labelled import Reader, Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Expression:
    """One expression and what it speaks of; the pixels are read when asked for."""

    name: str
    """Of the image: path below the dataset's root with forward slashes."""
    image_id: int
    """Of the image, unique in its dataset; several expressions may share one."""
    text: str
    """The expression as annotated, without white space around it."""
    width: int
    """Columns of the image."""
    height: int
    """Rows of the image."""
    shape: Shape | None = None
    """What is meant; None where the dataset has boxes only. May be an empty mask."""
    box: tuple[float, float, float, float] | None = None
    """x0 y0 x1 y1 pixels; None where the dataset has no boxes."""
    label: int | None = None
    """Index into the dataset's classes; None where it has none."""
    reader: Reader
    """Where the pixels come from."""

    def image(self) -> LabelledImage:
        """Give the image with what is meant as its one object; without objects where there are only boxes."""
        shapes = () if self.shape is None else (self.shape,)
        return LabelledImage(
            name=self.name,
            image_id=self.image_id,
            width=self.width,
            height=self.height,
            labels=np.full(len(shapes), self.label or 0, np.int64),
            shapes=shapes,
            reader=self.reader,
        )


class ReferringDataset(NonGeoDataset, ABC):
    """Images and expressions that speak of something in them.

    A sample is a dict: ``image`` (3, H, W) float32 0-255, ``text`` str, and as far as the dataset has them ``mask``
    (H, W) uint8 in {0, 1}, ``bbox_xyxy`` (4,) float32 half-open pixels, ``label`` int64 index into ``classes``.

    Args:
        classes: class names; empty where expressions have no class.
        transforms: applied to every sample.
    """

    def __init__(self, classes: Sequence[str] = (), transforms: Transforms | None = None) -> None:
        self.classes = tuple(classes)
        self.transforms = transforms

    @abstractmethod
    def __len__(self) -> int:
        """Count expressions."""

    @abstractmethod
    def expression(self, index: int) -> Expression:
        """Give expression ``index``; the image's pixels are not read."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read a sample."""
        expression = self.expression(index)
        image = expression.image()
        sample: dict[str, Any] = {
            "image": torch.from_numpy(image.read()).permute(2, 0, 1).float(),
            "text": expression.text,
        }
        if expression.shape is not None:
            sample["mask"] = torch.from_numpy(image.masks()[0])
        if expression.box is not None:
            sample["bbox_xyxy"] = torch.tensor(expression.box, dtype=torch.float32)
        if expression.label is not None:
            sample["label"] = torch.tensor(expression.label)
        return sample if self.transforms is None else self.transforms(sample)

    def plot(self, sample: dict[str, Any], *, show_titles: bool = True, suptitle: str | None = None) -> Figure:
        """Draw a sample: its image, and the same with what is meant.

        Args:
            sample: what ``__getitem__`` gave; with ``prediction_mask`` (H, W) a third panel is drawn.
            show_titles: name the panels.
            suptitle: a title over all; default the expression.
        """
        label = sample["label"].reshape(1) if "label" in sample else torch.zeros(1, dtype=torch.int64)
        masks: dict[str, Any] = {key: sample[key][None] for key in ("mask", "prediction_mask") if key in sample}
        panels: list[tuple[str, str | None, str | None]] = [
            ("Image", None, None),
            ("Referred to", "mask" if "mask" in sample else None, "label"),
        ]
        if "prediction_mask" in sample:
            panels.append(("Prediction", "prediction_mask", "label"))
        shown = {"image": sample["image"], "label": label, **masks}
        suptitle = sample["text"] if suptitle is None else suptitle
        classes = self.classes or ("referred to",)
        figure = draw_instances(shown, panels, classes, show_titles=show_titles, suptitle=suptitle)
        if "bbox_xyxy" in sample:
            x0, y0, x1, y1 = sample["bbox_xyxy"].tolist()
            # pictures put the middle of the first pixel at 0, boxes its outer corner
            edge = Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor="yellow", linewidth=1.5)
            figure.axes[1].add_patch(edge)
        return figure


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Read a text file: number (from 1) and content of its lines, white space around them and blank lines left out.

    Raises:
        UsageError: it is missing or is not UTF-8 text.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path}: cannot be read as UTF-8 text ({error})"
        raise UsageError(msg) from error
    lines = enumerate((line.strip() for line in content.splitlines()), start=1)
    return [(number, line) for number, line in lines if line]
