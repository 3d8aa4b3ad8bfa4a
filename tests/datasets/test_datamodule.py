"""Batches of known datasets: which images each stage gets, and that objects stay with their images."""

import pytest
import torch
from coco_folders import write_coco, write_images
from lightning.pytorch import LightningModule, Trainer

from rsgeoseg.datasets.catalog import DATASETS
from rsgeoseg.datasets.datamodule import InstanceDataModule
from rsgeoseg.errors import UsageError


def sandbar(root, counts):
    """Splits with other numbers of images each, so that they can be told apart."""
    for split, count in counts.items():
        names = [f"{split}{i}.png" for i in range(count)]
        write_images(root / "images" / split, names)
        write_coco(root / "annotations" / f"instances_{split}.json", names, ["sandbar"])
    return root


def test_stages_get_the_published_splits(tmp_path):
    module = InstanceDataModule("sandbar", sandbar(tmp_path, {"train": 4, "val": 3, "test": 2}), image_size=32)
    module.setup("fit")
    module.setup("test")
    module.setup("predict")
    found = module.train_dataset, module.val_dataset, module.test_dataset, module.predict_dataset
    assert [len(data) for data in found] == [4, 3, 2, 2]


def test_one_split_is_divided(tmp_path):
    module = InstanceDataModule("sandbar", sandbar(tmp_path, {"val": 6}), split="val", image_size=32)
    module.setup("fit")
    module.setup("test")
    names = [[data.labelled(i).name for i in range(len(data))] for data in (module.train_dataset, module.val_dataset)]
    assert names == [["val1.png", "val2.png", "val3.png", "val4.png"], ["val0.png", "val5.png"]]
    assert len(module.test_dataset) == 2


@pytest.mark.parametrize("name", [card.name for card in DATASETS.values() if card.kind == "instances"])
@pytest.mark.parametrize("stage", ["fit", "test"])
def test_every_stage_of_every_dataset_asks_for_files_and_not_for_held_back_masks(tmp_path, name, stage):
    with pytest.raises(UsageError) as caught:
        InstanceDataModule(name, tmp_path).setup(stage)
    assert str(tmp_path) in str(caught.value)


class _Counts(LightningModule):
    """Learns nothing and remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, _):
        self.seen.append(batch)
        return self.weight * batch["image"].mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_a_lightning_trainer_reads_it_with_workers(tmp_path):
    root = sandbar(tmp_path, {"train": 4, "val": 1})
    module = InstanceDataModule("sandbar", root, image_size=40, batch_size=2, num_workers=1)
    task = _Counts()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    Trainer(max_epochs=1, accelerator="cpu", limit_val_batches=0, **quiet).fit(task, datamodule=module)
    assert [tuple(batch["image"].shape) for batch in task.seen] == [(2, 3, 40, 40)] * 2
    # 60 x 80 pixels become 30 x 40; the rectangles of 10 x 20 become 5 x 10
    objects = [masks for batch in task.seen for masks in batch["mask"]]
    assert sorted(len(masks) for masks in objects) == [0, 2, 2, 2]
    assert {int(mask.sum()) for masks in objects for mask in masks} == {50}
    for batch in task.seen:
        assert float(batch["image"][:, :, :30].min()) >= 40 / 255
        assert float(batch["image"].max()) <= 44 / 255
        for masks, boxes in zip(batch["mask"], batch["bbox_xyxy"], strict=True):
            for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
                assert int(mask[y0:y1, x0:x1].sum()) == 50 == (x1 - x0) * (y1 - y0)
