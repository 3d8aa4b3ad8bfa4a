"""Can drawing crops keep up with a GPU? Augmented 1,024-pixel samples per second, ours beside torchvision's.

    python benchmarks/loading.py IMAGES ANNOTATIONS [--crop 1024] [--workers 2] [--samples 400]

Both read the same COCO images, resize by 0.1-2.0, crop, mirror, change colours, and hand over images, boxes and one
full-size mask per object, in batches of four through a DataLoader with the same workers. torchvision's pipeline is the
one of its detection reference: masks drawn in the whole image first, then ScaleJitter, crop, flip and ColorJitter of
`torchvision.transforms.v2`. The bar is 15 samples/s with workers on two cores. Then a profile of one process.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import pstats
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from rsgeoseg.datasets.coco import CocoInstances
from rsgeoseg.train.augment import AugmentConfig
from rsgeoseg.train.module import collate
from rsgeoseg.train.samples import CropStream

if TYPE_CHECKING:
    from rsgeoseg.datasets.instances import InstanceDataset

BAR = 15.0


class TorchvisionStream(Dataset[Any]):
    """The same images through torchvision's transforms."""

    def __init__(self, data: InstanceDataset, crop: int, length: int) -> None:
        self.data, self.length = data, length
        self.transform = v2.Compose(
            [
                v2.ScaleJitter((crop, crop), scale_range=(0.1, 2.0), antialias=True),
                v2.RandomCrop(crop, pad_if_needed=True, fill={tv_tensors.Image: 127, tv_tensors.Mask: 0}),
                v2.RandomHorizontalFlip(),
                v2.ColorJitter(0.2, 0.2, 0.3),
                v2.SanitizeBoundingBoxes(),
            ]
        )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        image = self.data.labelled(index % len(self.data))
        masks = torch.from_numpy(image.masks())
        size = (image.height, image.width)
        boxes = torch.zeros(len(masks), 4)
        for box, mask in zip(boxes, masks, strict=True):
            ys, xs = mask.any(1).nonzero(), mask.any(0).nonzero()
            box[:] = torch.tensor([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),  # type: ignore[call-overload]
            "masks": tv_tensors.Mask(masks),
            "labels": torch.from_numpy(image.labels),
        }
        return self.transform(tv_tensors.Image(torch.from_numpy(image.read()).permute(2, 0, 1)), target)


def rate(stream: Dataset[Any], workers: int, samples: int, collate_fn: Any) -> float:
    """Samples per second of a loader once its workers are up."""
    loader = DataLoader(stream, batch_size=4, num_workers=workers, collate_fn=collate_fn)
    batches = iter(loader)
    next(batches)
    start = time.perf_counter()
    for _ in range(samples // 4):
        next(batches)
    return 4 * (samples // 4) / (time.perf_counter() - start)


def profile(stream: CropStream, samples: int) -> str:
    """The dearest functions of drawing crops in one process."""
    watch = cProfile.Profile()
    watch.enable()
    for index in range(samples):
        stream[index]
    watch.disable()
    text = io.StringIO()
    pstats.Stats(watch, stream=text).sort_stats("tottime").print_stats(8)
    lines = [line for line in text.getvalue().splitlines() if line.strip()]
    return "\n".join(lines[next(i for i, line in enumerate(lines) if "ncalls" in line) :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("annotations", type=Path)
    parser.add_argument("--crop", type=int, default=1024)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--samples", type=int, default=400)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    data = CocoInstances(args.images, args.annotations)
    config = AugmentConfig(crop=args.crop, scale=(0.1, 2.0))
    ours = CropStream(data, config, seed=0, start=0, length=args.samples + 8)
    theirs = TorchvisionStream(data, args.crop, args.samples + 8)
    figures = {
        "rsgeoseg": rate(ours, args.workers, args.samples, collate),
        "torchvision": rate(theirs, args.workers, max(40, args.samples // 4), list),
    }
    for name, value in figures.items():
        print(f"{name}: {value:.1f} samples/s of {args.crop} pixels with {args.workers} workers")
    print(f"ratio {figures['rsgeoseg'] / figures['torchvision']:.1f}; bar {BAR:g} samples/s\n")
    print(profile(CropStream(data, config, seed=0, start=0, length=100), 100))
    raise SystemExit(0 if figures["rsgeoseg"] >= BAR else 1)


if __name__ == "__main__":
    main()
