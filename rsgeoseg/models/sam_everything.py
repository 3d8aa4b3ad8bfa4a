"""Everything mode of SAM and SAM 2: every object of a chip, without classes and without prompts.

Sources: Kirillov et al., "Segment Anything", ICCV 2023, appendix B; the generators of segment-anything (commit dca509f)
and facebookresearch/sam2. What is asked and kept: :mod:`rsgeoseg.backbones.everything`.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from rsgeoseg.backbones.build import BACKBONES
from rsgeoseg.backbones.everything import EverythingConfig, default_everything, find_everything
from rsgeoseg.backbones.network_segmenter import NetworkSegmenter, network_spec
from rsgeoseg.backbones.prompt_loss import PromptLoss
from rsgeoseg.backbones.prompt_segmenter import CLASSES
from rsgeoseg.backbones.promptable import PromptableSam, build_promptable, load_promptable
from rsgeoseg.nn.device import find_device
from rsgeoseg.weights.files import config_from_json
from rsgeoseg.weights.opening import open_weights

if TYPE_CHECKING:
    from pathlib import Path

    from rsgeoseg.contract import Chip, Instances, ModelSpec

__all__ = ["BACKBONES", "NAME", "SOURCE", "build", "default_config", "describe", "load", "segmenter"]

NAME = "sam-everything"
SOURCE = "Kirillov et al., Segment Anything, ICCV 2023; Ravi et al., SAM 2, ICLR 2025"
ACCEPTS = (NAME, "sam", "sam2", "sam-prompt", "sam2-prompt")
"""Whose weights it takes: the network is theirs."""


def default_config(backbone: str, classes: tuple[str, ...] = CLASSES) -> EverythingConfig:  # noqa: ARG001
    """Give the package's settings for a backbone; there are no classes."""
    return default_everything(backbone)


def build(
    backbone: str,
    config: EverythingConfig | None = None,  # noqa: ARG001
    *,
    pretrained: bool = True,
    sam_checkpoint: Path | None = None,
) -> PromptableSam:
    """Build the network of `sam-prompt` and `sam2-prompt`; it is trained on clicks alone.

    Args:
        backbone: one of ``BACKBONES``.
        config: belongs to the segmenter; the network is the same whatever it says.
        pretrained: start `lite` from ImageNet weights.
        sam_checkpoint: official file of SAM or SAM 2; its encoder is frozen. None = random weights.

    Raises:
        ModelError: the backbone is unknown, or takes no SAM file.
        WeightsError: the file is missing, damaged, or of another size.
    """
    asked = PromptLoss(ways=("clicks",))
    return build_promptable(backbone, pretrained=pretrained, sam_checkpoint=sam_checkpoint, loss_config=asked)


class EverythingSegmenter(NetworkSegmenter[PromptableSam]):
    """Everything mode as the engine calls it.

    Args:
        network: on its device.
        spec: what it is.
        config: what is asked and what is kept.
    """

    def __init__(self, network: PromptableSam, spec: ModelSpec, config: EverythingConfig) -> None:
        super().__init__(network, spec)
        self.config = config
        self.batch_size = 4 if self.device.type == "cuda" else 1
        """Chips at once that the engine starts with: the grid's prompts, not the chips, fill the device."""

    def at_threshold(self, score_threshold: float) -> EverythingSegmenter:
        """Give the same model with another least score, which is the predicted IoU."""
        other = super().at_threshold(score_threshold)
        other.config = replace(self.config, pred_iou=score_threshold)
        return other

    def _forward(self, chips: list[Chip]) -> list[Instances]:
        scene = self.network.see(chips)
        return [
            find_everything(self.network, scene.one(index), chip.valid, self.config) for index, chip in enumerate(chips)
        ]


def describe(network: PromptableSam) -> dict[str, Any]:
    """Say what to build for a network's weights: the header of its weights file."""
    backbone = network.encoder.spec.name
    return {"model": NAME, "backbone": backbone, "config": asdict(default_everything(backbone))}


def segmenter(
    network: PromptableSam,
    *,
    config: EverythingConfig | None = None,
    score_threshold: float | None = None,
    **spec: Any,
) -> EverythingSegmenter:
    """Wrap a network for the engine.

    Args:
        network: on its device.
        config: what is asked and what is kept; None = ``default_config``.
        score_threshold: least predicted IoU; None = the config's.
        spec: further fields of ``ModelSpec``.
    """
    chosen = config or default_everything(network.encoder.spec.name)
    if score_threshold is not None:
        chosen = replace(chosen, pred_iou=score_threshold)
    full = network_spec(
        network.encoder.spec,
        name=NAME,
        classes=CLASSES,
        score_threshold=chosen.pred_iou,
        source=SOURCE,
        **spec,
    )
    return EverythingSegmenter(network, full, chosen)


def load(weights: str | Path | None = None, device: str = "auto") -> EverythingSegmenter:
    """Load the model for the registry; see ``registry.load_model``.

    Raises:
        WeightsError: the weights are missing, damaged, or belong to another model.
        ModelError: the device is not there.
    """
    where = find_device(device)
    opened = open_weights(NAME, weights, accepts=ACCEPTS)
    network = load_promptable(opened.file, opened.path, where)
    own = opened.file.description["model"] == NAME
    config = config_from_json(EverythingConfig, opened.file.description["config"]) if own else None
    return segmenter(network, config=config, **opened.about)
