"""The front hall: one run, the same for the command line, Python and other programs."""

from __future__ import annotations

import logging
import os
import time
import uuid
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Unpack

import numpy as np

from rsgeoseg import registry
from rsgeoseg.engine.budget import MOST_ROWS, share_out, working_memory
from rsgeoseg.engine.clicking import score_clicks
from rsgeoseg.engine.deliver import Delivered, Delivery, finished_run, read_record
from rsgeoseg.engine.identity import run_identity
from rsgeoseg.engine.memory import resident_memory
from rsgeoseg.engine.options import PipelineOptions, class_labels
from rsgeoseg.engine.order import DEFAULT_MODEL, RunJob, RunOptions, check_names
from rsgeoseg.engine.parts import FrameParts
from rsgeoseg.engine.pipeline import segment_scene
from rsgeoseg.engine.run_folder import RunFolder, read_manifest, run_folder
from rsgeoseg.engine.scoring import ImageFolder, ReadImages, score_images
from rsgeoseg.errors import FAILED_CHIPS_EXIT_CODE, JobCancelled, UsageError
from rsgeoseg.geo.scene import Scene
from rsgeoseg.geo.writers import check_output

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Sequence

    from geopandas import GeoDataFrame

    from rsgeoseg.contract import ModelSpec, Promptable, Segmenter
    from rsgeoseg.datasets.instances import InstanceDataset
    from rsgeoseg.engine.budget import Budget
    from rsgeoseg.engine.collect import Drawing
    from rsgeoseg.engine.events import Event
    from rsgeoseg.engine.pipeline import SceneResult
    from rsgeoseg.engine.scoring import AnnotatedImages, ScoredImages
    from rsgeoseg.evaluate.interactive import InteractiveResult

logger = logging.getLogger(__name__)

__all__ = [
    "DEFAULT_MODEL",
    "EvaluateJob",
    "RunJob",
    "RunOptions",
    "evaluate",
    "evaluate_clicks",
    "exit_code",
    "run",
    "run_job",
    "run_jobs",
]

_OFFLINE = "RSGEOSEG_OFFLINE"


def run(
    scene: str | os.PathLike[str] | Scene,
    model: str | Segmenter = DEFAULT_MODEL,
    output: str | os.PathLike[str] | None = None,
    *,
    progress: Callable[[Event], None] | None = None,
    cancel: threading.Event | None = None,
    **options: Unpack[RunOptions],
) -> GeoDataFrame:
    """Turn a georeferenced raster into object polygons.

    Args:
        scene: path or URL of a raster, or an open ``Scene`` (then its own bands, stretch, gsd, aoi and bbox hold).
        model: registry name, or anything that satisfies ``rsgeoseg.contract.Segmenter``.
        output: file to write beside returning the result; its extension chooses the format.
        progress: told of every event (``rsgeoseg.engine.events``).
        cancel: set it from another thread to stop.
        options: as on the command line with underscores; see ``RunJob``.

    Returns:
        One row per object with the columns of ``rsgeoseg.geo.frame.SCHEMA``; ``attrs["rsgeoseg"]`` is the run record.

    Raises:
        UsageError, SceneError, ModelError, OutputError, JobCancelled: one line saying what, where and what to do.
    """
    check_names(dict(options))
    opened = scene if isinstance(scene, Scene) else None
    if opened is not None:
        _check_open_scene(options)
    job = RunJob(
        scene=str(opened.path) if opened is not None else os.fspath(scene),  # type: ignore[arg-type]
        model=model if isinstance(model, str) else model.spec.name,
        output=None if output is None else os.fspath(output),
        **options,  # type: ignore[arg-type]
    )
    segmenter = None if isinstance(model, str) else model
    return run_job(job, on_event=progress, cancel=cancel, segmenter=segmenter, scene=opened)


def run_job(
    job: RunJob,
    *,
    on_event: Callable[[Event], None] | None = None,
    cancel: threading.Event | None = None,
    segmenter: Segmenter | None = None,
    scene: Scene | None = None,
) -> GeoDataFrame:
    """Do a job.

    Args:
        job: what to do.
        on_event: told of every event.
        cancel: set it from another thread to stop.
        segmenter: a loaded model to use instead of loading ``job.model``.
        scene: an open scene to use instead of opening ``job.scene``; it stays open.

    Returns:
        As ``run``.

    Raises:
        RsGeoSegError: as ``run``.
    """
    with _finished(job, on_event=on_event, cancel=cancel, segmenter=segmenter, scene=scene) as done:
        return done.frame()


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
    for job in jobs:
        check_job(job)
    loaded: dict[tuple[str, str | None, str], Segmenter] = {}
    for job in jobs:
        key = (job.model, job.weights, job.device)
        if key not in loaded:
            loaded = {key: load_segmenter(job)}
        with _finished(job, on_event=on_event, cancel=cancel, segmenter=loaded[key]) as done:
            yield job, done.record


@contextmanager
def _finished(
    job: RunJob,
    *,
    on_event: Callable[[Event], None] | None,
    cancel: threading.Event | None,
    segmenter: Segmenter | None = None,
    scene: Scene | None = None,
) -> Iterator[Delivered]:
    """Do a job; its parts are there until the block ends."""
    start = time.perf_counter()
    tell = on_event or (lambda _event: None)
    try:
        check_job(job)
        model = segmenter or load_segmenter(job)
        with _opened(job, model.spec, scene) as source:
            options = pipeline_options(job, model)
            _warn_of_ground(source, model.spec)
            budget = None if job.max_memory is None else _budget(job, job.max_memory, source, model, options)
            if budget is not None:
                options = replace(options, ahead=budget.ahead)
                source.limit_cache(budget.cache_bytes)
            delivery = _delivery(job, budget)
            drawing = delivery.drawing(source, model.spec)
            identity = run_identity(source, model.spec, options, delivery, _device_kind(model))
            if job.resume and job.output is not None:
                earlier = finished_run(Path(job.output), identity)
                if earlier is not None:
                    yield earlier
                    return
            with _parts(job, drawing, identity) as parts:
                work = _segment(job, source, model, options, parts, budget, given=segmenter is not None)
                result = work(tell, cancel)
                about = {"job": asdict(job), "identity": identity}
                done = delivery.deliver(
                    parts, result, source, model.spec, about=about, start=start, tell=tell, cancel=cancel
                )
                yield done
                if isinstance(parts, RunFolder):
                    parts.remove()
    except KeyboardInterrupt as error:
        msg = "cancelled: nothing was written"
        raise JobCancelled(msg) from error


def _segment(
    job: RunJob,
    source: Scene,
    model: Segmenter,
    options: PipelineOptions,
    parts: FrameParts,
    budget: Budget | None,
    *,
    given: bool,
) -> Callable[[Callable[[Event], None], threading.Event | None], SceneResult]:
    """Choose where the work is done: here, on processes of this machine, or on a running cluster."""
    if job.workers is None and job.scheduler is None:
        return lambda tell, cancel: segment_scene(source, model, options, tell, cancel, parts)
    from rsgeoseg.engine.block_work import WorkOrder  # noqa: PLC0415
    from rsgeoseg.nn.device import all_devices  # noqa: PLC0415

    try:
        from rsgeoseg.engine import cluster  # noqa: PLC0415
    except ImportError as error:
        msg = f"workers need Dask ({error}): install rsgeoseg[dask]"
        raise UsageError(msg) from error
    order = WorkOrder(
        token=uuid.uuid4().hex[:12],
        scene=source,
        load=partial(_given, model) if given else partial(_load_on, job),
        options=options,
        drawing=parts.drawing,
        weights_id=model.spec.weights_id,
        devices=all_devices(job.device) if job.workers is not None else (job.device,),
        cache_bytes=None if budget is None else budget.cache_bytes,
    )

    def shared(tell: Callable[[Event], None], cancel: threading.Event | None) -> SceneResult:
        joined = cluster.local_cluster(job.workers) if job.workers else cluster.joined_cluster(str(job.scheduler))
        with joined as client:
            limit = None if budget is None else budget.frontier_bytes
            return cluster.segment_on_cluster(
                client, order, parts, model=model.spec.name, on_event=tell, cancel=cancel, budget=limit
            )

    return shared


def _load_on(job: RunJob, device: str) -> Segmenter:
    """Load the model of a job in a worker process."""
    return load_segmenter(replace(job, device=device))


def _given(segmenter: Segmenter, _device: str) -> Segmenter:
    """Use a model that came with the order."""
    return segmenter


def _budget(job: RunJob, limit: int, source: Scene, model: Segmenter, options: PipelineOptions) -> Budget:
    """Share the memory out that a job may take."""
    bands, dtype = len(source.band_indexes), np.dtype(np.uint8) if model.spec.value_range == "uint8" else source.dtype
    resident = resident_memory() or 0
    return share_out(
        limit,
        processes=1 if job.workers is None else job.workers + 1,
        resident=resident,
        working=working_memory(model, options, dtype),
        chip_bytes=options.chip_size**2 * (bands * dtype.itemsize + 1),
        options=options,
    )


@contextmanager
def _parts(job: RunJob, drawing: Drawing, identity: dict[str, Any]) -> Iterator[FrameParts]:
    """Keep parts beside the output, or in memory where there is none."""
    if job.output is None:
        yield FrameParts(drawing)
        return
    with RunFolder(Path(job.output), identity, drawing, resume=job.resume, overwrite=job.overwrite) as folder:
        yield folder


def _device_kind(segmenter: Segmenter) -> str:
    return str(getattr(segmenter, "device", "cpu")).partition(":")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateJob:
    """A model to be measured on annotated images."""

    annotations: str | None = None
    """COCO instance annotations; None = a dataset's own."""
    images: str | None = None
    """Folder of the images that they name."""
    dataset: str | None = None
    """Name of a known dataset, in place of annotations and images."""
    root: str | None = None
    """Folder of that dataset."""
    split: str | None = None
    """Split of that dataset; None = the one that it is measured on."""
    model: str = DEFAULT_MODEL
    weights: str | None = None
    device: str = "auto"
    every: int = 1
    """Only every n-th image by sorted file name."""
    start: int = 0
    """Index of the first image taken."""
    score_threshold: float = 0.02
    """Objects below are not counted: they would hardly change the figures and take most of the time."""


def evaluate(
    job: EvaluateJob,
    *,
    segmenter: Segmenter | None = None,
    tell: Callable[[int, int], None] | None = None,
    cancel: threading.Event | None = None,
) -> ScoredImages:
    """Measure COCO's average precision of a model, by masks and by boxes.

    Args:
        job: what to measure.
        segmenter: a loaded model to use instead of loading ``job.model``.
        tell: called with images done and images in all.
        cancel: set it from another thread to stop.

    Raises:
        UsageError, SceneError, ModelError: one line saying what, where and what to do.
    """
    images, annotations = _annotated(job)
    return score_images(
        segmenter or registry.load_model(job.model, weights=job.weights, device=job.device),
        images,
        annotations,
        every=job.every,
        start=job.start,
        score_threshold=job.score_threshold,
        tell=tell,
        cancel=cancel,
    )


def evaluate_clicks(
    job: EvaluateJob,
    *,
    segmenter: Promptable[Any] | None = None,
    tell: Callable[[int, int], None] | None = None,
    cancel: threading.Event | None = None,
) -> InteractiveResult:
    """Measure how many clicks of a simulated user the annotated objects need.

    Args:
        job: what to measure; ``every`` and ``start`` choose images.
        segmenter: a loaded model to use instead of loading ``job.model``.
        tell: called with objects done and objects in all.
        cancel: set it from another thread to stop.

    Raises:
        UsageError, ModelError: one line saying what, where and what to do.
    """
    data = _instances(job)
    chosen = data.subset(range(job.start, len(data), job.every))
    loaded: Any = segmenter or registry.load_model(job.model, weights=job.weights, device=job.device)
    return score_clicks(loaded, chosen, tell=tell, cancel=cancel)


def _instances(job: EvaluateJob) -> InstanceDataset:
    """Open the images of a job as a dataset (torch and torchgeo, for these ways only)."""
    if job.dataset is None:
        if job.annotations is None or job.images is None:
            msg = "give annotations and the folder of their images, or a dataset and its root"
            raise UsageError(msg)
        from rsgeoseg.datasets.coco import CocoInstances  # noqa: PLC0415

        return CocoInstances(job.images, job.annotations)
    if job.root is None:
        msg = f"give the folder of {job.dataset} as root"
        raise UsageError(msg)
    from rsgeoseg.datasets.catalog import find_dataset, open_dataset  # noqa: PLC0415

    return open_dataset(job.dataset, Path(job.root), job.split or find_dataset(job.dataset).measured)


def _annotated(job: EvaluateJob) -> tuple[AnnotatedImages, Path | dict[str, Any]]:
    """Find the images of a job and their annotations."""
    if job.dataset is None:
        if job.annotations is None or job.images is None:
            msg = "give annotations and the folder of their images, or a dataset and its root"
            raise UsageError(msg)
        return ImageFolder(Path(job.images)), Path(job.annotations)
    data = _instances(job)
    place = {data.labelled(index).image_id: index for index in range(len(data))}
    return ReadImages(lambda image_id: data.labelled(place[image_id]).read()), data.to_coco()


def check_job(job: RunJob) -> None:
    """Refuse a scene that is missing and an output that could not be written, before a model is loaded.

    Raises:
        SceneError: there is no such file.
        OutputError: it exists, its folder is missing or read-only, or no format goes with its name.
    """
    if not Path(job.scene).exists():
        Scene.open(job.scene).close()  # says what is wrong with it
    if job.output is not None:
        check_output(Path(job.output), overwrite=job.overwrite or job.resume, format=job.format)


def load_segmenter(job: RunJob) -> Segmenter:
    """Load the model of a job, without the network where the job says so.

    Raises:
        ModelError: the model is unknown, or its weights cannot be had.
        UsageError: it answers prompts only; said before its weights are fetched.
    """
    if registry.card(job.model).needs_prompts:
        _refuse_prompted(job.model)
    before = os.environ.get(_OFFLINE)
    if job.offline:
        os.environ[_OFFLINE] = "1"
    try:
        return registry.load_model(job.model, weights=job.weights, device=job.device)
    finally:
        if job.offline:
            if before is None:
                del os.environ[_OFFLINE]
            else:
                os.environ[_OFFLINE] = before


def exit_code(record: dict[str, Any]) -> int:
    """Return the process exit code for a finished run: 6 where chips failed and none succeeded, else 0."""
    chips = record["chips"]
    return FAILED_CHIPS_EXIT_CODE if chips["failed"] and not chips["done"] else 0


def pipeline_options(job: RunJob, segmenter: Segmenter) -> PipelineOptions:
    """Fill what a job leaves open with what the model suggests.

    A segmenter may have an attribute ``batch_size``, the chips per call that suit its device; 1 otherwise.

    Raises:
        UsageError: a class that the model does not know, larger chips than it takes, or a model that needs prompts.
    """
    spec = segmenter.spec
    if spec.needs_prompts:
        _refuse_prompted(spec.name)
    chip_size = job.chip_size or spec.chip_size
    if chip_size > spec.chip_size:
        msg = f"chip-size {chip_size} is more than {spec.name} takes: give at most {spec.chip_size}, or leave it out"
        raise UsageError(msg)
    return PipelineOptions(
        chip_size=chip_size,
        overlap=min(spec.overlap, chip_size // 4) if job.overlap is None else job.overlap,
        batch_size=job.batch_size or _batch_size(job, segmenter),
        score_threshold=spec.score_threshold if job.score_threshold is None else job.score_threshold,
        labels=class_labels(job.classes, spec),
        nms=job.nms,
        on_chip_error=job.on_chip_error,
    )


def _batch_size(job: RunJob, segmenter: Segmenter) -> int:
    """Choose chips per call where the user did not: as the run that is gone on with, or as suits the device."""
    if job.resume and job.output is not None:
        for known in (read_manifest(run_folder(Path(job.output))), read_record(Path(job.output))):
            size = ((known or {}).get("options") or {}).get("batch_size")
            if isinstance(size, int) and size > 0:
                return size
    return int(getattr(segmenter, "batch_size", 1))


def _refuse_prompted(model: str) -> NoReturn:
    msg = f"{model} answers prompts, and a run gives it none: prompt it from Python, or run another model"
    raise UsageError(msg)


def _warn_of_ground(scene: Scene, spec: ModelSpec) -> None:
    """Say when a model never saw pixels of this size: it will then find little, and nothing else would tell."""
    gsd = scene.grid.gsd
    if gsd is None or spec.gsd_range is None or spec.gsd_range[0] <= gsd <= spec.gsd_range[1]:
        return
    text = "%s has %.3g m per pixel, the weights were trained on %g to %g: expect poor results, or try --gsd"
    logger.warning(text, scene.name, gsd, *spec.gsd_range)


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
def _opened(job: RunJob, spec: ModelSpec, scene: Scene | None) -> Iterator[Scene]:
    if scene is not None:
        yield scene
        return
    with Scene.open(
        job.scene,
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
