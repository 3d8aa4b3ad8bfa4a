"""The front hall: one run, the same for the command line, Python and other programs.

Names are resolved on first use: a run does not wait for what only scoring needs, nor does each of its workers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from rsgeoseg.heap import no_collection

if TYPE_CHECKING:
    from rsgeoseg.engine.order import DEFAULT_MODEL, RunJob, RunOptions, check_names
    from rsgeoseg.jobs.evaluating import EvaluateJob, evaluate, evaluate_clicks
    from rsgeoseg.jobs.loading import load_segmenter, pipeline_options
    from rsgeoseg.jobs.merged import run_merged
    from rsgeoseg.jobs.running import check_jobs, exit_code, run, run_job, run_jobs

_HOMES = {
    "rsgeoseg.engine.order": ("DEFAULT_MODEL", "RunJob", "RunOptions", "check_names"),
    "rsgeoseg.jobs.evaluating": ("EvaluateJob", "evaluate", "evaluate_clicks"),
    "rsgeoseg.jobs.loading": ("load_segmenter", "pipeline_options"),
    "rsgeoseg.jobs.merged": ("run_merged",),
    "rsgeoseg.jobs.running": ("check_jobs", "exit_code", "run", "run_job", "run_jobs"),
}

__all__ = [
    "DEFAULT_MODEL",
    "EvaluateJob",
    "RunJob",
    "RunOptions",
    "check_jobs",
    "check_names",
    "evaluate",
    "evaluate_clicks",
    "exit_code",
    "load_segmenter",
    "pipeline_options",
    "run",
    "run_job",
    "run_jobs",
    "run_merged",
]


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            with no_collection():
                return getattr(import_module(home), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
