"""Tensors of a checkpoint by name, without running any code from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rsgeoseg.errors import WeightsError
from rsgeoseg.weights.unpickling import DAMAGE, RefusedName, StoredPickle

Container = Literal["safetensors", "flat", "model", "state_dict", "mmengine", "lightning"]


@dataclass(frozen=True, slots=True)
class TensorFile:
    """What a checkpoint holds."""

    tensors: dict[str, Tensor]
    """By the file's own names, in the file's own number formats; they may be mapped from the file."""
    container: Container
    """What they were wrapped in: nothing (``safetensors``, ``flat``), or a training program's table."""
    classes: tuple[str, ...] | None
    """Class names where the container has some."""


def read_tensors(path: Path, *, stand_ins: bool = False) -> TensorFile:
    """Read the tensors of a checkpoint: ``torch.save`` of either format, or safetensors.

    Args:
        path: the file.
        stand_ins: read files that hold settings or logs of known training programs beside the tensors too. Objects
            are replaced by stand-ins that do nothing; any other class or function is refused.

    Raises:
        WeightsError: the file is missing, damaged, something else than a table of tensors, or has code in it.
    """
    path = Path(path)
    loaded, container = _load(path, _head(path), stand_ins=stand_ins)
    table, container = _unwrap(loaded, container)
    if not table or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in table.items()):
        msg = f"{path}: holds something other than a table of tensors; give a checkpoint with a state dict"
        raise WeightsError(msg)
    return TensorFile(dict(table), container, _classes(loaded))


def _head(path: Path) -> bytes:
    """First bytes of a file, or one sentence about why there are none."""
    if not path.exists():
        msg = f"{path}: no such weights file; give the path of a checkpoint"
        raise WeightsError(msg)
    if path.is_dir():
        msg = (
            f"{path}: cannot be read, it is a folder; give the file in it, or join the parts of a DeepSpeed folder "
            "with the zero_to_fp32.py that lies beside them and give the result"
        )
        raise WeightsError(msg)
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        msg = f"{path}: weights cannot be read ({error.strerror or error}); check the path and its permissions"
        raise WeightsError(msg) from error
    if head.lstrip()[:1] == b"<":
        msg = f"{path}: it is a web page, not weights; download it again and compare its size"
        raise WeightsError(msg)
    if head.startswith(b"version https://git-lfs"):
        msg = f"{path}: it is a Git LFS pointer, not the weights themselves; run `git lfs pull` or download the file"
        raise WeightsError(msg)
    return head


def _load(path: Path, head: bytes, *, stand_ins: bool) -> tuple[Any, Container]:
    try:
        if head[8:9] == b"{":  # eight bytes of length, then JSON
            return load_file(path), "safetensors"
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=head[:2] == b"PK"), "flat"
        except DAMAGE:  # damage, or objects that torch does not take: the second reading tells which
            stored = StoredPickle(path)
        table, _ = _unwrap(stored.content, "flat")
        if stored.stand_ins and not stand_ins and isinstance(table, Mapping):
            msg = (
                f"{path}: holds objects beside its tensors (first {stored.stand_ins[0]}); nothing of it was run; "
                f"make a plain file of it with `rsgeoseg weights convert {path} -o OUT.safetensors`"
            )
            raise WeightsError(msg)
        return _with_tensors(stored), "flat"
    except RefusedName as refused:
        msg = (
            f"{path}: not a plain weights file, it names {refused}, which could run code; nothing of it was run; "
            "get the weights from a source you trust, saved as a state dict or as safetensors"
        )
        raise WeightsError(msg) from refused
    except (SafetensorError, OSError, *DAMAGE) as error:
        msg = f"{path}: it is truncated or not a weights file; download it again and compare its size"
        raise WeightsError(msg) from error


def _with_tensors(stored: StoredPickle) -> Any:
    """Put tensors in the place of stored ones, in the table that matters."""
    table, container = _unwrap(stored.content, "flat")
    if not isinstance(table, Mapping):
        return stored.content
    read = {key: stored.tensor(value) for key, value in table.items()}
    if container == "flat":
        return read
    return {**stored.content, ("model" if container == "model" else "state_dict"): read}


def _unwrap(loaded: Any, container: Container) -> tuple[Any, Container]:
    """Find the state dict and say what it was in; anything else comes back unchanged."""
    if not isinstance(loaded, Mapping):
        return None, container
    if isinstance(loaded.get("state_dict"), Mapping):
        if "pytorch-lightning_version" in loaded or "hyper_parameters" in loaded:
            return loaded["state_dict"], "lightning"
        return loaded["state_dict"], "mmengine" if "meta" in loaded else "state_dict"
    if isinstance(loaded.get("model"), Mapping):
        return loaded["model"], "model"
    return loaded, container


def _classes(loaded: Any) -> tuple[str, ...] | None:
    """Class names of mmengine's ``meta``, in its newer or older spelling, where they are plain values."""
    meta = loaded.get("meta") if isinstance(loaded, Mapping) else None
    if not isinstance(meta, Mapping):
        return None
    about = meta.get("dataset_meta")
    places = (about, meta) if isinstance(about, Mapping) else (meta,)
    for place in places:
        names = place.get("classes", place.get("CLASSES"))
        if isinstance(names, str):
            return (names,)
        if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
            return tuple(names)
    return None
