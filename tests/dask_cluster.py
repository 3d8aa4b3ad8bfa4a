"""Real Dask clusters for tests, a scene for them, and models that try them."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
from rasters import write_raster

import rsgeoseg
from rsgeoseg.geo.windows import plan_windows
from rsgeoseg.testing.oracle import OracleSegmenter, encode_ids, oracle_spec

SPEC = oracle_spec(["a", "b", "c"], chip_size=64, overlap=16)
ORACLE = OracleSegmenter(spec=SPEC)
ODD = 77
"""An object that some models cannot stand."""


class Slow(OracleSegmenter):
    """Takes its time, so that something can happen meanwhile."""

    def segment(self, chips, prompts=None):
        time.sleep(0.02 * len(chips))
        return super().segment(chips)


class Loud(OracleSegmenter):
    """Says what it does."""

    def segment(self, chips, prompts=None):
        print("loud")
        return super().segment(chips)


class Poison(OracleSegmenter):
    """The odd object kills the process that looks at it."""

    def segment(self, chips, prompts=None):
        if any((chip.image[2] == ODD).any() for chip in chips):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().segment(chips)


class Picky(OracleSegmenter):
    """The odd object makes it fail."""

    def segment(self, chips, prompts=None):
        if any((chip.image[2] == ODD).any() for chip in chips):
            msg = f"cannot stand {ODD}"
            raise ValueError(msg)
        return super().segment(chips)


class Alone(OracleSegmenter):
    """Fails when two threads call it at once."""

    busy = False

    def segment(self, chips, prompts=None):
        assert not Alone.busy, "called from two threads at once"
        Alone.busy = True
        time.sleep(0.02)
        found = super().segment(chips)
        Alone.busy = False
        return found


class Changes:
    """A model whose copy in another process has other weights."""

    spec = replace(SPEC, weights_id="these")

    def segment(self, chips, prompts=None):
        return ORACLE.segment(chips)

    def __reduce__(self):
        return _other_weights, ()


def _other_weights():
    return OracleSegmenter(spec=replace(SPEC, weights_id="those"))


def draw_scene(path):
    """A scene with objects across chips and blocks, an odd one, and a corner without data."""
    ids = np.zeros((420, 460), np.int32)
    rng = np.random.default_rng(5)
    for value in range(1, 70):
        y, x = rng.integers(0, [410, 450])
        h, w = rng.integers(4, 40, 2) if value % 6 else rng.integers(60, 260, 2)
        region = ids[y : y + h, x : x + w]
        region[region == 0] = value
    alone = plan_windows(420, 460, chip_size=64, overlap=16).at(6, 4).core  # its middle is seen by one chip only
    ids[alone.y0 + 20 : alone.y0 + 26, alone.x0 + 20 : alone.x0 + 26] = ODD
    bands = encode_ids(ids)
    bands[:, 330:, 300:] = 255
    return write_raster(path, bands, nodata=255)


def run(scene, model=ORACLE, **options):
    return rsgeoseg.run(scene, model, stretch="none", **options)


def assert_same(found, wanted):
    assert list(found.columns) == list(wanted.columns)
    assert found.drop(columns="geometry").equals(wanted.drop(columns="geometry"))
    assert found.geometry.geom_equals_exact(wanted.geometry, 0).all()


def children(pid=None):
    """Living processes of a process, without Python's own that tidies up."""
    found = [each for each in psutil.Process(pid).children(recursive=True) if each.status() != psutil.STATUS_ZOMBIE]
    return [each for each in found if "resource_tracker" not in " ".join(each.cmdline())]


def ended(processes, seconds=20):
    """Whether processes end in time."""
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return not alive


def worker_path(*first):
    """``PYTHONPATH`` of a process that finds what this one finds."""
    return os.pathsep.join([*map(str, first), *(entry for entry in sys.path if entry)])


@contextmanager
def scheduler(workers=1, *options, cwd=None, **environment):
    """A real scheduler and real workers, in processes of their own, on this machine only.

    Yields:
        The address, and the processes: the scheduler's first.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    command = ["distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
    begun = [_start(command, cwd, environment)]
    try:
        begun += [start_worker(address, *options, cwd=cwd, **environment) for _ in range(workers)]
        _await(address, port, workers)
        yield address, begun
    finally:
        for process in reversed(begun):
            process.terminate()
        for process in begun:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def start_worker(address, *options, cwd=None, **environment):
    """Start a worker of a running scheduler; nobody starts it again."""
    command = ["distributed.cli.dask_worker", address, "--host", "127.0.0.1", "--no-dashboard", "--no-nanny"]
    return _start([*command, *(options or ("--nthreads", "1"))], cwd, environment)


def _start(command, cwd, environment):
    env = {**os.environ, "PYTHONPATH": worker_path(), **environment}
    command = [sys.executable, "-m", *command]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env, cwd=cwd)


def _await(address, port, workers):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                break
        time.sleep(0.1)
    if workers:
        from distributed import Client

        with Client(address, timeout=60, set_as_default=False) as client:
            client.wait_for_workers(workers, timeout=60)


def script(folder, text):
    """Write a Python script; it finds what the tests find."""
    path = Path(folder) / "script.py"
    path.write_text(text)
    return [sys.executable, str(path)], {**os.environ, "PYTHONPATH": worker_path()}
