"""What a training is: data, model, schedule. Saved beside its checkpoints, and written by people as YAML."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import yaml

from rsgeoseg.errors import ModelError, UsageError
from rsgeoseg.train.augment import AugmentConfig, Symmetries
from rsgeoseg.train.models import TRAINABLE
from rsgeoseg.train.module import OptimConfig

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PrecisionName = Literal["auto", "fp32", "bf16", "fp16"]
MAY_DIFFER = frozenset({"steps", "epochs", "workers", "devices"})
"""What may change when a stopped training goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One training. Data come from exactly one of: images and annotations, a known dataset, or scenes and polygons."""

    images: str | None = None
    """Folder with the images of a COCO set."""
    annotations: str | None = None
    """COCO instances JSON."""
    val_images: str | None = None
    """Folder of a validation set of its own; default: every fifth image by sorted name is held out."""
    val_annotations: str | None = None
    """Its COCO instances JSON."""
    dataset: str | None = None
    """Name of a known dataset (`rsgeoseg.datasets.catalog`)."""
    root: str | None = None
    """Folder of that dataset."""
    train_split: str = "train"
    """Split of the dataset that is trained on."""
    val_split: str | None = None
    """Split that is validated on; None = every fifth image of the training split is held out."""
    scenes: tuple[str, ...] = ()
    """Rasters that the polygons lie in."""
    polygons: str | None = None
    """Vector file with the user's own polygons, in any CRS."""
    class_field: str | None = None
    """Column with the class; None = all polygons are one class."""
    aoi: str | None = None
    """Vector file with the area where every object is drawn; None = chips with an object count as complete."""
    val_share: float = 0.2
    """Share of the user's objects that is held out, by place."""
    bands: tuple[int, ...] | None = None
    """Bands of the rasters that are red, green and blue, from 1."""
    gsd: float | None = None
    """Metres per pixel to resample the rasters to."""
    stretch: str = "auto"
    """Mapping of the rasters' values to 0-255, as for a run."""

    model: str = "rsprompter-query"
    """Registry name."""
    backbone: str = "lite"
    """Image encoder."""
    sam_checkpoint: str | None = None
    """Official SAM file, for SAM backbones."""
    start: str | None = None
    """Weights (id or path) to start from: whatever fits by name and shape, also of another model on this backbone."""
    freeze_encoder: bool = False
    """Train the heads alone (SAM encoders are always frozen, as in the paper)."""
    lora: int = 0
    """Rank of the low-rank change of a SAM encoder's query, key and value layers; 0 = none."""
    model_options: dict[str, Any] = field(default_factory=dict)
    """Fields of the model's config that differ from its default for the backbone, e.g. ``num_queries``."""
    loss_options: dict[str, Any] = field(default_factory=dict)
    """Fields of the model's loss that differ from its default."""

    steps: int | None = None
    """Optimiser steps; None = as many as ``epochs`` takes, or 4000."""
    epochs: float | None = None
    """Passes over the training images, instead of ``steps``."""
    batch_size: int = 4
    """Crops per step and accumulation, over all devices."""
    accumulate: int = 1
    """Batches whose gradients are added up before a step."""
    interval: int = 200
    """Steps between checkpoints and validations."""
    lr: float = 4e-4
    """Peak learning rate."""
    encoder_factor: float = 0.25
    """The encoder's learning rate as a share of it."""
    weight_decay: float = 0.05
    """AdamW's; norms and biases have none."""
    warmup: int = 150
    """Steps of linear warm-up."""
    final: float = 0.02
    """Share of the peak at the end of the cosine."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 = not clipped."""
    average: float = 0.998
    """Decay of the moving average of the weights, which is what is measured and exported; 0 = none."""
    precision: PrecisionName = "auto"
    """``auto``: bf16 where the device multiplies it natively, fp16 on other CUDA devices, fp32 elsewhere."""

    crop: int = 512
    """Side of the training crops, pixels."""
    scale: tuple[float, float] = (0.5, 1.6)
    """Resize before the crop, drawn log-uniformly."""
    symmetries: Symmetries = "all"
    """``all`` eight, ``flip`` left to right, or ``none``."""
    mosaic: float = 0.2
    """Share of crops put together from four."""
    colour: float = 0.2
    """Strength of brightness, contrast and saturation changes."""
    blur: float = 0.1
    """Share of crops that are blurred slightly."""
    centred: float = 0.75
    """Share of crops that contain the centre of some object."""

    cache_features: int = 0
    """With a frozen encoder: this many different crops per image, whose features are kept on disk; 0 = all differ."""
    workers: int | None = None
    """Processes that draw crops; None = by the number of cores and the device."""
    devices: int = 1
    """GPUs (or CPU processes) that share every batch."""
    seed: int = 0
    """Of weights, crops and losses."""
    overfit: bool = False
    """Train and validate on all images: to see whether a model can learn at all."""

    def __post_init__(self) -> None:
        """Check what can be checked without the data."""
        if self.model not in TRAINABLE:
            msg = f"model {self.model!r} cannot be trained; choose from {', '.join(TRAINABLE)}"
            raise ModelError(msg)
        self._check_source()
        numbers = {name: getattr(self, name) for name in ("batch_size", "accumulate", "interval", "devices")}
        if self.steps is not None:
            numbers["steps"] = self.steps
        low = [name for name, value in numbers.items() if value < 1]
        if low or self.crop < 64 or self.crop % 64:
            msg = "steps, batch size, accumulate, interval, devices must be at least 1, the crop a multiple of 64"
            raise UsageError(msg)
        if self.epochs is not None and (self.steps is not None or self.epochs <= 0):
            msg = "give either steps or a positive number of epochs"
            raise UsageError(msg)
        if self.batch_size % self.devices:
            msg = f"a batch of {self.batch_size} cannot be shared by {self.devices} devices: make it a multiple"
            raise UsageError(msg)
        if self.precision not in get_args(PrecisionName) or self.symmetries not in get_args(Symmetries):
            names = f"{', '.join(get_args(PrecisionName))}; symmetries {', '.join(get_args(Symmetries))}"
            msg = f"precision is one of {names}: got {self.precision} and {self.symmetries}"
            raise UsageError(msg)
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            msg = f"scale {self.scale} must be two positive numbers, the smaller first"
            raise UsageError(msg)
        if self.cache_features and not self.encoder_is_frozen:
            msg = "cache_features needs an encoder that does not change: give freeze_encoder, and no lora"
            raise UsageError(msg)

    def _check_source(self) -> None:
        coco = self.images is not None or self.annotations is not None
        known = self.dataset is not None or self.root is not None
        own = bool(self.scenes) or self.polygons is not None
        whole = (self.images and self.annotations) or (self.dataset and self.root) or (self.scenes and self.polygons)
        if coco + known + own != 1 or not whole:
            msg = (
                "say what to train on, one of: IMAGES ANNOTATIONS (COCO); --dataset NAME --root FOLDER; "
                "--scene RASTER --polygons FILE"
            )
            raise UsageError(msg)

    @property
    def encoder_is_frozen(self) -> bool:
        """True where no parameter of the encoder changes."""
        return not self.lora and (self.freeze_encoder or self.backbone != "lite")

    def total_steps(self, images: int) -> int:
        """Count the optimiser steps of a training on so many images."""
        if self.epochs is not None:
            return max(1, math.ceil(self.epochs * images / (self.batch_size * self.accumulate)))
        return 4000 if self.steps is None else self.steps

    def optim(self) -> OptimConfig:
        """Give optimiser and schedule."""
        return OptimConfig(
            lr=self.lr,
            encoder_factor=self.encoder_factor,
            weight_decay=self.weight_decay,
            warmup=self.warmup,
            final=self.final,
            clip=self.clip,
            average=self.average,
        )

    def augment(self) -> AugmentConfig:
        """Give the ranges of the augmentation."""
        return AugmentConfig(
            crop=self.crop,
            scale=self.scale,
            symmetries=self.symmetries,
            mosaic=self.mosaic,
            colour=self.colour,
            blur=self.blur,
            centred=self.centred,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def config_from(values: Mapping[str, Any]) -> TrainConfig:
    """Build a config from values by name, as YAML or JSON give them.

    Raises:
        UsageError: a name is unknown, or a value has the wrong kind.
        ModelError: the model cannot be trained.
    """
    known: dict[str, str] = {entry.name: str(entry.type) for entry in dataclasses.fields(TrainConfig)}
    unknown = [name for name in values if name not in known]
    if unknown:
        msg = f"a training has no option {', '.join(unknown)}; it has {', '.join(sorted(known))}"
        raise UsageError(msg)
    read: dict[str, Any] = {name: _read(name, known[name], value) for name, value in values.items()}
    return TrainConfig(**read)


def _read(name: str, kind: str, value: Any) -> Any:
    """Bring a value of YAML to its field's kind: it reads 1e-4 as text."""
    if value is None and "None" in kind:
        return None
    number = isinstance(value, int | float | str) and not isinstance(value, bool)
    try:
        if kind.startswith("int") and number and float(value) == int(float(value)):
            return int(float(value))
        if kind.startswith("float") and number:
            return float(value)
        for name_of, part_of in (("tuple[float", float), ("tuple[int", int)):
            if kind.startswith(name_of) and isinstance(value, list | tuple):
                return tuple(part_of(part) for part in value)
    except ValueError:
        number = False
    right = (
        (kind.startswith(("str", "PrecisionName", "Symmetries")) and isinstance(value, str))
        or (kind.startswith("bool") and isinstance(value, bool))
        or (kind.startswith("dict") and isinstance(value, dict))
    )
    if kind.startswith("tuple[str") and isinstance(value, list | tuple):
        return tuple(str(part) for part in value)
    if not right:
        msg = f"{name} of a training must be {kind}, got {value!r}"
        raise UsageError(msg)
    return value


def read_yaml(path: Path) -> dict[str, Any]:
    """Read options of a training from YAML; hyphens and underscores are the same.

    Raises:
        UsageError: the file cannot be read or is no mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror})"
        raise UsageError(msg) from error
    except yaml.YAMLError as error:
        msg = f"{path}: is not YAML ({' '.join(str(error).split())})"
        raise UsageError(msg) from error
    if not isinstance(values, dict):
        msg = f"{path}: must be a list of `name: value` lines, as `rsgeoseg train --show-config` prints them"
        raise UsageError(msg)
    return {str(name).replace("-", "_"): value for name, value in values.items()}


def read_value(text: str) -> Any:
    """Read one value as YAML does: a number, true, false, a list, or else text."""
    return yaml.safe_load(text)


def to_yaml(config: TrainConfig) -> str:
    """Write a config as YAML that ``read_yaml`` takes."""
    text: str = yaml.safe_dump(config.to_dict(), sort_keys=False)
    return text
