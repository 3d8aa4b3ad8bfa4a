"""A worker process loads a model as seldom as it can, and lets it go when no run is left."""

import threading
from dataclasses import dataclass, field, replace

import pytest
from dask_cluster import SPEC, draw_scene

from rsgeoseg.engine import cluster
from rsgeoseg.engine.block_work import Benches, WorkOrder
from rsgeoseg.engine.collect import Drawing
from rsgeoseg.engine.connect import local_cluster
from rsgeoseg.engine.options import PipelineOptions
from rsgeoseg.errors import ModelError, UsageError
from rsgeoseg.geo.scene import Scene
from rsgeoseg.testing.oracle import OracleSegmenter


@dataclass(frozen=True)
class Counted:
    """Gives an oracle and counts; equal by name."""

    name: str
    loads: list = field(compare=False)

    def __call__(self, device):
        self.loads.append((self.name, device))
        return OracleSegmenter(spec=SPEC)

    def devices(self, name):
        return (name,)


@dataclass(frozen=True)
class Nowhere(Counted):
    def __call__(self, device):
        super().__call__(device)
        msg = "no weights here"
        raise ModelError(msg)


@pytest.fixture
def order(tmp_path):
    """Makes orders."""
    with Scene.open(draw_scene(tmp_path / "scene.tif")) as scene:

        def make(token, model, devices=("cpu",)):
            return WorkOrder(
                token=token,
                scene=scene,
                model=model,
                options=PipelineOptions(chip_size=64, overlap=16, batch_size=1, score_threshold=0.5),
                drawing=Drawing(scene.grid, SPEC),
                weights_id=SPEC.weights_id,
                devices=devices,
            )

        yield make


def accept(benches, order, number=0):
    benches.accept(order.token, lambda: order, number, "tcp://127.0.0.1:1")
    return benches.bench(order.token)


def test_runs_at_once_share_the_model_of_a_cluster_and_the_last_one_drops_it(order):
    benches, loads = Benches(), []
    first, second = (accept(benches, order(token, Counted("a", loads))) for token in "12")
    assert benches.bench("1") is first
    assert first is not second
    assert loads == [("a", "cpu")]
    benches.clear("1")
    assert first.given_up.is_set()
    assert not second.given_up.is_set()
    accept(benches, order("3", Counted("a", loads)))
    assert len(loads) == 1
    for token in "23":
        benches.clear(token)
    accept(benches, order("4", Counted("a", loads)))
    assert len(loads) == 2


def test_a_process_of_our_own_keeps_the_model_between_runs(order):
    benches, loads = Benches(), []
    facts = benches.keep(Counted("a", loads), ("cpu",), 0)
    assert (facts.spec, facts.device, facts.devices, facts.batch_size) == (SPEC, "cpu", ("cpu",), 1)
    for token in "12":
        accept(benches, order(token, Counted("a", loads)))
        benches.clear(token)
    assert loads == [("a", "cpu")]


class Placed(Counted):
    """Gives a model that is named after the thread that loaded it."""

    def __call__(self, device):
        return OracleSegmenter(spec=replace(SPEC, name=str(threading.get_ident())))


def test_a_model_is_loaded_in_the_thread_that_works_on_blocks():
    """Helpers that torch starts for a second thread would keep the first one's from waiting awake."""
    with local_cluster(1) as client:
        cluster.keep_model(client, Placed("a", []), "cpu")
        facts = cluster.ask_facts(client, Placed("a", []), "cpu")
        assert facts.spec.name == str(client.submit(threading.get_ident).result())


def test_another_model_or_device_is_loaded(order):
    benches, loads = Benches(), []
    benches.keep(Counted("a", loads), ("cpu", "cuda:0"), 1)
    accept(benches, order("1", Counted("b", loads), devices=("cpu", "cuda:0")), number=3)
    accept(benches, order("2", Counted("b", loads), devices=("cpu", "cuda:0")), number=2)
    assert loads == [("a", "cuda:0"), ("b", "cuda:0"), ("b", "cpu")]


def test_a_model_that_cannot_be_had_is_tried_again_and_named_with_the_worker(order):
    benches, loads = Benches(), []
    source = Nowhere("a", loads)
    with pytest.raises(ModelError):
        benches.keep(source, ("cpu",), 0)
    for _ in range(2):
        with pytest.raises(UsageError, match=r"worker tcp://127.0.0.1:1 cannot take part: no weights here"):
            accept(benches, order("1", source))
    assert len(loads) == 3
