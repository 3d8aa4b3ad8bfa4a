"""From chips to instances with RSPrompter-query: the engine's side of the model.

Inference of the released code (KyanChen/RSPrompter f4e73c3, ``RSMaskFormerFusionHead``): score = class probability
times the mean mask probability over the mask's pixels; the best ``max_instances`` (query, class) pairs stay, no NMS.
Two savings that leave the result unchanged: SAM's decoder runs on the last prediction set only, and only for queries
whose class probability can still reach the score threshold, because the other factor is at most one. Networks whose
config resizes chips choose pairs and resize masks as the authors' code does (``released``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from rsgeoseg.backbones.chips import images_of
from rsgeoseg.backbones.fitted import Fit, fit_images
from rsgeoseg.backbones.network_segmenter import NetworkSegmenter
from rsgeoseg.models.rsprompter_query.network import RSPrompterQuery
from rsgeoseg.models.rsprompter_query.released import released_masks, released_pairs
from rsgeoseg.nn.centres import strongest_peaks
from rsgeoseg.nn.scored_masks import LOWEST_SCORE, scored_masks, whole_masks
from rsgeoseg.nn.steady import steady_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from rsgeoseg.contract import Chip, Instances
    from rsgeoseg.models.rsprompter_query.network import PredictionSet, Queries, Scene

PROMPTS_AT_ONCE = 16
"""Prompts per call of SAM's decoder: more at once is slower on a CPU (caches), and no faster on a GPU per prompt."""
QUIET_CENTRE = 0.02
"""A centre with a lower class probability starts no query."""
MOST_QUERIES = 300
"""Most centre queries per chip, for networks that find their queries."""


class QuerySegmenter(NetworkSegmenter[RSPrompterQuery]):
    """RSPrompter-query as the engine calls it."""

    def _forward(self, chips: list[Chip]) -> list[Instances]:
        network, encoder = self.network, self.network.encoder.spec
        fit = Fit.of(chips[0].valid.shape, encoder.image_size, network.config.resize)
        if fit is not None:
            return self._released(chips, fit)
        scene = network.look(images_of(chips, encoder, self.device))
        queries, quiet = self._queries(scene)
        last = network.decode(scene, queries)[-1]
        probability = last.class_logits.softmax(-1)[..., :-1] * ~quiet.unsqueeze(-1)
        image, query = torch.nonzero(probability.amax(-1) >= max(self.lowest, LOWEST_SCORE), as_tuple=True)
        logits = [part for parts in self._masks(scene, last, queries, image, query) for part in parts]
        results = []
        for index, chip in enumerate(chips):
            here = torch.nonzero(image == index).squeeze(1)
            found = scored_masks(
                [logits[i] for i in here.tolist()],
                probability[index, query[here]],
                chip.valid,
                score_threshold=self.lowest,
                most=self.max_instances,
            )
            results.append(found)
        return results

    def _masks(
        self, scene: Scene, last: PredictionSet, queries: Queries, image: Tensor, query: Tensor
    ) -> Iterator[Tensor]:
        """Mask logits (P, H/4, W/4) of chosen queries, some at a time, in order."""
        for start in range(0, len(image), PROMPTS_AT_ONCE):
            part = slice(start, start + PROMPTS_AT_ONCE)
            coarse = self.network.coarse_logits(scene, last, queries.centres, image[part], query[part])
            yield self.network.fine_logits(scene, last, coarse, image[part], query[part])

    def _released(self, chips: list[Chip], fit: Fit) -> list[Instances]:
        """Find the objects of chips of one size as the authors' code does."""
        network = self.network
        scene = network.look(fit_images(chips, network.encoder.spec, fit, self.device))
        queries = network.start(scene)
        last = network.decode(scene, queries)[-1]
        return [
            whole_masks(self._chosen(scene, last, queries, index, fit), chip.valid, score_threshold=self.lowest)
            for index, chip in enumerate(chips)
        ]

    def _chosen(
        self, scene: Scene, last: PredictionSet, queries: Queries, index: int, fit: Fit
    ) -> Iterator[tuple[NDArray[np.bool_], float, int]]:
        """Masks of one image's size, scores and labels; as many as there are queries, as in the authors' configs."""
        query, label, probability = released_pairs(last.class_logits[index], self.network.config.num_queries)
        hopeful = probability >= max(self.lowest, LOWEST_SCORE)
        query, label, probability = query[hopeful], label[hopeful], probability[hopeful]
        each, of_pair = torch.unique(query, return_inverse=True)
        first = 0
        for logits in self._masks(scene, last, queries, torch.full_like(each, index), each):
            masks, qualities = released_masks(logits, fit)
            here = ((of_pair >= first) & (of_pair < first + len(logits))).nonzero().squeeze(1)
            for pair in here.tolist():
                row = int(of_pair[pair]) - first
                yield masks[row].cpu().numpy(), float(probability[pair] * qualities[row]), int(label[pair])
            first += len(logits)

    def _queries(self, scene: Scene) -> tuple[Queries, Tensor]:
        """Make the queries of a batch, and tell which (B, Q) stand for nothing: no other query sees these.

        A chip's objects must not depend on how many queries its neighbours in the batch want.
        """
        if not scene.centre_logits:
            queries = self.network.start(scene)
            return queries, torch.zeros(queries.content.shape[:2], dtype=torch.bool, device=self.device)
        level, row, column, scores = strongest_peaks(scene.centre_logits, MOST_QUERIES)
        quiet = scores.sigmoid() < QUIET_CENTRE
        count = steady_rows(int((~quiet).sum(1).max()))
        level, row, column, quiet = (x[:, :count] for x in (level, row, column, quiet))
        itself = torch.eye(quiet.shape[1], dtype=torch.bool, device=self.device)
        queries = self.network.place_queries(scene, level, row, column)
        return replace(queries, apart=quiet.unsqueeze(1) & ~itself), quiet
