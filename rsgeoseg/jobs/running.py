"""Runs: from an order to a table, a file and a record."""

from __future__ import annotations

import os
import time
import uuid
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from rsgeoseg.engine.block_work import WorkOrder
from rsgeoseg.engine.budget import MOST_ROWS, share_out, working_memory
from rsgeoseg.engine.deliver import Delivered, Delivery, finished_run, read_record, refuse_holes
from rsgeoseg.engine.identity import run_identity
from rsgeoseg.engine.memory import resident_memory
from rsgeoseg.engine.order import DEFAULT_MODEL, RunJob, RunOptions, check_names
from rsgeoseg.engine.parts import FrameParts
from rsgeoseg.engine.pipeline import at_threshold, segment_scene
from rsgeoseg.engine.run_folder import RunFolder
from rsgeoseg.engine.tuning import sample_chips
from rsgeoseg.errors import FAILED_CHIPS_EXIT_CODE, JobCancelled, OutputError, UsageError
from rsgeoseg.geo.inputs import input_files, refuse_replacing
from rsgeoseg.geo.scene import Scene, refuse_kind
from rsgeoseg.geo.stac import is_item, only_scene
from rsgeoseg.geo.writers import check_output, record_path
from rsgeoseg.jobs.crew import Crew
from rsgeoseg.jobs.loading import (
    device_kind,
    network,
    pipeline_options,
    tuned,
    warn_of_ground,
)
from rsgeoseg.network import offline as without_network

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from geopandas import GeoDataFrame
    from xarray import DataArray

    from rsgeoseg.contract import ModelSpec, Segmenter
    from rsgeoseg.engine.budget import Budget
    from rsgeoseg.engine.collect import Drawing
    from rsgeoseg.engine.events import Event
    from rsgeoseg.engine.options import PipelineOptions
    from rsgeoseg.engine.pipeline import SceneResult


def run(
    scene: str | os.PathLike[str] | Mapping[str, Any] | Scene | DataArray,
    model: str | Segmenter = DEFAULT_MODEL,
    output: str | os.PathLike[str] | None = None,
    *,
    asset: str | None = None,
    progress: Callable[[Event], None] | None = None,
    cancel: threading.Event | None = None,
    **options: Unpack[RunOptions],
) -> GeoDataFrame:
    """Turn a georeferenced raster into object polygons.

    Args:
        scene: path or URL of a raster or of a STAC item, an item's JSON as a dict, an xarray ``DataArray``, or an open
            ``Scene`` (then its own bands, stretch, gsd, aoi and bbox hold).
        model: registry name, or anything that satisfies ``rsgeoseg.contract.Segmenter``.
        output: file to write beside returning the result; its extension chooses the format.
        asset: name of the STAC item's raster, where it has several.
        progress: told of every event (``rsgeoseg.engine.events``).
        cancel: set it from another thread to stop.
        options: as on the command line with underscores; see ``RunJob``.

    Returns:
        One row per object with the columns of ``rsgeoseg.geo.frame.SCHEMA``; ``attrs["rsgeoseg"]`` is the run record.

    Raises:
        UsageError, SceneError, ModelError, OutputError, JobCancelled: one line saying what, where and what to do.
    """
    check_names(dict(options))
    if is_item(scene):
        if output is not None and isinstance(scene, str | os.PathLike):
            refuse_replacing([Path(output), record_path(Path(output))], [Path(scene)])
        with without_network() if options.get("offline") else nullcontext():
            scene = only_scene(scene, asset)  # type: ignore[arg-type]
    elif asset is not None:
        msg = "asset names a raster of a STAC item: the scene is none"
        raise UsageError(msg)
    opened = scene if isinstance(scene, Scene) else None
    if opened is not None:
        _check_open_scene(options)
    array = opened is None and not isinstance(scene, str | os.PathLike)
    if array:
        refuse_kind(scene)
    job = RunJob(
        scene=opened.location if opened is not None else "DataArray" if array else os.fspath(scene),  # type: ignore[arg-type]
        model=model if isinstance(model, str) else model.spec.name,
        output=None if output is None else os.fspath(output),
        **options,  # type: ignore[arg-type]
    )
    segmenter = None if isinstance(model, str) else model
    return run_job(
        job,
        on_event=progress,
        cancel=cancel,
        segmenter=segmenter,
        scene=scene if array else opened,  # type: ignore[arg-type]
    )


def run_job(
    job: RunJob,
    *,
    on_event: Callable[[Event], None] | None = None,
    cancel: threading.Event | None = None,
    segmenter: Segmenter | None = None,
    scene: Scene | DataArray | None = None,
) -> GeoDataFrame:
    """Do a job.

    Args:
        job: what to do.
        on_event: told of every event.
        cancel: set it from another thread to stop.
        segmenter: a loaded model to use instead of loading ``job.model``.
        scene: an open scene (it stays open) or a ``DataArray`` to use instead of opening ``job.scene``.

    Returns:
        As ``run``.

    Raises:
        RsGeoSegError: as ``run``.
    """
    if scene is None:
        check_jobs([job])
    else:
        behind = getattr(scene, "encoding", {}).get("source")  # of an array
        check_outputs([job], scene.files if isinstance(scene, Scene) else () if behind is None else (Path(behind),))
    with Crew(segmenter) as crew, _finished(job, crew, on_event=on_event, cancel=cancel, scene=scene) as done:
        return done.frame()


def write_job(
    job: RunJob,
    segmenter: Segmenter | None = None,
    *,
    on_event: Callable[[Event], None] | None = None,
    cancel: threading.Event | None = None,
) -> dict[str, Any]:
    """Do a job that has an output; the table is streamed into it and never in memory whole.

    Args:
        job: what to do.
        segmenter: a loaded model to use instead of loading ``job.model``.
        on_event: told of every event.
        cancel: set it from another thread to stop.

    Returns:
        The run record.

    Raises:
        RsGeoSegError: as ``run``.
    """
    check_jobs([job])
    with Crew(segmenter) as crew, _finished(job, crew, on_event=on_event, cancel=cancel) as done:
        return done.record


def run_jobs(
    jobs: Sequence[RunJob], *, on_event: Callable[[Event], None] | None = None, cancel: threading.Event | None = None
) -> Iterator[tuple[RunJob, dict[str, Any]]]:
    """Write the outputs of several jobs with one model, one after the other; all are checked before the first starts.

    The tables are streamed into their files and never in memory whole.

    Yields:
        Each job and its run record, as soon as it is written.

    Raises:
        RsGeoSegError: as ``run``; results that were yielded stay.
    """
    check_jobs(jobs)
    with Crew() as crew:
        for job in jobs:
            with _finished(job, crew, on_event=on_event, cancel=cancel) as done:
                record = done.record
            yield job, record


def identities(jobs: Sequence[RunJob]) -> Iterator[dict[str, Any]]:
    """Yield what decides the result of each job (``engine.identity``), with one model for all.

    Raises:
        RsGeoSegError: as ``run``.
    """
    with Crew() as crew:
        for job in (replace(job, workers=None, scheduler=None, max_memory=None) for job in jobs):
            with network(job), _opened(job, crew.segmenter(job).spec, None) as source:
                yield _Work(job, source, crew, _ignore, None).identity


@contextmanager
def _finished(
    job: RunJob,
    crew: Crew,
    *,
    on_event: Callable[[Event], None] | None,
    cancel: threading.Event | None,
    scene: Scene | DataArray | None = None,
) -> Iterator[Delivered]:
    """Do a job that was checked; its parts are there until the block ends.

    Args:
        job: what to do.
        crew: has its model and its processes.
        on_event: told of every event.
        cancel: set it from another thread to stop.
        scene: in place of the job's.
    """
    start = time.perf_counter()
    try:
        with network(job):
            crew.start(job)
            with _opened(job, crew.segmenter(job).spec, scene) as source:
                work = _Work(job, source, crew, on_event or _ignore, cancel)
                with work.finished(start) as done:
                    yield done
    except KeyboardInterrupt as error:
        msg = "cancelled: nothing was written"
        raise JobCancelled(msg) from error


class _Work:
    """One job on its open scene, with every option settled.

    Args:
        job: what to do.
        source: the open scene.
        crew: has its model and its processes.
        tell: takes events.
        cancel: set by the user to stop.
    """

    def __init__(
        self,
        job: RunJob,
        source: Scene,
        crew: Crew,
        tell: Callable[[Event], None],
        cancel: threading.Event | None,
    ) -> None:
        self.job, self.source, self.crew, self.tell, self.cancel = job, source, crew, tell, cancel
        self.model = model = crew.segmenter(job)
        self.options = tuned(job, pipeline_options(job, model), model, source, cancel)
        warn_of_ground(source, model.spec)
        self.budget = None
        if job.max_memory is not None:
            self.budget = _budget(job, job.max_memory, source, model, self.options)
            self.options = replace(self.options, ahead=self.budget.ahead)
            source.limit_cache(self.budget.cache_bytes)
        self.delivery = _delivery(job, self.budget)
        self.drawing = self.delivery.drawing(source, model.spec)
        self.identity = run_identity(source, model.spec, self.options, self.delivery, device_kind(model))

    @contextmanager
    def finished(self, start: float) -> Iterator[Delivered]:
        """Do the work, or find it done; the table can be had until the block ends.

        Args:
            start: ``time.perf_counter()`` at the start of the job.
        """
        job, spec = self.job, self.model.spec
        output = None if job.output is None else Path(job.output)
        earlier = finished_run(output, self.identity) if job.resume and output is not None else None
        if output is not None and earlier is not None:
            if job.on_chip_error == "raise":
                refuse_holes(output, earlier.record)
            yield earlier
            return
        with _parts(job, self.drawing, self.identity) as parts:
            result = self._segment(parts)
            self.source.refuse_if_changed(self.identity["scene"]["fingerprint"])
            about = {
                "job": asdict(job) | {"scene": self.source.location},  # without its secrets
                "identity": self.identity,
                "budget": None if self.budget is None else asdict(self.budget),
            }
            if self.budget is not None:
                self.budget.compare(result.record["seams"]["frontier_peak_bytes"])
            yield self.delivery.deliver(
                parts, result, self.source, spec, about=about, start=start, tell=self.tell, cancel=self.cancel
            )
            if isinstance(parts, RunFolder):
                parts.remove()

    def _segment(self, parts: FrameParts) -> SceneResult:
        """Find the objects here, on processes of this machine, or on a running cluster."""
        job, budget = self.job, self.budget
        if job.workers is None and job.scheduler is None:
            return segment_scene(self.source, self.model, self.options, self.tell, self.cancel, parts)
        client = self.crew.client(job)
        from rsgeoseg.engine.cluster import segment_on_cluster  # noqa: PLC0415  (an extra)

        return segment_on_cluster(
            client,
            self._order(),
            parts,
            model=self.model.spec.name,
            on_event=self.tell,
            cancel=self.cancel,
            budget=None if budget is None else budget.frontier_bytes,
        )

    def _order(self) -> WorkOrder:
        return WorkOrder(
            token=uuid.uuid4().hex[:12],
            scene=self.source,
            model=self.crew.source(self.job),
            options=self.options,
            drawing=self.drawing,
            weights_id=self.model.spec.weights_id,
            devices=self.crew.devices(self.job),
            cache_bytes=None if self.budget is None else self.budget.cache_bytes,
        )


def _budget(job: RunJob, limit: int, source: Scene, model: Segmenter, options: PipelineOptions) -> Budget:
    """Share the memory out that a job may take."""
    bands, dtype = len(source.band_indexes), np.dtype(np.uint8) if model.spec.value_range == "uint8" else source.dtype
    resident = resident_memory() or 0
    return share_out(
        limit,
        processes=1 if job.workers is None else job.workers + 1,
        resident=resident,
        working=working_memory(
            at_threshold(model, options.score_threshold), sample_chips(source, options.chip_size, 3), options.batch_size
        ),
        chip_bytes=options.chip_size**2 * (bands * dtype.itemsize + 1),
        options=options,
    )


@contextmanager
def _parts(job: RunJob, drawing: Drawing, identity: dict[str, Any]) -> Iterator[FrameParts]:
    """Keep parts beside the output, or in memory where there is none."""
    if job.output is None:
        yield FrameParts(drawing)
        return
    folder = RunFolder(
        Path(job.output),
        identity,
        drawing,
        resume=job.resume,
        overwrite=job.overwrite,
        keep_failed=job.on_chip_error == "skip",
    )
    with folder:
        yield folder


def check_jobs(jobs: Sequence[RunJob]) -> None:
    """Refuse scenes that cannot be opened and outputs that could not be written, before a model is loaded.

    Raises:
        SceneError, UsageError: as ``Scene.open``.
        OutputError: as ``check_outputs``.
    """
    for job in jobs:
        if len(jobs) > 1 or not Path(job.scene).exists():  # a single one is opened soon
            count = 1 if job.bands is None else len(job.bands)  # the model, which knows, is not there yet
            with network(job):
                Scene.open(
                    job.scene, bands=job.bands, gsd=job.gsd, aoi=job.aoi, bbox=job.bbox, band_count=count
                ).close()
    check_outputs(jobs)


def check_outputs(jobs: Sequence[RunJob], reads: Iterable[Path] = ()) -> None:
    """Refuse outputs that could not be written.

    Args:
        jobs: with outputs or without.
        reads: files that are read beside those that the jobs name.

    Raises:
        OutputError: one exists, its folder is missing or read-only, no format goes with its name, or it is a file that
            one of the jobs reads.
    """
    outputs = [Path(job.output) for job in jobs if job.output is not None]
    named = (path for job in jobs for path in input_files(job.scene, job.aoi, job.weights))
    refuse_replacing([*outputs, *map(record_path, outputs)], chain(reads, named))
    for job in jobs:
        if job.output is None:
            continue
        output = Path(job.output)
        if output.exists() and read_record(output) is not None and not (job.overwrite or job.resume):
            msg = f"{output} exists; choose another name, use --overwrite, or --resume if it comes from this same run"
            raise OutputError(msg)
        check_output(output, overwrite=job.overwrite or job.resume, format=job.format)


def exit_code(record: dict[str, Any]) -> int:
    """Return the process exit code for a finished run: 6 where a scene's chips failed and none succeeded, else 0."""
    if "scenes" in record:  # a merged run
        return max(exit_code(each["record"]) for each in record["scenes"])
    chips = record["chips"]
    return FAILED_CHIPS_EXIT_CODE if chips["failed"] and not chips["done"] else 0


def _delivery(job: RunJob, budget: Budget | None) -> Delivery:
    return Delivery(
        batch_rows=MOST_ROWS if budget is None else budget.batch_rows,
        output=None if job.output is None else Path(job.output),
        format=job.format,
        overwrite=job.overwrite or job.resume,
        min_area=job.min_area,
        simplify=job.simplify,
        regularize=job.regularize,
        dst_crs=job.dst_crs,
    )


@contextmanager
def _opened(job: RunJob, spec: ModelSpec, scene: Scene | DataArray | None) -> Iterator[Scene]:
    if isinstance(scene, Scene):
        yield scene
        return
    with Scene.open(
        job.scene if scene is None else scene,
        bands=job.bands,
        stretch=job.stretch,
        gsd=job.gsd,
        aoi=job.aoi,
        bbox=job.bbox,
        value_range=spec.value_range,
        band_count=spec.bands,
    ) as opened:
        yield opened


def _check_open_scene(options: RunOptions) -> None:
    taken = [name for name in ("bands", "stretch", "gsd", "aoi", "bbox") if name in options]
    if taken:
        msg = f"{', '.join(taken)} cannot be given with an open Scene: give them to Scene.open"
        raise UsageError(msg)


def _ignore(_event: Event) -> None:
    """Tell nobody."""
