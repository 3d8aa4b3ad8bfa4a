"""The known datasets by name, and batches of them."""

import subprocess
import sys

import pytest
import torch
from coco_folders import write_coco, write_images
from test_whu_building_dataset import write

import rsgeoseg.datasets
from rsgeoseg.datasets.catalog import DATASETS, find_dataset, open_dataset, open_referring
from rsgeoseg.datasets.datamodule import InstanceDataModule, fit_square
from rsgeoseg.datasets.instances import InstanceDataset
from rsgeoseg.datasets.referring import ReferringDataset
from rsgeoseg.errors import UsageError

THE_ISSUE = {
    *("whu-building", "nwpu-vhr10", "ssdd", "hrsid", "isaid", "potsdam", "loveda-urban", "whu-satellite", "sandbar"),
    *("refsegrs", "rrsis-d", "rrsis-m", "dior-rsvg"),
}


@pytest.mark.parametrize("name", sorted(THE_ISSUE))
def test_every_dataset_can_be_imported_and_says_what_it_lacks(name, tmp_path):
    card = find_dataset(name)
    kind = card.load()
    assert issubclass(kind, InstanceDataset if card.kind == "instances" else ReferringDataset)
    assert kind.splits
    opener = open_dataset if card.kind == "instances" else open_referring
    with pytest.raises(UsageError) as caught:
        opener(name, tmp_path)
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(UsageError, match="split"):
        opener(name, tmp_path, "nonsense")


def test_names():
    assert set(DATASETS) == THE_ISSUE
    with pytest.raises(UsageError, match="choose from whu-building"):
        find_dataset("coco")
    with pytest.raises(UsageError, match="one object per expression"):
        open_dataset("rrsis-d", "x")
    with pytest.raises(UsageError, match="no expressions"):
        open_referring("ssdd", "x")


@pytest.mark.parametrize("name", rsgeoseg.datasets.__all__)
def test_public_names_are_there(name):
    assert getattr(rsgeoseg.datasets, name) is not None


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, rsgeoseg.datasets; print([m for m in ('torch', 'torchgeo', 'rasterio') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="Nothing"):
        _ = rsgeoseg.datasets.Nothing


def ssdd(root, count=6):
    names = [f"{i:03d}.jpg" for i in range(count)]
    write_images(root / "imgs", names)
    for split in ("train", "val"):
        write_coco(root / "annotations" / f"SSDD_instances_{split}.json", names, ["ship"])
    return root


def test_batches(tmp_path):
    module = InstanceDataModule("ssdd", ssdd(tmp_path), image_size=64, batch_size=3)
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    assert batch["image"].shape == (3, 3, 64, 64)
    assert {len(masks) for masks in batch["mask"]} <= {0, 2}
    for masks, boxes, labels in zip(batch["mask"], batch["bbox_xyxy"], batch["label"], strict=True):
        assert len(masks) == len(boxes) == len(labels)
    scaled = module.aug(batch)
    assert 0 < float(scaled["image"].max()) <= 1
    module.setup("test")
    assert len(module.test_dataset) == 6
    with pytest.raises(UsageError, match="no instances"):
        InstanceDataModule("rrsis-d", tmp_path)


def test_a_dataset_without_validation_holds_every_fifth_image_out(tmp_path):
    write(tmp_path / "train", count=6)
    module = InstanceDataModule("whu-building", tmp_path, image_size=64)
    assert "val" in module.splits  # WHU has one; the global cities of WHU satellite have none
    (tmp_path / "cities").mkdir()
    write(tmp_path / "cities" / "x", count=6)
    module = InstanceDataModule("whu-satellite", tmp_path / "cities", part="global-cities")
    module.splits = ("all",)
    module.setup("fit")
    assert (len(module.train_dataset), len(module.val_dataset)) == (4, 2)


def test_fitting_a_square_keeps_masks_on_their_objects():
    image = torch.zeros(3, 40, 80)
    masks = torch.zeros(2, 40, 80, dtype=torch.uint8)
    masks[0, 10:20, 20:60] = 1
    masks[1, 39, 79] = 1
    image[:, 10:20, 20:60] = 200
    sample = {"image": image, "mask": masks, "label": torch.tensor([3, 4]), "bbox_xyxy": torch.zeros(2, 4)}
    half = fit_square(sample, 40)
    assert half["image"].shape == (3, 40, 40)
    assert half["bbox_xyxy"][0].tolist() == [10, 5, 30, 10]
    assert half["label"][0] == 3
    assert not half["image"][:, 20:].any()
    assert float(half["image"][0, 7, 20]) == pytest.approx(200, abs=1)
    tiny = fit_square(sample, 8)
    assert tiny["label"].tolist() == [3]  # the single pixel vanished


@pytest.mark.parametrize("name", sorted(THE_ISSUE))
def test_the_split_that_is_measured_is_one_of_the_datasets(name):
    card = find_dataset(name)
    assert card.measured in card.load().splits
