"""The end of a run: objects become a table, the table a file, and the run record goes beside it."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from rsgeoseg.engine.collect import Drawing
from rsgeoseg.engine.events import Event, RunFinished, StageStarted
from rsgeoseg.engine.memory import peak_memory
from rsgeoseg.engine.reader import check_cancel
from rsgeoseg.engine.record import model_record, rate, scene_record, versions
from rsgeoseg.engine.run_folder import clear_remains, differences, in_words, read_manifest, run_folder
from rsgeoseg.errors import OutputError
from rsgeoseg.geo.writers import BATCH_ROWS, load_frame, record_path, write_batches, write_record

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from geopandas import GeoDataFrame

    from rsgeoseg.contract import ModelSpec
    from rsgeoseg.engine.parts import FrameParts
    from rsgeoseg.engine.pipeline import SceneResult
    from rsgeoseg.engine.table import Table
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
    batch_rows: int = BATCH_ROWS
    """Rows written at once; they and their copies are all of the table that is in memory."""

    def drawing(self, scene: Scene, spec: ModelSpec) -> Drawing:
        """Return how the objects of a scene become rows.

        Raises:
            UsageError: options that do not fit the scene.
        """
        return Drawing(
            scene.grid,
            spec,
            min_area=self.min_area,
            simplify=self.simplify,
            regularize=self.regularize,
            dst_crs=self.dst_crs,
        )

    def deliver(
        self,
        parts: FrameParts,
        result: SceneResult,
        scene: Scene,
        spec: ModelSpec,
        *,
        about: dict[str, Any],
        start: float,
        tell: Callable[[Event], None],
        cancel: threading.Event | None = None,
    ) -> Delivered:
        """Write the output and its record.

        Args:
            parts: hold the rows.
            result: what happened while they were found.
            scene: the scene they were found in.
            spec: the model that found them.
            about: further entries of the record: the order and the run's identity.
            start: ``time.perf_counter()`` at the start of the run.
            tell: takes events.
            cancel: set by the user to stop; no longer heeded once writing began.

        Returns:
            The record and the table, which may be read from ``parts``: take it before they are removed.

        Raises:
            OutputError: the output cannot be written; nothing is left under its name.
            JobCancelled: ``cancel`` was set.
        """
        tell(StageStarted(stage="polygonize"))
        stages = result.record["stages"]
        table = parts.table()
        stages["polygonize"]["seconds"] = round(stages["polygonize"]["seconds"] + parts.across_seconds, 6)
        check_cancel(cancel)
        counts: Counter[str] = Counter()
        if self.output is None:
            counts.update(table.frame()["class_name"])
        else:
            tell(StageStarted(stage="write"))
            before = time.perf_counter()
            self._write(table, counts, scene, spec)
            stages["write"] = {"seconds": _since(before), "bytes": self.output.stat().st_size}
        about = {**about, "resumed_seconds": round(parts.resumed_seconds, 3)}
        objects = {"total": len(table), "vertices": table.vertices, "per_class": dict(counts)}
        record = _record(result, objects, scene, spec, about=about, start=start)
        if self.output is not None:
            write_record(self.output, record)
        _tell_end(record, scene.name, self.output, tell)
        return Delivered(record, table.frame)

    def _write(self, table: Table, counts: Counter[str], scene: Scene, spec: ModelSpec) -> None:
        """Stream the table into the output, counting classes on the way."""
        assert self.output is not None

        def counted() -> Iterator[GeoDataFrame]:
            for batch in table.batches(self.batch_rows):
                counts.update(batch["class_name"])
                yield batch

        write_batches(
            counted(),
            self.output,
            rows=len(table),
            vertices=table.vertices,
            overwrite=self.overwrite,
            format=self.format,
            grid=scene.grid,
            classes=spec.classes,
            scene_name=scene.name,
        )


@dataclass(frozen=True, slots=True)
class Delivered:
    """A finished run."""

    record: dict[str, Any]
    """The run record."""
    load: Callable[[], GeoDataFrame]
    """Gives the whole table; valid while the run's parts are there."""

    def frame(self) -> GeoDataFrame:
        """Return the table with the record in ``attrs["rsgeoseg"]``."""
        frame = self.load()
        frame.attrs["rsgeoseg"] = self.record
        return frame


def read_record(output: Path) -> dict[str, Any] | None:
    """Return the run record beside an output; None where there is none that can be read."""
    try:
        found = json.loads(record_path(output).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def finished_run(output: Path, identity: dict[str, Any]) -> Delivered | None:
    """Return an output that an earlier run finished; None where there is none, or an unfinished run is on top of it.

    Args:
        output: the file.
        identity: of the run asked for.

    Raises:
        OutputError: it is the output of another run, or of none.
    """
    if not output.exists() or read_manifest(run_folder(output)) is not None:
        return None
    record = read_record(output) or {}
    refuse_other(output, record, identity)
    clear_remains(output)
    logger.info("%s is finished: nothing to do", output)
    return Delivered(record, partial(load_frame, output))


def refuse_other(output: Path, record: dict[str, Any], identity: dict[str, Any], scene: str | None = None) -> None:
    """Refuse a finished output that another run made.

    Args:
        output: the file.
        record: of the run that made it, or its part about one scene.
        identity: of the run asked for.
        scene: name of that scene, where there are several.

    Raises:
        OutputError: the message says what differs.
    """
    of = "" if scene is None else f"for {scene} "
    if "identity" not in record:
        msg = f"cannot resume {output}: no run record says what run made it; use --overwrite"
        raise OutputError(msg)
    different = differences(record["identity"], identity)
    if different:
        msg = f"cannot resume {output}: it is finished, but {of}{in_words(different)}; use --overwrite for a new run"
        raise OutputError(msg)


def refuse_holes(output: Path, record: dict[str, Any]) -> None:
    """Refuse a finished output in which chips are missing.

    Raises:
        OutputError: the message says how many, and what can be done.
    """
    chips = record["chips"]
    if chips["failed"]:
        msg = (
            f"{output} is finished, but {chips['failed']} of its {chips['total']} chips failed and are holes:"
            " --overwrite runs it anew, --on-chip-error skip takes it as it is"
        )
        raise OutputError(msg)


def _record(
    result: SceneResult,
    objects: dict[str, Any],
    scene: Scene,
    spec: ModelSpec,
    *,
    about: dict[str, Any],
    start: float,
) -> dict[str, Any]:
    seconds = _since(start)
    return {
        "versions": versions(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": model_record(spec),
        "scene": scene_record(scene),
        **about,
        "options": result.options.to_dict(spec),
        "objects": objects,
        **result.record,
        "seconds": seconds,
        "mpx_per_s": rate(result.record["pixels"] - result.record["resumed_pixels"], seconds),
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
