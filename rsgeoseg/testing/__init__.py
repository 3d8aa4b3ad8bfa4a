"""Oracle segmenters, scene generator with exact truth, Hypothesis strategies, contract suite.

Modules are imported on first use: ``rsgeoseg.testing.oracle``, ``scenes``, ``contract`` (needs pytest), ``strategies``
(needs Hypothesis).
"""

from __future__ import annotations

from importlib import import_module

__all__ = ["contract", "oracle", "scenes", "strategies"]


def __getattr__(name: str) -> object:
    if name in __all__:
        return import_module(f"rsgeoseg.testing.{name}")
    msg = f"module 'rsgeoseg.testing' has no attribute {name!r}"
    raise AttributeError(msg)
