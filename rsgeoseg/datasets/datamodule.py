"""A torchgeo datamodule for any known dataset of instances."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)
from torchgeo.datamodules import NonGeoDataModule
from torchgeo.datamodules.utils import collate_fn_detection

from rsgeoseg.datasets.catalog import find_dataset, open_dataset
from rsgeoseg.datasets.labelled import tight_boxes
from rsgeoseg.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from rsgeoseg.datasets.instances import InstanceDataset


class InstanceDataModule(NonGeoDataModule):
    """Batches of a known dataset, for ``torchgeo`` tasks and any Lightning module.

    A batch has ``image`` (B, 3, S, S) float32 0-1 and lists of B: ``mask`` (N, S, S), ``bbox_xyxy`` (N, 4) and
    ``label`` (N,). Images are scaled to fit a square of side S and padded to the right and below.

    ``validate`` uses the split ``val``, ``test`` the split that the papers measure on (``DatasetCard.measured``). Where
    there is no such split it is every fifth image of the training split; training leaves these out where they are
    validated on. `rsgeoseg train` does not use this: it draws its own crops.

    Args:
        name: of the dataset (`rsgeoseg.datasets.catalog`).
        root: its folder.
        split: train, validate and test on this split alone, divided as above; None = the published splits.
        image_size: S, pixels.
        batch_size: images per batch.
        num_workers: processes that read.
        options: further ones of the dataset.

    Raises:
        UsageError: the name is unknown, or not of instances.
    """

    mean = torch.tensor(0.0)
    std = torch.tensor(255.0)

    def __init__(
        self,
        name: str,
        root: Path | str,
        *,
        split: str | None = None,
        image_size: int = 512,
        batch_size: int = 4,
        num_workers: int = 0,
        **options: Any,
    ) -> None:
        card = find_dataset(name)
        if card.kind != "instances":
            msg = f"{name} has no instances; see open_referring"
            raise UsageError(msg)
        kind = card.load()
        super().__init__(kind, batch_size, num_workers)
        self.aug = _Scale()
        self.collate_fn = collate_fn_detection
        self.splits: tuple[str, ...] = kind.splits if split is None else (split,)
        self.measured = card.measured
        self._open = partial(open_dataset, name, root, transforms=partial(fit_square, side=image_size), **options)

    def setup(self, stage: str) -> None:
        """Open the splits that a stage needs: ``fit``, ``validate``, ``test`` or ``predict``."""
        if stage == "fit":
            train = self._open(split=self.splits[0])
            self.train_dataset = train if "val" in self.splits[1:] else train.split()[0]
        if stage in {"fit", "validate"}:
            self.val_dataset = self._held_out("val")
        if stage in {"test", "predict"}:
            setattr(self, f"{stage}_dataset", self._held_out(self.measured))

    def _held_out(self, split: str) -> InstanceDataset:
        if split in self.splits[1:]:
            return self._open(split=split)
        return self._open(split=self.splits[0]).split()[1]


class _Scale(torch.nn.Module):
    """Bring a batch's images from 0-255 to 0-1."""

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {**batch, "image": batch["image"] / 255}


def fit_square(sample: dict[str, Any], side: int) -> dict[str, Any]:
    """Scale a sample to fit a square and pad it to the right and below; objects that vanish are left out.

    Args:
        sample: as an ``InstanceDataset`` gives it.
        side: of the square, pixels.
    """
    height, width = sample["image"].shape[-2:]
    scale = side / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    image = F.interpolate(sample["image"][None], size=size, mode="bilinear", align_corners=False, antialias=True)[0]
    masks: Tensor = sample["mask"]
    if len(masks):
        masks = F.interpolate(masks[None].float(), size=size, mode="nearest-exact")[0].to(torch.uint8)
    else:
        masks = masks.new_zeros(0, *size)
    padding = (0, side - size[1], 0, side - size[0])
    image, masks = F.pad(image, padding), F.pad(masks, padding)
    there = (masks != 0).flatten(1).any(1)
    masks = masks[there]
    return {
        **sample,
        "image": image,
        "mask": masks,
        "bbox_xyxy": torch.from_numpy(tight_boxes(masks.numpy())),
        "label": sample["label"][there],
    }
