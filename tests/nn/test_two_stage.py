"""Proposals, RoI features, box head and mask head against numbers worked out by hand and against torchvision."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, expand_boxes, paste_masks_in_image

from rsgeoseg.nn.box_head import Samples, box_losses, decode_boxes, detect, sample_proposals
from rsgeoseg.nn.mask_head import MaskHead, mask_loss, paste_mask, positive_boxes
from rsgeoseg.nn.roi_features import box_levels, roi_features
from rsgeoseg.nn.rpn import GridAnchors, build_rpn
from rsgeoseg.nn.targets import Target


def target(boxes, labels, side=64):
    masks = torch.zeros(len(boxes), side, side, dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = 1
    return Target(
        labels=torch.tensor(labels, dtype=torch.int64),
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        masks=masks,
    )


# anchors and proposals


def test_anchors_stand_on_cell_corners_in_mmdet_order():
    """Level by level, row by row; at each cell ratio .5, 1, 2 (height to width) of area (8 stride)^2."""
    maps = [torch.zeros(2, 1, 2, 3), torch.zeros(2, 1, 1, 2)]
    one, other = GridAnchors((4, 8), (8.0,), (0.5, 1.0, 2.0))(ImageList(maps[0], [(8, 12)] * 2), maps)
    assert torch.equal(one, other)
    assert one.shape == (3 * (2 * 3 + 1 * 2), 4)
    r = math.sqrt(2)
    at_origin = [[-16 * r, -8 * r, 16 * r, 8 * r], [-16, -16, 16, 16], [-8 * r, -16 * r, 8 * r, 16 * r]]
    torch.testing.assert_close(one[:3], torch.tensor(at_origin))
    corners = torch.tensor([[0, 0], [4, 0], [8, 0], [0, 4], [4, 4], [8, 4]]).float().repeat(1, 2)
    torch.testing.assert_close(one[1:18:3], corners + one[1])
    torch.testing.assert_close(one[-2], torch.tensor([8.0 - 32, -32, 8 + 32, 32]))  # level 2, second cell, ratio 1


def test_two_scales_follow_each_other_within_a_ratio():
    anchors = GridAnchors((16,), (2.0, 4.0), (1.0, 4.0))(
        ImageList(torch.zeros(1), [(16, 16)]), [torch.zeros(1, 1, 1, 1)]
    )
    sizes = anchors[0][:, 2:] - anchors[0][:, :2]
    torch.testing.assert_close(sizes, torch.tensor([[32.0, 32], [64, 64], [16, 64], [32, 128]]))


def test_a_hot_cell_proposes_its_own_anchor():
    """Scores and anchors run in the same order: one hot cell of one level, one ratio, gives that anchor first."""
    rpn = build_rpn(1, strides=(4, 8), scales=(2.0,)).eval()
    head = rpn.head
    for layer in (head.conv[0][0], head.cls_logits, head.bbox_pred):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    head.conv[0][0].weight.data[0, 0, 1, 1] = 1.0
    head.cls_logits.weight.data[2] = 1.0  # ratio 2
    maps = [torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 8, 8)]
    maps[1][0, 0, 5, 3] = 9.0  # row 5, column 3: the corner x 24 y 40
    boxes, losses = rpn.propose(maps, (64, 64))
    assert losses == {}
    half_w, half_h = 8 / math.sqrt(2), 8 * math.sqrt(2)
    expected = torch.tensor([24 - half_w, 40 - half_h, 24 + half_w, 40 + half_h])
    torch.testing.assert_close(boxes[0][0], expected)
    assert (boxes[0] >= 0).all()
    assert (boxes[0] <= 64).all()


def test_rpn_loss_by_hand():
    """One positive, one negative, one ignored anchor: ln 2 of class; smooth L1 .125 + 1.5 over two anchors."""
    rpn = build_rpn(1, strides=(4,), scales=(2.0,))
    class_loss, box_loss = rpn.compute_loss(
        torch.tensor([[0.0], [0.0], [100.0]]),
        torch.tensor([[0.5, 0, 0, 0], [7.0, 7, 7, 7], [7.0, 7, 7, 7]]),
        [torch.tensor([1.0, 0.0, -1.0])],
        [torch.tensor([[0.0, 0, 0, 2], [0, 0, 0, 0], [0, 0, 0, 0]])],
    )
    assert float(class_loss) == pytest.approx(math.log(2), abs=1e-6)
    assert float(box_loss) == pytest.approx(1.625 / 2, abs=1e-6)


def test_rpn_assignment_thresholds():
    """IoU above .7 or best of an object: positive; below .3: negative; between: ignored."""
    rpn = build_rpn(1, strides=(4,), scales=(2.0,))
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 5], [0, 0, 10, 2.9], [40, 40, 52, 60]])
    boxes = torch.tensor([[0.0, 0, 10, 10], [40, 40, 60, 60]])
    labels, matched = rpn.assign_targets_to_anchors([anchors], [{"boxes": boxes}])
    assert labels[0].tolist() == [1, 1, -1, 0, 1]  # the last one has IoU .6 and is the second object's best
    torch.testing.assert_close(matched[0][4], boxes[1])


def test_an_image_without_objects_has_a_proposal_loss_without_boxes():
    torch.manual_seed(0)
    rpn = build_rpn(8, strides=(4, 8), scales=(2.0,))
    boxes, losses = rpn.propose([torch.randn(1, 8, 16, 16), torch.randn(1, 8, 8, 8)], (64, 64), [target([], [])])
    assert len(boxes[0]) > 0
    assert set(losses) == {"rpn_class", "rpn_box"}
    assert losses["rpn_box"].item() == 0
    assert 0 < losses["rpn_class"].item() < 2


# features inside boxes


def test_level_doubles_with_the_side():
    sides = torch.tensor([0.0, 10, 56, 111.9, 112, 223.9, 224, 447.9, 448, 4000])
    boxes = torch.stack([torch.zeros(10), torch.zeros(10), sides * 2, sides / 2], 1)  # oblong: the area decides
    assert box_levels(boxes, 4).tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert box_levels(boxes, 2).tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]


def test_roi_features_read_the_right_place_image_and_level():
    """On maps that hold x + 1000 level + 10000 image, a sample is the x of its centre, to the fraction of a pixel."""
    maps = []
    for level, stride in enumerate((4, 8)):
        cells = 256 // stride
        x = (torch.arange(cells) + 0.5) * stride + 1000 * level
        maps.append(x.expand(2, 1, cells, cells) + 10000 * torch.arange(2).view(2, 1, 1, 1))
    small, large = [20.0, 30, 48, 58], [16.0, 16, 156, 156]
    read = roi_features(maps, [torch.tensor([large, small]), torch.tensor([small])], strides=(4, 8), size=7)
    assert read.shape == (3, 1, 7, 7)
    of_small, of_large = 22 + 4.0 * torch.arange(7), 26 + 20.0 * torch.arange(7)
    for got, expected in zip(read, (of_large + 1000, of_small, of_small + 10000), strict=True):
        torch.testing.assert_close(got[0], expected.expand(7, 7), atol=2e-2, rtol=0)


def test_no_boxes_no_features():
    read = roi_features([torch.zeros(2, 3, 8, 8)], [torch.zeros(0, 4), torch.zeros(0, 4)], strides=(4,), size=7)
    assert read.shape == (0, 3, 7, 7)


# box head


def test_decoding_by_hand():
    """A delta of 1 shifts by a tenth of the side; 5 ln 2 doubles it; boxes end at the image's edge."""
    proposals = torch.tensor([[20.0, 20, 30, 40]])
    deltas = torch.tensor([[1.0, 0, 0, 0, 0, 0, 5 * math.log(2), 0, 0, -50, 0, 0]])
    boxes = decode_boxes(deltas, proposals, (64, 64))
    expected = torch.tensor([[[21.0, 20, 31, 40], [15, 20, 35, 40], [20, 0, 30, 0]]])
    torch.testing.assert_close(boxes, expected)


def test_sides_are_bounded_on_both_ends():
    """mmdet's ``wh_ratio_clip``: a box keeps 16/1000 of its proposal's side at least, and has 1000/16 of it at most."""
    boxes = decode_boxes(torch.tensor([[0.0, 0, -50, 50]]), torch.tensor([[0.0, 400, 1000, 500]]), (900, 1000))
    torch.testing.assert_close(boxes, torch.tensor([[[492.0, 0, 508, 900]]]))
    rpn = build_rpn(1, strides=(4,), scales=(2.0,))
    boxes = rpn.box_coder.decode(torch.tensor([[0.0, 0, -9, -9]]), [torch.tensor([[0.0, 0, 1000, 500]])])
    torch.testing.assert_close(boxes, torch.tensor([[[492.0, 246, 508, 254]]]))


def test_no_proposals_no_boxes_and_no_loss():
    """A network may propose nothing, e.g. where all its boxes lie outside the image."""
    found = detect(torch.zeros(0, 3), torch.zeros(0, 8), torch.zeros(0, 4), (64, 64))
    assert (found.boxes.shape, found.scores.shape, found.labels.shape) == ((0, 4), (0,), (0,))
    logits, deltas = torch.zeros(0, 3, requires_grad=True), torch.zeros(0, 8, requires_grad=True)
    nothing = torch.zeros(0, dtype=torch.int64)
    samples = Samples([torch.zeros(0, 4)], nothing, nothing, nothing, torch.zeros(0, 4))
    assert {name: term.item() for name, term in box_losses(logits, deltas, samples).items()} == {"class": 0, "box": 0}


def test_boxes_without_an_area_take_part_where_asked():
    """A box pushed out of the image is a line at its edge: mmdet keeps it, and gives it a mask."""
    logits, deltas = torch.tensor([[5.0, 0]]), torch.tensor([[-50.0, 0, 0, 0]])
    proposals = torch.tensor([[20.0, 20, 30, 40]])
    assert len(detect(logits, deltas, proposals, (64, 64)).boxes) == 0
    found = detect(logits, deltas, proposals, (64, 64), flat=True)
    assert found.boxes.tolist() == [[0, 20, 0, 40]]


def test_encoding_is_the_inverse_of_decoding():
    """Deltas that the loss wants give the object's box back: the loss of them is zero."""
    torch.manual_seed(0)
    corner, size = torch.rand(20, 2) * 30, torch.rand(20, 2) * 20 + 4
    proposals = torch.cat([corner, corner + size], 1)
    wanted = proposals + torch.randn(20, 4)
    samples = Samples(
        boxes=[proposals[:12], proposals[12:]],
        labels=torch.ones(20, dtype=torch.int64),
        matched=torch.arange(20),
        image=torch.arange(20) // 12,
        targets=wanted,
    )
    deltas = torch.zeros(20, 8, requires_grad=True)
    optimiser = torch.optim.LBFGS([deltas], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = box_losses(torch.zeros(20, 3), deltas, samples)["box"]
        loss.backward()
        return loss

    optimiser.step(closure)
    torch.testing.assert_close(decode_boxes(deltas.detach(), proposals, (100, 100))[:, 1], wanted, atol=2e-3, rtol=0)
    assert torch.count_nonzero(deltas.detach()[:, :4]) == 0  # class 0 was no one's class


def test_box_losses_by_hand():
    """Three classes with background at zero logits: ln 3; a shift of 1 px in 10 is a delta of 1: .5 over 4 samples."""
    samples = Samples(
        boxes=[torch.tensor([[0.0, 0, 10, 10], [0, 0, 5, 5]]), torch.tensor([[0.0, 0, 7, 7], [0, 0, 8, 8]])],
        labels=torch.tensor([1, 2, 2, 2]),
        matched=torch.zeros(4, dtype=torch.int64),
        image=torch.tensor([0, 0, 1, 1]),
        targets=torch.tensor([[1.0, 0, 11, 10], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]),
    )
    terms = box_losses(torch.zeros(4, 3), torch.zeros(4, 8), samples)
    assert float(terms["class"]) == pytest.approx(math.log(3), abs=1e-6)
    assert float(terms["box"]) == pytest.approx(0.5 / 4, abs=1e-6)


def test_sampling_assigns_by_iou_one_half_and_adds_the_objects():
    objects = target([[0, 0, 10, 10], [50, 50, 60, 60]], [3, 0])
    proposals = torch.tensor([[0.0, 0, 10, 20], [0, 0, 10, 20.5], [50, 50, 60, 59], [30, 30, 40, 40]])
    samples = sample_proposals([proposals, proposals[3:]], [objects, target([], [])], background=5, samples=100)
    assert [len(boxes) for boxes in samples.boxes] == [6, 1]
    assert samples.image.tolist() == [0] * 6 + [1]
    rows = {
        tuple(box): (label, matched, wanted)
        for box, label, matched, wanted in zip(
            torch.cat(samples.boxes).tolist(),
            samples.labels.tolist(),
            samples.matched.tolist(),
            samples.targets.tolist(),
            strict=True,
        )
    }
    first, second, nothing = [0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0], [0.0, 0.0, 0.0, 0.0]
    assert rows == {
        (0, 0, 10, 10): (3, 0, first),
        (50, 50, 60, 60): (0, 1, second),
        (0, 0, 10, 20): (3, 0, first),  # IoU .5 is enough
        (0, 0, 10, 20.5): (5, 0, nothing),
        (50, 50, 60, 59): (0, 1, second),
        (30, 30, 40, 40): (5, 0, nothing),
    }


def test_at_most_a_quarter_of_the_samples_are_positive():
    torch.manual_seed(0)
    objects = target([[0, 0, 10, 10]], [1])
    hits, misses = torch.tensor([[0.0, 0, 10, 10]]).repeat(30, 1), torch.tensor([[40.0, 40, 50, 50]]).repeat(100, 1)
    samples = sample_proposals([torch.cat([hits, misses])], [objects], background=2, samples=16)
    assert samples.labels.tolist() == [1] * 4 + [2] * 12
    few = sample_proposals([misses], [objects], background=2, samples=16)
    assert few.labels.tolist() == [1] + [2] * 15  # negatives fill what positives leave


def test_detect_thresholds():
    """Score above the threshold, NMS within a class above IoU .5, best first, at most so many."""
    proposals = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 20], [0, 0, 10, 19], [40, 40, 50, 50], [50, 50, 60, 60]])
    probability = torch.tensor(
        [[0.90, 0.04, 0.06], [0.80, 0.06, 0.14], [0.70, 0.02, 0.28], [0.05, 0.05, 0.90], [0.30, 0.60, 0.10]]
    )
    found = detect(probability.log(), torch.zeros(5, 8), proposals, (64, 64), score_threshold=0.055)
    # class 0: .9 keeps .8 (IoU exactly .5) and drops .7 (IoU .526); class 1: .6 and .06; fourth box: nothing
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.8, 0.6, 0.3, 0.06]))
    assert found.labels.tolist() == [0, 0, 1, 0, 1]
    torch.testing.assert_close(found.boxes, proposals[[0, 1, 4, 4, 1]])
    two = detect(probability.log(), torch.zeros(5, 8), proposals, (64, 64), score_threshold=0.055, most=2)
    torch.testing.assert_close(two.scores, found.scores[:2])


def test_a_box_clipped_to_nothing_is_no_detection():
    outside = torch.tensor([[70.0, 10, 80, 20], [60, 10, 80, 20]])
    found = detect(torch.tensor([[9.0, 0], [8.0, 0]]), torch.zeros(2, 4), outside, (64, 64))
    torch.testing.assert_close(found.boxes, torch.tensor([[60.0, 10, 64, 20]]))


def test_detect_equals_torchvision():
    """torchvision's own post-processing on the same numbers (its background is first), to 1e-4 pixels."""
    torch.manual_seed(3)
    corner, size = torch.rand(200, 2) * 100, torch.rand(200, 2) * 40 + 5
    proposals = torch.cat([corner, corner + size], 1)
    logits, deltas = torch.randn(200, 4) * 2, torch.randn(200, 12)
    theirs = RoIHeads(None, None, None, 0.5, 0.5, 256, 0.25, None, 0.05, 0.5, 100)
    boxes, scores, labels = theirs.postprocess_detections(
        torch.cat([logits[:, -1:], logits[:, :-1]], 1),
        torch.cat([torch.zeros(200, 4), deltas], 1),
        [proposals],
        [(120, 128)],
    )
    found = detect(logits, deltas, proposals, (120, 128))
    assert len(found.scores) == 100
    torch.testing.assert_close(found.scores, scores[0])
    torch.testing.assert_close(found.boxes, boxes[0], atol=1e-4, rtol=0)
    assert torch.equal(found.labels, labels[0] - 1)


# mask head


def test_mask_head_equals_torchvision():
    torch.manual_seed(0)
    ours, convs, predictor = MaskHead(16, 3), MaskRCNNHeads(16, (16,) * 4, 1), MaskRCNNPredictor(16, 16, 3)
    for mine, theirs in zip(ours.convs, convs, strict=True):
        mine.load_state_dict(theirs[0].state_dict())
    ours.upsample.load_state_dict(predictor.conv5_mask.state_dict())
    ours.conv_logits.load_state_dict(predictor.mask_fcn_logits.state_dict())
    x = torch.randn(5, 16, 14, 14)
    with torch.no_grad():
        logits = ours(x)
        torch.testing.assert_close(logits, predictor(convs(x)), atol=1e-5, rtol=1e-5)
    assert logits.shape == (5, 3, 28, 28)


def test_mask_loss_compares_the_true_class_inside_the_box():
    """An object fills the left half of a box; logits that say so cost nothing, for the true class alone."""
    targets = [target([], []), target([[2, 2, 4, 4], [8, 8, 16, 24]], [0, 1])]
    samples = Samples(
        boxes=[torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([[8.0, 8, 24, 24], [30, 30, 40, 40]])],
        labels=torch.tensor([2, 1, 2]),
        matched=torch.tensor([0, 1, 0]),
        image=torch.tensor([0, 1, 1]),
        targets=torch.zeros(3, 4),
    )
    boxes = positive_boxes(samples, 2)
    assert [len(b) for b in boxes] == [0, 1]
    torch.testing.assert_close(boxes[1], torch.tensor([[8.0, 8, 24, 24]]))
    right = torch.full((1, 2, 28, 28), 50.0)  # class 0 is wrong everywhere
    right[:, 1, :, 14:] = -50.0
    assert float(mask_loss(right, samples, targets)) < 1e-6
    assert float(mask_loss(torch.zeros(1, 2, 28, 28), samples, targets)) == pytest.approx(math.log(2), abs=1e-6)
    assert float(mask_loss(right.flip(3), samples, targets)) == pytest.approx(50.0)


def test_mask_loss_without_hits_is_zero_with_gradients():
    samples = Samples(
        [torch.rand(2, 4)], torch.tensor([2, 2]), torch.zeros(2).long(), torch.zeros(2).long(), torch.zeros(2, 4)
    )
    head = MaskHead(4, 2)
    loss = mask_loss(head(torch.zeros(0, 4, 14, 14)), samples, [target([], [])])
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None for p in head.parameters())


def whole(shape):
    return np.ones(shape, np.bool_)


def paste(probability, box, shape):
    """The pasted mask at full size."""
    (x0, y0, x1, y1), mask = paste_mask(np.float32(probability), np.float32(box), whole(shape))
    full = np.zeros(shape, np.bool_)
    full[y0:y1, x0:x1] = mask
    return full


def test_two_by_two_mask_lies_on_half_pixels():
    """In a 4 x 4 box samples lie at 1 and 3, pixel centres at .5, 1.5, ...: weights .75 .75 .25 0, product .5625."""
    full = paste([[1, 0], [0, 0]], [3, 2, 7, 6], (10, 12))
    expected = np.zeros((10, 12), np.bool_)
    expected[2:4, 3:5] = True
    np.testing.assert_array_equal(full, expected)
    barely = paste([[0.9, 0], [0, 0]], [3, 2, 7, 6], (10, 12))  # .5063
    np.testing.assert_array_equal(barely, expected)
    assert not paste([[0.88, 0], [0, 0]], [3, 2, 7, 6], (10, 12)).any()  # .495


@pytest.mark.parametrize("box", [(3, 5, 31, 40), (0, 0, 60, 50), (40, 20, 68, 34)])
def test_constant_mask_fills_exactly_its_box(box):
    full = paste(np.ones((28, 28)), box, (50, 68))
    expected = np.zeros((50, 68), np.bool_)
    expected[box[1] : box[3], box[0] : box[2]] = True
    np.testing.assert_array_equal(full, expected)


def test_a_box_of_fractions_covers_the_pixels_whose_centres_it_holds():
    full = paste(np.ones((28, 28)), (2.4, 2.6, 12.6, 12.4), (20, 20))
    expected = np.zeros((20, 20), np.bool_)
    expected[3:12, 2:13] = True
    np.testing.assert_array_equal(full, expected)


def blobs(count, seed):
    torch.manual_seed(seed)
    rough = torch.randn(count, 1, 7, 7)
    masks = F.interpolate(rough, size=(28, 28), mode="bicubic", align_corners=False)[:, 0].mul(3).sigmoid()
    corner, size = torch.rand(count, 2) * 60, torch.rand(count, 2) * 90 + 1
    return masks, torch.cat([corner, corner + size], 1)


def test_paste_equals_sampling_every_pixel():
    """mmdet's rule, grid_sample at every pixel centre with zeros outside, gives the same masks."""
    masks, boxes = blobs(30, 1)
    h, w = 130, 140
    xs, ys = torch.arange(w) + 0.5, torch.arange(h) + 0.5
    for mask, box in zip(masks, boxes, strict=True):
        u = 2 * (xs - box[0]) / (box[2] - box[0]) - 1
        v = 2 * (ys - box[1]) / (box[3] - box[1]) - 1
        grid = torch.stack(torch.meshgrid(u, v, indexing="xy"), -1)[None]
        sampled = F.grid_sample(mask[None, None], grid, align_corners=False)[0, 0].numpy()
        full = paste(mask.numpy(), box.numpy(), (h, w))
        clear = np.abs(sampled - 0.5) > 1e-4  # float32 rounding decides the others
        np.testing.assert_array_equal(full[clear], (sampled >= 0.5)[clear])


def test_paste_equals_torchvision_on_the_box_that_it_rounds_to():
    """torchvision pads the mask by one sample, truncates the grown box to whole pixels and adds one to its sides."""
    masks, boxes = blobs(30, 2)
    boxes[:, 2:] += 20
    theirs = paste_masks_in_image(masks[:, None], boxes, (140, 180), padding=1)[:, 0].numpy()
    grown = expand_boxes(boxes, 30 / 28).long()
    sides = grown[:, 2:] - grown[:, :2] + 1
    low = grown[:, :2] + sides / 30
    rounded = torch.cat([low, low + sides * (28 / 30)], 1)
    assert (rounded - boxes).abs().max() < 1.1
    for mask, box, other in zip(masks, rounded, theirs, strict=True):
        full = paste(mask.numpy(), box.numpy(), other.shape)
        clear = np.abs(other - 0.5) > 1e-3
        assert other[clear].max() > 0.5
        np.testing.assert_array_equal(full[clear], (other >= 0.5)[clear])


def test_paste_keeps_to_valid_pixels_of_the_chip():
    valid = whole((30, 20))
    valid[:, :5] = False
    box, mask = paste_mask(np.ones((28, 28), np.float32), np.float32([-10, -10, 25, 12]), valid)
    assert box == (5, 0, 20, 12)
    assert mask.all()
    for nowhere in ([-10, 2, 4, 9], [22, 2, 30, 9], [3, 31, 9, 40]):
        box, mask = paste_mask(np.ones((28, 28), np.float32), np.float32(nowhere), valid)
        assert (box, mask.any()) == ((0, 0, 1, 1), False)
