import io
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely
from PIL import Image
from rasters import write_raster

from rsgeoseg.geo.preview import PALETTE, draw_html, make_preview
from rsgeoseg.geo.preview_png import draw_png
from rsgeoseg.geo.scene import Scene


@pytest.fixture
def drawn(tmp_path):
    """A black scene of 800 x 600 pixels with a square ring of one class and a bar of another."""
    path = write_raster(tmp_path / "scene.tif", np.zeros((3, 600, 800), np.uint8))
    ring = shapely.box(100, 100, 300, 300).difference(shapely.box(150, 150, 250, 250))
    shapes = [ring, shapely.box(500, 50, 700, 90), shapely.box(5000, 5000, 5010, 5010)]
    with Scene.open(path, stretch="none") as scene:
        shapes = shapely.transform(shapes, scene.grid.xy)
        table = {"id": [1, 2, 3], "class_name": ["<ship>", "bridge", "bridge"], "score": [0.9, 0.4, 0.5]}
        frame = geopandas.GeoDataFrame(table, geometry=shapes, crs="EPSG:32631")
        yield scene, frame


def page_data(text):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found[1])


def rgb(colour):
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])


def test_objects_land_on_their_pixels(drawn):
    scene, frame = drawn
    preview = make_preview(scene, frame, max_side=400)
    assert preview.image.shape == (300, 400, 3)
    assert preview.counts == {"<ship>": 1, "bridge": 1}  # the third object lies outside
    assert preview.shapes[0].bounds == pytest.approx((50, 50, 150, 150))
    picture = np.asarray(Image.open(io.BytesIO(draw_png(preview))))
    assert picture.shape[0] == 300
    assert picture.shape[1] > 400
    ship, bridge = rgb(preview.colours["<ship>"]), rgb(preview.colours["bridge"])
    assert np.abs(picture[60, 62] - ship * 0.30).max() < 3  # fill of the ring, over black
    assert (picture[100, 100] == 0).all()  # its hole
    assert np.abs(picture[25, 300].astype(int) - bridge).max() < 70  # outline of the bar
    assert (picture[200, 200] == 0).all()


def test_another_crs_is_brought_home(drawn):
    scene, frame = drawn
    there = make_preview(scene, frame.to_crs("EPSG:4326"), max_side=400)
    assert there.shapes[0].bounds == pytest.approx((50, 50, 150, 150), abs=1e-3)


def test_the_page_holds_everything_and_asks_for_nothing(drawn):
    scene, frame = drawn
    text = draw_html(make_preview(scene, frame, max_side=400))
    assert not re.search(r"@[A-Z]+@", text)
    assert not re.search(r"""(?:src|href|url\(|import)\s*=?\s*["'(]?\s*(?:https?:|//)""", text)
    assert "default-src 'none'" in text
    data = page_data(text)
    assert [entry["name"] for entry in data["classes"]] == ["<ship>", "bridge"]
    ring = max(data["objects"], key=lambda item: len(item["r"]))
    assert len(ring["r"]) == 2  # the outline and the hole
    points = np.cumsum(np.array(ring["r"][0]).reshape(-1, 2), axis=0) / data["units"]
    assert points.min(axis=0).tolist() == [50, 50]
    assert points.max(axis=0).tolist() == [150, 150]
    assert ring["a"]["class_name"] == "<ship>"
    HTMLParser().feed(text)


def test_a_class_name_cannot_end_the_script(drawn):
    scene, frame = drawn
    frame["class_name"] = "</script><script>alert(1)</script>"
    text = draw_html(make_preview(scene, frame))
    assert "<script>alert" not in text
    assert page_data(text)["classes"][0]["name"].startswith("</script>")


def test_nothing_to_draw_and_no_scores(drawn):
    scene, frame = drawn
    empty = make_preview(scene, frame.iloc[:0])
    assert Image.open(io.BytesIO(draw_png(empty))).size[1] == empty.image.shape[0]
    assert page_data(draw_html(empty))["objects"] == []
    bare = make_preview(scene, frame[["geometry"]])
    assert bare.counts == {"object": 2}
    assert page_data(draw_html(bare))["objects"][0]["s"] is None


def test_colours_stay_apart_for_colour_blind_eyes():
    """CIE Lab distance under Machado et al.'s (2009) full protan and deutan simulation; 15 is clearly visible."""
    views = [
        np.eye(3),
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    ]
    values = np.array([rgb(colour) for colour in PALETTE]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
    )
    for view in views:
        xyz = (linear @ np.array(view).T).clip(0, 1) @ to_xyz.T / [0.95047, 1, 1.08883]
        f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
        lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)
        assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2)) > 15


@pytest.mark.parametrize("name", ["out.gpkg", "out.geojson", "out.fgb", "out.parquet", "out.shp"])
def test_the_command_draws_what_run_wrote(cli, ids_scene, name):
    path, ids = ids_scene()
    assert cli("run", path, "--stretch", "none", "-o", name).code == 0
    for output in ("p.png", "p.html"):
        result = cli("preview", path, name, "-o", output, "--stretch", "none")
        assert result.code == 0, result.err
        assert f"{ids.max()} of {ids.max()} objects" in result.out
        assert Path(output).stat().st_size > 3000


def test_the_command_refuses_in_words(cli, ids_scene, tmp_path):
    path, _ = ids_scene()
    cli("preview", path, "absent.gpkg", "-o", "p.png").fails(2, "absent.gpkg")
    Path("words.gpkg").write_text("words")
    cli("preview", path, "words.gpkg", "-o", "p.png").fails(2, "words.gpkg")
    cli("run", path, "--stretch", "none")
    cli("preview", path, "scene.gpkg", "-o", "p.bmp").fails(5, ".png or .html")
    cli("preview", "absent.tif", "scene.gpkg", "-o", "p.png").fails(3, "absent.tif")
    Path("p.png").write_text("precious")
    cli("preview", path, "scene.gpkg", "-o", "p.png").fails(5, "p.png", "--overwrite")
    assert Path("p.png").read_text() == "precious"
    assert cli("preview", path, "scene.gpkg", "-o", "p.png", "--overwrite").code == 0
    asset = {"href": str(path), "roles": ["visual"]}
    Path("item.json").write_text(json.dumps({"type": "Feature", "assets": {"visual": asset}}))
    assert cli("preview", "item.json", "scene.gpkg", "-o", "q.png").code == 0
    Path("link.png").symlink_to(path)
    cli("preview", path, "scene.gpkg", "-o", "link.png", "--overwrite").fails(5, "this run reads it")
