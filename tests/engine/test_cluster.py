"""The same run on Dask workers gives the same features, whatever happens to the workers."""

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace

import geopandas
import psutil
import pytest
import rasterio
import shapely
from dask_cluster import (
    ORACLE,
    SPEC,
    Alone,
    Picky,
    Poison,
    Slow,
    assert_same,
    children,
    draw_scene,
    ended,
    run,
    scheduler,
    script,
    start_worker,
)  # fmt: skip

import rsgeoseg
from rsgeoseg.engine import blocks, cluster
from rsgeoseg.engine.events import ClusterStarted, RunFinished
from rsgeoseg.engine.order import RunJob
from rsgeoseg.engine.run_folder import run_folder
from rsgeoseg.errors import ClusterError, JobCancelled, ModelError
from rsgeoseg.geo.writers import load_frame
from rsgeoseg.jobs.running import run_jobs
from rsgeoseg.testing.oracle import NoisyOracle, OracleSegmenter

SEAMS = ("joined", "duplicates_removed", "fragments_dropped", "objects", "seam_objects")


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return draw_scene(tmp_path_factory.mktemp("cluster") / "scene.tif")


@pytest.fixture(scope="module")
def address():
    """A cluster of two workers that many runs share, as a user's own cluster is."""
    with scheduler(workers=2) as (address, _):
        yield address


# ------------------------------------------------------------------------------------------------------ the same result


@pytest.mark.parametrize("workers", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_workers_give_what_one_process_gives(scene, workers, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "MAX_CHIPS", 9)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    events, listening = [], []

    def listen(event):
        events.append(event)
        if isinstance(event, ClusterStarted):
            processes = [psutil.Process(), *children()]
            listening.extend(
                link.laddr.ip for each in processes for link in each.net_connections("inet") if link.status == "LISTEN"
            )

    before = set(children())
    noisy = NoisyOracle(inner=ORACLE, miss=0.1)
    found = run(scene, noisy, workers=workers, progress=listen, batch_size=workers)
    assert not set(children()) - before
    assert not list(tmp_path.iterdir()), "files were left behind"
    assert set(listening) == {"127.0.0.1"}
    wanted = run(scene, noisy, batch_size=workers)
    assert_same(found, wanted)
    mine, theirs = found.attrs["rsgeoseg"], wanted.attrs["rsgeoseg"]
    assert mine["chips"] == theirs["chips"]
    assert mine["chips"]["empty"] > 0
    assert {name: mine["seams"][name] for name in SEAMS} == {name: theirs["seams"][name] for name in SEAMS}
    (begun,) = [event for event in events if isinstance(event, ClusterStarted)]
    assert begun.workers == workers
    assert begun.scheduler.startswith("tcp://127.0.0.1:")
    assert begun.dashboard.startswith("http://127.0.0.1:")
    assert isinstance(events[-1], RunFinished)
    assert mine["largest_process_bytes"] > 10**7


@pytest.mark.parametrize(("most", "batch"), [(1, 1), (4, 3), (25, 1), (64, 2)])
def test_any_blocks_on_a_running_cluster(scene, address, tmp_path, most, batch, monkeypatch):
    monkeypatch.setattr(blocks, "MAX_CHIPS", most)
    monkeypatch.setattr(blocks, "SHARES", 1)
    output = tmp_path / "out.gpkg"
    found = run(scene, scheduler=address, output=output, batch_size=batch)
    assert_same(found, run(scene, batch_size=batch))
    assert_same(load_frame(output), found)
    assert not run_folder(output).exists()


def test_paths_are_those_of_the_process_that_starts_the_run(scene, address, tmp_path, monkeypatch):
    with rasterio.open(scene) as source:
        left, bottom, right, top = source.bounds
        area = geopandas.GeoSeries([shapely.Point((left + right) / 2, (bottom + top) / 2).buffer(80)], crs=source.crs)
    area.to_file(tmp_path / "area.gpkg")
    shutil.copy(scene, tmp_path)
    monkeypatch.chdir(tmp_path)  # the workers have another folder
    found = run("scene.tif", scheduler=address, aoi="area.gpkg")
    assert_same(found, run(scene, aoi=tmp_path / "area.gpkg"))
    assert 0 < len(found) < len(run(scene))


def test_failed_chips_are_recorded_as_in_one_process(scene, address):
    picky = Picky(spec=SPEC)
    found, wanted = (run(scene, picky, on_chip_error="skip", scheduler=where) for where in (address, None))
    assert_same(found, wanted)
    assert len(found.attrs["rsgeoseg"]["failed_chips"]) == 1
    assert found.attrs["rsgeoseg"]["failed_chips"] == wanted.attrs["rsgeoseg"]["failed_chips"]
    messages = []
    for where in (address, None):
        with pytest.raises(ModelError, match="cannot stand 77") as caught:
            run(scene, picky, scheduler=where)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_two_runs_share_a_cluster(scene, address):
    found = {}
    runs = [
        threading.Thread(target=lambda name=name: found.update({name: run(scene, Slow(spec=SPEC), scheduler=address)}))
        for name in "ab"
    ]
    for each in runs:
        each.start()
    for each in runs:
        each.join()
    assert_same(found["a"], found["b"])
    assert_same(found["a"], run(scene))


@pytest.mark.slow
def test_a_worker_with_many_threads_calls_the_model_from_one_at_a_time(scene, monkeypatch):
    monkeypatch.setattr(blocks, "MAX_CHIPS", 4)
    with scheduler(1, "--nthreads", "4") as (address, _):
        assert_same(run(scene, Alone(spec=SPEC), scheduler=address), run(scene))


# ------------------------------------------------------------------------------------------------ the lost and dead


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_worker_is_killed_and_nothing_is_lost(scene, tmp_path, seed):
    rng, killed = random.Random(seed), []

    def kill():
        time.sleep(rng.uniform(0.1, 0.7))  # the work takes a second
        busy = [each for each in children() if "spawn_main" in " ".join(each.cmdline()) and each.cpu_times().user > 0.3]
        if busy:
            victim = rng.choice(busy)
            victim.kill()
            killed.append(victim.pid)

    def listen(event):
        if isinstance(event, ClusterStarted):
            threading.Thread(target=kill, daemon=True).start()

    found = run(scene, Slow(spec=SPEC), workers=2, output=tmp_path / "out.gpkg", progress=listen)
    assert killed, "no worker was killed"
    assert_same(found, run(scene))
    assert not run_folder(tmp_path / "out.gpkg").exists()


@pytest.mark.slow
def test_a_chip_that_kills_its_worker_stands_alone_in_the_end(scene, monkeypatch):
    monkeypatch.setattr(blocks, "MAX_CHIPS", 2)
    found = run(scene, Poison(spec=SPEC), workers=2, on_chip_error="skip")
    wanted = run(scene, Picky(spec=SPEC), on_chip_error="skip")
    (failed,) = found.attrs["rsgeoseg"]["failed_chips"]
    assert failed["index"] == wanted.attrs["rsgeoseg"]["failed_chips"][0]["index"]
    assert "killed every worker" in failed["error"]
    assert_same(found, wanted)


@pytest.mark.slow
def test_a_lost_scheduler_is_said_and_the_run_resumes(scene, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "MAX_CHIPS", 4)
    output = tmp_path / "out.gpkg"
    with scheduler(workers=1) as (address, processes):

        def listen(event):
            if event.kind == "progress" and event.done > 8:
                for process in processes:
                    process.kill()

        with pytest.raises(ClusterError, match="was lost; start it again and give --resume"):
            run(scene, Slow(spec=SPEC), scheduler=address, output=output, progress=listen)
    assert list(run_folder(output).glob("part-*"))
    found = run(scene, ORACLE, output=output, resume=True)
    assert found.attrs["rsgeoseg"]["resumed_pixels"] > 0
    assert_same(found, run(scene))
    assert_same(load_frame(output), found)


@pytest.mark.slow
def test_a_cluster_that_lost_all_workers_is_not_waited_for_for_ever(scene, monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE_SECONDS", 3.0)
    with scheduler(workers=1) as (address, processes):

        def listen(event):
            if event.kind == "progress" and event.done:
                processes[1].kill()

        with pytest.raises(ClusterError, match=r"without workers for .* give --resume"):
            run(scene, Slow(spec=SPEC), scheduler=address, progress=listen)


@pytest.mark.slow
def test_a_worker_that_comes_later_takes_part(scene, monkeypatch):
    monkeypatch.setattr(blocks, "MAX_CHIPS", 4)
    with scheduler(workers=1) as (address, processes):
        late = []

        def listen(event):
            if isinstance(event, ClusterStarted):
                late.append(start_worker(address))
            if event.kind == "progress" and event.done > 12:
                processes[1].kill()  # the rest is up to the one that came

        try:
            assert_same(run(scene, Slow(spec=SPEC), scheduler=address, progress=listen), run(scene))
        finally:
            late[0].terminate()
            late[0].wait(20)


# ------------------------------------------------------------------------------------------------------- how it behaves


def test_a_cancel_ends_the_workers(scene):
    cancel, seen, before = threading.Event(), [], set(children())

    def listen(event):
        if event.kind == "cluster":
            seen.extend(set(children()) - before)
            seen.append(time.monotonic())
            cancel.set()

    with pytest.raises(JobCancelled):
        run(scene, Slow(spec=SPEC), workers=1, progress=listen, cancel=cancel)
    assert time.monotonic() - seen.pop() < 15
    assert seen
    assert ended(seen)


def test_the_cores_are_shared_out(scene, monkeypatch):
    class Threads(OracleSegmenter):
        def segment(self, chips, prompts=None):
            import cv2
            import torch

            share = max(1, cores // 2)
            assert (torch.get_num_threads(), cv2.getNumThreads()) == (share, share)
            assert "MALLOC_TRIM_THRESHOLD_" not in os.environ
            return super().segment(chips)

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    before, during = dict(os.environ), []
    found = run(scene, Threads(spec=SPEC), workers=2, progress=lambda _event: during.append(dict(os.environ)))
    assert len(found) > 0
    assert dict(os.environ) == before
    assert during[0] == before


@pytest.mark.slow
def test_what_a_model_prints_on_a_worker_is_kept(scene, tmp_path):
    command, env = script(
        tmp_path,
        "from dask_cluster import SPEC, Loud, run\n"
        f"if __name__ == '__main__': run({str(scene)!r}, Loud(spec=SPEC), workers=1)\n",
    )
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.count("loud") > 10


@pytest.mark.slow
def test_scenes_of_one_call_share_the_workers_and_their_model(tmp_path):
    jobs, events, workers = [], [], []
    for name in "abc":
        scene = draw_scene(tmp_path / f"{name}.tif")
        jobs.append(
            RunJob(scene=str(scene), output=str(tmp_path / f"{name}.gpkg"), workers=1, chip_size=256, device="cpu")
        )

    def listen(event):
        events.append(event)
        if isinstance(event, ClusterStarted):
            workers.append({each.pid for each in children()})

    for job, _ in run_jobs(jobs[:2], on_event=listen):
        alone = rsgeoseg.run(job.scene, chip_size=256, device="cpu")
        assert_same(load_frame(job.output), alone)
    first, second = (event for event in events if isinstance(event, ClusterStarted))
    assert first == second
    assert workers[0] == workers[1]
    before, events[:] = set(children()), []
    again = [replace(job, resume=True) for job in jobs[:2]]
    assert len(list(run_jobs(again, on_event=listen))) == 2
    assert not events, "finished outputs need no workers"
    assert set(children()) == before


@pytest.mark.slow
def test_the_command_line_with_the_bundled_model(tmp_path):
    from rsgeoseg.testing.scenes import generate_scene

    generate_scene(tmp_path / "scene.tif", height=700, width=900, seed=4)
    command = [sys.executable, "-m", "rsgeoseg.cli.main", "run", "scene.tif", "--chip-size", "512", "--overlap", "64"]
    command += ["--device", "cpu"]
    for name, extra in (("one.gpkg", ()), ("two.gpkg", ("--workers", "2"))):
        done = subprocess.run([*command, "-o", name, *extra], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        assert "distributed" not in done.stderr
        assert ("dashboard: http://127.0.0.1:" in done.stderr) == bool(extra)
    one, two = load_frame(tmp_path / "one.gpkg"), load_frame(tmp_path / "two.gpkg")
    assert len(one) > 0
    assert_same(two, one)  # to the bit, with half the threads in each process


@pytest.mark.slow
def test_the_starting_process_loads_no_model(scene, tmp_path):
    """Half a gigabyte and seconds of all cores, beside workers that want them."""
    command, env = script(
        tmp_path,
        "import sys\nimport rsgeoseg\nif __name__ == '__main__':\n"
        f"    rsgeoseg.run({str(scene)!r}, workers=1, chip_size=256, device='cpu', output='out.gpkg')\n"
        "    print('torch' in sys.modules)\n",
    )
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "False"
    told = json.loads((tmp_path / "out.gpkg.run.json").read_text())["model"]
    assert told["weights"] == rsgeoseg.load_model("rsprompter-query", device="cpu").spec.weights_id
