"""From chips to instances with SAM-det: the engine's side of the model.

Inference of the released code (KyanChen/RSPrompter f4e73c3, ``samdet.py``): class probability above 0.05, class-wise
NMS at IoU 0.5, the best 100 boxes; each box prompts SAM for one mask; score and label are the detector's.

Boxes given as prompts take the detector's place. What they show is then what the detector's box head calls them, with
score 1: who draws a box has found the object. Boxes with known labels (the paper's Table XI) go to
:meth:`DetSegmenter.segment_boxes`; that is the only way to have them used, no setting does it silently.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from rsgeoseg.backbones.chips import images_of, refuse_prompts, segment_alike
from rsgeoseg.backbones.network_segmenter import NetworkSegmenter
from rsgeoseg.backbones.sam_fit import cut_masks
from rsgeoseg.contract import Chip, Instances, Prompts
from rsgeoseg.errors import PromptError
from rsgeoseg.models.sam_det.network import SamDet
from rsgeoseg.nn.box_head import Detections
from rsgeoseg.nn.masks import crop_cut

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from rsgeoseg.backbones.features import Features
    from rsgeoseg.backbones.promptable import SamScene
    from rsgeoseg.nn.masks import CutOut

BOXES_AT_ONCE = 16
"""Boxes per call of SAM's decoder: more at once is slower on a CPU (caches), and no faster on a GPU per box."""
LOWEST_SCORE = 0.05
"""Lowest class probability of a detection (released ``test_cfg``)."""


class DetSegmenter(NetworkSegmenter[SamDet]):
    """SAM-det as the engine calls it."""

    def segment(self, chips: Sequence[Chip], prompts: Sequence[Prompts | None] | None = None) -> list[Instances]:
        """Find the objects of each chip, or those in the boxes given for it; see ``contract.Segmenter.segment``.

        With boxes, instances stand in the order of the boxes; a box in which SAM sees nothing has none.

        Raises:
            PromptError: prompts of another kind, or a box without an inside.
        """
        refuse_prompts(self.spec, prompts)
        given = [None if prompt is None or not len(prompt.boxes) else prompt.boxes for prompt in prompts or ()]
        given += [None] * (len(chips) - len(given))
        free = [chip for chip, boxes in zip(chips, given, strict=True) if boxes is None]
        found = iter(segment_alike(free, self._find, device=self.device, autocast=self.autocast))
        return [
            next(found) if boxes is None else self._prompted(chip, boxes, None)
            for chip, boxes in zip(chips, given, strict=True)
        ]

    def segment_boxes(self, chip: Chip, boxes: NDArray[np.float32], labels: NDArray[np.int64]) -> Instances:
        """Segment boxes whose labels are known: with true boxes, the most that SAM-det can reach (paper Table XI).

        Args:
            chip: one chip.
            boxes: (N, 4) x0 y0 x1 y1 chip pixels.
            labels: (N,) indices into ``spec.classes``.

        Returns:
            In the order of the boxes, score 1; a box in which SAM sees nothing has no instance.

        Raises:
            PromptError: boxes and labels differ in number, a label is unknown, or a box has no inside.
        """
        if len(boxes) != len(labels) or not all(0 <= label < len(self.spec.classes) for label in labels):
            msg = f"{len(boxes)} boxes need as many labels of 0-{len(self.spec.classes) - 1}, got {list(labels)}"
            raise PromptError(msg)
        return self._prompted(chip, boxes, torch.as_tensor(labels, dtype=torch.int64, device=self.device))

    def _find(self, chips: list[Chip]) -> list[Instances]:
        """Detect, then let SAM look at the chips that have boxes: its encoder is the dearest part."""
        network = self.network
        features, size = self._features(chips)
        lowest = max(self.lowest, LOWEST_SCORE)
        found = network.detector.find(network.pyramid(features), size, score_threshold=lowest, most=self.max_instances)
        results = [Instances.empty() for _ in chips]
        busy = [index for index, detections in enumerate(found) if len(detections.boxes)]
        if not busy:
            return results
        shared = network.trunk is None
        scene = network.scene(features, size) if shared else self._look([chips[index] for index in busy])
        for row, index in enumerate(busy):
            masks = self._masks(scene, index if shared else row, found[index].boxes, chips[index].valid.shape)
            results[index] = _instances(found[index], masks, chips[index].valid)
        return results

    def _prompted(self, chip: Chip, boxes: NDArray[np.float32], labels: Tensor | None) -> Instances:
        """Segment given boxes; without labels they get those of the box head."""
        corners = _checked(boxes).to(self.device)

        def forward(chips: list[Chip]) -> list[Instances]:
            names = self._name(chips, corners) if labels is None else labels
            masks = self._masks(self._look(chips), 0, corners, chip.valid.shape)
            sure = torch.ones(len(corners), device=self.device)
            return [_instances(Detections(corners, sure, names), masks, chip.valid)]

        return segment_alike([chip], forward, device=self.device, autocast=self.autocast)[0]

    def _name(self, chips: list[Chip], boxes: Tensor) -> Tensor:
        """Label the boxes of one chip by the box head, (N,) int64."""
        features, _ = self._features(chips)
        class_logits, _ = self.network.detector.classify(self.network.pyramid(features), [boxes])
        return class_logits[:, :-1].argmax(1)

    def _features(self, chips: list[Chip]) -> tuple[Features, tuple[int, int]]:
        """Features of the detector's trunk, and the H, W it saw."""
        trunk = self.network.trunk or self.network.encoder
        images = images_of(chips, trunk.spec, self.device)
        return trunk(images), (images.shape[-2], images.shape[-1])

    def _look(self, chips: list[Chip]) -> SamScene:
        if self.network.trunk is not None:
            return self.network.see(chips)
        return self.network.look(images_of(chips, self.network.encoder.spec, self.device))  # as the detector sees them

    def _masks(self, scene: SamScene, image: int, boxes: Tensor, shape: tuple[int, ...]) -> list[CutOut | None]:
        """Cut the masks of one image's boxes out; ``shape`` is h, w of the chip."""
        alone, masks = scene.one(image), []
        for part in torch.split(boxes, BOXES_AT_ONCE) if len(boxes) else ():
            first = torch.zeros(len(part), dtype=torch.int64, device=self.device)
            logits = self.network.decode(alone, first, boxes=part).logits[:, 0]
            masks += cut_masks(logits, (shape[0], shape[1]), scene.fit)
        return masks


def _checked(boxes: NDArray[np.float32]) -> Tensor:
    """Boxes as a tensor (N, 4), each with an inside."""
    corners = torch.as_tensor(boxes, dtype=torch.float32)
    if corners.ndim != 2 or corners.shape[1] != 4:
        msg = f"box prompts need an array (N, 4) of x0 y0 x1 y1, got {tuple(corners.shape)}"
        raise PromptError(msg)
    if not (corners[:, 2:] > corners[:, :2]).all() or not torch.isfinite(corners).all():
        msg = "a box prompt needs x0 < x1 and y0 < y1, in chip pixels; leave out boxes without an inside"
        raise PromptError(msg)
    return corners


def _instances(found: Detections, cuts: Sequence[CutOut | None], valid: NDArray[np.bool_]) -> Instances:
    """Crop the masks of one chip to their boxes; boxes without a valid pixel of mask are left out."""
    cropped = [crop_cut(cut, valid) for cut in cuts]
    kept = [index for index, (*_, quality) in enumerate(cropped) if quality > 0]
    return Instances(
        boxes=np.array([cropped[i][0] for i in kept], np.int32).reshape(-1, 4),
        masks=[cropped[i][1] for i in kept],
        scores=found.scores.float().cpu().numpy()[kept],
        labels=found.labels.cpu().numpy()[kept],
    )
