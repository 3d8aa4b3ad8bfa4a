"""What a job leaves to its model."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rsgeoseg.engine.deliver import read_record
from rsgeoseg.engine.options import PipelineOptions, class_labels
from rsgeoseg.engine.run_folder import read_manifest, run_folder
from rsgeoseg.engine.tuning import best_batch_size, own_batch_size
from rsgeoseg.errors import UsageError
from rsgeoseg.jobs.model_source import model_source, refuse_prompted
from rsgeoseg.network import offline

if TYPE_CHECKING:
    import threading

    from rsgeoseg.contract import ModelSpec, Segmenter
    from rsgeoseg.engine.order import RunJob
    from rsgeoseg.geo.scene import Scene

logger = logging.getLogger(__name__)


def load_segmenter(job: RunJob) -> Segmenter:
    """Load the model of a job, without the network where the job says so.

    Raises:
        ModelError: the model is unknown, or its weights cannot be had.
        UsageError: it answers prompts only; said before its weights are fetched.
    """
    return model_source(job)(job.device)


def network(job: RunJob) -> AbstractContextManager[None]:
    """Return what keeps the network off while it is entered, where the job says so."""
    return offline() if job.offline else nullcontext()


def device_kind(segmenter: Segmenter) -> str:
    """Return the kind of device a model is on; ``cpu`` where it does not say."""
    return str(getattr(segmenter, "device", "cpu")).partition(":")[0]


def pipeline_options(job: RunJob, segmenter: Segmenter) -> PipelineOptions:
    """Fill what a job leaves open with what the model suggests.

    A segmenter may have an attribute ``batch_size``, the chips per call that suit its device; 1 otherwise.

    Raises:
        UsageError: a class that the model does not know, larger chips than it takes, or a model that needs prompts.
    """
    spec = segmenter.spec
    if spec.needs_prompts:
        refuse_prompted(spec.name)
    chip_size = job.chip_size or spec.chip_size
    if chip_size > spec.chip_size:
        msg = f"chip-size {chip_size} is more than {spec.name} takes: give at most {spec.chip_size}, or leave it out"
        raise UsageError(msg)
    return PipelineOptions(
        chip_size=chip_size,
        overlap=min(spec.overlap, chip_size // 4) if job.overlap is None else job.overlap,
        batch_size=job.batch_size or _known_batch_size(job) or own_batch_size(segmenter),
        score_threshold=spec.score_threshold if job.score_threshold is None else job.score_threshold,
        labels=class_labels(job.classes, spec),
        nms=job.nms,
        on_chip_error=job.on_chip_error,
    )


def tuned(
    job: RunJob, options: PipelineOptions, segmenter: Segmenter, scene: Scene, cancel: threading.Event | None
) -> PipelineOptions:
    """Find the batch size by trying, where neither the user nor the run that is gone on with says one.

    Raises:
        JobCancelled: ``cancel`` was set.
    """
    if job.batch_size is not None or _known_batch_size(job) is not None:
        return options
    return replace(options, batch_size=best_batch_size(segmenter, scene, options.chip_size, cancel=cancel))


def _known_batch_size(job: RunJob) -> int | None:
    """Return the chips per call of the run that is gone on with."""
    if job.resume and job.output is not None:
        for known in (read_manifest(run_folder(Path(job.output))), read_record(Path(job.output))):
            size = ((known or {}).get("options") or {}).get("batch_size")
            if isinstance(size, int) and size > 0:
                return size
    return None


def warn_of_ground(scene: Scene, spec: ModelSpec) -> None:
    """Say when a model never saw pixels of this size: it will then find little, and nothing else would tell."""
    gsd = scene.grid.gsd
    if gsd is None or spec.gsd_range is None or spec.gsd_range[0] <= gsd <= spec.gsd_range[1]:
        return
    text = "%s has %.3g m per pixel, the weights were trained on %g to %g: expect poor results, or try --gsd"
    logger.warning(text, scene.name, gsd, *spec.gsd_range)
