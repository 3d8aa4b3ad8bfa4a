"""What a machine can do, stage by stage, in one unit: megapixels of scene per second; and which stage limits."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

STAGES = ("disk", "decode", "copy", "model", "stitch", "vectorise", "write")
"""In the order in which a pixel meets them."""
OBJECTS_PER_MPX = 20.0
"""Density that object rates are turned into pixel rates with: a built-up area at 0.3 to 0.5 m."""

_NOUNS = {
    "disk": "the disk",
    "decode": "decoding",
    "copy": "the copy to the device",
    "model": "the model",
    "stitch": "stitching",
    "vectorise": "vectorising",
    "write": "writing",
}
_REMEDIES = {
    "disk": "a local or faster disk would help, and so would a file with stronger compression",
    "decode": "more cores would help, and a tiled file with a fast codec (gdal_translate -of COG -co COMPRESS=ZSTD)",
    "copy": "the way to the device limits, not the device: check that the card has all lanes of its slot",
    "stitch": "more workers (--workers) would help, on other cores",
    "vectorise": "more workers (--workers) would help, on other cores, and --min-area where small objects are unwanted",
    "write": "a faster disk would help, or a format that writes faster (FlatGeobuf, GeoParquet)",
}
_MODEL_ON_CPU = "a GPU would help, or workers on more machines (--scheduler), a coarser --gsd, less --overlap"
_MODEL_ON_DEVICE = "more devices would help (--workers), a smaller backbone, a coarser --gsd, less --overlap"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a megapixel of scene costs; turns the rates of stages into one unit."""

    chip_size: int
    """Side of a chip, pixels."""
    overlap: int
    """Pixels that neighbouring chips share."""
    bytes_per_pixel: float
    """Of the file, compressed, all bands."""
    objects_per_mpx: float = OBJECTS_PER_MPX

    def chips_to_mpx(self, chips: float) -> float:
        """Turn chips into megapixels of scene: the overlap is seen more than once and counts once."""
        return chips * max(self.chip_size - self.overlap, 1) ** 2 / 1e6

    def objects_to_mpx(self, objects: float) -> float:
        """Turn objects into the megapixels that hold so many."""
        return objects / self.objects_per_mpx

    def file_to_mpx(self, megabytes: float) -> float:
        """Turn megabytes (10^6) of the file into megapixels."""
        return megabytes / self.bytes_per_pixel


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpeed:
    """How fast one stage is when it has the machine to itself."""

    name: str
    """One of ``STAGES``."""
    rate: float
    """In ``unit``."""
    unit: str
    mpx_per_s: float
    """Megapixels of scene per second."""
    detail: str = ""
    """How it was measured."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**asdict(self), "rate": significant(self.rate), "mpx_per_s": significant(self.mpx_per_s)}


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpeed:
    """How fast all stages are, for one model and kind of scene."""

    stages: tuple[StageSpeed, ...]
    """Those that were measured, in the order of ``STAGES``; at least one."""
    workload: Workload
    model: str
    weights: str
    """Name and digest; empty = random."""
    device: str
    """Kind of device that the model ran on, such as ``cpu``."""

    @property
    def limit(self) -> StageSpeed:
        """The slowest stage: no run is faster."""
        return min(self.stages, key=lambda stage: stage.mpx_per_s)

    @property
    def runner_up(self) -> StageSpeed | None:
        """The stage that would limit if the slowest did not; None where one stage was measured."""
        rest = [stage for stage in self.stages if stage is not self.limit]
        return min(rest, key=lambda stage: stage.mpx_per_s) if rest else None

    @property
    def in_turn(self) -> float:
        """Mpx/s if the stages took turns, as they do on one core; a run lies between this and ``limit``."""
        return 1 / sum(1 / stage.mpx_per_s for stage in self.stages)

    @property
    def remedy(self) -> str:
        """What would make the slowest stage faster."""
        if self.limit.name == "model":
            return _MODEL_ON_CPU if self.device == "cpu" else _MODEL_ON_DEVICE
        return _REMEDIES[self.limit.name]

    def verdict(self) -> str:
        """Say in one line which stage limits, by how much, and what would help."""
        limit, next_one = self.limit, self.runner_up
        text = f"{_NOUNS[limit.name]} limits: {limit.mpx_per_s:.3g} Mpx/s"
        if next_one is not None:
            ratio = _times(next_one.mpx_per_s / limit.mpx_per_s)
            text += f"; {_NOUNS[next_one.name]}, the next slowest, could do {ratio} as much"
        return f"{text}: {self.remedy}"

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        next_one = self.runner_up
        return {
            "model": {"name": self.model, "weights": self.weights or None},
            "device": self.device,
            "workload": {**asdict(self.workload), "bytes_per_pixel": significant(self.workload.bytes_per_pixel)},
            "stages": [stage.to_dict() for stage in self.stages],
            "limit": {
                "stage": self.limit.name,
                "mpx_per_s": significant(self.limit.mpx_per_s),
                "next": None if next_one is None else next_one.name,
                "next_times": None if next_one is None else significant(next_one.mpx_per_s / self.limit.mpx_per_s),
                "remedy": self.remedy,
            },
            "mpx_per_s": {"overlapped": significant(self.limit.mpx_per_s), "in_turn": significant(self.in_turn)},
        }


def significant(value: float) -> float:
    """Round to four digits: a measured speed has no more."""
    return float(f"{value:.4g}")


def _times(ratio: float) -> str:
    return f"{ratio:.1f} x" if ratio < 10 else f"{ratio:.0f} x"
