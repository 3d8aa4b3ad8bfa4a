"""What every wrapper of a published dataset checks first: its split, and that its files are there to be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rsgeoseg.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence


def check_split(dataset: str, split: str, splits: Sequence[str]) -> None:
    """Refuse a split that a dataset does not have.

    Raises:
        UsageError: ``split`` is none of ``splits``.
    """
    if split not in splits:
        msg = f"{dataset} has no split {split!r}; choose from {', '.join(splits)}"
        raise UsageError(msg)


def refuse_download(dataset: str, where: str, *, download: bool, checksum: bool) -> None:
    """Refuse what a dataset without a stable public address cannot do.

    Args:
        dataset: its name.
        where: how a person gets it.
        download: whether a download was asked for.
        checksum: whether checksums were asked for.

    Raises:
        UsageError: either was.
    """
    if download:
        msg = f"{dataset} cannot be downloaded from here: {where}"
        raise UsageError(msg)
    if checksum:
        msg = f"no checksums of {dataset} are published; leave checksum off"
        raise UsageError(msg)
