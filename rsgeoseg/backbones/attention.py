"""Attention with decomposed relative positions (SAM's ViT), whose bias is never stored for a whole image.

With query pixel (y, x) and key pixel (v, u) the score is ``q.k + q.Rh[y - v] + q.Rw[x - u]``. The products ``q.R`` of
all distances come from one small matrix product; row y of them, shifted by y, is the bias towards key rows 0, 1, ...
(a strided view, no gather). Three exact ways to add it:

* *folded*: ``q' = [q, q.Rh, q.Rw]``, ``k' = [k, onehot(v), onehot(u)]``, so that ``q'.k'`` is the whole score and any
  plain attention kernel does the rest. Used for windows, and for whole images on accelerators.
* *looked up*: a compiled kernel adds ``q.Rh[y - v]`` and ``q.Rw[x - u]`` to each tile of scores as it makes it. Used
  for whole images in compiled encoders (:mod:`rsgeoseg.backbones.compiled`): a third of the folded form's products.
* *blocked*: a block of query rows at a time, small enough to stay in cache, starts from its bias and the product is
  accumulated onto it. Used for whole images on a CPU, where the extra 2 x 64 columns of the folded form cost more than
  the product itself and torch's own attention kernel runs bf16 at the speed of fp32 unless the CPU has AMX.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

BLOCK_QUERIES = 512
"""Queries per block: 512 x 4096 bf16 scores are 4 MB, fastest of 256-2048 on a CPU with 1 MB of L2 cache a core."""

_ALIGNED = 8  # numbers in 16 bytes of bf16


def relative_table(rel_pos: Tensor, size: int) -> Tensor:
    """Turn a learned table of relative positions around, resized to a side, ready for a matrix product.

    Args:
        rel_pos: (2 n - 1, d) float; entry i belongs to the distance query - key = i - (n - 1).
        size: side of the token grid along this axis.

    Returns:
        (d, 2 size - 1): column j belongs to key - query = j - (size - 1). Linear interpolation where
        ``size != n``, as the segment-anything package does.
    """
    length = 2 * size - 1
    columns = rel_pos.t().unsqueeze(0)
    if rel_pos.shape[0] != length:
        columns = F.interpolate(columns, size=length, mode="linear")
    return columns[0].flip(1).contiguous()


def relative_bias(q: Tensor, table: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Multiply queries with the relative positions of every key row and column.

    Args:
        q: (n, h w, d) queries.
        table: (d, (2 h - 1) + (2 w - 1)): :func:`relative_table` of rows and columns, side by side.
        grid: h, w in tokens.

    Returns:
        Two views, towards key rows (n, h, w, h) and towards key columns (n, h, w, w).
    """
    h, w = grid
    products = (q @ table).contiguous()
    batch, row = products.stride(0), products.stride(1)
    start = products.storage_offset()
    # The bias of query row y starts y entries further left, so stepping a row down also steps one entry back.
    to_rows = products.as_strided((len(q), h, w, h), (batch, w * row - 1, row, 1), start + h - 1)
    to_columns = products.as_strided((len(q), h, w, w), (batch, w * row, row - 1, 1), start + 2 * h - 1 + w - 1)
    return to_rows, to_columns


def fold(q: Tensor, k: Tensor, table: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Fold the relative positions into longer queries and keys.

    Args:
        q: (n, h w, d) queries, already scaled.
        k: (n, h w, d) keys.
        table: as in :func:`relative_bias`.
        grid: h, w in tokens.

    Returns:
        ``q'`` and ``k'``, each (n, h w, D), whose product is the score with its bias; D is d + h + w and as many zeros
        as make it a multiple of 8, without which an accelerator's fused kernels refuse it.
    """
    h, w = grid
    d = q.shape[-1]
    to_rows, to_columns = relative_bias(q, table, grid)
    width = d + h + w
    long_q, long_k = (x.new_empty((len(x), h, w, width + -width % _ALIGNED)) for x in (q, k))
    long_q[..., :d] = q.reshape(-1, h, w, d)
    long_q[..., d : d + h] = to_rows
    long_q[..., d + h : width] = to_columns
    long_k[..., :d] = k.reshape(-1, h, w, d)
    long_k[..., d : d + h] = torch.eye(h, dtype=k.dtype, device=k.device)[:, None, :]
    long_k[..., d + h : width] = torch.eye(w, dtype=k.dtype, device=k.device)
    long_q[..., width:], long_k[..., width:] = 0, 0
    return long_q.flatten(1, 2), long_k.flatten(1, 2)


def folded_attention(q: Tensor, k: Tensor, v: Tensor, table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Attend with the folded form.

    Args:
        q: (n, h w, d) queries, already scaled.
        k: (n, h w, d) keys.
        v: (n, h w, d) values.
        table: as in :func:`relative_bias`.
        grid: h, w in tokens.

    Returns:
        (n, h w, d).
    """
    long_q, long_k = fold(q, k, table, grid)
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # Batched oneDNN products; torch's attention kernel needs AMX to be fast in bf16.
        return torch.bmm(torch.softmax(torch.bmm(long_q, long_k.transpose(1, 2)), -1), v)
    # The fused kernels of CPU and CUDA want values as long as the keys, else slow ones take their place.
    padded = F.pad(v, (0, long_k.shape[-1] - v.shape[-1]))
    long = F.scaled_dot_product_attention(long_q[None], long_k[None], padded[None], scale=1.0)
    return long[0, ..., : v.shape[-1]]


def looked_up_attention(q: Tensor, k: Tensor, v: Tensor, table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Attend with a kernel that looks the bias up; only inside ``torch.compile`` it is one, and fast.

    Args:
        q: (b, heads, h w, d) queries, already scaled.
        k: (b, heads, h w, d) keys.
        v: (b, heads, h w, d) values.
        table: as in :func:`relative_bias`.
        grid: h, w in tokens.

    Returns:
        (b, heads, h w, d).
    """
    from torch.nn.attention.flex_attention import flex_attention  # noqa: PLC0415  (slow to import; compiled use alone)

    h, w = grid
    to_rows, to_columns = relative_bias(q.flatten(0, 1), table, grid)
    rows = to_rows.reshape(*q.shape[:3], h)
    columns = to_columns.reshape(*q.shape[:3], w)

    def with_bias(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + rows[batch, head, query, key // w] + columns[batch, head, query, key % w]

    attended = flex_attention(q, k, v, score_mod=with_bias, scale=1.0)
    assert isinstance(attended, Tensor)
    return attended


def blocked_attention(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, grid: tuple[int, int], out: Tensor
) -> None:
    """Attend a block of query rows at a time (CPU, no gradients).

    Args:
        q: (n, h w, d) queries, already scaled; any strides, as for the rest.
        k: (n, h w, d) keys.
        v: (n, h w, d) values.
        table: as in :func:`relative_bias`; None = no positions.
        grid: h, w in tokens.
        out: (n, h w, d), written.
    """
    h, w = grid
    rows = min(h, max(1, BLOCK_QUERIES // w))
    scores = q.new_empty((rows * w, h * w))
    weights = torch.empty_like(scores)
    for head in range(len(q)):
        keys = k[head].t()
        bias = None if table is None else relative_bias(q[head : head + 1], table, grid)
        for top in range(0, h, rows):
            bottom = min(h, top + rows)
            n = (bottom - top) * w
            block, tokens = scores[:n], slice(top * w, bottom * w)
            if bias is None:
                torch.mm(q[head, tokens], keys, out=block)
            else:
                to_rows, to_columns = bias
                torch.add(
                    to_rows[0, top:bottom, :, :, None],
                    to_columns[0, top:bottom, :, None, :],
                    out=block.view(bottom - top, w, h, w),
                )
                block.addmm_(q[head, tokens], keys)
            torch.softmax(block, -1, out=weights[:n])
            torch.mm(weights[:n], v[head], out=out[head, tokens])


def plain_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attend without relative positions (no gradients), fast in either number format on either kind of device.

    Args:
        q: (n, heads, Q, d) queries, already scaled; any strides, as for the rest.
        k: (n, heads, L, d) keys.
        v: (n, heads, L, d) values.
        bias: (L,), added to the scores of every query.

    Returns:
        (n, Q, heads, d).
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        mask = None if bias is None else bias.expand(q.shape[-2], -1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0).transpose(1, 2)
    # Separate products, see folded_attention; long sequences by blocks.
    n, heads, queries, d = q.shape
    if queries == k.shape[2] > BLOCK_QUERIES and bias is None:
        out = q.new_empty((n, queries, heads, d))
        for one in range(n):
            blocked_attention(q[one], k[one], v[one], None, (queries, 1), out[one].transpose(0, 1))
        return out
    scores = q @ k.transpose(2, 3)
    if bias is not None:
        scores += bias
    return (torch.softmax(scores, -1) @ v).transpose(1, 2)
