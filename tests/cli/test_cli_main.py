import json
import subprocess
import sys
from pathlib import Path

import pyogrio
import pytest

from rsgeoseg.cli.main import invoke
from rsgeoseg.cli.run import plan_outputs
from rsgeoseg.errors import UsageError
from rsgeoseg.weights.cards import bundled_cards

HEAVY = ("torch", "rasterio", "dask", "geopandas", "numpy", "rich", "pyproj", "pandas")
RUN_OPTIONS = """
    --model --weights -o --output --format --device --batch-size --chip-size --overlap -b --bands --stretch --gsd --aoi
    --bbox --classes --score-threshold --min-area --nms --simplify --regularize --dst-crs --overwrite --on-chip-error
    --offline --progress -v -q
"""
ROOT = str(Path(__file__).parents[2])


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"], []])
def test_help_loads_nothing_heavy(arguments):
    program = (
        f"import sys; sys.path.insert(0, {ROOT!r}); from rsgeoseg.cli.main import invoke; code = invoke({arguments!r});"
        f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules], code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert "LOADED [] 0" in done.stdout


def test_help_is_quick():
    """In processor seconds: other work on the machine must not decide."""
    program = (
        f"import sys, time; sys.path.insert(0, {ROOT!r}); from rsgeoseg.cli.main import invoke; invoke(['--help']);"
        "print('SECONDS', time.process_time())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert float(done.stdout.split("SECONDS")[1]) < 0.5


def test_every_command_has_help_with_its_options(capsys):
    assert invoke(["--help"]) == 0
    listed = capsys.readouterr().out
    for command in ("run", "info", "models", "evaluate", "preview", "doctor"):
        assert command in listed
        assert invoke([command, "--help"]) == 0
        assert "--help" in capsys.readouterr().out


def test_run_has_the_options_that_the_architecture_names(capsys):
    invoke(["run", "--help"])
    text = capsys.readouterr().out
    for option in RUN_OPTIONS.split():
        assert option in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], "SCENE"),
        (["run", "a.tif", "--colour"], "--colour"),
        (["dance"], "dance"),
        (["run", "a.tif", "--on-chip-error", "shrug"], "shrug"),
        (["run", "a.tif", "--nms", "much"], "--nms"),
        (["run", "a.tif", "b.tif", "-o", "one.gpkg"], "{stem}"),
        (["run", "a.tif", "--batch-size", "many"], "batch-size"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(capsys, arguments, words):
    assert invoke(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert words in lines[0]


def test_an_unexpected_error_is_one_line_and_v_shows_the_place(cli, ids_scene, monkeypatch):
    from rsgeoseg import registry

    path, _ = ids_scene()

    def broken(*_arguments, **_options):
        raise KeyError(path)

    monkeypatch.setattr(registry, "load_model", broken)
    result = cli("run", path)
    assert result.code == 1
    result.fails(1, "KeyError", "scene.tif")
    result = cli("run", path, "-v")
    assert "Traceback" in result.err
    assert "in broken" in result.err


def test_run_writes_prints_and_records(cli, ids_scene):
    path, ids = ids_scene()
    result = cli("run", path, "--stretch", "none")
    assert result.code == 0, result.err
    frame = pyogrio.read_dataframe("scene.gpkg")
    assert len(frame) == ids.max()
    assert frame.id.tolist() == list(range(1, len(frame) + 1))
    first, *rest = result.out.splitlines()
    assert first.startswith(f"scene.gpkg: {len(frame)} objects")
    assert "Mpx/s" in first
    assert sum(int(line.split()[0]) for line in rest) == len(frame)
    record = json.loads(Path("scene.gpkg.run.json").read_text())
    assert record["objects"]["total"] == len(frame)
    assert record["job"]["stretch"] == "none"
    assert record["scene"]["stretch"]
    assert record["versions"]["gdal"]
    assert record["peak_memory_bytes"] > 1e7
    for stage in ("read", "segment", "stitch", "polygonize", "write"):
        assert record["stages"][stage]["seconds"] >= 0
    assert record["stages"]["write"]["bytes"] == Path("scene.gpkg").stat().st_size
    assert record["mpx_per_s"] > 0


def test_underscores_work_like_hyphens(cli, ids_scene):
    path, _ = ids_scene()
    result = cli(
        "run", path, "--stretch", "none", "--chip_size", "80", "--on_chip_error=skip", "--dst_crs", "EPSG:4326"
    )
    assert result.code == 0, result.err
    record = json.loads(Path("scene.gpkg.run.json").read_text())
    assert record["options"]["chip_size"] == 80
    assert pyogrio.read_info("scene.gpkg")["crs"] == "EPSG:4326"


def test_options_do_what_they_say(cli, ids_scene):
    path, _ = ids_scene()
    everything = cli("run", path, "--stretch", "none", "-o", "all.gpkg")
    assert everything.code == 0
    frame = pyogrio.read_dataframe("all.gpkg")
    cli("run", path, "--stretch", "none", "-o", "ships.gpkg", "--classes", "ship")
    ships = pyogrio.read_dataframe("ships.gpkg")
    assert len(ships) == (frame.class_name == "ship").sum() > 0
    cli("run", path, "--stretch", "none", "-o", "big.gpkg", "--min-area", "100m2")
    assert len(pyogrio.read_dataframe("big.gpkg")) == (frame.area_m2 >= 100).sum() > 0
    cli("run", path, "--stretch", "none", "-o", "box.gpkg", "--bbox", "500000,5399950,500050,5400000")
    assert 0 < len(pyogrio.read_dataframe("box.gpkg")) < len(frame)


def test_chips_larger_than_the_model_takes_are_refused(cli, ids_scene):
    path, _ = ids_scene()
    cli("run", path, "--chip-size", 200).fails(2, "chip-size 200", "at most 96")
    cli("run", path, "--chip-size", 64, "--overlap", 40).fails(2, "overlap 40", "64")


def test_a_reader_that_goes_away_is_no_error():
    program = f"import sys; sys.path.insert(0, {ROOT!r}); from rsgeoseg.cli.main import main; main(['run', '--help'])"
    command = [sys.executable, "-u", "-c", program]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child.stdout.close()
    assert child.stderr.read() == b""
    assert child.wait(timeout=30) == 1


def test_json_progress_is_one_object_per_line(cli, ids_scene):
    path, ids = ids_scene()
    result = cli("run", path, "--stretch", "none", "--progress", "json")
    events = [json.loads(line) for line in result.out.splitlines()]
    assert [event["event"] for event in events][:1] == ["start"]
    assert events[-1]["event"] == "done"
    assert events[-1]["objects"] == ids.max()
    assert {"progress", "stage"} <= {event["event"] for event in events}


def test_quiet_says_nothing(cli, ids_scene):
    path, _ = ids_scene()
    result = cli("run", path, "--stretch", "none", "-q")
    assert (result.code, result.out, result.err) == (0, "", "")


def test_several_scenes_share_a_model_and_get_a_file_each(cli, ids_scene, tmp_path):
    one, _ = ids_scene(name="one.tif")
    two, _ = ids_scene(name="two.tif", seed=5)
    (tmp_path / "out").mkdir()
    result = cli("run", one, two, "--stretch", "none", "-o", "out/{stem}_objects.geojson")
    assert result.code == 0, result.err
    assert sorted(path.name for path in (tmp_path / "out").glob("*.geojson")) == [
        "one_objects.geojson",
        "two_objects.geojson",
    ]
    assert cli("run", one, two, "--stretch", "none", "-o", "out", "--format", "fgb").code == 0
    assert (tmp_path / "out" / "two.fgb").exists()
    # Nothing starts when the second output is in the way.
    (tmp_path / "two.gpkg").write_text("precious")
    cli("run", one, two).fails(5, "two.gpkg")
    assert not (tmp_path / "one.gpkg").exists()


def test_output_names():
    assert plan_outputs(["a/x.tif"], None) == [Path("x.gpkg")]
    assert plan_outputs(["a/x.tif"], "y.fgb") == [Path("y.fgb")]
    assert plan_outputs(["a/x.tif"], "new/", ".fgb") == [Path("new/x.fgb")]
    assert plan_outputs(["x.tif", "y.tif"], "r_{stem}.gpkg") == [Path("r_x.gpkg"), Path("r_y.gpkg")]
    with pytest.raises(UsageError, match="two scenes would both be written"):
        plan_outputs(["a/x.tif", "a/x.jp2"], None)


def test_scenes_of_one_name_are_told_apart_by_their_folders():
    def names(*scenes):
        return [path.as_posix() for path in plan_outputs(scenes, "out/")]

    assert names("a/x.tif", "b/x.tif", "a/y.tif") == ["out/a_x.gpkg", "out/b_x.gpkg", "out/y.gpkg"]
    assert names("/a/1/x.tif", "/b/1/x.tif") == ["out/a_1_x.gpkg", "out/b_1_x.gpkg"]
    web = ("https://host/S2_A/TCI.tif?key=1", "https://host/S2_B/TCI.tif?key=2")
    assert names(*web) == ["out/S2_A_TCI.gpkg", "out/S2_B_TCI.gpkg"]
    for scenes in (("x.tif", "../x.tif"), ("a/x.tif", "b/x.tif", "a_x.tif")):
        with pytest.raises(UsageError, match="two scenes would both be written"):
            names(*scenes)


def test_nothing_is_printed_twice_and_no_handler_piles_up(cli, ids_scene):
    path, _ = ids_scene(crs=None, affine=None)
    lines = [cli("run", path, "--stretch", "none", "--overwrite").err for _ in range(2)]
    assert lines[0] == lines[1]


def test_info_tells_what_a_run_would_do(cli, ids_scene):
    path, _ = ids_scene(300, 500)
    result = cli("info", path, "--chip-size", 128, "--overlap", 16, "--json")
    assert result.code == 0, result.err
    facts = json.loads(result.out)
    assert (facts["width"], facts["height"], facts["bands"], facts["dtype"]) == (500, 300, [1, 2, 3], "uint8")
    assert facts["gsd_m"] == pytest.approx(0.5)
    assert facts["chips"]["count"] == 5 * 3
    assert facts["stretch"]["kind"] == "none"
    words = cli("info", path, "--bbox", "500000,5399950,500050,5400000").out
    for part in ("EPSG:32631", "0.5 m per pixel", "100 x 100 pixels", "of 500 x 300", "1, 2, 3 of 3, uint8"):
        assert part in words
    cli("info", "absent.tif").fails(3, "absent.tif")


def test_models_are_listed_and_shown(cli):
    assert "rsprompter-query" in cli("models").out
    listed = json.loads(cli("models", "--json").out)
    assert "rsprompter-query" in [card["name"] for card in listed]
    assert "RSPrompter" in cli("models", "rsprompter_query").out
    assert json.loads(cli("models", "rsprompter-query", "--json").out)["name"] == "rsprompter-query"
    cli("models", "rsprompter-quarry").fails(4, "rsprompter-quarry", "rsprompter-query")


def test_doctor_reports_every_check(cli, monkeypatch):
    from rsgeoseg.cli import doctor

    monkeypatch.setattr(doctor, "CHECKS", [(name, look) for name, look in doctor.CHECKS if name != "run"])
    result = cli("doctor", "--json")
    report = json.loads(result.out)
    found = {check["name"]: check for check in report["checks"]}
    assert {"python", "torch", "gdal", "proj", "processor", "memory", "disk", "weights"} <= set(found)
    assert report["ok"] == all(check["ok"] for check in found.values())
    assert result.code == (0 if report["ok"] else 1)
    for name in ("python", "torch", "gdal", "proj", "processor"):
        assert found[name]["ok"], found[name]["detail"]

    def broken():
        msg = "no\nsuch library"
        raise ImportError(msg)

    monkeypatch.setattr(doctor, "CHECKS", (("python", lambda: "fine"), ("gdal", broken)))
    result = cli("doctor")
    assert result.code == 1
    assert result.out.splitlines() == ["ok    python         fine", "FAIL  gdal           ImportError: no such library"]


@pytest.mark.slow
@pytest.mark.skipif(not bundled_cards(), reason="no bundled weights in this checkout")
def test_the_tiny_run_of_doctor_works():
    from rsgeoseg.cli.doctor import _tiny_run, run_check

    check = run_check("run", _tiny_run)
    assert check.ok, check.detail
    assert "written and read back" in check.detail
