"""The loss of networks that are asked with prompts: what is asked for, how, and what an answer costs."""

import pytest
import torch

from rsgeoseg.backbones import prompt_loss
from rsgeoseg.backbones.drawn_prompts import draw_prompts, under_prompts
from rsgeoseg.backbones.prompt_loss import PromptLoss
from rsgeoseg.backbones.promptable import DecodedMasks, build_promptable
from rsgeoseg.nn.targets import Target


def two_squares(side=128):
    masks = torch.zeros(2, side, side, dtype=torch.uint8)
    masks[0, 20:50, 30:70] = 1
    masks[1, 80:120, 60:100] = 1
    boxes = torch.tensor([[30.0, 20, 70, 50], [60, 80, 100, 120]])
    return Target(labels=torch.tensor([0, 1]), boxes=boxes, masks=masks)


def nothing(side=128):
    return Target(
        labels=torch.zeros(0, dtype=torch.int64),
        boxes=torch.zeros(0, 4),
        masks=torch.zeros(0, side, side, dtype=torch.uint8),
    )


def test_loss_has_gradients_everywhere():
    torch.manual_seed(0)
    network = build_promptable("lite", pretrained=False, loss_config=PromptLoss(points=128)).train()
    images = torch.randint(0, 255, (2, 3, 128, 128), dtype=torch.uint8)
    seen = set()
    for _ in range(6):  # which of three masks is best, and where a background click falls, is a matter of chance
        terms = network.loss(images, [two_squares(), two_squares()])
        assert set(terms) == {"mask", "dice", "iou"}
        network.zero_grad()
        sum(terms.values()).backward()
        seen |= {n for n, p in network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    silent = {n for n, p in network.named_parameters() if p.requires_grad} - seen
    # which of the three masks wins may not change
    assert [n for n in silent if not n.startswith("sam.mask_decoder.output_hypernetworks_mlps.")] == []


@pytest.mark.parametrize("ways", [("boxes",), ("clicks",), ("masks",), ("boxes", "clicks")])
def test_one_can_train_some_ways_of_asking(ways):
    torch.manual_seed(0)
    network = build_promptable("lite", pretrained=False, loss_config=PromptLoss(points=64, ways=ways)).train()
    images = torch.randint(0, 255, (2, 3, 128, 128), dtype=torch.uint8)
    sum(network.loss(images, [two_squares(), nothing()]).values()).backward()
    corner = network.sam.prompt_encoder.point_embeddings[2].weight.grad
    assert (corner is not None and bool(corner.any())) is ("boxes" in ways)


def test_objects_are_asked_for_again_where_there_are_few():
    torch.manual_seed(0)
    network = build_promptable("lite", pretrained=False)
    scene = network.look(torch.randn(2, 3, 128, 128))
    chosen = prompt_loss._choose([two_squares(), two_squares()], scene, 10)
    counts = torch.bincount(chosen.which, minlength=4)
    assert counts.sum() == 10
    assert counts.min() >= 2
    assert chosen.image.tolist() == (chosen.which // 2).tolist()
    assert len(prompt_loss._choose([two_squares()], scene, 1).which) == 1
    assert len(prompt_loss._choose([nothing(), nothing()], scene, 10).which) == 0


def test_earlier_masks_are_spoiled_and_clicked_where_they_are_wrong():
    torch.manual_seed(0)
    truth = prompt_loss._small(two_squares().masks, (32, 32)).repeat(20, 1, 1)
    spoiled = prompt_loss._spoiled(truth)
    both, either = (truth & spoiled).flatten(1).sum(1), (truth | spoiled).flatten(1).sum(1)
    assert ((both / either) < 1).all()
    assert (both > 0).all()
    assert 0.3 < (both / either).mean() < 0.9
    labels = set()
    for before, after in zip(spoiled, truth, strict=True):
        place, label = prompt_loss._correction(before, after)
        x, y = ((place - 1.5) / 4).int().tolist()
        assert bool(before[y, x]) is not bool(after[y, x])
        assert bool(after[y, x]) is bool(label)
        labels.add(label)
    assert labels == {0, 1}
    place, label = prompt_loss._correction(truth[0], truth[0])
    assert label == 1
    assert not prompt_loss._spoiled(torch.zeros(1, 8, 8, dtype=torch.bool)).any()
    assert prompt_loss._correction(*torch.zeros(2, 8, 8, dtype=torch.bool))[1] == 0


def test_what_lies_under_a_prompt_is_averaged():
    image = torch.arange(2 * 4 * 4, dtype=torch.float32).view(1, 2, 4, 4)
    drawn = draw_prompts((16, 16), boxes=torch.tensor([[16.0, 32, 48, 48]]))
    torch.testing.assert_close(under_prompts(image, drawn), image[:, :, 2, 1:3].mean(-1))
    no = torch.zeros(1, 1, dtype=torch.int64)
    background = draw_prompts((16, 16), points=torch.tensor([[[20.0, 20]]]), point_labels=no, boxes=None)
    assert not under_prompts(image, background).any()
    yes = draw_prompts((16, 16), points=torch.tensor([[[23.5, 39.5]]]), point_labels=no + 1, boxes=None)
    expected = image[0, :, 2, 1]  # the click's bump is symmetric about the middle of its cell
    torch.testing.assert_close(under_prompts(image, yes)[0], expected, atol=0.2, rtol=0)
    assert under_prompts(image[:0], yes[:0]).shape == (0, 2)


def test_images_without_objects_have_a_loss():
    torch.manual_seed(0)
    network = build_promptable("lite", pretrained=False).train()
    images = torch.randint(0, 255, (2, 3, 128, 128), dtype=torch.uint8)
    for targets in ([two_squares(), nothing()], [nothing(), nothing()]):
        total = sum(network.loss(images, targets).values())
        assert torch.isfinite(total)
        total.backward()


def test_loss_falls_where_the_answer_is_right():
    """Perfect logits and qualities cost nearly nothing; the same for the wrong objects cost much."""
    target = two_squares()
    objects = prompt_loss._Objects(torch.zeros(2, dtype=torch.int64), target.boxes, target.masks, torch.tensor([0, 1]))
    right = (target.masks[:, ::4, ::4].float() * 2 - 1) * 20
    config = PromptLoss(points=512)
    good = prompt_loss._compare(DecodedMasks(right[:, None], torch.ones(2, 1)), objects, config)
    bad = prompt_loss._compare(DecodedMasks(right.flip(0)[:, None], torch.ones(2, 1)), objects, config)
    assert float(good[2]) < 1e-2
    assert float(bad[2]) > 0.9
    assert float(good[1]) < 0.2
    assert float(bad[1]) > 0.9
    three = DecodedMasks(torch.stack([right.flip(0), right, -right], 1), torch.tensor([[0.0, 1.0, 0.0]] * 2))
    assert float(prompt_loss._compare(three, objects, config)[1]) < 0.2  # the best of three counts
