"""VRT mosaics as scenes: many tiles, gaps between them, tiles that overlap, mosaics of mosaics."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS
from scene_files import UTM, noise, tiled, write

from rsgeoseg.engine.reader import read_ahead
from rsgeoseg.errors import SceneError, WindowError
from rsgeoseg.geo.opening import READ_ERRORS
from rsgeoseg.geo.scene import Scene
from rsgeoseg.geo.windows import Box, plan_windows

TILE = 64


def mosaic(path, places, *, rows, cols, affine, bands=3, nodata=0, dtype="Byte"):
    """Write a VRT as gdalbuildvrt does; places are (name, x, y) of tiles in pixels."""
    hide = "" if nodata is None else f"<NoDataValue>{nodata}</NoDataValue>"
    kind = "SimpleSource" if nodata is None else "ComplexSource"
    hidden = "" if nodata is None else f"<NODATA>{nodata}</NODATA>"
    text = [f'<VRTDataset rasterXSize="{cols}" rasterYSize="{rows}"><SRS>{CRS.from_string(UTM).to_wkt()}</SRS>']
    text.append(f"<GeoTransform>{', '.join(map(str, affine.to_gdal()))}</GeoTransform>")
    for band in range(1, bands + 1):
        text.append(f'<VRTRasterBand dataType="{dtype}" band="{band}">{hide}')
        for name, x, y in places:
            text.append(
                f'<{kind}><SourceFilename relativeToVRT="1">{name}</SourceFilename><SourceBand>{band}</SourceBand>'
                f'<SrcRect xOff="0" yOff="0" xSize="{TILE}" ySize="{TILE}"/>'
                f'<DstRect xOff="{x}" yOff="{y}" xSize="{TILE}" ySize="{TILE}"/>{hidden}</{kind}>'
            )
        text.append("</VRTRasterBand>")
    text.append("</VRTDataset>")
    path.write_text("".join(text))
    return path


def checkered(folder, rows, cols, affine, *, keep=lambda row, col: (row + col) % 3 != 0):
    """Tiles on a grid with some left out: their places and the pixels of the whole."""
    whole, places = np.zeros((3, rows * TILE, cols * TILE), np.uint8), []
    for row in range(rows):
        for col in range(cols):
            if keep(row, col):
                image = noise(3, TILE, TILE, seed=row * cols + col)
                x, y = col * TILE, row * TILE
                name = f"tile_{row}_{col}.tif"
                write(
                    folder / name, image, transform=affine * Affine.translation(x, y), **tiled(32, compress="deflate")
                )
                whole[:, y : y + TILE, x : x + TILE] = image
                places.append((name, x, y))
    return places, whole


@pytest.mark.parametrize("angle", [0, 30])
def test_many_tiles_with_gaps(tmp_path, angle):
    affine = Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000) * Affine.rotation(angle)
    places, whole = checkered(tmp_path, 12, 15, affine)
    path = mosaic(tmp_path / "m.vrt", places, rows=12 * TILE, cols=15 * TILE, affine=affine)
    windows = plan_windows(*whole.shape[1:], chip_size=256, overlap=64).windows
    with Scene.open(path) as scene:
        assert scene.grid.affine.almost_equals(affine, 1e-6)
        assert len(scene._info.sources) == len(places) == 120
        for item in read_ahead(scene, windows, readers=2, ahead=4):
            box = item.window.read.as_slices()
            np.testing.assert_array_equal(item.chip.image, whole[:, *box])
            np.testing.assert_array_equal(item.chip.valid, (whole[:, *box] != 0).any(axis=0))


def test_windows_in_a_gap_are_not_chips(tmp_path):
    affine = Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)
    places, whole = checkered(tmp_path, 4, 12, affine, keep=lambda _row, col: not 4 <= col < 8)
    path = mosaic(tmp_path / "m.vrt", places, rows=4 * TILE, cols=12 * TILE, affine=affine)
    windows = plan_windows(*whole.shape[1:], chip_size=256, overlap=0).windows
    with Scene.open(path) as scene:
        found = [item.chip is not None for item in read_ahead(scene, windows, readers=1, ahead=2)]
    assert found == [True, False, True]


def test_the_later_of_two_overlapping_tiles_is_seen_where_it_has_data(tmp_path):
    affine = Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)
    under, over = noise(3, TILE, TILE, seed=1), noise(3, TILE, TILE, seed=2)
    over[:, :10] = 0
    write(tmp_path / "under.tif", under)
    write(tmp_path / "over.tif", over)
    path = mosaic(tmp_path / "m.vrt", [("under.tif", 0, 0), ("over.tif", 32, 0)], rows=TILE, cols=96, affine=affine)
    expected = np.zeros((3, TILE, 96), np.uint8)
    expected[:, :, :TILE] = under
    expected[:, :, 32:] = np.where(over == 0, expected[:, :, 32:], over)
    with Scene.open(path) as scene:
        np.testing.assert_array_equal(scene.read(Box(0, 0, 96, TILE)).image, expected)


def test_a_mosaic_of_mosaics_and_its_fingerprint(tmp_path):
    affine = Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)
    places, whole = checkered(tmp_path, 2, 2, affine, keep=lambda *_: True)
    for name, x, y in places:
        one = mosaic(tmp_path / f"{name}.vrt", [(name, 0, 0)], rows=TILE, cols=TILE, affine=affine)
        assert one.exists()
        assert (x, y) in {(0, 0), (TILE, 0), (0, TILE), (TILE, TILE)}
    nested = [(f"{name}.vrt", x, y) for name, x, y in places]
    path = mosaic(tmp_path / "m.vrt", nested, rows=2 * TILE, cols=2 * TILE, affine=affine)
    with Scene.open(path) as scene:
        np.testing.assert_array_equal(scene.read(Box(0, 0, 2 * TILE, 2 * TILE)).image, whole)
        before = scene.fingerprint()
    write(tmp_path / places[3][0], noise(3, TILE, TILE, seed=9), transform=affine)
    with Scene.open(path) as scene:
        assert scene.fingerprint() != before


def test_a_tile_that_is_gone_is_named(tmp_path):
    affine = Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)
    places, whole = checkered(tmp_path, 1, 3, affine, keep=lambda *_: True)
    path = mosaic(tmp_path / "m.vrt", places, rows=TILE, cols=3 * TILE, affine=affine)
    with Scene.open(path) as scene:
        (tmp_path / "tile_0_2.tif").unlink()
        np.testing.assert_array_equal(scene.read(Box(0, 0, TILE, TILE)).image, whole[:, :, :TILE])
        with pytest.raises(WindowError, match=r"tile_0_2\.tif"):
            scene.read(Box(2 * TILE, 0, 3 * TILE, TILE))
    with pytest.raises(SceneError, match=r"m\.vrt: source .*tile_0_2\.tif: no such file"):
        Scene.open(path)


@pytest.mark.parametrize("harm", ["gone", "no raster", "another size"])
def test_bad_tiles_never_give_pixels_in_silence(tmp_path, harm):
    """GDAL says once that it cannot open a source; then, while any thread has the VRT open, it returns stray memory."""
    affine = Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)
    places, whole = checkered(tmp_path, 6, 6, affine, keep=lambda *_: True)
    path = mosaic(tmp_path / "m.vrt", places, rows=6 * TILE, cols=6 * TILE, affine=affine)
    boxes = [Box(x, y, x + TILE, y + TILE) for _, x, y in places] * 8
    with Scene.open(path) as scene:
        scene.read(Box(0, 0, TILE, TILE))
        for step in range(6):
            tile = tmp_path / f"tile_{step}_{step}.tif"
            if harm == "gone":
                tile.unlink()
            else:
                tile.write_bytes(b"II*\0 no raster" if harm == "no raster" else tile.read_bytes() + b"more")

        def read(box):
            try:
                image, _ = scene._raster.read(box)
            except READ_ERRORS as error:
                name = f"tile_{box.y0 // TILE}_{box.x0 // TILE}.tif"
                return "error" if name in str(error) else f"{name} is not in {error}"
            return "equal" if np.array_equal(image, whole[:, *box.as_slices()]) else "wrong"

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(read, boxes))
    assert found == ["error" if box.x0 == box.y0 else "equal" for box in boxes]


def test_a_thousand_tiles_open_and_read_in_time_that_does_not_grow_with_their_number(tmp_path):
    affine = Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)
    places, _ = checkered(tmp_path, 1, 1, affine, keep=lambda *_: True)
    name = places[0][0]
    for row in range(32):
        for col in range(32):
            target = tmp_path / f"t{row}_{col}.tif"
            target.hardlink_to(tmp_path / name)
    many = [(f"t{row}_{col}.tif", col * TILE, row * TILE) for row in range(32) for col in range(32)]
    few = mosaic(tmp_path / "few.vrt", many[:64], rows=2 * TILE, cols=32 * TILE, affine=affine)
    path = mosaic(tmp_path / "many.vrt", many, rows=32 * TILE, cols=32 * TILE, affine=affine)

    def seconds(source):
        best = 9.0
        for _ in range(3):
            with Scene.open(source) as scene:
                start = time.perf_counter()
                scene.read(Box(0, 0, 128, 128))
                best = min(best, time.perf_counter() - start)
        return best

    with rasterio.open(path) as dataset:
        assert dataset.shape == (2048, 2048)
    assert seconds(path) < 8 * seconds(few) + 0.1
