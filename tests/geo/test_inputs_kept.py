"""What a run reads is never replaced by what it writes, and is the same from its first chip to its last."""

import json
import os

import numpy as np
import pytest
from dask_cluster import SPEC
from range_server import serving
from rasters import write_raster

import rsgeoseg
from rsgeoseg import jobs
from rsgeoseg.engine.order import RunJob
from rsgeoseg.errors import OutputError, SceneError
from rsgeoseg.testing.oracle import OracleSegmenter, encode_ids

ORACLE = OracleSegmenter(spec=SPEC)


def draw(path, value=7, **options):
    ids = np.zeros((300, 300), np.int32)
    ids[20:90, 30:200] = value
    return write_raster(path, encode_ids(ids), **options)


VRT = """<VRTDataset rasterXSize="300" rasterYSize="300">
<VRTRasterBand dataType="Byte" band="1"><SimpleSource><SourceFilename relativeToVRT="1">{name}</SourceFilename>
<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"""


@pytest.mark.parametrize("how", ["same", "link", "spelling", "part of a VRT", "part of a VRT in a VRT"])
def test_a_scene_is_not_replaced_by_its_result(tmp_path, how):
    scene = output = draw(tmp_path / "scene.tif")
    before = scene.read_bytes()
    if how == "link":
        output = tmp_path / "link.tif"
        output.symlink_to(scene)
    elif how == "spelling":
        output = tmp_path / "." / "x" / ".." / "scene.tif"
        (tmp_path / "x").mkdir()
    elif how.startswith("part"):
        (tmp_path / "one.vrt").write_text(VRT.format(name="scene.tif"))
        (tmp_path / "two.vrt").write_text(VRT.format(name="one.vrt"))
        scene = tmp_path / ("two.vrt" if how.endswith("in a VRT") else "one.vrt")
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(OutputError, match=r"this run reads it, as .*; choose another name"):
            rsgeoseg.run(scene, ORACLE, output, **options)
    assert (tmp_path / "scene.tif").read_bytes() == before


def test_neither_another_scene_of_the_call_nor_the_area_is_replaced(tmp_path):
    one, two = draw(tmp_path / "one.tif"), draw(tmp_path / "two.tif")
    batch = [
        RunJob(scene=str(one), output=str(two), overwrite=True),
        RunJob(scene=str(two), output=str(tmp_path / "new.tif")),
    ]
    with pytest.raises(OutputError, match=r"this run reads it, as .*two\.tif"):
        list(jobs.run_jobs(batch))
    area = tmp_path / "area.gpkg"
    rsgeoseg.run(one, ORACLE, area, stretch="none")
    before = area.read_bytes()
    with pytest.raises(OutputError, match=r"this run reads it, as .*area\.gpkg"):
        rsgeoseg.run(one, ORACLE, area, aoi=area, overwrite=True)
    with pytest.raises(OutputError, match="this run reads it"):
        jobs.run_merged(RunJob(scene=str(one), output=str(area), aoi=str(area), overwrite=True), [str(one), str(two)])
    assert area.read_bytes() == before


def test_the_file_behind_an_array_is_not_replaced(tmp_path):
    import rioxarray

    path = draw(tmp_path / "scene.tif")
    with rioxarray.open_rasterio(path) as array, pytest.raises(OutputError, match="this run reads it"):
        rsgeoseg.run(array, ORACLE, path, overwrite=True)


def test_what_an_open_scene_reads_is_not_replaced(tmp_path):
    import rioxarray

    path, area = draw(tmp_path / "scene.tif"), tmp_path / "area.gpkg"
    rsgeoseg.run(path, ORACLE, area, stretch="none")
    with rioxarray.open_rasterio(path, chunks=128) as array:
        scenes = [rsgeoseg.Scene.open(path, aoi=area), rsgeoseg.Scene.open(array)]
        for scene, output in ((scenes[0], area), (scenes[0], path), (scenes[1], path)):
            with scene, pytest.raises(OutputError, match="this run reads it"):
                rsgeoseg.run(scene, ORACLE, output, overwrite=True)


def test_neither_weights_nor_a_stac_item_are_replaced(tmp_path):
    path, weights = draw(tmp_path / "scene.tif"), tmp_path / "mine.gpkg"
    weights.write_bytes(b"weights")
    with pytest.raises(OutputError, match="this run reads it"):
        rsgeoseg.run(path, output=weights, weights=str(weights), overwrite=True)
    item = tmp_path / "a.gpkg.run.json"
    text = json.dumps({"type": "Feature", "assets": {"rgb": {"href": "scene.tif"}}})
    item.write_text(text)
    for output in (item, tmp_path / "a.gpkg"):  # beside the second one goes its record
        with pytest.raises(OutputError, match="this run reads it"):
            rsgeoseg.run(item, ORACLE, output, format="geojson", overwrite=True)
    assert item.read_text() == text
    assert weights.read_bytes() == b"weights"


def test_all_scenes_are_opened_before_the_first_is_run(tmp_path):
    good, bad = draw(tmp_path / "good.tif"), tmp_path / "bad.tif"
    bad.write_text("this is no raster")
    batch = [RunJob(scene=str(path), output=str(path.with_suffix(".gpkg"))) for path in (good, bad)]
    with pytest.raises(SceneError, match=r"bad\.tif"):
        list(jobs.run_jobs(batch))
    assert not (tmp_path / "good.gpkg").exists()


def test_an_output_of_an_earlier_run_can_be_resumed_and_the_message_says_so(tmp_path):
    path = draw(tmp_path / "scene.tif")
    rsgeoseg.run(path, ORACLE, tmp_path / "out.gpkg", stretch="none")
    with pytest.raises(OutputError, match="--overwrite, or --resume if it comes from this same run"):
        rsgeoseg.run(path, ORACLE, tmp_path / "out.gpkg", stretch="none")


class Meanwhile:
    """Does something when it sees the third chip."""

    spec = SPEC

    def __init__(self, do):
        self.do, self.seen = do, 0

    def segment(self, chips, prompts=None):
        self.seen += len(chips)
        if self.seen >= 3 and self.do is not None:
            do, self.do = self.do, None
            do()
        return ORACLE.segment(chips)


@pytest.mark.parametrize("kind", ["file", "part of a VRT"])
def test_a_file_that_is_written_anew_while_it_is_read_is_noticed(tmp_path, kind):
    scene = path = draw(tmp_path / "scene.tif")
    if kind != "file":
        (tmp_path / "one.vrt").write_text(VRT.format(name="scene.tif"))
        scene = tmp_path / "one.vrt"

    def anew():
        content = path.read_bytes()
        path.write_bytes(content)
        os.utime(path, (1, 1))

    # VRTs are also watched while they are read
    with pytest.raises(SceneError, match=r"changed while it was read: run again|has changed since it was first read"):
        rsgeoseg.run(scene, Meanwhile(anew), tmp_path / "out.gpkg", stretch="none", bands=[1] * 3)
    assert not (tmp_path / "out.gpkg").exists()


def test_a_file_that_changes_on_its_server_is_noticed(tmp_path):
    path = draw(tmp_path / "scene.tif")
    with serving() as web:
        web.files["/scene.tif"] = path.read_bytes()

        def anew():
            web.etag = '"two"'

        with pytest.raises(SceneError, match=r"changed while it was read|has changed on the server"):
            rsgeoseg.run(f"{web.url}/scene.tif", Meanwhile(anew), tmp_path / "out.gpkg", stretch="none")
        assert not (tmp_path / "out.gpkg").exists()
        web.etag = '"one"'

        def weakened():
            web.etag = 'W/"one"'

        rsgeoseg.run(f"{web.url}/scene.tif", Meanwhile(weakened), tmp_path / "weak.gpkg", stretch="none")
        web.etag = '"one"'
        found = rsgeoseg.run(f"{web.url}/scene.tif", Meanwhile(None), tmp_path / "two.gpkg", stretch="none")
    assert len(found) == 1


def test_a_server_that_refuses_to_answer_at_the_end_is_no_change(tmp_path):
    path = draw(tmp_path / "scene.tif")
    with serving() as web:
        web.files["/scene.tif"] = path.read_bytes()
        scene = rsgeoseg.Scene.open(f"{web.url}/scene.tif", stretch="none")
        since = scene.fingerprint()
        web.etag = '"two"'
        with pytest.raises(SceneError, match="changed while it was read"):
            scene.refuse_if_changed(since)
        asked = len(web.requests)
        web.fault = lambda _number: 403
        scene.refuse_if_changed(since)  # it cannot say that the file is another one
        assert len(web.requests) > asked


def test_holes_of_a_finished_run_are_said_when_it_is_resumed(tmp_path):
    path = draw(tmp_path / "scene.tif")

    class Fails(OracleSegmenter):
        def segment(self, chips, prompts=None):
            if any(chip.image.any() for chip in chips):
                msg = "no"
                raise RuntimeError(msg)
            return super().segment(chips)

    output = tmp_path / "out.gpkg"
    rsgeoseg.run(path, Fails(spec=SPEC), output, stretch="none", on_chip_error="skip")
    with pytest.raises(OutputError, match=r"is finished, but \d+ of its \d+ chips failed and are holes: --overwrite"):
        rsgeoseg.run(path, ORACLE, output, stretch="none", resume=True)
    assert len(rsgeoseg.run(path, ORACLE, output, stretch="none", resume=True, on_chip_error="skip")) == 0
