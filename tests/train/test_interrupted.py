"""Trainings that are killed, run out of disk, or share their batches: the curve is that of one that was left alone."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from test_data import make_folder

from rsgeoseg.train.config import config_from
from rsgeoseg.train.fit import train

LINUX = pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of POSIX")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("coco"), 6, side=128)


def command(folder, output, *more):
    """A tiny training of twelve steps, measured every three."""
    return [
        *(sys.executable, "-m", "rsgeoseg.cli.main", "train", str(folder), str(folder / "coco.json")),
        *("-o", str(output), "--crop", "64", "--batch-size", "2", "--steps", "12", "--interval", "3"),
        *("--lr", "1e-3", "--warmup", "1", "--device", "cpu", *more),
    ]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def run(folder, output, *more):
    done = subprocess.run(command(folder, output, *more), env=ENVIRONMENT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole")
    code, said = run(folder, output)
    assert code == 0, said
    return output


def curves(output):
    return [(output / name).read_text() for name in ("curve.csv", "validation.csv")]


@LINUX
@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_curve(folder, whole, tmp_path):
    rng = random.Random(3)
    for _ in range(3):
        process = subprocess.Popen(
            command(folder, tmp_path), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        # from before the first step until after the last one
        until = time.monotonic() + rng.uniform(8, 20)
        while time.monotonic() < until and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    code, said = run(folder, tmp_path)
    assert code == 0, said
    assert curves(tmp_path) == curves(whole)
    assert (tmp_path / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()
    assert not [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")]


def heed_ctrl_c():
    """Programs that a shell starts in the background are born deaf to Ctrl-C, and so would this test's be."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@LINUX
@pytest.mark.slow
def test_ctrl_c_is_one_line(folder, tmp_path):
    process = subprocess.Popen(
        command(folder, tmp_path),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,  # noqa: PLW1509  (no threads here yet)
    )
    assert process.stdout.readline().startswith("step 1 of 12")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130
    assert said.strip().splitlines()[-1].startswith("error: cancelled")
    assert "Traceback" not in said


@LINUX
@pytest.mark.slow
def test_full_disk_is_one_line_and_keeps_the_last_checkpoint(folder, whole, tmp_path):
    """A limit on the size of a file stands for a full disk: writing fails half-way."""
    config = config_from(json.loads((whole / "config.json").read_text()))
    with pytest.raises(Stopped):
        train(config, tmp_path, device="cpu", on_validation=stop)
    before = (tmp_path / "last.ckpt").read_bytes()
    limit = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)); "
        "sys.argv = sys.argv[1:]; runpy.run_module('rsgeoseg.cli.main', run_name='__main__')"
    )
    arguments = [sys.executable, "-c", limit, "rsgeoseg", *command(folder, tmp_path)[3:]]
    done = subprocess.run(arguments, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 5
    last = done.stderr.strip().splitlines()[-1]
    assert "cannot be written" in last
    assert "make room" in last
    assert (tmp_path / "last.ckpt").read_bytes() == before
    assert run(folder, tmp_path)[0] == 0
    assert curves(tmp_path) == curves(whole)


class Stopped(RuntimeError):
    """The training was killed."""


def stop(_step, _result):
    raise Stopped


@LINUX
@pytest.mark.slow
def test_two_processes_share_a_batch(folder, whole, tmp_path):
    """The crops of a step are the same however many devices draw them; their gradients are averaged."""
    code, said = run(folder, tmp_path, "--devices", "2")
    assert code == 0, said
    steps = [row["step"] for row in csv.DictReader((whole / "validation.csv").open())]
    assert [row["step"] for row in csv.DictReader((tmp_path / "validation.csv").open())] == steps
    assert json.loads((tmp_path / "config.json").read_text())["devices"] == 2
    assert (tmp_path / "weights.safetensors").is_file()
    assert (tmp_path / "weights.md").read_text().startswith("# Model card")


@pytest.mark.slow
def test_lines_for_a_log_tell_the_time_left(folder, tmp_path):
    code, said = run(folder, tmp_path, "--steps", "3")
    assert code == 0
    assert "step 1 of 3: loss" in said
    assert "left" in said
    assert "step 3: mask AP" in said
    assert "rsgeoseg run SCENE --model rsprompter-query --weights" in said
    assert "Warning" not in said
