"""Eight small pictures of the scene generator with exact truth, to learn by heart: what every learning test uses.

All windows lie in one scene (drawing is then fast) where no object is cut: 3 + 2 + 3 + 2 + 4 + 2 + 3 + 4 = 23 objects.
Close-ups of them, a quarter of the area, are for networks that are asked many things about each picture.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from affine import Affine

from rsgeoseg.contract import Chip
from rsgeoseg.evaluate.coco import coco_metrics, encode_mask, instances_to_coco
from rsgeoseg.nn.targets import Target
from rsgeoseg.testing.render import draw_scene
from rsgeoseg.testing.truth import SceneTruth

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from rsgeoseg.contract import Instances, Prompts, Segmenter

CLASSES = ("airplane", "ship", "storage_tank", "tennis_court")
COUNT = 8
Picture = tuple[np.ndarray, Target]
_CORNERS = ((0, 0), (512, 0), (3072, 0), (3328, 0), (0, 256), (3328, 2816), (256, 2816), (1024, 3840))
_SCENE = SceneTruth(Path("tiny"), 4096, 4096, 3, 60.0, CLASSES, Affine(0.5, 0, 0, 0, -0.5, 0), None)


@lru_cache(maxsize=2)
def chips(count: int = COUNT, side: int = 256) -> list[Picture]:
    """Draw pictures (3, side, side) uint8 and what they show; with sides below 256 objects are cut."""
    drawn = []
    for x, y in _CORNERS[:count]:
        box = (x, y, x + side, y + side)
        ids = _SCENE.labels(box)
        instances = np.unique(ids[ids > 0])
        masks = ids == instances[:, None, None]
        target = Target(
            labels=torch.from_numpy(_SCENE.label_of(instances)),
            boxes=torch.tensor([_box(mask) for mask in masks], dtype=torch.float32).reshape(-1, 4),
            masks=torch.from_numpy(masks.astype(np.uint8)),
        )
        drawn.append((draw_scene(_SCENE, box), target))
    return drawn


@lru_cache(maxsize=1)
def close_ups(side: int = 128) -> list[Picture]:
    """Cut the window (3, side, side) out of each picture that shows most objects whole; others may be cut."""
    cut = []
    for image, target in chips():
        x, y = max(_corners(target.boxes, side), key=lambda corner: int(_whole(target.boxes, corner, side).sum()))
        masks = target.masks[:, y : y + side, x : x + side]
        shown = masks.flatten(1).sum(1) > 0.2 * target.masks.flatten(1).sum(1)
        boxes = torch.tensor([_box(mask) for mask in masks[shown].numpy() > 0], dtype=torch.float32)
        objects = Target(labels=target.labels[shown], boxes=boxes, masks=masks[shown])
        cut.append((image[:, y : y + side, x : x + side], objects))
    return cut


def _corners(boxes: Tensor, side: int) -> list[tuple[int, int]]:
    """Corners x y of windows inside a picture that are centred on an object or between two."""
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    between = (middles[:, None] + middles[None]).flatten(0, 1) / 2
    return [(int(x), int(y)) for x, y in (between - side / 2).clamp(0, 256 - side).tolist()]


def _whole(boxes: Tensor, corner: tuple[int, int], side: int) -> Tensor:
    """Tell which boxes lie in a window."""
    first = torch.tensor(corner)
    return (boxes[:, :2] >= first).all(1) & (boxes[:, 2:] <= first + side).all(1)


def _box(mask: np.ndarray) -> list[int]:
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1]


def batch(indices: Sequence[int], pictures: Sequence[Picture] | None = None) -> tuple[Tensor, list[Target]]:
    """Images (B, 3, 256, 256) uint8 and their targets; of other pictures where they are given."""
    drawn = [(pictures or chips())[i % COUNT] for i in indices]
    return torch.from_numpy(np.stack([image for image, _ in drawn])), [target for _, target in drawn]


def as_chips(pictures: Sequence[Picture] | None = None) -> list[Chip]:
    """All pictures as a model sees them."""
    drawn = pictures or chips()
    return [Chip(image=image, valid=np.ones(image.shape[1:], np.bool_), gsd=0.5) for image, _ in drawn]


def mask_ap50(
    segmenter: Segmenter,
    prompts: Sequence[Prompts | None] | None = None,
    *,
    by_class: bool = True,
    pictures: Sequence[Picture] | None = None,
) -> float:
    """COCO mask AP at IoU 0.5 on all pictures; ``by_class=False`` ignores what an object is called."""
    seen = as_chips(pictures)
    found = [segmenter.segment([chip], [prompts[i]] if prompts else None)[0] for i, chip in enumerate(seen)]
    return instances_ap50(found, by_class=by_class, pictures=pictures)


def instances_ap50(
    found: Sequence[Instances], *, by_class: bool = True, pictures: Sequence[Picture] | None = None
) -> float:
    """COCO mask AP at IoU 0.5 of what was found on each picture, in order."""
    drawn = pictures or chips()
    categories = list(range(len(CLASSES))) if by_class else [0] * len(CLASSES)
    annotations, detections = [], []
    for image_id, ((image, target), instances) in enumerate(zip(drawn, found, strict=True)):
        height, width = image.shape[1:]
        for label, mask in zip(target.labels.tolist(), target.masks.numpy().astype(np.bool_), strict=True):
            encoded = encode_mask(mask, (0, 0), height=height, width=width)
            annotations.append({"image_id": image_id, "category_id": categories[label], "segmentation": encoded})
        detections += instances_to_coco(image_id, instances, height=height, width=width, category_ids=categories)
    images = [{"id": i, "height": image.shape[1], "width": image.shape[2]} for i, (image, _) in enumerate(drawn)]
    names = [{"id": i, "name": CLASSES[i]} for i in sorted(set(categories))]
    truth = {"images": images, "annotations": annotations, "categories": names}
    return coco_metrics(truth, detections).ap50


def learn(
    network: nn.Module,
    steps: int,
    lr: float,
    *,
    per_step: int = 2,
    seed: int = 0,
    pictures: Sequence[Picture] | None = None,
    watch: Callable[[int, dict[str, float]], None] | None = None,
) -> tuple[float, float]:
    """Train with AdamW on the eight pictures, the rate falling along a cosine, and return the loss before and after.

    Args:
        network: with ``loss(images, targets)``; left in evaluation mode.
        steps: optimiser steps.
        lr: largest learning rate, reached after 5 % of the steps.
        per_step: pictures per step.
        seed: of the order of pictures and of torch.
        pictures: others than ``chips()``, as many.
        watch: called with the step and its loss terms.

    Returns:
        Mean total loss of the first eight steps and of the last eight.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network.train()
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps, pct_start=0.05)
    totals, order = [], np.zeros(0, int)
    for step in range(steps):
        if len(order) < per_step:
            order = np.concatenate([order, rng.permutation(COUNT)])
        now, order = order[:per_step], order[per_step:]
        terms = network.loss(*batch(now.tolist(), pictures))
        total = sum(terms.values())
        optimiser.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        totals.append(float(total.detach()))
        if watch is not None:
            watch(step, {name: float(value.detach()) for name, value in terms.items()})
    network.eval()
    few = max(1, min(8, steps // 4))
    return float(np.mean(totals[:few])), float(np.mean(totals[-few:]))
