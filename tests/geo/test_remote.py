"""Scenes on servers: as good as local ones, whatever the network does, and one clear line where that cannot be."""

import hashlib
import logging
import pickle
import threading
import time

import numpy as np
import pytest
import rasterio
from range_server import CHANGED, serving, serving_apart
from scene_files import NORTH_UP, UTM, noise, tiled, write

from rsgeoseg.engine.reader import read_ahead
from rsgeoseg.errors import JobCancelled, SceneError, WindowError
from rsgeoseg.geo import opening, remote, vsi
from rsgeoseg.geo.remote import Patience, is_remote, parse_address, without_secrets
from rsgeoseg.geo.scene import Scene
from rsgeoseg.geo.windows import Box, plan_windows

SIDE = 2048


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Pauses and silences as long as a test may take; no credentials and proxies of whoever runs this."""
    monkeypatch.setattr(remote, "PAUSES_S", (0.02, 0.05, 0.1))
    monkeypatch.setenv("GDAL_HTTP_LOW_SPEED_TIME", "1")
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.02")
    for name in ("RSGEOSEG_OFFLINE", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def cog(tmp_path_factory):
    """A COG of random pixels (so that its blocks have the size of their pixels) with overviews, and its pixels."""
    path = tmp_path_factory.mktemp("cog") / "a.tif"
    image = noise(3, SIDE, SIDE)

    return write(path, image, driver="COG", compress="deflate", blocksize=256), image


@pytest.fixture
def web(cog):
    with serving() as server:
        server.files["/folder/a.tif"] = cog[0].read_bytes()
        yield server


def refused(source, words, error=SceneError, **options):
    with pytest.raises(error, match=words) as caught:
        Scene.open(source, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert "pa55" not in text
    assert "t0ken" not in text
    return text


def after_opening(web, fault):
    """Let a fault begin with the next request, which is number 1 for it."""
    start = len(web.requests)
    web.fault = lambda number: fault(number - start)


# --- as good as a local file


@pytest.mark.parametrize(
    "form", ["{url}/folder/a.tif", "/vsicurl/{url}/folder/a.tif", "{url}/folder/a.tif?token=t0ken"]
)
def test_pixels_and_georeference_equal_the_local_file(web, cog, form):
    with Scene.open(form.format(url=web.url)) as scene, Scene.open(cog[0]) as local:
        assert scene.is_remote
        assert not local.is_remote
        assert scene.path is None
        assert scene.name == "a.tif"
        assert scene.location == f"{web.url}/folder/a.tif"
        assert (scene.grid.affine, scene.grid.crs) == (local.grid.affine, local.grid.crs)
        for box in (Box(0, 0, 300, 200), Box(1000, 900, 1600, 1500), Box(SIDE - 10, SIDE - 10, SIDE, SIDE)):
            np.testing.assert_array_equal(scene.read(box).image, local.read(box).image)
        np.testing.assert_array_equal(scene.read_thumbnail(200).image, local.read_thumbnail(200).image)


@pytest.mark.parametrize("name", ["a.tif", "a.jp2"])
def test_sixteen_bits_with_nodata_stretch_as_the_local_file(tmp_path, name):
    image = noise(3, 300, 300, "uint16")
    image[:, :50] = 0
    profile = {"driver": "JP2OpenJPEG", "QUALITY": "100", "REVERSIBLE": "YES"} if name == "a.jp2" else {"nodata": 0}
    path = write(tmp_path / name, image, **profile)
    with serving() as web:
        web.files[f"/{name}"] = path.read_bytes()
        with Scene.open(f"{web.url}/{name}") as scene, Scene.open(path) as local:
            one, other = scene.read(Box(0, 0, 300, 300)), local.read(Box(0, 0, 300, 300))
            assert scene.stretch == local.stretch
    np.testing.assert_array_equal(one.image, other.image)
    np.testing.assert_array_equal(one.valid, other.valid)


def test_resampled_scenes_equal_the_local_file(web, cog):
    with Scene.open(f"{web.url}/folder/a.tif", gsd=1.0) as scene, Scene.open(cog[0], gsd=1.0) as local:
        box = Box(100, 100, 400, 400)
        np.testing.assert_array_equal(scene.read(box).image, local.read(box).image)


def test_only_what_a_window_needs_is_fetched(web, cog):
    with Scene.open(f"{web.url}/folder/a.tif") as scene:
        assert len(web.requests) <= 4  # size, version, header, end of the file
        assert web.sent <= 3 * (64 << 10)
        scene.read(Box(512, 512, 1024, 1024))  # inside one tile of 4 x 4 blocks, a quarter of the pixels
        assert len(web.requests) <= 4 + 6
        assert web.sent < 0.3 * cog[0].stat().st_size
        before = len(web.requests)
        scene.read(Box(600, 600, 900, 900))  # inside what came
        assert len(web.requests) == before
    assert {path for _, path, _, _ in web.requests} == {"/folder/a.tif"}  # no sidecars, no folder


def test_the_whole_scene_is_fetched_about_once(web, cog):
    windows = plan_windows(SIDE, SIDE, chip_size=512, overlap=128).windows
    with Scene.open(f"{web.url}/folder/a.tif") as scene:
        for item in read_ahead(scene, windows, readers=2, ahead=8):
            np.testing.assert_array_equal(item.chip.image, cog[1][:, *item.window.read.as_slices()])
    assert web.sent < 1.6 * cog[0].stat().st_size


def test_latency_is_hidden_by_reading_several_windows_at_once(web):
    windows = plan_windows(SIDE, SIDE, chip_size=512, overlap=0).windows
    web.latency = 0.05
    with Scene.open(f"{web.url}/folder/a.tif") as scene:
        before, start = len(web.requests), time.perf_counter()
        assert all(item.chip is not None for item in read_ahead(scene, windows, readers=2, ahead=16))
        assert time.perf_counter() - start < 0.6 * 0.05 * (len(web.requests) - before)


def test_a_scene_travels_as_how_to_open_it_with_its_secrets(web, cog):
    with Scene.open(web.url.replace("//", "//me:pa55@") + "/folder/a.tif?token=t0ken") as scene:
        again = pickle.loads(pickle.dumps(scene))
        with again:
            np.testing.assert_array_equal(again.read(Box(0, 0, 50, 50)).image, cog[1][:, :50, :50])
    assert {login for _, _, _, login in web.requests} == {"Basic bWU6cGE1NQ=="}
    assert {path for _, path, _, _ in web.requests} == {"/folder/a.tif?token=t0ken"}


# --- identity


def test_fingerprint_is_what_the_server_says_and_the_ends(web, cog):
    content = cog[0].read_bytes()
    ends = hashlib.sha256(content[: 64 << 10] + content[-(64 << 10) :]).hexdigest()
    expected = {"bytes": len(content), "etag": '"one"', "last_modified": CHANGED, "sha256_ends": ends}
    with Scene.open(f"{web.url}/folder/a.tif?token=t0ken") as scene:
        assert scene.fingerprint() == expected
        text = repr(scene.to_dict()) + repr(scene)
        assert "t0ken" not in text
        assert f"{web.url}/folder/a.tif" in text
    web.etag = '"two"'
    with Scene.open(f"{web.url}/folder/a.tif") as scene:
        assert scene.fingerprint() == expected | {"etag": '"two"'}
    changed = bytearray(content)
    changed[-1] ^= 1
    web.files["/folder/a.tif"] = bytes(changed)
    with Scene.open(f"{web.url}/folder/a.tif") as scene:
        assert scene.fingerprint()["sha256_ends"] != ends


def test_small_files_have_a_fingerprint(tmp_path):
    path = write(tmp_path / "s.tif", noise(3, 20, 20))
    with serving() as web:
        web.files["/s.tif"] = path.read_bytes()
        with Scene.open(f"{web.url}/s.tif") as scene:
            ends = hashlib.sha256(path.read_bytes() * 2).hexdigest()
            assert scene.fingerprint()["sha256_ends"] == ends


def test_a_file_that_changes_meanwhile_is_noticed(web):
    with Scene.open(f"{web.url}/folder/a.tif") as scene:
        web.etag = '"two"'
        with pytest.raises(SceneError, match="has changed on the server"):
            scene.read(Box(0, 0, 50, 50))


# --- bad networks


@pytest.mark.parametrize(("fault", "every"), [("cut", 5), ("cut", 7), (503, 3), (429, 3), (500, 4), (503, 7)])
def test_many_windows_through_a_bad_network_are_equal(web, cog, fault, every):
    web.fault = lambda number: fault if number % every == 0 else None
    windows = plan_windows(SIDE, SIDE, chip_size=512, overlap=64).windows
    with Scene.open(f"{web.url}/folder/a.tif") as scene:
        for item in read_ahead(scene, windows, readers=2, ahead=4):
            assert item.error is None
            np.testing.assert_array_equal(item.chip.image, cog[1][:, *item.window.read.as_slices()])
    assert len(web.requests) > 2 * every


@pytest.mark.parametrize("first", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("fault", ["cut", 503])
def test_any_request_may_fail_and_works_when_tried_again(web, cog, fault, first):
    with Scene.open(f"{web.url}/folder/a.tif") as scene:
        after_opening(web, lambda number: fault if number == first else None)
        np.testing.assert_array_equal(scene.read(Box(9, 9, 700, 700)).image, cog[1][:, 9:700, 9:700])


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("fault", ["cut", 503])
def test_opening_is_tried_again(web, number, fault):
    web.fault = lambda count: fault if count == number else None
    with Scene.open(f"{web.url}/folder/a.tif") as scene:
        assert scene.fingerprint()["etag"] == '"one"'


def test_a_broken_range_that_gdal_remembers_is_forgotten(web, cog):
    """Without forgetting, GDAL would give the cut range again and never ask the server."""
    address = f"/vsicurl/{web.url}/folder/a.tif"
    size = cog[0].stat().st_size
    with opening.gdal_env(**remote.settings()):
        web.fault = lambda number: "cut" if number > 1 else None
        with vsi.open_file(address) as file:
            assert len(file.read(0, 64 << 10)) < 64 << 10
        web.fault = None
        asked = len(web.requests)
        with vsi.open_file(address) as file:
            assert len(file.read(0, 64 << 10)) < 64 << 10  # remembered
        assert len(web.requests) == asked
        vsi.forget(address)
        with vsi.open_file(address) as file:
            assert file.size() == size
            assert file.read(0, 64 << 10) == cog[0].read_bytes()[: 64 << 10]


@pytest.mark.parametrize(
    ("fault", "words"), [("hang", "does not answer"), (503, "503"), ("cut", "broke"), (403, "403")]
)
@pytest.mark.parametrize("after", [0, 3])
def test_a_server_that_goes_away_is_a_window_error_in_bounded_time(web, cog, fault, words, after):
    with Scene.open(f"{web.url}/folder/a.tif?token=t0ken") as scene:
        scene.read(Box(0, 0, 100, 100))
        after_opening(web, lambda number: fault if number > after else None)
        start = time.perf_counter()
        with pytest.raises(WindowError, match=words) as caught:
            scene.read(Box(1000, 1000, 1900, 1900))
        assert time.perf_counter() - start < 25  # 1 s of silence each, at most
        text = str(caught.value)
        assert text.startswith(f"{web.url}/folder/a.tif: window x 1000-1900, y 1000-1900 cannot be read: ")
        assert "\n" not in text
        cause = caught.value
        while cause is not None:
            assert "t0ken" not in str(cause)
            cause = cause.__cause__
        if fault != "hang":
            asked = len(web.requests)
            with pytest.raises(WindowError):
                scene.read(Box(1000, 0, 1100, 100))  # not as often again
            assert len(web.requests) - asked <= 24
        web.fault = None
        web.release.set()
        np.testing.assert_array_equal(scene.read(Box(1000, 1000, 1900, 1900)).image, cog[1][:, 1000:1900, 1000:1900])


def test_chips_of_a_server_that_goes_away_carry_the_error(web):
    windows = plan_windows(SIDE, SIDE, chip_size=512, overlap=0).windows
    with Scene.open(f"{web.url}/folder/a.tif") as scene:
        start = len(web.requests)
        web.fault = lambda number: 503 if number > start + 12 else None
        items = list(read_ahead(scene, windows, readers=2, ahead=2))
    failed = [item for item in items if item.error is not None]
    assert 0 < len(failed) < len(items) == 16
    assert all("503" in str(item.error) for item in failed)


def test_cancelling_does_not_wait_for_the_pauses(web, monkeypatch):
    monkeypatch.setattr(remote, "PAUSES_S", (30.0,))
    windows = plan_windows(SIDE, SIDE, chip_size=512, overlap=0).windows
    cancel = threading.Event()
    with Scene.open(f"{web.url}/folder/a.tif") as scene:
        web.fault = lambda _number: 503
        threading.Timer(0.3, cancel.set).start()
        start = time.perf_counter()
        with pytest.raises(JobCancelled):
            list(read_ahead(scene, windows, readers=2, ahead=4, cancel=cancel))
    assert time.perf_counter() - start < 10


def test_patience_waits_longer_each_time_and_once_in_vain_no_more():
    calls, refreshed = [], []
    patience = Patience(lambda: refreshed.append(1))

    def fail():
        calls.append(1)
        raise OSError

    with pytest.raises(OSError):
        patience.attempt(fail, (OSError,))
    assert (len(calls), len(refreshed)) == (4, 4)
    with pytest.raises(OSError):
        patience.attempt(fail, (OSError,))
    assert len(calls) == 5
    assert patience.attempt(lambda: 7, (OSError,)) == 7
    with pytest.raises(OSError):
        patience.attempt(fail, (OSError,))
    assert len(calls) == 9
    with pytest.raises(ZeroDivisionError):
        patience.attempt(lambda: 1 / 0, (OSError,))


# --- servers that cannot be used


@pytest.mark.parametrize(
    ("fault", "words"),
    [(404, "no such file"), (403, "refuses"), (401, "refuses"), (503, "busy or broken .503."), ("hang", "not answer")],
)
def test_answers_that_are_no_file(web, fault, words):
    web.fault = lambda _number: fault
    text = refused(f"{web.url}/folder/a.tif?token=t0ken".replace("//", "//me:pa55@"), words)
    assert text.startswith(f"{web.url}/folder/a.tif cannot be opened: ")
    assert len(web.requests) <= 12


def test_a_missing_file(web):
    refused(f"{web.url}/folder/b.tif", "no such file .404.")


def test_a_server_without_range_requests(web, cog):
    web.ranges = False
    refused(f"{web.url}/folder/a.tif", "does not answer range requests: download the file")
    assert len(web.requests) <= 3


@pytest.mark.parametrize(
    "content", [b"<!DOCTYPE html><title>Please log in</title>", b"", b"hello", b"II*\0" + b"\0" * 99]
)
def test_what_is_no_raster(web, content):
    web.files["/b.tif"] = content
    refused(f"{web.url}/b.tif", "is not a GTiff file: the server sends|cannot be opened as GTiff")


def test_a_vrt_served_as_a_tiff_does_not_show_files_of_this_machine(web, tmp_path):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(b"TOPSECRET" * 12)
    web.files["/b.tif"] = (
        '<VRTDataset rasterXSize="9" rasterYSize="12"><VRTRasterBand dataType="Byte" band="1"'
        f' subClass="VRTRawRasterBand"><SourceFilename>{secret}</SourceFilename></VRTRasterBand></VRTDataset>'
    ).encode()
    refused(f"{web.url}/b.tif", "is not a GTiff file")


def test_an_unreachable_server():
    refused("http://127.0.0.1:1/a.tif", "cannot be reached")


def test_redirects_are_followed_and_their_errors_are_told(web, cog):
    target = f"{web.url}/folder/a.tif"
    with serving() as front:
        front.fault = lambda _number: (302, target)
        with Scene.open(f"{front.url}/link.tif") as scene:
            np.testing.assert_array_equal(scene.read(Box(0, 0, 50, 50)).image, cog[1][:, :50, :50])
        front.fault = lambda _number: (302, f"{front.url}/link.tif")
        refused(f"{front.url}/link.tif", "from place to place")


def test_caps_hold_for_remote_files(web, monkeypatch):
    monkeypatch.setattr(opening, "MAX_BANDS", 2)
    refused(f"{web.url}/folder/a.tif", "declares 3 bands, more than 2")


# --- addresses


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("http://{web}/a.vrt", r"named \.vrt are not read from servers"),
        ("http://{web}/a.png", r"named \.png are not read from servers"),
        ("http://{web}/tiles/1", "without an extension"),
        ("http://{web}/?file=a.tif", "without an extension"),
        ("/vsicurl/s3://bucket/a.tif", "chains of GDAL's handlers"),
        ("/vsicurl//vsizip/a.zip/a.tif", "chains of GDAL's handlers"),
        ("/vsicurl/file:///etc/a.tif", "chains of GDAL's handlers"),
        ("/vsis3//vsicurl/http://{web}/a.tif", "no s3 address"),
        ("s3://bucket", "no s3 address"),
        ("s3:///key.tif", "no s3 address"),
        ("s3://buc ket/a.tif", "write spaces as %20"),
        ("http://{web}/a b.tif", "write spaces as %20"),
        ("http://{web}/a.tif\n", "write spaces as %20"),
        ("http:///a.tif", "has no host"),
        ("http://me:pa55/word@host/a.tif?t0ken", "has no host, or a port that is no number"),
        ("http://169.254.169.254/latest/a.tif", "from which no scene is read"),
        ("http://[fe80::1]/a.tif", "from which no scene is read"),
        ("http://0.0.0.0/a.tif", "from which no scene is read"),
        ("http://224.0.0.1/a.tif", "from which no scene is read"),
    ],
)
def test_addresses_that_are_not_opened(web, source, words):
    refused(source.format(web=web.host), words)
    assert not web.requests


@pytest.mark.parametrize("source", ["{url}/folder/a.tif", "/vsicurl/{url}/folder/a.tif", "s3://bucket/a.tif"])
def test_offline_nothing_is_asked(web, monkeypatch, source):
    monkeypatch.setenv("RSGEOSEG_OFFLINE", "1")
    refused(source.format(url=web.url), "network is switched off")
    assert not web.requests


@pytest.mark.parametrize(
    ("source", "gdal", "shown"),
    [
        ("HTTPS://127.0.0.1/A.TIF", "/vsicurl/https://127.0.0.1/A.TIF", "https://127.0.0.1/A.TIF"),
        ("http://a:b@127.0.0.1/a.tif?x=1#y", "/vsicurl/http://a:b@127.0.0.1/a.tif?x=1", "http://127.0.0.1/a.tif"),
        ("s3://b-1.x/k/e y.tif".replace(" ", "%20"), "/vsis3/b-1.x/k/e%20y.tif", "s3://b-1.x/k/e%20y.tif"),
        ("/vsis3/b/k.tif", "/vsis3/b/k.tif", "s3://b/k.tif"),
        ("gs://b/k.tif", "/vsigs/b/k.tif", "gs://b/k.tif"),
        ("az://b/k.tif", "/vsiaz/b/k.tif", "az://b/k.tif"),
    ],
)
def test_addresses_as_gdal_and_the_user_see_them(source, gdal, shown):
    file = parse_address(source)
    assert (file.vsi, str(file)) == (gdal, shown)
    assert "a:b" not in repr(file)
    assert file.suffix.lower() == ".tif"


@pytest.mark.parametrize("text", ["a.tif", "/data/a.tif", "c:/a.tif", "ftp://h/a.tif", "/vsizip/a.zip/a.tif", "<VRT/>"])
def test_other_texts_are_no_addresses(text):
    assert not is_remote(text)


def test_texts_without_secrets():
    assert without_secrets("https://me:pa55@host/a@2x.tif?sig=t0ken#x") == "https://host/a@2x.tif"
    assert without_secrets("/data/what?.tif") == "/data/what?.tif"


def test_settings_of_the_environment_stay(monkeypatch):
    monkeypatch.setenv("GDAL_HTTP_TIMEOUT", "7")
    assert "GDAL_HTTP_TIMEOUT" not in remote.settings()
    assert remote.settings()["GDAL_DISABLE_READDIR_ON_OPEN"] == "EMPTY_DIR"


def test_nothing_is_logged_with_secrets(web, caplog):
    caplog.set_level(logging.DEBUG, "rsgeoseg")
    web.fault = lambda number: "cut" if number % 7 == 0 else None
    with Scene.open(f"{web.url}/folder/a.tif?token=t0ken") as scene:
        scene.read(Box(0, 0, 700, 700))
    assert "t0ken" not in "".join(r.getMessage() for r in caplog.records if r.name.startswith("rsgeoseg"))


# --- object stores


@pytest.fixture
def store(web, monkeypatch):
    """A store on this machine that wants no signatures."""
    web.files["/bucket/deep/a.tif"] = web.files["/folder/a.tif"]
    for name, value in {
        "AWS_S3_ENDPOINT": web.host, "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE", "AWS_NO_SIGN_REQUEST": "YES",
        "CPL_GS_ENDPOINT": f"{web.url}/", "GS_NO_SIGN_REQUEST": "YES",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    return web


@pytest.mark.parametrize("source", ["s3://bucket/deep/a.tif", "/vsis3/bucket/deep/a.tif", "gs://bucket/deep/a.tif"])
def test_object_stores(store, cog, source):
    with Scene.open(source) as scene:
        np.testing.assert_array_equal(scene.read(Box(9, 9, 600, 600)).image, cog[1][:, 9:600, 9:600])
        assert scene.fingerprint()["bytes"] == cog[0].stat().st_size
        assert scene.fingerprint()["etag"] == '"one"'
        assert scene.location.endswith("://bucket/deep/a.tif")
    assert all(login is None for _, _, _, login in store.requests)
    assert store.sent < cog[0].stat().st_size / 2


def test_credentials_of_the_environment_sign_requests(store, monkeypatch):
    monkeypatch.delenv("AWS_NO_SIGN_REQUEST")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "pa55")
    Scene.open("s3://bucket/deep/a.tif").close()
    assert all(login.startswith("AWS4-HMAC-SHA256 Credential=me/") for _, _, _, login in store.requests)


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_errors_of_object_stores(store, scheme):
    refused(f"{scheme}://bucket/b.tif", "no such file .404.")
    store.fault = lambda _number: 403
    refused(f"{scheme}://bucket/deep/a.tif", "refuses it")


def test_missing_credentials(store, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_NO_SIGN_REQUEST")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_DEFAULT_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "YES")
    monkeypatch.setenv("CPL_AWS_AUTODETECT_EC2", "NO")
    refused("s3://bucket/deep/a.tif", "no credentials for it")
    assert not store.requests


# --- VRTs


def test_a_local_vrt_of_addresses_is_refused(web, tmp_path):
    path = tmp_path / "a.vrt"
    path.write_text(
        f'<VRTDataset rasterXSize="{SIDE}" rasterYSize="{SIDE}"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f"<SourceFilename>/vsicurl/{web.url}/folder/a.tif</SourceFilename><SourceBand>1</SourceBand></SimpleSource>"
        "</VRTRasterBand></VRTDataset>"
    )
    refused(path, "names something that is not a local file")
    assert not web.requests


def test_overview_levels_are_not_read_for_full_size_windows(tmp_path):
    image = noise(1, 1024, 1024)
    path = write(tmp_path / "o.tif", image, overviews=[2, 4], **tiled(256))
    with rasterio.open(path) as dataset:
        assert dataset.overviews(1) == [2, 4]
    # Its directories are scattered over the file.
    with serving_apart(path) as url, Scene.open(f"{url}/o.tif", band_count=1) as scene:
        np.testing.assert_array_equal(scene.read(Box(3, 3, 900, 900)).image, image[:, 3:900, 3:900])
        assert scene.grid.affine == NORTH_UP
        assert scene.grid.crs.to_string() == UTM
