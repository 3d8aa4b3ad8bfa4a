"""SAM's prompt encoder and mask decoder, run on many learned prompts of several images at once.

The parameters and their names are those of the segment-anything package (commit dca509f), so official files load by
name. The forward pass is ours: it takes prompt *embeddings*, which the package's predictor cannot, gathers the image
of each prompt, computes mask token 0 alone (RSPrompter uses the first mask only, paper section IV-C) and skips the
unused heads.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from rsgeoseg.backbones.two_way import two_way

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class SamPromptedDecoder(nn.Module):
    """Dense-prompt encoder, positional encoding and mask decoder of SAM.

    Args:
        dim: channels of the image embedding; 256 in SAM, 128 in `lite`.
        mlp_dim: hidden width of the two-way transformer's MLP; 2048 in SAM.
        grid: side of the image embedding for a full-size image; positions are measured in it, so that a smaller image
            is the corner of a full one.
        skip_channels: channels of extra maps at stride 4 and 8 that are added while the mask is upscaled, as SAM 2's
            ``conv_s0`` and ``conv_s1`` do; None = SAM.
    """

    def __init__(
        self, *, dim: int = 256, mlp_dim: int = 2048, grid: int = 64, skip_channels: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        self.dim = dim
        self.grid = grid
        self.prompt_encoder = PromptEncoder(
            embed_dim=dim, image_embedding_size=(grid, grid), input_image_size=(grid * 16, grid * 16), mask_in_chans=16
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
        matrix = self.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
        xs = (torch.arange(width, device=matrix.device, dtype=torch.float32) + 0.5 + origin[0]) / self.grid
        ys = (torch.arange(height, device=matrix.device, dtype=torch.float32) + 0.5 + origin[1]) / self.grid
        coords = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1)  # (h, w, 2) x y
        angles = 2 * math.pi * ((2 * coords - 1) @ matrix)
        return torch.cat([angles.sin(), angles.cos()], dim=-1).permute(2, 0, 1).unsqueeze(0)

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
            Mask logits (P, 4h, 4w), and the decoded tokens (P, 5 + K, C), whose first is the IoU token.
        """
        dtype = _number_format(embedding)
        with torch.autocast(embedding.device.type, enabled=False):
            return self._decode(
                embedding.to(dtype),
                image_pe.to(dtype),
                image_index,
                sparse.to(dtype),
                dense.to(dtype),
                None if skips is None else [skip.to(dtype) for skip in skips],
            )

    def _decode(
        self,
        embedding: Tensor,
        image_pe: Tensor,
        image_index: Tensor,
        sparse: Tensor,
        dense: Tensor,
        skips: Sequence[Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        decoder = self.mask_decoder
        count = sparse.shape[0]
        output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).to(sparse.dtype)
        tokens = torch.cat([output_tokens.unsqueeze(0).expand(count, -1, -1), sparse], dim=1)
        source = _of_prompts(embedding, image_index) + dense
        _, c, h, w = source.shape
        image = source.permute(0, 2, 3, 1).reshape(len(source), h * w, c).expand(count, -1, -1)
        hidden, image = two_way(decoder.transformer, image, image_pe[0].flatten(1).T, tokens)
        source = image.reshape(count, h, w, c).permute(0, 3, 1, 2)  # channels last, as the tokens lie
        up1, norm1, act1, up2, act2 = decoder.output_upscaling
        if skips is None:
            upscaled = act2(_conv(up2, act1(_norm2d(norm1, _conv(up1, source)))))
        else:  # order of SAM 2's mask decoder: add, then norm and activation
            rough = _conv(up1, source)
            middle = _of_prompts(_like(_conv(self.conv_s1, skips[1]), rough), image_index)
            smooth = _conv(up2, act1(_norm2d(norm1, rough + middle)))
            fine = _of_prompts(_like(_conv(self.conv_s0, skips[0]), smooth), image_index)
            upscaled = act2(smooth + fine)
        x = hidden[:, 1]
        layers = decoder.output_hypernetworks_mlps[0].layers
        for index, layer in enumerate(layers):
            x = F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))
            x = x.relu() if index < len(layers) - 1 else x
        return torch.einsum("pc,pchw->phw", x, upscaled), hidden

    def iou(self, tokens: Tensor) -> Tensor:
        """SAM's own quality estimate of mask 0, (P,), from the decoded tokens; RSPrompter does not use it."""
        scores: Tensor = self.mask_decoder.iou_prediction_head(tokens[:, 0].float())
        return scores[:, 0]


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
    """A convolution or transposed convolution with its parameters in the number format of ``x``."""
    run = F.conv_transpose2d if isinstance(layer, nn.ConvTranspose2d) else F.conv2d
    return run(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype), stride=layer.stride)


def _norm2d(layer: Any, x: Tensor) -> Tensor:
    """SAM's LayerNorm2d, as a layer norm over channels that lie last."""
    rows = x.permute(0, 2, 3, 1)
    normed = F.layer_norm(rows, rows.shape[-1:], layer.weight.to(x.dtype), layer.bias.to(x.dtype), layer.eps)
    return normed.permute(0, 3, 1, 2)
