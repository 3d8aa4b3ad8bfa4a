"""Whether the network may be used."""

from __future__ import annotations

import os

OFFLINE = "RSGEOSEG_OFFLINE"
"""Environment variable that forbids the network."""


def is_offline() -> bool:
    """Tell whether the network is switched off: ``RSGEOSEG_OFFLINE`` is set, and not to a word for no."""
    return os.environ.get(OFFLINE, "").strip().lower() not in ("", "0", "false", "no", "off")
