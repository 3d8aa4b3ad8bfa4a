"""Dense layers of a frozen network, prepared once for the device that runs them.

On a CPU the weights are laid out for oneDNN once, with bias and GELU fused into the product; everywhere else, and
where torch lacks those operators, the same product is done by ``torch.nn.functional.linear``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812

if TYPE_CHECKING:
    from torch import Tensor


def compute_dtype(device: torch.device) -> torch.dtype:
    """Choose the number format of the matrix products on a device.

    Args:
        device: where the network runs.

    Returns:
        ``torch.bfloat16`` where the processor multiplies it natively (AVX512-BF16, AMX, CUDA from compute
        capability 8), else ``torch.float32``: emulated bf16 is slower than fp32.
    """
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    elif device.type == "cpu":
        names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        native = any(bool(getattr(torch.cpu, name, bool)()) for name in names)
    else:
        native = False
    return torch.bfloat16 if native else torch.float32


def _onednn_operators(weight: Tensor) -> tuple[Any, Any] | None:
    """Find torch's prepacked oneDNN linear: (reorder the weight, apply); None where it cannot take this weight.

    The operators are the ones ``torch.compile`` emits for frozen weights; torch gives them no public name.
    """
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    if weight.dtype == torch.bfloat16 and compute_dtype(weight.device) != torch.bfloat16:
        return None
    names = ("_reorder_linear_weight", "_linear_pointwise")
    reorder, apply = (getattr(torch.ops.mkldnn, name, None) for name in names)
    return None if reorder is None or apply is None else (reorder, apply)


class PackedNorm:
    """Layer norm over the last axis in fp32, rounded to the compute type, without gradients."""

    __slots__ = ("bias", "dtype", "eps", "weight")

    def __init__(self, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> None:
        """Prepare a layer.

        Args:
            weight: (C,) float.
            bias: (C,) float.
            eps: added to the variance.
            dtype: number format of the result.
        """
        self.weight = weight.detach().float()
        self.bias = bias.detach().float()
        self.eps = eps
        self.dtype = dtype

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise (..., C) fp32; the result has this layer's dtype."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps).to(self.dtype)


class PackedLinear:
    """``y = x @ weight.T + bias``, optionally followed by exact GELU, without gradients.

    On a processor without a vendor-tuned BLAS the oneDNN product is also much faster in fp32: on AMD Zen 5 it runs
    at 340-440 GFLOP/s where the BLAS behind ``F.linear`` reaches 170-200.
    """

    __slots__ = ("_apply", "bias", "dtype", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        """Prepare a layer.

        Args:
            weight: (out, in) float.
            bias: (out,) float, or None.
            dtype: number format of the product, and of its result.
        """
        self.dtype = dtype
        self.bias = None if bias is None else bias.detach().to(dtype)
        plain = weight.detach().to(dtype)
        operators = _onednn_operators(plain)
        self._apply = None if operators is None else operators[1]
        self.weight: Tensor = plain if operators is None else operators[0](plain.contiguous())

    def __call__(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """Apply the layer.

        Args:
            x: (..., in) of this layer's dtype.
            gelu: apply exact (erf) GELU to the result.

        Returns:
            (..., out) of this layer's dtype.
        """
        if self._apply is not None:
            name, algorithm = ("gelu", "none") if gelu else ("none", "")
            fused: Tensor = self._apply(x.contiguous(), self.weight, self.bias, name, [], algorithm)
            return fused
        result = F.linear(x, self.weight, self.bias)
        return F.gelu(result) if gelu else result
