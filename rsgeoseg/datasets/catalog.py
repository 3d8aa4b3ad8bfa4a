"""The known datasets by name: what they are, where they come from, how they are opened."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rsgeoseg.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from rsgeoseg.datasets.instances import InstanceDataset
    from rsgeoseg.datasets.referring import ReferringDataset


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetCard:
    """One known dataset."""

    name: str
    """On the command line."""
    title: str
    """For people."""
    place: str
    """``module:Class``."""
    kind: Literal["instances", "referring"]
    """What its samples are."""
    measured: str
    """Split that models are measured on, as the papers do."""
    terms: str
    """What may be done with it, as far as its authors say."""

    def load(self) -> Any:
        """Import its class."""
        module, _, name = self.place.partition(":")
        return getattr(importlib.import_module(module), name)


def _instances(name: str, title: str, place: str, measured: str, terms: str) -> DatasetCard:
    where = f"rsgeoseg.datasets.{place}"
    return DatasetCard(name=name, title=title, place=where, kind="instances", measured=measured, terms=terms)


def _referring(name: str, title: str, place: str, terms: str) -> DatasetCard:
    where = f"rsgeoseg.datasets.{place}"
    return DatasetCard(name=name, title=title, place=where, kind="referring", measured="test", terms=terms)


_RESEARCH = "research use"
DATASETS: dict[str, DatasetCard] = {
    card.name: card
    for card in (
        _instances("whu-building", "WHU building, aerial", "whu_building:WHUBuilding", "test", "no licence stated"),
        _instances("nwpu-vhr10", "NWPU VHR-10", "nwpu:NWPUVHR10", "val", _RESEARCH),
        _instances("ssdd", "SSDD, ships in SAR images", "ssdd:SSDD", "val", "no licence stated"),
        _instances("hrsid", "HRSID, ships in SAR images", "hrsid:HRSID", "test", "no licence stated"),
        _instances("isaid", "iSAID", "isaid:ISAID", "val", "academic use only"),
        _instances(
            "potsdam", "ISPRS Potsdam, buildings and cars", "potsdam:PotsdamInstances", "test", "on request from ISPRS"
        ),
        _instances("loveda-urban", "LoveDA urban, buildings", "loveda:LoveDAUrban", "val", "CC BY-NC-SA 4.0"),
        _instances("whu-satellite", "WHU satellite", "whu_satellite:WHUSatellite", "test", "no licence stated"),
        _instances("sandbar", "SandBar", "sandbar:SandBar", "test", "not published"),
        _referring("refsegrs", "RefSegRS", "refsegrs:RefSegRS", "no licence stated"),
        _referring("rrsis-d", "RRSIS-D", "rrsis_d:RrsisD", "no licence stated"),
        _referring("rrsis-m", "RRSIS-M", "rrsis_m:RrsisM", "not published"),
        _referring("dior-rsvg", "DIOR-RSVG", "dior_rsvg:DiorRsvg", "no licence stated"),
    )
}
"""By name."""


def find_dataset(name: str) -> DatasetCard:
    """Look a dataset up.

    Raises:
        UsageError: there is none of this name.
    """
    if name not in DATASETS:
        msg = f"there is no dataset {name!r}; choose from {', '.join(DATASETS)}"
        raise UsageError(msg)
    return DATASETS[name]


def open_dataset(name: str, root: Path | str, split: str | None = None, **options: Any) -> InstanceDataset:
    """Open a dataset of instances.

    Args:
        name: in ``DATASETS``.
        root: its folder.
        split: None = ``train``, or the first split of a dataset without it.
        options: further ones of its class.

    Raises:
        UsageError: the name is unknown or of another kind, or the files are not as expected.
    """
    if find_dataset(name).kind != "instances":
        msg = f"{name} shows one object per expression, not all instances: open it with open_referring from Python"
        raise UsageError(msg)
    opened: InstanceDataset = _open(name, root, split, options)
    return opened


def open_referring(name: str, root: Path | str, split: str | None = None, **options: Any) -> ReferringDataset:
    """Open a dataset of expressions; as ``open_dataset``.

    Raises:
        UsageError: the name is unknown or of another kind, or the files are not as expected.
    """
    if find_dataset(name).kind != "referring":
        msg = f"{name} has instances and no expressions"
        raise UsageError(msg)
    opened: ReferringDataset = _open(name, root, split, options)
    return opened


def _open(name: str, root: Path | str, split: str | None, options: dict[str, Any]) -> Any:
    kind = find_dataset(name).load()
    return kind(root, split or kind.splits[0], **options)
