"""Pixels on their way to the device: as bytes, through page-locked memory, beside the network's work.

A copy from ordinary memory makes the host wait until everything queued on the device is done; one from page-locked
memory does not. Pixels travel as they are (uint8: a quarter of float32) and are normalised there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rsgeoseg.contract import Chip

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceChip(Chip):
    """A chip whose pixels are on the device too, or on their way there."""

    pixels: Tensor
    """(bands, h, w) of ``image``, on the device."""
    copied: torch.cuda.Event | None = None
    """Passes once they are there; None = they are."""


def stacked(arrays: Sequence[NDArray[Any]], device: torch.device) -> Tensor:
    """Stack arrays of one shape and dtype and copy them to a device, on CUDA without waiting for it.

    Page-locked memory is recycled by torch, which notes when a copy from it is done.

    Args:
        arrays: at least one.
        device: where to.

    Returns:
        (B, ...) of the same dtype.
    """
    first = arrays[0]
    dtype = torch.from_numpy(np.empty(0, first.dtype)).dtype
    held = torch.empty((len(arrays), *first.shape), dtype=dtype, pin_memory=device.type == "cuda")
    np.stack(arrays, out=held.numpy())
    return held.to(device, non_blocking=device.type == "cuda")


def pixels_of(chips: Sequence[Chip], device: torch.device) -> Tensor:
    """Stack the pixels of chips of one size on a device, without a copy where they are there already.

    Args:
        chips: at least one.
        device: where to.

    Returns:
        (B, bands, h, w) of the chips' dtype.
    """
    there = [chip for chip in chips if isinstance(chip, DeviceChip) and chip.pixels.device == device]
    if len(there) < len(chips):
        return stacked([chip.image for chip in chips], device)
    for chip in there:
        if chip.copied is not None:
            stream = torch.cuda.current_stream(device)
            chip.copied.wait(stream)
            chip.pixels.record_stream(stream)  # its memory belongs to the stream that copied it
    return torch.stack([chip.pixels for chip in there])


def valid_of(chips: Sequence[Chip], device: torch.device) -> Tensor | None:
    """Stack where chips of one size are valid, on a device: (B, 1, h, w) bool; None = everywhere."""
    if all(chip.valid.all() for chip in chips):
        return None
    return stacked([chip.valid for chip in chips], device).unsqueeze(1)


class Uploader:
    """Copies chips to a CUDA device beside what the network does there; for other devices it leaves them as they are.

    Args:
        device: where to.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __call__(self, chip: Chip) -> Chip:
        """Start the copy of a chip; from any thread. A chip that finds no room comes back as it is."""
        if self._stream is None or isinstance(chip, DeviceChip):
            return chip
        try:
            with torch.cuda.stream(self._stream):
                pixels = stacked([chip.image], self._device)[0]
                copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
                copied.record(self._stream)
        except RuntimeError:  # the batch itself will say what is wrong, to whom can do something about it
            return chip
        return DeviceChip(image=chip.image, valid=chip.valid, gsd=chip.gsd, pixels=pixels, copied=copied)


def copy_and_wait(array: NDArray[Any], device: torch.device) -> None:
    """Copy an array to a device as chips are copied, and wait until it is there; to measure how fast that is."""
    stacked([array], device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def name_device(device: torch.device) -> str:
    """Name the kind of a device: ``cpu``, ``mps``, or a card's name and memory, as slices of one card differ in it."""
    if device.type != "cuda":
        return device.type
    card = torch.cuda.get_device_properties(device)
    return f"{card.name}, {card.total_memory >> 20} MiB"


def release_memory(device: torch.device) -> None:
    """Give memory that torch holds in reserve back to the device, after a batch that did not fit."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
