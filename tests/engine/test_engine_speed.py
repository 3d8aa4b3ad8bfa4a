import json

import numpy as np
import pytest

from rsgeoseg.contract import Chip, Instances
from rsgeoseg.engine import measure
from rsgeoseg.engine.speed import STAGES, MachineSpeed, StageSpeed, Workload
from rsgeoseg.engine.tuning import sample_chips
from rsgeoseg.geo.scene import Scene
from rsgeoseg.geo.windows import plan_windows
from rsgeoseg.testing.oracle import OracleSegmenter, oracle_spec

LOAD = Workload(chip_size=1000, overlap=200, bytes_per_pixel=1.5)


def machine(device="cpu", **mpx):
    stages = tuple(StageSpeed(name=name, rate=2 * value, unit="u/s", mpx_per_s=value) for name, value in mpx.items())
    return MachineSpeed(stages=stages, workload=LOAD, model="m", weights="w@1", device=device)


def test_rates_become_megapixels_of_scene():
    assert LOAD.chips_to_mpx(10) == pytest.approx(10 * 0.8 * 0.8)  # 800 x 800 new pixels a chip
    assert LOAD.objects_to_mpx(1000) == 50  # 20 a megapixel
    assert LOAD.file_to_mpx(300) == 200
    assert Workload(chip_size=64, overlap=0, bytes_per_pixel=3).chips_to_mpx(1) == pytest.approx(0.004096)


def test_the_slowest_stage_limits_and_the_next_is_told():
    speed = machine(disk=800.0, decode=150.0, model=1.0, write=300.0)
    assert speed.limit.name == "model"
    assert speed.runner_up.name == "decode"
    assert speed.in_turn == pytest.approx(1 / (1 / 800 + 1 / 150 + 1 + 1 / 300))
    verdict = speed.verdict()
    assert verdict.startswith("the model limits: 1 Mpx/s; decoding, the next slowest, could do 150 x as much: ")
    assert "GPU" in verdict


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_can_limit_and_has_a_remedy(name):
    speed = machine(**{stage: 5.0 if stage == name else 50.0 for stage in STAGES})
    assert speed.limit.name == name
    assert speed.remedy
    assert "10 x" in speed.verdict()


def test_a_gpu_is_not_advised_to_who_has_one():
    assert "a GPU would help" in machine(model=1.0, disk=2.0).verdict()
    assert "more devices would help" in machine(device="Some card, 80000 MiB", model=1.0, disk=2.0).verdict()


def test_a_single_stage_has_no_runner_up():
    speed = machine(decode=4.0)
    assert speed.runner_up is None
    assert speed.in_turn == speed.limit.mpx_per_s == 4.0
    assert speed.to_dict()["limit"]["next"] is None


def test_the_json_form_is_complete_and_plain():
    found = json.loads(json.dumps(machine(decode=150.123456, model=0.912345).to_dict()))
    assert set(found) == {"model", "device", "workload", "stages", "limit", "mpx_per_s"}
    assert found["stages"][1] == {"name": "model", "rate": 1.825, "unit": "u/s", "mpx_per_s": 0.9123, "detail": ""}
    assert found["limit"]["stage"] == "model"
    assert found["limit"]["next_times"] == pytest.approx(164.5, abs=0.1)
    assert found["mpx_per_s"]["in_turn"] < found["mpx_per_s"]["overlapped"] == 0.9123
    assert found["workload"] == {
        "chip_size": 1000,
        "overlap": 200,
        "bytes_per_pixel": 1.5,
        "objects_per_mpx": 20.0,
    }


def test_a_disk_is_measured_by_reading_all_of_a_file(tmp_path):
    path = tmp_path / "file.bin"
    measure.write_random_file(path, size=5_000_000)
    assert path.stat().st_size == 5_000_000
    speed = measure.measure_disk(path, LOAD, 5.0)
    assert speed.unit == "MB/s"
    assert speed.rate > 1
    assert speed.mpx_per_s == pytest.approx(speed.rate / 1.5)
    assert speed.detail.startswith("5 MB; ")


class Slow:
    """Takes 20 ms a chip."""

    def __init__(self):
        self.spec = oracle_spec(chip_size=100)
        self.sizes = []

    def segment(self, batch, prompts=None):
        import time

        self.sizes.append(len(batch))
        time.sleep(0.02 * len(batch))
        return [Instances.empty() for _ in batch]


def test_a_model_is_measured_in_batches():
    model = Slow()
    chip = Chip(image=np.zeros((3, 100, 100), np.uint8), valid=np.ones((100, 100), bool))
    load = Workload(chip_size=100, overlap=20, bytes_per_pixel=3)
    speed = measure.measure_model(model, [chip], 4, load, 0.2)
    assert model.sizes[0] == 1
    assert set(model.sizes[1:]) == {4}
    assert 10 < speed.rate <= 51  # 50 on an idle machine
    assert speed.mpx_per_s == pytest.approx(speed.rate * 0.0064)


def test_a_budget_of_nothing_still_measures_every_stage_once(ids_scene, tmp_path):
    path, _ = ids_scene(200, 260)
    spec = oracle_spec(chip_size=96)
    load = Workload(chip_size=96, overlap=16, bytes_per_pixel=3)
    plan = plan_windows(200, 260, chip_size=96, overlap=16)
    with Scene.open(path, stretch="none") as scene:
        chips, grid = sample_chips(scene, 96), scene.grid
        found = [OracleSegmenter(spec=spec).segment([scene.read(window.read)])[0] for window in plan.windows]
    copied = []
    frame_speed, frame = measure.measure_vectorise(measure.stitch(plan, found), grid, load, 0.0)
    speeds = [
        measure.measure_disk(path, load, 0.0),
        measure.measure_decode(lambda: Scene.open(path), plan, 0.0),
        measure.measure_copy(lambda: copied.append(1), chips[0], load, 0.0, device="cpu"),
        measure.measure_model(OracleSegmenter(spec=spec), chips, 1, load, 0.0),
        measure.measure_stitch(plan, found, 0.0),
        frame_speed,
        measure.measure_write(frame, tmp_path, load, 0.0),
    ]
    assert tuple(speed.name for speed in speeds) == STAGES
    assert all(speed.rate > 0 and speed.mpx_per_s > 0 for speed in speeds)
    assert len(copied) == 2
    assert len(frame) == measure.MOST_OBJECTS
    assert frame.geometry.is_valid.all()


def test_stitching_gives_the_whole_objects(ids_scene):
    path, ids = ids_scene(200, 260)
    plan = plan_windows(200, 260, chip_size=96, overlap=16)
    oracle = OracleSegmenter(spec=oracle_spec(chip_size=96))
    with Scene.open(path, stretch="none") as scene:
        found = [oracle.segment([scene.read(window.read)])[0] for window in plan.windows]
    assert len(measure.stitch(plan, found)) == len(np.unique(ids)) - 1
