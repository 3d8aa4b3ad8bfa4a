"""Whether the network may be used."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

OFFLINE = "RSGEOSEG_OFFLINE"
"""Environment variable that forbids the network."""


def is_offline() -> bool:
    """Tell whether the network is switched off: ``RSGEOSEG_OFFLINE`` is set, and not to a word for no."""
    return os.environ.get(OFFLINE, "").strip().lower() not in ("", "0", "false", "no", "off")


@contextmanager
def offline() -> Iterator[None]:
    """Switch the network off while the block runs, for processes that it starts as well."""
    before = os.environ.get(OFFLINE)
    os.environ[OFFLINE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[OFFLINE]
        else:
            os.environ[OFFLINE] = before
