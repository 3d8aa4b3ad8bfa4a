"""Runs that end early, for tests of resuming them.

Also a program: ``interruptions.py SCENE OUTPUT DELAY WORKERS`` goes on with a run, ``DELAY`` seconds for each chip.
"""

import json
import os
import subprocess
import sys
import threading
import time
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import rsgeoseg
from rsgeoseg.contract import Instances
from rsgeoseg.engine import run_folder as folder_module
from rsgeoseg.engine.run_folder import run_folder
from rsgeoseg.errors import JobCancelled
from rsgeoseg.testing.oracle import OracleSegmenter, encode_ids, oracle_spec

_HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_HERE), str(_HERE.parent)])}
"""For programs that import this file."""
SPEC = oracle_spec(["a", "b", "c"], chip_size=64, overlap=16)


class Wavering(OracleSegmenter):
    """Finds what is there with scores that depend on the chip, so that it matters which view of an object counts."""

    def segment(self, chips, prompts=None):
        found = super().segment(chips)
        return [self._scored(chip, instances) for chip, instances in zip(chips, found, strict=True)]

    @staticmethod
    def _scored(chip, instances):
        rng = np.random.default_rng(zlib.crc32(chip.image))
        scores = rng.uniform(0.4, 1, len(instances.scores)).astype(instances.scores.dtype)
        return Instances(masks=instances.masks, boxes=instances.boxes, scores=scores, labels=instances.labels)


class Slow(Wavering):
    delay = 0.01

    def segment(self, chips, prompts=None):
        time.sleep(self.delay * len(chips))
        return super().segment(chips)


MODEL = Wavering(spec=SPEC)


def draw_scene(height=700, width=680, count=120):
    """Objects of all sizes, every sixth across many chips and parts; also two that run through the whole scene."""
    ids = np.zeros((height, width), np.int32)
    rng = np.random.default_rng(5)
    for value in range(1, count):
        y, x = rng.integers(0, [height - 10, width - 10])
        h, w = rng.integers(4, 40, 2) if value % 6 else rng.integers(60, 260, 2)
        region = ids[y : y + h, x : x + w]
        region[region == 0] = value
    ids[height // 2 : height // 2 + 7] = count
    ids[:, width // 3 : width // 3 + 5] = count + 1
    return encode_ids(ids)


def plain(path, **options):
    """The features of a run that was left alone and kept in memory."""
    return rsgeoseg.run(path, MODEL, stretch="none", **options)


def resumed(scene, output, model=MODEL, **options):
    return rsgeoseg.run(scene, model, output, stretch="none", resume=True, **options)


def interrupted(scene, output, parts=4, model=MODEL, **options):
    """Leave an unfinished run behind: cancelled when so many parts are on disk."""
    cancel = threading.Event()

    class Stops(type(model)):
        def segment(self, chips, prompts=None):
            time.sleep(0.005)
            if len(list(run_folder(output).glob("part-*.npz"))) >= parts:
                cancel.set()
            return super().segment(chips)

    with pytest.raises(JobCancelled):
        rsgeoseg.run(scene, Stops(spec=model.spec), output, stretch="none", cancel=cancel, **options)
    assert len(list(run_folder(output).glob("part-*.npz"))) >= parts


def assert_same(found, wanted):
    """Feature by feature, column by column, vertex by vertex."""
    assert list(found.columns) == list(wanted.columns)
    assert len(found) == len(wanted)
    assert found.drop(columns="geometry").equals(wanted.drop(columns="geometry"))
    assert found.geometry.geom_equals_exact(wanted.geometry, 0).all()


def journal(output):
    """Lines that name the parts of an unfinished run."""
    return [json.loads(line) for line in (run_folder(output) / "journal.jsonl").read_text().splitlines()]


def litter(output, *others):
    """Whatever lies beside an output that is neither it nor its record nor named."""
    mine = {output.name, output.name + ".run.json", "scene.tif", *others}
    return sorted({entry.name for entry in output.parent.iterdir()} - mine)


@contextmanager
def program(scene, output, *, delay=0.01, workers=0):
    """Run this file in a process of its own; it has begun to work when the block begins."""
    process = subprocess.Popen(
        [sys.executable, __file__, scene, output, str(delay), str(workers)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=ENVIRONMENT,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "begun\n", process.stderr.read()
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=60)


def kill_after(process, seconds, how):
    """Kill a process so long after it began to work; False where it had ended by then."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(how)
        process.wait(60)
        return True
    return False


def kill_at_work(process, output, how, parts=2):
    """Kill a process as soon as so many parts are on disk."""
    deadline = time.monotonic() + 60
    while len(list(run_folder(output).glob("part-*.npz"))) <= parts:  # the last one may not count yet
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(how)
    process.wait(60)


def finish(scene, output, workers=0):
    """Go on in a process of its own until the end."""
    with program(scene, output, delay=0, workers=workers) as process:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors


def main():
    scene, output, delay, workers = sys.argv[1:]
    folder_module.PART_SECONDS = 0.05
    Slow.delay = float(delay)
    model = Slow(spec=SPEC) if Slow.delay else MODEL
    told = []

    def tell(event):
        if event.kind == "progress" and not told:
            told.append(True)
            print("begun", flush=True)

    rsgeoseg.run(
        scene, model, output, stretch="none", resume=True, workers=int(workers) or None, progress=tell
    )  # fmt: skip
    if not told:  # it was finished
        print("begun", flush=True)


if __name__ == "__main__":
    main()
