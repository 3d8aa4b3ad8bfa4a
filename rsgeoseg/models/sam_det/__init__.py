"""SAM-det (Chen et al., IEEE TGRS 2024): the boxes of a detector prompt SAM."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rsgeoseg.backbones.build import BACKBONES, build_encoder, start_from_sam
from rsgeoseg.backbones.network_segmenter import network_spec
from rsgeoseg.backbones.resnet import ResNetEncoder
from rsgeoseg.backbones.shared import load_network
from rsgeoseg.models.sam_det.config import DetConfig
from rsgeoseg.models.sam_det.network import SamDet
from rsgeoseg.models.sam_det.segmenter import DetSegmenter
from rsgeoseg.nn.device import find_device
from rsgeoseg.weights.files import config_from_json
from rsgeoseg.weights.opening import open_weights

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["BACKBONES", "NAME", "SOURCE", "build", "default_config", "describe", "load", "segmenter"]

NAME = "sam-det"
SOURCE = "Chen et al., RSPrompter (SAM-det), IEEE TGRS 2024; KyanChen/RSPrompter, branch release, f4e73c3"


def default_config(backbone: str, classes: tuple[str, ...]) -> DetConfig:
    """Give the network's sizes for a backbone: the paper's for SAM, one network in all for ``lite``."""
    if backbone != "lite":
        return DetConfig(classes=classes)
    return DetConfig(
        classes=classes,
        trunk="encoder",
        width=128,
        box_hidden=512,
        anchor_scales=(4.0, 8.0),
        samples=128,
        proposals=300,
        train_sam=True,
    )


def build(
    backbone: str,
    config: DetConfig,
    *,
    pretrained: bool = True,
    sam_checkpoint: Path | None = None,
    trunk_weights: Path | None = None,
) -> SamDet:
    """Build the network with random heads.

    Args:
        backbone: one of ``BACKBONES``.
        config: sizes and options.
        pretrained: start `lite` from ImageNet weights.
        sam_checkpoint: file of SAM or SAM 2, which stays as it is (paper). None = random weights.
        trunk_weights: ImageNet weights of the detector's ResNet, a file of torchvision (paper). None = random weights,
            and batch norm is trained along.

    Raises:
        ModelError: the backbone is unknown, or takes no SAM file.
        WeightsError: a file is missing, damaged, or of another network.
    """
    own = config.trunk != "encoder"
    encoder = build_encoder(backbone, pretrained=pretrained, layers=() if own else None)
    trunk = None if config.trunk == "encoder" else ResNetEncoder(config.trunk, trunk_weights)
    network = SamDet(encoder, config, trunk)
    if sam_checkpoint is not None:
        start_from_sam(network, sam_checkpoint)
    return network


def describe(network: SamDet) -> dict[str, Any]:
    """Say what to build for a network's weights: the header of its weights file."""
    return {"model": NAME, "backbone": network.encoder.spec.name, "config": asdict(network.config)}


def segmenter(network: SamDet, *, score_threshold: float = 0.5, **spec: Any) -> DetSegmenter:
    """Wrap a network for the engine.

    Args:
        network: on its device.
        score_threshold: objects below it need not be found.
        spec: further fields of ``ModelSpec``.
    """
    full = network_spec(
        network.encoder.spec,
        name=NAME,
        classes=network.config.classes,
        accepts=frozenset({"boxes"}),
        score_threshold=score_threshold,
        source=SOURCE,
        **spec,
    )
    return DetSegmenter(network, full)


def load(weights: str | Path | None = None, device: str = "auto") -> DetSegmenter:
    """Load the model for the registry; see ``registry.load_model``.

    Raises:
        WeightsError: the weights are missing, damaged, or belong to another model.
        ModelError: the device is not there.
    """
    where = find_device(device)
    opened = open_weights(NAME, weights)
    config = config_from_json(DetConfig, opened.file.description["config"])
    network = build(opened.file.description["backbone"], config, pretrained=False)
    load_network(network, opened.file, opened.path, where)
    return segmenter(network, score_threshold=opened.score_threshold, **opened.about)
