"""Prompt embeddings from a network's raw numbers (RSPrompter paper Eq. 4 and 7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from rsgeoseg.nn.enhancer import Numerics


def raw_width(prompts: int, channels: int, numerics: Numerics) -> int:
    """Count the raw numbers behind ``prompts`` embeddings of ``channels``."""
    return prompts * channels * (2 if numerics == "released" else 1)


def prompt_embeddings(raw: Tensor, prompts: int, numerics: Numerics) -> Tensor:
    """Add high frequencies to learned prompts.

    Paper: ``e + sin e`` of one vector. Released code (KyanChen/RSPrompter f4e73c3): a vector of twice the width, sine
    of its even channels plus its odd ones, which are two independent projections.

    Args:
        raw: (P, raw_width(...)).
        prompts: embeddings per object, K_p.
        numerics: "paper" or "released".

    Returns:
        (P, K_p, channels) float32.
    """
    e = raw.float().reshape(len(raw), prompts, -1)
    return e[..., ::2].sin() + e[..., 1::2] if numerics == "released" else e + e.sin()
