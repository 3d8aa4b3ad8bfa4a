"""Official SAM files as three named groups of tensors, or one clear sentence about what is wrong with the file."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rsgeoseg.errors import WeightsError

if TYPE_CHECKING:
    from collections.abc import Mapping

PARTS = ("image_encoder", "prompt_encoder", "mask_decoder")
_NAMES = {(768, 12): "ViT-B", (1024, 24): "ViT-L", (1280, 32): "ViT-H"}


def split_sam_checkpoint(path: Path) -> dict[str, dict[str, Tensor]]:
    """Read a SAM file and split it into its three networks, without running any code from it.

    Args:
        path: official ``sam_vit_*.pth``, or the same tensors as ``.safetensors``.

    Returns:
        ``image_encoder``, ``prompt_encoder`` and ``mask_decoder``: tensors by name without that prefix.

    Raises:
        WeightsError: the file is missing, damaged, not a SAM file, or holds values that are not finite.
    """
    path = Path(path)
    tensors = _read(path)
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    for key, value in tensors.items():
        part, _, name = key.partition(".")
        if part not in parts or not name:
            msg = f"{path}: not a SAM file, unknown tensor '{key}'; expected only {', '.join(f'{p}.*' for p in PARTS)}"
            raise WeightsError(msg)
        parts[part][name] = value
    missing = [part for part in PARTS if not parts[part]]
    if missing:
        absent = " and no ".join(f"{part}.*" for part in missing)
        msg = f"{path}: not a SAM file, it has no {absent} tensors; use an official one"
        raise WeightsError(msg)
    for key, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            msg = f"{path}: tensor '{key}' holds NaN or infinite values; download the file again"
            raise WeightsError(msg)
    return parts


def check_encoder_state(state: Mapping[str, Tensor], own: Mapping[str, Tensor], expected: str, path: Path) -> None:
    """Compare an ``image_encoder`` group with the network that shall take it, key by key and shape by shape.

    Args:
        state: tensors of the file.
        own: tensors of the network.
        expected: the network's name, e.g. ``ViT-B``.
        path: the file, for the message.

    Raises:
        WeightsError: another size of network, or keys or shapes that differ.
    """
    found = describe_encoder(state)
    if found != describe_encoder(own):
        msg = f"{path}: expected {expected}, found {found}; choose the backbone or the file that fits"
        raise WeightsError(msg)
    absent, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if absent or extra:
        differences = f"{_some('missing', absent)}, {_some('unexpected', extra)}"
        msg = f"{path}: {expected} keys differ, {differences}; use an official file"
        raise WeightsError(msg)
    for key, value in own.items():
        if state[key].shape != value.shape:
            shapes = f"{tuple(state[key].shape)}, expected {tuple(value.shape)}"
            msg = f"{path}: tensor 'image_encoder.{key}' has shape {shapes}; use an official file"
            raise WeightsError(msg)


def describe_encoder(state: Mapping[str, Tensor]) -> str:
    """Name the network that a group of encoder tensors belongs to, e.g. ``1280-wide ViT-H``."""
    positions = state.get("pos_embed")
    width = int(positions.shape[-1]) if positions is not None and positions.ndim else 0
    depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    return f"{width}-wide {_NAMES.get((width, depth), f'ViT of {depth} blocks')}"


def _some(what: str, keys: list[str]) -> str:
    shown = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
    return f"{len(keys)} {what}" + (f" ({shown})" if keys else "")


def _read(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
        loaded = load_file(path) if path.suffix == ".safetensors" else _load_pickle(path)
    except FileNotFoundError as error:
        msg = f"{path}: no such weights file; give the path of a SAM checkpoint"
        raise WeightsError(msg) from error
    except OSError as error:
        msg = f"{path}: weights cannot be read ({error.strerror or error}); check the path and its permissions"
        raise WeightsError(msg) from error
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        if head.lstrip()[:1] == b"<":
            cause = "it is a web page, not weights"
        else:
            cause = "it is truncated or not a weights file"
        msg = f"{path}: {cause}; download it again and compare its size"
        raise WeightsError(msg) from error
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        msg = f"{path}: not a SAM file, it holds something other than a flat table of tensors; use an official one"
        raise WeightsError(msg)
    return loaded


def _load_pickle(path: Path) -> object:
    loaded: object = torch.load(path, map_location="cpu", weights_only=True)
    return loaded
