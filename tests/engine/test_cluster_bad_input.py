"""Clusters that cannot do a run say so in one line; Ctrl-C and crashes leave no process and no file behind."""

import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from dask_cluster import (
    ORACLE,
    SPEC,
    Changes,
    assert_same,
    children,
    draw_scene,
    ended,
    run,
    scheduler,
    script,
    worker_path,
)  # fmt: skip
from filelock import FileLock

import rsgeoseg
from rsgeoseg import errors
from rsgeoseg.engine import cluster, connect
from rsgeoseg.errors import ClusterError, UsageError
from rsgeoseg.geo.writers import load_frame

BUNDLED = Path(rsgeoseg.__file__).parent / "weights" / "bundled"


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return draw_scene(tmp_path_factory.mktemp("cluster") / "scene.tif")


def refused(scene, address, model=ORACLE, **options):
    """Message with which a run on a cluster is refused."""
    with pytest.raises(UsageError) as caught:
        run(scene, model, scheduler=address, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_scheduler_that_is_not_there(scene, monkeypatch):
    assert connect.CONNECT_SECONDS <= 20
    monkeypatch.setattr(connect, "CONNECT_SECONDS", 2.0)
    assert "no Dask scheduler answers at tcp://127.0.0.1:9" in refused(scene, "tcp://127.0.0.1:9")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        begun = time.monotonic()
        assert "no Dask scheduler answers" in refused(scene, f"tcp://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - begun < 20
    assert "no Dask scheduler answers" in refused(scene, "somewhere else")
    assert "no Dask scheduler answers" in refused(scene, "http://127.0.0.1:9")


def test_a_server_that_is_no_scheduler(scene, monkeypatch):
    monkeypatch.setattr(connect, "CONNECT_SECONDS", 2.0)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def answer():
            while True:
                try:
                    link, _ = server.accept()
                except OSError:
                    return
                with link:
                    link.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        message = refused(scene, f"tcp://127.0.0.1:{server.getsockname()[1]}")
    assert "no Dask scheduler answers" in message
    assert "another program listens there" in message


@pytest.mark.slow
def test_a_scheduler_without_workers(scene):
    with scheduler(workers=0) as (address, _):
        assert f"the scheduler at {address} has no workers: start some with" in refused(scene, address)


@pytest.mark.slow
def test_a_worker_with_another_version_is_named(scene, tmp_path):
    """What it runs counts, here a checkout on its path, not what is installed beside it."""
    package = Path(rsgeoseg.__file__).parent
    (tmp_path / "rsgeoseg").mkdir()
    for part in package.iterdir():
        (tmp_path / "rsgeoseg" / part.name).symlink_to(part)
    (tmp_path / "rsgeoseg" / "__init__.py").unlink()
    text = (package / "__init__.py").read_text().replace(f'"{rsgeoseg.__version__}"', '"9.9"')
    (tmp_path / "rsgeoseg" / "__init__.py").write_text(text)
    with scheduler(workers=1, cwd=tmp_path, PYTHONPATH=worker_path(tmp_path)) as (address, _):
        message = refused(scene, address)
    assert "worker tcp://127.0.0.1:" in message
    assert f"has rsgeoseg 9.9, this process {rsgeoseg.__version__}" in message


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="needs a path that differs between processes")
def test_a_worker_without_the_files_is_named(scene, tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    shutil.copy(scene, here / "scene.tif")
    (weights,) = BUNDLED.glob("rsprompter-query-*.safetensors")
    shutil.copy(weights, here / weights.name)
    shutil.copy(weights.with_suffix(".json"), here)
    monkeypatch.chdir(here)
    mine = f"/proc/self/cwd/{weights.name}"  # every process has its own
    with scheduler(workers=1, cwd=there) as (address, _):
        message = refused("/proc/self/cwd/scene.tif", address)
        assert "worker tcp://127.0.0.1:" in message
        assert "cannot take part" in message
        assert "scene.tif" in message
        message = refused(scene, address, "rsprompter-query", weights=mine, chip_size=64, overlap=16)
        assert "worker tcp://127.0.0.1:" in message
        assert "cannot take part" in message
        assert weights.name in message
        shutil.copy(draw_scene(there / "other.tif"), there / "scene.tif")
        assert len(run("/proc/self/cwd/scene.tif", scheduler=address)) > 0
        _write_smaller(there / "scene.tif")
        assert "is another raster: 460 x 400 pixels from" in refused("/proc/self/cwd/scene.tif", address)


def _write_smaller(path):
    import rasterio

    with rasterio.open(path) as source:
        pixels, profile = source.read(), source.profile
    with rasterio.open(path, "w", **{**profile, "height": 400}) as sink:
        sink.write(pixels[:, :400])


@pytest.mark.slow
def test_models_that_cannot_travel(scene):
    assert "worker tcp://127.0.0.1:" in (message := _refused_locally(scene, Changes()))
    assert "has weights those, the run was started with these" in message
    assert "give the model by its name" in _refused_locally(scene, Stuck())
    assert not children()


class Stuck:
    """A model that cannot be pickled."""

    spec = SPEC

    def __init__(self):
        self.lock = threading.Lock()

    def segment(self, chips, prompts=None):
        return ORACLE.segment(chips)


def _refused_locally(scene, model):
    with pytest.raises(UsageError) as caught:
        run(scene, model, workers=1)
    return str(caught.value)


class Deadly:
    """A model that takes the process with it when it is loaded, as for lack of memory."""

    def __call__(self, device):
        os.kill(os.getpid(), signal.SIGKILL)

    def devices(self, name):
        return (name,)


def test_a_worker_that_dies_of_its_model_is_said():
    with connect.local_cluster(1) as client:
        cluster.keep_model(client, Deadly(), "cpu")
        with pytest.raises(ClusterError, match="end while they start or load the model: there may be too"):
            cluster.ask_facts(client, Deadly(), "cpu")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"weights": "nowhere"}, errors.WeightsError, "no such weights"),
        ({"device": "cuda:63"}, errors.ModelError, "use --device auto"),
        ({"weights": "rsprompter-anchor-lite-nwpu"}, errors.WeightsError, "no such weights|holds"),
    ],
)
def test_what_a_model_is_refused_for_is_said_by_its_worker(scene, options, error, message):
    with pytest.raises(error, match=message) as caught:
        rsgeoseg.run(str(scene), workers=1, **{"device": "cpu"} | options)
    assert "worker" not in str(caught.value)
    with pytest.raises(error) as alone:
        rsgeoseg.run(str(scene), **{"device": "cpu"} | options)
    assert str(alone.value) == str(caught.value)


def test_a_model_that_there_is_not_starts_no_process(scene, monkeypatch):
    monkeypatch.setattr(connect, "local_cluster", lambda _workers: pytest.fail("processes were started"))
    with pytest.raises(errors.ModelError, match="rsprompter-query"):
        rsgeoseg.run(str(scene), "yolo", workers=1)


@pytest.mark.parametrize(
    "kind",
    [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.RsGeoSegError)],
)
def test_errors_cross_processes_with_their_message(kind):
    again = pickle.loads(pickle.dumps(kind("a.tif: chip 7 failed")))
    assert type(again) is kind
    assert str(again) == "a.tif: chip 7 failed"


# ------------------------------------------------------------------------------------------------ nothing stays behind

RUN = """
import sys
from dask_cluster import SPEC, Slow, run

def tell(event):
    if event.kind in ("cluster", "progress"):
        print(event.kind, flush=True)

if __name__ == "__main__":
    run(sys.argv[1], Slow(spec=SPEC), workers=2, output="out.gpkg", progress=tell)
"""


def _begin(folder, scene, **environment):
    """Start ``RUN`` in a group of processes of its own, as a terminal does."""
    command, env = script(folder, RUN)
    return subprocess.Popen(
        [*command, str(scene)], cwd=folder, env=env | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("how", "after"), [("group", "progress"), ("alone", "cluster"), ("kill", "progress")])
def test_interrupted_runs_leave_no_process(scene, tmp_path, how, after):
    (tmp_path / "tmp").mkdir()
    process = _begin(tmp_path, scene, TMPDIR=str(tmp_path / "tmp"))
    for line in process.stdout:
        if line.strip() == after:
            break
    begun = psutil.Process(process.pid).children(recursive=True)
    assert len(begun) >= 2
    if how == "group":  # as a terminal does it
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT if how == "alone" else signal.SIGKILL)
    _, said = process.communicate(timeout=40)
    assert ended(begun)
    assert process.returncode != 0
    assert not list(tmp_path.glob("out.gpkg"))
    if how != "kill":
        assert said.strip().splitlines()[-1].startswith("rsgeoseg.errors.JobCancelled: cancelled")
        assert "distributed" not in said.replace("site-packages/distributed", "")
        assert said.count("Process ") == 0  # of a worker that was hit as well
        assert not list((tmp_path / "tmp").iterdir())


def test_absurdly_many_workers_are_refused(scene):
    with pytest.raises(UsageError, match="1000000 workers are too many for"):
        run(scene, workers=1_000_000)


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(connect.tempfile, "tempdir", str(tmp_path))
    names = ("rsgeoseg-dask-left", "rsgeoseg-dask-busy", "rsgeoseg-dask-new", "rsgeoseg-mine")
    folders = [tmp_path / name for name in names]
    for folder in folders:
        folder.mkdir()
        (folder / "file").write_text("text")
        if folder.name != "rsgeoseg-dask-new":
            os.utime(folder, (0, 0))
    with FileLock(folders[1] / "in-use.lock"):
        os.utime(folders[1], (0, 0))
        with connect.local_cluster(1):
            assert [folder.exists() for folder in folders] == [False, True, True, True]
            (ours,) = set(tmp_path.iterdir()) - set(folders)
            assert (ours / "in-use.lock").exists()
    assert set(tmp_path.iterdir()) == set(folders[1:])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="Windows has no groups of processes like these")
@pytest.mark.parametrize("after", [0.0, 0.2, 0.5])
def test_ctrl_c_while_workers_start_is_one_line(scene, tmp_path, after):
    (tmp_path / "tmp").mkdir()
    process = _begin(tmp_path, scene, TMPDIR=str(tmp_path / "tmp"))
    begun = _first_workers(process)
    time.sleep(after)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=40)
    assert ended(begun)
    assert said.strip().splitlines()[-1].startswith("rsgeoseg.errors.JobCancelled: cancelled")
    assert "Process " not in said
    assert "distributed" not in said.replace("site-packages/distributed", "")
    assert not list((tmp_path / "tmp").iterdir())


def _first_workers(process):
    """Worker processes of a program, as soon as there are some."""
    deadline = time.monotonic() + 30
    while not (begun := [each for each in children(process.pid) if "spawn_main" in " ".join(each.cmdline())]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return begun


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.0, 0.7, 1.5])
def test_a_worker_that_is_killed_while_it_starts_is_replaced(scene, tmp_path, after):
    process = _begin(tmp_path, scene)
    begun = _first_workers(process)
    time.sleep(after)
    begun[0].kill()
    _, said = process.communicate(timeout=90)
    assert process.returncode == 0, said
    assert_same(load_frame(tmp_path / "out.gpkg"), run(scene))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "error", "hint"),
    [
        ("file", "ClusterError", '`if __name__ == "__main__":`'),
        ("stdin", "UsageError", "a script that is no file"),
    ],
)
def test_a_script_without_a_guard_is_told_so(scene, tmp_path, how, error, hint):
    text = f"import rsgeoseg\nrsgeoseg.run({str(scene)!r}, workers=1, output='out.gpkg', device='cpu')\n"
    command, env = script(tmp_path, text)
    if how == "stdin":
        command = [command[0], "-"]
    done = subprocess.run(
        command, input=text, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert error in done.stderr.splitlines()[-1]
    assert hint in done.stderr.splitlines()[-1]
    assert not list(tmp_path.glob("out*"))


@pytest.mark.slow
def test_the_command_line_says_one_line(scene, tmp_path):
    command = [sys.executable, "-m", "rsgeoseg.cli.main", "run", str(scene), "-o", "out.gpkg", "--chip-size", "64"]
    done = subprocess.run(
        [*command, "--scheduler", "tcp://127.0.0.1:9"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: no Dask scheduler answers at tcp://127.0.0.1:9")
