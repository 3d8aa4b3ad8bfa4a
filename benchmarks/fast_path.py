"""The fast path against the reference path: do number formats and prepared encoders change what is found?

    python benchmarks/fast_path.py [IMAGES] [--model rsprompter-query] [--weights ...] [--count 40] [--side 512]
    python benchmarks/fast_path.py [IMAGES] --model sam-prompt|sam-everything [--backbone sam-vit-b] [--weights ...]

Fast is the model as it runs on this machine: bf16 where the processor multiplies it, encoders with prepared weights.
Reference is the same model with every product in fp32, and the package's own forward pass in place of ours where the
encoder is SAM's or SAM 2's. Chips are cut from generated scenes, and from the pictures of the folder IMAGES when one is
given (half and half). `sam-prompt` is asked with a box around every generated object, or with a grid of boxes on
pictures; `sam-everything` with its grid of points.

Without --weights a model without bundled weights gets random ones, shaped so that masks have contrast: their qualities
lie close together and near every threshold, so the number of masks says little; it is then printed and not judged.

A mask's partner is the one of the other path that makes the sum of IoUs largest; without a partner its IoU is 0. Exit
status 1 when a bar is missed: mean IoU at least 0.99, another number of masks on at most 5 % of the chips.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import rasterio
import torch
import torch.nn.functional as F  # noqa: N812
from scipy.optimize import linear_sum_assignment

import rsgeoseg
from rsgeoseg.backbones.everything import EverythingConfig
from rsgeoseg.backbones.features import Encoder, Features
from rsgeoseg.backbones.packed import compute_dtype
from rsgeoseg.contract import Chip, Instances, Prompts
from rsgeoseg.testing.scenes import generate_scene

if TYPE_CHECKING:
    from collections.abc import Sequence

IOU_BAR = 0.99
COUNT_BAR = 0.05
PROMPTABLE = ("sam-prompt", "sam2-prompt", "sam-everything")


@dataclass(frozen=True)
class Case:
    """A chip and, for models that are asked, its boxes."""

    chip: Chip
    boxes: np.ndarray[Any, Any]


class PackageEncoder(Encoder):
    """The package's own forward pass in fp32 on the parameters of one of our encoders."""

    def __init__(self, ours: Any) -> None:
        super().__init__()
        self.ours = ours
        self.spec = ours.spec

    def forward(self, images: torch.Tensor) -> Features:
        """Encode normalised images (B, 3, H, W)."""
        encoder = self.ours.image_encoder
        given = {}
        if hasattr(encoder, "pos_embed"):  # SAM's ViT has positions for one size only: resized as ours are
            size = [side // self.spec.embedding.stride for side in images.shape[-2:]]
            resized = F.interpolate(encoder.pos_embed.permute(0, 3, 1, 2), size=size, mode="bicubic")
            given = {"pos_embed": resized.permute(0, 2, 3, 1)}
        with torch.autocast(images.device.type, enabled=False):
            out = torch.func.functional_call(encoder, given, (images,))
        if not isinstance(out, dict):
            return Features(out, ())
        fine, middle, deep = out["backbone_fpn"]
        return Features(deep + self.ours.no_mem_embed.view(1, -1, 1, 1), (), (fine, middle))


def generated_cases(count: int, side: int) -> list[Case]:
    """Chips of scenes with 20 objects per Mpx, and the boxes of the objects that lie inside."""
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(count):
            path = Path(folder) / f"{seed}.tif"
            truth = generate_scene(path, height=side, width=side, seed=seed, density=30.0)
            with rasterio.open(path) as file:
                image = file.read()
            boxes = [thing.box for thing in truth.objects()]
            cases.append(Case(whole_chip(image), np.array(boxes, np.float32).reshape(-1, 4)))
    return cases


def picture_cases(folder: Path, count: int, side: int) -> list[Case]:
    """Chips from the middle of pictures, spread over the folder by name, with a grid of boxes."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in {".jpg", ".jpeg", ".png", ".tif"})
    cases = []
    for path in paths[:: max(1, len(paths) // count)][:count]:
        image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        y, x = (max(0, (length - side) // 2) for length in image.shape[:2])
        image = np.ascontiguousarray(image[y : y + side, x : x + side].transpose(2, 0, 1))
        ys, xs = (grid.ravel() for grid in np.mgrid[0 : image.shape[1] - 95 : 128, 0 : image.shape[2] - 95 : 128])
        cases.append(Case(whole_chip(image), np.stack([xs, ys, xs + 95, ys + 95], 1).astype(np.float32)))
    return cases


def whole_chip(image: np.ndarray[Any, Any]) -> Chip:
    return Chip(image=image, valid=np.ones(image.shape[1:], np.bool_))


def random_model(name: str, backbone: str, side: int) -> Any:
    """A promptable model with random weights whose masks have contrast."""
    from encoder import shape_weights

    from rsgeoseg.backbones.promptable import build_promptable
    from rsgeoseg.models import sam2_prompt, sam_everything, sam_prompt

    torch.manual_seed(0)
    network = build_promptable(backbone, image_size=side)
    shape_weights(network.encoder, torch.Generator().manual_seed(0))
    decoder: Any = network.sam.mask_decoder
    for mlp in decoder.output_hypernetworks_mlps:
        mlp.layers[-1].weight.data *= 20
        mlp.layers[-1].bias.data -= 4
    torch.nn.init.constant_(decoder.iou_prediction_head.layers[-1].bias, 0.9)
    if name == "sam-everything":
        config = EverythingConfig(points_per_side=8, pred_iou=0.8, stability=0.3, stability_offset=0.05)
        return sam_everything.segmenter(network, config=config)
    return (sam2_prompt if name == "sam2-prompt" else sam_prompt).segmenter(network)


def reference_of(model: Any) -> Any:
    """The same model, every product in fp32, SAM's encoder as the package runs it."""
    reference = copy.copy(model)
    reference.autocast = False
    if hasattr(model.network.encoder, "image_encoder"):
        reference.network = copy.copy(model.network)
        reference.network._modules = {**model.network._modules, "encoder": PackageEncoder(model.network.encoder)}  # noqa: SLF001
    return reference


def with_exact_maps(model: Any) -> Any:
    """The same model with everything that looks at the image, up to the queries or prompts, outside autocast."""
    exact, network = copy.copy(model), copy.copy(model.network)
    look = model.network.look

    def exactly(*arguments: Any, **options: Any) -> Any:
        with torch.autocast(model.device.type, enabled=False):
            return look(*arguments, **options)

    object.__setattr__(network, "look", exactly)
    exact.network = network
    return exact


def partner_ious(found: Instances, expected: Instances, shape: tuple[int, ...]) -> list[float]:
    """IoU of every mask of either side with its partner, 0 without one."""
    sides = [np.zeros((len(side), *shape), np.bool_) for side in (found, expected)]
    for canvas, side in zip(sides, (found, expected), strict=True):
        for row, (x0, y0, x1, y1) in enumerate(side.boxes):
            canvas[row, y0:y1, x0:x1] = side.masks[row]
    a, b = (canvas.reshape(len(canvas), math.prod(shape)).astype(np.float32) for canvas in sides)
    both = a @ b.T
    iou = both / np.maximum(a.sum(1)[:, None] + b.sum(1)[None, :] - both, 1)
    pairs = linear_sum_assignment(-iou)
    return [*iou[pairs].tolist(), *([0.0] * (max(iou.shape) - min(iou.shape)))]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="?", type=Path, help="folder of pictures; none = generated scenes alone")
    parser.add_argument("--model", default="rsprompter-query")
    parser.add_argument("--weights", help="id or path; none = bundled, or random where there are none")
    parser.add_argument("--backbone", default="sam-vit-b", help="of random weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--exact-maps", action="store_true", help="fast path with the image's maps in fp32")
    parser.add_argument("--count", type=int, default=40, help="chips")
    parser.add_argument("--side", type=int, default=512, help="of a chip, pixels")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    random = options.weights is None and options.model in PROMPTABLE
    if random:
        model = random_model(options.model, options.backbone, options.side)
    else:
        model = rsgeoseg.load_model(options.model, weights=options.weights, device=options.device)
    reference = reference_of(model)
    if options.exact_maps:
        model = with_exact_maps(model)
    pictures = [] if options.images is None else picture_cases(options.images, options.count // 2, options.side)
    cases = [*generated_cases(options.count - len(pictures), options.side), *pictures]
    ious, changed = [], 0
    for case in cases:
        asked = [Prompts(boxes=case.boxes)] if "boxes" in model.spec.accepts else None
        (found,), (expected,) = (path.segment([case.chip], asked) for path in (model, reference))
        ious += partner_ious(found, expected, case.chip.valid.shape)
        changed += len(found) != len(expected)
    mean, share = float(np.mean(ious)), changed / len(cases)
    exact = float(np.mean(np.array(ious) == 1))
    fast = str(compute_dtype(model.device))[6:]
    what = f"{options.model} on {model.network.encoder.spec.name}, {'random' if random else 'trained'} weights"
    print(f"{what}, {fast} against float32: {len(cases)} chips ({len(pictures)} pictures), {len(ious)} masks, ", end="")
    print(f"mean IoU {mean:.4f} ({exact:.0%} equal), other number of masks on {changed} chips = {share:.1%}")
    return 0 if mean >= IOU_BAR and (random or share <= COUNT_BAR) else 1


if __name__ == "__main__":
    sys.exit(main())
