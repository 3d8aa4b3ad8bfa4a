"""Frozen encoders, one per process and device, whatever number of models use them.

An encoder is nine tenths of a SAM model. Two models on the same frozen file, or on two files that hold the same
encoder, get one object; it lives as long as one of them does.
"""

from __future__ import annotations

import hashlib
from threading import Lock
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import torch

from rsgeoseg.backbones.build import build_encoder
from rsgeoseg.backbones.packed import compute_dtype
from rsgeoseg.weights.files import load_into

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from rsgeoseg.backbones.features import Encoder
    from rsgeoseg.weights.files import WeightsFile

_encoders: WeakValueDictionary[tuple[object, ...], Encoder] = WeakValueDictionary()
_lock = Lock()


def shared_encoder(
    backbone: str,
    file: WeightsFile,
    path: Path,
    device: torch.device,
    *,
    image_size: int = 1024,
    layers: tuple[int, ...] = (),
) -> Encoder:
    """Give the process's one frozen encoder with these weights, built on first use.

    Who gets it must neither train nor move it.

    Args:
        backbone: a SAM or SAM 2 backbone.
        file: its tensors, named without ``encoder.``.
        path: where they were read, for messages.
        device: where it is to be.
        image_size: input side, pixels.
        layers: ViT blocks whose outputs are ``Features.hidden``.

    Raises:
        WeightsError: tensors are missing, unknown, or of another shape.
    """
    key = (backbone, _digest(file.tensors), str(device), compute_dtype(device), image_size, layers)
    with _lock:
        encoder = _encoders.get(key)
        if encoder is None:
            encoder = build_encoder(backbone, pretrained=False, image_size=image_size, layers=layers)
            load_into(encoder, file, path)
            encoder = encoder.requires_grad_(requires_grad=False).to(device).eval()
            _encoders[key] = encoder
        return encoder


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Digest names, number formats, shapes and values: the same encoder in two files is the same encoder."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
