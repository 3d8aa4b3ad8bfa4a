"""From chips to instances with RSPrompter-query: the engine's side of the model.

Inference of the released code (KyanChen/RSPrompter f4e73c3, ``RSMaskFormerFusionHead``): score = class probability
times the mean mask probability over the mask's pixels; the best ``max_instances`` (query, class) pairs stay, no NMS.
Two savings that leave the result unchanged: SAM's decoder runs on the last prediction set only, and only for queries
whose class probability can still reach the score threshold, because the other factor is at most one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from rsgeoseg.contract import Chip, Instances, ModelSpec, OutOfMemory, Prompts
from rsgeoseg.errors import PromptError
from rsgeoseg.nn.centres import strongest_peaks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from rsgeoseg.models.rsprompter_query.network import RSPrompterQuery, Scene

PROMPTS_AT_ONCE = 16
"""Prompts per call of SAM's decoder: more at once is slower on a CPU (caches), and no faster on a GPU per prompt."""
SMALLEST_PART = 0.5
"""Parts of a mask with a smaller share of the largest part's area are left out (not in the paper): a dot product lights
up on like pixels nearby, and specks cost 0.02 mask AP on NWPU VHR-10 and look wrong on a map."""
QUIET_CENTRE = 0.02
"""A centre with a lower class probability starts no query."""


class QuerySegmenter:
    """RSPrompter-query as the engine calls it.

    Args:
        network: the network, in evaluation mode on its device.
        spec: what it is; its ``score_threshold`` also bounds the work.
        max_instances: most objects per chip.
        max_queries: most centre queries per chip, for networks that find their queries.
        autocast: run in bfloat16 where it is fast.
    """

    def __init__(
        self,
        network: RSPrompterQuery,
        spec: ModelSpec,
        *,
        max_instances: int = 300,
        max_queries: int = 300,
        autocast: bool = False,
    ) -> None:
        self.network = network.eval()
        self.spec = spec
        self.max_instances = max_instances
        self.max_queries = max_queries
        self.autocast = autocast
        self.device = next(network.parameters()).device
        self.batch_size = 8 if self.device.type == "cuda" else 1
        """Chips at once that the engine starts with: on a CPU more would only take memory."""

    def at_threshold(self, score_threshold: float) -> QuerySegmenter:
        """Give the same model with another score threshold; objects below it need not be found."""
        return QuerySegmenter(
            self.network,
            replace(self.spec, score_threshold=score_threshold),
            max_instances=self.max_instances,
            max_queries=self.max_queries,
            autocast=self.autocast,
        )

    def segment(self, chips: Sequence[Chip], prompts: Sequence[Prompts | None] | None = None) -> list[Instances]:
        """Find the objects of each chip; see ``contract.Segmenter.segment``."""
        if prompts is not None and any(p is not None and p.kinds() for p in prompts):
            msg = f"{self.spec.name} finds its own prompts; remove the prompts or use a promptable model"
            raise PromptError(msg)
        found: list[Instances | None] = [None] * len(chips)
        groups: dict[tuple[int, int], list[int]] = {}
        for index, chip in enumerate(chips):
            if chip.valid.any():
                groups.setdefault(chip.valid.shape, []).append(index)
        for indices in groups.values():
            for index, instances in zip(indices, self._segment_alike([chips[i] for i in indices]), strict=True):
                found[index] = instances
        return [Instances.empty() if x is None else x for x in found]

    def _segment_alike(self, chips: list[Chip]) -> list[Instances]:
        """Segment chips of one size."""
        try:
            with (
                torch.inference_mode(),
                torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast),
            ):
                return self._forward(chips)
        except torch.OutOfMemoryError as error:
            msg = f"{len(chips)} chips of {chips[0].valid.shape} do not fit {self.device}"
            raise OutOfMemory(msg) from error

    def _forward(self, chips: list[Chip]) -> list[Instances]:
        network = self.network
        scene = network.look(self._images(chips))
        queries = network.start(scene, self._most(scene))
        quiet = torch.zeros(queries.content.shape[:2], dtype=torch.bool, device=self.device)
        if queries.centres is not None:
            # a chip's objects must not depend on how many queries its neighbours in the batch want
            quiet = queries.centres.scores < QUIET_CENTRE
            itself = torch.eye(quiet.shape[1], dtype=torch.bool, device=self.device)
            queries = replace(queries, apart=quiet.unsqueeze(1) & ~itself)
        last = network.decode(scene, queries)[-1]
        probability = last.class_logits.softmax(-1)[..., :-1] * ~quiet.unsqueeze(-1)
        image, query = torch.nonzero(probability.amax(-1) >= max(self.spec.score_threshold, 1e-6), as_tuple=True)
        logits = []
        for start in range(0, len(image), PROMPTS_AT_ONCE):
            part = slice(start, start + PROMPTS_AT_ONCE)
            coarse = network.coarse_logits(scene, last, queries.centres, image[part], query[part])
            logits.append(network.fine_logits(scene, last, coarse, image[part], query[part]))
        results = []
        for index, chip in enumerate(chips):
            here = torch.nonzero(image == index).squeeze(1)
            masks = [logits[int(i) // PROMPTS_AT_ONCE][int(i) % PROMPTS_AT_ONCE] for i in here]
            results.append(self._instances(masks, probability[index, query[here]], chip.valid))
        return results

    def _most(self, scene: Scene) -> int | None:
        """Largest number of centre queries that a chip of the batch can use; None where queries are learned."""
        if not scene.centre_logits:
            return None
        *_, scores = strongest_peaks(scene.centre_logits, self.max_queries)
        return max(int((scores.sigmoid() >= QUIET_CENTRE).sum(1).max()), 1)

    def _images(self, chips: list[Chip]) -> Tensor:
        """Normalise and pad to what the encoder takes: (B, 3, H, W) float32."""
        spec = self.network.encoder.spec
        pixels = torch.from_numpy(np.stack([chip.image for chip in chips])).to(self.device)
        valid = torch.from_numpy(np.stack([chip.valid for chip in chips])).to(self.device)
        normed = self.network.normalise(pixels) * valid.unsqueeze(1)  # no data looks like the mean
        h, w = normed.shape[-2:]
        if spec.is_pyramid:
            return F.pad(normed, (0, -w % 64, 0, -h % 64))
        return F.pad(normed, (0, spec.image_size - w, 0, spec.image_size - h))

    def _instances(self, masks: list[Tensor], probability: Tensor, valid: NDArray[np.bool_]) -> Instances:
        """Turn the masks of one chip into instances.

        Args:
            masks: (h/4, w/4) logits each.
            probability: (P, C) class probabilities.
            valid: (h, w).
        """
        boxes, crops, qualities = [], [], []
        for logits in masks:
            box, crop, quality = crop_mask(logits, valid)
            boxes.append(box)
            crops.append(crop)
            qualities.append(quality)
        scores = probability.float().cpu().numpy() * np.array(qualities, np.float32).reshape(-1, 1)
        rows, columns = np.nonzero(scores >= max(self.spec.score_threshold, 1e-6))
        order = np.argsort(-scores[rows, columns], kind="stable")[: self.max_instances]
        rows, columns = rows[order], columns[order]
        return Instances(
            boxes=np.array([boxes[i] for i in rows], np.int32).reshape(-1, 4),
            masks=[crops[i] for i in rows],
            scores=scores[rows, columns].astype(np.float32),
            labels=columns.astype(np.int64),
        )


def crop_mask(logits: Tensor, valid: NDArray[np.bool_]) -> tuple[tuple[int, int, int, int], NDArray[np.bool_], float]:
    """Upsample the logits of one mask by four and cut out where they are positive.

    Only the part around positive cells is upsampled; a margin of two cells makes it equal to upsampling everything.

    Args:
        logits: (h/4, w/4), the chip's padding included.
        valid: (h, w) of the chip.

    Returns:
        Box x0 y0 x1 y1 in chip pixels, the mask inside it, and the mean probability of its pixels; an empty mask has
        quality 0 and a 1 x 1 box.
    """
    nothing = (0, 0, 1, 1), np.zeros((1, 1), np.bool_), 0.0
    h, w = valid.shape
    positive = logits > 0
    rows, columns = positive.any(1).nonzero().flatten(), positive.any(0).nonzero().flatten()
    if not len(rows):
        return nothing
    y0, y1 = max(int(rows[0]) - 2, 0), min(int(rows[-1]) + 3, logits.shape[0])
    x0, x1 = max(int(columns[0]) - 2, 0), min(int(columns[-1]) + 3, logits.shape[1])
    if 4 * y0 >= h or 4 * x0 >= w:  # in the padding alone
        return nothing
    crop = logits[None, None, y0:y1, x0:x1]
    up = F.interpolate(crop, scale_factor=4.0, mode="bilinear", align_corners=False)[0, 0].cpu().numpy()
    up = up[: h - 4 * y0, : w - 4 * x0]
    inside = (up > 0) & valid[4 * y0 : 4 * y0 + up.shape[0], 4 * x0 : 4 * x0 + up.shape[1]]
    if not inside.any():
        return nothing
    inside = main_parts(inside)
    ys, xs = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    quality = float((1 / (1 + np.exp(-up[inside]))).mean())
    tight = np.s_[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]
    box = (4 * x0 + int(xs[0]), 4 * y0 + int(ys[0]), 4 * x0 + int(xs[-1]) + 1, 4 * y0 + int(ys[-1]) + 1)
    return box, inside[tight].copy(), quality


def main_parts(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Keep the largest 8-connected part of a mask (h, w) and parts at least ``SMALLEST_PART`` its size."""
    count, parts, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count <= 2:  # background and one part
        return mask
    areas = statistics[:, cv2.CC_STAT_AREA]
    areas[0] = 0
    return np.asarray((areas >= SMALLEST_PART * areas.max())[parts])
