"""Masks that are cut on their device are those that are cut on the host."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rsgeoseg.nn import masks
from rsgeoseg.nn.masks import crop_mask, crop_masks


def some_logits(count=8, cells=(20, 24)):
    """Blobs, one of them of equal parts, one with a speck, one empty, one beyond the chip alone."""
    torch.manual_seed(0)
    logits = F.interpolate(torch.randn(count, 1, 5, 6) - 0.3, size=cells, mode="bicubic")[:, 0]
    logits[2] = -5
    logits[3] = -5
    logits[3, 18:, 20:] = 5  # the chip ends before
    logits[4] = -5
    logits[4, 2:8, 2:8] = 3
    logits[4, 12, 12] = 1  # a speck
    logits[5] = -5
    logits[5, 2:6, 2:6] = 2
    logits[5, 10:14, 10:14] = 1  # two parts of one size
    return logits


def valid_part():
    valid = np.ones((70, 78), np.bool_)
    valid[:13, :30] = False
    return valid


def test_cut_on_a_device_is_cut_on_the_host():
    valid, logits = valid_part(), some_logits()
    found = masks._crop_on_device(logits, valid)
    for ours, one in zip(found, logits, strict=True):
        box, mask, quality = crop_mask(one, valid)
        assert ours[0] == box
        np.testing.assert_array_equal(ours[1], mask)
        assert ours[2] == pytest.approx(quality, abs=1e-5)
    assert [quality > 0 for *_, quality in found] == [i not in {2, 3} for i in range(len(found))]


def test_only_bits_leave_the_device(monkeypatch):
    """One copy of packed bits for all masks."""
    copied = []
    unpatched = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda x: (copied.append((x.dtype, x.numel())), unpatched(x))[1])
    masks._crop_on_device(some_logits(), valid_part())
    assert [dtype for dtype, _ in copied] == [torch.uint8]
    assert copied[0][1] < 8 * 70 * 78 / 8


def test_several_are_each():
    valid, logits = valid_part(), some_logits()
    for ours, one in zip(crop_masks(list(logits), valid), logits, strict=True):
        box, mask, quality = crop_mask(one, valid)
        assert (ours[0], ours[2]) == (box, quality)
        np.testing.assert_array_equal(ours[1], mask)
    assert crop_masks([], valid) == []
