"""Measuring a model on annotated images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsgeoseg import registry
from rsgeoseg.engine.clicking import score_clicks
from rsgeoseg.engine.order import DEFAULT_MODEL
from rsgeoseg.engine.scoring import ImageFolder, ReadImages, score_images
from rsgeoseg.errors import UsageError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from rsgeoseg.contract import Promptable, Segmenter
    from rsgeoseg.datasets.instances import InstanceDataset
    from rsgeoseg.engine.scoring import AnnotatedImages, ScoredImages
    from rsgeoseg.evaluate.interactive import InteractiveResult


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
