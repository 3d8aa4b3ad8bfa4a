"""What a layout is: every tensor that a file must hold, its name here, and its shape.

A layout is written as our names with shapes and a function from our names to the file's. Matching is strict both ways,
so a tensor that is missing, unknown or of another shape is always named.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
"""Shapes by tensor name."""


class Misfit(Exception):  # noqa: N818  (caught where the file's path is known)
    """A sentence without the path about why tensors do not fit a layout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A layout, sized for one file."""

    model: str
    """Registry name, or ``sam`` or ``sam2`` for plain SAM files."""
    backbone: str
    """Image encoder."""
    name: str
    """``sam``, ``sam2``, ``sam2.1``, ``hf-sam``, ``rsprompter-2023`` or ``rsprompter-2024``."""
    shapes: Shapes
    """Shapes by our names."""
    theirs: Callable[[str], str]
    """From our name to the file's."""
    ignored: tuple[str, ...] = ()
    """Prefixes of names in the file that no network here uses."""
    absent: tuple[str, ...] = ()
    """Prefixes of our names that the method never used, so that such files do not have them."""
    classes: int | None = None
    """Number of classes, where the network has some."""
    config: dict[str, Any] = field(default_factory=dict)
    """Fields of the network's config that can be read off the shapes, class names aside."""


def match(tensors: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Rename a file's tensors to ours, strictly, as float32.

    Raises:
        Misfit: a tensor is missing, unknown, of another shape, or holds values that are not finite.
    """
    wanted = {layout.theirs(ours): ours for ours in layout.shapes}
    given = {name for name in tensors if not name.startswith(layout.ignored)} if layout.ignored else set(tensors)
    missing, unknown = sorted(wanted.keys() - given), sorted(given - wanted.keys())
    if missing or unknown:
        msg = f"keys differ from the {layout.name} layout of {layout.backbone}: {_some('missing', missing)}, "
        raise Misfit(msg + f"{_some('unknown', unknown)}; use an official file")
    for theirs, ours in wanted.items():  # before any value is looked at, which reads the whole file
        shape = tuple(tensors[theirs].shape)
        if shape != layout.shapes[ours]:
            msg = f"tensor '{theirs}' has shape {shape}, expected {layout.shapes[ours]}; use an official file"
            raise Misfit(msg)
    matched: dict[str, Tensor] = {}
    for theirs, ours in wanted.items():
        tensor = tensors[theirs]
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            msg = f"tensor '{theirs}' holds NaN or infinite values; download the file again"
            raise Misfit(msg)
        matched[ours] = tensor.float() if tensor.is_floating_point() else tensor
    return matched


def used_prefixes(names: Iterable[str], prefixes: Iterable[str]) -> list[str]:
    """Those prefixes that some name has."""
    listed = list(names)
    return [prefix for prefix in prefixes if any(name.startswith(prefix) for name in listed)]


def rows(tensors: Mapping[str, Tensor], name: str, unit: int = 1) -> int:
    """Read a size off a tensor's first axis, in units.

    Raises:
        Misfit: the tensor is not there, or its rows are no multiple of ``unit``.
    """
    if name not in tensors:
        msg = f"keys differ: 1 missing ({name}); use an official file"
        raise Misfit(msg)
    shape = tuple(tensors[name].shape)
    if not shape or shape[0] == 0 or shape[0] % unit:
        msg = f"tensor '{name}' has shape {shape}, expected a multiple of {unit} rows; use an official file"
        raise Misfit(msg)
    return shape[0] // unit


def weight_bias(name: str, *shape: int) -> Shapes:
    """Shapes of a linear layer or convolution; shape = that of the weight, outputs first."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def norm(name: str, width: int) -> Shapes:
    """Shapes of a layer or group norm."""
    return weight_bias(name, width)


def batch_norm(name: str, width: int) -> Shapes:
    """Shapes of a batch norm with its running statistics."""
    running: Shapes = {f"{name}.{part}": (width,) for part in ("running_mean", "running_var")}
    return {**weight_bias(name, width), **running, f"{name}.num_batches_tracked": ()}


def perceptron(name: str, *widths: int) -> Shapes:
    """Shapes of SAM's ``MLP``: linear layers ``layers.0``, ``layers.1``, ..."""
    shapes: Shapes = {}
    for index in range(len(widths) - 1):
        shapes |= weight_bias(f"{name}.layers.{index}", widths[index + 1], widths[index])
    return shapes


def _some(what: str, names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {what}" + (f" ({shown})" if names else "")
