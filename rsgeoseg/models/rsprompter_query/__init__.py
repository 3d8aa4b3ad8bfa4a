"""RSPrompter-query (Chen et al., IEEE TGRS 2024): network, loss, and the segmenter the engine calls."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from rsgeoseg.backbones.packed import compute_dtype
from rsgeoseg.backbones.sam_checkpoint import split_sam_checkpoint
from rsgeoseg.contract import ModelSpec
from rsgeoseg.errors import ModelError, WeightsError
from rsgeoseg.models.rsprompter_query.config import QueryConfig
from rsgeoseg.models.rsprompter_query.loss import LossConfig
from rsgeoseg.models.rsprompter_query.network import RSPrompterQuery
from rsgeoseg.models.rsprompter_query.segmenter import QuerySegmenter
from rsgeoseg.nn.device import find_device
from rsgeoseg.weights.files import find_card, load_into, read_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rsgeoseg.backbones.features import Encoder
    from rsgeoseg.backbones.sam_vit import SamSize

NAME = "rsprompter-query"
SOURCE = "Chen et al., RSPrompter, IEEE TGRS 2024; KyanChen/RSPrompter, branch release, f4e73c3"
BACKBONES = ("lite", "sam-vit-b", "sam-vit-l", "sam-vit-h")


def default_config(backbone: str, classes: tuple[str, ...]) -> QueryConfig:
    """Give the network's sizes for a backbone: the paper's for SAM, smaller ones with every shortcut for ``lite``."""
    if backbone != "lite":
        return QueryConfig(classes=classes)
    return QueryConfig(
        classes=classes,
        decoder_layers=3,
        mask_channels=128,
        decoder_mlp=512,
        centre_queries=True,
        local_masks=True,
        refine_coarse=True,
        skips=True,
    )


def default_loss(backbone: str) -> LossConfig:
    """Give the loss for a backbone: the released code's for SAM, cheaper with denoising queries for ``lite``."""
    if backbone != "lite":
        return LossConfig()
    return LossConfig(points=2048, fine_sets=1, fine_masks=6, denoising_groups=2)


def build(
    backbone: str,
    config: QueryConfig,
    loss_config: LossConfig | None = None,
    *,
    pretrained: bool = True,
    sam_checkpoint: Path | None = None,
) -> RSPrompterQuery:
    """Build the network with random heads.

    Args:
        backbone: one of ``BACKBONES``.
        config: sizes and options.
        loss_config: weights of the loss; None = ``default_loss``.
        pretrained: start `lite` from ImageNet weights.
        sam_checkpoint: official SAM file for a SAM backbone: its encoder stays frozen, its prompt encoder and mask
            decoder are where training starts (paper Table IX: the decoder is trained). None = random weights.

    Raises:
        ModelError: the backbone is unknown, or `lite` is given a SAM file.
        WeightsError: the file is missing, damaged, or of another size.
    """
    if sam_checkpoint is not None and backbone == "lite":
        msg = "the lite backbone takes no SAM checkpoint; choose --backbone sam-vit-b, sam-vit-l or sam-vit-h"
        raise ModelError(msg)
    encoder = _encoder(backbone, pretrained=pretrained, sam_checkpoint=sam_checkpoint)
    network = RSPrompterQuery(encoder, config, loss_config or default_loss(backbone))
    if sam_checkpoint is not None:
        parts = split_sam_checkpoint(sam_checkpoint)
        network.sam.prompt_encoder.load_state_dict(parts["prompt_encoder"])
        network.sam.mask_decoder.load_state_dict(parts["mask_decoder"])
    return network


def _encoder(backbone: str, *, pretrained: bool, sam_checkpoint: Path | None) -> Encoder:
    if backbone == "lite":
        from rsgeoseg.backbones.lite import LiteEncoder  # noqa: PLC0415  (one backbone's imports, not all)

        return LiteEncoder(pretrained=pretrained)
    if backbone in BACKBONES:
        from rsgeoseg.backbones.sam_vit import build_sam_vit  # noqa: PLC0415

        size = cast("SamSize", backbone.removeprefix("sam-vit-"))
        return build_sam_vit(size, checkpoint=sam_checkpoint)
    msg = f"rsprompter-query does not build on {backbone!r}; choose from {', '.join(BACKBONES)}"
    raise ModelError(msg)


def config_to_dict(config: QueryConfig) -> dict[str, Any]:
    """Turn a config into JSON values, saved with the weights."""
    return {**asdict(config), "classes": list(config.classes)}


def config_from_dict(values: Mapping[str, Any]) -> QueryConfig:
    """Read a config saved with the weights."""
    return QueryConfig(**{**values, "classes": tuple(values["classes"])})


def describe(network: RSPrompterQuery) -> dict[str, Any]:
    """Say what to build for a network's weights: the header of its weights file."""
    return {"model": NAME, "backbone": network.encoder.spec.name, "config": config_to_dict(network.config)}


def segmenter(network: RSPrompterQuery, *, score_threshold: float = 0.5, **spec: Any) -> QuerySegmenter:
    """Wrap a network for the engine.

    Args:
        network: on its device.
        score_threshold: objects below it need not be found.
        spec: further fields of ``ModelSpec``.
    """
    size = network.encoder.spec.image_size
    full = ModelSpec(
        name=NAME,
        classes=network.config.classes,
        score_threshold=score_threshold,
        source=SOURCE,
        **{"chip_size": min(size, 1024), "overlap": 128, **spec},
    )
    device = next(network.parameters()).device
    return QuerySegmenter(network, full, autocast=compute_dtype(device) is torch.bfloat16)


def load(weights: str | Path | None = None, device: str = "auto") -> QuerySegmenter:
    """Load the model for the registry; see ``registry.load_model``.

    Raises:
        WeightsError: the weights are missing, damaged, or belong to another model.
        ModelError: the device is not there.
    """
    where = find_device(device)
    card = find_card(NAME, None if weights is None else str(weights))
    if card is None and weights is None:
        msg = f"{NAME} has no bundled weights in this installation; give --weights PATH or install rsgeoseg again"
        raise WeightsError(msg)
    path = card.path if card is not None else Path(str(weights))
    file = read_weights(path, sha256=card.sha256 if card is not None else None)
    if file.description.get("model") != NAME:
        other = file.description.get("model")
        msg = f"{path}: holds {other!r}, not {NAME}; use --model {other}"
        raise WeightsError(msg)
    network = build(file.description["backbone"], config_from_dict(file.description["config"]), pretrained=False)
    load_into(network, file, path)
    about = {"weights_id": f"{card.id if card is not None else path.name}@{file.digest[:16]}"}
    if card is not None:
        about |= {"licence": card.licence, "overlap": card.overlap, "chip_size": card.chip_size}  # type: ignore[dict-item]
        about |= {"gsd_range": card.gsd_range}  # type: ignore[dict-item]
    threshold = card.score_threshold if card is not None else 0.5
    return segmenter(network.to(where).eval(), score_threshold=threshold, **about)
