"""RSPrompter-query on `lite` and on a small plain encoder: contract, savings, options, learning."""

import dataclasses

import numpy as np
import pytest
import tiny_chips
import torch
from plain_encoder import PlainEncoder
from torch.nn import functional as F

from rsgeoseg.contract import Segmenter
from rsgeoseg.errors import ModelError
from rsgeoseg.models import rsprompter_query as rq
from rsgeoseg.models.rsprompter_query.config import QueryConfig
from rsgeoseg.models.rsprompter_query.loss import LossConfig
from rsgeoseg.models.rsprompter_query.network import RSPrompterQuery
from rsgeoseg.nn.ellipses import ellipse_map
from rsgeoseg.nn.masks import crop_mask, main_parts
from rsgeoseg.nn.targets import Target
from rsgeoseg.testing.contract import SegmenterContract

CLASSES = ("disc", "square")


def lite_network(seed=0):
    torch.manual_seed(seed)
    network = rq.build("lite", rq.default_config("lite", CLASSES), pretrained=False)
    torch.nn.init.constant_(network.centre_head.heat.bias, 0.0)  # random weights that do see objects
    torch.nn.init.normal_(network.centre_head.heat.weight, std=0.2)
    torch.nn.init.normal_(network.cls_embed[-1].weight, std=0.3)
    return network.eval()


class TestLiteContract(SegmenterContract):
    @pytest.fixture(scope="class")
    def segmenter(self):
        return rq.segmenter(lite_network(), score_threshold=0.2)

    def test_is_a_segmenter_that_finds_something(self, segmenter):
        assert isinstance(segmenter, Segmenter)
        assert len(segmenter.segment([self.chip(segmenter)])[0]) > 0


class TestPlainContract(SegmenterContract):
    @pytest.fixture(scope="class")
    def segmenter(self):
        torch.manual_seed(1)
        config = QueryConfig(
            classes=CLASSES, num_queries=8, width=32, mask_channels=32, hidden=64, decoder_layers=2, heads=4
        )
        return rq.segmenter(RSPrompterQuery(PlainEncoder(), config).eval(), score_threshold=0.2, overlap=64)


def test_dropping_hopeless_queries_leaves_the_result_unchanged():
    """Only queries that can reach the threshold go through SAM's decoder; filtering afterwards gives the same."""
    network = lite_network()
    chip = SegmenterContract().chip(rq.segmenter(network), 3)
    everything = rq.segmenter(network, score_threshold=0.0)
    everything.autocast = False
    thrifty = everything.at_threshold(0.4)
    a, b = everything.segment([chip])[0], thrifty.segment([chip])[0]
    keep = a.scores >= 0.4
    assert 0 < keep.sum() < len(a)
    np.testing.assert_allclose(np.sort(a.scores[keep]), np.sort(b.scores), atol=1e-5)
    assert {tuple(x) for x in a.boxes[keep].tolist()} == {tuple(x) for x in b.boxes.tolist()}


class SlopeAndNoise(torch.nn.Module):
    """Centre maps of which the first image's has one peak on a high slope, and the others' many peaks."""

    def forward(self, maps):
        logits = []
        for x in maps:
            batch, _, h, w = x.shape
            slope = torch.linspace(1.0, 2.0, h * w).reshape(1, 1, h, w).expand(1, len(CLASSES), h, w)
            noise = torch.randn(batch - 1, len(CLASSES), h, w, generator=torch.Generator().manual_seed(0))
            logits.append(torch.cat([slope, noise]))
        return logits, list(maps)


def test_cells_beside_a_peak_are_no_queries_however_many_the_other_chips_of_a_batch_want():
    network = lite_network()
    network.centre_head = SlopeAndNoise()
    segmenter = rq.segmenter(network, score_threshold=0.05)
    segmenter.autocast = False
    chips = [SegmenterContract().chip(segmenter, seed) for seed in (0, 1)]
    alone, together = segmenter.segment(chips[:1])[0], segmenter.segment(chips)
    assert 0 < len(alone) <= 3 * len(CLASSES)  # a peak for each of three maps
    assert len(together[1]) > 3 * len(CLASSES)
    assert np.array_equal(together[0].labels, alone.labels)
    np.testing.assert_allclose(together[0].scores, alone.scores, rtol=1e-3)


@pytest.mark.parametrize("shift", [0, 3, 17])
def test_crop_mask_equals_upsampling_everything(shift):
    torch.manual_seed(shift)
    rough = torch.randn(1, 1, 9, 9) - 0.5
    logits = F.interpolate(rough, size=(40, 36), mode="bicubic")[0, 0]
    valid = np.ones((4 * 40 - shift, 4 * 36 - shift), np.bool_)
    valid[5:20, 30:60] = False
    full = F.interpolate(logits[None, None], scale_factor=4.0, mode="bilinear", align_corners=False)[0, 0].numpy()
    full = full[: valid.shape[0], : valid.shape[1]]
    expected = main_parts((full > 0) & valid)
    (x0, y0, x1, y1), mask, quality = crop_mask(logits, valid)
    pasted = np.zeros_like(valid)
    pasted[y0:y1, x0:x1] = mask
    np.testing.assert_array_equal(pasted, expected)
    assert quality == pytest.approx((1 / (1 + np.exp(-full[expected]))).mean(), abs=1e-5)


def test_main_parts_leaves_specks_out():
    mask = np.zeros((12, 20), np.bool_)
    mask[1:5, 1:5] = True  # 16 pixels
    mask[8:11, 2:6] = True  # 12: stays
    mask[1:3, 10:13] = True  # 6: goes
    mask[11, 19] = True
    kept = main_parts(mask)
    assert kept[1:5, 1:5].all()
    assert kept[8:11, 2:6].all()
    assert kept.sum() == 28


def test_crop_mask_of_nothing():
    box, mask, quality = crop_mask(torch.full((8, 8), -1.0), np.ones((32, 32), np.bool_))
    assert (box, quality) == ((0, 0, 1, 1), 0.0)
    assert not mask.any()


def test_reduced_attention_masks_equal_full_ones():
    """Interpolating the mask feature and interpolating the masks is the same: the dot product is linear."""
    torch.manual_seed(0)
    feature, kernels = torch.randn(1, 8, 32, 32), torch.randn(1, 5, 8)
    full = torch.einsum("bqc,bchw->bqhw", kernels, feature)
    of_masks = F.interpolate(full, size=(8, 8), mode="bilinear", align_corners=False)
    reduced = F.interpolate(feature, size=(8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(torch.einsum("bqc,bchw->bqhw", kernels, reduced), of_masks, atol=1e-5, rtol=1e-5)


def test_ellipse_is_positive_inside_and_negative_far_away():
    logits = ellipse_map(
        torch.zeros(1, 5), torch.tensor([[64.0, 32.0]]), torch.tensor([32.0]), shape=(32, 32), stride=4
    )
    assert logits[0, 8, 16] > 2  # the centre, x 64 y 32
    assert logits[0, 8, 16 + 3] > 0  # 12 px away, half a side is 16
    assert logits[0, 8, 16 + 8] < 0
    assert logits[0, 31, 0] < logits[0, 20, 10] < 0


def test_coarse_logits_at_points_equal_the_map():
    network = lite_network()
    with torch.no_grad():
        scene = network.look(torch.randn(1, 3, 128, 128))
        queries = network.start(scene, 6)
        prediction = network.decode(scene, queries)[-1]
        every = torch.arange(6)
        full = network.coarse_logits(scene, prediction, queries.centres, torch.zeros_like(every), every)
        rows, columns = torch.tensor([3, 17, 30]), torch.tensor([8, 0, 31])
        points = torch.stack([(columns + 0.5) / 32, (rows + 0.5) / 32], -1)
        at = network.coarse_at(scene, prediction, queries.centres, 0, points)
    torch.testing.assert_close(at, full[:, rows, columns], atol=1e-3, rtol=1e-3)


def test_a_crop_is_the_corner_of_a_large_frame():
    """The positional frame makes a crop at an origin equal to that part of a full-size map."""
    from rsgeoseg.nn.positions import cell_positions

    full = cell_positions(8, 8, stride=16, extent=128, features=8, device=torch.device("cpu"))
    part = cell_positions(4, 4, stride=16, extent=128, features=8, device=torch.device("cpu"), origin=(48.0, 32.0))
    torch.testing.assert_close(full.view(8, 8, -1)[2:6, 3:7].reshape(16, -1), part)


def test_local_masks_need_centres():
    with pytest.raises(ValueError, match="centre"):
        QueryConfig(classes=CLASSES, local_masks=True)


def test_config_round_trip():
    config = rq.default_config("lite", CLASSES)
    assert rq.config_from_dict(rq.config_to_dict(config)) == config


def shapes(count, side, seed):
    """Discs and squares on noise, with exact masks."""
    rng = np.random.default_rng(seed)
    images, targets = [], []
    ys, xs = np.mgrid[:side, :side]
    for _ in range(count):
        image = rng.integers(40, 90, (3, side, side)).astype(np.uint8)
        masks, labels = [], []
        for cx, cy in np.array([[side * 0.28, side * 0.3], [side * 0.7, side * 0.66]]) + rng.uniform(-8, 8, (2, 2)):
            r, label = rng.uniform(12, 20), int(rng.integers(2))
            inside = (
                (xs - cx) ** 2 + (ys - cy) ** 2 <= r * r
                if label == 0
                else (abs(xs - cx) <= r * 0.9) & (abs(ys - cy) <= r * 0.9)
            )
            image[:, inside] = rng.integers(150, 250, (3, 1))
            masks.append(inside)
            labels.append(label)
        boxes = [
            [m.any(0).argmax(), m.any(1).argmax(), side - m.any(0)[::-1].argmax(), side - m.any(1)[::-1].argmax()]
            for m in masks
        ]
        images.append(torch.from_numpy(image))
        targets.append(
            Target(
                labels=torch.tensor(labels),
                boxes=torch.tensor(np.array(boxes), dtype=torch.float32),
                masks=torch.from_numpy(np.stack(masks).astype(np.uint8)),
            )
        )
    return torch.stack(images), targets


def test_loss_has_gradients_everywhere():
    network = lite_network().train()
    images, targets = shapes(2, 128, 0)
    terms = network.loss(images, targets)
    assert set(terms) == {"class", "mask", "dice", "coarse_mask", "coarse_dice", "centre"}
    sum(terms.values()).backward()
    silent = [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]
    unused = (
        "sam.prompt_encoder.point_embeddings",
        "sam.prompt_encoder.not_a_point",
        "sam.prompt_encoder.no_mask",
        "sam.mask_decoder.iou_prediction_head",
        "sam.mask_decoder.output_hypernetworks_mlps.1",
        "sam.mask_decoder.output_hypernetworks_mlps.2",
        "sam.mask_decoder.output_hypernetworks_mlps.3",
    )
    assert [n for n in silent if not n.startswith(unused)] == []


def test_an_image_without_objects_has_a_loss():
    network = lite_network().train()
    images, targets = shapes(2, 128, 0)
    empty = Target(
        labels=torch.zeros(0, dtype=torch.int64),
        boxes=torch.zeros(0, 4),
        masks=torch.zeros(0, 128, 128, dtype=torch.uint8),
    )
    for some in ([targets[0], empty], [empty, empty]):
        total = sum(network.loss(images, some).values())
        assert torch.isfinite(total)
        total.backward()


@pytest.mark.slow
def test_it_learns():
    """From random heads, a short training finds every object of its own pictures."""
    torch.manual_seed(0)
    config = dataclasses.replace(rq.default_config("lite", tiny_chips.CLASSES), num_queries=20, decoder_mlp=256)
    loss = dataclasses.replace(rq.default_loss("lite"), points=1024, fine_masks=4)
    network = rq.build("lite", config, loss)
    before, after = tiny_chips.learn(network, 300, 5e-4, per_step=1)
    assert after < before / 5
    assert tiny_chips.mask_ap50(rq.segmenter(network, score_threshold=0.05)) >= 0.9


@pytest.mark.slow
def test_builds_on_sam_vit_b_from_an_official_file(tmp_path):
    """Encoder, prompt encoder and mask decoder come from the file; the encoder is frozen, the decoder is trained."""
    from segment_anything import sam_model_registry

    torch.manual_seed(0)
    official = sam_model_registry["vit_b"]().state_dict()
    torch.save(official, tmp_path / "sam_vit_b.pth")
    config = dataclasses.replace(rq.default_config("sam-vit-b", CLASSES), num_queries=5, decoder_layers=1)
    network = rq.build("sam-vit-b", config, LossConfig(points=256), sam_checkpoint=tmp_path / "sam_vit_b.pth").train()
    ours = network.state_dict()
    for name, tensor in official.items():
        if name.startswith(("prompt_encoder.", "mask_decoder.")):
            assert torch.equal(ours[f"sam.{name}"], tensor), name
    images, targets = shapes(1, 128, 0)
    terms = network.loss(images, targets)
    sum(terms.values()).backward()
    assert all(p.grad is None for p in network.encoder.parameters())
    assert network.sam.mask_decoder.mask_tokens.weight.grad.abs().sum() > 0
    assert network.neck.feature_aggregator.fusion_conv[-1].weight.grad.abs().sum() > 0


@pytest.mark.slow
def test_builds_on_an_official_sam2_file(tmp_path):
    """SAM 2's stages are the pyramid, its maps at strides 4 and 8 the decoder's skip connections."""
    sam2 = pytest.importorskip("sam2.build_sam", reason="NOT RUN: the package sam2 is not installed")
    torch.manual_seed(0)
    official = sam2.build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", ckpt_path=None, device="cpu").state_dict()
    torch.save({"model": official}, tmp_path / "sam2.1_hiera_tiny.pt")
    config = dataclasses.replace(rq.default_config("sam2-hiera-t", CLASSES), num_queries=5, decoder_layers=1)
    path = tmp_path / "sam2.1_hiera_tiny.pt"
    network = rq.build("sam2-hiera-t", config, LossConfig(points=256), sam_checkpoint=path).train()
    ours = network.state_dict()
    for name in ("trunk.patch_embed.proj.weight", "neck.convs.0.conv.weight"):
        assert torch.equal(ours[f"encoder.image_encoder.{name}"], official[f"image_encoder.{name}"]), name
    assert torch.equal(ours["sam.conv_s0.weight"], official["sam_mask_decoder.conv_s0.weight"])
    sum(network.loss(*shapes(1, 128, 0)).values()).backward()
    assert all(p.grad is None for p in network.encoder.parameters())
    for part in (network.sam.conv_s0, network.neck.coarsest[0], network.pixel_decoder.input_convs[0].conv):
        assert part.weight.grad.abs().sum() > 0


def test_lite_takes_no_sam_file(tmp_path):
    with pytest.raises(ModelError, match="sam-vit-b"):
        rq.build("lite", rq.default_config("lite", CLASSES), sam_checkpoint=tmp_path / "sam.pth")


def test_numerics_differ_by_name_only():
    """Both numerics build; the released one has twice the prompt width and one more layer."""
    paper = RSPrompterQuery(PlainEncoder(), QueryConfig(classes=CLASSES, width=32, mask_channels=32, hidden=64))
    released = RSPrompterQuery(PlainEncoder(), dataclasses.replace(paper.config, numerics="released"))
    assert len(released.point_emb) == len(paper.point_emb) + 2
    assert released.point_emb[-1].out_features == 2 * paper.point_emb[-1].out_features
    assert torch.count_nonzero(paper.query_feat.weight) == 0
