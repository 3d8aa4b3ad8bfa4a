"""Several scenes into one file."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsgeoseg.engine.deliver import read_record, refuse_holes, refuse_other
from rsgeoseg.engine.folder_lock import FolderLock
from rsgeoseg.engine.merging import SceneOutput, check_merged, merge_outputs, scene_names, scenes_folder
from rsgeoseg.errors import OutputError
from rsgeoseg.geo.commit import staged
from rsgeoseg.geo.scene import Scene
from rsgeoseg.jobs.loading import network
from rsgeoseg.jobs.running import check_outputs, identities, run_jobs

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Sequence

    from rsgeoseg.engine.events import Event
    from rsgeoseg.engine.order import RunJob

_SCENES = "scenes.json"
_OURS = re.compile(r"\d{5}\.parquet(\.run\.json|\.rsgeoseg)?|scenes\.json|\.(\d{5}\.parquet|scenes\.json)\..*\.part")
"""Names in the folder of an unfinished merge."""


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
    lock = FolderLock(folder)
    lock.take(output)
    try:
        return _merge(output, names, jobs, job, on_event=on_event, cancel=cancel)
    except OutputError as error:
        raise OutputError(_named(str(error), zip(pieces, names, strict=True), output)) from error
    finally:
        if {entry.name for entry in folder.iterdir() if _OURS.fullmatch(entry.name)} <= {_SCENES}:
            _clear(folder)  # nothing was done
        lock.remove()


def _merge(
    output: Path,
    names: Sequence[str],
    jobs: Sequence[RunJob],
    job: RunJob,
    *,
    on_event: Callable[[Event], None] | None,
    cancel: threading.Event | None,
) -> dict[str, Any]:
    """Run the jobs of single scenes and merge their outputs; the folder of these is locked.

    Args:
        output: the merged file.
        names: of the scenes.
        jobs: one per scene.
        job: the one that they were made from.
        on_event: as of ``run_merged``.
        cancel: as of ``run_merged``.
    """
    folder = scenes_folder(output)
    unfinished = (folder / _SCENES).exists()
    if job.resume and output.exists() and not unfinished:
        return _finished(output, names, jobs)
    if unfinished and not (job.resume or job.overwrite):
        msg = f"{folder} holds an unfinished run: --resume goes on with it, --overwrite starts anew"
        raise OutputError(msg)
    if not job.resume:
        _clear(folder)
    replaces = _keep_order(folder / _SCENES, names, output, overwrite=job.overwrite)
    outputs = [
        SceneOutput(scene=name, path=Path(str(done.output)), record=record)
        for name, (done, record) in zip(names, run_jobs(jobs, on_event=on_event, cancel=cancel), strict=True)
    ]
    _refuse_newcomer(output, replaces=replaces)
    _write_order(folder / _SCENES, names, replaces=True)  # from here on it may be ours
    record = merge_outputs(outputs, output, format_name=job.format, overwrite=True)
    _clear(folder)
    return record


def _clear(folder: Path) -> None:
    """Remove what merged runs keep in a folder, the list of scenes last; what others put there stays."""
    with suppress(OSError):
        for entry in sorted(folder.iterdir()):
            if _OURS.fullmatch(entry.name):
                shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)


def _keep_order(file: Path, names: Sequence[str], output: Path, *, overwrite: bool) -> bool:
    """Keep which scenes are merged and whether an output may be replaced, or refuse another order than the kept one.

    Returns:
        Whether the output may be replaced.

    Raises:
        OutputError: the folder has a run of other scenes, or the output came there meanwhile.
    """
    try:
        earlier = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        earlier = _write_order(file, names, replaces=overwrite or output.exists())
    if earlier["scenes"] != list(names):
        msg = f"cannot resume {file.parent}: it is a run of {', '.join(map(str, earlier['scenes']))}; use --overwrite"
        raise OutputError(msg)
    replaces = overwrite or bool(earlier["replaces"])
    _refuse_newcomer(output, replaces=replaces)
    return replaces


def _write_order(file: Path, names: Sequence[str], *, replaces: bool) -> dict[str, Any]:
    order = {"scenes": list(names), "replaces": replaces}
    with staged(file, overwrite=True) as temporary:
        temporary.write_text(json.dumps(order), encoding="utf-8")
    return order


def _refuse_newcomer(output: Path, *, replaces: bool) -> None:
    """Refuse to replace a file that somebody put there while the scenes were run."""
    if output.exists() and not replaces:
        msg = f"{output} was not there when this run began; move it away, or use --overwrite"
        raise OutputError(msg)


def _named(text: str, pieces: Iterable[tuple[Path, str]], output: Path) -> str:
    """Name scenes in a message in place of the files that are kept for them."""
    for piece, name in pieces:
        text = text.replace(str(piece), f"{output} ({name})")
    return text


def _finished(output: Path, names: Sequence[str], jobs: Sequence[RunJob]) -> dict[str, Any]:
    """Return the record of a merged output that is there.

    Raises:
        OutputError: it is not the output of this run of these scenes; the message says what differs.
    """
    record = read_record(output)
    merged = [] if record is None else [each["name"] for each in record.get("scenes", [])]
    if record is None or merged != list(names):
        of = f", but of {', '.join(map(str, merged))}" if merged else ""
        msg = f"cannot resume {output}: it is not the finished result of these scenes{of}; use --overwrite"
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
