"""Several scenes into one file."""

import numpy as np
import pytest
from rasters import write_raster

from rsgeoseg import jobs
from rsgeoseg.engine.order import RunJob
from rsgeoseg.errors import OutputError, UsageError
from rsgeoseg.geo.writers import load_frame
from rsgeoseg.testing.scenes import generate_scene


@pytest.fixture
def scenes(tmp_path):
    for seed in (1, 2):
        generate_scene(tmp_path / f"s{seed}.tif", height=300, width=300, seed=seed, density=60)
    return [str(tmp_path / "s1.tif"), str(tmp_path / "s2.tif")]


def job(tmp_path, scenes, **options):
    return RunJob(scene=scenes[0], output=str(tmp_path / "all.gpkg"), **options)


def test_objects_of_all_scenes_with_their_names(tmp_path, scenes):
    record = jobs.run_merged(job(tmp_path, scenes), scenes)
    found = load_frame(tmp_path / "all.gpkg")
    single = [jobs.run(scene) for scene in scenes]
    assert len(found) == sum(map(len, single)) == record["objects"]["total"]
    assert found["id"].tolist() == list(range(1, len(found) + 1))
    for scene, alone in zip(("s1.tif", "s2.tif"), single, strict=True):
        mine = found[found["scene"] == scene]
        assert np.allclose(mine["area_m2"], alone["area_m2"])
        assert mine.geometry.reset_index(drop=True).geom_equals_exact(alone.geometry, 0).all()
    assert [each["name"] for each in record["scenes"]] == ["s1.tif", "s2.tif"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.gpkg", "all.gpkg.run.json", "s1.tif", "s2.tif"]
    before = (tmp_path / "all.gpkg").read_bytes()
    again = jobs.run_merged(job(tmp_path, scenes, resume=True), scenes)
    assert again["objects"] == record["objects"]
    assert (tmp_path / "all.gpkg").read_bytes() == before
    with pytest.raises(OutputError, match=r"not the finished result of these scenes, but of s1\.tif, s2\.tif"):
        jobs.run_merged(job(tmp_path, scenes, resume=True), scenes[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"simplify": 1.0}, "for s1.tif drawing.simplify: 0.0 then, 1.0 now"), ({"classes": "ship"}, "options.classes"),
     ({"dst_crs": "EPSG:4326"}, "drawing.dst_crs"), ({"model": "rsprompter-anchor"}, "model.name")],
)  # fmt: skip
def test_a_finished_merge_of_another_run_is_not_resumed(tmp_path, scenes, options, message):
    jobs.run_merged(job(tmp_path, scenes), scenes)
    with pytest.raises(OutputError, match=message):
        jobs.run_merged(job(tmp_path, scenes, resume=True, **options), scenes)


def test_a_finished_merge_of_a_scene_that_was_another_is_not_resumed(tmp_path, scenes):
    jobs.run_merged(job(tmp_path, scenes), scenes)
    (tmp_path / "s2.tif").unlink()
    generate_scene(tmp_path / "s2.tif", height=300, width=300, seed=3, density=60)
    with pytest.raises(OutputError, match=r"for s2.tif scene.fingerprint"):
        jobs.run_merged(job(tmp_path, scenes, resume=True), scenes)


def test_an_unfinished_merge_is_resumed_with_the_same_scenes_only(tmp_path, scenes, monkeypatch):
    def dies(*arguments, **options):
        yield next(jobs.run_jobs(*arguments, **options))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("rsgeoseg.jobs.merged.run_jobs", dies)
        with pytest.raises(KeyboardInterrupt):
            jobs.run_merged(job(tmp_path, scenes), scenes)
    with pytest.raises(OutputError, match=r"it is a run of s1.tif, s2.tif; use --overwrite"):
        jobs.run_merged(job(tmp_path, scenes, resume=True), scenes[:1])
    with pytest.raises(OutputError, match=r"all\.gpkg \(s1\.tif\): .*options\.nms"):
        jobs.run_merged(job(tmp_path, scenes, resume=True, nms=0.9), scenes)
    (tmp_path / "all.gpkg").write_text("mine")
    with pytest.raises(OutputError, match=r"all\.gpkg was not there when this run began"):
        jobs.run_merged(job(tmp_path, scenes, resume=True), scenes)
    assert (tmp_path / "all.gpkg").read_text() == "mine"
    (tmp_path / "all.gpkg").unlink()
    record = jobs.run_merged(job(tmp_path, scenes, resume=True), scenes)
    assert len(load_frame(tmp_path / "all.gpkg")) == record["objects"]["total"] > 0
    assert not (tmp_path / "all.gpkg.scenes").exists()


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}])
def test_two_merges_into_one_output_the_second_refuses(tmp_path, scenes, options):
    refused = []

    def second(event):
        if not refused and event.kind == "done":  # the first scene is done
            with pytest.raises(OutputError, match=r"another run is writing .*all\.gpkg"):
                jobs.run_merged(job(tmp_path, scenes, **options), scenes)
            refused.append(event)

    record = jobs.run_merged(job(tmp_path, scenes), scenes, on_event=second)
    assert refused
    assert len(load_frame(tmp_path / "all.gpkg")) == record["objects"]["total"] > 0


def test_a_merge_that_was_killed_once_its_output_was_there_is_resumed(tmp_path, scenes, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("rsgeoseg.jobs.merged._clear", lambda _folder: None)
        first = jobs.run_merged(job(tmp_path, scenes), scenes)
    (tmp_path / "all.gpkg.run.json").unlink()  # nor was there time for its record
    again = jobs.run_merged(job(tmp_path, scenes, resume=True), scenes)
    assert again["objects"] == first["objects"]
    assert not (tmp_path / "all.gpkg.scenes").exists()
    assert (tmp_path / "all.gpkg.run.json").exists()


def test_what_others_keep_in_the_folder_stays(tmp_path, scenes):
    folder = tmp_path / "all.gpkg.scenes"
    folder.mkdir()
    mine = [folder / "notes.txt", folder / "x.tif", folder / "12.parquet"]
    for path in mine:
        path.write_text("mine")
    for number, options in enumerate(({"overwrite": True}, {"resume": True}, {"overwrite": True})):
        record = jobs.run_merged(job(tmp_path, scenes, **options), scenes)
        assert record["objects"]["total"] > 0, number
        assert sorted(folder.iterdir()) == sorted(mine)


def test_a_merge_is_as_bad_as_its_worst_scene():
    good = {"chips": {"done": 3, "failed": 0, "total": 3}}
    bad = {"chips": {"done": 0, "failed": 3, "total": 3}}
    whole = {"chips": {"done": 3, "failed": 3, "total": 6}}
    assert jobs.exit_code({**whole, "scenes": [{"record": good}, {"record": bad}]}) == 6
    assert jobs.exit_code({**whole, "scenes": [{"record": good}, {"record": good}]}) == 0


def test_what_cannot_be_merged_is_refused_first(tmp_path, scenes):
    other = str(write_raster(tmp_path / "other.tif", np.ones((3, 80, 80), np.uint8), crs="EPSG:3857"))
    with pytest.raises(UsageError, match="different CRSs: give --dst-crs"):
        jobs.run_merged(job(tmp_path, scenes), [scenes[0], other])
    nowhere = str(write_raster(tmp_path / "nowhere.tif", np.ones((3, 80, 80), np.uint8), crs=None))
    for options in ({}, {"dst_crs": "EPSG:4326"}):
        with pytest.raises(UsageError, match=r"nowhere.tif has no CRS: it cannot be merged"):
            jobs.run_merged(job(tmp_path, scenes, **options), [scenes[0], nowhere])
    with pytest.raises(UsageError, match=r"s1.tif is given twice"):
        jobs.run_merged(job(tmp_path, scenes), [scenes[0], str(tmp_path / "x" / ".." / "s1.tif")])
    with pytest.raises(UsageError, match="pixels of one scene"):
        jobs.run_merged(RunJob(scene=scenes[0], output=str(tmp_path / "all.tif")), scenes)
    assert not (tmp_path / "all.gpkg.scenes").exists()


def test_an_empty_result_has_its_columns(tmp_path):
    paths = [str(write_raster(tmp_path / f"e{i}.tif", np.full((3, 80, 80), 9, np.uint8))) for i in (1, 2)]
    jobs.run_merged(RunJob(scene=paths[0], output=str(tmp_path / "all.gpkg"), score_threshold=0.99), paths)
    found = load_frame(tmp_path / "all.gpkg")
    assert len(found) == 0
    assert "scene" in found
    assert found.crs is not None
