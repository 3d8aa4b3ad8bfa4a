"""Our SAM and SAM 2 image encoders against the packages' own fp32 forward passes, in one run on one machine.

    python benchmarks/encoder.py [sam-vit-b sam2-hiera-t ...] [--precision fp32 bf16] [--device cpu|cuda] [--batch 8]
        [--compile] [--rounds 3] [--threads N] [--clock wall|cpu]

Both hold the same weights (the package's module is the one that our encoder wraps) and take turns, with a large matrix
product of each number format between them, so that other work on the machine hits all alike; the best time of each
counts. `--clock cpu` runs on one thread and counts the processor's time in place of the wall's: what else the machine
does then hardly matters. FLOPs are the package's for one 1024 x 1024 chip, 2 per multiply-add, attention included;
"share" is their rate as a part of the best rate of the product in the same number format.

Weights are random, but shaped so that they exercise the arithmetic: attention scores have a standard deviation of 2
before softmax, and relative positions add 1.2; the image is a smooth field with edges and noise. Masks come from a
random decoder on random boxes. It has no meaningful zero, so each mask is cut at a quantile of the reference's logits
(10 to 60 % of the area) and the other side is cut at the same value.

Exit status 1 when a bar is missed (`BARS`, `SPEED_BAR`, `IOU_BAR`).
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch.utils.flop_counter import FlopCounterMode

from rsgeoseg.backbones.build import SAM2_BACKBONES, SAM_BACKBONES, build_encoder
from rsgeoseg.backbones.packed import PackedLinear, compute_dtype
from rsgeoseg.backbones.promptable import sam_decoder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

SIDE = 1024
FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}
BARS = {
    ("cpu", "sam-vit-b", "fp32"): 0.40,
    ("cpu", "sam2-hiera-t", "fp32"): 0.55,
    ("cuda", "sam-vit-b", "bf16"): 0.45,
    ("cuda", "sam-vit-h", "bf16"): 0.55,
}
"""Least share of the measured matrix product; on CUDA at batch 8."""
SPEED_BAR = 4.0
"""`sam-vit-b` on a CPU, in the number format that it chooses there, against the package in fp32."""
IOU_BAR = 0.99
"""Least mean IoU of masks, in every number format."""
QUANTILES = (0.4, 0.6, 0.75, 0.9)


class Clock:
    """Seconds that a call takes: on the wall, with the accelerator's queue empty, or of the processor."""

    def __init__(self, device: torch.device, kind: str) -> None:
        self.device = device
        self.now = time.process_time if kind == "cpu" else time.perf_counter

    def __call__(self, call: Callable[[], object]) -> float:
        """Time one call."""
        self._wait()
        start = self.now()
        call()
        self._wait()
        return self.now() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def shape_weights(encoder: torch.nn.Module, generator: torch.Generator) -> None:
    """Give every parameter a value that matters; see the head of this file."""
    with torch.no_grad():
        for name, value in encoder.named_parameters():
            if value.ndim == 1 and name.endswith("weight"):
                continue  # layer norms stay 1
            noise = torch.randn(value.shape, generator=generator)
            if "pos" in name:
                value.copy_(noise * 0.1)
            elif value.ndim == 1 or name == "no_mem_embed":
                value.copy_(noise * 0.02)
            else:
                value.copy_(noise * value[0].numel() ** -0.5)
            if name.endswith("qkv.weight"):
                value[: 2 * len(value) // 3] *= 1.5


def smooth_images(batch: int, generator: torch.Generator) -> Tensor:
    """Normalised images (batch, 3, side, side): smooth fields, straight edges, noise."""
    field = torch.randn((batch, 3, 12, 12), generator=generator)
    image = F.interpolate(field, size=(SIDE, SIDE), mode="bicubic")
    blocks = F.interpolate(torch.randn((batch, 3, 24, 24), generator=generator).sign(), size=(SIDE, SIDE))
    return image + 0.4 * blocks + 0.05 * torch.randn(image.shape, generator=generator)


def package_maps(encoder: Any, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Embedding and high-resolution maps by the package's own forward pass."""
    out = encoder.image_encoder(images)
    if isinstance(out, dict):
        *skips, deep = out["backbone_fpn"]
        return deep + encoder.no_mem_embed.view(1, -1, 1, 1), tuple(skips)
    return out, ()


def mask_ious(spec: Any, reference: Any, ours: Any, boxes: int, generator: torch.Generator) -> list[float]:
    """IoU of masks decoded from the maps of the package and from ours, both of the first image."""
    device = reference[0].device
    torch.manual_seed(0)
    decoder = sam_decoder(spec).to(device).eval()
    corners = torch.rand((boxes, 2, 2), generator=generator).sort(dim=1).values.flatten(1).to(device) * SIDE
    sparse, index = decoder.sparse_prompts(boxes=corners), torch.zeros(boxes, dtype=torch.int64, device=device)

    def decode(maps: tuple[Tensor, tuple[Tensor, ...]]) -> Tensor:
        embedding, skips = maps[0][:1], [x[:1] for x in maps[1]]
        grid = embedding.shape[-1]
        masks, _ = decoder(embedding, decoder.image_pe(grid, grid), index, sparse, decoder.no_mask(), skips or None)
        return F.interpolate(masks.unsqueeze(1), size=(SIDE, SIDE), mode="bilinear")[:, 0]

    wanted, got = decode(reference), decode(ours)
    ious = []
    for row in range(boxes):
        cut = wanted[row].flatten().sort().values[int(wanted[row].numel() * QUANTILES[row % len(QUANTILES)])]
        a, b = wanted[row] > cut, got[row] > cut
        ious.append(((a & b).sum() / (a | b).sum()).item())
    return ious


class Product:
    """One large matrix product, by torch's own linear and by the prepacked one."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        m, k, n = (8192, 8192, 8192) if device.type == "cuda" else (4096, 3072, 1024)
        x, weight = torch.randn(m, k, device=device).to(dtype), torch.randn(n, k, device=device).to(dtype)
        packed = PackedLinear(weight, None, dtype)
        self.gflop = 2 * m * k * n / 1e9
        self.calls = (lambda: F.linear(x, weight), lambda: packed(x))
        self.best = 0.0

    def measure(self, clock: Clock) -> None:
        """Keep the best rate seen, GFLOP/s."""
        self.best = max([self.best, *(self.gflop / clock(call) for call in self.calls for _ in range(3))])


def encoder_gflop(name: str) -> float:
    """Products of the package's encoder for one chip, 2 per multiply-add."""
    encoder: Any = build_encoder(name).to("meta")
    with FlopCounterMode(display=False) as counter:
        encoder.image_encoder(torch.empty(1, 3, SIDE, SIDE, device="meta"))
    return counter.get_total_flops() / 1e9


def measure(name: str, options: argparse.Namespace, products: dict[str, Product], clock: Clock) -> bool:
    """Time one encoder in every number format and print a line for each; True when no bar is missed."""
    generator = torch.Generator().manual_seed(0)
    original: Any = build_encoder(name, layers=())
    shape_weights(original, generator)
    original.to(options.device)
    images = smooth_images(options.batch, generator).to(options.device)
    ours: dict[str, Any] = {}
    for precision in options.precision:
        ours[precision] = copy.copy(original)  # the same parameters, prepared in another number format
        ours[precision].precision = precision
        ours[precision].compiled = options.compile
        ours[precision](images)
    package: list[float] = []
    own: dict[str, list[float]] = {precision: [] for precision in ours}
    for _ in range(options.rounds):
        package.append(clock(lambda: original.image_encoder(images)))
        for precision, encoder in ours.items():
            products[precision].measure(clock)
            own[precision] += [clock(lambda encoder=encoder: encoder(images)) for _ in range(2)]
    gflop = encoder_gflop(name) * options.batch
    report(name, "package fp32", gflop, package, products["fp32"], options)
    reference = package_maps(original, images)
    good = True
    for precision, encoder in ours.items():
        features = encoder(images)
        ious = mask_ious(encoder.spec, reference, (features.embedding, features.skips or ()), options.boxes, generator)
        error = ((features.embedding - reference[0]).norm() / reference[0].norm()).item()
        share = report(name, f"ours {precision}", gflop, own[precision], products[precision], options)
        ratio, mean = min(package) / min(own[precision]), sum(ious) / len(ious)
        print(f"    {ratio:.2f} x the package, relative error {error:.1e}, IoU mean {mean:.4f} least {min(ious):.4f}")
        good &= mean >= IOU_BAR and share >= BARS.get((options.device.type, name, precision), 0)
        chosen = FORMATS[precision] is compute_dtype(options.device)
        good &= not (chosen and options.device.type == "cpu" and name == "sam-vit-b") or ratio >= SPEED_BAR
    return good


def report(
    name: str, what: str, gflop: float, seconds: Sequence[float], product: Product, options: argparse.Namespace
) -> float:
    """Print one line and return the share of the product's rate."""
    best = min(seconds)
    share = gflop / best / product.best
    every = " ".join(f"{s:.3g}" for s in seconds)
    print(
        f"{name:14} {what:13} {options.batch / best:7.3f} chips/s, share {share:.2f} of {product.best:.0f} GFLOP/s ",
        end="",
    )
    print(f"({gflop:.0f} GFLOP; all: {every} s)", flush=True)
    return share


@torch.inference_mode()
def run(options: argparse.Namespace) -> int:
    torch.set_num_threads(1 if options.clock == "cpu" else options.threads)
    torch.manual_seed(0)
    clock = Clock(options.device, options.clock)
    products = {name: Product(dtype, options.device) for name, dtype in FORMATS.items()}
    for product in products.values():
        product.measure(clock)
    where = torch.cuda.get_device_name(options.device) if options.device.type == "cuda" else "cpu"
    threads, form = torch.get_num_threads(), ", compiled" if options.compile else ""
    print(f"{where}, {threads} threads, {options.clock} clock, torch {torch.__version__}, batch {options.batch}{form}")
    results = [measure(name, options, products, clock) for name in options.encoders]
    print("every bar is met" if all(results) else "a bar is missed")
    return 0 if all(results) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choices = (*SAM_BACKBONES, *SAM2_BACKBONES)
    parser.add_argument("encoders", nargs="*", help=f"of {', '.join(choices)}; default sam-vit-b sam2-hiera-t")
    parser.add_argument("--precision", nargs="+", choices=tuple(FORMATS), default=list(FORMATS))
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--batch", type=int, default=1, help="chips at once")
    parser.add_argument("--compile", action="store_true", help="with torch.compile, see rsgeoseg.backbones.compiled")
    parser.add_argument("--rounds", type=int, default=3, help="timings of the package; ours runs twice as often")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: every core")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--boxes", type=int, default=8, help="prompts of the mask comparison")
    options = parser.parse_args(arguments)
    options.encoders = options.encoders or ["sam-vit-b", "sam2-hiera-t"]
    if unknown := sorted(set(options.encoders) - set(choices)):
        parser.error(f"unknown encoder {unknown[0]}; choose from {', '.join(choices)}")
    return run(options)


if __name__ == "__main__":
    sys.exit(main())
