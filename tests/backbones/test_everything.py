"""Everything mode and its masks against the package's generator; cutting, packing and cleaning masks."""

import dataclasses

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.utils.amg import remove_small_regions
from tiny_sam import SIDE, chip_of, picture, tiny_sam
from torch.nn import functional as F

from rsgeoseg.backbones.chips import images_of
from rsgeoseg.backbones.everything import EverythingConfig, default_everything, find_everything, point_grid
from rsgeoseg.nn.masks import boxes_of, cut_out, fetch_masks, pack_mask, tight, without_specks


def pair(seed, *, quality, shyness=0.0):
    """Both small SAMs, changed so that random weights promise something and draw masks with some contrast."""
    theirs, ours = tiny_sam(seed)
    for mlp in theirs.mask_decoder.output_hypernetworks_mlps:
        mlp.layers[-1].weight.data *= 20
        mlp.layers[-1].bias.data -= shyness
    last = theirs.mask_decoder.iou_prediction_head.layers[-1]
    torch.nn.init.constant_(last.bias, quality)
    ours.sam.mask_decoder.load_state_dict(theirs.mask_decoder.state_dict())
    return theirs, ours


@torch.inference_mode()
def everything(network, chip, config):
    scene = network.look(images_of([chip], network.encoder.spec, torch.device("cpu")))
    return find_everything(network, scene.one(0), chip.valid, config)


def full(instances, row, side=SIDE):
    canvas = np.zeros((side, side), np.bool_)
    x0, y0, x1, y1 = instances.boxes[row]
    canvas[y0:y1, x0:x1] = instances.masks[row]
    return canvas


@pytest.mark.parametrize(("nms", "min_region"), [(0.8, 0), (0.95, 0), (1.0, 0), (1.0, 9)])
def test_finds_what_the_packages_generator_finds(nms, min_region):
    """Same weights, images and thresholds: same number of masks, each at IoU >= 0.99 with its own counterpart."""
    config = EverythingConfig(
        points_per_side=6, pred_iou=0.8, stability=0.3, stability_offset=0.05, nms=nms, min_region=min_region
    )
    theirs, ours = pair(0, quality=0.9, shyness=4.0)
    generator = SamAutomaticMaskGenerator(
        theirs,
        points_per_side=6,
        points_per_batch=10,
        pred_iou_thresh=config.pred_iou,
        stability_score_thresh=config.stability,
        stability_score_offset=config.stability_offset,
        box_nms_thresh=config.nms,
        crop_nms_thresh=config.nms,
        min_mask_region_area=min_region,
    )
    counts = []
    for seed in range(4):
        image = picture(seed)
        expected = generator.generate(image.transpose(1, 2, 0))
        found = everything(ours, chip_of(image), config)
        assert len(found) == len(expected)
        counts.append(len(found))
        theirs_masks = np.stack([record["segmentation"] for record in expected])
        promised = np.array([record["predicted_iou"] for record in expected]).clip(0, 1)
        for row, score in enumerate(found.scores):
            mask = full(found, row)
            iou = (mask & theirs_masks).sum((1, 2)) / (mask | theirs_masks).sum((1, 2))
            assert (iou[abs(promised - score) < 1e-3] >= 0.99).any()
    assert min(counts) >= 1  # something survived everywhere ...
    assert max(counts) < 3 * 36  # ... and something was left out


def test_asks_only_where_there_is_data():
    chip = chip_of(picture(1))
    chip.valid[:, : SIDE // 2] = False
    grid = point_grid(chip.valid, 8)
    assert len(grid) == 32
    assert grid[:, 0].min() > SIDE // 2
    _, ours = pair(1, quality=2.0)
    found = everything(ours, chip, EverythingConfig(points_per_side=4, stability=0.0, pred_iou=0.5))
    assert len(found) > 0
    assert found.boxes[:, 0].min() >= SIDE // 2


def test_point_grid_is_the_packages():
    from segment_anything.utils.amg import build_point_grid

    expected = build_point_grid(5) * np.array([[96, 64]])
    np.testing.assert_allclose(point_grid(np.ones((64, 96), np.bool_), 5).numpy(), expected, rtol=1e-6)


def test_small_masks_are_left_out():
    _, ours = pair(0, quality=2.0)
    config = EverythingConfig(points_per_side=4, stability=0.0, nms=1.0)
    everyone = everything(ours, chip_of(picture(0)), config)
    areas = sorted(int(mask.sum()) for mask in everyone.masks)
    middle = areas[len(areas) // 2]
    large = everything(ours, chip_of(picture(0)), dataclasses.replace(config, min_area=middle))
    assert sorted(int(mask.sum()) for mask in large.masks) == [area for area in areas if area >= middle]


def test_defaults_follow_the_packages():
    assert default_everything("sam-vit-h").pred_iou == 0.88
    assert default_everything("sam2-hiera-t").pred_iou == 0.8


@pytest.mark.parametrize("level", [0.0, -1.0])
def test_cut_out_misses_nothing_above_the_level(level):
    torch.manual_seed(0)
    logits = F.interpolate(torch.randn(6, 1, 6, 7) - 1.5, size=(24, 28), mode="bicubic")[:, 0]
    logits[4] = -9
    logits[5, :20, :20] = -9  # only what lies beyond the chip
    shape = (78, 75)
    whole = F.interpolate(logits[:, None], scale_factor=4.0, mode="bilinear", align_corners=False)[:, 0]
    whole = whole[:, : shape[0], : shape[1]]
    for row, cut in enumerate(cut_out(logits, shape, level)):
        if cut is None:
            assert not (whole[row] > level).any()
            continue
        (x, y), (h, w) = cut.corner, cut.logits.shape
        rest = whole[row].clone()
        part = rest[y : y + h, x : x + w]
        assert torch.equal(cut.logits > level, part > level)
        torch.testing.assert_close(cut.logits[part > level], part[part > level])
        rest[y : y + h, x : x + w] = -9
        assert not (rest > level).any()
    assert cut_out(logits, shape, level)[4] is None


def test_masks_come_back_from_bits():
    rng = np.random.default_rng(0)
    masks = [torch.from_numpy(rng.random((h, w)) < 0.5) for h, w in [(1, 1), (3, 5), (8, 16), (7, 31)]]
    back = fetch_masks([pack_mask(mask) for mask in masks], [tuple(mask.shape) for mask in masks])
    for mask, found in zip(masks, back, strict=True):
        np.testing.assert_array_equal(found, mask.numpy())
    assert fetch_masks([], []) == []


def test_boxes_of_masks():
    masks = [torch.zeros(4, 6, dtype=torch.bool) for _ in range(2)]
    masks[0][1:3, 2:5] = True
    assert boxes_of(masks) == [(2, 1, 5, 3), (6, 4, 0, 0)]
    assert boxes_of([]) == []
    box, inside = tight(masks[0].numpy(), (10, 20))
    assert box == (12, 21, 15, 23)
    assert inside.all()


@pytest.mark.parametrize("seed", range(8))
def test_cleaning_is_the_packages(seed):
    rng = np.random.default_rng(seed)
    mask = np.zeros((60, 70), np.bool_)
    mask[12:48, 12:58] = rng.random((36, 46)) < (0.3, 0.5, 0.7, 0.9)[seed % 4]
    expected, _ = remove_small_regions(mask, 9, mode="holes")
    expected, _ = remove_small_regions(expected, 9, mode="islands")
    np.testing.assert_array_equal(without_specks(mask, 9), expected)
