"""``rsgeoseg doctor --speed``: how fast is each stage on this machine, and which one limits?"""

from __future__ import annotations

import math
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rsgeoseg.cli import common
from rsgeoseg.engine import measure
from rsgeoseg.engine.order import DEFAULT_MODEL
from rsgeoseg.engine.speed import MachineSpeed, StageSpeed, Workload
from rsgeoseg.engine.tuning import sample_chips, tuned_batch_size
from rsgeoseg.errors import SceneError, UsageError
from rsgeoseg.geo.scene import Scene
from rsgeoseg.geo.windows import WindowPlan, plan_windows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rsgeoseg.contract import Instances, ModelSpec

SHARES = {
    "disk": 0.06, "decode": 0.12, "copy": 0.04, "model": 0.5, "stitch": 0.1, "vectorise": 0.08, "write": 0.1,
}  # fmt: skip
"""Of the time for measuring; each stage is done at least once however long that takes."""
_BAR_LOW, _BAR_HIGH, _BAR_WIDTH = 0.01, 100_000.0, 28  # Mpx/s at the ends of a bar, on a logarithmic scale
_DRAWN = 2048  # largest side of the drawn scene that objects and pixels come from; pixels are laid out twice each way


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedOptions:
    """What is measured."""

    scene: str | None = None
    """A raster to read; None = one that is drawn."""
    model: str = DEFAULT_MODEL
    weights: str | None = None
    device: str = "auto"
    seconds: float = 15.0
    """Time for the measurements, without loading and drawing."""
    folder: Path | None = None
    """Where a disk is measured and files are written; None = the current folder, or the one for temporary files."""


def report_speed(options: SpeedOptions, *, as_json: bool) -> None:
    """Measure this machine and print what was found."""
    if as_json:
        speed = measure_machine(options, lambda _stage: None)
        common.print_json({**speed.to_dict(), "machine": describe_machine()})
        return
    mark = _mark()
    print(f"{'stage':<10}  {'measured':>20}  {'Mpx/s of scene':>14}  (bars are logarithmic)")
    speed = measure_machine(options, lambda stage: print(_line(stage, mark), flush=True))
    load = speed.workload
    print(
        f"{_busy()}{_capital(speed.verdict())}.\n"
        f"A run of {speed.model} on {speed.device} does {speed.in_turn:.3g} Mpx/s if its stages take turns, "
        f"{speed.limit.mpx_per_s:.3g} if all overlap. Assumed: {load.objects_per_mpx:g} objects per Mpx, chips of "
        f"{load.chip_size} with {load.overlap} overlap."
    )


def measure_machine(options: SpeedOptions, tell: Callable[[StageSpeed], None]) -> MachineSpeed:
    """Measure the stages of a run one after the other.

    Args:
        options: what is measured.
        tell: called with each stage as soon as it is known.

    Raises:
        UsageError: the model answers prompts only.
        SceneError, ModelError, OutputError: something cannot be read, loaded or written.
    """
    from rsgeoseg import registry

    if registry.card(options.model).needs_prompts:
        msg = f"{options.model} answers prompts, and nobody gives it any here: choose another model"
        raise UsageError(msg)
    segmenter = registry.load_model(options.model, weights=options.weights, device=options.device)
    spec = segmenter.spec
    with tempfile.TemporaryDirectory(prefix=".rsgeoseg-speed.", dir=_writable(options.folder)) as name:
        drawn, device = _Drawn(Path(name), spec), getattr(segmenter, "device_name", "cpu")
        source = options.scene or str(drawn.picture())
        with _open(source, spec) as scene:
            workload, plan = _workload(scene, spec), _plan(scene, spec)
            chips = sample_chips(scene, spec.chip_size)
            file = _file_to_read(scene, Path(name))
        if not chips:
            msg = f"{source} has no valid pixel that can be read where it was looked at: measure with another scene"
            raise SceneError(msg)

        def stages() -> Iterator[StageSpeed]:
            time_of = {stage: share * options.seconds for stage, share in SHARES.items()}
            if file is not None:
                yield measure.measure_disk(file, workload, time_of["disk"])
            yield measure.measure_decode(lambda: _open(source, spec), plan, time_of["decode"])
            copy = _copier(chips[0].image, options.device)
            yield measure.measure_copy(copy, chips[0], workload, time_of["copy"], device=device)
            batch = tuned_batch_size(segmenter, chips)
            yield measure.measure_model(segmenter, chips, batch, workload, time_of["model"])
            small, found = drawn.objects(workload)
            yield measure.measure_stitch(small, found, time_of["stitch"])
            objects = measure.stitch(small, found)
            speed, frame = measure.measure_vectorise(objects, drawn.grid, workload, time_of["vectorise"])
            yield speed
            yield measure.measure_write(frame, Path(name), workload, time_of["write"])

        done = []
        for stage in stages():
            tell(stage)
            done.append(stage)
    return MachineSpeed(
        stages=tuple(done),
        workload=workload,
        model=spec.name,
        weights=spec.weights_id,
        device=device,
    )


def describe_machine() -> dict[str, Any]:
    """Return what a figure of speed needs beside it: processor, accelerator, memory, versions."""
    from rsgeoseg.cli import doctor
    from rsgeoseg.engine.record import versions

    looks = {"processor": doctor._processor, "accelerator": doctor._accelerator, "memory": doctor._memory}  # noqa: SLF001
    found = {name: doctor.run_check(name, look).detail for name, look in looks.items()}
    return {**found, "cores": os.cpu_count(), "load": _load(), "versions": versions()}


class _Drawn:
    """A drawn scene: as a picture in a tiled file, and as the objects of chips."""

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        self._folder, self._spec = folder, spec
        self._side = min(max(2 * spec.chip_size, 512), _DRAWN)

    def picture(self) -> Path:
        """Write the scene's pixels, twice each way, as runs meet them: tiled, ZSTD where GDAL has it, else deflate."""
        import rasterio

        from rsgeoseg.testing.scenes import generate_scene

        once = self._folder / "once.tif"
        generate_scene(once, height=self._side, width=self._side, seed=1)
        with rasterio.open(once) as file:
            pixels, profile = np.tile(file.read(), (1, 2, 2)), file.profile
        pixels = np.resize(pixels, (self._spec.bands, *pixels.shape[1:]))
        profile.update(height=pixels.shape[1], width=pixels.shape[2], count=len(pixels), blockxsize=512, blockysize=512)
        profile.update(compress="zstd", predictor=2, photometric="minisblack")
        path = self._folder / "picture.tif"
        for codec in ("zstd", "deflate"):
            try:
                with rasterio.open(path, "w", **{**profile, "compress": codec}) as file:
                    file.write(pixels)
            except rasterio.errors.RasterioError:
                continue
            break
        return path

    def objects(self, workload: Workload) -> tuple[WindowPlan, list[Instances]]:
        """Windows of the scene and the true objects of each, of all classes of the drawing."""
        from rsgeoseg.testing.oracle import OracleSegmenter, oracle_spec
        from rsgeoseg.testing.scenes import TEN_CLASSES, generate_scene

        path = self._folder / "ids.tif"
        density = workload.objects_per_mpx
        generate_scene(path, height=self._side, width=self._side, seed=1, density=density, oracle_ids=True)
        oracle = OracleSegmenter(spec=oracle_spec(TEN_CLASSES))
        plan = plan_windows(self._side, self._side, chip_size=workload.chip_size, overlap=workload.overlap)
        with Scene.open(path, stretch="none") as scene:
            self.grid = scene.grid
            return plan, [oracle.segment([scene.read(window.read)])[0] for window in plan.windows]


def _open(source: str, spec: ModelSpec) -> Scene:
    return Scene.open(source, value_range=spec.value_range, band_count=spec.bands)


def _overlap(chip_size: int, spec: ModelSpec) -> int:
    return min(spec.overlap, chip_size // 4)


def _plan(scene: Scene, spec: ModelSpec) -> WindowPlan:
    overlap = _overlap(spec.chip_size, spec)
    return plan_windows(scene.grid.height, scene.grid.width, chip_size=spec.chip_size, overlap=overlap)


def _workload(scene: Scene, spec: ModelSpec) -> Workload:
    chip_size = min(spec.chip_size, scene.grid.height, scene.grid.width)
    grid, path = scene.source_grid, scene.path
    raw = float(spec.bands * scene.dtype.itemsize)
    held = path is not None and path.is_file() and path.suffix.lower() != ".vrt"
    size = path.stat().st_size / (grid.width * grid.height) if held and path is not None else raw
    return Workload(chip_size=chip_size, overlap=_overlap(chip_size, spec), bytes_per_pixel=max(size, 1e-3))


def _file_to_read(scene: Scene, folder: Path) -> Path | None:
    """Choose what the disk is measured with: the scene's own file where it is large, else a new one beside the results.

    None: there is no room for one.
    """
    path = scene.path
    if path is not None and path.is_file() and path.stat().st_size >= measure.DISK_BYTES // 2:
        return path
    ours = folder / "random.bin"
    try:
        measure.write_random_file(ours, measure.DISK_BYTES)
    except OSError:
        ours.unlink(missing_ok=True)
        return None
    return ours


def _copier(image: np.ndarray[Any, Any], device: str) -> Callable[[], None]:
    from rsgeoseg.backbones.transfer import copy_and_wait
    from rsgeoseg.nn.device import find_device

    there = find_device(device)
    return lambda: copy_and_wait(image, there)


def _writable(folder: Path | None) -> Path:
    """Choose where to write: as asked, else here, where results will go; not all temporary folders are on a disk."""
    if folder is not None:
        return folder
    here = Path.cwd()
    return here if os.access(here, os.W_OK) else Path(tempfile.gettempdir())


def _line(stage: StageSpeed, mark: str) -> str:
    measured = f"{_plain(stage.rate)} {stage.unit}"
    bar = mark * bar_length(stage.mpx_per_s)
    return f"{stage.name:<10}  {measured:>20}  {_plain(stage.mpx_per_s):>14}  {bar:<{_BAR_WIDTH}}  {stage.detail}"


def bar_length(mpx_per_s: float) -> int:
    """Return the length of a bar: each mark more is 1.78 times as much, four a factor of ten."""
    share = math.log(max(mpx_per_s, _BAR_LOW) / _BAR_LOW) / math.log(_BAR_HIGH / _BAR_LOW)
    return max(1, round(min(share, 1.0) * _BAR_WIDTH))


def _plain(value: float) -> str:
    """Write a number with three digits, without an exponent."""
    return f"{float(f'{value:.3g}'):,.10g}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _load() -> float | None:
    """Processes that wanted a core in the last minute; None where the system does not tell."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def _busy() -> str:
    """Say it where other programs take part of the machine."""
    load, cores = _load(), os.cpu_count() or 1
    if load is None or load < 1.5 * cores:
        return ""
    return f"This machine is busy (load {load:.1f} on {cores} cores): these figures are what was left of it.\n"


def _mark() -> str:
    """A block, or a hash where the terminal has none."""
    try:
        "█".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return "#"
    return "█"
