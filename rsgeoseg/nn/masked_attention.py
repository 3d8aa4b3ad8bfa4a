"""Mask2Former's decoder layer: masked cross-attention, self-attention, feed-forward (RSPrompter paper Eq. 7, T-dec).

Facts: mmdet 3.2 ``Mask2FormerTransformerDecoderLayer``: post-norm, cross-attention first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from rsgeoseg.nn.steady import steady_rows

if TYPE_CHECKING:
    from torch import Tensor


class MaskedDecoderLayer(nn.Module):
    """One decoder layer.

    Args:
        width: channels C.
        heads: attention heads.
        hidden: width of the feed-forward.
    """

    def __init__(self, width: int, *, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.cross_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.self_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ffn = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(
        self,
        queries: Tensor,
        query_position: Tensor,
        memory: Tensor,
        memory_position: Tensor,
        blocked: Tensor,
        apart: Tensor | None = None,
    ) -> Tensor:
        """Update the queries.

        Args:
            queries: (B, Q, C).
            query_position: (B, Q, C).
            memory: (B, L, C), one level of the pixel decoder.
            memory_position: (L, C).
            blocked: (B, Q, L) bool, True where a query may not look; no row may be all True.
            apart: (B, Q, Q) bool, True where a query may not see another; None = all see all.

        Returns:
            (B, Q, C).
        """
        positioned = queries + query_position
        if wanting := steady_rows(memory.shape[1]) - memory.shape[1]:  # cells that no query looks at
            memory, memory_position = (F.pad(x, (0, 0, 0, wanting)) for x in (memory, memory_position))
            blocked = F.pad(blocked, (0, wanting), value=True)
        mask = blocked.repeat_interleave(self.heads, 0)
        looked, _ = self.cross_attn(positioned, memory + memory_position, memory, attn_mask=mask, need_weights=False)
        queries = self.norms[0](queries + looked)
        positioned = queries + query_position
        apart = apart if apart is None else apart.repeat_interleave(self.heads, 0)
        talked, _ = self.self_attn(positioned, positioned, queries, attn_mask=apart, need_weights=False)
        queries = self.norms[1](queries + talked)
        updated: Tensor = self.norms[2](queries + self.ffn(queries))
        return updated
