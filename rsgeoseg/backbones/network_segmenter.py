"""A network as the engine calls it: what the segmenters of all models have in common."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import torch

from rsgeoseg.backbones.chips import refuse_prompts, segment_alike
from rsgeoseg.backbones.packed import compute_dtype
from rsgeoseg.backbones.transfer import Uploader, name_device, release_memory
from rsgeoseg.contract import Chip, Instances, ModelSpec, Prompts
from rsgeoseg.nn.steady import use_steady_linears

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from rsgeoseg.backbones.features import EncoderSpec

N = TypeVar("N", bound="nn.Module")


class NetworkSegmenter(Generic[N]):
    """Chips of one size go through the network together; a model says how in ``_forward``.

    Args:
        network: on its device; put into evaluation mode, its linear layers replaced by steady ones of the same tensors.
        spec: what it is; its ``score_threshold`` also bounds the work.
        lowest: objects down to this score are found; None = ``spec.score_threshold``.
        max_instances: most objects per chip.
        autocast: run in bfloat16 where torch says it is safe; None = where the device multiplies it natively.
    """

    def __init__(
        self,
        network: N,
        spec: ModelSpec,
        *,
        lowest: float | None = None,
        max_instances: int = 100,
        autocast: bool | None = None,
    ) -> None:
        use_steady_linears(network)
        self.network = network.eval()
        self.spec = spec
        self.lowest = spec.score_threshold if lowest is None else lowest
        self.max_instances = max_instances
        self.device = next(network.parameters()).device
        self.autocast = compute_dtype(self.device) is torch.bfloat16 if autocast is None else autocast
        self.batch_size = 8 if self.device.type == "cuda" else 1
        """Chips at once where nothing better is known: on a CPU more would only take memory."""
        self.device_name = name_device(self.device)
        """Kind of device, for what is remembered of it."""
        self.number_format = "bfloat16" if self.autocast else "float32"
        """Of the matrix products."""
        self._upload = Uploader(self.device)

    def at_threshold(self, score_threshold: float) -> Self:
        """Give the same model with another score threshold; objects below it need not be found."""
        other = copy(self)
        other.spec = replace(self.spec, score_threshold=score_threshold)
        other.lowest = score_threshold
        return other

    def segment(self, chips: Sequence[Chip], prompts: Sequence[Prompts | None] | None = None) -> list[Instances]:
        """Find the objects of each chip; see ``contract.Segmenter.segment``."""
        refuse_prompts(self.spec, prompts)
        return segment_alike(chips, self._forward, device=self.device, autocast=self.autocast)

    def prepare(self, chip: Chip) -> Chip:
        """Start to bring a chip to the device, beside the batch that is there; from any thread.

        Returns:
            A chip for ``segment``; on a CPU the same.
        """
        return self._upload(chip)

    def release_memory(self) -> None:
        """Give memory held in reserve back to the device."""
        release_memory(self.device)

    def _forward(self, chips: list[Chip]) -> list[Instances]:
        """Find the objects of chips of one size."""
        raise NotImplementedError


def network_spec(encoder: EncoderSpec, **spec: Any) -> ModelSpec:
    """Say what a model is, its chips as large as its encoder takes them, 1024 pixels at most.

    Args:
        encoder: of the model's network.
        spec: fields of ``ModelSpec``; those of the weights' card win.
    """
    return ModelSpec(**{"chip_size": min(encoder.image_size, 1024), "overlap": 128, **spec})
