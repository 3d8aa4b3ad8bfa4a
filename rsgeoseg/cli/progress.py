"""How a run shows on the command line that it goes on: a bar, JSON lines, or not at all."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rsgeoseg.engine.events import ChipsProgress, ClusterStarted, Event, RunFinished, RunStarted, StageStarted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import Progress


@contextmanager
def show_progress(style: str, *, quiet: bool) -> Iterator[Callable[[Event], None]]:
    """Yield a callback that shows events.

    Args:
        style: ``json`` (one object per line on stdout), ``auto`` (a bar where stderr is a terminal) or ``none``.
        quiet: whether to leave out the bar.
    """
    if style == "json":
        yield _print_json
    elif style == "auto" and not quiet and sys.stderr.isatty():
        with _bar() as progress:
            yield _Bar(progress)
    elif style == "auto" and not quiet:
        yield _print_dashboard
    else:
        yield _ignore


def _ignore(_event: Event) -> None:
    """Show nothing."""


def _print_dashboard(event: Event) -> None:
    """Print where Dask's dashboard is, on a line of its own: a progress bar stays below it."""
    if isinstance(event, ClusterStarted) and event.dashboard:
        print(f"dashboard: {event.dashboard}", file=sys.stderr)


def _print_json(event: Event) -> None:
    print(json.dumps(event.to_dict(), ensure_ascii=False), flush=True)


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


class _Bar:
    """One line per scene: chips behind us, objects found, speed, time left."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("loading", total=None, note="")

    def __call__(self, event: Event) -> None:
        _print_dashboard(event)
        if isinstance(event, RunStarted):
            self._progress.update(self._task, description=_short(event.scene), total=event.chips, completed=0, note="")
        elif isinstance(event, ChipsProgress):
            note = f"{event.objects} objects, {event.mpx_per_s:.3g} Mpx/s"
            behind = event.done + event.empty + event.failed
            self._progress.update(self._task, completed=behind, note=note)
        elif isinstance(event, StageStarted):
            self._progress.update(self._task, note=event.stage)
        elif isinstance(event, RunFinished):
            self._progress.update(self._task, note=f"{event.objects} objects")


def _short(name: str, limit: int = 32) -> str:
    return name if len(name) <= limit else "…" + name[1 - limit :]


@contextmanager
def show_count(what: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback that shows how many of how many are done, on a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    with _bar() as progress:
        task = progress.add_task(what, total=None, note="")
        yield lambda done, total: progress.update(task, completed=done, total=total)
