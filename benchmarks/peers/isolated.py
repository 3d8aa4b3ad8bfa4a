"""Time and peak memory of one piece of work in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsgeoseg.engine.memory import peak_memory

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

Work = tuple["Callable[[], Any]", "Callable[[Any], Any]"]
"""What is measured, and what then turns its result into something that can be sent, outside the clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a piece of work took; ``error`` where it came to no end."""

    seconds: float
    """Wall time of the work alone; where there is an error, until then."""
    cpu_seconds: float = float("nan")
    """Time of all cores, which other processes disturb less."""
    megabytes: float
    """Peak resident memory above that at the start of the work."""
    result: Any = None
    """What it gave."""
    error: str = ""
    """Why there is no result; empty = there is one."""

    def on(self, clock: str) -> float:
        """Seconds by ``wall`` or ``cpu`` time."""
        return self.seconds if clock == "wall" else self.cpu_seconds


def measure(prepare: Callable[..., Work], *args: Any, timeout: float = 3600.0) -> Measured:
    """Do a piece of work in a new process.

    Args:
        prepare: a function of a module; called in the new process, it loads what the work needs and is not measured.
        args: its arguments.
        timeout: seconds after which the process is ended; preparation counts.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_child, args=(there, prepare, args))
    process.start()
    there.close()
    try:
        if here.poll(timeout):
            done = here.recv()
            process.join(10)
            return done
        return Measured(seconds=timeout, megabytes=float("nan"), error=f"not done after {timeout:.0f} s")
    except EOFError:
        return Measured(seconds=float("nan"), megabytes=float("nan"), error="the process died")
    finally:
        process.kill()
        process.join()


def _child(pipe: Connection, prepare: Callable[..., Work], args: tuple[Any, ...]) -> None:
    start = time.perf_counter()
    try:
        work, export = prepare(*args)
        before = _forget_peak()
        start, cpu = time.perf_counter(), time.process_time()
        result = work()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        peak = (peak_memory() or 0) - before
        done = Measured(seconds=seconds, cpu_seconds=cpu, megabytes=peak / 1e6, result=export(result))
    except Exception as error:  # noqa: BLE001  (a peer may fail in any way; the table says how)
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
        done = Measured(seconds=time.perf_counter() - start, megabytes=float("nan"), error=reason)
    pipe.send(done)


def _forget_peak() -> int:
    """Let the peak start at what is resident now (Linux); the size from which it counts, bytes."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return int(statm.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_memory() or 0
