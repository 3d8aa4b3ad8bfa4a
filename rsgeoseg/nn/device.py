"""Where a network runs."""

from __future__ import annotations

import torch

from rsgeoseg.errors import ModelError


def find_device(name: str) -> torch.device:
    """Resolve ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.

    Raises:
        ModelError: the name is unknown, or this machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        msg = f"device {name!r} is unknown; use auto, cpu, cuda, cuda:0 or mps"
        raise ModelError(msg) from error
    present = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }.get(device.type, 0)
    if (device.index or 0) >= present:
        msg = f"device {name!r} is not on this machine; use --device auto"
        raise ModelError(msg)
    return device


def all_devices(name: str) -> tuple[str, ...]:
    """Return the devices that a name stands for: every GPU for ``auto`` and ``cuda`` where there are any.

    Raises:
        ModelError: as ``find_device``.
    """
    found = find_device(name)
    if name in ("auto", "cuda") and found.type == "cuda":
        return tuple(f"cuda:{index}" for index in range(torch.cuda.device_count()))
    return (str(found),)
