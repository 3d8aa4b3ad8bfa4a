"""Image encoders and SAM decoders by backbone name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

from rsgeoseg.errors import ModelError, WeightsError
from rsgeoseg.weights.foreign import read_foreign

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import nn

    from rsgeoseg.backbones.features import Encoder
    from rsgeoseg.backbones.sam2_hiera import HieraSize
    from rsgeoseg.backbones.sam_vit import SamSize

SAM_BACKBONES = ("sam-vit-b", "sam-vit-l", "sam-vit-h")
SAM2_BACKBONES = ("sam2-hiera-t", "sam2-hiera-s", "sam2-hiera-b+", "sam2-hiera-l")
BACKBONES = ("lite", *SAM_BACKBONES, *SAM2_BACKBONES)


class PromptedNetwork(Protocol):
    """A network with SAM's two halves under their canonical names."""

    encoder: Encoder
    sam: nn.Module


def build_encoder(
    backbone: str, *, pretrained: bool = True, image_size: int = 1024, layers: Sequence[int] | None = None
) -> Encoder:
    """Build an image encoder.

    Args:
        backbone: one of ``BACKBONES``.
        pretrained: start `lite` from ImageNet weights; SAM encoders start random and are loaded from a file.
        image_size: input side of a SAM encoder, pixels.
        layers: zero-based indices of the ViT blocks whose outputs are ``Features.hidden``; None = every second from 0.

    Raises:
        ModelError: the backbone is unknown, or needs a package that is not installed.
    """
    if backbone == "lite":
        from rsgeoseg.backbones.lite import LiteEncoder  # noqa: PLC0415  (one backbone's imports, not all)

        return LiteEncoder(pretrained=pretrained)
    if backbone in SAM_BACKBONES:
        from rsgeoseg.backbones.sam_vit import build_sam_vit  # noqa: PLC0415

        size = cast("SamSize", backbone.removeprefix("sam-vit-"))
        return build_sam_vit(size, image_size=image_size, layers=layers)
    if backbone in SAM2_BACKBONES:
        from rsgeoseg.backbones.sam2_hiera import build_sam2_hiera  # noqa: PLC0415

        return build_sam2_hiera(cast("HieraSize", backbone.removeprefix("sam2-hiera-")), image_size=image_size)
    msg = f"backbone {backbone!r} is unknown; choose from {', '.join(BACKBONES)}"
    raise ModelError(msg)


def start_from_sam(network: PromptedNetwork, path: Path) -> None:
    """Load a file of SAM or SAM 2 into a network's encoder and decoder and freeze the encoder.

    Args:
        network: with ``encoder`` and ``sam``.
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
    found = file.description.get("backbone")
    if found != backbone:
        msg = f"{path}: expected {backbone}, found {found}; choose the backbone or the file that fits"
        raise WeightsError(msg)
    for prefix, part in (("encoder.", network.encoder), ("sam.", network.sam)):
        given = {name.removeprefix(prefix): x for name, x in file.tensors.items() if name.startswith(prefix)}
        own = part.state_dict()
        unknown = [name for name, x in given.items() if name in own and own[name].shape != x.shape]
        missing = [name for name in own if name not in given]
        if unknown or missing:
            msg = f"{path}: does not fit {backbone}: {prefix}{(unknown + missing)[0]} differs; use an official file"
            raise WeightsError(msg)
        part.load_state_dict({name: given[name] for name in own})
    network.encoder.requires_grad_(requires_grad=False)
