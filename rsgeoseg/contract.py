"""What the map wing and the model wing say to each other: numpy values and three small protocols.

Pixel frame everywhere: x to the right, y down, (0, 0) is the outer corner of the upper-left pixel, boxes are
half-open ``x0 y0 x1 y1``. A chip carries no CRS: a model cannot see where on Earth it looks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

PromptKind = Literal["text", "points", "boxes", "mask"]


class OutOfMemory(MemoryError):  # noqa: N818  (named for what it is, as the built-in is)
    """A segmenter ran out of device memory on a batch; the engine halves the batch and tries again."""


_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed", "allocation_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory ran out, of the device or of the machine.

    Frameworks have no common type for it: torch raises ``OutOfMemoryError`` from its own allocator on CUDA, but a plain
    RuntimeError from its CPU allocator, from MPS, from the CUDA driver, and where cuBLAS or cuDNN get no workspace
    (``CUBLAS_STATUS_ALLOC_FAILED``, ``CUDNN_STATUS_ALLOC_FAILED``, since cuDNN 9 ``..._DEVICE_ALLOCATION_FAILED``).
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _MEMORY_WORDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """A window of a scene, as a model sees it."""

    image: NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.float32]
    """(bands, h, w). uint8 0-255 after the scene's stretch, or raw values where the model asks for them."""
    valid: NDArray[np.bool_]
    """(h, w), True where the scene has data; not to be written to, since chips may share it."""
    gsd: float | None = None
    """Ground sampling distance in metres per pixel; None where the scene has no CRS."""

    def __post_init__(self) -> None:
        """Check shapes once, here."""
        if self.image.ndim != 3 or self.valid.shape != self.image.shape[1:] or self.valid.dtype != np.bool_:
            shapes = f"{self.image.shape} and {self.valid.shape}"
            msg = f"a chip needs image (bands, h, w) and bool valid (h, w), got {shapes}"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """What a user points at, in chip pixels."""

    points: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    """(P, 2) x y."""
    point_labels: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0,), np.int64))
    """(P,) 1 = object, 0 = background."""
    boxes: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    """(B, 4) x0 y0 x1 y1."""
    mask: NDArray[np.float32] | None = None
    """(h, w) logits."""
    text: str | None = None
    """A referring expression."""

    def kinds(self) -> frozenset[PromptKind]:
        """Kinds of prompt that are present."""
        found: set[PromptKind] = set()
        if self.points.size:
            found.add("points")
        if self.boxes.size:
            found.add("boxes")
        if self.mask is not None:
            found.add("mask")
        if self.text:
            found.add("text")
        return frozenset(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Instances:
    """Objects found in one chip; all fields have the same length N."""

    boxes: NDArray[np.int32]
    """(N, 4) half-open x0 y0 x1 y1 in chip pixels, tight around the mask, never empty."""
    masks: list[NDArray[np.bool_]]
    """N arrays (y1 - y0, x1 - x0): each mask cropped to its box."""
    scores: NDArray[np.float32]
    """(N,) in [0, 1]."""
    labels: NDArray[np.int64]
    """(N,) indices into ``ModelSpec.classes``."""

    def __post_init__(self) -> None:
        """Check lengths and crop sizes once, here."""
        n = len(self.boxes)
        if self.boxes.shape != (n, 4) or not (len(self.masks) == len(self.scores) == len(self.labels) == n):
            lengths = [len(x) for x in (self.boxes, self.masks, self.scores, self.labels)]
            msg = f"instances need equal lengths, got {lengths}"
            raise ValueError(msg)
        for (x0, y0, x1, y1), mask in zip(self.boxes.tolist(), self.masks, strict=True):
            if mask.shape != (y1 - y0, x1 - x0) or mask.size == 0:
                msg = f"mask {mask.shape} does not fit box {(x0, y0, x1, y1)}"
                raise ValueError(msg)

    def __len__(self) -> int:
        """Count objects."""
        return len(self.boxes)

    @staticmethod
    def empty() -> Instances:
        """No objects."""
        return Instances(
            boxes=np.zeros((0, 4), np.int32), masks=[], scores=np.zeros(0, np.float32), labels=np.zeros(0, np.int64)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """What a model is and what it needs of its chips."""

    name: str
    """Registry name, e.g. ``rsprompter-query``."""
    classes: tuple[str, ...]
    """Class names; ``Instances.labels`` index them."""
    chip_size: int
    """Side of the square chips it was trained for, pixels."""
    bands: int = 3
    """Number of bands."""
    value_range: Literal["uint8", "raw"] = "uint8"
    """``uint8``: 0-255 after the scene's stretch; ``raw``: values as in the file."""
    gsd_range: tuple[float, float] | None = None
    """Metres per pixel the weights were trained on, smallest and largest; None = any."""
    accepts: frozenset[PromptKind] = frozenset()
    """Kinds of prompt ``segment`` takes; empty = automatic."""
    needs_prompts: bool = False
    """Without prompts it finds nothing; a run over a scene refuses it."""
    source: str = ""
    """Paper and upstream code."""
    licence: str = ""
    """Licence of the weights."""
    weights_id: str = ""
    """Name and sha256 of the loaded weights, for the run record; empty = random."""
    overlap: int = 128
    """Default overlap between neighbouring chips, pixels."""
    score_threshold: float = 0.5
    """Default score below which objects are dropped from a map."""


@runtime_checkable
class Segmenter(Protocol):
    """A model that finds objects in chips."""

    spec: ModelSpec

    def segment(self, chips: Sequence[Chip], prompts: Sequence[Prompts | None] | None = None) -> list[Instances]:
        """Find the objects of each chip.

        Args:
            chips: any number, each of any size up to ``spec.chip_size`` (smaller at a small scene's edge).
            prompts: one per chip, or None.

        Returns:
            One ``Instances`` per chip, in order, never on invalid pixels.

        Raises:
            OutOfMemory: the batch does not fit the device.
            PromptError: prompts of a kind the model does not accept.
        """
        ...


E = TypeVar("E")


class Promptable(Segmenter, Protocol[E]):
    """A segmenter whose image embedding the caller may keep and prompt again."""

    def encode(self, chip: Chip) -> E:
        """Encode a chip into an opaque value that the caller keeps."""
        ...

    def decode(self, embedding: E, prompts: Prompts) -> Instances:
        """Turn prompts into objects."""
        ...
