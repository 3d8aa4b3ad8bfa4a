"""Shared by all tests: one thread per process (they run side by side), and a log that no test leaves changed."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch start their threads
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import logging

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


@pytest.fixture(autouse=True)
def _log_as_it_was():
    logger = logging.getLogger("rsgeoseg")
    before = logger.level, logger.propagate, list(logger.handlers)
    yield
    logger.level, logger.propagate, logger.handlers[:] = before
