import json

import numpy as np
import pytest
from rasters import write_raster

from rsgeoseg.datasets.arcgis import ArcGISChips
from rsgeoseg.errors import UsageError


def make_export(root, *, dtype=np.uint8, by="Name"):
    """An export of two classes and three chips: 0 with both, 1 with overlapping objects, 2 with none."""
    classes = [{"Value": 3, "Name": "roof", "Color": [1, 2, 3]}, {"Value": 7, "Name": "tree", "Color": [-1, -1, -1]}]
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(3):
        write_raster(root / "images" / f"{i:09d}.tif", rng.integers(1, 255, (3, 64, 64)).astype(dtype))
    roof, tree = (root / "labels" / str(entry[by]) for entry in classes)
    roof.mkdir(parents=True)
    tree.mkdir(parents=True)
    mask = np.zeros((1, 64, 64), np.uint8)
    mask[0, 5:15, 5:15] = 1
    mask[0, 5:15, 15:20] = 2
    write_raster(roof / "000000000.tif", mask)
    mask[:] = 0
    mask[0, 40:50, 40:60] = 1
    write_raster(tree / "000000000.tif", mask)
    both = np.zeros((2, 64, 64), np.uint8)
    both[0, 10:30, 10:30] = 1
    both[1, 20:40, 20:40] = 1
    write_raster(tree / "000000001.tif", both)
    emd = {"Framework": "e.g. CNTK", "Classes": classes}
    (root / "esri_model_definition.emd").write_text(json.dumps(emd))
    (root / "esri_accumulated_stats.json").write_text(json.dumps({"MetaDataMode": "RCNN_Masks"}))
    (root / "map.txt").write_text("")
    (root / "stats.txt").write_text("")
    return root


@pytest.mark.parametrize("by", ["Name", "Value"])
def test_masks_of_all_classes_and_bands(tmp_path, by):
    data = ArcGISChips(make_export(tmp_path, by=by))
    assert data.classes == ("roof", "tree")
    assert [image.name for image in data.images] == [f"images/{i:09d}.tif" for i in range(3)]
    assert data[0]["label"].tolist() == [0, 0, 1]
    assert data[0]["bbox_xyxy"].tolist() == [[5, 5, 15, 15], [15, 5, 20, 15], [40, 40, 60, 50]]
    masks = data.labelled(1).masks()
    assert masks.sum((1, 2)).tolist() == [400, 400]
    assert (masks[0] & masks[1]).sum() == 100
    assert data[2]["mask"].shape == (0, 64, 64)
    import rasterio

    with rasterio.open(tmp_path / "images" / "000000001.tif") as source:
        np.testing.assert_array_equal(data.labelled(1).read(), np.moveaxis(source.read(), 0, -1))


def test_deep_chips_need_one_stretch(tmp_path):
    root = make_export(tmp_path, dtype=np.uint16)
    with pytest.raises(UsageError, match="minmax:LOW,HIGH"):
        ArcGISChips(root)
    data = ArcGISChips(root, stretch="minmax:0,510")
    assert data.labelled(0).read().max() <= 128


def test_other_exports_are_refused(tmp_path):
    with pytest.raises(UsageError, match="is not a folder of exported"):
        ArcGISChips(tmp_path)
    root = make_export(tmp_path / "a")
    (root / "labels" / "roof").rename(root / "labels" / "x")
    (root / "labels" / "tree").rename(root / "labels" / "y")
    with pytest.raises(UsageError, match="RCNN Masks"):
        ArcGISChips(root)
    root = make_export(tmp_path / "b")
    write_raster(root / "labels" / "roof" / "000000000.tif", np.ones((1, 32, 32), np.uint8), tile=32)
    with pytest.raises(UsageError, match="32 x 32 pixels, its chip 64 x 64"):
        ArcGISChips(root)
    (root / "esri_model_definition.emd").write_text("{}")
    with pytest.raises(UsageError, match="classes"):
        ArcGISChips(root)
