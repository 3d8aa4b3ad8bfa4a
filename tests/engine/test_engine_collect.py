import numpy as np
import pandas as pd
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS

from rsgeoseg.engine import collect
from rsgeoseg.engine.collect import Drawing
from rsgeoseg.engine.table import Rows, Table
from rsgeoseg.errors import UsageError
from rsgeoseg.geo.frame import objects_to_frame
from rsgeoseg.geo.grid import GeoGrid
from rsgeoseg.geo.stitch import StitchedObject
from rsgeoseg.geo.windows import Box
from rsgeoseg.testing.oracle import oracle_spec

GRID = GeoGrid(500, 500, Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000), CRS.from_epsg(32631))
SPEC = oracle_spec(["a", "b", "c"])


def random_objects(seed, count):
    rng = np.random.default_rng(seed)
    objects = []
    for _ in range(count):
        x, y, w, h = rng.integers(0, 40, 2).tolist() + rng.integers(1, 9, 2).tolist()
        mask = rng.random((h, w)) < 0.8
        mask[0, :] = mask[:, 0] = mask[-1, :] = mask[:, -1] = True
        box, label, score = Box(x, y, x + w, y + h), int(rng.integers(3)), float(rng.random())
        item = StitchedObject(box=box, mask=mask, label=label, score=score, n_chips=1, seam=False, truncated=False)
        objects.append(item)
    return objects


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 40),
    size=st.integers(1, 12),
    area=st.sampled_from([None, "12px", "5m2"]),
    crs=st.sampled_from([None, "EPSG:4326"]),
)
def test_drawing_in_pieces_gives_the_same_table(seed, count, size, area, crs):
    objects = random_objects(seed, count)
    at_once = objects_to_frame(
        objects,
        grid=GRID,
        classes=SPEC.classes,
        model=SPEC.name,
        min_area=area and collect.parse_area(area),
        dst_crs=crs,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collect, "_BATCH", size)
        drawing = Drawing(GRID, SPEC, min_area=area, dst_crs=crs)
        collectors = [drawing.collector(), drawing.collector()]
        for start in range(0, count, 3):
            collectors[start % 2].take(objects[start : start + 3])
        rows = [collector.finish() for collector in collectors]
    table = Table([rows[0], Rows.from_bytes(rows[1].to_bytes())], drawing.empty)
    assert len(table) == len(at_once)
    batches = list(table.batches(size))
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    pieces = pd.concat(batches, ignore_index=True) if batches else table.frame()
    assert list(pieces.columns) == list(at_once.columns)
    assert pieces.crs == at_once.crs
    pd.testing.assert_frame_equal(
        pd.DataFrame(pieces.drop(columns="geometry")), pd.DataFrame(at_once.drop(columns="geometry"))
    )
    assert pieces.geometry.geom_equals_exact(at_once.geometry, 0).all()


def test_options_that_do_not_fit_are_found_out_before_the_work():
    bare = GeoGrid(10, 10, Affine.identity(), None)
    with pytest.raises(UsageError, match="px"):
        Drawing(bare, SPEC, min_area="20m2")
    with pytest.raises(UsageError):
        Drawing(GRID, SPEC, dst_crs="EPSG:nonsense")
