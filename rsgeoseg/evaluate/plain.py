"""Figures as plain JSON values."""

from __future__ import annotations

import math
from typing import Any


def plain_values(value: Any) -> Any:
    """Return a value with tuples as lists and NaN as None, all the way down."""
    if isinstance(value, dict):
        return {key: plain_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
