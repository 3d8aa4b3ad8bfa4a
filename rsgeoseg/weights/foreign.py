"""The authors' files under our names: the layout is recognised by its keys, and every tensor is accounted for."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsgeoseg.errors import WeightsError
from rsgeoseg.weights.files import WeightsFile, is_own_file, read_weights, sha256_of
from rsgeoseg.weights.layouts import Layout, Misfit, match, used_prefixes
from rsgeoseg.weights.layouts_huggingface import huggingface_layout, plain_encoder
from rsgeoseg.weights.layouts_rsprompter import VISION, anchor_2023_layout, anchor_2024_layout, query_2024_layout
from rsgeoseg.weights.layouts_sam import VIT_SIZES, sam_layout
from rsgeoseg.weights.layouts_sam2 import HIERA_SIZES, sam2_layout
from rsgeoseg.weights.pickles import TensorFile, read_tensors
from rsgeoseg.weights.published import published_cards

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

_LAYOUTS: tuple[tuple[str, Callable[[Mapping[str, Tensor]], Layout]], ...] = (  # prefix that tells it; first match wins
    ("backbone.image_encoder.", anchor_2023_layout),
    ("roi_head.", anchor_2024_layout),
    ("panoptic_head.", query_2024_layout),
    ("sam_mask_decoder.", sam2_layout),
    ("image_encoder.trunk.", sam2_layout),
    ("vision_encoder.", huggingface_layout),
    ("image_encoder.", sam_layout),
    ("mask_decoder.", sam_layout),
)


def read_foreign(path: Path, *, classes: Sequence[str] | None = None, digest: str | None = None) -> WeightsFile:
    """Read a file of the authors, or one that :func:`rsgeoseg.weights.convert.convert` made of it.

    Read as they are: SAM, SAM 2.0 and 2.1 (facebookresearch), SAM of Hugging Face, RSPrompter's published files of 2023
    and state dicts of its code of 2024. No code of a file is run; tensors may be mapped from it.

    Args:
        path: the file.
        classes: class names in the order of the network's outputs; None = those in the file or on its card, else
            class0, class1, ...; a file of ours keeps its own.
        digest: sha256 of the file where it is known; None = it is computed.

    Raises:
        WeightsError: the file is missing, damaged, of an unknown layout, does not fit its layout in some tensor, has
            another number of classes, or holds objects that only `rsgeoseg weights convert` reads.
    """
    path = Path(path)
    if is_own_file(path):
        return read_weights(path, sha256=digest)
    file, digest = read_tensors(path), digest or sha256_of(path)
    tensors, description = name_tensors(file, path, classes=classes or published_classes(digest))
    return WeightsFile(tensors=tensors, description=description, digest=digest)


def published_classes(digest: str) -> Sequence[str] | None:
    """Class names of the published file with this sha256, which has none in it; None where there is no such card."""
    return next((card.classes or None for card in published_cards() if card.sha256 == digest), None)


def name_tensors(
    file: TensorFile, path: Path, *, classes: Sequence[str] | None = None, lora_alpha: float | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Give a file's tensors our names, and say what to build for them.

    Args:
        file: what the file holds.
        path: where it is, for messages.
        classes: as in :func:`read_foreign`.
        lora_alpha: scale of LoRA adapters in the file; None = twice their rank, as in the authors' configs.

    Returns:
        Tensors, float32 but for counters, and the description: ``model``, ``backbone``, ``config``, ``layout``,
        ``ignored`` (prefixes of names in the file), ``absent`` (prefixes of our names), and ``lora`` where adapters
        were merged.

    Raises:
        WeightsError: as :func:`read_foreign`.
    """
    try:
        plain, lora = plain_encoder(file.tensors, VISION, alpha=lora_alpha)
        layout = _recognise(plain)
        tensors = match(plain, layout)
        config = dict(layout.config)
        names = _class_names(layout, classes, file.classes)
    except Misfit as misfit:
        msg = f"{path}: {misfit}"
        raise WeightsError(msg) from misfit
    if names is not None:
        config = {"classes": names, **config}
    description: dict[str, Any] = {
        "model": layout.model,
        "backbone": layout.backbone,
        "config": config,
        "layout": layout.name,
        "ignored": used_prefixes(plain, layout.ignored),
        "absent": list(layout.absent),
    }
    return tensors, description if lora is None else {**description, "lora": asdict(lora)}


def require_backbone(file: WeightsFile, backbone: str, path: Path) -> None:
    """Refuse a file of another image encoder.

    Args:
        file: what was read.
        backbone: the name that is wanted.
        path: where it was read, for the message.

    Raises:
        WeightsError: e.g. "expected ViT-B, found 1280-wide ViT-H".
    """
    found = str(file.description.get("backbone"))
    if found != backbone:
        expected = _title(backbone).rpartition(" ")[2]
        msg = f"{path}: expected {expected}, found {_title(found)}; choose the backbone or the file that fits"
        raise WeightsError(msg)


def _title(backbone: str) -> str:
    """Describe a backbone, e.g. ``1280-wide ViT-H``."""
    size = VIT_SIZES.get(backbone) or HIERA_SIZES.get(backbone)
    return f"{size.width}-wide {size.title}" if size else backbone


def _recognise(tensors: Mapping[str, Tensor]) -> Layout:
    for prefix, layout in _LAYOUTS:
        if any(name.startswith(prefix) for name in tensors):
            return layout(tensors)
    first = ", ".join(sorted(tensors)[:3])
    msg = (
        f"not a layout that can be read (first tensors {first}); readable are files of SAM, SAM 2, Hugging Face's SAM, "
        "and RSPrompter of 2023 and 2024"
    )
    raise Misfit(msg)


def _class_names(layout: Layout, given: Sequence[str] | None, found: Sequence[str] | None) -> list[str] | None:
    """Names for the network's classes: the caller's, the file's, or numbers; None where it has no classes."""
    if layout.classes is None:
        if given is not None:
            msg = "has no classes to name: it is SAM alone; leave the class names out"
            raise Misfit(msg)
        return None
    names, whose = (given, "given") if given is not None else (found, "in its meta data")
    if names is None:
        return [f"class{index}" for index in range(layout.classes)]
    if len(names) != layout.classes:
        msg = f"has {layout.classes} classes, but {len(names)} names are {whose}; give one name per class, in order"
        raise Misfit(msg)
    return list(names)
