"""RSPrompter-anchor on `lite` and on a small plain encoder: contract, savings, gradients, options, learning."""

import dataclasses

import numpy as np
import pytest
import tiny_chips
import torch
from plain_encoder import PlainEncoder

from rsgeoseg.backbones.chips import images_of
from rsgeoseg.backbones.fitted import Fit, fit_images
from rsgeoseg.contract import Chip, Segmenter
from rsgeoseg.errors import ModelError
from rsgeoseg.models import rsprompter_anchor as model
from rsgeoseg.models.rsprompter_anchor.config import AnchorConfig, LossConfig
from rsgeoseg.models.rsprompter_anchor.network import RSPrompterAnchor
from rsgeoseg.models.rsprompter_anchor.released import released_masks
from rsgeoseg.nn.masks import crop_mask
from rsgeoseg.nn.targets import Target
from rsgeoseg.testing.contract import SegmenterContract
from rsgeoseg.weights.files import read_weights, write_weights

CLASSES = ("disc", "square")
UNUSED = (
    "sam.prompt_encoder.point_embeddings",
    "sam.prompt_encoder.not_a_point",
    "sam.mask_decoder.iou_prediction_head",
    "sam.mask_decoder.output_hypernetworks_mlps.1",
    "sam.mask_decoder.output_hypernetworks_mlps.2",
    "sam.mask_decoder.output_hypernetworks_mlps.3",
)
"""Parts of SAM that no prompt embedding goes through, and the masks for prompts that leave doubt."""
NO_MASK, MASKS = "sam.prompt_encoder.no_mask_embed", "sam.prompt_encoder.mask_downscaling"
"""The dense prompt of a network without coarse masks, and of one with them."""


def seeing(network):
    """Random weights that do tell boxes and pixels apart."""
    torch.nn.init.normal_(network.box_head.fc_cls.weight, std=0.3)
    torch.nn.init.normal_(network.box_head.fc_reg.weight, std=0.05)
    torch.nn.init.normal_(network.sam.mask_decoder.output_hypernetworks_mlps[0].layers[-1].weight, std=0.1)
    return network.eval()


def lite_network(seed=0):
    torch.manual_seed(seed)
    config = dataclasses.replace(model.default_config("lite", CLASSES), width=64, box_hidden=64, proposals=50)
    loss = dataclasses.replace(model.default_loss("lite"), rois=32, points=256)
    return seeing(model.build("lite", config, loss, pretrained=False))


def plain_network(seed=0, **options):
    torch.manual_seed(seed)
    small = {"width": 32, "box_hidden": 64, "proposals": 50, "decoder_mlp": 64, **options}
    return seeing(RSPrompterAnchor(PlainEncoder(), AnchorConfig(classes=CLASSES, **small), LossConfig(rois=32)))


class TestLiteContract(SegmenterContract):
    @pytest.fixture(scope="class")
    def segmenter(self):
        return model.segmenter(lite_network(), score_threshold=0.2)

    def test_is_a_segmenter_that_finds_something(self, segmenter):
        assert isinstance(segmenter, Segmenter)
        assert len(segmenter.segment([self.chip(segmenter)])[0]) > 0


class TestPlainContract(SegmenterContract):
    @pytest.fixture(scope="class")
    def segmenter(self):
        return model.segmenter(plain_network(1), score_threshold=0.2, overlap=64)


class TestSquashContract(SegmenterContract):
    """The published files of 2023: chips resized to the encoder's square."""

    @pytest.fixture(scope="class")
    def segmenter(self):
        network = plain_network(1, generation="2023", numerics="released", resize="squash")
        return model.segmenter(network, score_threshold=0.2, overlap=64)

    def test_finds_something(self, segmenter):
        assert len(segmenter.segment([self.chip(segmenter)])[0]) > 0


class TestLongestContract(SegmenterContract):
    """Files of the code of 2024: the longer side resized, the rest padded."""

    @pytest.fixture(scope="class")
    def segmenter(self):
        return model.segmenter(plain_network(1, numerics="released", resize="longest"), score_threshold=0.2, overlap=64)

    def test_finds_something(self, segmenter):
        assert len(segmenter.segment([self.chip(segmenter)])[0]) > 0


@pytest.mark.parametrize("options", [{}, {"numerics": "released", "resize": "longest"}])
def test_a_threshold_before_nms_equals_one_after(options):
    """Faint boxes suppress no stronger ones, so leaving them out early changes nothing."""
    network = plain_network(**options)
    chip = SegmenterContract().chip(model.segmenter(network), 3)
    everything = model.segmenter(network, score_threshold=0.0)
    everything.autocast, everything.max_instances = False, 10_000
    a = everything.segment([chip])[0]
    threshold = float(np.median(a.scores))
    b = everything.at_threshold(threshold).segment([chip])[0]
    keep = a.scores > threshold
    assert 0 < keep.sum() < len(a)
    np.testing.assert_array_equal(a.boxes[keep], b.boxes)
    np.testing.assert_allclose(a.scores[keep], b.scores, atol=1e-6)
    assert a.scores.min() > 0.05


def test_a_mask_score_is_the_product_of_two_probabilities():
    segmenter = model.segmenter(plain_network(mask_scores=True), score_threshold=0.05)
    segmenter.autocast = False
    chip = SegmenterContract().chip(segmenter, 3)
    (found,) = segmenter.segment([chip])
    with torch.inference_mode():
        images = images_of([chip], segmenter.network.encoder.spec, torch.device("cpu"))
        (boxes,), (logits,) = segmenter._detect(segmenter.network.look(images))
    qualities = np.array([crop_mask(mask, chip.valid)[2] for mask in logits])
    scores = np.sort(boxes.scores.numpy() * qualities)[::-1]
    assert 0.5 < qualities[qualities > 0].min() < qualities.max() < 1
    assert len(found) > 0
    np.testing.assert_allclose(found.scores, scores[scores >= 0.05], atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"numerics": "released", "resize": "longest"}])
def test_a_network_that_proposes_nothing_finds_nothing(options):
    network = plain_network(**options)
    torch.nn.init.constant_(network.rpn.head.bbox_pred.bias, 1e4)  # all boxes far outside the chip
    segmenter = model.segmenter(network, score_threshold=0.1)
    assert len(segmenter.segment([SegmenterContract().chip(segmenter)])[0]) == 0


def objects(count=2, side=128):
    masks = torch.zeros(count, side, side, dtype=torch.uint8)
    boxes = torch.tensor([[8.0 + 40 * i, 16, 40 + 40 * i, 60] for i in range(count)]).reshape(-1, 4)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = 1
    return Target(labels=torch.arange(count) % 2, boxes=boxes, masks=masks)


@pytest.mark.parametrize(
    ("make", "terms", "unused"),
    [
        (lite_network, {"mask", "dice", "coarse"}, NO_MASK),
        (plain_network, {"mask"}, MASKS),
        (lambda: plain_network(generation="2023", numerics="released"), {"mask"}, MASKS),
    ],
    ids=["lite", "plain", "2023"],
)
def test_loss_has_gradients_everywhere(make, terms, unused):
    network = make().train()
    images = torch.randint(0, 255, (2, 3, 128, 128), dtype=torch.uint8)
    losses = network.loss(images, [objects(), objects(1)])
    assert set(losses) == {"rpn_class", "rpn_box", "class", "box", *terms}
    sum(losses.values()).backward()
    skipped = (*UNUSED, unused)
    trained = [(n, p) for n, p in network.named_parameters() if p.requires_grad and not n.startswith(skipped)]
    assert [n for n, p in trained if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("make", [lite_network, plain_network])
def test_an_image_without_objects_has_a_loss(make):
    network = make().train()
    images = torch.randint(0, 255, (2, 3, 128, 128), dtype=torch.uint8)
    for some in ([objects(), objects(0)], [objects(0), objects(0)]):
        terms = network.loss(images, some)
        assert all(torch.isfinite(term) for term in terms.values())
        sum(terms.values()).backward()
    assert terms["box"].item() == 0
    assert terms["class"].item() > 0
    assert all(value.item() == 0 for name, value in terms.items() if name in ("mask", "dice", "coarse"))


def test_mask_loss_is_the_paper_s_on_every_pixel():
    """Eq. 5: cross-entropy of the decoded mask, at the image's size, with the whole image's mask of its object."""
    network = plain_network().train()
    images = torch.randint(0, 255, (1, 3, 128, 128), dtype=torch.uint8)
    truth = objects(1)
    network.rpn.eval()  # proposals do not matter: the object's own box is among the samples
    seen = {}
    original = network.masks
    network.masks = lambda scene, boxes: seen.setdefault("masks", original(scene, boxes))
    terms = network.loss(images, [truth])
    logits = torch.nn.functional.interpolate(seen["masks"][0][:, None], size=(128, 128), mode="bilinear")[:, 0]
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth.masks.float().expand_as(logits))
    torch.testing.assert_close(terms["mask"], expected)


def test_saved_weights_come_back(tmp_path):
    network = lite_network()
    network.load_state_dict(
        {n: t.half().float() if t.is_floating_point() else t for n, t in network.state_dict().items()}
    )
    write_weights(tmp_path / "w.safetensors", network.state_dict(), model.describe(network))
    loaded = model.load(tmp_path / "w.safetensors", "cpu")
    assert loaded.network.config == network.config
    assert loaded.spec.weights_id.startswith("w.safetensors@")
    assert loaded.lowest == loaded.spec.score_threshold == 0.5
    assert read_weights(tmp_path / "w.safetensors").description["model"] == "rsprompter-anchor"
    chip = SegmenterContract().chip(loaded, 3)
    a, b = loaded.at_threshold(0.1).segment([chip])[0], model.segmenter(network, score_threshold=0.1).segment([chip])[0]
    assert len(a) > 0
    np.testing.assert_array_equal(a.boxes, b.boxes)
    np.testing.assert_array_equal(a.scores, b.scores)


def test_lite_takes_no_sam_file(tmp_path):
    with pytest.raises(ModelError, match="sam-vit-b"):
        model.build("lite", model.default_config("lite", CLASSES), sam_checkpoint=tmp_path / "sam.pth")


def test_decoder_share_lies_between_coarse_and_decoded_masks():
    network = lite_network()
    boxes = [torch.tensor([[8.0, 8.0, 70.0, 60.0]])]
    with torch.no_grad():
        last = network.sam.mask_decoder.output_hypernetworks_mlps[0].layers[-1]
        torch.nn.init.normal_(last.weight, std=0.5)
        scene = network.look(torch.randn(1, 3, 128, 128))
        drawn = []
        for share in (0.0, 0.5, 1.0):
            network.config = dataclasses.replace(network.config, decoder_share=share)
            drawn.append(network.masks(scene, boxes)[0])
    coarse, half, whole = drawn
    assert (whole - coarse).abs().max() > 0.1
    torch.testing.assert_close(half, (coarse + whole) / 2, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="between 0 and 1"):
        dataclasses.replace(network.config, decoder_share=1.5)


def test_coarse_masks_are_for_the_pyramid_of_2024():
    with pytest.raises(ValueError, match="2023"):
        AnchorConfig(classes=CLASSES, coarse_masks=True, generation="2023")


def test_numerics_differ_by_name_only():
    """The released prompt head gives twice the numbers, and Hugging Face's norms another epsilon, but for the last."""
    paper, released = plain_network(), plain_network(numerics="released")
    assert released.prompt_head.point_emb[-1].out_features == 2 * paper.prompt_head.point_emb[-1].out_features
    eps = [
        {norm.eps for norm in network.sam.mask_decoder.transformer.layers.modules() if hasattr(norm, "eps")}
        for network in (paper, released, plain_network(generation="2023", numerics="released"))
    ]
    assert eps == [{1e-5}, {1e-6}, {1e-5}]
    assert released.sam.mask_decoder.transformer.norm_final_attn.eps == 1e-5


def test_released_numerics_compute_in_float32():
    assert not model.segmenter(plain_network(numerics="released")).autocast


# --- resized chips -------------------------------------------------------------------------------------------------


def test_plans_of_both_generations():
    assert Fit.of((333, 500), 1024, "none") is None
    squash, longest = Fit.of((333, 500), 1024, "squash"), Fit.of((333, 500), 1024, "longest")
    assert (squash.resized, longest.resized) == ((1024, 1024), (682, 1024))
    assert longest.cut == (681, 1024)
    assert Fit.of((1024, 1024), 1024, "longest").cut == (1024, 1024)
    assert Fit.of((2000, 500), 1024, "longest").resized == (1024, 256)
    assert Fit.of((5000, 1), 1024, "longest").resized == (1024, 1)  # never nothing


def test_pixels_stay_whole_numbers_when_squashed_only():
    """2023 resized bytes, 2024 floats; beyond the picture and where it has no data lies the mean."""
    spec = dataclasses.replace(PlainEncoder().spec, mean=(100.0, 50.0, 25.0), std=(1.0, 1.0, 1.0))
    image = np.zeros((3, 2, 4), np.uint8)
    image[:, :, 2:] = 255
    chip = Chip(image=image, valid=np.ones((2, 4), np.bool_))
    mean = torch.tensor(spec.mean)[:, None, None]
    for policy, whole in (("squash", True), ("longest", False)):
        fit = Fit.of((2, 4), spec.image_size, policy)
        pixels = fit_images([chip], spec, fit, torch.device("cpu"))[0] + mean
        assert bool((pixels == pixels.round()).all()) == whole
        assert pixels[0, :, 0].tolist()[: fit.resized[0]] == [0.0] * fit.resized[0]
    assert (pixels[:, 128:] == mean).all()
    nothing = Chip(image=image, valid=np.zeros((2, 4), np.bool_))
    assert fit_images([nothing], spec, fit, torch.device("cpu")).abs().max() == 0


def test_probabilities_go_back_once_or_twice():
    logits = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0))
    resize = torch.nn.functional.interpolate
    once = released_masks(logits, Fit.of((100, 150), 256, "squash"), "2023")
    expected = resize(logits[:, None].sigmoid(), size=(100, 150), mode="bilinear")[:, 0] >= 0.5
    assert torch.equal(once, expected)
    fit = Fit.of((333, 500), 256, "longest")
    square = resize(logits[:, None].sigmoid(), size=(256, 256), mode="bilinear")
    h, w = int(333 * (fit.resized[0] / 333)), int(500 * (fit.resized[1] / 500))
    expected = resize(square[..., :h, :w], size=(333, 500), mode="bilinear")[:, 0] >= 0.5
    assert torch.equal(released_masks(logits, fit, "2024"), expected)


# --- SAM and SAM 2 -------------------------------------------------------------------------------------------------


def check_frozen(network):
    images = torch.randint(0, 255, (1, 3, 128, 128), dtype=torch.uint8)
    sum(network.train().loss(images, [objects()]).values()).backward()
    assert all(p.grad is None and not p.requires_grad for p in network.encoder.parameters())
    assert network.sam.mask_decoder.mask_tokens.weight.grad.abs().sum() > 0
    assert network.prompt_head.point_emb[0].weight.grad.abs().sum() > 0
    assert network.box_head.shared_fcs[0].weight.grad.abs().sum() > 0
    with torch.no_grad():
        training = network.encoder(images.float()).embedding
        assert torch.equal(network.eval().encoder(images.float()).embedding, training)


def small(backbone):
    config = model.default_config(backbone, CLASSES)
    return dataclasses.replace(config, width=32, box_hidden=32), LossConfig(rois=16, points=256)


@pytest.mark.slow
def test_builds_on_an_official_sam_file(tmp_path):
    """Encoder, prompt encoder and mask decoder come from the file; the encoder is frozen, the decoder is trained."""
    from segment_anything import sam_model_registry

    torch.manual_seed(0)
    official = sam_model_registry["vit_b"]().state_dict()
    torch.save(official, tmp_path / "sam_vit_b.pth")
    network = model.build("sam-vit-b", *small("sam-vit-b"), sam_checkpoint=tmp_path / "sam_vit_b.pth")
    (tmp_path / "sam_vit_b.pth").unlink()
    ours = network.state_dict()
    for name, tensor in official.items():
        place = "encoder." if name.startswith("image_encoder.") else "sam."
        assert torch.equal(ours[place + name], tensor), name
    check_frozen(network)


@pytest.mark.slow
def test_builds_on_an_official_sam2_file(tmp_path):
    """SAM 2's maps at strides 4 and 8 are the decoder's skip connections."""
    sam2 = pytest.importorskip("sam2.build_sam", reason="NOT RUN: the package sam2 is not installed")
    torch.manual_seed(0)
    official = sam2.build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", ckpt_path=None, device="cpu").state_dict()
    torch.save({"model": official}, tmp_path / "sam2.1_hiera_tiny.pt")
    network = model.build("sam2-hiera-t", *small("sam2-hiera-t"), sam_checkpoint=tmp_path / "sam2.1_hiera_tiny.pt")
    ours = network.state_dict()
    for name in ("trunk.patch_embed.proj.weight", "neck.convs.0.conv.weight"):
        assert torch.equal(ours[f"encoder.image_encoder.{name}"], official[f"image_encoder.{name}"]), name
    assert torch.equal(ours["sam.conv_s0.weight"], official["sam_mask_decoder.conv_s0.weight"])
    check_frozen(network)


@pytest.mark.slow
def test_it_learns():
    """From random heads, a short training finds every object of its own pictures."""
    torch.manual_seed(0)
    config = dataclasses.replace(
        model.default_config("lite", tiny_chips.CLASSES), width=64, box_hidden=256, proposals=100, decoder_mlp=256
    )
    loss = dataclasses.replace(model.default_loss("lite"), rois=64, fine_masks=4, points=1024)
    network = model.build("lite", config, loss)
    before, after = tiny_chips.learn(network, 300, 5e-4, per_step=1)
    assert after < before / 5
    assert tiny_chips.mask_ap50(model.segmenter(network, score_threshold=0.05)) >= 0.9
