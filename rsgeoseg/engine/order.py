"""The order for one run, and its JSON form."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, TypedDict

from rsgeoseg.engine.options import (
    OnChipError,
    parse_bytes,
    parse_names,
    parse_numbers,
    require_fraction,
    require_overlap,
    require_positive,
)
from rsgeoseg.errors import UsageError
from rsgeoseg.geo.frame import parse_area

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_MODEL = "rsprompter-query"


class RunOptions(TypedDict, total=False):
    """The keyword options of ``run``: the names and meanings of ``RunJob``, in the looser forms a person writes."""

    weights: str | None
    device: str
    batch_size: int | str | None
    chip_size: int | None
    overlap: int | None
    bands: str | Sequence[int] | None
    stretch: str
    gsd: float | None
    aoi: str | os.PathLike[str] | None
    bbox: str | Sequence[float] | None
    classes: str | Sequence[str] | None
    score_threshold: float | None
    min_area: str | None
    nms: float
    simplify: float
    regularize: bool
    dst_crs: str | None
    format: str | None
    overwrite: bool
    on_chip_error: OnChipError
    offline: bool
    workers: int | None
    scheduler: str | None
    max_memory: str | int | None
    resume: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunJob:
    """One scene, one model, one output: all that a run needs, in plain JSON values.

    None means: what the model or the scene suggests. Loose forms ("1,2,3", "auto") are made exact on construction.

    Raises:
        UsageError: on construction, where a value cannot be used; the message says what to write instead.
    """

    scene: str
    """Path or URL of a raster."""
    model: str = DEFAULT_MODEL
    """Registry name."""
    output: str | None = None
    """File to write; its extension chooses the format. None = write nothing."""
    weights: str | None = None
    """Weights id or path; None = the model's default."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda[:i]``."""
    batch_size: int | None = None
    """Chips per call of the model; None or "auto" = found by itself."""
    chip_size: int | None = None
    """Pixels; None = as the model was trained."""
    overlap: int | None = None
    """Pixels; None = as the model suggests."""
    bands: tuple[int, ...] | None = None
    """Band numbers from 1, in the order the model wants."""
    stretch: str = "auto"
    """``auto``, ``none``, ``percentile:2,98`` or ``minmax:0,3000``."""
    gsd: float | None = None
    """Resample to so many metres per pixel."""
    aoi: str | None = None
    """Vector file; only what lies inside is segmented."""
    bbox: tuple[float, ...] | None = None
    """x0 y0 x1 y1 in the scene's CRS."""
    classes: tuple[str, ...] | None = None
    """Class names to keep; None = all."""
    score_threshold: float | None = None
    """Objects below are dropped; None = as the model suggests."""
    min_area: str | None = None
    """``20m2`` or ``50px``; smaller objects are dropped."""
    nms: float = 0.5
    """Mask IoU or containment above which two objects of one class are duplicates."""
    simplify: float = 0.0
    """Tolerance of outlines, pixels; 0 = exact pixel edges."""
    regularize: bool = False
    """Straighten outlines to right angles where they nearly are."""
    dst_crs: str | None = None
    """CRS of the result; None = the scene's."""
    format: str | None = None
    """Name of the output format; None = by extension."""
    overwrite: bool = False
    """Replace an existing output."""
    on_chip_error: OnChipError = "raise"
    """``raise`` stops at a chip that fails, ``skip`` leaves a hole and records it."""
    offline: bool = False
    """Never use the network."""
    workers: int | None = None
    """Processes of a local Dask cluster that share the scene; None = this process alone."""
    scheduler: str | None = None
    """Address of a running Dask scheduler, ``tcp://HOST:PORT``, whose workers share the scene."""
    max_memory: int | None = None
    """Bytes that the run may take, all of its processes together; "2GB" is understood. None = no limit."""
    resume: bool = False
    """Go on with an unfinished run of the same output; a finished one is left as it is."""

    def __post_init__(self) -> None:
        """Make loose forms exact and check each value once, here."""
        self._normalise()
        self._check_counts()
        self._check_places()
        if self.min_area is not None:
            parse_area(self.min_area)
        if not _is_number(self.simplify) or self.simplify < 0:
            msg = f"simplify {self.simplify!r} is not usable: give a tolerance in pixels, 0 or more"
            raise UsageError(msg)
        if self.on_chip_error not in ("raise", "skip"):
            msg = f"on-chip-error {self.on_chip_error!r} is unknown: use raise or skip"
            raise UsageError(msg)

    def _check_counts(self) -> None:
        for name in ("batch_size", "chip_size", "workers"):
            if getattr(self, name) is not None:
                require_positive(option_name(name), getattr(self, name))
        for name in ("score_threshold", "nms"):
            if getattr(self, name) is not None:
                require_fraction(option_name(name), getattr(self, name))
        if self.nms == 0:
            msg = "nms 0 is not usable: it would drop every object that another one touches; give more than 0, up to 1"
            raise UsageError(msg)
        if self.overlap is not None:
            require_overlap(self.overlap)

        if self.workers is not None and self.scheduler is not None:
            msg = "workers and scheduler exclude each other: a running cluster has its own workers"
            raise UsageError(msg)
        if self.resume and self.output is None:
            msg = "resume needs an output: an unfinished run is kept beside it"
            raise UsageError(msg)

    def _check_places(self) -> None:
        if not self.scene:
            msg = "no scene given: name a raster file"
            raise UsageError(msg)
        if self.bbox is not None and not _is_box(self.bbox):
            msg = f"bbox {self.bbox} is not a box: give X0,Y0,X1,Y1 with X0 < X1 and Y0 < Y1 in the scene's CRS"
            raise UsageError(msg)
        if self.bands is not None and (not self.bands or min(self.bands) < 1):
            msg = f"bands {self.bands} are not usable: bands are numbered from 1, as in 1,2,3"
            raise UsageError(msg)
        if self.gsd is not None and not (_is_number(self.gsd) and self.gsd > 0):
            msg = f"gsd {self.gsd!r} is not usable: give metres per pixel, more than 0"
            raise UsageError(msg)

    def _normalise(self) -> None:
        loose = {
            "batch_size": _whole(self.batch_size),
            "bands": None if self.bands is None else parse_numbers("bands", self.bands, whole=True),
            "bbox": None if self.bbox is None else parse_numbers("bbox", self.bbox),
            "classes": None if self.classes is None else parse_names(self.classes) or None,
            "aoi": None if self.aoi is None else _path("aoi", self.aoi),
            "max_memory": None if self.max_memory is None else parse_bytes(self.max_memory),
            "output": None if self.output is None else os.fspath(self.output),
        }
        for name, value in loose.items():
            object.__setattr__(self, name, value)

    def to_json(self) -> str:
        """Return the job as JSON; ``from_json`` gives an equal job back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> RunJob:
        """Read a job from JSON.

        Raises:
            UsageError: not JSON, an unknown option, or a value that cannot be used.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            msg = f"job is not JSON: {error}"
            raise UsageError(msg) from None
        if not isinstance(values, dict) or "scene" not in values:
            msg = "job needs a JSON object with at least a scene"
            raise UsageError(msg)
        check_names(values)
        return cls(**values)


def check_names(options: dict[str, Any]) -> None:
    """Refuse option names that ``RunJob`` does not have.

    Raises:
        UsageError: the message lists the names there are.
    """
    known = [field.name for field in fields(RunJob)]
    unknown = [name for name in options if name not in known]
    if unknown:
        msg = f"unknown option {', '.join(unknown)}: choose from {', '.join(known)}"
        raise UsageError(msg)


def option_name(name: str) -> str:
    """Write a field's name as the command line does."""
    return name.replace("_", "-")


def _path(name: str, value: object) -> str:
    """Return a path as text.

    Raises:
        UsageError: it is no path.
    """
    if not isinstance(value, str | os.PathLike):
        msg = f"{name} is a {type(value).__name__}, not a path: open the scene yourself, Scene.open(path, {name}=...)"
        raise UsageError(msg)
    return os.fspath(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_box(values: tuple[float, ...]) -> bool:
    return len(values) == 4 and values[0] < values[2] and values[1] < values[3]


def _whole(value: object) -> object:
    """Turn "8" into 8 and "auto" into None; leave what is neither for the check that follows."""
    if value == "auto":
        return None
    return int(value) if isinstance(value, str) and value.isdigit() else value
