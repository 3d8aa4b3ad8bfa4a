"""SAM-seg (Mask2Former) (Chen et al., IEEE TGRS 2024): network, loss, and the segmenter the engine calls."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rsgeoseg.backbones.build import BACKBONES, build_encoder, start_from_sam
from rsgeoseg.backbones.network_segmenter import network_spec
from rsgeoseg.backbones.shared import load_network
from rsgeoseg.models.sam_seg_mask2former.config import Mask2FormerConfig
from rsgeoseg.models.sam_seg_mask2former.network import SamSegMask2Former
from rsgeoseg.models.sam_seg_mask2former.segmenter import Mask2FormerSegmenter
from rsgeoseg.nn.device import find_device
from rsgeoseg.weights.files import config_from_json
from rsgeoseg.weights.opening import open_weights

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["BACKBONES", "NAME", "SOURCE", "build", "default_config", "describe", "load", "segmenter"]

NAME = "sam-seg-mask2former"
SOURCE = "Chen et al., RSPrompter, IEEE TGRS 2024, section III-C; KyanChen/RSPrompter, branch release, f4e73c3"


def default_config(backbone: str, classes: tuple[str, ...]) -> Mask2FormerConfig:
    """Give the network's sizes for a backbone: the released ones for SAM, smaller ones for ``lite``."""
    if backbone != "lite":
        return Mask2FormerConfig(classes=classes)
    return Mask2FormerConfig(
        classes=classes, width=128, encoder_hidden=512, decoder_layers=3, decoder_hidden=512, points=2048
    )


def build(
    backbone: str, config: Mask2FormerConfig, *, pretrained: bool = True, sam_checkpoint: Path | None = None
) -> SamSegMask2Former:
    """Build the network with random heads; a SAM encoder is frozen.

    Args:
        backbone: one of ``BACKBONES``.
        config: sizes and options.
        pretrained: start `lite` from ImageNet weights.
        sam_checkpoint: file of SAM or SAM 2 that the encoder comes from; None = random weights.

    Raises:
        ModelError: the backbone is unknown, or takes no SAM file.
        WeightsError: the file is missing, damaged, or of another size.
    """
    encoder = build_encoder(backbone, pretrained=pretrained)
    if backbone != "lite":
        encoder.requires_grad_(requires_grad=False)
    network = SamSegMask2Former(encoder, config)
    if sam_checkpoint is not None:
        start_from_sam(network, sam_checkpoint)
    return network


def describe(network: SamSegMask2Former) -> dict[str, Any]:
    """Say what to build for a network's weights: the header of its weights file."""
    return {"model": NAME, "backbone": network.encoder.spec.name, "config": asdict(network.config)}


def segmenter(network: SamSegMask2Former, *, score_threshold: float = 0.5, **spec: Any) -> Mask2FormerSegmenter:
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
        score_threshold=score_threshold,
        source=SOURCE,
        **spec,
    )
    return Mask2FormerSegmenter(network, full)


def load(weights: str | Path | None = None, device: str = "auto") -> Mask2FormerSegmenter:
    """Load the model for the registry; see ``registry.load_model``.

    Raises:
        WeightsError: the weights are missing, damaged, or belong to another model.
        ModelError: the device is not there.
    """
    where = find_device(device)
    opened = open_weights(NAME, weights)
    description = opened.file.description
    config = config_from_json(Mask2FormerConfig, description["config"])
    network = build(description["backbone"], config, pretrained=False)
    load_network(network, opened.file, opened.path, where)
    return segmenter(network, score_threshold=opened.score_threshold, **opened.about)
