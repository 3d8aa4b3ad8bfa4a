"""Measuring the stages of a run one by one, each with the machine to itself.

A rate is the median of rounds: what the machine gives under the load that is on it now, not its best moment.
"""

from __future__ import annotations

import os
import statistics
import time
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np

from rsgeoseg.engine.reader import read_ahead
from rsgeoseg.engine.speed import StageSpeed
from rsgeoseg.geo.frame import objects_to_frame
from rsgeoseg.geo.stitch import Stitcher
from rsgeoseg.geo.writers import write_frame

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import geopandas as gpd

    from rsgeoseg.contract import Chip, Instances, Segmenter
    from rsgeoseg.engine.speed import Workload
    from rsgeoseg.geo.grid import GeoGrid
    from rsgeoseg.geo.scene import Scene
    from rsgeoseg.geo.stitch import StitchedObject
    from rsgeoseg.geo.windows import WindowPlan

DISK_BYTES = 64 << 20
"""Size of the file that a disk is measured with; of a user's file at most four times as much is read."""
MOST_OBJECTS = 2000
"""Objects of a round of vectorising and writing: enough to make the cost of a call small."""
_BLOCK = 4 << 20
_READERS = 2


def measure_disk(path: Path, workload: Workload, seconds: float) -> StageSpeed:
    """Measure how fast a file is read from its disk, from the start.

    The system is told to forget what it holds of the file; where it cannot be told, or does not listen, the figure is
    that of memory, and ``detail`` says so.

    Args:
        path: a local file.
        workload: for the conversion.
        seconds: for all.

    Raises:
        OSError: it cannot be read.
    """
    forgotten = _forget(path)
    count, cold = _read_through(path, 4 * DISK_BYTES, seconds / 2)
    again, warm = _read_through(path, count, seconds / 2)
    rate, from_memory = count / 1e6 / cold, again / 1e6 / warm
    detail = f"{count / 1e6:.0f} MB; {from_memory:,.0f} MB/s from the system's memory"
    if not forgotten or rate > 0.7 * from_memory:
        detail = f"{count / 1e6:.0f} MB; perhaps from the system's memory, which it would not clear"
    return StageSpeed(name="disk", rate=rate, unit="MB/s", mpx_per_s=workload.file_to_mpx(rate), detail=detail)


def write_random_file(path: Path, size: int) -> None:
    """Write a file that no disk can compress, through to the disk.

    Raises:
        OSError: there is no room, or the folder is read-only.
    """
    with path.open("wb") as file:
        rng = np.random.default_rng(0)
        for start in range(0, size, _BLOCK):
            file.write(rng.bytes(min(_BLOCK, size - start)))
        file.flush()
        os.fsync(file.fileno())


def measure_decode(open_scene: Callable[[], Scene], plan: WindowPlan, seconds: float) -> StageSpeed:
    """Measure reading as a run reads: threads, decoding, stretch, chips with overlap; the file in the system's memory.

    Args:
        open_scene: opens the scene afresh, so that nothing of it is held decoded.
        plan: of its windows; those in the middle are read first.
        seconds: for all.

    Raises:
        SceneError: it cannot be read.
    """
    order = np.roll(np.arange(len(plan.windows)), -(len(plan.windows) // 3)).tolist()
    pixels, spent = 0, 0.0
    while not pixels or spent < seconds:
        with open_scene() as scene:
            _ = scene.stretch  # found once in a run
            start = time.perf_counter()
            windows = [plan.windows[i] for i in order]
            with closing(read_ahead(scene, windows, readers=_READERS, ahead=2 * _READERS + 1)) as reading:
                for item in reading:
                    if item.error is not None:
                        raise item.error
                    pixels += item.window.core.area
                    if pixels and spent + time.perf_counter() - start > seconds:
                        break
            spent += time.perf_counter() - start
    rate = pixels / 1e6 / spent
    return StageSpeed(
        name="decode", rate=rate, unit="Mpx/s", mpx_per_s=rate, detail=f"{_READERS} threads, overlap included"
    )


def measure_copy(
    copy: Callable[[], None], chip: Chip, workload: Workload, seconds: float, *, device: str
) -> StageSpeed:
    """Measure how fast pixels get to the device.

    Args:
        copy: copies the chip's pixels there and waits.
        chip: a chip.
        workload: for the conversion.
        seconds: for all.
        device: its kind; to a ``cpu`` pixels are copied within memory.
    """
    copy()  # the first sets things up
    each = _median_seconds(copy, seconds)
    return StageSpeed(
        name="copy",
        rate=chip.image.nbytes / 1e6 / each,
        unit="MB/s",
        mpx_per_s=workload.chips_to_mpx(1 / each),
        detail="within memory: there is no device" if device == "cpu" else "chips as bytes, a chip at a time",
    )


def measure_model(
    segmenter: Segmenter, chips: Sequence[Chip], batch_size: int, workload: Workload, seconds: float
) -> StageSpeed:
    """Measure how fast a model segments, objects cropped and back in memory.

    Args:
        segmenter: the model.
        chips: of one shape; taken in turn.
        batch_size: chips per call.
        workload: for the conversion.
        seconds: for all but the first call.

    Raises:
        ModelError, MemoryError: the model fails.
    """
    batch = [chips[i % len(chips)] for i in range(batch_size)]
    segmenter.segment(batch[:1])  # the first call loads kernels
    turn = iter(range(10**9))

    def step() -> None:
        first = next(turn) * batch_size
        segmenter.segment([chips[(first + i) % len(chips)] for i in range(batch_size)])

    rate = batch_size / _median_seconds(step, seconds)
    detail = f"{chips[0].image.shape[-1]} px, {batch_size} at a time"
    return StageSpeed(name="model", rate=rate, unit="chips/s", mpx_per_s=workload.chips_to_mpx(rate), detail=detail)


def measure_stitch(plan: WindowPlan, found: Sequence[Instances], seconds: float) -> StageSpeed:
    """Measure how fast the objects of chips are joined.

    Args:
        plan: the windows of a scene.
        found: the objects of each.
        seconds: for all.
    """
    each = _median_seconds(lambda: stitch(plan, found), seconds)
    rate = plan.height * plan.width / 1e6 / each
    count = sum(len(instances) for instances in found)
    return StageSpeed(name="stitch", rate=rate, unit="Mpx/s", mpx_per_s=rate, detail=f"{count} objects in chips")


def stitch(plan: WindowPlan, found: Sequence[Instances]) -> list[StitchedObject]:
    """Join the objects of all windows of a plan, in its order."""
    stitcher = Stitcher(plan)
    objects: list[StitchedObject] = []
    for window, instances in zip(plan.windows, found, strict=True):
        objects += stitcher.add(window, instances)
    return objects + stitcher.finish()


def measure_vectorise(
    objects: Sequence[StitchedObject], grid: GeoGrid, workload: Workload, seconds: float
) -> tuple[StageSpeed, gpd.GeoDataFrame]:
    """Measure how fast masks become rows: polygon, area, perimeter.

    Args:
        objects: of a scene, at least one; repeated to ``MOST_OBJECTS``, all of class 0.
        grid: the scene's.
        workload: for the conversion.
        seconds: for all.

    Returns:
        The speed, and the rows.
    """
    many = [objects[i % len(objects)] for i in range(MOST_OBJECTS)]
    classes = [str(label) for label in range(max(item.label for item in objects) + 1)]

    def step() -> gpd.GeoDataFrame:
        return objects_to_frame(many, grid=grid, classes=classes, model="speed")

    frame = step()
    rate = len(many) / _median_seconds(step, seconds)
    size = float(np.mean([item.mask.size for item in objects]))
    detail = f"boxes of {size**0.5:.0f} px on average"
    speed = StageSpeed(
        name="vectorise", rate=rate, unit="polygons/s", mpx_per_s=workload.objects_to_mpx(rate), detail=detail
    )
    return speed, frame


def measure_write(frame: gpd.GeoDataFrame, folder: Path, workload: Workload, seconds: float) -> StageSpeed:
    """Measure how fast rows get into a GeoPackage, flushed and counted as a run does it.

    Args:
        frame: of ``objects_to_frame``.
        folder: where it may write.
        workload: for the conversion.
        seconds: for all.

    Raises:
        OutputError: it cannot be written.
    """
    path = folder / "speed.gpkg"
    rate = len(frame) / _median_seconds(lambda: write_frame(frame, path, overwrite=True), seconds)
    return StageSpeed(
        name="write", rate=rate, unit="features/s", mpx_per_s=workload.objects_to_mpx(rate), detail="GeoPackage"
    )


def _median_seconds(step: Callable[[], object], seconds: float) -> float:
    """Median time of a step that is done over and over, at least once."""
    taken: list[float] = []
    until = time.perf_counter() + seconds
    while not taken or time.perf_counter() < until:
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    return max(statistics.median(taken), 1e-9)


def _forget(path: Path) -> bool:
    """Ask the system to drop what it holds of a file; whether it can be asked."""
    if not hasattr(os, "posix_fadvise"):
        return False
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def _read_through(path: Path, most: int, seconds: float) -> tuple[int, float]:
    """Read a file from the start: bytes read, and the time it took."""
    buffer, count, start = bytearray(_BLOCK), 0, time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while count < most and (not count or time.perf_counter() - start < seconds):
            got = file.readinto(buffer)
            if not got:
                break
            count += got
    return count, max(time.perf_counter() - start, 1e-9)
