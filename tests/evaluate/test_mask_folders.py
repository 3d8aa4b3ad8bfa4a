"""Two folders of masks: counted by hand, and mismatches named."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from rsgeoseg.errors import UsageError
from rsgeoseg.evaluate.mask_folders import read_mask, score_mask_folders


def save(path, mask, mode="L"):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.asarray(mask, np.uint8) * 255).convert(mode).save(path)


def square(x, side=10, size=40):
    mask = np.zeros((size, size), bool)
    mask[:side, x : x + side] = True
    return mask


def test_figures_by_hand(tmp_path):
    for name, true_x, found_x in (("a", 0, 0), ("b", 0, 2), ("c", 0, 20)):
        save(tmp_path / "true" / f"{name}.png", square(true_x))
        save(tmp_path / "found" / f"{name}.png", square(found_x))
    result = score_mask_folders(tmp_path / "true", tmp_path / "found")
    assert result.n == 3
    assert result.miou == pytest.approx((1 + 80 / 120 + 0) / 3)
    assert result.oiou == pytest.approx((100 + 80) / (100 + 120 + 200))
    assert (result.pr50, result.pr60, result.pr70) == pytest.approx((2 / 3, 2 / 3, 1 / 3))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_any_kind_of_picture(tmp_path, mode):
    save(tmp_path / "m.png", square(5), mode)
    assert np.array_equal(read_mask(tmp_path / "m.png"), square(5))


def test_mismatches_are_named(tmp_path):
    true, found = tmp_path / "true", tmp_path / "found"
    with pytest.raises(UsageError, match=r"true: no such folder"):
        score_mask_folders(true, found)
    save(true / "a.png", square(0))
    found.mkdir()
    with pytest.raises(UsageError, match="found has no masks"):
        score_mask_folders(true, found)
    save(found / "b.png", square(0))
    with pytest.raises(UsageError, match="1 of 1 masks are missing: a"):
        score_mask_folders(true, found)
    save(found / "a.png", square(0))
    with pytest.raises(UsageError, match="true: 1 of 2 masks are missing: b"):
        score_mask_folders(true, found)
    save(true / "b.png", square(0, size=41))
    with pytest.raises(UsageError, match="b: the predicted mask is 40 x 40"):
        score_mask_folders(true, found)
    (true / "b.png").write_text("no picture")
    with pytest.raises(UsageError, match=r"b\.png: cannot be read"):
        score_mask_folders(true, found)
