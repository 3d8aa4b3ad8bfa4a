"""RSPrompter-anchor (Chen et al., IEEE TGRS 2024): network, loss, and the segmenter the engine calls."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rsgeoseg.backbones.build import BACKBONES, SAM2_BACKBONES, SAM_BACKBONES, build_encoder, start_from_sam
from rsgeoseg.backbones.network_segmenter import network_spec
from rsgeoseg.backbones.shared import load_network
from rsgeoseg.models.rsprompter_anchor.config import AnchorConfig, LossConfig
from rsgeoseg.models.rsprompter_anchor.network import RSPrompterAnchor
from rsgeoseg.models.rsprompter_anchor.segmenter import LOWEST_SCORE, AnchorSegmenter
from rsgeoseg.nn.device import find_device
from rsgeoseg.weights.files import config_from_json
from rsgeoseg.weights.opening import open_weights

if TYPE_CHECKING:
    from pathlib import Path

    from rsgeoseg.backbones.prepared import Precision

__all__ = ["BACKBONES", "NAME", "SOURCE", "build", "default_config", "default_loss", "describe", "load", "segmenter"]

NAME = "rsprompter-anchor"
SOURCE = "Chen et al., RSPrompter, IEEE TGRS 2024; KyanChen/RSPrompter, branch release, f4e73c3"
_FIRST_BLOCK_2023 = 4
_DEPTH = {"sam-vit-b": 12, "sam-vit-l": 24, "sam-vit-h": 32}


def default_config(backbone: str, classes: tuple[str, ...]) -> AnchorConfig:
    """Give the network's sizes for a backbone: the paper's for SAM, smaller ones with every shortcut for ``lite``."""
    if backbone in SAM_BACKBONES:
        return AnchorConfig(classes=classes)
    if backbone in SAM2_BACKBONES:
        return AnchorConfig(classes=classes, skips=True)
    return AnchorConfig(
        classes=classes,
        width=128,
        box_hidden=512,
        proposals=300,
        decoder_mlp=512,
        coarse_masks=True,
        skips=True,
        mask_scores=True,
    )


def default_loss(backbone: str) -> LossConfig:
    """Give the loss for a backbone: the paper's for SAM, cheaper and with dice for ``lite``."""
    if backbone != "lite":
        return LossConfig()
    return LossConfig(rois=128, fine_masks=6, points=2048, mask_weight=2.0, dice_weight=2.0, coarse_weight=2.0)


def build(
    backbone: str,
    config: AnchorConfig,
    loss_config: LossConfig | None = None,
    *,
    pretrained: bool = True,
    sam_checkpoint: Path | None = None,
) -> RSPrompterAnchor:
    """Build the network with random heads.

    Args:
        backbone: one of ``BACKBONES``.
        config: sizes and options.
        loss_config: weights of the loss; None = ``default_loss``.
        pretrained: start `lite` from ImageNet weights.
        sam_checkpoint: file of SAM or SAM 2: its encoder stays frozen, its mask decoder is where training starts.
            None = random weights.

    Raises:
        ModelError: the backbone is unknown, cannot have this generation, or takes no SAM file.
        WeightsError: the file is missing, damaged, or of another size.
    """
    depth = _DEPTH.get(backbone)
    old = config.generation == "2023" and depth is not None
    layers = tuple(range(_FIRST_BLOCK_2023, depth, 2)) if old and depth is not None else None
    precision: Precision = "fp32" if config.numerics == "released" else "auto"
    encoder = build_encoder(
        backbone,
        pretrained=pretrained,
        image_size=config.image_size,
        table_size=config.image_size,
        layers=() if config.aggregate == "embedding" else layers,
        precision=precision,
    )
    network = RSPrompterAnchor(encoder, config, loss_config or default_loss(backbone))
    if sam_checkpoint is not None:
        start_from_sam(network, sam_checkpoint)
    return network


def describe(network: RSPrompterAnchor) -> dict[str, Any]:
    """Say what to build for a network's weights: the header of its weights file."""
    return {"model": NAME, "backbone": network.encoder.spec.name, "config": asdict(network.config)}


def segmenter(
    network: RSPrompterAnchor, *, score_threshold: float = 0.5, lowest: float | None = None, **spec: Any
) -> AnchorSegmenter:
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
    return AnchorSegmenter(network, full, lowest=lowest, autocast=autocast)


def load(weights: str | Path | None = None, device: str = "auto") -> AnchorSegmenter:
    """Load the model for the registry; see ``registry.load_model``.

    With weights of the authors ``segment`` gives all objects that their code gives (class probability above 0.05); maps
    leave out those below ``spec.score_threshold``.

    Raises:
        WeightsError: the weights are missing, damaged, or belong to another model.
        ModelError: the device is not there.
    """
    where = find_device(device)
    opened = open_weights(NAME, weights)
    description = opened.file.description
    config = config_from_json(AnchorConfig, description["config"])
    network = build(description["backbone"], config, pretrained=False)
    load_network(network, opened.file, opened.path, where)
    lowest = LOWEST_SCORE if config.numerics == "released" else None
    return segmenter(network, score_threshold=opened.score_threshold, lowest=lowest, **opened.about)
