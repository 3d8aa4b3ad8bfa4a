"""Fully connected layers in a row."""

from __future__ import annotations

from itertools import pairwise

from torch import nn


def mlp(*widths: int) -> nn.Sequential:
    """Build linear layers of these widths, first to last, with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])
