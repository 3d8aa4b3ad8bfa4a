"""SAM 2's image encoders, `sam2-hiera-t`, `-s`, `-b+` and `-l`: official parameters, a faster forward pass.

Source: facebookresearch/sam2 (``modeling/backbones/{hieradet,image_encoder}.py``, sizes from ``configs/sam2.1``).
SAM 2.0 and 2.1 have the same encoders. The package's own modules hold the parameters and give them their names. The
computation is ours: tokens stand in an order in which no window is ever cut out or padded
(:mod:`rsgeoseg.backbones.nested`); on a CPU the stages at strides 4 and 8, whose windows do not see each other, go
through a few windows at a time, so that their activations stay in the caches; weights are prepared once for the device,
and the products inside the blocks are bf16 where the processor has them, while residual stream, normalisations, patch
embedding and neck stay fp32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from rsgeoseg.backbones.attention import plain_attention
from rsgeoseg.backbones.compiled import Compiled
from rsgeoseg.backbones.features import EncoderSpec, Features, Level
from rsgeoseg.backbones.nested import Windows, finer, inverse, nested_order
from rsgeoseg.backbones.packed import PackedLinear, PackedNorm
from rsgeoseg.backbones.prepared import PIXEL_MEAN, PIXEL_STD, Precision, PreparedEncoder, run_prepared
from rsgeoseg.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HieraSize = Literal["t", "s", "b+", "l"]

EMBEDDING_CHANNELS = 256
COARSEST = 32
"""Stride of the deepest stage, pixels: image sides are multiples of it."""
_PER_CELL = (64, 16, 4, 1)  # tokens of each stage in one cell of stride 32
_CHUNK = 64  # cells that a CPU takes through the local blocks at a time: 4096 tokens at stride 4
_GRIDS_KEPT = 4  # grids whose token order is remembered; a run sees one or two chip sizes


@dataclass(frozen=True, slots=True)
class _Size:
    """Dimensions of a published encoder."""

    width: int
    """Channels at stride 4; they double from stage to stage, as the heads do."""
    heads: int
    stages: tuple[int, int, int, int]
    """Blocks at strides 4, 8, 16 and 32."""
    global_blocks: tuple[int, ...]
    windows: tuple[int, int, int, int] = (8, 4, 14, 7)
    background: int = 7
    """Side of the grid of learned positions that is stretched over the image."""


SIZES: dict[HieraSize, _Size] = {
    "t": _Size(96, 1, (1, 2, 7, 2), (5, 7, 9)),
    "s": _Size(96, 1, (1, 2, 11, 2), (7, 10, 13)),
    "b+": _Size(112, 2, (2, 3, 16, 3), (12, 16, 20), background=14),
    "l": _Size(144, 2, (2, 6, 36, 4), (23, 33, 43), windows=(8, 4, 16, 8)),
}


class _Block:
    """One transformer block of the package, prepared for a device and a number format.

    Args:
        block: the package's.
        dtype: of the products.
        stage: 0 to 3, of the tokens that come in.
    """

    def __init__(self, block: Any, dtype: torch.dtype, stage: int) -> None:
        attention = block.attn
        self.heads: int = attention.num_heads
        self.per_cell = _PER_CELL[stage]
        self.everywhere: bool = block.window_size == 0
        self.local = not self.everywhere and block.window_size**2 == self.per_cell
        self.pools: bool = block.q_stride is not None
        self.norm1 = PackedNorm(block.norm1.weight, block.norm1.bias, block.norm1.eps, dtype)
        self.norm2 = PackedNorm(block.norm2.weight, block.norm2.bias, block.norm2.eps, dtype)
        width = attention.qkv.out_features // 3
        factor = torch.ones(3 * width, device=attention.qkv.weight.device)
        factor[:width] = (width // self.heads) ** -0.5  # queries come out already scaled
        weight, bias = attention.qkv.weight.detach().float(), attention.qkv.bias.detach().float()
        self.qkv = PackedLinear(weight * factor[:, None], bias * factor, dtype)
        self.padded = bias[width:].to(dtype).view(2, 1, self.heads, 1, -1)  # key and value of a token of zeros
        self.proj = PackedLinear(attention.proj.weight, attention.proj.bias, dtype)
        self.widen = None if block.dim == block.dim_out else PackedLinear(block.proj.weight, block.proj.bias, dtype)
        lin1, lin2 = block.mlp.layers
        self.lin1 = PackedLinear(lin1.weight, lin1.bias, dtype)
        self.lin2 = PackedLinear(lin2.weight, lin2.bias, dtype)

    def __call__(self, x: Tensor, windows: Sequence[Windows]) -> Tensor:
        """Transform tokens (B, N, C) fp32 in nested order into (B, N or N/4, C or 2 C)."""
        normed = self.norm1(x)
        if self.widen is not None:
            x = self._pooled(self.widen(normed)).float()
        cells = normed.shape[1] // self.per_cell
        if self.everywhere:
            windows = (Windows(0, 1, cells),)
        elif self.local:
            windows = (Windows(0, cells, 1),)
        qkv = self.qkv(normed)
        parts = [self._attend(qkv, group) for group in windows]
        x = x + self.proj(parts[0] if len(parts) == 1 else torch.cat(parts, 1))
        return x.add_(self.lin2(self.lin1(self.norm2(x), gelu=True)))

    def _attend(self, qkv: Tensor, group: Windows) -> Tensor:
        """Attention inside windows of one shape, without its output projection."""
        tokens = qkv[:, group.start * self.per_cell : group.stop * self.per_cell]
        split = tokens.reshape(-1, group.cells * self.per_cell, 3, self.heads, qkv.shape[-1] // (3 * self.heads))
        q, k, v = split.permute(2, 0, 3, 1, 4)  # each (B windows, heads, tokens, d)
        bias = None
        if group.missing:
            # All padded tokens are one key, as often as there are: exp(score + log n) = n exp(score).
            k, v = (
                torch.cat([x, pad.expand(len(x), -1, -1, -1)], 2) for x, pad in zip((k, v), self.padded, strict=True)
            )
            bias = torch.zeros(k.shape[2], dtype=k.dtype, device=k.device)
            bias[-1] = math.log(group.missing * self.per_cell)
        q = self._pooled(q)
        return plain_attention(q, k, v, bias).reshape(len(qkv), -1, qkv.shape[-1] // 3)

    def _pooled(self, x: Tensor) -> Tensor:
        """Maximum over 2 x 2 cells, which are four consecutive tokens (..., N, C)."""
        return x.unflatten(-2, (-1, 4)).amax(-2) if self.pools else x  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class _Layout:
    """Token order on one grid."""

    order: Tensor
    """Row-major numbers of the cells at stride 4, in nested order."""
    places: tuple[Tensor, ...]
    """For each stage, the place of every cell in nested order."""
    positions: Tensor
    """Learned positions, (cells at stride 4, C), in nested order."""
    windows: tuple[Windows, ...]
    """Of the windowed blocks at strides 16 and 32."""


class _Prepared:
    """The whole encoder, prepared for a device and a number format."""

    def __init__(self, encoder: Any, no_memory: Tensor, dtype: torch.dtype) -> None:
        trunk, neck = encoder.trunk, encoder.neck
        self.patches = trunk.patch_embed.proj
        self.background, self.window = trunk.pos_embed.detach().float(), trunk.pos_embed_window.detach().float()
        self.side: int = trunk.window_spec[3]
        self.ends: list[int] = trunk.stage_ends
        stages = [sum(index > end + 1 for end in self.ends[:-1]) for index in range(len(trunk.blocks))]
        self.blocks = [_Block(block, dtype, stage) for block, stage in zip(trunk.blocks, stages, strict=True)]
        self.local = next(index for index, block in enumerate(self.blocks) if not block.local)
        # The neck stays fp32. It counts levels from the coarsest; stride 32 only feeds stride 16.
        laterals = [(level.conv.weight.detach().flatten(1), level.conv.bias.detach().float()) for level in neck.convs]
        laterals[1] = (laterals[1][0], laterals[1][1] + no_memory.detach().float().flatten())
        self.laterals = [PackedLinear(weight, bias, torch.float32) for weight, bias in reversed(laterals)]
        self._layouts: dict[tuple[int, int], _Layout] = {}
        self._compiled: Callable[[Tensor, _Layout], tuple[Tensor, ...]] | None = None

    def compile(self) -> None:
        """Run compiled from now on; see :mod:`rsgeoseg.backbones.compiled`."""
        self._compiled = Compiled(self._encode, self._encode)

    def layout(self, h: int, w: int) -> _Layout:
        """Token order for h x w cells of stride 32."""
        found = self._layouts.get((h, w))
        if found is None:
            device = self.background.device
            order, windows = nested_order(h, w, self.side)
            places = [inverse(order)]
            for level in range(3):
                order = finer(order, w << level)
                places.insert(0, inverse(order))
            stretched = F.interpolate(self.background, size=(8 * h, 8 * w), mode="bicubic")
            positions = (stretched + self.window.tile(1, 1, h, w)).flatten(2)[0].t()
            order = order.to(device)
            moved = tuple(place.to(device) for place in places)
            found = _Layout(order, moved, positions[order].contiguous(), windows)
            if len(self._layouts) >= _GRIDS_KEPT:
                self._layouts.clear()
            self._layouts[h, w] = found
        return found

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """Encode (B, 3, H, W); returns embedding, two skips and four hidden maps, all (B, C, h, w) fp32."""
        layout = self.layout(images.shape[2] // COARSEST, images.shape[3] // COARSEST)
        return (self._compiled or self._encode)(images, layout)

    def _encode(self, images: Tensor, layout: _Layout) -> tuple[Tensor, ...]:
        """The same with the token order of this size."""
        h, w = (side // COARSEST for side in images.shape[2:])
        pixels = images.float().contiguous(memory_format=torch.channels_last)
        conv = self.patches
        patches = F.conv2d(pixels, conv.weight.float(), conv.bias.float(), conv.stride, conv.padding)
        rows = patches.permute(0, 2, 3, 1).flatten(1, 2)
        whole = _PER_CELL[0] * (_CHUNK if images.device.type == "cpu" else h * w)
        parts = []
        for order, positions in zip(
            torch.split(layout.order, whole), torch.split(layout.positions, whole), strict=True
        ):
            parts.append(self._blocks(rows[:, order] + positions, range(self.local), ()))
        x, *early = (torch.cat(columns, 1) for columns in zip(*parts, strict=True))
        _, *late = self._blocks(x, range(self.local, len(self.blocks)), layout.windows)
        maps = []
        for level, (tokens, places) in enumerate(zip((*early, *late), layout.places, strict=True)):
            stride = 8 >> level
            maps.append(tokens[:, places].unflatten(1, (stride * h, stride * w)))  # type: ignore[no-untyped-call]
        fine, middle, deep, deepest = (lateral(x) for lateral, x in zip(self.laterals, maps, strict=True))
        embedding = deep.view(len(deep), h, 2, w, 2, -1) + deepest[:, :, None, :, None]  # nearest neighbour
        return tuple(x.permute(0, 3, 1, 2) for x in (embedding.flatten(3, 4).flatten(1, 2), fine, middle, *maps))

    def _blocks(self, x: Tensor, blocks: range, windows: Sequence[Windows]) -> tuple[Tensor, ...]:
        """Take tokens through some blocks; returns the last result, then those at the ends of stages."""
        kept = []
        for index in blocks:
            x = self.blocks[index](x, windows)
            if index in self.ends:
                kept.append(x)
        return x, *kept


class Sam2Hiera(PreparedEncoder[_Prepared]):
    """A SAM 2 image encoder. Its parameters carry the names of official files (``image_encoder.*``, ``no_mem_embed``).

    It is built frozen and then runs without gradients. With a parameter that requires them, the package's own forward
    pass runs instead, in the caller's number format.

    Args:
        image_encoder: the package's ``ImageEncoder`` of a Hiera trunk and its neck.
        name: backbone name for the spec.
        image_size: largest square input side, pixels.
        precision: number format of the products inside the blocks; ``auto`` takes bf16 where the device multiplies
            it natively and fp32 elsewhere.

    Raises:
        ValueError: the precision is unknown.
    """

    def __init__(self, image_encoder: nn.Module, *, name: str, image_size: int, precision: Precision = "auto") -> None:
        super().__init__(precision)
        self.image_encoder: Any = image_encoder
        self.no_mem_embed = nn.Parameter(torch.empty(1, 1, EMBEDDING_CHANNELS))
        nn.init.trunc_normal_(self.no_mem_embed, std=0.02)
        parts: Any = image_encoder
        widths = parts.trunk.channel_list[::-1]
        self.spec = EncoderSpec(
            name=name,
            image_size=image_size,
            embedding=Level(EMBEDDING_CHANNELS, 16),
            hidden=tuple(Level(width, 4 << stage) for stage, width in enumerate(widths)),
            mean=PIXEL_MEAN,
            std=PIXEL_STD,
            skips=(Level(EMBEDDING_CHANNELS, 4), Level(EMBEDDING_CHANNELS, 8)),
            fixed_size=True,
        )
        self.requires_grad_(requires_grad=False)
        self.eval()

    def forward(self, images: Tensor) -> Features:
        """Encode images.

        Args:
            images: (B, 3, H, W) float, normalised by ``spec.mean`` and ``spec.std``; H and W multiples of 32, at most
                ``spec.image_size``. Positions are stretched over the image, whatever its size.

        Returns:
            Outputs of the four stages; neck maps at strides 4 and 8 as they are before the mask decoder's ``conv_s0``
            and ``conv_s1``; and the neck map at stride 16 plus ``no_mem_embed``, as ``SAM2ImagePredictor`` gives it to
            the decoder. Frozen: fp32 whatever the precision inside, views in channels-last order.

        Raises:
            ValueError: an image size the network cannot take.
        """
        self._check(images, COARSEST)
        if any(parameter.requires_grad for parameter in self.parameters()):
            return self._forward_package(images)
        maps = run_prepared(images, lambda part: self._weights(part.device)(part))
        return Features(embedding=maps[0], hidden=maps[3:], skips=(maps[1], maps[2]))

    def _forward_package(self, images: Tensor) -> Features:
        """The same by the package's modules, with gradients."""
        self._forget()  # an optimiser changes parameters unseen
        hidden = self.image_encoder.trunk(images)
        fine, middle, deep, _ = self.image_encoder.neck(hidden)[0]
        embedding = deep + self.no_mem_embed.view(1, -1, 1, 1)
        return Features(embedding=embedding, hidden=tuple(hidden), skips=(fine, middle))

    def _prepare(self, dtype: torch.dtype) -> _Prepared:
        return _Prepared(self.image_encoder, self.no_mem_embed, dtype)


def build_sam2_hiera(size: HieraSize, *, image_size: int = 1024, precision: Precision = "auto") -> Sam2Hiera:
    """Build a SAM 2 image encoder with random weights.

    Args:
        size: ``t``, ``s``, ``b+`` or ``l``.
        image_size: largest square input side, pixels.
        precision: see :class:`Sam2Hiera`.

    Returns:
        A frozen encoder in eval mode on the CPU.

    Raises:
        ModelError: the package sam2 is not installed.
    """
    try:
        from sam2.modeling.backbones.hieradet import Hiera  # noqa: PLC0415  (an extra: needed here alone)
        from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder  # noqa: PLC0415
    except ImportError as error:
        msg = "SAM 2 encoders need the package sam2; install it with: pip install 'rsgeoseg[sam2]'"
        raise ModelError(msg) from error
    shape = SIZES[size]
    trunk = Hiera(
        embed_dim=shape.width,
        num_heads=shape.heads,
        stages=shape.stages,
        global_att_blocks=shape.global_blocks,
        window_pos_embed_bkg_spatial_size=(shape.background, shape.background),
        window_spec=shape.windows,
    )
    neck = FpnNeck(
        position_encoding=nn.Identity(),  # for video memory; it holds no parameters
        d_model=EMBEDDING_CHANNELS,
        backbone_channel_list=trunk.channel_list,
        fpn_top_down_levels=[2, 3],
        fpn_interp_model="nearest",
    )
    encoder = ImageEncoder(trunk, neck, scalp=1)
    return Sam2Hiera(encoder, name=f"sam2-hiera-{size}", image_size=image_size, precision=precision)
