"""The network of a training: built, started, frozen or adapted as the config says; and plain again when exported."""

from __future__ import annotations

import copy
import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsgeoseg.backbones.lora import add_lora, merge_lora
from rsgeoseg.errors import UsageError
from rsgeoseg.train.models import TRAINABLE
from rsgeoseg.train.start import start_from

if TYPE_CHECKING:
    from torch import nn

    from rsgeoseg.train.config import TrainConfig

logger = logging.getLogger(__name__)


def build_network(config: TrainConfig, classes: tuple[str, ...]) -> nn.Module:
    """Build the network that a training begins with.

    Raises:
        UsageError: an option is unknown to the model, or does not fit the backbone.
        ModelError, WeightsError: the backbone is unknown, or its file or the weights to start from cannot be used.
    """
    package = TRAINABLE[config.model]
    sizes = _changed(package.default_config(config.backbone, classes), config.model_options, config.model)
    checkpoint = None if config.sam_checkpoint is None else Path(config.sam_checkpoint)
    network: nn.Module = package.build(config.backbone, sizes, sam_checkpoint=checkpoint)
    if config.loss_options:
        if not hasattr(network, "loss_config"):
            msg = f"the loss of {config.model} has no options"
            raise UsageError(msg)
        loss: Any = network.loss_config
        network.loss_config = _changed(loss, config.loss_options, f"the loss of {config.model}")
    if config.start is not None:
        begun = start_from(network, config.start)
        logger.info("%s: %d tensors taken, %d start afresh", config.start, len(begun.taken), len(begun.fresh))
    encoder: Any = network.encoder
    if config.lora:
        logger.info("lora: %d layers of rank %d", add_lora(encoder, config.lora), config.lora)
    elif config.freeze_encoder:
        encoder.requires_grad_(requires_grad=False)
    return network


def plain_network(network: nn.Module) -> nn.Module:
    """Copy a network with what low-rank adaptation has learned put into its weights, ready to be asked."""
    plain = copy.deepcopy(network)
    encoder: Any = plain.encoder
    merge_lora(encoder)
    return plain.requires_grad_(requires_grad=False).eval()


def _changed(config: Any, options: dict[str, Any], what: str) -> Any:
    known = [entry.name for entry in dataclasses.fields(config) if entry.name != "classes"]
    unknown = [name for name in options if name not in known]
    if unknown:
        msg = f"{what} has no option {', '.join(unknown)}; it has {', '.join(known)}"
        raise UsageError(msg)
    try:
        return dataclasses.replace(config, **options)
    except ValueError as error:
        msg = f"{what}: {error}"
        raise UsageError(msg) from error
