"""Several scenes into one file."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsgeoseg.engine.deliver import read_record, refuse_holes, refuse_other
from rsgeoseg.engine.merging import SceneOutput, check_merged, merge_outputs, scene_names, scenes_folder
from rsgeoseg.errors import OutputError
from rsgeoseg.geo.scene import Scene
from rsgeoseg.jobs.loading import network
from rsgeoseg.jobs.running import check_outputs, identities, run_jobs

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from rsgeoseg.engine.events import Event
    from rsgeoseg.engine.order import RunJob

_SCENES = "scenes.json"


def run_merged(
    job: RunJob,
    scenes: Sequence[str],
    *,
    on_event: Callable[[Event], None] | None = None,
    cancel: threading.Event | None = None,
) -> dict[str, Any]:
    """Run scenes one after the other and write their objects to one file, with a ``scene`` column.

    Objects that lie across two scenes are not joined: for that, make one scene of them with ``gdalbuildvrt``. Results
    of single scenes wait in ``OUT.scenes/``, so that ``resume`` leaves finished ones as they are.

    Args:
        job: what to do with each scene; its output is the merged file.
        scenes: paths or URLs.
        on_event: told of every event.
        cancel: set it from another thread to stop.

    Returns:
        The record of the whole: sums, and the record of each scene under ``scenes``.

    Raises:
        RsGeoSegError: as ``run``; or scenes in different CRSs without ``dst_crs``.
    """
    assert job.output is not None
    output = Path(job.output)
    names = scene_names(scenes)
    check_outputs([replace(job, scene=scene) for scene in scenes])
    with network(job):
        crs = [(name, _crs(scene)) for name, scene in zip(names, scenes, strict=True)]
    check_merged(output, crs, job.format, job.dst_crs)
    folder = scenes_folder(output)
    pieces = [folder / f"{number:05d}.parquet" for number in range(len(scenes))]
    jobs = [
        replace(job, scene=scene, output=str(piece), format=None, overwrite=False)
        for scene, piece in zip(scenes, pieces, strict=True)
    ]
    if job.resume and output.exists() and not folder.exists():
        return _finished(output, names, jobs)
    if folder.exists() and not (job.resume or job.overwrite):
        msg = f"{folder} holds an unfinished run: --resume goes on with it, --overwrite starts anew"
        raise OutputError(msg)
    if not job.resume:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    _keep_names(folder / _SCENES, names)
    outputs = []
    try:
        for name, (done, record) in zip(names, run_jobs(jobs, on_event=on_event, cancel=cancel), strict=True):
            outputs.append(SceneOutput(scene=name, path=Path(str(done.output)), record=record))
        record = merge_outputs(outputs, output, format_name=job.format, overwrite=job.overwrite or job.resume)
    finally:
        if not [name for name in folder.iterdir() if name.name != _SCENES]:
            shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    return record


def _keep_names(file: Path, names: Sequence[str]) -> None:
    """Keep which scenes are merged, or refuse an unfinished run of others.

    Raises:
        OutputError: the file is there and has others.
    """
    try:
        earlier = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        earlier = None
    if earlier is None:
        file.write_text(json.dumps(list(names)), encoding="utf-8")
    elif earlier != list(names):
        msg = f"cannot resume {file.parent}: it is a run of {', '.join(map(str, earlier))}; use --overwrite"
        raise OutputError(msg)


def _finished(output: Path, names: Sequence[str], jobs: Sequence[RunJob]) -> dict[str, Any]:
    """Return the record of a merged output that is there.

    Raises:
        OutputError: it is not the output of this run of these scenes; the message says what differs.
    """
    record = read_record(output)
    if record is None or [each["name"] for each in record.get("scenes", [])] != list(names):
        msg = f"cannot resume {output}: it is not the finished result of these scenes; use --overwrite"
        raise OutputError(msg)
    for each, identity in zip(record["scenes"], identities(jobs), strict=True):
        refuse_other(output, each["record"], identity, each["name"])
    if jobs[0].on_chip_error == "raise":
        refuse_holes(output, record)
    return record


def _crs(scene: str) -> str | None:
    with Scene.open(scene) as opened:
        crs = opened.grid.crs
        return None if crs is None else str(crs.to_wkt())
