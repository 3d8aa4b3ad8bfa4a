"""SAM's ViT image encoders, `sam-vit-b`, `sam-vit-l` and `sam-vit-h`: official parameters, a faster forward pass.

Source: segment-anything (commit dca509f, ``image_encoder.py``). The package's own ``ImageEncoderViT`` holds the
parameters and gives them their names, so official files load by name. The computation is ours: decomposed relative
positions without a stored bias (:mod:`rsgeoseg.backbones.attention`), weights prepared once for the device, bf16
products where the processor has them while residual stream, normalisations, patch embedding and neck stay fp32, and
the outputs of chosen blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn

from rsgeoseg.backbones.attention import blocked_attention, folded_attention, looked_up_attention, relative_table
from rsgeoseg.backbones.compiled import Compiled
from rsgeoseg.backbones.features import Encoder, EncoderSpec, Features, Level
from rsgeoseg.backbones.packed import PackedLinear, PackedNorm
from rsgeoseg.backbones.prepared import PIXEL_MEAN, PIXEL_STD, Precision, PreparedEncoder, run_prepared
from rsgeoseg.backbones.sam_checkpoint import split_sam_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["SIZES", "Precision", "SamSize", "SamVit", "build_sam_vit", "split_sam_checkpoint"]

SamSize = Literal["b", "l", "h"]
_POSITIONS_KEPT = 4  # grids whose position tables are remembered; a run sees one or two chip sizes


@dataclass(frozen=True, slots=True)
class _Size:
    """Dimensions of a published encoder."""

    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]


SIZES: dict[SamSize, _Size] = {
    "b": _Size(768, 12, 12, (2, 5, 8, 11)),
    "l": _Size(1024, 24, 16, (5, 11, 17, 23)),
    "h": _Size(1280, 32, 16, (7, 15, 23, 31)),
}


class _Block:
    """One transformer block of the package, prepared for a device and a number format."""

    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        attention = block.attn
        self.dtype = dtype
        self.window: int = block.window_size
        self.blocked: bool = attention.qkv.weight.device.type == "cpu"
        self.heads: int = attention.num_heads
        self.rel_pos = (attention.rel_pos_h.detach().float(), attention.rel_pos_w.detach().float())
        self.scale = float(attention.scale)
        self.norm1 = PackedNorm(block.norm1.weight, block.norm1.bias, block.norm1.eps, dtype)
        self.norm2 = PackedNorm(block.norm2.weight, block.norm2.bias, block.norm2.eps, dtype)
        # Queries come out already scaled; their relative positions are divided by the scale in exchange.
        width = attention.qkv.out_features // 3
        factor = torch.ones(3 * width, device=attention.qkv.weight.device)
        factor[:width] = self.scale
        weight, bias = attention.qkv.weight.detach().float(), attention.qkv.bias.detach().float()
        self.qkv = PackedLinear(weight * factor[:, None], bias * factor, dtype)
        self.proj = PackedLinear(attention.proj.weight, attention.proj.bias, dtype)
        self.lin1 = PackedLinear(block.mlp.lin1.weight, block.mlp.lin1.bias, dtype)
        self.lin2 = PackedLinear(block.mlp.lin2.weight, block.mlp.lin2.bias, dtype)

    def table(self, grid: tuple[int, int]) -> Tensor:
        """Relative positions for a token grid, (d, ...) as :func:`relative_bias` takes them."""
        sides = (self.window, self.window) if self.window else grid
        parts = [relative_table(rel, side) for rel, side in zip(self.rel_pos, sides, strict=True)]
        return (torch.cat(parts, dim=1) / self.scale).to(self.dtype)

    def __call__(self, x: Tensor, table: Tensor, *, compiled: bool = False) -> Tensor:
        """Transform tokens (B, h, w, C) fp32 into the same."""
        x = x + self.proj(self._attend(self.norm1(x), table, compiled=compiled))
        return x + self.lin2(self.lin1(self.norm2(x), gelu=True))

    def _attend(self, x: Tensor, table: Tensor, *, compiled: bool) -> Tensor:
        """Attention without its output projection, (B, h, w, C) to (B, h, w, C)."""
        if self.window:
            return self._attend_windows(x, table)
        b, h, w, c = x.shape
        qkv = self.qkv(x).view(b, h * w, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, h w, d)
        if compiled:
            attended = looked_up_attention(q, k, v, table, (h, w))
            return attended.transpose(1, 2).reshape(b, h, w, c)
        if self.blocked:
            out = x.new_empty((b, h * w, self.heads, c // self.heads))
            for image in range(b):
                blocked_attention(q[image], k[image], v[image], table, (h, w), out[image].transpose(0, 1))
            return out.view(b, h, w, c)
        out = folded_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), table, (h, w))
        return out.view(b, self.heads, h * w, -1).transpose(1, 2).reshape(b, h, w, c)

    def _attend_windows(self, x: Tensor, table: Tensor) -> Tensor:
        """Attention inside windows; padded tokens are zeros that still act as keys, as in the package."""
        b, h, w, c = x.shape
        side = self.window
        down, across = -(-h // side), -(-w // side)
        x = F.pad(x, (0, 0, 0, across * side - w, 0, down * side - h))
        x = x.view(b, down, side, across, side, c).transpose(2, 3).reshape(-1, side * side, c)
        qkv = self.qkv(x).view(len(x), side * side, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).reshape(3, len(x) * self.heads, side * side, -1)
        out = folded_attention(q, k, v, table, (side, side))
        out = out.view(b, down, across, self.heads, side, side, -1).permute(0, 1, 4, 2, 5, 3, 6)
        return out.reshape(b, down * side, across * side, c)[:, :h, :w]


class _Prepared:
    """The whole encoder, prepared for a device and a number format."""

    def __init__(self, vit: ImageEncoderViT, dtype: torch.dtype) -> None:
        patch = vit.patch_embed.proj
        self.patch: int = patch.kernel_size[0]
        # Pixels keep fp32: one product of 5 GFLOP, and bf16 would round 8-bit values.
        self.embed = PackedLinear(patch.weight.detach().flatten(1), patch.bias, torch.float32)
        self.pos_embed = vit.pos_embed.detach().float()
        self.blocks = [_Block(block, dtype) for block in vit.blocks]
        first, norm1, self.conv, norm2 = vit.neck
        self.reduce = PackedLinear(first.weight.detach().flatten(1), None, torch.float32)
        self.neck_norms = [PackedNorm(norm.weight, norm.bias, norm.eps, torch.float32) for norm in (norm1, norm2)]
        self._positions: dict[tuple[int, int], tuple[Tensor, list[Tensor]]] = {}
        self._compiled: Callable[..., tuple[Tensor, ...]] | None = None

    def compile(self) -> None:
        """Run compiled from now on; see :mod:`rsgeoseg.backbones.compiled`."""
        self._compiled = Compiled(partial(self._encode, compiled=True), self._encode)

    def positions(self, grid: tuple[int, int]) -> tuple[Tensor, list[Tensor]]:
        """Absolute positions (1, h, w, C) and one table per block, resized where the grid is not the trained one."""
        found = self._positions.get(grid)
        if found is None:
            found = resize_positions(self.pos_embed, grid), [block.table(grid) for block in self.blocks]
            if len(self._positions) >= _POSITIONS_KEPT:
                self._positions.clear()
            self._positions[grid] = found
        return found

    def __call__(self, images: Tensor, layers: Sequence[int]) -> tuple[Tensor, ...]:
        """Encode (B, 3, H, W); returns the embedding, then the outputs of ``layers``, all (B, C, h, w) fp32."""
        absolute, tables = self.positions((images.shape[2] // self.patch, images.shape[3] // self.patch))
        return (self._compiled or self._encode)(images, layers, absolute, tables)

    def _encode(
        self, images: Tensor, layers: Sequence[int], absolute: Tensor, tables: list[Tensor], *, compiled: bool = False
    ) -> tuple[Tensor, ...]:
        """The same with the positions of this size."""
        b, bands, height, width = images.shape
        p = self.patch
        h, w = height // p, width // p
        patches = images.float().reshape(b, bands, h, p, w, p).permute(0, 2, 4, 1, 3, 5).reshape(b, h, w, bands * p * p)
        x = self.embed(patches) + absolute
        kept: dict[int, Tensor] = {}
        for index, (block, table) in enumerate(zip(self.blocks, tables, strict=True)):
            x = block(x, table, compiled=compiled)
            if index in layers:
                kept[index] = x.permute(0, 3, 1, 2)
        x = self.neck_norms[0](self.reduce(x)).permute(0, 3, 1, 2)
        x = F.conv2d(x, self.conv.weight.float(), padding=1)
        x = self.neck_norms[1](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x, *(kept[index] for index in layers)


class SamVit(PreparedEncoder[_Prepared]):
    """A frozen SAM ViT encoder. Its parameters carry the names of official files (``image_encoder.*``).

    Args:
        image_encoder: the package's encoder; it is frozen and put in eval mode.
        name: backbone name for the spec.
        layers: zero-based indices of the blocks whose outputs are returned as ``Features.hidden``, ascending.
        image_size: largest square input side, pixels.
        precision: number format of the products inside the blocks; ``auto`` takes bf16 where the device multiplies
            it natively and fp32 elsewhere.

    Raises:
        ValueError: a layer index outside the network, or layers not ascending.
    """

    def __init__(
        self,
        image_encoder: ImageEncoderViT,
        *,
        name: str,
        layers: Sequence[int],
        image_size: int,
        precision: Precision = "auto",
    ) -> None:
        super().__init__(precision)
        depth = len(image_encoder.blocks)
        if list(layers) != sorted(set(layers)) or not all(0 <= index < depth for index in layers):
            msg = f"layers must ascend within 0..{depth - 1}, got {list(layers)}"
            raise ValueError(msg)
        self.image_encoder = image_encoder
        self.layers = tuple(layers)
        patch: int = image_encoder.patch_embed.proj.kernel_size[0]
        width: int = image_encoder.patch_embed.proj.out_channels
        self.spec = EncoderSpec(
            name=name,
            image_size=image_size,
            embedding=Level(image_encoder.neck[0].out_channels, patch),
            hidden=tuple(Level(width, patch) for _ in layers),
            mean=PIXEL_MEAN,
            std=PIXEL_STD,
            fixed_size=True,
        )
        self.requires_grad_(requires_grad=False)
        self.eval()

    def train(self, mode: bool = True) -> SamVit:  # noqa: ARG002
        """Stay in eval mode: the encoder is frozen."""
        super().train(mode=False)
        return self

    def forward(self, images: Tensor) -> Features:
        """Encode images; with a parameter that requires gradients, by the package's own blocks and with gradients.

        Args:
            images: (B, 3, H, W) float, normalised by ``spec.mean`` and ``spec.std``; H and W multiples of the patch
                side (16), at most ``spec.image_size``. On sizes other than the trained one absolute positions are
                resized bicubically and relative ones linearly.

        Returns:
            fp32 features whatever the precision inside; maps are views in channels-last order.

        Raises:
            ValueError: an image size the network cannot take.
        """
        self._check(images, self.spec.embedding.stride)
        if any(parameter.requires_grad for parameter in self.parameters()):
            return self._forward_package(images)
        embedding, *hidden = run_prepared(images, lambda part: self._weights(part.device)(part, self.layers))
        return Features(embedding, tuple(hidden))

    def _forward_package(self, images: Tensor) -> Features:
        """The same by the package's modules, with gradients."""
        self._forget()  # an optimiser changes parameters unseen
        vit: Any = self.image_encoder
        x = vit.patch_embed(images)
        x = x + resize_positions(vit.pos_embed, (x.shape[1], x.shape[2]))
        hidden = []
        for index, block in enumerate(vit.blocks):
            x = block(x)
            if index in self.layers:
                hidden.append(x.permute(0, 3, 1, 2))
        return Features(vit.neck(x.permute(0, 3, 1, 2)), tuple(hidden))

    def _prepare(self, dtype: torch.dtype) -> _Prepared:
        return _Prepared(self.image_encoder, dtype)


def resize_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize absolute positions (1, h, w, C) to another grid, bicubically; unchanged on their own."""
    if positions.shape[1:3] == grid:
        return positions
    resized = F.interpolate(positions.permute(0, 3, 1, 2), size=grid, mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).contiguous()


def build_sam_vit(
    size: SamSize,
    *,
    layers: Sequence[int] | None = None,
    image_size: int = 1024,
    table_size: int = 1024,
    checkpoint: Path | None = None,
    precision: Precision = "auto",
) -> Encoder:
    """Build a SAM image encoder.

    Args:
        size: ``b``, ``l`` or ``h``.
        layers: zero-based indices of the blocks whose outputs are returned as ``hidden``; default every second block
            from 0, as RSPrompter's released code takes them.
        image_size: largest square input side, pixels; smaller than ``table_size`` resizes the positions.
        table_size: side that the tables of positions are for, pixels: 1024 in all published files.
        checkpoint: a SAM file, see :func:`split_sam_checkpoint`; None = random weights.
        precision: see :class:`SamVit`.

    Returns:
        A frozen encoder in eval mode on the CPU.

    Raises:
        WeightsError: the file is missing, damaged, or holds another network.
    """
    chosen = range(0, SIZES[size].depth, 2) if layers is None else layers
    if checkpoint is None:
        vit = _package_encoder(SIZES[size], table_size)
    else:
        with torch.device("meta"):  # every value comes from the file: nothing to initialise
            vit = _package_encoder(SIZES[size], table_size)
        state = split_sam_checkpoint(checkpoint, f"sam-vit-{size}")["image_encoder"]
        # Copies: tensors may be mapped from the file, which someone may write over while the network lives.
        vit.load_state_dict({name: value.clone() for name, value in state.items()}, strict=True, assign=True)
    return SamVit(vit, name=f"sam-vit-{size}", layers=chosen, image_size=image_size, precision=precision)


def _package_encoder(shape: _Size, table_size: int) -> ImageEncoderViT:
    """The package's encoder with the constants of its ``build_sam.py``."""
    return ImageEncoderViT(
        depth=shape.depth,
        embed_dim=shape.width,
        img_size=table_size,
        mlp_ratio=4,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        num_heads=shape.heads,
        patch_size=16,
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=shape.global_blocks,
        window_size=14,
        out_chans=256,
    )
