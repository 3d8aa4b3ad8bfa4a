"""The batch size that suits a device: found by trying, remembered per device, model and size of chips.

On a CPU nothing is tried: one chip at a time keeps all cores busy and its values in their caches. `lite` at 1024 px on
two cores took 1.21, 0.65 and 0.60 chips/s (best of three rounds) with batches of 1, 2 and 4.

What is remembered lies in the user's cache, a small JSON file a case, so that processes that write at once cannot undo
each other's work. A file that is damaged, old or of another case counts as none.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsgeoseg.contract import is_out_of_memory
from rsgeoseg.engine.reader import check_cancel
from rsgeoseg.errors import ModelError, WeightsError, WindowError
from rsgeoseg.geo.windows import Box
from rsgeoseg.weights.cache import cache_folder

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

    from rsgeoseg.contract import Chip, Segmenter
    from rsgeoseg.geo.scene import Scene

logger = logging.getLogger(__name__)

MOST_CHIPS = 64
"""Largest batch that is tried."""
MOST_SECONDS = 10.0
"""Time for trying."""
LEAST_GAIN = 1.05
"""Chips per second, against the best smaller batch, that justify a larger one."""
WORTH_CHIPS = 64
"""Scenes with fewer chips are done sooner than the trial would pay."""
KEPT_DAYS = 30
"""After so many days it is tried again: drivers change, and other programs may have taken the memory then."""
_SAMPLES = 4  # different chips in a trial: how many objects they hold decides part of the work
_LOOKS = 16  # places of a scene where they are looked for
_FAULTS = (ModelError, RuntimeError, ArithmeticError, ValueError, MemoryError)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchKey:
    """A case that a batch size is remembered for."""

    device: str
    """Kind of device, as the segmenter names it."""
    model: str
    weights: str
    """Name and digest of the weights."""
    shape: tuple[int, int, int]
    """(bands, h, w) of a chip."""
    number_format: str
    """Of the model's matrix products."""

    @classmethod
    def of(cls, segmenter: Segmenter, shape: tuple[int, ...]) -> BatchKey | None:
        """Find the case of a segmenter; None where its batch size is not to be tried.

        A segmenter that can be tuned has an attribute ``device_name`` (any but ``cpu``), and may have
        ``number_format``.
        """
        device = getattr(segmenter, "device_name", "cpu")
        if device == "cpu":
            return None
        bands, height, width = shape
        return cls(
            device=device,
            model=segmenter.spec.name,
            weights=segmenter.spec.weights_id,
            shape=(int(bands), int(height), int(width)),
            number_format=getattr(segmenter, "number_format", ""),
        )

    def path(self) -> Path:
        """Return where it is remembered.

        Raises:
            WeightsError: this user has no folder for a cache.
        """
        text = json.dumps(asdict(self), sort_keys=True)
        return cache_folder() / "batch_sizes" / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What trying gave."""

    batch_size: int
    """The smallest that no larger one clearly beats."""
    rates: dict[int, float]
    """Chips per second of the sizes that ran."""
    stopped: str
    """Why no larger one was tried."""


def own_batch_size(segmenter: Segmenter) -> int:
    """Return what a segmenter suggests itself (``batch_size``), 1 otherwise."""
    return max(1, int(getattr(segmenter, "batch_size", 1)))


def best_batch_size(
    segmenter: Segmenter,
    scene: Scene,
    chip_size: int,
    *,
    most: int = MOST_CHIPS,
    cancel: threading.Event | None = None,
) -> int:
    """Choose the chips per call for a scene.

    On an accelerator: what is remembered, else what a trial on chips of this scene gives, which is then remembered.
    On a CPU, for a scene with few chips, or where the trial fails: what the segmenter suggests.

    Args:
        segmenter: the model.
        scene: an open scene; a few chips are read where a trial is needed.
        chip_size: side of its chips.
        most: chips of a batch at most.
        cancel: set it from another thread to stop.

    Raises:
        JobCancelled: ``cancel`` was set.
    """
    grid = scene.grid
    height, width = min(chip_size, grid.height), min(chip_size, grid.width)
    suggested = min(own_batch_size(segmenter), most)
    key = BatchKey.of(segmenter, (segmenter.spec.bands, height, width))
    if key is None:
        return suggested
    known = recall(key)
    if known is not None:
        return min(known, most)
    if grid.height * grid.width < WORTH_CHIPS * height * width:
        return suggested
    chips = sample_chips(scene, chip_size)
    return suggested if not chips else tuned_batch_size(segmenter, chips, most=most, cancel=cancel)


def tuned_batch_size(
    segmenter: Segmenter, chips: Sequence[Chip], *, most: int = MOST_CHIPS, cancel: threading.Event | None = None
) -> int:
    """Choose the chips per call for chips like these: remembered, tried, or suggested; see ``best_batch_size``."""
    key = BatchKey.of(segmenter, chips[0].image.shape)
    if key is None:
        return min(own_batch_size(segmenter), most)
    known = recall(key)
    if known is not None:
        return min(known, most)
    logger.info("trying batch sizes on %s, once for chips of %d x %d", key.device, *key.shape[1:])
    try:
        trial = try_batch_sizes(segmenter, chips, most=most, cancel=cancel)
    except _FAULTS as error:  # the run will meet it again, and name the chip
        logger.debug("batch sizes could not be tried: %s", error)
        return min(own_batch_size(segmenter), most)
    logger.info("batches of %d: %s", trial.batch_size, trial.stopped)
    if most >= MOST_CHIPS or 2 * trial.batch_size <= most:  # else a larger one might do better elsewhere
        remember(key, trial)
    return trial.batch_size


def try_batch_sizes(
    segmenter: Segmenter,
    chips: Sequence[Chip],
    *,
    most: int = MOST_CHIPS,
    seconds: float = MOST_SECONDS,
    cancel: threading.Event | None = None,
) -> Trial:
    """Try batches of 1, 2, 4, ... chips until memory runs out, a larger one gains nothing, or time is up.

    Args:
        segmenter: the model.
        chips: of one shape; taken in turn, over and over.
        most: largest batch.
        seconds: for all.
        cancel: set it from another thread to stop.

    Raises:
        JobCancelled: ``cancel`` was set.
        MemoryError, ModelError, RuntimeError: the model fails, or a single chip does not fit.
    """
    start = time.perf_counter()
    segmenter.segment(chips[:1])  # the first call of all loads and chooses kernels
    rates: dict[int, float] = {}
    best, size, stopped = 1, 1, f"{most} is the most"
    while size <= most:
        check_cancel(cancel)
        rate = _rate(segmenter, [chips[i % len(chips)] for i in range(size)])
        if rate is None:
            if size == 1:
                msg = "out of memory on a single chip"
                raise MemoryError(msg)
            stopped = f"out of memory with {size}"
            break
        rates[size] = rate
        if size > 1 and rate < LEAST_GAIN * rates[best]:
            stopped = f"no gain from {size}"
            break
        best = size
        size *= 2
        if time.perf_counter() - start + 2 * size / rate > seconds:
            stopped = f"no time to try {size}"
            break
    return Trial(batch_size=best, rates=rates, stopped=stopped)


def _rate(segmenter: Segmenter, batch: list[Chip]) -> float | None:
    """Chips per second, better of two calls: the first of a size may choose kernels. None: memory ran out."""
    best = float("inf")
    try:
        for _ in range(2):
            before = time.perf_counter()
            segmenter.segment(batch)
            best = min(best, time.perf_counter() - before)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    else:
        return len(batch) / max(best, 1e-9)
    release = getattr(segmenter, "release_memory", None)
    if release is not None:
        release()
    return None


def sample_chips(scene: Scene, chip_size: int, count: int = _SAMPLES) -> list[Chip]:
    """Read some chips of a scene that have valid pixels, spread over it; none where there are none.

    Args:
        scene: an open scene.
        chip_size: side of its chips; a smaller scene gives smaller ones.
        count: how many at most.
    """
    grid = scene.grid
    height, width = min(chip_size, grid.height), min(chip_size, grid.width)
    found: list[Chip] = []
    for look in range(_LOOKS):
        # A sequence of low discrepancy (Roberts 2018) that begins in the middle.
        y0 = int((0.5 + look * 0.7548776662) % 1 * (grid.height - height))
        x0 = int((0.5 + look * 0.5698402910) % 1 * (grid.width - width))
        with suppress(WindowError):  # a damaged place is not this function's business
            chip = scene.read(Box(x0, y0, x0 + width, y0 + height))
            if chip.valid.any():
                found.append(chip)
        if len(found) == count:
            break
    return found


def recall(key: BatchKey) -> int | None:
    """Return the batch size that is remembered for a case; None where there is none that can be used."""
    entry = _read(key)
    if entry is None:
        return None
    age = abs(time.time() - entry["time"])  # a clock that was wrong makes an entry old, either way
    return entry["batch_size"] if age < KEPT_DAYS * 86_400 else None


def remember(key: BatchKey, trial: Trial) -> None:
    """Remember what a trial gave, for later runs."""
    _write(key, trial.batch_size, rates={str(size): round(rate, 3) for size, rate in trial.rates.items()})


def remember_smaller(segmenter: Segmenter, shape: tuple[int, ...], batch_size: int) -> None:
    """Lower what is remembered after a batch that did not fit; where nothing is remembered, nothing is.

    Args:
        segmenter: the model.
        shape: (bands, h, w) of its chips.
        batch_size: that the run goes on with.
    """
    key = BatchKey.of(segmenter, shape)
    entry = None if key is None else _read(key)
    if key is not None and entry is not None and entry["batch_size"] > batch_size:
        _write(key, batch_size, rates=entry.get("chips_per_second", {}))


def _read(key: BatchKey) -> dict[str, Any] | None:
    try:
        entry = json.loads(key.path().read_text(encoding="utf-8"))
    except (OSError, ValueError, WeightsError):
        return None
    case = {**asdict(key), "shape": list(key.shape)}
    if not isinstance(entry, dict) or entry.get("case") != case:
        return None
    size, when = entry.get("batch_size"), entry.get("time")
    usable = type(size) is int and size >= 1 and isinstance(when, int | float)
    return entry if usable else None


def _write(key: BatchKey, batch_size: int, *, rates: dict[str, float]) -> None:
    """Write an entry beside and rename it: readers see the old one or the new one."""
    entry = {"case": asdict(key), "batch_size": batch_size, "chips_per_second": rates, "time": time.time()}
    temporary: Path | None = None
    try:
        path = key.path()
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, suffix=".part", delete=False) as file:
            temporary = Path(file.name)
            json.dump(entry, file, indent=1)
        temporary.replace(path)
        temporary = None
    except (OSError, WeightsError) as error:  # a cache that one may only read: it is tried again next time
        logger.debug("the batch size is not remembered: %s", error)
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()
