"""SAM-cls (Chen et al., IEEE TGRS 2024): everything that SAM sees, named by a classifier."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rsgeoseg.backbones.build import BACKBONES, build_encoder, start_from_sam
from rsgeoseg.backbones.network_segmenter import network_spec
from rsgeoseg.backbones.shared import load_network
from rsgeoseg.models.sam_cls.config import ClsConfig
from rsgeoseg.models.sam_cls.network import SamCls
from rsgeoseg.models.sam_cls.segmenter import ClsSegmenter
from rsgeoseg.nn.device import find_device
from rsgeoseg.weights.files import config_from_json
from rsgeoseg.weights.opening import open_weights

if TYPE_CHECKING:
    from pathlib import Path

    from rsgeoseg.models.sam_cls.samples import SampleConfig

__all__ = ["BACKBONES", "NAME", "SOURCE", "build", "default_config", "describe", "load", "segmenter"]

NAME = "sam-cls"
SOURCE = "Chen et al., RSPrompter (SAM-cls), IEEE TGRS 2024; KyanChen/RSPrompter, branch lightning, sam_cls"


def default_config(backbone: str, classes: tuple[str, ...]) -> ClsConfig:
    """Give the network's sizes for a backbone: the paper's for SAM, small crops and a SAM of its own for ``lite``."""
    if backbone != "lite":
        return ClsConfig(classes=classes)
    return ClsConfig(classes=classes, crop_side=64, quality_scores=True, train_sam=True)


def build(
    backbone: str,
    config: ClsConfig,
    samples: SampleConfig | None = None,
    *,
    pretrained: bool = True,
    sam_checkpoint: Path | None = None,
    labeller_weights: Path | None = None,
) -> SamCls:
    """Build the network with a random last layer of the labeller.

    Args:
        backbone: one of ``BACKBONES``.
        config: sizes and options.
        samples: crops that the labeller is trained on; None = the defaults.
        pretrained: start `lite` from ImageNet weights.
        sam_checkpoint: file of SAM or SAM 2, which stays as it is (paper). None = random weights.
        labeller_weights: ImageNet weights of the ResNet-18, a file of torchvision (paper). None = random weights.

    Raises:
        ModelError: the backbone is unknown or takes no SAM file, or CLIP is asked for and not there.
        WeightsError: a file is missing, damaged, or of another network.
    """
    encoder = build_encoder(backbone, pretrained=pretrained, layers=())
    network = SamCls(encoder, config, labeller_weights=labeller_weights, samples=samples)
    if sam_checkpoint is not None:
        start_from_sam(network, sam_checkpoint)
    return network


def describe(network: SamCls) -> dict[str, Any]:
    """Say what to build for a network's weights: the header of its weights file."""
    return {"model": NAME, "backbone": network.encoder.spec.name, "config": asdict(network.config)}


def segmenter(network: SamCls, *, score_threshold: float = 0.5, **spec: Any) -> ClsSegmenter:
    """Wrap a network for the engine.

    Args:
        network: on its device.
        score_threshold: objects below it are left out.
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
    return ClsSegmenter(network, full)


def load(weights: str | Path | None = None, device: str = "auto") -> ClsSegmenter:
    """Load the model for the registry; see ``registry.load_model``.

    Raises:
        WeightsError: the weights are missing, damaged, or belong to another model.
        ModelError: the device is not there, or the file's CLIP folder is not.
    """
    where = find_device(device)
    opened = open_weights(NAME, weights)
    config = config_from_json(ClsConfig, opened.file.description["config"])
    network = build(opened.file.description["backbone"], config, pretrained=False)
    load_network(network, opened.file, opened.path, where)
    return segmenter(network, score_threshold=opened.score_threshold, **opened.about)
