"""A frozen encoder that remembers on disk what it saw: the same crop is encoded once.

Features are found by the digest of the pixels and of the encoder's own tensors, so a cache can neither be stale nor be
mixed up with another encoder's. They are kept in float16.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rsgeoseg.backbones.features import Encoder, Features

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


class FeatureCache:
    """Stands in for an encoder's ``forward``.

    Args:
        encoder: frozen; its ``forward`` is replaced on this object.
        folder: where the features go; made when needed.
    """

    def __init__(self, encoder: Encoder, folder: Path) -> None:
        self.compute = encoder.forward
        state = encoder.state_dict()
        total = hashlib.sha256()
        for name in sorted(state):
            total.update(name.encode() + _bytes(state[name]))
        self.folder = folder / total.hexdigest()[:16]
        self.hits = 0
        self.misses = 0
        encoder.forward = self

    def __call__(self, images: Tensor) -> Features:
        """Encode normalised images (B, 3, H, W) one by one, or read what was encoded before."""
        parts = [self._one(image[None]) for image in images]
        skips: Any = None
        if parts[0].skips is not None:
            skips = tuple(torch.cat([part.skips[i] for part in parts if part.skips]) for i in range(2))
        return Features(
            embedding=torch.cat([part.embedding for part in parts]),
            hidden=tuple(torch.cat(maps) for maps in zip(*(part.hidden for part in parts), strict=True)),
            skips=skips,
        )

    def _one(self, image: Tensor) -> Features:
        path = self.folder / f"{hashlib.sha256(_bytes(image)).hexdigest()}.safetensors"
        try:
            stored = {name: x.to(image.device, torch.float32) for name, x in load_file(path).items()}
        except (OSError, SafetensorError):  # not there, or cut short when a training was killed
            return self._compute(image, path)
        self.hits += 1
        return _unpack(stored)

    def _compute(self, image: Tensor, path: Path) -> Features:
        self.misses += 1
        with torch.no_grad():
            features = self.compute(image)
        packed = {name: x.detach().to("cpu", torch.float16).contiguous() for name, x in _pack(features).items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{os.getpid()}.part")
        save_file(packed, beside)
        os.replace(beside, path)  # noqa: PTH105  (atomic on every system)
        # what is learned from must not depend on whether it was remembered
        return _unpack({name: x.to(image.device, torch.float32) for name, x in packed.items()})


def _pack(features: Features) -> dict[str, Tensor]:
    named = {"embedding": features.embedding}
    named |= {f"hidden{index:02d}": x for index, x in enumerate(features.hidden)}
    named |= {f"skip{index}": x for index, x in enumerate(features.skips or ())}
    return named


def _unpack(named: dict[str, Tensor]) -> Features:
    skips = (named["skip0"], named["skip1"]) if "skip0" in named else None
    hidden = tuple(named[name] for name in sorted(named) if name.startswith("hidden"))
    return Features(embedding=named["embedding"], hidden=hidden, skips=skips)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
