import json

import pytest

from rsgeoseg.cli.doctor_speed import bar_length
from rsgeoseg.cli.main import invoke
from rsgeoseg.engine import measure
from rsgeoseg.engine.speed import STAGES
from rsgeoseg.weights.cards import bundled_cards


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setenv("RSGEOSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(measure, "DISK_BYTES", 1 << 20)


def test_speed_reports_every_stage_as_json(cli, tmp_path):
    result = cli("doctor", "--speed", "--seconds", "0.1", "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert tuple(stage["name"] for stage in report["stages"]) == STAGES
    for stage in report["stages"]:
        assert set(stage) == {"name", "rate", "unit", "mpx_per_s", "detail"}
        assert stage["mpx_per_s"] > 0
    slowest = min(report["stages"], key=lambda stage: stage["mpx_per_s"])
    assert report["limit"]["stage"] == slowest["name"]
    assert report["workload"]["chip_size"] == 96
    assert {"processor", "memory", "cores", "load", "versions"} <= set(report["machine"])
    assert [path.name for path in tmp_path.iterdir()] == []  # nothing is left behind


def test_speed_of_a_scene_of_the_users_for_people(cli, ids_scene, tmp_path):
    path, _ = ids_scene(200, 260)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    result = cli("doctor", "--speed", path, "--seconds", "0.1")
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert [line.split()[0] for line in lines[1:8]] == list(STAGES)
    assert all("█" in line or "#" in line for line in lines[1:8])
    assert any("limits: " in line and "Mpx/s" in line for line in lines[8:])
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == before


def test_options_of_speed_without_it_are_refused(cli, ids_scene):
    path, _ = ids_scene()
    for arguments in ([path], ["--model", "rsprompter-query"], ["--seconds", "3"], ["--device", "cpu"]):
        cli("doctor", *arguments).fails(2, "--speed")


def test_speed_of_what_cannot_be_measured_is_one_line(cli, tmp_path):
    cli("doctor", "--speed", tmp_path / "none.tif").fails(3, "none.tif")
    cli("doctor", "--speed", "--model", "sam-prompt").fails(2, "sam-prompt", "another model")
    cli("doctor", "--speed", "--model", "sam-nothing").fails(4, "sam-nothing")
    cli("doctor", "--speed", "--device", "abacus", "--seconds", "0.1").fails(4, "abacus")


def test_bars_grow_with_the_logarithm():
    assert bar_length(0.001) == bar_length(0.01) == 1
    assert bar_length(10) - bar_length(1) == bar_length(1000) - bar_length(100) == 4
    assert bar_length(1e5) == bar_length(1e9) == 28


@pytest.mark.slow
@pytest.mark.skipif(not bundled_cards(), reason="no bundled weights in this checkout")
def test_speed_of_the_bundled_model(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert invoke(["doctor", "--speed", "--seconds", "0.5", "--device", "cpu", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["device"] == "cpu"
    assert report["model"]["weights"]
    assert report["limit"]["stage"] == "model"  # of all models on all CPUs so far
    assert list(tmp_path.iterdir()) == []
