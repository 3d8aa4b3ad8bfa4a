"""The front hall: one run, the same for the command line, Python and other programs."""

from rsgeoseg.engine.order import DEFAULT_MODEL, RunJob, RunOptions, check_names
from rsgeoseg.jobs.evaluating import EvaluateJob, evaluate, evaluate_clicks
from rsgeoseg.jobs.loading import load_segmenter, pipeline_options
from rsgeoseg.jobs.merged import run_merged
from rsgeoseg.jobs.running import check_job, exit_code, run, run_job, run_jobs

__all__ = [
    "DEFAULT_MODEL",
    "EvaluateJob",
    "RunJob",
    "RunOptions",
    "check_job",
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
