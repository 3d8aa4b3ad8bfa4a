"""Scenes that cannot be used: one clear line each, before anything is read or fetched."""

import os
import socket
import struct
import threading
import tracemalloc

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import shapely
from affine import Affine
from rasterio.enums import ColorInterp
from scene_files import NORTH_UP, UTM, noise, tiled, write, write_area

from rsgeoseg.errors import SceneError, UsageError, WindowError
from rsgeoseg.geo import opening
from rsgeoseg.geo.scene import Scene
from rsgeoseg.geo.windows import Box, plan_windows

SECRET = b"TOPSECRET" * 12


def refused(source, words, error=SceneError, **options):
    with pytest.raises(error, match=words) as caught:
        Scene.open(source, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert "TOPSECRET" not in text
    return text


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret.bin"
    path.write_bytes(SECRET)
    return path


@pytest.fixture
def trap():
    """A web server that nobody must call: counts connections."""
    server = socket.create_server(("127.0.0.1", 0))
    calls = []

    def listen():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            calls.append(1)
            connection.close()

    threading.Thread(target=listen, daemon=True).start()
    yield f"127.0.0.1:{server.getsockname()[1]}", calls
    server.close()
    assert not calls


def raw_vrt(source, *, width=9, height=12):
    """A VRT that shows the bytes of any file as pixels."""
    return (
        f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}"><VRTRasterBand dataType="Byte" band="1"'
        f' subClass="VRTRawRasterBand"><SourceFilename relativeToVRT="0">{source}</SourceFilename>'
        f"<ImageOffset>0</ImageOffset><PixelOffset>1</PixelOffset><LineOffset>{width}</LineOffset>"
        "</VRTRasterBand></VRTDataset>"
    )


def simple_vrt(source, *, size=20, extra=""):
    return (
        f'<VRTDataset rasterXSize="{size}" rasterYSize="{size}">{extra}<VRTRasterBand dataType="Byte" band="1">'
        f"<SimpleSource>{source}<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )


# --- not a file, not a raster


def test_missing_file_folder_and_unknown_extension(tmp_path):
    assert "nowhere.tif" in refused(tmp_path / "nowhere.tif", "no such file")
    (tmp_path / "folder.tif").mkdir()
    refused(tmp_path / "folder.tif", "is not a file")
    (tmp_path / "a.nc").write_bytes(b"CDF")
    refused(tmp_path / "a.nc", r"\.nc are not read")
    (tmp_path / "bare").write_bytes(b"II*\0")
    refused(tmp_path / "bare", "without an extension")


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.jpg", "a.jp2", "a.vrt"])
@pytest.mark.parametrize("content", [b"", b"hello", b"\0" * 1000, b"II*\0", b"\x89PNG\r\n\x1a\n"])
def test_not_a_raster(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert str(path) in refused(path, "cannot be opened|is not a VRT")


def test_a_fifo_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "a.tif")
    refused(tmp_path / "a.tif", "is not a file")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs file permissions that bind this user")
def test_a_file_without_permission(tmp_path):
    path = write(tmp_path / "a.tif", noise(3, 20, 20))
    path.chmod(0)
    refused(path, "permission")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_a_raster_under_another_extension(tmp_path, name):
    content = write(tmp_path / "real.jp2", noise(3, 40, 40), driver="JP2OpenJPEG").read_bytes()
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, "cannot be opened as")


# --- paths that are no paths


@pytest.mark.parametrize(
    "source",
    [
        "/vsicurl?url=http%3A%2F%2F{trap}%2Fa.tif",
        "/vsizip/vsicurl/http://{trap}/a.zip/a.tif",
        "/VSICURL/http://{trap}/a.tif",
        "//vsicurl/http://{trap}/a.tif",
        "/tmp/../vsicurl/http://{trap}/a.tif",
        "zip+http://{trap}/a.zip!a.tif",
        "ftp://{trap}/a.tif",
        "vrt://http://{trap}/a.tif",
        "file:///etc/hostname.tif",
        "/vsimem/a.tif",
        "/vsistdin/a.tif",
        "GTIFF_DIR:1:{secret}.tif",
        "<VRTDataset rasterXSize='1' rasterYSize='1'></VRTDataset>",
        " <VRTDataset/>.tif",
        "a\nb.tif",
        "a\0b.tif",
        "",
    ],
)
def test_no_string_but_a_path_is_taken(source, trap, secret):
    refused(
        source.format(trap=trap[0], secret=secret), "is a URL|virtual path|is not a path|no such file|is not a file"
    )


def test_secrets_of_a_url_are_not_repeated():
    text = refused("ftp://user:pa55@host/a.tif?token=t0ken", "is a URL")
    assert "pa55" not in text
    assert "t0ken" not in text


def test_a_vrt_named_tif_does_not_show_other_files(tmp_path, secret):
    for name in ("innocent.tif", "innocent.png", "innocent.jpg", "innocent.jp2"):
        (tmp_path / name).write_text(raw_vrt(secret))
        refused(tmp_path / name, "cannot be opened as")


# --- VRT


def test_a_vrt_of_plain_files_works_and_nests(tmp_path):
    image = noise(1, 20, 20)
    write(tmp_path / "a.tif", image)
    (tmp_path / "b.vrt").write_text(simple_vrt('<SourceFilename relativeToVRT="1">a.tif</SourceFilename>'))
    (tmp_path / "c.vrt").write_text(simple_vrt('<SourceFilename relativeToVRT="1">b.vrt</SourceFilename>'))
    with Scene.open(tmp_path / "c.vrt") as scene:
        np.testing.assert_array_equal(scene.read(Box(0, 0, 20, 20)).image[0], image[0])


@pytest.mark.parametrize(
    "source",
    [
        "<SourceFilename>{secret}</SourceFilename>",
        "<SourceFilename>{secret}.tif</SourceFilename>",  # bytes of no TIFF under a TIFF's name
        "<SourceFilename>http://{trap}/a.tif</SourceFilename>",
        "<SourceFilename>/vsicurl/http://{trap}/a.tif</SourceFilename>",
        "<SourceFilename>&#47;vsicurl/http:&#47;/{trap}/a.tif</SourceFilename>",
        "<sourcefilename>/vsicurl/http://{trap}/a.tif</sourcefilename>",
        "<sourcefilename>{secret}</sourcefilename>",
        '<SourceFilename relativeToVRT="1">../../../../../../etc/passwd</SourceFilename>',
        "<SourceFilename>missing.tif</SourceFilename>",
        "<SourceFilename>{good}<!-- a comment -->.tif</SourceFilename>",
        "<SourceFilename><relativeToVRT>1</relativeToVRT>{good}</SourceFilename>",
        "<SourceFilename>&lt;VRTDataset/&gt;</SourceFilename>",
        "<SourceFilename>{nested}</SourceFilename>",
        "<SourceFilename>{loop}</SourceFilename>",
    ],
)
def test_vrt_sources_must_be_plain_rasters(tmp_path, source, secret, trap):
    good = write(tmp_path / "good.tif", noise(1, 20, 20))
    (tmp_path / "secret.bin.tif").write_bytes(SECRET)
    nested, loop = tmp_path / "nested.vrt", tmp_path / "loop.vrt"
    nested.write_text(raw_vrt(secret))
    loop.write_text(simple_vrt(f"<SourceFilename>{loop}</SourceFilename>"))
    path = tmp_path / "a.vrt"
    path.write_text(simple_vrt(source.format(secret=secret, trap=trap[0], good=good, nested=nested, loop=loop)))
    assert "a.vrt" in refused(path, ".") or source.count("nested") or source.count("loop")


def test_vrt_source_as_an_attribute_is_refused(tmp_path, secret):
    path = tmp_path / "a.vrt"
    path.write_text(
        f'<VRTDataset rasterXSize="9" rasterYSize="9"><VRTRasterBand dataType="Byte" band="1" '
        f'subClass="VRTRawRasterBand" SourceFilename="{secret}"/></VRTDataset>'
    )
    refused(path, "not written as GDAL writes it")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<VRTDataset", "is not a VRT"),
        ("<OGRVRTDataSource/>", "OGRVRTDataSource"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><VRTDataset/>', "entities"),
        ('<VRTDataset rasterXSize="5" rasterYSize="5"></VRTDataset>', "cannot be opened as VRT"),
    ],
)
def test_vrt_texts(tmp_path, text, words):
    (tmp_path / "a.vrt").write_text(text)
    refused(tmp_path / "a.vrt", words)


def test_an_address_in_a_vrts_metadata_is_no_matter(tmp_path):
    write(tmp_path / "a.tif", noise(1, 20, 20))
    remark = '<Metadata><MDI key="TIFFTAG_SOFTWARE">https://example.org/</MDI></Metadata>'
    source = '<SourceFilename relativeToVRT="1">a.tif</SourceFilename>'
    (tmp_path / "a.vrt").write_text(simple_vrt(source, extra=remark))
    Scene.open(tmp_path / "a.vrt").close()


@pytest.mark.parametrize("suffix", [".ovr", ".msk"])
def test_sidecars_must_be_tiffs(tmp_path, suffix, secret):
    path = write(tmp_path / "a.tif", noise(3, 20, 20))
    (tmp_path / f"a.tif{suffix}").write_text(raw_vrt(secret, width=20, height=20))
    refused(path, f"a.tif{suffix} is not a TIFF")


def test_sidecar_that_names_overviews_elsewhere(tmp_path, trap):
    path = write(tmp_path / "a.tif", noise(3, 20, 20))
    (tmp_path / "a.tif.aux.xml").write_text(
        '<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">'
        f"/vsicurl/http://{trap[0]}/a.ovr</MDI></Metadata></PAMDataset>"
    )
    refused(path, "names overviews elsewhere")


# --- bombs


def tiny_tiff(path, *, width, height, tile=None, strip=None, bands=1, compression=8):
    """A TIFF header that declares any size and holds nothing (all blocks sparse)."""
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 1)]
    tags += [(277, 3, 1, bands)]
    if tile:
        tags += [(322, 4, 1, tile), (323, 4, 1, tile), (324, 4, 1, 0), (325, 4, 1, 0)]
    else:
        tags += [(273, 4, 1, 0), (278, 4, 1, strip), (279, 4, 1, 0)]
    body = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + b"\0" * 4)
    return path


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"width": 2_000_000, "height": 2_000_000, "tile": 512}, "more than 1e"),
        ({"width": 30_000, "height": 30_000, "tile": 30_000 // 16 * 16}, "in blocks of"),
        ({"width": 100_000, "height": 100_000, "strip": 10_000}, "in blocks of"),
        ({"width": 100, "height": 100, "tile": 16, "bands": 5000}, "5000 bands"),
        ({"width": 16_384, "height": 16_384, "tile": 16_000, "bands": 1}, "declares .* bytes of pixels in"),
    ],
)
def test_bombs_are_refused_before_they_cost_memory(tmp_path, shape, words):
    path = tiny_tiff(tmp_path / "bomb.tif", **shape)
    tracemalloc.start()
    refused(path, words)
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("side", [32_768, 65_536])
def test_a_large_sparse_scene_is_welcome(tmp_path, side):
    path = tmp_path / "sparse.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=side, width=side, count=3, dtype="uint8", crs=UTM, transform=NORTH_UP,
        SPARSE_OK=True, BIGTIFF="YES", nodata=0, **tiled(512, compress="deflate"),
    ) as dataset:  # fmt: skip
        dataset.write(noise(3, 512, 512), window=rasterio.windows.Window(side - 512, 512, 512, 512))
    assert side < 40_000 or side * side * 3 > opening.MAX_RATIO * path.stat().st_size
    with Scene.open(path) as scene:
        assert scene.read(Box(side - 1024, 0, side, 1024)).valid.sum() == 512 * 512
        assert not scene.read(Box(0, side - 1024, 1024, side)).valid.any()


def test_cap_on_bands_and_ratio_are_those_in_use(tmp_path, monkeypatch):
    path = write(tmp_path / "a.tif", noise(5, 20, 20))
    monkeypatch.setattr(opening, "MAX_BANDS", 4)
    refused(path, "declares 5 bands, more than 4")


# --- options that do not fit the scene


def test_wrong_bands_name_the_file_and_what_it_has(tmp_path):
    path = write(tmp_path / "a.tif", noise(4, 20, 20))
    assert str(path) in refused(path, "has no band 0, 7: it has 4", bands=(1, 0, 7))
    refused(path, "1,2 are 2, but 3 are wanted", UsageError, bands=(1, 2))
    three = write(tmp_path / "b.tif", noise(3, 20, 20))
    refused(three, "has 3 bands, the model takes 4", band_count=4)


@pytest.mark.parametrize("value_range", ["float", ""])
def test_unknown_value_range(tmp_path, value_range):
    refused(write(tmp_path / "a.tif", noise(3, 20, 20)), "use uint8 or raw", UsageError, value_range=value_range)


def test_wrong_stretch(tmp_path):
    refused(write(tmp_path / "a.tif", noise(3, 20, 20)), "stretch 'wide'", UsageError, stretch="wide")


@pytest.mark.parametrize("gsd", [0.0, -1.0, float("nan"), float("inf")])
def test_wrong_gsd(tmp_path, gsd):
    refused(write(tmp_path / "a.tif", noise(3, 20, 20)), "gsd", UsageError, gsd=gsd)


def test_gsd_needs_a_crs_and_a_possible_size(tmp_path):
    path = write(tmp_path / "a.tif", noise(3, 20, 20), crs=None)
    refused(path, "no CRS in known units", gsd=1.0)
    refused(write(tmp_path / "b.tif", noise(3, 20, 20)), "give a larger gsd", gsd=1e-6)


@pytest.mark.parametrize("bbox", [(0, 0, 1), (1, 0, 0, 1), (0, 0, 0, 1), (0, 0, float("nan"), 1)])
def test_wrong_bbox(tmp_path, bbox):
    refused(write(tmp_path / "a.tif", noise(3, 20, 20)), "is not a box", UsageError, bbox=bbox)


@pytest.mark.parametrize("affine", [NORTH_UP, NORTH_UP * Affine.rotation(30)])
def test_bbox_and_aoi_outside_say_both_extents(tmp_path, affine):
    path = write(tmp_path / "a.tif", noise(3, 20, 20), transform=affine)
    text = refused(path, "bounding box .* lies outside a.tif", bbox=(10, 20, 30, 40))
    assert "10 20 30 40" in text
    assert " 5000000" in text
    far = write_area(tmp_path / "far.geojson", [shapely.box(4, 40, 5, 41)], crs=4326)
    text = refused(path, "area of interest .* lies outside a.tif", aoi=far)
    assert "EPSG:32631" in text


def test_aoi_that_only_touches_the_scene_is_outside(tmp_path):
    path = write(tmp_path / "a.tif", noise(3, 20, 20))
    refused(path, "lies outside", aoi=shapely.box(499_990, 4_999_990, 500_000, 5_000_000))


def test_bad_areas(tmp_path):
    path = write(tmp_path / "a.tif", noise(3, 20, 20))
    refused(path, "no such file", aoi=tmp_path / "nowhere.gpkg")
    (tmp_path / "bad.gpkg").write_bytes(b"no database")
    refused(path, "cannot be read as a vector file", aoi=tmp_path / "bad.gpkg")
    points = write_area(tmp_path / "points.gpkg", [shapely.Point(500_001, 4_999_999)])
    refused(path, "holds no polygon", aoi=points)
    refused(path, "is a URL", aoi="https://example.org/a.geojson")
    behind = write_area(tmp_path / "behind.gpkg", [shapely.box(170, 0, 171, 1)], crs=4326)
    globe = write(tmp_path / "globe.tif", noise(3, 20, 20), crs="+proj=ortho +lat_0=0 +lon_0=0", transform=NORTH_UP)
    refused(globe, "not defined", aoi=behind)


def test_aoi_with_a_crs_for_a_scene_without(tmp_path):
    path = write(tmp_path / "a.tif", noise(3, 20, 20), crs=None, transform=None)
    area = write_area(tmp_path / "area.gpkg", [shapely.box(1, 1, 5, 5)])
    refused(path, "scene has no CRS", aoi=area)


def test_complex_numbers(tmp_path):
    refused(write(tmp_path / "a.tif", noise(1, 20, 20).astype(np.complex64)), "complex")


# --- georeference that cannot be used


def gcp(affine, row, col, off=0.0):
    x, y = affine * (col, row)
    return rasterio.control.GroundControlPoint(row=row, col=col, x=x + off, y=y)


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ([gcp(NORTH_UP, r, c, 3.0 * (r == c == 20)) for r in (0, 20) for c in (0, 20)], "warp it first"),
        ([gcp(NORTH_UP, r, r) for r in (0, 5, 20)], "do not span a plane"),
        ([gcp(NORTH_UP, 0, 0), gcp(NORTH_UP, 5, 20)], "do not span a plane"),
    ],
)
def test_ground_control_points_that_do_not_fit(tmp_path, points, words):
    # The corner is 3 m = 6 px off; a plane through four points takes up three quarters of it... 1.5 px each.
    if words == "warp it first":
        points[-1].x += 6.0
    path = write(tmp_path / "a.tif", noise(3, 20, 20), transform=None, gcps=points)
    refused(path, words)


def test_a_singular_affine(tmp_path):
    path = write(tmp_path / "a.png", noise(3, 20, 20), driver="PNG", crs=None, transform=None)
    (tmp_path / "a.pgw").write_text("1\n1\n1\n1\n0\n0\n")
    refused(path, "cannot be inverted")


# --- damaged files


def test_truncated_tiff_fails_on_the_windows_that_need_the_lost_blocks(tmp_path):
    image = noise(3, 1024, 1024)
    whole = write(tmp_path / "whole.tif", image, **tiled(256))
    path = tmp_path / "half.tif"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size * 5 // 8])
    good, bad = 0, 0
    with Scene.open(path) as scene:
        for window in plan_windows(1024, 1024, chip_size=256, overlap=0).windows:
            box = window.read
            if window.index < 9:  # 5/8 of the file is ten of its 16 blocks, less the length of the header
                good += 1
                np.testing.assert_array_equal(scene.read(box).image, image[:, *box.as_slices()])
            else:
                bad += 1
                place = f"window x {box.x0}-{box.x1}, y {box.y0}-{box.y1} cannot be read: "
                with pytest.raises(WindowError, match=place) as caught:
                    scene.read(box)
                assert str(caught.value).startswith(str(path))
                assert "\n" not in str(caught.value)
    assert (good, bad) == (9, 7)


def test_truncated_16_bit_scene_says_that_its_stretch_cannot_be_found(tmp_path):
    whole = write(tmp_path / "whole.tif", noise(3, 512, 512, "uint16"), **tiled(256))
    path = tmp_path / "half.tif"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with Scene.open(path) as scene, pytest.raises(SceneError, match=r"to find its stretch: .*minmax"):
        scene.read(Box(0, 0, 10, 10))
    with Scene.open(path, stretch="minmax:0,5000") as scene:
        assert scene.read(Box(0, 0, 100, 100)).valid.all()


def test_truncated_header(tmp_path):
    # A header at the end, as streaming writers leave it.
    whole = write(tmp_path / "whole.tif", noise(3, 512, 512), **tiled(256, compress="deflate"))
    content = bytearray(whole.read_bytes())
    content[4:8] = struct.pack("<I", len(content) + 100)
    (tmp_path / "cut.tif").write_bytes(content)
    refused(tmp_path / "cut.tif", "cannot be opened as GTiff")


@pytest.mark.parametrize(("name", "driver"), [("a.jpg", "JPEG"), ("a.png", "PNG"), ("a.jp2", "JP2OpenJPEG")])
def test_truncated_images_never_give_wrong_pixels_in_silence(tmp_path, name, driver):
    whole = write(tmp_path / f"whole{name[1:]}", noise(3, 300, 300), driver=driver)
    with rasterio.open(whole) as dataset:
        expected = dataset.read()
    path = tmp_path / name
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 3])
    try:
        with Scene.open(path) as scene:
            top = scene.read(Box(0, 0, 300, 20))
            np.testing.assert_array_equal(top.image, expected[:, :20])
            chip = scene.read(Box(0, 250, 300, 300))
            np.testing.assert_array_equal(chip.image, expected[:, 250:])
    except SceneError:
        return
    pytest.fail("two thirds of the file are missing, and nothing was said")


def test_mutated_headers_give_our_errors_only(tmp_path):
    content = write(tmp_path / "whole.tif", noise(3, 64, 64), **tiled(16, compress="deflate")).read_bytes()
    rng = np.random.default_rng(0)
    path, messages = tmp_path / "a.tif", []
    for _ in range(150):
        mutated = bytearray(content)
        for place in rng.integers(0, min(len(mutated), 600), 3):
            mutated[place] = rng.integers(256)
        path.write_bytes(mutated)
        try:
            with Scene.open(path) as scene:
                scene.read(Box(0, 0, min(64, scene.grid.width), min(64, scene.grid.height)))
        except SceneError as error:
            messages.append(str(error))
    assert len(messages) > 10
    assert not any("\n" in message for message in messages)


def test_file_that_vanishes_after_opening(tmp_path):
    path = write(tmp_path / "a.tif", noise(3, 20, 20))
    with Scene.open(path) as scene:
        path.unlink()
        with pytest.raises(SceneError, match=r"a\.tif"):
            scene.read(Box(0, 0, 5, 5))


def test_alpha_only_scene_is_read_as_a_band(tmp_path):
    path = write(tmp_path / "a.tif", noise(1, 20, 20), colors=[ColorInterp.alpha])
    with Scene.open(path) as scene:
        assert scene.band_indexes == (1, 1, 1)
        scene.read(Box(0, 0, 20, 20))
