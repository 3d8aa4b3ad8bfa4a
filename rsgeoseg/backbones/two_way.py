"""SAM's two-way transformer on many prompts: the package's parameters, fewer passes over the image tokens.

The package (segment-anything ``transformer.py``) adds positions to the image tokens anew for every attention and
projects them three times per layer. A projection is linear, so positions are projected once for all prompts, and the
three projections of the image tokens are one matrix product; where all prompts look at one image, the first layer
projects it once. It is the same function. Tokens keep their number format from layer to layer: under autocast they
would go to float32 and back at every norm, so callers switch it off and cast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from rsgeoseg.nn.steady import steady_softmax

if TYPE_CHECKING:
    from torch import Tensor, nn


def two_way(transformer: nn.Module, image: Tensor, positions: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Let prompt tokens and image tokens attend to each other.

    Args:
        transformer: the package's ``TwoWayTransformer``.
        image: (P, L, C) image tokens of each prompt, or (1, L, C) that all prompts share.
        positions: (L, C) their positional encoding.
        tokens: (P, T, C) prompt tokens, which are their own positional encoding.

    Returns:
        Updated prompt tokens (P, T, C) and image tokens (P, L, C).
    """
    net: Any = transformer
    queries = tokens
    for layer in net.layers:
        queries, image = _layer(layer, queries, image, positions, tokens)
    final = net.final_attn_token_to_image
    keys = _linear(final.k_proj, image) + _linear(final.k_proj, positions, bias=False)
    looked = _attend(final, _linear(final.q_proj, queries + tokens), keys, _linear(final.v_proj, image))
    return norm(net.norm_final_attn, queries + looked), image


def _layer(layer: Any, queries: Tensor, image: Tensor, positions: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Self-attention, tokens to image, MLP, image to tokens; the order of SAM's ``TwoWayAttentionBlock``."""
    own = layer.self_attn
    placed = queries if layer.skip_first_layer_pe else queries + tokens
    talked = _attend(own, _linear(own.q_proj, placed), _linear(own.k_proj, placed), _linear(own.v_proj, queries))
    queries = norm(layer.norm1, talked if layer.skip_first_layer_pe else queries + talked)

    look, answer = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
    parts = (look.k_proj, look.v_proj, answer.q_proj)
    width = parts[0].out_features
    weight = torch.cat([part.weight for part in parts]).to(image.dtype)
    bias = torch.cat([part.bias for part in parts]).to(image.dtype)
    placed_k, placed_q = (_linear(part, positions, bias=False) for part in (look.k_proj, answer.q_proj))
    offset = torch.cat([placed_k, torch.zeros_like(placed_k), placed_q], -1) + bias
    keys, values, asks = torch.split(F.linear(image, weight) + offset, width, dim=-1)
    queries = norm(layer.norm2, queries + _attend(look, _linear(look.q_proj, queries + tokens), keys, values))

    mlp = layer.mlp
    queries = norm(layer.norm3, queries + _linear(mlp.lin2, mlp.act(_linear(mlp.lin1, queries))))
    told = _answer(answer, asks, _linear(answer.k_proj, queries + tokens), _linear(answer.v_proj, queries))
    return queries, norm(layer.norm4, image + told)


def _attend(attention: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Multi-head attention on projected (P or 1, N, C'), then the output projection."""
    heads = attention.num_heads
    count = len(key) if len(query) == 1 else len(query)
    parts = (x.expand(count, -1, -1) for x in (query, key, value))
    q, k, v = (x.unflatten(-1, (heads, x.shape[-1] // heads)).transpose(1, 2) for x in parts)  # type: ignore[no-untyped-call]
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return _linear(attention.out_proj, mixed)


def _answer(attention: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same for very many queries (P or 1, L, C') and a few keys (P, T, C').

    With heads of eight channels the fused kernel spends its time on bookkeeping. One product with the keys laid out
    block-diagonally, head by head, does redundant sums with zeros and is still faster in half precision on a CPU.
    Queries lie along the last axis, where a softmax over a few keys is vectorised: ten times faster than otherwise.
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or torch.is_grad_enabled():
        return _attend(attention, query, key, value)
    heads, width = attention.num_heads, query.shape[-1] // attention.num_heads
    blocks = torch.eye(heads, dtype=query.dtype).repeat_interleave(key.shape[1], 0).repeat_interleave(width, 1)
    keys, values = (x.repeat(1, heads, 1) * blocks for x in (key * width**-0.5, value))  # (P, heads T, C')
    scores = keys @ query.transpose(1, 2)
    weights = steady_softmax(scores.unflatten(1, (heads, key.shape[1]))).flatten(1, 2)
    return _linear(attention.out_proj, weights.transpose(1, 2) @ values)


def _linear(layer: Any, x: Tensor, *, bias: bool = True) -> Tensor:
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype) if bias else None)


def norm(layer: Any, x: Tensor) -> Tensor:
    """Layer norm over the last axis in the number format of ``x``, with the parameters of ``layer``."""
    return F.layer_norm(x, layer.normalized_shape, layer.weight.to(x.dtype), layer.bias.to(x.dtype), layer.eps)
