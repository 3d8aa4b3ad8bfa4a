"""RSPrompter's multi-scale feature enhancer: aggregator and splitter (paper section III-B2, Eq. 3).

Facts of the released code: KyanChen/RSPrompter branch release, commit f4e73c3, ``RSFeatureAggregator`` and
``RSSimpleFPN``. Where code and paper differ, ``numerics`` chooses. Module names follow the released layout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)
from torchvision.ops import FeaturePyramidNetwork

from rsgeoseg.nn.norm import LayerNorm2d
from rsgeoseg.nn.steady import SteadyGroupNorm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

Numerics = Literal["paper", "released"]
Aggregate = Literal["blocks", "embedding"]
"""What the enhancer reads of a plain ViT: the outputs of many blocks (paper), or the image embedding alone (the
released code's configs with LoRA)."""


def _conv_norm_act(channels_in: int, channels_out: int, kernel: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    ]


class FeatureAggregator(nn.Module):
    """Many same-sized maps of a plain ViT to one (Eq. 3).

    Paper: ``m_1 = F'_1``, ``m_i = m_(i-1) + conv(m_(i-1)) + F'_i``, fusion by two 3x3 and one 1x1 convolution.
    Released code: the convolution acts on ``m_(i-1) + F'_i`` and also on the first map; fusion is 1x1, 3x3, 3x3. Batch
    norm stands behind every convolution but the last in both (the paper writes Conv-ReLU; without a norm the recursion
    doubles at every step).

    Args:
        channels_in: channels of each input map, in order.
        channels: output channels.
        hidden: width of the recursion, 32 in the paper.
        numerics: "paper" or "released".
    """

    def __init__(
        self, channels_in: Sequence[int], *, channels: int = 256, hidden: int = 32, numerics: Numerics = "paper"
    ) -> None:
        super().__init__()
        self.numerics = numerics
        self.downconvs = nn.ModuleList(
            nn.Sequential(*_conv_norm_act(c, hidden, 1), *_conv_norm_act(hidden, hidden, 3)) for c in channels_in
        )
        steps = len(channels_in) if numerics == "released" else len(channels_in) - 1
        self.hidden_convs = nn.ModuleList(nn.Sequential(*_conv_norm_act(hidden, hidden, 3)) for _ in range(steps))
        if numerics == "released":
            fusion = [
                *_conv_norm_act(hidden, channels, 1),
                *_conv_norm_act(channels, channels, 3),
                nn.Conv2d(channels, channels, 3, padding=1),
            ]
        else:
            fusion = [
                *_conv_norm_act(hidden, hidden, 3),
                *_conv_norm_act(hidden, hidden, 3),
                nn.Conv2d(hidden, channels, 1),
            ]
        self.fusion_conv = nn.Sequential(*fusion)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Aggregate maps (B, C_i, h, w) to (B, channels, h, w)."""
        reduced = [down(x) for down, x in zip(self.downconvs, maps, strict=True)]
        if self.numerics == "paper":
            state = reduced[0]
            for conv, x in zip(self.hidden_convs, reduced[1:], strict=True):
                state = state + conv(state) + x
        else:
            state = 0
            for conv, x in zip(self.hidden_convs, reduced, strict=True):
                state = state + x
                state = state + conv(state)
        fused: Tensor = self.fusion_conv(state)
        return fused


class _ConvNorm(nn.Module):
    """Convolution without bias and layer norm, named as the released layout names them."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False)
        self.norm_layer = LayerNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm_layer(self.conv(x))
        return normed


class FeatureSplitter(nn.Module):
    """One stride-16 map to five maps at strides 4, 8, 16, 32, 64 (paper section III-B2, "Feature Splitter").

    Args:
        channels: channels of the input and of every output.
    """

    def __init__(self, channels: int = 256) -> None:
        super().__init__()
        half, quarter = channels // 2, channels // 4
        self.fpn1 = nn.Sequential(
            nn.ConvTranspose2d(channels, half, 2, stride=2),
            LayerNorm2d(half),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, stride=2),
        )
        self.fpn2 = nn.Sequential(nn.ConvTranspose2d(channels, half, 2, stride=2))
        widths = (quarter, half, channels, channels)
        self.lateral_convs = nn.ModuleList(_ConvNorm(width, channels, 1) for width in widths)
        self.fpn_convs = nn.ModuleList(_ConvNorm(channels, channels, 3) for _ in widths)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Split (B, C, h, w) at stride 16 into five maps, fine to coarse."""
        scales = [self.fpn1(x), self.fpn2(x), x, F.max_pool2d(x, 2)]
        maps = [
            fpn(lateral(scale)) for lateral, fpn, scale in zip(self.lateral_convs, self.fpn_convs, scales, strict=True)
        ]
        maps.append(maps[-1][..., ::2, ::2])
        return maps


class PlainEnhancer(nn.Module):
    """Aggregator and splitter in a row: the paper's enhancer for a plain ViT."""

    def __init__(self, channels_in: Sequence[int], *, channels: int = 256, numerics: Numerics = "paper") -> None:
        super().__init__()
        self.feature_aggregator = FeatureAggregator(channels_in, channels=channels, numerics=numerics)
        self.feature_spliter = FeatureSplitter(channels)
        self.channels = (channels,) * 5

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Turn same-sized maps (B, C_i, h, w) into five maps at strides 4 to 64."""
        split: list[Tensor] = self.feature_spliter(self.feature_aggregator(maps))
        return split


class EmbeddingAggregator(nn.Module):
    """The image embedding through three convolutions with layer norms between, in place of the aggregator.

    Source: ``PseudoFeatureAggregator`` of the released code (f4e73c3, ``rsprompter_*-peft-512.py``).

    Args:
        channels: of the embedding and of the output.
        hidden: channels between.
    """

    def __init__(self, channels: int = 256, *, hidden: int = 512) -> None:
        super().__init__()
        self.channel_fusion = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False),
            LayerNorm2d(hidden),
            nn.Conv2d(hidden, hidden, 3, padding=1, bias=False),
            LayerNorm2d(hidden),
            nn.Conv2d(hidden, channels, 3, padding=1, bias=False),
            LayerNorm2d(channels),
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Transform the one map (B, channels, h, w)."""
        (embedding,) = maps
        fused: Tensor = self.channel_fusion(embedding)
        return fused


class EmbeddingEnhancer(nn.Module):
    """Aggregator of the embedding alone, and splitter; names as in :class:`PlainEnhancer`."""

    def __init__(self, channels: int = 256) -> None:
        super().__init__()
        self.feature_aggregator = EmbeddingAggregator(channels)
        self.feature_spliter = FeatureSplitter(channels)
        self.channels = (channels,) * 5

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Turn the one map (B, channels, h, w) at stride 16 into five maps at strides 4 to 64."""
        split: list[Tensor] = self.feature_spliter(self.feature_aggregator(maps))
        return split


class PyramidEnhancer(nn.Module):
    """The enhancer for an encoder that is a pyramid already: its own maps, and one more at stride 64.

    A plain ViT has one resolution, which the paper's aggregator joins and its splitter spreads again; the stages of a
    CNN or of Hiera are those scales, so only the coarsest one is missing.
    """

    def __init__(self, channels_in: Sequence[int], *, channels: int) -> None:
        super().__init__()
        self.coarsest = nn.Sequential(
            nn.Conv2d(channels_in[-1], channels, 3, stride=2, padding=1), SteadyGroupNorm(32, channels), nn.ReLU()
        )
        self.channels = (*channels_in, channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Append a stride-64 map to (B, C_i, h_i, w_i) at strides 4, 8, 16, 32."""
        return [*maps, self.coarsest(maps[-1])]


class PyramidFpn(nn.Module):
    """The enhancer of a two-stage detector on an encoder that is a pyramid already: torchvision's FPN.

    Five maps of equal width at strides 4, 8, 16, 32, 64, as the paper's splitter gives.

    Args:
        channels_in: channels at strides 4, 8, 16, 32.
        channels: of every output.
    """

    def __init__(self, channels_in: Sequence[int], *, channels: int) -> None:
        super().__init__()
        self.fpn = FeaturePyramidNetwork(list(channels_in), channels, norm_layer=LayerNorm2d)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Turn (B, C_i, h_i, w_i) into five maps."""
        levels = list(self.fpn({str(index): x for index, x in enumerate(maps)}).values())
        return [*levels, levels[-1][..., ::2, ::2]]
