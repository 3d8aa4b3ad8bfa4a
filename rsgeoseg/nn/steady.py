"""Operations whose last digit does not depend on how many threads share the work.

On a CPU a matrix product with few outputs or few rows is cut along its inner sum when several threads work on it, and
the sum's rounding moves with the cut; so do oneDNN's 1 x 1 convolution of many channels and its convolutions of small
maps. One digit decides whether an object passes a threshold, and a map must not depend on how many processes share the
cores. Products with whole vector registers of outputs and fours of rows are not cut. Exponentials are rounded in one
way in whole registers and in another in what is left at the end of a thread's share. All was found by running every
operator of the bundled models with 1 to 16 threads on the same inputs, chips of 64 to 1,024 px, and products and
exponentials alone with up to 96 (torch 2.14, an AMD EPYC with AVX512); no source says it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

M = TypeVar("M", bound="nn.Linear | nn.Conv2d")

_LANES = 16
"""Outputs in a vector register of 512 bits, float32."""
_FEW_ROWS = 256
"""Products of fewer rows are cut, by many threads, unless their rows are a multiple of 4."""
_SHARE = 32
"""Values that an exponential is computed of at once, in any number format."""
_STRIP = 4096
"""Cells whose 128 channels in float32 fit a cache of 2 MB."""


def steady_rows(count: int) -> int:
    """Return how many rows, at least ``count``, a product should have."""
    return max(-(-count // 4) * 4, 16) if count < _FEW_ROWS else count


def steady_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute ``F.linear``; on a CPU with rows of zeros and outputs of zero weight added, and dropped.

    Args:
        x: (..., K), float32 or, as ``weight`` and ``bias``, another floating type.
        weight: (N, K).
        bias: (N,).

    Returns:
        (..., N) of the type that ``F.linear`` gives.
    """
    outputs, inner = weight.shape
    places = x.shape[:-1].numel()
    wanting, missing = steady_rows(places) - places, -outputs % _LANES
    if not (wanting or missing) or x.device.type != "cpu":
        return F.linear(x, weight, bias)
    rows = F.pad(x.reshape(places, inner), (0, 0, 0, wanting)) if wanting else x
    widened = None if bias is None else F.pad(bias, (0, missing))
    found = F.linear(rows, F.pad(weight, (0, 0, 0, missing)), widened)[..., :outputs]
    return found[:places].reshape(*x.shape[:-1], outputs) if wanting else found


def draw_masks(kernels: Tensor, feature: Tensor) -> Tensor:
    """Multiply kernels (P, C) with a map (C, h, w), both of one floating type: logits (P, h, w) of that type."""
    c, h, w = feature.shape
    rows = steady_linear(feature.reshape(c, h * w).T, kernels)
    return rows.T.reshape(len(kernels), h, w)


def steady_softmax(x: Tensor) -> Tensor:
    """Compute a softmax over the last dimension but one; on a CPU with columns of zeros added, and dropped.

    Args:
        x: (A, B, K, N), float32 or bfloat16.

    Returns:
        The same shape and type.
    """
    columns = x.shape[-1]
    missing = -columns % (_SHARE * torch.get_num_threads())
    if missing == 0 or _is_plain(x):
        return x.softmax(-2)
    return F.pad(x, (0, missing)).softmax(-2)[..., :columns]


def steady_gelu(x: Tensor) -> Tensor:
    """Compute the exact GELU of maps (B, C, h, w); on a CPU by oneDNN, which takes what lies in a row."""
    if _is_plain(x):
        return F.gelu(x)
    if not x.is_contiguous(memory_format=torch.channels_last):
        x = x.contiguous()
    flat = x.as_strided((x.numel(),), (1,))  # in the order of memory, which stays
    return F.gelu(flat).as_strided(x.shape, x.stride())


def _is_plain(x: Tensor) -> bool:
    """Whether torch's own operation will do: it trains, or no threads share it."""
    return x.device.type != "cpu" or torch.is_grad_enabled()


def _share(plain: nn.Linear | nn.Conv2d, make: Callable[[], M]) -> M:
    """Make a layer that has a plain one's tensors; no random numbers are drawn for those that are dropped."""
    with torch.device("meta"):
        made = make()
    made.weight, made.bias = plain.weight, plain.bias
    return made


class SteadyLinear(nn.Linear):
    """A linear layer computed by :func:`steady_linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return steady_linear(x, self.weight, self.bias)

    @classmethod
    def of(cls, linear: nn.Linear) -> SteadyLinear:
        """Share the tensors of a plain layer."""
        return _share(linear, lambda: cls(linear.in_features, linear.out_features, bias=linear.bias is not None))


def use_steady_linears(network: nn.Module) -> None:
    """Put a :class:`SteadyLinear` in the place of each plain linear layer; parameters and names stay."""
    for part in list(network.modules()):
        for name, layer in list(part.named_children()):
            if type(layer) is nn.Linear:
                setattr(part, name, SteadyLinear.of(layer))


class PointwiseConv2d(nn.Conv2d):
    """A 1 x 1 convolution; without gradients on a CPU it is a product over the cells' channels."""

    def __init__(self, channels_in: int, channels_out: int, *, bias: bool = True) -> None:
        super().__init__(channels_in, channels_out, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, out, h, w); as a product it lies channels last."""
        if _is_plain(x):
            return super().forward(x)
        cells = x.permute(0, 2, 3, 1)
        return steady_linear(cells, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)

    @classmethod
    def of(cls, conv: nn.Conv2d) -> PointwiseConv2d:
        """Share the tensors of a 1 x 1 convolution of stride 1 without groups."""
        return _share(conv, lambda: cls(conv.in_channels, conv.out_channels, bias=conv.bias is not None))


class SteadyConv2d(nn.Conv2d):
    """A 3 x 3 convolution of stride 1; without gradients on a CPU it takes maps channels last, the smallest as rows."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, out, h, w)."""
        if _is_plain(x):
            return super().forward(x)
        b, _, h, w = x.shape
        if b * h * w >= _FEW_ROWS:
            cells = x.permute(0, 2, 3, 1).flatten(0, 2)  # a part of longer rows would pass for another layout
            return super().forward(cells.view(b, h, w, -1).permute(0, 3, 1, 2))
        patches = F.unfold(x, 3, padding=1).transpose(1, 2)  # (B, h w, 9 C)
        return steady_linear(patches, self.weight.flatten(1), self.bias).transpose(1, 2).reshape(b, -1, h, w)

    @classmethod
    def of(cls, conv: nn.Conv2d) -> SteadyConv2d:
        """Share the tensors of a 3 x 3 convolution of stride 1 and padding 1, with bias, without groups."""
        return _share(conv, lambda: cls(conv.in_channels, conv.out_channels))


class SteadyGroupNorm(nn.GroupNorm):
    """Group norm whose sums are taken strip by strip; torch's own shares them between threads on maps channels last.

    Strips stay in the cache, so it costs about two passes over the map more (8 ms beside 3 for 128 x 256 x 256, one
    thread); laying the map out plane by plane costs 15 to 40. It is nearer to float64 than torch's.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, h, w), float32 or bfloat16, to the same; sums are float64 over strips in float32."""
        if _is_plain(x) or x.is_contiguous():
            return super().forward(x)
        return torch.cat([self._normalise(image) for image in torch.split(x, 1)])

    def _normalise(self, x: Tensor) -> Tensor:
        """Normalise one map (1, C, h, w)."""
        cells = x.permute(0, 2, 3, 1).flatten(0, 2)
        total = torch.zeros(self.num_channels, dtype=torch.float64)
        squares = torch.zeros_like(total)
        for strip in torch.split(cells, _STRIP):
            values = strip.float()
            total += values.sum(0)
            squares += values.square().sum(0)
        per_group = len(cells) * self.num_channels // self.num_groups
        mean, mean_square = (_of_groups(sums, self.num_groups) / per_group for sums in (total, squares))
        variance = (mean_square - mean.square()).clamp(min=0)
        return F.batch_norm(x, mean.float(), variance.float(), self.weight, self.bias, training=False, eps=self.eps)


def _of_groups(sums: Tensor, groups: int) -> Tensor:
    """Give every channel (C,) its group's sum."""
    return sums.view(groups, -1).sum(1, keepdim=True).expand(-1, len(sums) // groups).flatten()
