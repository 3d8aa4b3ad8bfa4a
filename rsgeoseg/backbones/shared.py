"""Frozen encoders, one per process and device, whatever number of models use them.

An encoder is nine tenths of a SAM model. Two models on the same frozen file, or on two files that hold the same
encoder, get one object where they read the same of its maps; it lives as long as one of them does.
"""

from __future__ import annotations

import hashlib
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

import torch

from rsgeoseg.backbones.prepared import PreparedEncoder
from rsgeoseg.weights.files import load_into

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from rsgeoseg.backbones.features import Encoder
    from rsgeoseg.weights.files import WeightsFile

_encoders: WeakValueDictionary[tuple[object, ...], Encoder] = WeakValueDictionary()
_lock = Lock()


N = TypeVar("N", bound="nn.Module")


def load_network(network: N, file: WeightsFile, path: Path, device: torch.device) -> N:
    """Load weights into a network that was just built, and make it ready to be asked.

    A frozen SAM or SAM 2 encoder is the process's only one with these weights on this device: do not train or move it.

    Args:
        network: with its image encoder as ``encoder``; changed in place.
        file: its tensors.
        path: where they were read, for messages.
        device: where it is to be.

    Returns:
        The network, in evaluation mode.

    Raises:
        WeightsError: tensors are missing, unknown, or of another shape.
    """
    load_into(network, file, path)
    network.to(device).eval()
    encoder: Any = network.encoder
    if isinstance(encoder, PreparedEncoder) and not any(p.requires_grad for p in encoder.parameters()):
        network.encoder = _shared(encoder)
    return network


def _shared(encoder: PreparedEncoder[Any]) -> Encoder:
    """Give the process's encoder that is equal to this one: itself where it is the first."""
    where = next(encoder.parameters()).device
    layers = getattr(encoder, "layers", ())
    key = (encoder.spec, layers, encoder.precision, str(where), _digest(encoder.state_dict()))
    with _lock:
        return _encoders.setdefault(key, encoder)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Digest names, number formats, shapes and values: the same encoder in two files is the same encoder."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
