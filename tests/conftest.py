import pytest
from rasters import draw_ids, write_raster

from rsgeoseg.testing.oracle import encode_ids


@pytest.fixture
def ids_scene(tmp_path):
    """A scene whose pixels spell instance ids, and those ids."""

    def make(height=200, width=260, *, name="scene.tif", seed=0, count=12, **options):
        ids = draw_ids(height, width, seed=seed, count=count)
        return write_raster(tmp_path / name, encode_ids(ids), **options), ids

    return make
