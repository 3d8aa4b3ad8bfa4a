"""What encoders share whose parameters are prepared once for a device and a number format."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, Self, TypeVar, get_args

import torch
from torch.amp import is_autocast_available

from rsgeoseg.backbones.compiled import wanted
from rsgeoseg.backbones.features import Encoder
from rsgeoseg.backbones.packed import compute_dtype

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

Precision = Literal["auto", "fp32", "bf16"]
_FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class Prepared(Protocol):
    """Weights and the computation on them."""

    def compile(self) -> None:
        """Run compiled from now on."""


P = TypeVar("P", bound=Prepared)


class PreparedEncoder(Encoder, Generic[P]):
    """An encoder that runs on prepared weights and makes them anew whenever its parameters may have changed.

    Args:
        precision: number format of the products; ``auto`` takes bf16 where the device multiplies it natively and fp32
            elsewhere.

    Raises:
        ValueError: the precision is unknown.
    """

    def __init__(self, precision: Precision) -> None:
        super().__init__()
        if precision not in get_args(Precision):
            msg = f"precision must be one of {', '.join(get_args(Precision))}, got {precision!r}"
            raise ValueError(msg)
        self.precision: Precision = precision
        self.compiled = wanted()
        """True where it runs through ``torch.compile`` on CUDA; see :mod:`rsgeoseg.backbones.compiled`."""
        self._prepared: tuple[torch.device, torch.dtype, P] | None = None
        self.register_load_state_dict_post_hook(PreparedEncoder._forget)  # type: ignore[no-untyped-call]

    def _prepare(self, dtype: torch.dtype) -> P:
        """Make the weights for the device that the parameters are on."""
        raise NotImplementedError

    def _weights(self, device: torch.device) -> P:
        """Weights for this device, made on first use and after they change."""
        dtype = _FORMATS.get(self.precision) or compute_dtype(device)
        if self._prepared is None or self._prepared[:2] != (device, dtype):
            self._prepared = (device, dtype, self._prepare(dtype))
            if self.compiled and device.type == "cuda":
                self._prepared[2].compile()
        return self._prepared[2]

    def _check(self, images: Tensor, multiple: int) -> None:
        """Refuse images of a shape that the network cannot take."""
        limit = self.spec.image_size
        bad_side = any(side % multiple or not 0 < side <= limit for side in images.shape[2:])
        if images.ndim != 4 or images.shape[1] != 3 or bad_side:
            shape = tuple(images.shape)
            msg = f"images must be (B, 3, H, W) with sides multiple of {multiple} up to {limit}, got {shape}"
            raise ValueError(msg)

    def _forget(self, *_: Any) -> None:
        """Drop prepared weights; they are made again from the parameters."""
        self._prepared = None

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Forget prepared weights whenever the module moves or changes type."""
        self._forget()
        super()._apply(fn, recurse=recurse)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Pickle parameters only."""
        return {**self.__dict__, "_prepared": None}


def run_prepared(images: Tensor, encode: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Encode without gradients, in the number formats that the prepared weights have.

    Args:
        images: (B, 3, H, W).
        encode: maps (b, 3, H, W) to maps with the same b.

    Returns:
        The maps of all images.
    """
    device = images.device.type
    own_types = torch.autocast(device, enabled=False) if is_autocast_available(device) else nullcontext()
    with torch.no_grad(), own_types:
        if device != "cpu" or len(images) == 1:
            return encode(images)
        # One at a time: thousands of tokens fill every core, and the activations of one image fit the caches better.
        return tuple(torch.cat(maps) for maps in zip(*(encode(image[None]) for image in images), strict=True))
