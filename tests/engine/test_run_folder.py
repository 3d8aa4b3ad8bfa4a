"""The run folder: what is resumed, what is refused and in which words, what is run again, what is removed."""

import json
import os
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from interruptions import (
    MODEL,
    SPEC,
    Slow,
    Wavering,
    assert_same,
    draw_scene,
    interrupted,
    journal,
    litter,
    plain,
    resumed,
)
from rasters import write_raster

import rsgeoseg
from rsgeoseg.engine import run_folder as folder_module
from rsgeoseg.engine.collect import Drawing
from rsgeoseg.engine.options import PipelineOptions
from rsgeoseg.engine.order import RunJob
from rsgeoseg.engine.part_run import PartRun, segment_group
from rsgeoseg.engine.pipeline import BatchSegmenter, SceneRun, read_groups
from rsgeoseg.engine.run_folder import RunFolder, differences, in_words, run_folder
from rsgeoseg.engine.tally import Tally
from rsgeoseg.errors import JobCancelled, ModelError, OutputError
from rsgeoseg.geo.scene import Scene
from rsgeoseg.geo.writers import load_frame
from rsgeoseg.jobs import run_jobs


@pytest.fixture
def scene(tmp_path):
    """48 chips, and something in the middle that the ``Picky`` model does not like."""
    bands = draw_scene(400, 300, count=40)
    bands[:, 200:206, 250:256] = np.array([0, 3, 9])[:, None, None]
    return write_raster(tmp_path / "scene.tif", bands)


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.gpkg"


@pytest.fixture(autouse=True)
def short_parts(monkeypatch):
    monkeypatch.setattr(folder_module, "PART_SECONDS", 0.02)


class Never(Wavering):
    def segment(self, chips, prompts=None):
        raise AssertionError


def journal_chips(output):
    return sum(line["chips"] for line in journal(output)) if list(run_folder(output).glob("part-*")) else 0


# ------------------------------------------------------------------------------------------- going on


def test_only_what_is_missing_is_done_again(scene, output):
    interrupted(scene, output)
    kept = sum(line["chips"] for line in journal(output))
    seen = []

    class Watching(Wavering):
        def segment(self, chips, prompts=None):
            seen.extend(chips)
            return super().segment(chips)

    found = resumed(scene, output, Watching(spec=SPEC))
    assert_same(found, plain(scene))
    assert len(seen) == found.attrs["rsgeoseg"]["chips"]["total"] - kept
    assert litter(output) == []


def test_the_record_tells_of_both_sessions(scene, output):
    """Seconds of stages are sums, pixels per second are those of the last session alone."""

    class Sleeps(Wavering):
        def segment(self, chips, prompts=None):
            time.sleep(0.02)
            return super().segment(chips)

    interrupted(scene, output, parts=5, model=Sleeps(spec=SPEC))
    lines = journal(output)
    begun = time.monotonic()
    record = resumed(scene, output).attrs["rsgeoseg"]
    took = time.monotonic() - begun
    chips = sum(line["chips"] for line in lines)
    assert {line["session"] for line in lines} == {1}
    assert record["stages"]["segment"]["seconds"] >= 0.02 * chips
    assert record["resumed_seconds"] == pytest.approx(max(line["seconds"] for line in lines), abs=0.002)
    assert record["seconds"] <= took
    assert 0 < record["resumed_pixels"] < record["pixels"] == 400 * 300
    new = record["pixels"] - record["resumed_pixels"]
    assert record["mpx_per_s"] == pytest.approx(new / 1e6 / record["seconds"], abs=0.001)


def test_a_run_that_is_cut_off_again_and_again(scene, output):
    for parts in (2, 4, 6):
        interrupted(scene, output, parts=parts, resume=True)
    assert {line["session"] for line in journal(output)} == {1, 2, 3}
    found = resumed(scene, output)
    assert_same(found, plain(scene))
    assert_same(load_frame(output), plain(scene))


def test_resume_without_anything_to_resume_starts_anew(scene, output):
    found = resumed(scene, output)
    assert found.attrs["rsgeoseg"]["resumed_pixels"] == found.attrs["rsgeoseg"]["resumed_seconds"] == 0
    assert_same(load_frame(output), plain(scene))
    assert litter(output) == []


def test_a_scene_that_was_moved_is_the_same_scene(scene, output, tmp_path):
    interrupted(scene, output)
    moved = scene.rename(tmp_path / "elsewhere.tif")
    assert resumed(moved, output).attrs["rsgeoseg"]["resumed_pixels"] > 0


def test_nodata_that_is_not_a_number_is_equal_to_itself(output, tmp_path):
    bands = draw_scene(400, 300, count=40).astype(np.float32)
    bands[:, :100, :100] = np.nan
    scene = write_raster(tmp_path / "scene.tif", bands, nodata=np.nan)
    exact = {"stretch": "minmax:0,255"}
    _cancelled(output, 3, lambda cancel: rsgeoseg.run(scene, Slow(spec=SPEC), output, cancel=cancel, **exact))
    found = rsgeoseg.run(scene, MODEL, output, resume=True, **exact)
    assert found.attrs["rsgeoseg"]["resumed_pixels"] > 0
    assert len(found) > 10
    assert_same(found, rsgeoseg.run(scene, MODEL, **exact))


def _cancelled(output, parts, work):
    """Cancel a run when so many parts are on disk."""
    cancel = threading.Event()

    def watch():
        while len(list(run_folder(output).glob("part-*.npz"))) < parts:
            time.sleep(0.001)
        cancel.set()

    threading.Thread(target=watch, daemon=True).start()
    with pytest.raises(JobCancelled):
        work(cancel)


def test_a_batch_that_was_kept_in_pieces(scene, output):
    """As where a chip killed its workers: the chips that were kept of it are not done twice."""
    with Scene.open(scene, stretch="none") as opened:
        drawing = Drawing(opened.grid, SPEC)
        options = PipelineOptions(chip_size=64, overlap=16, batch_size=4)
        batches = BatchSegmenter(MODEL, 4)
        with RunFolder(output, {}, drawing, resume=True, overwrite=False) as parts:
            _work(opened, options, batches, parts, lambda groups: [groups[0][1:3]])
        with RunFolder(output, {}, drawing, resume=True, overwrite=False) as parts:
            run = _work(opened, options, batches, parts, list)
            result, found = run.result(batch_size=4), parts.table().frame()
            parts.remove()
    chips = result.record["chips"]
    assert chips["done"] == chips["total"]
    assert_same(found, plain(scene, batch_size=4))


def _work(scene, options, batches, parts, choose):
    run = SceneRun(scene, "oracle", options, lambda _event: None, parts)
    groups = choose(run.start())
    part = PartRun(scene, run.plan, options, parts.begin(), lambda _event: None)
    for items in read_groups(scene, groups, options, Tally()):
        part.take(segment_group(items, batches))
    time.sleep(0.03)  # the part is due
    run.end_part(part)
    return run


def test_a_scene_without_objects(output, tmp_path):
    scene = write_raster(tmp_path / "scene.tif", draw_scene(400, 300, count=1) * 0)
    _cancelled(output, 3, lambda cancel: rsgeoseg.run(scene, Slow(spec=SPEC), output, stretch="none", cancel=cancel))
    found = resumed(scene, output)
    assert found.attrs["rsgeoseg"]["resumed_pixels"] > 0
    assert len(found) == len(load_frame(output)) == 0
    assert_same(found, plain(scene))


# ------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nms": 0.7}, r"options.nms: 0.5 then, 0.7 now"),
        ({"chip_size": 48, "overlap": 16}, r"options.chip_size: 64 then, 48 now"),
        ({"batch_size": 2}, r"options.batch_size: 1 then, 2 now"),
        ({"score_threshold": 0.9}, r"options.score_threshold: 0.5 then, 0.9 now"),
        ({"simplify": 1.0}, r"drawing.simplify: 0.0 then, 1.0 now"),
        ({"dst_crs": "EPSG:4326"}, r"drawing.dst_crs: null then, .EPSG:4326. now"),
        ({"bbox": (500_000, 5_399_900, 500_100, 5_400_000)}, r"scene.width: 300 then, 200 now"),
        ({"bands": (3, 2, 1)}, r"scene.bands: \[1, 2, 3\] then, \[3, 2, 1\] now"),
        ({"classes": "a"}, r"options.classes: null then, \[.a.\] now"),
        ({"stretch": "minmax:0,200"}, r"scene.stretch.*: .* then, .* now"),
    ],
)
def test_other_options_refuse_to_resume_and_say_what_differs(scene, output, options, words):
    interrupted(scene, output)
    before = sorted(run_folder(output).iterdir())
    with pytest.raises(OutputError, match=words) as caught:
        rsgeoseg.run(scene, MODEL, output, resume=True, **{"stretch": "none", **options})
    assert "\n" not in str(caught.value)
    assert "--overwrite in place of --resume" in str(caught.value)
    assert sorted(run_folder(output).iterdir()) == before
    assert_same(resumed(scene, output), plain(scene))


def test_another_scene_and_other_weights_refuse_too(scene, output):
    interrupted(scene, output)
    with pytest.raises(OutputError, match=r"model.weights: .* then, .other-1234. now"):
        resumed(scene, output, Wavering(spec=replace(SPEC, weights_id="other-1234")))
    data, status = bytearray(scene.read_bytes()), scene.stat()
    scene.touch()
    with pytest.raises(OutputError, match=r"scene.fingerprint.mtime_ns: \d+ then, \d+ now; give"):
        resumed(scene, output)  # what lies between its ends may be new
    os.utime(scene, ns=(status.st_atime_ns, status.st_mtime_ns))
    data[-1] ^= 1
    scene.write_bytes(data)
    os.utime(scene, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(OutputError, match=r"scene.fingerprint.sha256_ends"):
        resumed(scene, output)


def test_files_of_another_version_are_refused(scene, output):
    interrupted(scene, output)
    path = run_folder(output) / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "format": 0}))
    with pytest.raises(OutputError, match="format: 0 then, 1 now"):
        resumed(scene, output)


def test_other_libraries_are_warned_of(scene, output, caplog):
    interrupted(scene, output)
    path = run_folder(output) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["libraries"]["numpy"] = "1.0"
    path.write_text(json.dumps(manifest))
    assert resumed(scene, output).attrs["rsgeoseg"]["resumed_pixels"] > 0
    assert 'numpy: "1.0" then, ' in caplog.text


def test_an_unfinished_run_is_neither_overwritten_nor_gone_on_with_unasked(scene, output):
    interrupted(scene, output)
    with pytest.raises(OutputError, match=r"unfinished run \(\d+ chips done\): --resume goes on with it, --overwrite"):
        rsgeoseg.run(scene, MODEL, output, stretch="none")
    found = rsgeoseg.run(scene, MODEL, output, stretch="none", overwrite=True, nms=0.9)
    assert found.attrs["rsgeoseg"]["resumed_pixels"] == 0
    assert_same(found, plain(scene, nms=0.9))
    assert litter(output) == []


def test_a_finished_run_is_left_as_it_is(scene, output):
    first = resumed(scene, output)
    before = output.read_bytes()
    again = resumed(scene, output, Never(spec=SPEC))
    assert output.read_bytes() == before
    assert len(again) == len(first)
    with pytest.raises(OutputError, match=r"is finished, but options.nms: 0.5 then, 0.9 now; use --overwrite"):
        resumed(scene, output, nms=0.9)
    record = output.with_name("out.gpkg.run.json")
    text = record.read_text()
    for damaged in ("{", "[]", "{}"):
        record.write_text(damaged)
        with pytest.raises(OutputError, match="no run record"):
            resumed(scene, output)
    record.unlink()
    with pytest.raises(OutputError, match="no run record"):
        resumed(scene, output)
    record.write_text(text)
    run_folder(output).mkdir()
    (run_folder(output) / "lock").touch()
    (run_folder(output) / "part-000007.npz").touch()
    resumed(scene, output, Never(spec=SPEC))
    assert litter(output) == [], "what a killed clean-up left"


def test_of_many_scenes_the_finished_ones_are_left_as_they_are(scene, tmp_path, monkeypatch):
    """Through the jobs of the command line, one model for all."""
    outputs = [tmp_path / f"{name}.gpkg" for name in "abc"]
    jobs = [
        RunJob(scene=str(scene), output=str(path), stretch="none", resume=True, chip_size=256, overlap=64)
        for path in outputs
    ]
    (first,) = run_jobs(jobs[:1])
    times = outputs[0].stat().st_mtime_ns
    records = [record for _, record in run_jobs(jobs)]
    assert records[0]["finished"] == first[1]["finished"]
    assert outputs[0].stat().st_mtime_ns == times
    assert all(path.exists() for path in outputs)


# ------------------------------------------------------------------------------------------- failed chips


class Picky(Wavering):
    def segment(self, chips, prompts=None):
        time.sleep(0.005)
        if any((chip.image[1] == 3).any() for chip in chips):
            raise ValueError
        return super().segment(chips)


def test_a_run_that_stopped_at_a_chip_goes_on_without_it(scene, output):
    """As its own message says: --on-chip-error skip."""
    picky = Picky(spec=SPEC)
    with pytest.raises(ModelError, match="--on-chip-error skip"):
        rsgeoseg.run(scene, picky, output, stretch="none")
    assert journal(output)
    found = resumed(scene, output, picky, on_chip_error="skip")
    assert found.attrs["rsgeoseg"]["resumed_pixels"] > 0
    wanted = rsgeoseg.run(scene, picky, stretch="none", on_chip_error="skip")
    assert found.attrs["rsgeoseg"]["failed_chips"] == wanted.attrs["rsgeoseg"]["failed_chips"] != []
    assert_same(found, wanted)


@pytest.mark.parametrize("policy", ["skip", "raise"])
def test_chips_that_failed_stay_failed_or_are_tried_again(scene, output, policy, caplog):
    picky = Picky(spec=SPEC)
    work = {"stretch": "none", "on_chip_error": "skip"}
    failed = rsgeoseg.run(scene, picky, **work).attrs["rsgeoseg"]["failed_chips"]

    cancel = threading.Event()

    class Stops(Picky):
        def segment(self, chips, prompts=None):
            if journal_chips(output) > failed[0]["index"] + 1:
                cancel.set()
            return super().segment(chips)

    with pytest.raises(JobCancelled):
        rsgeoseg.run(scene, Stops(spec=SPEC), output, cancel=cancel, **work)
    found = resumed(scene, output, MODEL, on_chip_error=policy)
    left = [chip["index"] for chip in found.attrs["rsgeoseg"]["failed_chips"]]
    if policy == "skip":
        assert failed[0]["index"] in left
    else:
        assert left == []
        assert "chips of part" in caplog.text
        assert_same(found, plain(scene))


# ------------------------------------------------------------------------------------------- files of others


def test_what_somebody_put_into_the_folder_stays(scene, output):
    folder = run_folder(output)
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    resumed(scene, output)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_an_output_that_appears_meanwhile_is_not_replaced_unasked(scene, output):
    interrupted(scene, output)
    output.write_text("mine")
    with pytest.raises(OutputError, match="appeared after the run to it began: move it away"):
        resumed(scene, output)
    output.unlink()

    def appear(event):
        if event.kind == "stage" and event.stage == "polygonize":
            output.write_text("mine")

    with pytest.raises(OutputError, match="appeared after the run to it began"):
        resumed(scene, output, progress=appear)
    assert output.read_text() == "mine"
    output.unlink()
    assert_same(resumed(scene, output), plain(scene))


def test_an_output_that_may_be_replaced_still_may_after_a_crash(scene, output):
    output.write_text("old")
    interrupted(scene, output, overwrite=True)
    assert output.read_text() == "old"
    resumed(scene, output)
    assert_same(load_frame(output), plain(scene))
    assert litter(output) == []


def test_what_a_killed_writer_left_is_swept_and_nothing_else(scene, output, tmp_path):
    ours = [".out.gpkg.abcd1234.part", ".out.gpkg.run.json._bcd123_.part"]
    others = [".out.gpkg.fgb.abcd1234.part", ".about.gpkg.abcd1234.part", ".out.gpkg.abcd1234.part.txt"]
    for name in ours + others:
        (tmp_path / name).mkdir()
    resumed(scene, output)
    assert litter(output) == sorted(others)


def test_a_file_where_the_folder_would_be(scene, output):
    run_folder(output).write_text("mine")
    with pytest.raises(OutputError, match=r"cannot write .*out.gpkg.rsgeoseg: .*exists"):
        resumed(scene, output)
    assert run_folder(output).read_text() == "mine"


def test_a_run_that_ends_early_and_has_nothing_leaves_nothing(scene, output):
    class Fails(Wavering):
        def segment(self, chips, prompts=None):
            raise ValueError

    with pytest.raises(ModelError):
        rsgeoseg.run(scene, Fails(spec=SPEC), output, stretch="none")
    assert litter(output) == []
    assert not output.exists()


# ------------------------------------------------------------------------------------------- words


def test_differences_name_the_place():
    then, now = {"a": {"b": 1, "c": [1]}, "d": 0}, {"a": {"b": 2, "c": [1]}, "e": None}
    assert differences(then, now) == ["a.b: 1 then, 2 now", "d: 0 then, null now"]
    assert differences({"a": None}, {"a": {"b": 1}}) == ['a: null then, {"b": 1} now']
    (line,) = differences({"a": "x" * 500}, {"a": 1})
    assert len(line) < 120


def test_many_differences_are_counted():
    assert in_words([f"d{number}" for number in range(9)]) == "d0; d1; d2; d3; d4; d5; and 3 more"
    assert in_words(["one"]) == "one"
