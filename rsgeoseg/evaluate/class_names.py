"""Class names as different tools spell them."""

from __future__ import annotations


def plain_class(name: str) -> str:
    """Reduce a class name to what tells it from others: case, underscores, hyphens and spaces do not count."""
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())
