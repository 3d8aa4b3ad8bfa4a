"""Weights files of this project: safetensors with the network's description in the header."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from rsgeoseg.errors import WeightsError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

C = TypeVar("C")
_KEY = "rsgeoseg"


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """A weights file, read and checked."""

    tensors: dict[str, Tensor]
    """State dict, float32."""
    description: dict[str, Any]
    """What to build: ``model``, ``backbone``, ``config``, and the card's fields where known."""
    digest: str
    """sha256 of the file."""


def sha256_of(path: Path) -> str:
    """Digest a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_own_file(path: Path) -> bool:
    """Tell whether a file is safetensors with a description in its header, as ``write_weights`` leaves it."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return _KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def config_from_json(kind: type[C], values: Mapping[str, Any]) -> C:
    """Read a config dataclass that was saved as JSON beside its weights: lists become tuples again.

    Raises:
        WeightsError: a field is unknown or missing; the file is of another version.
    """
    try:
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
    except TypeError as error:
        msg = f"the weights' config does not fit this version ({error}); train or convert them again"
        raise WeightsError(msg) from error


def read_weights(path: Path, *, sha256: str | None = None) -> WeightsFile:
    """Read a weights file.

    Args:
        path: safetensors file written by ``write_weights``.
        sha256: digest the file must have; None = any.

    Raises:
        WeightsError: the file is missing, damaged, not safetensors, without a description, or another file.
    """
    if not path.is_file():
        msg = f"{path}: no such weights file; give a path, or an id that `rsgeoseg models` lists"
        raise WeightsError(msg)
    digest = sha256_of(path)
    if sha256 is not None and digest != sha256:
        msg = f"{path}: sha256 is {digest[:12]}..., expected {sha256[:12]}...; the file is damaged, install it again"
        raise WeightsError(msg)
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError, struct.error) as error:
        msg = f"{path}: is not a safetensors file or is damaged ({error}); train or export it again"
        raise WeightsError(msg) from error
    try:
        description = json.loads(metadata[_KEY])
    except (KeyError, ValueError) as error:
        msg = f"{path}: has no rsgeoseg description in its header; only files of `rsgeoseg train` load directly"
        raise WeightsError(msg) from error
    return WeightsFile(
        tensors={name: t.float() if t.is_floating_point() else t for name, t in tensors.items()},
        description=description,
        digest=digest,
    )


def write_weights(
    path: Path,
    tensors: Mapping[str, Tensor],
    description: Mapping[str, Any],
    *,
    dtype: torch.dtype | None = torch.float16,
) -> str:
    """Write a state dict as safetensors, beside and then renamed.

    Args:
        path: where to; its folder exists.
        tensors: state dict.
        description: JSON values: ``model``, ``backbone``, ``config`` and whatever else the reader should know.
        dtype: number format of floating-point tensors; None = the one they have.

    Returns:
        sha256 of the file.
    """
    written = {
        name: t.detach().cpu().to((dtype or t.dtype) if t.is_floating_point() else t.dtype).contiguous()
        for name, t in tensors.items()
    }
    beside = path.with_name(f".{path.name}.part")
    try:
        save_file(written, str(beside), metadata={_KEY: json.dumps(description)})
        os.replace(beside, path)  # noqa: PTH105  (atomic on every system)
    finally:
        beside.unlink(missing_ok=True)
    return sha256_of(path)


def load_into(network: nn.Module, file: WeightsFile, path: Path) -> None:
    """Load a state dict strictly: every tensor matched by name and shape.

    Tensors whose names begin with one of the description's ``absent`` prefixes may be missing: the method that wrote
    the file never used them.

    Raises:
        WeightsError: names or shapes differ; the message names the first one.
    """
    own = network.state_dict()
    absent = tuple(file.description.get("absent", ()))
    lacking = {name for name in own if name not in file.tensors and not name.startswith(absent)}
    for kind, names in (("lacks", lacking), ("has unknown", set(file.tensors) - set(own))):
        if names:
            msg = f"{path}: {kind} {len(names)} tensors, first {min(names)}; it was made for another network"
            raise WeightsError(msg)
    for name, tensor in file.tensors.items():
        if tensor.shape != own[name].shape:
            msg = f"{path}: {name} is {tuple(tensor.shape)}, the network wants {tuple(own[name].shape)}"
            raise WeightsError(msg)
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            msg = f"{path}: {name} has values that are not finite; the training went wrong or the file is damaged"
            raise WeightsError(msg)
    network.load_state_dict(own | file.tensors)
