"""STAC items: which asset is the scene, where it is, and what is said when that is not clear."""

import json

import numpy as np
import pytest
from range_server import serving
from rasters import write_raster
from scene_files import noise, write

import rsgeoseg
from rsgeoseg.errors import SceneError, UsageError
from rsgeoseg.geo.scene import Scene
from rsgeoseg.geo.stac import ALL, is_item, item_assets
from rsgeoseg.geo.windows import Box
from rsgeoseg.testing.oracle import OracleSegmenter, encode_ids, oracle_spec


def asset(href, *roles, **more):
    return {
        "href": href,
        "type": "image/tiff; application=geotiff; profile=cloud-optimized",
        "roles": list(roles),
        **more,
    }


def item(assets, **more):
    return {"type": "Feature", "stac_version": "1.0.0", "id": "S2", "geometry": None, "assets": assets, **more}


def saved(path, content):
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(autouse=True)
def _plain(monkeypatch):
    for name in ("RSGEOSEG_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def refused(source, words, error=SceneError, **options):
    with pytest.raises(error, match=words) as caught:
        item_assets(source, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert "t0ken" not in text
    return text


# --- which


NOT_SCENES = {
    "thumbnail": {"href": "https://h/t.png", "type": "image/png", "roles": ["thumbnail"]},
    "preview": asset("https://h/p.tif", "overview"),
    "info": {"href": "https://h/i.xml", "roles": ["metadata"]},
    "broken": {"type": "image/tiff"},
}


@pytest.mark.parametrize(
    ("assets", "chosen"),
    [
        ({"image": asset("https://h/a.tif")}, "image"),
        ({"B02": asset("https://h/b.tif", "data"), "visual": asset("https://h/a.tif", "visual")}, "visual"),
        ({"B02": asset("https://h/b.tif", "data"), "rgb": asset("https://h/a.tif", "visual", "data")}, "rgb"),
        ({"analytic": asset("https://h/a.tif", "data"), "udm": asset("https://h/u.tif", "mask")}, "analytic"),
        (
            {"visual": asset("https://h/a.tif", "visual"), "visual-jp2": asset("https://h/a.jp2", "visual")},
            "visual",
        ),
    ],
)
def test_the_asset_that_is_meant(assets, chosen):
    assert item_assets(item(assets | NOT_SCENES)) == [assets[chosen]["href"]]


SENTINEL = {
    "B02": asset("https://h/B02.tif", "data", title="Blue"),
    "B03": asset("https://h/B03.jp2?sig=t0ken", "data"),
    "scl": asset("s3://bucket/scl.tif"),
}


def test_a_named_asset_and_all():
    assert item_assets(item(SENTINEL), "B03") == ["https://h/B03.jp2?sig=t0ken"]
    assert item_assets(item(SENTINEL | NOT_SCENES), ALL) == [entry["href"] for entry in SENTINEL.values()]


def test_several_are_listed():
    text = refused(item(SENTINEL | NOT_SCENES), "has 3 rasters, name one with --asset", UsageError)
    assert text.endswith("B02 (Blue, data); B03 (data); scl")


def test_an_unknown_asset_and_one_that_is_no_raster():
    refused(item(SENTINEL), "no raster called 'B04': B02", UsageError, asset="B04")
    refused(item(NOT_SCENES), "no raster called 'info': it has none", UsageError, asset="info")
    refused(item(NOT_SCENES), "no asset that is read as a raster")


def test_search_results_give_one_scene_per_item():
    items = [item({"visual": asset(f"https://h/{number}.tif")}) for number in range(3)]
    found = item_assets({"type": "FeatureCollection", "features": items})
    assert found == ["https://h/0.tif", "https://h/1.tif", "https://h/2.tif"]
    refused({"type": "FeatureCollection", "features": []}, "holds no items")


# --- where


def test_paths_beside_a_local_item(tmp_path):
    image = noise(3, 30, 30)
    write(tmp_path / "a.tif", image)
    (tmp_path / "items").mkdir()
    path = saved(tmp_path / "items" / "s2.json", item({"image": asset("../a.tif")}))
    assert is_item(str(path))
    assert is_item(path)
    [scene] = item_assets(path)
    with Scene.open(scene) as opened:
        np.testing.assert_array_equal(opened.read(Box(0, 0, 30, 30)).image, image)


@pytest.mark.parametrize(
    ("href", "expected"),
    [
        ("./a.tif", "{url}/items/a.tif"),
        ("../b/a.tif", "{url}/b/a.tif"),
        ("/a.tif", "{url}/a.tif"),
        ("https://h/a.tif", "https://h/a.tif"),
        ("s3://bucket/a.tif", "s3://bucket/a.tif"),
    ],
)
def test_addresses_beside_an_item_on_a_server(href, expected):
    with serving() as web:
        web.ranges = False  # interfaces make items as they are asked
        web.files["/items/s2"] = json.dumps(item({"image": asset(href)})).encode()
        assert item_assets(f"{web.url}/items/s2?sig=t0ken") == [expected.format(url=web.url)]


def test_login_and_object_store(monkeypatch):
    with serving() as web:
        web.files["/bucket/s2.json"] = json.dumps(item({"image": asset("x/a.tif")})).encode()
        assert item_assets(f"{web.url.replace('//', '//me:pa55@')}/bucket/s2.json") == [
            f"{web.url.replace('//', '//me:pa55@')}/bucket/x/a.tif"
        ]
        assert web.requests[0][3] == "Basic bWU6cGE1NQ=="
        for name, value in {
            "AWS_S3_ENDPOINT": web.host, "AWS_HTTPS": "NO",
            "AWS_VIRTUAL_HOSTING": "FALSE", "AWS_NO_SIGN_REQUEST": "YES",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        assert item_assets("s3://bucket/s2.json") == ["s3://bucket/x/a.tif"]


def test_a_dict_says_where_it_is():
    links = [{"rel": "root", "href": "https://h/"}, {"rel": "self", "href": "https://h/items/s2.json"}]
    assert item_assets(item({"image": asset("../a.tif")}, links=links)) == ["https://h/a.tif"]
    refused(item({"image": asset("../a.tif")}), "does not say where it itself is")


@pytest.mark.parametrize("href", ["file:///etc/a.tif", "/vsizip//tmp/a.zip/a.tif", "ftp://h/a.tif"])
def test_an_item_on_a_server_names_no_files_of_this_machine(href):
    links = [{"rel": "self", "href": "https://h/items/s2.json"}]
    refused(item({"image": asset(href)}, links=links), "no address on a server")


# --- bad items


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "another kind of JSON"),
        ('{"type": "Feature", "geometry": null}', "another kind of JSON"),
        ('{"type": "Collection", "assets": {}}', "a STAC Collection: give one of the items"),
        ('{"type": "FeatureCollection", "features": [3]}', "another kind of JSON"),
        ('{"type": "Feature", "assets": {"a": 3, "b": {"href": 3}}}', "no asset that is read as a raster"),
    ],
)
def test_what_is_no_item(tmp_path, content, words):
    path = tmp_path / "a.json"
    path.write_text(content)
    assert refused(path, words).startswith(str(path))


def test_what_cannot_be_had(tmp_path, monkeypatch):
    refused(tmp_path / "none.json", "no such file")
    with serving() as web:
        text = refused(f"{web.url}/s2.json?sig=t0ken", "no such file .404.")
        assert text.startswith(f"{web.url}/s2.json cannot be fetched")
        web.fault = lambda _number: 403
        refused(f"{web.url}/s2.json", "refuses it")
        monkeypatch.setenv("RSGEOSEG_OFFLINE", "1")
        refused(f"{web.url}/s2.json", "network is switched off")
    monkeypatch.delenv("RSGEOSEG_OFFLINE")
    refused("http://127.0.0.1:1/s2.json", "cannot be reached")


@pytest.mark.parametrize("source", ["a.tif", "https://h/a.tif?x=a.json", 3, None])
def test_what_is_not_taken_for_an_item(source):
    assert not is_item(source)


def test_a_run_takes_an_item_as_a_file_and_as_a_dict(tmp_path):
    path = write_raster(tmp_path / "a.tif", encode_ids(np.ones((80, 80), np.int32)))
    model = OracleSegmenter(spec=oracle_spec(["a"], chip_size=64, overlap=16))
    wanted = len(rsgeoseg.run(path, model, stretch="none"))
    assert wanted == 1
    relative = saved(tmp_path / "item.json", item({"rgb": asset("a.tif"), "other": asset("b.tif", "data")}))
    assert len(rsgeoseg.run(relative, model, stretch="none", asset="rgb")) == wanted
    assert len(rsgeoseg.run(str(relative), model, stretch="none", asset="rgb")) == wanted
    named = item({"rgb": asset(path.as_uri())})
    assert len(rsgeoseg.run(named, model, stretch="none")) == wanted
    with pytest.raises(UsageError, match=r"item\.json leads to 2 rasters: name one asset, or give one of its items"):
        rsgeoseg.run(relative, model, asset="*")
    with pytest.raises(UsageError, match="the scene is none"):
        rsgeoseg.run(path, model, asset="rgb")


def test_an_item_on_a_server_cannot_name_files_of_this_machine():
    base = item({"rgb": asset("file:///etc/a.tif")}, links=[{"rel": "self", "href": "https://h/item.json"}])
    refused(base, "is no address on a server")


@pytest.mark.parametrize("thing", [None, 3, [1, 2], np.zeros((3, 8, 8))])
def test_what_is_no_scene_is_said(thing):
    with pytest.raises(SceneError, match="is no scene: give a path, an address, an xarray DataArray"):
        rsgeoseg.run(thing)
