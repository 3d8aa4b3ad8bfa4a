"""The end of a run: objects become a table, the table a file, and the run record goes beside it."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rsgeoseg.engine.collect import FrameCollector
from rsgeoseg.engine.events import Event, RunFinished, StageStarted
from rsgeoseg.engine.memory import peak_memory
from rsgeoseg.engine.reader import check_cancel
from rsgeoseg.engine.record import model_record, rate, scene_record, versions
from rsgeoseg.geo.writers import write_frame, write_record

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from pathlib import Path

    from geopandas import GeoDataFrame

    from rsgeoseg.contract import ModelSpec
    from rsgeoseg.engine.pipeline import SceneResult
    from rsgeoseg.geo.scene import Scene

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What becomes of the objects of a scene."""

    output: Path | None = None
    """File to write; None = only return the table."""
    format: str | None = None
    """Name of the format; None = by extension."""
    overwrite: bool = False
    min_area: str | None = None
    """``20m2`` or ``50px``."""
    simplify: float = 0.0
    """Pixels."""
    regularize: bool = False
    dst_crs: str | None = None

    def collector(self, scene: Scene, spec: ModelSpec) -> FrameCollector:
        """Return what takes the objects of a scene.

        Raises:
            UsageError: options that do not fit the scene.
        """
        return FrameCollector(
            scene.grid,
            spec,
            min_area=self.min_area,
            simplify=self.simplify,
            regularize=self.regularize,
            dst_crs=self.dst_crs,
        )

    def deliver(
        self,
        collector: FrameCollector,
        result: SceneResult,
        scene: Scene,
        spec: ModelSpec,
        *,
        job: dict[str, Any],
        start: float,
        tell: Callable[[Event], None],
        cancel: threading.Event | None = None,
    ) -> GeoDataFrame:
        """Write the output and its record.

        Args:
            collector: holds the objects.
            result: what happened while they were found.
            scene: the scene they were found in.
            spec: the model that found them.
            job: the order, for the record.
            start: ``time.perf_counter()`` at the start of the run.
            tell: takes events.
            cancel: set by the user to stop; no longer heeded once writing began.

        Returns:
            The table, with the record in ``attrs["rsgeoseg"]``.

        Raises:
            OutputError: the output cannot be written; nothing is left under its name.
            JobCancelled: ``cancel`` was set.
        """
        tell(StageStarted(stage="polygonize"))
        stages = result.record["stages"]
        frame = collector.finish()
        stages["polygonize"] = {"seconds": round(collector.seconds, 6)}
        check_cancel(cancel)
        if self.output is not None:
            tell(StageStarted(stage="write"))
            before = time.perf_counter()
            self._write(frame, scene, spec)
            stages["write"] = {"seconds": _since(before), "bytes": self.output.stat().st_size}
        record = _record(result, frame, scene, spec, job=job, start=start)
        if self.output is not None:
            write_record(self.output, record)
        frame.attrs["rsgeoseg"] = record
        _tell_end(record, scene.name, self.output, tell)
        return frame

    def _write(self, frame: GeoDataFrame, scene: Scene, spec: ModelSpec) -> None:
        assert self.output is not None
        write_frame(
            frame,
            self.output,
            overwrite=self.overwrite,
            format=self.format,
            grid=scene.grid,
            classes=spec.classes,
            scene_name=scene.name,
        )


def _record(
    result: SceneResult, frame: GeoDataFrame, scene: Scene, spec: ModelSpec, *, job: dict[str, Any], start: float
) -> dict[str, Any]:
    seconds = _since(start)
    return {
        "versions": versions(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": model_record(spec),
        "scene": scene_record(scene),
        "job": job,
        "options": result.options.to_dict(spec),
        "objects": {"total": len(frame), "per_class": frame["class_name"].value_counts().to_dict()},
        **result.record,
        "seconds": seconds,
        "mpx_per_s": rate(result.record["pixels"], seconds),
        "peak_memory_bytes": peak_memory(),
    }


def _tell_end(record: dict[str, Any], name: str, output: Path | None, tell: Callable[[Event], None]) -> None:
    failed = record["chips"]["failed"]
    if failed:
        text = "%s: %d of %d chips failed and are left out; the run record has their footprints"
        logger.warning(text, name, failed, record["chips"]["total"])
    tell(
        RunFinished(
            objects=record["objects"]["total"],
            failed=failed,
            seconds=record["seconds"],
            mpx_per_s=record["mpx_per_s"],
            output=None if output is None else str(output),
        )
    )


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 6)
