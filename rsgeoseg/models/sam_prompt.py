"""SAM with points, boxes and masks (Kirillov et al., ICCV 2023)."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rsgeoseg.backbones.build import SAM_BACKBONES
from rsgeoseg.backbones.prompt_loss import PromptLoss
from rsgeoseg.backbones.prompt_segmenter import CLASSES, PromptSegmenter, prompt_segmenter
from rsgeoseg.backbones.promptable import PromptableSam, build_promptable, load_promptable
from rsgeoseg.errors import ModelError
from rsgeoseg.nn.device import find_device
from rsgeoseg.weights.opening import open_weights

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["BACKBONES", "NAME", "SOURCE", "build", "default_config", "describe", "load", "segmenter"]

NAME = "sam-prompt"
SOURCE = "Kirillov et al., Segment Anything, ICCV 2023; facebookresearch/segment-anything, dca509f"
BACKBONES = ("lite", *SAM_BACKBONES)


def default_config(backbone: str, classes: tuple[str, ...] = CLASSES) -> PromptLoss:  # noqa: ARG001
    """Give how prompts are simulated in training: the same on every backbone, and without classes."""
    return PromptLoss()


def build(
    backbone: str, config: PromptLoss | None = None, *, pretrained: bool = True, sam_checkpoint: Path | None = None
) -> PromptableSam:
    """Build the network.

    Args:
        backbone: one of ``BACKBONES``.
        config: how prompts are simulated in training; None = ``default_config``.
        pretrained: start `lite` from ImageNet weights.
        sam_checkpoint: official SAM file for a SAM backbone; its encoder is frozen. None = random weights.

    Raises:
        ModelError: another backbone, or `lite` is given a SAM file.
        WeightsError: the file is missing, damaged, or of another size.
    """
    if backbone not in BACKBONES:
        msg = f"{NAME} does not build on {backbone!r}; choose from {', '.join(BACKBONES)}"
        raise ModelError(msg)
    return build_promptable(backbone, pretrained=pretrained, sam_checkpoint=sam_checkpoint, loss_config=config)


def describe(network: PromptableSam) -> dict[str, Any]:
    """Say what to build for a network's weights: the header of its weights file."""
    return {"model": NAME, "backbone": network.encoder.spec.name, "config": asdict(network.loss_config)}


def segmenter(network: PromptableSam, *, score_threshold: float = 0.0, **spec: Any) -> PromptSegmenter:
    """Wrap a network for the engine; see :func:`rsgeoseg.backbones.prompt_segmenter.prompt_segmenter`."""
    return prompt_segmenter(network, name=NAME, source=SOURCE, score_threshold=score_threshold, **spec)


def load(weights: str | Path | None = None, device: str = "auto") -> PromptSegmenter:
    """Load the model for the registry; see ``registry.load_model``.

    Raises:
        WeightsError: the weights are missing, damaged, or belong to another model.
        ModelError: the device is not there.
    """
    where = find_device(device)
    opened = open_weights(NAME, weights, accepts=(NAME, "sam"))
    return segmenter(load_promptable(opened.file, opened.path, where), **opened.about)
