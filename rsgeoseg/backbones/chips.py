"""Chips as a network takes them: grouped by size, normalised, padded; out-of-memory named as the contract names it."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from rsgeoseg.backbones.transfer import pixels_of, release_memory, stacked, valid_of
from rsgeoseg.contract import Chip, Instances, ModelSpec, OutOfMemory, Prompts, is_out_of_memory
from rsgeoseg.errors import PromptError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from rsgeoseg.backbones.features import EncoderSpec

COARSEST_STRIDE = 64
"""Sides of images that need no fixed size are padded to a multiple of it: the deepest map of a feature pyramid."""


def refuse_prompts(spec: ModelSpec, prompts: Sequence[Prompts | None] | None) -> None:
    """Refuse prompts of kinds that a model does not take.

    Raises:
        PromptError: some prompt has such a kind.
    """
    for prompt in prompts or ():
        unwanted = sorted((prompt.kinds() if prompt is not None else frozenset()) - spec.accepts)
        if unwanted:
            takes = f"takes {', '.join(sorted(spec.accepts))}" if spec.accepts else "finds its own prompts"
            msg = f"{spec.name} {takes}, not {', '.join(unwanted)}; leave them out or use another model"
            raise PromptError(msg)


def segment_alike(
    chips: Sequence[Chip],
    forward: Callable[[list[Chip]], list[Instances]],
    *,
    device: torch.device,
    autocast: bool = False,
) -> list[Instances]:
    """Run a network on chips of any sizes, those of one size together; chips without a valid pixel are empty.

    Args:
        chips: any number.
        forward: finds the objects of chips of one size.
        device: where the network is.
        autocast: run in bfloat16 where torch says it is safe.

    Raises:
        OutOfMemory: a batch does not fit the device.
    """
    found = [Instances.empty() for _ in chips]
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, chip in enumerate(chips):
        if chip.valid.any():
            groups.setdefault(chip.valid.shape, []).append(index)
    for shape, indices in groups.items():
        try:
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                results = forward([chips[i] for i in indices])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise out_of_memory(error, f"{len(indices)} chips of {shape} do not fit", device) from None
        for index, instances in zip(indices, results, strict=True):
            found[index] = instances
    return found


def out_of_memory(error: BaseException, what: str, device: torch.device) -> OutOfMemory:
    """Name a framework's error as the contract does, and free what the failed attempt held.

    The error's frames hold the tensors of the attempt, and would as long as anybody keeps the error.

    Args:
        error: which ``is_out_of_memory``.
        what: did not fit.
        device: where.
    """
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    traceback.clear_frames(error.__traceback__)
    release_memory(device)
    return OutOfMemory(f"{what} {device}: {reason}")


def normalise(images: Tensor, spec: EncoderSpec) -> Tensor:
    """Subtract an encoder's mean and divide by its deviation.

    Args:
        images: (B, 3, H, W) of 0-255, uint8 or float.
        spec: of the encoder.

    Returns:
        (B, 3, H, W) float32.
    """
    mean, std = (stacked([np.array(row, np.float32)], images.device)[0][:, None, None] for row in (spec.mean, spec.std))
    return (images.float() - mean) / std


def images_of(chips: Sequence[Chip], spec: EncoderSpec, device: torch.device) -> Tensor:
    """Stack chips of one size as an encoder takes them.

    Args:
        chips: all of one size (h, w), uint8.
        spec: of the encoder.
        device: where to.

    Returns:
        (B, 3, H, W) float32, normalised, padded below and to the right with zeros (the mean, as pixels without data
        are): to ``spec.image_size`` where the encoder has a fixed size, else to a multiple of 64.
    """
    normed, valid = normalise(pixels_of(chips, device), spec), valid_of(chips, device)
    if valid is not None:
        normed = normed * valid
    h, w = normed.shape[-2:]
    if spec.fixed_size:
        return F.pad(normed, (0, spec.image_size - w, 0, spec.image_size - h))
    return F.pad(normed, (0, -w % COARSEST_STRIDE, 0, -h % COARSEST_STRIDE))
