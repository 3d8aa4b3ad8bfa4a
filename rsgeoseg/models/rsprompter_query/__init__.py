"""RSPrompter-query (Chen et al., IEEE TGRS 2024): network, loss, and the segmenter the engine calls."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rsgeoseg.backbones.build import BACKBONES, SAM2_BACKBONES, SAM_BACKBONES, build_encoder, start_from_sam
from rsgeoseg.backbones.network_segmenter import network_spec
from rsgeoseg.backbones.shared import load_network
from rsgeoseg.models.rsprompter_query.config import QueryConfig
from rsgeoseg.models.rsprompter_query.loss import LossConfig
from rsgeoseg.models.rsprompter_query.network import RSPrompterQuery
from rsgeoseg.models.rsprompter_query.segmenter import QuerySegmenter
from rsgeoseg.nn.device import find_device
from rsgeoseg.weights.files import config_from_json
from rsgeoseg.weights.opening import open_weights

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = [
    "BACKBONES",
    "NAME",
    "SOURCE",
    "build",
    "config_from_dict",
    "config_to_dict",
    "default_config",
    "default_loss",
    "describe",
    "load",
    "segmenter",
]

NAME = "rsprompter-query"
SOURCE = "Chen et al., RSPrompter, IEEE TGRS 2024; KyanChen/RSPrompter, branch release, f4e73c3"


def default_config(backbone: str, classes: tuple[str, ...]) -> QueryConfig:
    """Give the network's sizes for a backbone: the paper's for SAM, smaller with every shortcut for ``lite``."""
    if backbone in SAM_BACKBONES:
        return QueryConfig(classes=classes)
    if backbone in SAM2_BACKBONES:
        return QueryConfig(classes=classes, skips=True)
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
        sam_checkpoint: file of SAM or SAM 2: its encoder stays frozen, its prompt encoder and mask decoder are where
            training starts (paper Table IX: the decoder is trained). None = random weights.

    Raises:
        ModelError: the backbone is unknown, or takes no SAM file.
        WeightsError: the file is missing, damaged, or of another size.
    """
    encoder = build_encoder(
        backbone,
        pretrained=pretrained,
        layers=() if config.aggregate == "embedding" else None,
        image_size=config.image_size,
        table_size=config.image_size,
        precision="fp32" if config.numerics == "released" else "auto",
    )
    network = RSPrompterQuery(encoder, config, loss_config or default_loss(backbone))
    if sam_checkpoint is not None:
        start_from_sam(network, sam_checkpoint)
    return network


def config_to_dict(config: QueryConfig) -> dict[str, Any]:
    """Turn a config into JSON values, saved with the weights."""
    return {**asdict(config), "classes": list(config.classes)}


def config_from_dict(values: Mapping[str, Any]) -> QueryConfig:
    """Read a config saved with the weights.

    Raises:
        WeightsError: it is of another version.
    """
    return config_from_json(QueryConfig, values)


def describe(network: RSPrompterQuery) -> dict[str, Any]:
    """Say what to build for a network's weights: the header of its weights file."""
    return {"model": NAME, "backbone": network.encoder.spec.name, "config": config_to_dict(network.config)}


def segmenter(
    network: RSPrompterQuery, *, score_threshold: float = 0.5, lowest: float | None = None, **spec: Any
) -> QuerySegmenter:
    """Wrap a network for the engine.

    Args:
        network: on its device.
        score_threshold: objects below it are left off a map.
        lowest: objects down to this score are found; None = ``score_threshold``.
        spec: further fields of ``ModelSpec``.
    """
    full = network_spec(
        network.encoder.spec,
        name=NAME,
        classes=network.config.classes,
        score_threshold=score_threshold,
        source=SOURCE,
        **spec,
    )
    autocast = False if network.config.numerics == "released" else None
    return QuerySegmenter(network, full, lowest=lowest, max_instances=300, autocast=autocast)


def load(weights: str | Path | None = None, device: str = "auto") -> QuerySegmenter:
    """Load the model for the registry; see ``registry.load_model``.

    With weights of the authors ``segment`` gives all objects that their code gives; maps leave out those below
    ``spec.score_threshold``.

    Raises:
        WeightsError: the weights are missing, damaged, or belong to another model.
        ModelError: the device is not there.
    """
    where = find_device(device)
    opened = open_weights(NAME, weights)
    description = opened.file.description
    config = config_from_dict(description["config"])
    network = build(description["backbone"], config, pretrained=False)
    load_network(network, opened.file, opened.path, where)
    lowest = 0.0 if config.numerics == "released" else None
    return segmenter(network, score_threshold=opened.score_threshold, lowest=lowest, **opened.about)
