"""SAM and SAM 2 as the engine and interactive sessions call them: a chip and prompts in, instances out."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from rsgeoseg.backbones.chips import out_of_memory, refuse_prompts
from rsgeoseg.backbones.packed import compute_dtype
from rsgeoseg.backbones.sam_fit import cut_masks
from rsgeoseg.contract import Chip, Instances, ModelSpec, Prompts, is_out_of_memory
from rsgeoseg.errors import PromptError
from rsgeoseg.nn.masks import CELL, fetch_masks, pack_mask, tight

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from rsgeoseg.backbones.promptable import DecodedMasks, PromptableSam, SamScene

CLASSES = ("object",)
PROMPTS_AT_ONCE = 16
"""Boxes per call of SAM's decoder: more at once no longer fit a CPU's caches."""


@dataclass(frozen=True, slots=True)
class LookedAt:
    """A chip as the network sees it; prompt it as often as you like."""

    scene: SamScene
    """Its embedding, on the network's device."""
    valid: NDArray[np.bool_]
    """(h, w) of the chip."""


class PromptSegmenter:
    """A promptable network as :class:`rsgeoseg.contract.Promptable`.

    Every box makes one object; all points of a chip together make one more, which a mask prompt refines. A single
    point may mean several things: the best of three masks by predicted IoU is taken; otherwise one mask is decoded, as
    the packages recommend. The score is the predicted IoU. Boxes come first, in their order; an answer without a pixel
    is left out.

    Args:
        network: on its device.
        spec: what it is; ``accepts`` points, boxes and mask.
        autocast: run in bfloat16 where torch says it is safe; None = where the device multiplies it natively.
    """

    def __init__(self, network: PromptableSam, spec: ModelSpec, *, autocast: bool | None = None) -> None:
        self.network = network.eval()
        self.spec = spec
        self.device = next(network.parameters()).device
        self.autocast = compute_dtype(self.device) is torch.bfloat16 if autocast is None else autocast
        self.batch_size = 1
        """Chips at once that the engine starts with; prompts, not chips, fill the device."""

    def segment(self, chips: Sequence[Chip], prompts: Sequence[Prompts | None] | None = None) -> list[Instances]:
        """Answer each chip's prompts; see ``contract.Segmenter.segment``. A chip without prompts has no objects."""
        refuse_prompts(self.spec, prompts)
        asked = prompts or [None] * len(chips)
        return [
            self.decode(self.encode(chip), prompt)
            if prompt is not None and prompt.kinds() and chip.valid.any()
            else Instances.empty()
            for chip, prompt in zip(chips, asked, strict=True)
        ]

    def encode(self, chip: Chip) -> LookedAt:
        """Encode a chip into a value to prompt, again and again.

        Raises:
            OutOfMemory: the chip does not fit the device.
        """
        with self._running(chip.valid.shape):
            return LookedAt(self.network.see([chip]), chip.valid)

    def decode(self, embedding: LookedAt, prompts: Prompts) -> Instances:
        """Turn prompts, in pixels of the encoded chip, into objects of class 0.

        Raises:
            PromptError: a prompt that cannot be meant: its message says which and why.
            OutOfMemory: the prompts do not fit the device.
        """
        refuse_prompts(self.spec, [prompts])
        _check(prompts, embedding.valid.shape)
        answers = []
        with self._running(embedding.valid.shape):
            # a mask refines the points' object where there are points, else the one box
            mask = None if prompts.mask is None else self._low_resolution(prompts.mask, embedding.scene)
            of_points = prompts.points.size > 0
            for start in range(0, len(prompts.boxes), PROMPTS_AT_ONCE):
                boxes = self._tensor(prompts.boxes[start : start + PROMPTS_AT_ONCE])
                answers.append(self._ask(embedding.scene, boxes=boxes, masks=None if of_points else mask))
            if of_points:
                answers.append(self._ask_points(embedding.scene, prompts, mask))
            elif mask is not None and not len(prompts.boxes):
                answers.append(self._ask(embedding.scene, masks=mask))
            return _instances(answers, embedding)

    def _ask_points(self, scene: SamScene, prompts: Prompts, mask: Tensor | None) -> DecodedMasks:
        labels = torch.from_numpy(np.asarray(prompts.point_labels, np.int64)).to(self.device).unsqueeze(0)
        doubtful = len(prompts.points) == 1 and mask is None
        points = self._tensor(prompts.points).unsqueeze(0)
        return self._ask(scene, points=points, point_labels=labels, masks=mask, multimask=doubtful).best()

    def _ask(
        self,
        scene: SamScene,
        *,
        points: Tensor | None = None,
        point_labels: Tensor | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        multimask: bool = False,
    ) -> DecodedMasks:
        image = torch.zeros(1 if boxes is None else len(boxes), dtype=torch.int64, device=self.device)
        return self.network.decode(
            scene, image, points=points, point_labels=point_labels, boxes=boxes, masks=masks, multimask=multimask
        )

    def _low_resolution(self, mask: NDArray[np.float32], scene: SamScene) -> Tensor:
        """Logits (h, w) of the chip as the decoder takes them, (1, 1, H/4, W/4); padding is background."""
        (h, w), given = mask.shape, self._tensor(mask)
        lowest = float(min(mask.min(), 0.0))
        if scene.fit is not None:
            padded = scene.fit.prompt_mask(given, lowest)
        else:
            padded = F.pad(given, (0, scene.size[1] - w, 0, scene.size[0] - h), value=lowest)
        return F.avg_pool2d(padded[None, None], CELL)

    def _tensor(self, values: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(self.device)

    @contextmanager
    def _running(self, shape: tuple[int, ...]) -> Iterator[None]:
        """Run without gradients, in the number format of the device, and name its memory's end as contracted."""
        try:
            with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise out_of_memory(error, f"a chip of {shape} does not fit", self.device) from None


def _check(prompts: Prompts, shape: tuple[int, ...]) -> None:
    """Refuse prompts that cannot be meant."""
    points, labels, boxes, mask = prompts.points, prompts.point_labels, prompts.boxes, prompts.mask
    bad = ""
    if points.size and (points.ndim != 2 or points.shape[1] != 2 or labels.shape != points.shape[:1]):
        bad = f"points {points.shape} with labels {labels.shape}; give (P, 2) and (P,)"
    elif points.size and not (np.isfinite(points).all() and np.isin(labels, (0, 1)).all()):
        bad = "points need finite x y, and labels 1 (object) or 0 (background)"
    elif boxes.size and (boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all()):
        bad = f"boxes {boxes.shape}; give (B, 4) finite x0 y0 x1 y1"
    elif boxes.size and not (boxes[:, :2] < boxes[:, 2:]).all():
        bad = "a box needs x0 < x1 and y0 < y1"
    elif mask is not None and (mask.shape != shape or not np.isfinite(mask).all()):
        bad = f"a mask of {mask.shape}; give finite logits of the chip's size {shape}"
    elif mask is not None and not points.size and len(boxes) > 1:
        bad = f"a mask refines points or one box, not {len(boxes)} boxes"
    if bad:
        msg = f"prompts cannot be used: {bad}"
        raise PromptError(msg)


def _instances(answers: Sequence[DecodedMasks], chip: LookedAt) -> Instances:
    """Masks (P, 1, H/4, W/4) of one chip to instances, those without a pixel left out."""
    valid, found = chip.valid, []
    for answer in answers:
        cuts = cut_masks(answer.logits[:, 0], (valid.shape[0], valid.shape[1]), chip.scene.fit)
        found += [(cut, score) for cut, score in zip(cuts, answer.iou[:, 0].tolist(), strict=True) if cut is not None]
    shapes = [(cut.logits.shape[0], cut.logits.shape[1]) for cut, _ in found]
    fetched = fetch_masks([pack_mask(cut.logits > 0) for cut, _ in found], shapes)
    boxes, masks, scores = [], [], []
    for (cut, score), above in zip(found, fetched, strict=True):
        (x, y), (h, w) = cut.corner, above.shape
        inside = above & valid[y : y + h, x : x + w]
        if inside.any():
            box, mask = tight(inside, (x, y))
            boxes.append(box)
            masks.append(mask)
            scores.append(score)
    return Instances(
        boxes=np.array(boxes, np.int32).reshape(-1, 4),
        masks=masks,
        scores=np.array(scores, np.float32).clip(0, 1),
        labels=np.zeros(len(masks), np.int64),
    )


def prompt_segmenter(
    network: PromptableSam, *, name: str, source: str, score_threshold: float = 0.0, **spec: Any
) -> PromptSegmenter:
    """Wrap a network under a model's name.

    Args:
        network: on its device.
        name: registry name.
        source: paper and upstream code.
        score_threshold: what is asked for is shown, however unsure: 0.
        spec: further fields of ``ModelSpec``.
    """
    full = ModelSpec(
        name=name,
        classes=CLASSES,
        score_threshold=score_threshold,
        source=source,
        accepts=frozenset({"points", "boxes", "mask"}),
        needs_prompts=True,
        **{"chip_size": min(network.encoder.spec.image_size, 1024), "overlap": 128, **spec},
    )
    return PromptSegmenter(network, full)
