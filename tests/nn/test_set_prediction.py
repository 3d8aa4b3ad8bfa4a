"""Matching, class targets, memories and scores of query models against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch

from rsgeoseg.nn.positions import cell_positions
from rsgeoseg.nn.query_memory import blocked_cells, query_memories
from rsgeoseg.nn.scored_masks import scored_masks
from rsgeoseg.nn.set_prediction import Pairs, match_queries, point_losses, set_class_loss
from rsgeoseg.nn.targets import Target


def halves(labels, which):
    """Objects that fill the left (0) or right (1) half of an 8 x 8 image."""
    masks = torch.zeros(len(labels), 8, 8, dtype=torch.uint8)
    for mask, half in zip(masks, which, strict=True):
        mask[:, 4 * half : 4 * half + 4] = 1
    return Target(labels=torch.tensor(labels, dtype=torch.int64), boxes=torch.zeros(len(labels), 4), masks=masks)


def says(sides):
    """Mask logits of queries that say left (-1), right (1) or nothing (0)."""

    def read(image, points):
        del image
        right = torch.where(points[:, 0] > 0.5, 8.0, -8.0)
        return torch.stack([right * side if side else torch.full_like(right, -8.0) for side in sides])

    return read


def test_queries_are_matched_to_the_objects_they_draw():
    torch.manual_seed(0)
    targets = [halves([0, 1], [1, 0]), halves([], []), halves([1], [1])]
    pairs = match_queries(torch.zeros(3, 3, 3), says([0, -1, 1]), targets, points=64)
    found = set(zip(pairs.image.tolist(), pairs.query.tolist(), pairs.target.tolist(), strict=True))
    assert found == {(0, 2, 0), (0, 1, 1), (2, 2, 0)}
    assert dict(zip(pairs.image.tolist(), pairs.mask_rows(targets).tolist(), strict=True))[2] == 2


def test_the_class_decides_between_equal_masks():
    logits = torch.zeros(1, 3, 3)
    logits[0, 1, 1] = 2.0
    pairs = match_queries(logits, says([1, 1, 1]), [halves([1], [1])], points=16)
    assert pairs.query.tolist() == [1]


def test_queries_beyond_the_class_logits_are_not_matched():
    pairs = match_queries(torch.zeros(1, 2, 3), says([0, -1, 1]), [halves([0], [1])], points=16)
    assert pairs.query.item() < 2


def test_class_loss_of_a_set_by_hand():
    """One matched query and one background query of weight .1 at zero logits of three classes: ln 3 each."""
    pairs = Pairs(torch.tensor([0]), torch.tensor([1]), torch.tensor([0]))
    logits = torch.zeros(1, 3, 3)
    targets = [halves([1], [0])]
    assert float(set_class_loss(logits, pairs, targets, background_weight=0.1)) == pytest.approx(math.log(3), abs=1e-6)
    logits[0, 1] = torch.tensor([0.0, 30.0, 0.0])  # right: costs nothing
    weighted = 0.2 * math.log(3) / 1.2
    assert float(set_class_loss(logits, pairs, targets, background_weight=0.1)) == pytest.approx(weighted, abs=1e-6)
    ignoring = set_class_loss(logits, pairs, targets, background_weight=0.1, matched=1)  # the third counts no more
    assert float(ignoring) == pytest.approx(0.1 * math.log(3) / 1.1, abs=1e-6)


def test_point_losses_by_hand():
    """Zero logits cost ln 2; dice of probability one half on one true of two points: 1 - (2 * .5 + 1) / (1 + 1 + 1)."""
    points = torch.tensor([[[0.25, 0.5], [0.75, 0.5]]])
    bce, dice = point_losses(torch.zeros(1, 4, 4), torch.tensor([[1.0, 0.0]]), points)
    assert float(bce) == pytest.approx(math.log(2), abs=1e-6)
    assert float(dice) == pytest.approx(1 / 3, abs=1e-6)


def test_queries_look_where_their_mask_is_or_everywhere():
    logits = torch.tensor([[[[1.0, -1], [0, -2]], [[-1, -1], [-1, -1]]]])
    assert blocked_cells(logits).tolist() == [[[False, True, False, True], [False] * 4]]


def test_memories_carry_level_and_place():
    maps = [torch.randn(2, 8, 1, 2), torch.randn(2, 8, 2, 4), torch.randn(2, 8, 4, 8)]
    levels = torch.randn(3, 8)
    memories = query_memories(maps, levels, extent=256, origin=(64.0, 0.0))
    for memory, x, level, stride in zip(memories, maps, levels, (64, 32, 16), strict=True):
        h, w = memory.shape
        assert (h, w) == x.shape[-2:]
        back = (memory.tokens - level).transpose(1, 2).reshape(x.shape)
        torch.testing.assert_close(back, x)
        wide = cell_positions(h, w + 64 // stride, stride=stride, extent=256, features=4, device=x.device)
        torch.testing.assert_close(memory.positions, wide.view(h, -1, 8)[:, 64 // stride :].reshape(-1, 8))


def test_scores_are_class_probability_times_mask_quality():
    """Two masks, two classes: every pair above the threshold, best first; a query may be two things; no NMS."""
    masks = [torch.full((4, 4), -5.0) for _ in range(3)]
    masks[0][1:3, 1:3] = 5.0
    masks[1][:, 2:] = 50.0
    valid = np.ones((16, 16), np.bool_)
    valid[:, 14:] = False
    probability = torch.tensor([[0.9, 0.05], [0.6, 0.4], [1.0, 0.0]])  # the third mask is empty
    found = scored_masks(masks, probability, valid, score_threshold=0.1, most=100)
    assert len(found) == 3
    assert found.labels.tolist() == [0, 0, 1]
    assert 0.7 < found.scores[0] < 0.9  # soft mask
    quality = found.scores[1] / 0.6
    assert found.scores[2] == pytest.approx(0.4 * quality, rel=1e-5)
    assert found.boxes[1].tolist() == found.boxes[2].tolist()
    assert found.boxes[1][2] == 14
    assert len(scored_masks(masks, probability, valid, score_threshold=0.1, most=2)) == 2
    assert len(scored_masks([], torch.zeros(0, 2), valid, score_threshold=0.1, most=2)) == 0
