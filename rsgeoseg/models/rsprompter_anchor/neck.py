"""The feature enhancer of the 2023 generation, whose weights are public.

Source: KyanChen/RSPrompter, branches lightning and huggingface (2023), ``SAMAggregatorNeck``. It differs from the
paper and from the code of 2024: maps are halved to stride 32 first, joined there, and enlarged again to strides 16
and 8. Module names follow the published files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence


class _ConvNorm(nn.Module):
    """Convolution without bias, batch norm, and a ReLU unless told otherwise."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, act: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(channels_out)
        self.act = nn.ReLU(inplace=True) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.bn(self.conv(x)))
        return y


class Enhancer2023(nn.Module):
    """Many stride-16 maps of a plain ViT to three maps at strides 8, 16, 32.

    Args:
        channels_in: channels of each input map, in order.
        channels: of every output.
        hidden: width of the recursion.
    """

    def __init__(self, channels_in: Sequence[int], *, channels: int = 256, hidden: int = 32) -> None:
        super().__init__()
        self.down_sample_layers = nn.ModuleList(
            nn.Sequential(_ConvNorm(c, hidden, 1), _ConvNorm(hidden, hidden, 3, stride=2)) for c in channels_in
        )
        self.fusion_layers = nn.ModuleList(_ConvNorm(hidden, hidden, 3) for _ in channels_in)
        self.up_layers = nn.ModuleList(
            [
                nn.Sequential(_ConvNorm(hidden, hidden, 3), _ConvNorm(hidden, hidden, 3)),
                _ConvNorm(hidden, channels, 1, act=False),
            ]
        )
        enlarge = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.up_sample_layers = nn.ModuleList(
            [
                nn.Sequential(enlarge, _ConvNorm(channels, channels, 3), _ConvNorm(channels, channels, 3)),
                enlarge,
                nn.Sequential(enlarge, _ConvNorm(channels, channels, 3), _ConvNorm(channels, channels, 3)),
                enlarge,
            ]
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Turn same-sized maps (B, C_i, h, w) into maps (B, channels, ...) at strides 8, 16, 32."""
        state: Tensor | float = 0.0
        for down, fuse, x in zip(self.down_sample_layers, self.fusion_layers, maps, strict=True):
            joined = state + down(x)
            state = joined + fuse(joined)
        joined = self.up_layers[1](state + self.up_layers[0](state))
        levels = [joined]
        for convs, skip in ((self.up_sample_layers[0], self.up_sample_layers[1]), (*self.up_sample_layers[2:],)):
            levels.insert(0, convs(levels[0]) + skip(levels[0]))
        return levels
