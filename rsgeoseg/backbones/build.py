"""Image encoders and SAM decoders by backbone name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

from rsgeoseg.errors import ModelError, WeightsError
from rsgeoseg.weights.foreign import read_foreign, require_backbone

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import nn

    from rsgeoseg.backbones.features import Encoder
    from rsgeoseg.backbones.prepared import Precision
    from rsgeoseg.backbones.sam2_hiera import HieraSize
    from rsgeoseg.backbones.sam_vit import SamSize

SAM_BACKBONES = ("sam-vit-b", "sam-vit-l", "sam-vit-h")
SAM2_BACKBONES = ("sam2-hiera-t", "sam2-hiera-s", "sam2-hiera-b+", "sam2-hiera-l")
BACKBONES = ("lite", *SAM_BACKBONES, *SAM2_BACKBONES)


class EncodedNetwork(Protocol):
    """A network with SAM's image encoder under its canonical name ``encoder``, and perhaps its decoder as ``sam``."""

    encoder: Encoder


def build_encoder(
    backbone: str,
    *,
    pretrained: bool = True,
    image_size: int = 1024,
    table_size: int = 1024,
    layers: Sequence[int] | None = None,
    precision: Precision = "auto",
) -> Encoder:
    """Build an image encoder.

    Args:
        backbone: one of ``BACKBONES``.
        pretrained: start `lite` from ImageNet weights; SAM encoders start random and are loaded from a file.
        image_size: input side of a SAM encoder, pixels.
        table_size: side that a SAM ViT's tables of positions are for, pixels.
        layers: zero-based indices of the ViT blocks whose outputs are ``Features.hidden``; None = every second from 0.
        precision: number format inside a SAM encoder, see :class:`rsgeoseg.backbones.prepared.PreparedEncoder`.

    Raises:
        ModelError: the backbone is unknown, or needs a package that is not installed.
    """
    if backbone == "lite":
        from rsgeoseg.backbones.lite import LiteEncoder  # noqa: PLC0415  (one backbone's imports, not all)

        return LiteEncoder(pretrained=pretrained)
    if backbone in SAM_BACKBONES:
        from rsgeoseg.backbones.sam_vit import build_sam_vit  # noqa: PLC0415

        size = cast("SamSize", backbone.removeprefix("sam-vit-"))
        return build_sam_vit(size, image_size=image_size, table_size=table_size, layers=layers, precision=precision)
    if backbone in SAM2_BACKBONES:
        from rsgeoseg.backbones.sam2_hiera import build_sam2_hiera  # noqa: PLC0415

        hiera = cast("HieraSize", backbone.removeprefix("sam2-hiera-"))
        return build_sam2_hiera(hiera, image_size=image_size, precision=precision)
    msg = f"backbone {backbone!r} is unknown; choose from {', '.join(BACKBONES)}"
    raise ModelError(msg)


def start_from_sam(network: EncodedNetwork, path: Path) -> None:
    """Load a file of SAM or SAM 2 into a network's encoder and decoder and freeze the encoder.

    Args:
        network: with ``encoder``, and ``sam`` where it has SAM's decoder; SAM-seg takes the encoder alone.
        path: official file, or one that `rsgeoseg weights convert` made of it.

    Raises:
        ModelError: the network's backbone takes no such file.
        WeightsError: the file is missing, damaged, or of another size.
    """
    backbone = network.encoder.spec.name
    if backbone not in (*SAM_BACKBONES, *SAM2_BACKBONES):
        msg = f"the {backbone} backbone takes no SAM checkpoint; choose --backbone sam-vit-b, sam-vit-l or sam-vit-h"
        raise ModelError(msg)
    file = read_foreign(path)
    require_backbone(file, backbone, path)
    parts: dict[str, nn.Module] = {"encoder.": network.encoder}
    if hasattr(network, "sam"):
        parts["sam."] = network.sam
    for prefix, part in parts.items():
        given = {name.removeprefix(prefix): x for name, x in file.tensors.items() if name.startswith(prefix)}
        own = part.state_dict()
        unknown = [name for name, x in given.items() if name in own and own[name].shape != x.shape]
        missing = [name for name in own if name not in given]
        if unknown or missing:
            msg = f"{path}: does not fit {backbone}: {prefix}{(unknown + missing)[0]} differs; use an official file"
            raise WeightsError(msg)
        part.load_state_dict({name: given[name] for name in own})
    network.encoder.requires_grad_(requires_grad=False)
