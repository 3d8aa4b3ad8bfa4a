"""SAM's prompt encoder and mask decoder, run on many prompts of several images at once.

The parameters and their names are those of the segment-anything package (commit dca509f), so official files load by
name. The forward pass is ours: it takes prompt *embeddings*, which the package's predictor cannot, gathers the image of
each prompt, and draws only the masks that are asked for: RSPrompter wants the first alone (paper section IV-C),
everything mode those whose predicted quality is worth the drawing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from rsgeoseg.backbones.two_way import two_way
from rsgeoseg.nn.steady import steady_gelu

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

STRIDE = 16
"""Pixels per cell of the image embedding."""
SINGLE = slice(0, 1)
"""The mask token for prompts that leave no doubt."""
MULTIPLE = slice(1, 4)
"""The three mask tokens for a prompt that may mean a part, a thing, or a group."""


@dataclass(frozen=True, slots=True)
class Attended:
    """Prompts that have looked at their images; masks can be drawn from them."""

    tokens: Tensor
    """(P, T, C) decoded tokens, in the order of ``SamPromptedDecoder.forward``."""
    image: Tensor
    """(P, C, h, w) each prompt's image embedding."""
    image_index: Tensor
    """(P,) int64, which image a prompt belongs to."""
    skips: tuple[Tensor, Tensor] | None
    """(B, C/8, 4h, 4w) and (B, C/4, 2h, 2w), added while a mask is upscaled."""

    def at(self, prompts: Tensor) -> Attended:
        """Keep some prompts, by index (N,) int64."""
        return Attended(self.tokens[prompts], self.image[prompts], self.image_index[prompts], self.skips)


class SamPromptedDecoder(nn.Module):
    """Prompt encoder, positional encoding and mask decoder of SAM.

    Args:
        dim: channels of the image embedding; 256 in SAM, 128 in `lite`.
        mlp_dim: hidden width of the two-way transformer's MLP; 2048 in SAM.
        grid: side of the image embedding for a full-size image; positions are measured in it, so that a smaller image
            is the corner of a full one.
        skip_channels: channels of extra maps at stride 4 and 8 that are added while the mask is upscaled, as SAM 2's
            ``conv_s0`` and ``conv_s1`` do; None = SAM.
    """

    iou_token: ClassVar[int] = 0
    """Place of the quality token among the decoded tokens; the mask tokens follow it."""

    def __init__(
        self, *, dim: int = 256, mlp_dim: int = 2048, grid: int = 64, skip_channels: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        self.dim = dim
        self.grid = grid
        extent = grid * STRIDE
        self.prompt_encoder = PromptEncoder(
            embed_dim=dim, image_embedding_size=(grid, grid), input_image_size=(extent, extent), mask_in_chans=16
        )
        transformer = TwoWayTransformer(depth=2, embedding_dim=dim, mlp_dim=mlp_dim, num_heads=8)
        self.mask_decoder = MaskDecoder(transformer_dim=dim, transformer=transformer)
        if skip_channels is not None:
            self.conv_s0 = nn.Conv2d(skip_channels[0], dim // 8, 1)
            self.conv_s1 = nn.Conv2d(skip_channels[1], dim // 4, 1)

    def image_pe(self, height: int, width: int, origin: tuple[float, float] = (0.0, 0.0)) -> Tensor:
        """Random-Fourier positions of an embedding grid.

        Args:
            height: rows h of the grid.
            width: columns w of the grid.
            origin: x y of the image's corner inside the full-size frame, in cells.

        Returns:
            (1, C, h, w) float32.
        """
        device = self._frequencies.device
        xs = torch.arange(width, device=device, dtype=torch.float32) + 0.5 + origin[0]
        ys = torch.arange(height, device=device, dtype=torch.float32) + 0.5 + origin[1]
        cells = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1)  # (h, w, 2) x y
        return self._fourier(cells / self.grid).permute(2, 0, 1).unsqueeze(0)

    def sparse_prompts(
        self, *, points: Tensor | None = None, point_labels: Tensor | None = None, boxes: Tensor | None = None
    ) -> Tensor:
        """Embed points and boxes as SAM does.

        Points come before box corners; where there are points and no box, one "not a point" follows the points.

        Args:
            points: (P, N, 2) x y in pixels of the full-size frame; half a pixel is added, as in the package.
            point_labels: (P, N) int64: 1 = object, 0 = background, -1 = no point.
            boxes: (P, 4) x0 y0 x1 y1 in the same frame.

        Returns:
            (P, K, C) float32: K = N + 1, 2, or N + 2.

        Raises:
            ValueError: neither points nor boxes.
        """
        parts = [] if boxes is None else [self._corners(boxes)]
        if points is not None and point_labels is not None:
            nothing = [] if boxes is not None else [self._no_point(len(points))]
            parts = [self._labelled(points, point_labels), *nothing, *parts]
        if not parts:
            msg = "sparse prompts need points with labels, or boxes"
            raise ValueError(msg)
        return torch.cat(parts, dim=1)

    def _corners(self, boxes: Tensor) -> Tensor:
        """Embed the two corners of boxes (P, 4): (P, 2, C)."""
        labels = torch.tensor([2, 3], device=boxes.device).expand(len(boxes), 2)
        return self._labelled(boxes.reshape(-1, 2, 2), labels)

    def _no_point(self, count: int) -> Tensor:
        """Embed one "not a point" per prompt: (P, 1, C)."""
        weight: Tensor = self.prompt_encoder.not_a_point_embed.weight
        return weight.expand(count, 1, -1)

    def _labelled(self, points: Tensor, labels: Tensor) -> Tensor:
        """Embed points (P, N, 2) with labels (P, N): -1 none, 0 background, 1 object, 2 and 3 box corners."""
        table = torch.cat([part.weight for part in self.prompt_encoder.point_embeddings])
        placed = self._fourier((points.float() + 0.5) / (self.grid * STRIDE)) + table[labels.clamp(min=0)]
        return torch.where(labels.unsqueeze(-1) < 0, self.prompt_encoder.not_a_point_embed.weight, placed)

    @property
    def _frequencies(self) -> Tensor:
        matrix: Tensor = self.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
        return matrix

    def _fourier(self, coords: Tensor) -> Tensor:
        """Positions (..., 2) x y in [0, 1] to (..., C). Half precision would misplace a point by pixels."""
        with torch.autocast(coords.device.type, enabled=False):
            angles = 2 * math.pi * ((2 * coords - 1) @ self._frequencies)
            return torch.cat([angles.sin(), angles.cos()], dim=-1)

    def dense_prompts(self, coarse: Tensor) -> Tensor:
        """Coarse mask logits (P, 4h, 4w) through SAM's mask prompt encoder to (P, C, h, w); paper Eq. 7, Phi_p-enc."""
        dtype = _number_format(coarse)
        conv1, norm1, act1, conv2, norm2, act2, conv3 = self.prompt_encoder.mask_downscaling
        with torch.autocast(coarse.device.type, enabled=False):
            x = coarse.to(dtype).unsqueeze(1)
            x = act1(_norm2d(norm1, _conv(conv1, x)))
            x = act2(_norm2d(norm2, _conv(conv2, x)))
            return _conv(conv3, x)

    def no_mask(self) -> Tensor:
        """Dense prompt for "no mask given", (1, C, 1, 1)."""
        weight: Tensor = self.prompt_encoder.no_mask_embed.weight
        return weight.view(1, -1, 1, 1)

    def project_skips(self, skips: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Reduce an encoder's maps at stride 4 and 8 to what ``attend`` takes; once per image, not per prompt.

        Args:
            skips: (B, C0, 4h, 4w) and (B, C1, 2h, 2w).

        Returns:
            (B, C/8, 4h, 4w) and (B, C/4, 2h, 2w).
        """
        dtype = _number_format(skips[0])
        with torch.autocast(skips[0].device.type, enabled=False):
            return _conv(self.conv_s0, skips[0].to(dtype)), _conv(self.conv_s1, skips[1].to(dtype))

    def forward(
        self,
        embedding: Tensor,
        image_pe: Tensor,
        image_index: Tensor,
        sparse: Tensor,
        dense: Tensor,
        skips: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decode the first mask of every prompt.

        Args:
            embedding: (B, C, h, w) image embeddings.
            image_pe: (1, C, h, w) their positions.
            image_index: (P,) int64, which image a prompt belongs to.
            sparse: (P, K, C) prompt embeddings.
            dense: (P, C, h, w) or (1, C, 1, 1) dense prompt embeddings.
            skips: maps at stride 4 (B, C0, 4h, 4w) and 8 (B, C1, 2h, 2w) where the decoder has skip connections.

        Returns:
            Mask logits (P, 4h, 4w), and the decoded tokens (P, 5 + K, C): quality, four masks, prompts.
        """
        projected = None if skips is None else self.project_skips(skips)
        attended = self.attend(embedding, image_pe, image_index, sparse, dense, projected)
        return self.masks(attended, SINGLE).squeeze(1), attended.tokens

    def attend(
        self,
        embedding: Tensor,
        image_pe: Tensor,
        image_index: Tensor,
        sparse: Tensor,
        dense: Tensor,
        skips: tuple[Tensor, Tensor] | None = None,
    ) -> Attended:
        """Let prompts and images attend to each other; arguments as of ``forward`` but ``skips`` already projected."""
        dtype = _number_format(embedding)
        with torch.autocast(embedding.device.type, enabled=False):
            own = self._output_tokens().to(dtype).expand(len(sparse), -1, -1)
            tokens = torch.cat([own, sparse.to(dtype)], dim=1)
            source = _of_prompts(embedding.to(dtype), image_index) + dense.to(dtype)
            _, c, h, w = source.shape
            image = source.permute(0, 2, 3, 1).reshape(len(source), h * w, c)
            placed = image_pe[0].flatten(1).T.to(dtype)
            hidden, image = two_way(self.mask_decoder.transformer, image, placed, tokens)
            grid = image.reshape(len(sparse), h, w, c).permute(0, 3, 1, 2)  # channels last, as the tokens lie
        return Attended(hidden, grid, image_index, None if skips is None else (skips[0].to(dtype), skips[1].to(dtype)))

    def masks(self, attended: Attended, which: slice) -> Tensor:
        """Draw masks: logits (P, M, 4h, 4w) of the mask tokens ``which`` (``SINGLE``, ``MULTIPLE``, or all)."""
        decoder, first = self.mask_decoder, self.iou_token + 1
        with torch.autocast(attended.tokens.device.type, enabled=False):
            upscaled = self._upscale(attended)
            pairs = list(enumerate(decoder.output_hypernetworks_mlps))[which]
            kernels = torch.stack([_mlp(mlp, attended.tokens[:, first + i]) for i, mlp in pairs], dim=1)
            return torch.einsum("pmc,pchw->pmhw", kernels, upscaled)

    def qualities(self, tokens: Tensor) -> Tensor:
        """Predict each mask's IoU with what the prompt means: (P, 4) float32 from decoded tokens (P, T, C)."""
        with torch.autocast(tokens.device.type, enabled=False):
            return _mlp(self.mask_decoder.iou_prediction_head, tokens[:, self.iou_token].float())

    def iou(self, tokens: Tensor) -> Tensor:
        """Predict the IoU of the first mask alone, (P,); RSPrompter does not use it."""
        return self.qualities(tokens)[:, 0]

    def single(self, attended: Attended) -> tuple[Tensor, Tensor]:
        """Draw one mask per prompt, logits (P, 1, 4h, 4w), with its predicted IoU (P, 1)."""
        return self.masks(attended, SINGLE), self.qualities(attended.tokens)[:, SINGLE]

    def _output_tokens(self) -> Tensor:
        """Learned tokens that stand before the prompts, (5, C)."""
        return torch.cat([self.mask_decoder.iou_token.weight, self.mask_decoder.mask_tokens.weight])

    def _upscale(self, attended: Attended) -> Tensor:
        up1, norm1, _, up2, _ = self.mask_decoder.output_upscaling  # and GELU twice
        x = _double(up1, attended.image)
        if attended.skips is not None:  # order of SAM 2's mask decoder: add, then norm and activation
            x = x + _of_prompts(_like(attended.skips[1], x), attended.image_index)
        x = _double(up2, steady_gelu(_norm2d(norm1, x)))
        if attended.skips is not None:
            x = x + _of_prompts(_like(attended.skips[0], x), attended.image_index)
        return steady_gelu(x)


def _number_format(x: Tensor) -> torch.dtype:
    """Autocast's format where it is on, else the tensor's own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _of_prompts(maps: Tensor, image_index: Tensor) -> Tensor:
    """Each prompt's map; a single image's is left to broadcast instead of being copied for every prompt."""
    return maps if maps.shape[0] == 1 else maps[image_index]


def _like(x: Tensor, other: Tensor) -> Tensor:
    """Lay out ``x`` in memory as ``other`` is: sums of maps in different orders are several times slower."""
    last = other.is_contiguous(memory_format=torch.channels_last)
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _conv(layer: Any, x: Tensor) -> Tensor:
    """A convolution with its parameters in the number format of ``x``."""
    return F.conv2d(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype), stride=layer.stride)


def _double(layer: Any, x: Tensor) -> Tensor:
    """A 2 x 2 transposed convolution of stride 2, where every cell becomes four: with gradients, as a matrix product.

    The product needs a copy that the convolution does without, but its gradients take half to a third of the time.
    """
    if not x.requires_grad:
        return F.conv_transpose2d(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype), stride=layer.stride)
    b, _, h, w = x.shape
    weight = layer.weight.to(x.dtype).permute(2, 3, 1, 0).flatten(0, 2)  # (4 C', C)
    cells = F.linear(x.permute(0, 2, 3, 1), weight, layer.bias.to(x.dtype).repeat(4))
    shape = (2 * h, 2 * w, layer.out_channels)
    doubled = cells.view(b, h, w, 2, 2, shape[2]).transpose(2, 3).reshape(b, *shape)
    return doubled.permute(0, 3, 1, 2)  # channels last


def _mlp(mlp: Any, x: Tensor) -> Tensor:
    """The package's MLP, ReLU between its layers, in the number format of ``x``."""
    for index, layer in enumerate(mlp.layers):
        x = F.linear(x.relu() if index else x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))
    return x


def _norm2d(layer: Any, x: Tensor) -> Tensor:
    """SAM's LayerNorm2d, as a layer norm over channels that lie last."""
    rows = x.permute(0, 2, 3, 1)
    normed = F.layer_norm(rows, rows.shape[-1:], layer.weight.to(x.dtype), layer.bias.to(x.dtype), layer.eps)
    return normed.permute(0, 3, 1, 2)
