"""Referring datasets in RefCOCO's format: COCO instances and a pickled list of expressions."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import cv2
import numpy as np
from pycocotools import mask as rle

from rsgeoseg.datasets.coco import read_coco
from rsgeoseg.datasets.labelled import ImageFile, bounds, encode_masks, list_missing, size_of, to_rle
from rsgeoseg.datasets.referring import Expression, ReferringDataset
from rsgeoseg.datasets.source import check_split
from rsgeoseg.errors import UsageError
from rsgeoseg.weights.unpickling import DAMAGE, RefusedName, StoredPickle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rsgeoseg.datasets.instances import Transforms
    from rsgeoseg.datasets.labelled import Rle

Misfits = Literal["refuse", "stretch", "leave_out"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reference:
    """One entry of the list of expressions: an object and the sentences about it."""

    image_id: int
    """As in the annotation file."""
    annotation_id: int
    """As in the annotation file."""
    category_id: int
    """As in the annotation file."""
    split: str
    """The part of the dataset that it belongs to."""
    texts: tuple[str, ...]
    """The sentences as annotated, one or more, none of them empty."""


class RefCocoDataset(ReferringDataset):
    """Expressions and masks in RefCOCO's format, one sample per sentence, in the order of the list of expressions.

    The pickled list is read as plain values; a file that names any class or function is refused and nothing of it is
    run. Boxes are the tight boxes of the masks: the format's are x y w h, but RRSIS-D's are taken as corners elsewhere.
    Parts of one object are united, also where they overlap.

    Args:
        root: dataset folder, see ``LAYOUT``.
        split: one of ``splits``.
        misfits: what becomes of images whose file has another size than their mask. ``refuse``: an error that names
            them; ``leave_out``: their expressions are left out; ``stretch``: the mask is stretched to the image,
            nearest pixel, as all programs do that resize both to one square.
        transforms: applied to every sample.

    Raises:
        UsageError: files are missing or are something else, an expression belongs to no object or has no words, or
            images do not fit their masks.
    """

    FOLDERS: ClassVar[tuple[str, ...]]
    """Names that copies of the dataset use for its two folders."""
    splits: ClassVar[tuple[str, ...]]
    """Parts of the dataset."""
    LAYOUT: ClassVar[str]
    """The expected files."""

    def __init__(
        self,
        root: Path | str,
        split: str = "train",
        *,
        misfits: Misfits = "refuse",
        transforms: Transforms | None = None,
    ) -> None:
        check_split(type(self).__name__, split, self.splits)
        root = Path(root)
        folder = next((name for name in self.FOLDERS if (root / name).is_dir()), self.FOLDERS[0])
        images = f"images/{folder}/JPEGImages"
        list_missing(root, [images, f"{folder}/instances.json", f"{folder}/refs(unc).p"], self.LAYOUT)
        source, listed = root / folder / "instances.json", root / folder / "refs(unc).p"
        document = read_coco(source)
        categories = sorted(document["categories"], key=lambda category: int(category["id"]))
        super().__init__([str(category["name"]) for category in categories], transforms)
        references = read_references(listed)
        self.without_expression = len(
            {int(item["id"]) for item in document["annotations"]} - {one.annotation_id for one in references}
        )
        """Objects of the annotation file that no expression of any split speaks of; they are in no sample."""
        if self.without_expression:
            _log.warning("%s: %d annotated objects have no expression", source, self.without_expression)
        chosen = [one for one in references if one.split == split]
        if not chosen:
            there = ", ".join(sorted({one.split for one in references}))
            msg = f"{listed}: has no expression of the split {split}; it has {there or 'none at all'}"
            raise UsageError(msg)
        label_of = {int(category["id"]): label for label, category in enumerate(categories)}
        found = _expressions(chosen, document, label_of, source, root / images)
        names = sorted({one.name for one in found})
        list_missing(root, names, self.LAYOUT)
        sizes = {name: size_of(root / name) for name in names}
        self.misfits = tuple(sorted({one.name for one in found if sizes[one.name] != (one.height, one.width)}))
        """Images whose file has another size than their mask."""
        self.expressions = tuple(_fitted(found, self.misfits, sizes, misfits, root))
        """All expressions of the split."""

    def __len__(self) -> int:
        """Count expressions."""
        return len(self.expressions)

    def expression(self, index: int) -> Expression:
        """Give expression ``index``."""
        return self.expressions[index]


def read_references(path: Path) -> tuple[Reference, ...]:
    """Read a pickled list of expressions (``refs(unc).p``) without running anything in it.

    Raises:
        UsageError: the file is damaged, names a class or function, or is no list of expressions.
    """
    try:
        stored = StoredPickle(path)
    except (RefusedName, OSError, *DAMAGE) as error:
        msg = f"{path}: is no pickled list of plain values ({error}); nothing of it was run; get it from its authors"
        raise UsageError(msg) from error
    if stored.stand_ins or not isinstance(stored.content, list):
        what = f"names {stored.stand_ins[0]}" if stored.stand_ins else "is no list"
        msg = f"{path}: {what}, but a list of expressions holds plain values; nothing of it was run"
        raise UsageError(msg)
    return tuple(_reference(entry, f"{path}: entry {number}") for number, entry in enumerate(stored.content))


def _reference(entry: Any, where: str) -> Reference:
    try:
        sentences = [str(sentence["raw"] if "raw" in sentence else sentence["sent"]) for sentence in entry["sentences"]]
        reference = Reference(
            image_id=int(entry["image_id"]),
            annotation_id=int(entry["ann_id"]),
            category_id=int(entry["category_id"]),
            split=str(entry["split"]),
            texts=tuple(sentence.strip() for sentence in sentences),
        )
    except (KeyError, TypeError, ValueError) as error:
        msg = f"{where} is no expression of RefCOCO's format ({error!r})"
        raise UsageError(msg) from error
    if not reference.texts or not all(reference.texts):
        msg = f"{where} has no words; mend it or remove it"
        raise UsageError(msg)
    return reference


def _expressions(
    references: Sequence[Reference], document: dict[str, Any], label_of: dict[int, int], source: Path, images: Path
) -> list[Expression]:
    """Give every sentence its mask; sizes are those of the masks."""
    annotations = {int(item["id"]): item for item in document["annotations"]}
    entries = {int(item["id"]): item for item in document["images"]}
    found = []
    for one in references:
        annotation, entry = annotations.get(one.annotation_id), entries.get(one.image_id)
        if annotation is None or entry is None or int(annotation["image_id"]) != one.image_id:
            what = f"annotation {one.annotation_id} on image {one.image_id}"
            msg = f"{source}: an expression speaks of {what}, and the file has no such thing: '{one.texts[0]}'"
            raise UsageError(msg)
        if one.category_id not in label_of:
            msg = f"{source}: an expression is of category {one.category_id}, which the file lacks: '{one.texts[0]}'"
            raise UsageError(msg)
        shape = _mask(annotation, entry, source)
        height, width = shape["size"]
        path = images / str(entry["file_name"])
        found += [
            Expression(
                name=path.relative_to(images.parents[2]).as_posix(),
                image_id=one.image_id,
                text=text,
                width=width,
                height=height,
                shape=shape,
                box=bounds(shape),
                label=label_of[one.category_id],
                reader=ImageFile(path),
            )
            for text in one.texts
        ]
    return found


def _mask(annotation: dict[str, Any], entry: dict[str, Any], source: Path) -> Rle:
    """Unite the parts of an object: run-length encodings, one or a list of them, or polygons."""
    given = annotation.get("segmentation")
    parts = given if isinstance(given, list) else [given]
    size = [entry["height"], entry["width"]]
    if parts and isinstance(parts[0], dict):
        size = parts[0].get("size", size)
    encoded = [_part(part, size) for part in parts]
    usable = [part for part in encoded if part is not None]
    if not usable or len(usable) < len(encoded):
        msg = f"{source}: annotation {annotation['id']} has no usable mask; mend it or remove its expression"
        raise UsageError(msg)
    return {"size": size, "counts": rle.merge(usable)["counts"]}


def _part(part: Any, size: Any) -> Rle | None:
    """Encode a part of a mask of (H, W) pixels; None where that is not possible."""
    if isinstance(part, dict) and part.get("size") == size and isinstance(part.get("counts"), list):
        encoded: Rle = rle.frPyObjects(part, *size)
        return encoded
    if isinstance(part, dict) and part.get("size") == size and isinstance(part.get("counts"), str | bytes):
        return part
    if isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0:
        return to_rle((np.array(part, np.float64).reshape(-1, 2),), *size)
    return None


def _fitted(
    found: list[Expression], bad: Sequence[str], sizes: dict[str, tuple[int, int]], misfits: Misfits, root: Path
) -> list[Expression]:
    """Do with masks that do not fit their images what was asked for."""
    if not bad or misfits == "leave_out":
        return [one for one in found if one.name not in set(bad)]
    if misfits == "stretch":
        return [_stretched(one, *sizes[one.name]) if one.name in set(bad) else one for one in found]
    one = next(candidate for candidate in found if candidate.name == bad[0])
    height, width = sizes[one.name]
    first = ", ".join(bad[:5]) + (", ..." if len(bad) > 5 else "")
    msg = (
        f"{root}: {len(bad)} images have another size than their masks: {first}; the first is {width} x {height} and "
        f"its mask {one.width} x {one.height}; mend the files, or leave them out or stretch their masks with misfits="
    )
    raise UsageError(msg)


def _stretched(one: Expression, height: int, width: int) -> Expression:
    mask = np.asarray(cv2.resize(one.image().masks()[0], (width, height), interpolation=cv2.INTER_NEAREST))
    shape = encode_masks(mask[None])[0]
    return replace(one, width=width, height=height, shape=shape, box=bounds(shape))
