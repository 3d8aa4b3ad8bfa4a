import json
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from PIL import Image
from rasters import draw_ids

from rsgeoseg import registry
from rsgeoseg.contract import Instances, ModelSpec
from rsgeoseg.evaluate.coco import encode_mask
from rsgeoseg.testing.oracle import decode_ids, encode_ids

CLASSES = ["storage tank", "ship", "bridge"]


@pytest.fixture
def annotated(tmp_path):
    """Six PNG images that spell ids, and their COCO annotations with other ids and another order of classes."""
    images, annotations = [], []
    (tmp_path / "images").mkdir()
    for number in range(6):
        ids = draw_ids(150, 210, seed=number, count=8)
        name = f"{number:03d}.png"
        with rasterio.open(
            tmp_path / "images" / name, "w", driver="PNG", height=150, width=210, count=3, dtype="uint8"
        ) as sink:
            sink.write(encode_ids(ids))
        images.append({"id": 100 + number, "file_name": name, "height": 150, "width": 210})
        for value in range(1, ids.max() + 1):
            mask = encode_mask(ids == value, (0, 0), height=150, width=210)
            label = value % 3
            annotations.append(
                {"image_id": 100 + number, "category_id": 30 - label, "segmentation": mask, "iscrowd": 0}
            )
    categories = [{"id": 30 - label, "name": name} for label, name in enumerate(CLASSES)]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    return tmp_path / "truth.json", tmp_path / "images"


def test_an_oracle_scores_full_marks_on_images(cli, annotated):
    truth, images = annotated
    result = cli("evaluate", truth, "--images", images, "--json", "-q")
    assert result.code == 0, result.err
    figures = json.loads(result.out)
    assert figures["ap"] == pytest.approx(1)
    assert sum(row["n_truth"] for row in figures["per_class"]) == 48
    fewer = json.loads(cli("evaluate", truth, "--images", images, "--every", 3, "--start", 1, "--json", "-q").out)
    assert sum(row["n_truth"] for row in fewer["per_class"]) == 16
    table = cli("evaluate", truth, "--images", images, "-q").out
    assert "100.0" in table
    assert "storage tank" in table


def test_a_map_is_judged_by_polygons(cli, ids_scene):
    path, ids = ids_scene()
    cli("run", path, "--stretch", "none", "-o", "truth.gpkg")
    cli("run", path, "--stretch", "none", "-o", "ships.gpkg", "--classes", "ship")
    full = json.loads(cli("evaluate", "truth.gpkg", "truth.gpkg", "--json").out)
    assert full["ap"] == pytest.approx(1)
    assert full["n_found"] == len(np.unique(ids)) - 1
    part = json.loads(cli("evaluate", "truth.gpkg", "ships.gpkg", "--json").out)
    assert part["ap"] == pytest.approx(1 / 3)


def test_a_map_is_divided_at_its_seams(cli, ids_scene):
    path, _ = ids_scene(200, 260)
    cli("run", path, "--stretch", "none", "-o", "truth.gpkg")
    full = json.loads(cli("evaluate", "truth.gpkg", "truth.gpkg", "--json").out)
    core, seam = full["zones"]
    assert (core["name"], seam["name"]) == ("core", "seam")
    assert core["n_truth"] + seam["n_truth"] == full["n_truth"]
    assert core["n_truth"] > 0
    assert seam["n_truth"] > 0
    assert full["seams_from"] == "truth.gpkg.run.json"
    assert full["area_of"] == "valid pixels of scene.tif"
    # the same chips, told by hand, on a copy without a run record
    Path("copy.gpkg").write_bytes(Path("truth.gpkg").read_bytes())
    assert json.loads(cli("evaluate", "truth.gpkg", "copy.gpkg", "--json").out)["zones"] == []
    by_hand = ("--scene", path, "--chip-size", 96, "--overlap", 16)
    told = json.loads(cli("evaluate", "truth.gpkg", "copy.gpkg", *by_hand, "--json").out)
    assert told["zones"] == full["zones"]
    one_chip = ("--scene", path, "--chip-size", 512, "--overlap", 0)
    assert json.loads(cli("evaluate", "truth.gpkg", "copy.gpkg", *one_chip, "--json").out)["zones"][1]["n_truth"] == 0
    table = cli("evaluate", "truth.gpkg", "copy.gpkg", *by_hand).out
    assert "duplicates  0 (0.00 per km2)" in table
    assert "seams       as in the scene" in table


def test_a_map_whose_scene_is_gone(cli, ids_scene):
    path, _ = ids_scene()
    cli("run", path, "--stretch", "none", "-o", "truth.gpkg")
    path.unlink()
    result = cli("evaluate", "truth.gpkg", "truth.gpkg", "--json", "--report", "report")
    assert result.code == 0, result.err
    assert "no longer there" in result.err
    figures = json.loads(result.out)
    assert figures["area_of"] == "footprint of the scene"
    assert len(figures["zones"]) == 2
    Path("truth.gpkg.run.json").write_text("{}")
    result = cli("evaluate", "truth.gpkg", "truth.gpkg", "--json")
    assert "no run record" in result.err
    assert json.loads(result.out)["zones"] == []


def test_masks_and_boxes_stand_in_one_table(cli, annotated):
    truth, images = annotated
    printed = cli("evaluate", truth, "--images", images, "-q", "--paper", "rsprompter-nwpu").out
    lines = [line.split() for line in printed.splitlines()]
    assert ["masks", *["100.0"] * 4, "-", "-", "100.0"] in lines
    assert ["boxes", *["100.0"] * 4, "-", "-", "100.0"] in lines
    assert ["RSPrompter-query", "68.4", "90.3", "74.0", "67.5", "91.7", "74.8"] in lines
    assert ["this", "result", *["100.0"] * 6] in lines
    figures = json.loads(cli("evaluate", truth, "--images", images, "-q", "--json", "--paper", "rsprompter-nwpu").out)
    assert figures["boxes"]["ap"] == pytest.approx(1)
    assert np.trace(np.array(figures["confusion"]["counts"])) == 48
    assert figures["paper"]["ours"] == pytest.approx([100] * 6)


def test_coco_results_with_a_report(cli, annotated):
    truth, images = annotated
    document = json.loads(truth.read_text())
    found = [
        {key: item[key] for key in ("image_id", "category_id", "segmentation")} | {"score": 0.9}
        for item in document["annotations"][3:]
    ]
    Path("found.json").write_text(json.dumps(found))
    result = cli("evaluate", truth, "found.json", "--images", images, "--report", "report", "--json")
    assert result.code == 0, result.err
    figures = json.loads(result.out)
    missed = [row[-1] for row in figures["confusion"]["counts"]]
    assert sum(missed) == 3
    report = json.loads(Path("report/figures.json").read_text())
    assert [case["missed"] for case in report["worst_cases"]] == [3]
    assert report["ap"] == figures["ap"]
    cli("evaluate", truth, "found.json", "--report", "report").fails(5, "not empty")
    assert cli("evaluate", truth, "found.json", "--report", "report", "--overwrite").code == 0


def test_a_geojson_is_a_map_also_when_it_is_called_json(cli, ids_scene):
    path, _ = ids_scene(crs="EPSG:32631")
    cli("run", path, "--stretch", "none", "-o", "truth.geojson")
    Path("truth.json").write_bytes(Path("truth.geojson").read_bytes())
    figures = json.loads(cli("evaluate", "truth.json", "truth.json", "--json").out)
    assert figures["ap"] == pytest.approx(1)
    assert "duplicates" in figures


def test_folders_of_masks(cli):
    for folder, width in (("true", 10), ("found", 8)):
        Path(folder).mkdir()
        mask = np.zeros((20, 20), np.uint8)
        mask[:, :width] = 1
        Image.fromarray(mask).save(f"{folder}/a.png")
    result = cli("evaluate", "true", "found", "--paper", "rs2sam2-rrsisd-test")
    assert result.code == 0, result.err
    assert "80.0" in result.out.splitlines()[1]
    assert result.out.splitlines()[-1].split() == ["this", "result", *["100.00"] * 4, "0.00", "80.00", "80.00"]
    cli("evaluate", "true", "found", "--report", "report").fails(2, "--report")
    cli("evaluate", "true", "found", "--chip-size", 5).fails(2, "--chip-size is for vector files")
    cli("evaluate", "true", "absent").fails(2, "absent")


def test_papers_are_listed(cli):
    result = cli("evaluate", "--paper", "list")
    assert result.code == 0
    assert "rsprompter-ssdd" in result.out
    cli("evaluate", "a.gpkg", "b.gpkg", "--paper", "nothing").fails(2, "rsprompter-ssdd")


def test_maps_are_refused_in_words(cli, ids_scene):
    path, _ = ids_scene()
    cli("run", path, "--stretch", "none", "-o", "truth.gpkg")
    frame = geopandas.read_file("truth.gpkg")
    frame.rename(columns={"class_name": "label"}).to_file("other.gpkg")
    frame.assign(class_name="moon").to_file("moon.gpkg")
    frame[:0].to_file("none.gpkg")
    Path("text.gpkg").write_text("no map")
    cli("evaluate", "truth.gpkg", "absent.gpkg").fails(2, "absent.gpkg")
    cli("evaluate", "truth.gpkg", "text.gpkg").fails(2, "text.gpkg")
    cli("evaluate", "truth.gpkg", "moon.gpkg").fails(2, "moon", "storage tank", "--class-agnostic")
    cli("evaluate", "other.gpkg", "truth.gpkg").fails(2, "class_name", "label")
    cli("evaluate", "truth.gpkg", "other.gpkg", "--class-column", "kind").fails(2, "kind", "score")
    cli("evaluate", "truth.gpkg", "other.gpkg", "--chip-size", 96).fails(2, "--overlap")
    cli("evaluate", "truth.gpkg", "other.gpkg", "--chip-size", 96, "--overlap", 16).fails(2, "--scene")
    cli("evaluate", "truth.gpkg", "truth.gpkg", "--images", ".").fails(2, "--scene")
    cli("evaluate", "--dataset", "nwpu").fails(2, "--root")
    cli("evaluate", "truth.gpkg", "--dataset", "nwpu", "--root", ".").fails(2, "TRUTH")
    assert "warning: the result has no column class_name" in cli("evaluate", "truth.gpkg", "other.gpkg").err
    assert json.loads(cli("evaluate", "truth.gpkg", "other.gpkg", "--class-column", "label", "--json").out)["ap"] == 1
    assert json.loads(cli("evaluate", "truth.gpkg", "moon.gpkg", "--class-agnostic", "--json").out)["ap"] == 1
    empty = json.loads(cli("evaluate", "truth.gpkg", "none.gpkg", "--json", "--report", "empty").out)
    assert (empty["ap"], empty["n_found"]) == (0, 0)


def test_it_refuses_in_words(cli, annotated):
    truth, images = annotated
    cli("evaluate", truth).fails(2, "--images")
    cli("evaluate", "absent.json", "--images", images).fails(2, "absent.json")
    cli("evaluate", truth, "--images", "absent").fails(3, "absent")
    cli("evaluate", truth, "--images", images, "--start", 9).fails(2, "start")
    broken = json.loads(truth.read_text())
    broken["categories"] = [{"id": 1, "name": "moon"}]
    Path("moon.json").write_text(json.dumps(broken))
    cli("evaluate", "moon.json", "--images", images).fails(2, "moon", "storage tank")


class ClickOracle:
    """Answers a click with the whole object that the pixels of an ids picture spell there."""

    def __init__(self):
        self.spec = ModelSpec(
            name="sam-prompt", classes=("object",), chip_size=512, accepts=frozenset({"points"}), needs_prompts=True
        )

    def encode(self, chip):
        return decode_ids(chip)

    def decode(self, ids, prompts):
        x, y = prompts.points[0].astype(int)
        mask = ids == ids[y, x]
        ys, xs = np.nonzero(mask)
        box = np.array([[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]], np.int32)
        crop = mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
        return Instances(boxes=box, masks=[crop], scores=np.ones(1, np.float32), labels=np.zeros(1, np.int64))


def test_a_model_that_answers_prompts_is_clicked_at(cli, annotated, monkeypatch):
    truth, images = annotated
    monkeypatch.setattr(registry, "load_model", lambda name, weights=None, device="auto": ClickOracle())
    asked = ("evaluate", truth, "--images", images, "--model", "sam-prompt", "-q")
    figures = json.loads(cli(*asked, "--json").out)
    assert (figures["n"], figures["noc90"], figures["nof90"], figures["curve"][0]) == (48, 1.0, 0, 1.0)
    table = cli(*asked, "--paper", "rsisrefiner-nwpu").out
    assert "NoC@90" in table
    assert "RS-ISRefiner (ViT-B)" in table
    assert json.loads(cli(*asked, "--json", "--every", 3).out)["n"] == 16


def test_a_model_on_a_known_dataset(cli, annotated):
    """The same images as SSDD's files: one command, no paths of annotations."""
    truth, images = annotated
    document = json.loads(truth.read_text())
    document["categories"] = [{"id": 29, "name": "ship"}]
    document["annotations"] = [a for a in document["annotations"] if a["category_id"] == 29]
    (images.parent / "annotations").mkdir()
    (images.parent / "annotations" / "SSDD_instances_val.json").write_text(json.dumps(document))
    asked = ("evaluate", "--dataset", "ssdd", "--root", images.parent, "-q", "--json")
    figures = json.loads(cli(*asked).out)  # val is what is measured
    assert figures["ap"] == pytest.approx(1)
    assert [row["name"] for row in figures["per_class"]] == ["ship"]
    cli(*asked, "--split", "train").fails(2, "SSDD_instances_train.json")
    cli("evaluate", "--dataset", "sdds", "--root", images.parent).fails(2, "choose from whu-building")
