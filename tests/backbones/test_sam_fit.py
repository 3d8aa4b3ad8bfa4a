"""Chips that are not the encoder's square, against the packages' predictors and generators with the same weights."""

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from tiny_sam import SIDE, chip_of, tiny_sam

from rsgeoseg.backbones.everything import EverythingConfig
from rsgeoseg.backbones.features import EncoderSpec, Level
from rsgeoseg.backbones.prompt_segmenter import prompt_segmenter
from rsgeoseg.backbones.promptable import build_promptable
from rsgeoseg.backbones.sam_fit import SamFit
from rsgeoseg.contract import Prompts
from rsgeoseg.models import sam_everything
from rsgeoseg.nn.targets import Target

SHAPES = [(200, SIDE), (SIDE, 130), (110, 170), (300, 410)]
"""As wide, and as high, as the encoder's square; smaller; larger."""


def picture(shape, seed=0):
    """A smooth random image (3, h, w) uint8."""
    rough = torch.from_numpy(np.random.default_rng(seed).uniform(0, 255, (1, 3, 6, 6)))
    smooth = torch.nn.functional.interpolate(rough, size=shape, mode="bicubic")[0]
    return smooth.clamp(0, 255).numpy().astype(np.uint8)


def contrasting(decoder, quality=0.8):
    """Random weights whose masks have some contrast, and whose quality head promises something."""
    for mlp in decoder.output_hypernetworks_mlps:
        mlp.layers[-1].weight.data *= 20
    torch.nn.init.constant_(decoder.iou_prediction_head.layers[-1].bias, quality)


@pytest.fixture(scope="module")
def sam():
    """SAM's package and our network, of 256 pixels a side."""
    theirs, ours = tiny_sam(2)
    contrasting(theirs.mask_decoder)
    ours.sam.mask_decoder.load_state_dict(theirs.mask_decoder.state_dict())
    return SamPredictor(theirs), ours


@pytest.fixture(scope="module")
def sam2(tmp_path_factory):
    """SAM 2's package and our network, of 256 pixels a side, through a file as the authors publish them."""
    pytest.importorskip("sam2", reason="NOT RUN: sam2 is not installed")
    from sam2.build_sam import build_sam2

    torch.manual_seed(0)
    model = build_sam2(
        "configs/sam2.1/sam2.1_hiera_t.yaml", device="cpu", hydra_overrides_extra=[f"++model.image_size={SIDE}"]
    )
    contrasting(model.sam_mask_decoder)
    path = tmp_path_factory.mktemp("sam2") / "sam2.1_hiera_tiny.pt"
    torch.save({"model": model.state_dict()}, path)
    ours = build_promptable("sam2-hiera-t", sam_checkpoint=path, image_size=SIDE).eval()
    ours.encoder.precision = "fp32"
    path.unlink()
    return sam2_predictor(model), ours


def sam2_predictor(model):
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    predictor = SAM2ImagePredictor(model)
    predictor._bb_feat_sizes = [(SIDE // 4, SIDE // 4), (SIDE // 8, SIDE // 8), (SIDE // 16, SIDE // 16)]  # of 1024
    return predictor


def agree(ours, theirs):
    """Masks of one picture are the same but for pixels that lie next to a border by a hair."""
    both, either = (ours & theirs).sum(), (ours | theirs).sum()
    return both >= 0.98 * either if either else True


def full(instances, row, shape):
    canvas = np.zeros(shape, np.bool_)
    x0, y0, x1, y1 = instances.boxes[row]
    canvas[y0:y1, x0:x1] = instances.masks[row]
    return canvas


@pytest.mark.parametrize("which", ["sam", "sam2"])
@pytest.mark.parametrize("shape", SHAPES)
def test_prompts_on_any_shape_are_answered_as_by_the_predictors(which, shape, request):
    """Boxes, clicks, and both, in pixels of the chip; masks at the chip's size."""
    predictor, network = request.getfixturevalue(which)
    segmenter = prompt_segmenter(network, name="sam-prompt", source="")
    segmenter.autocast = False
    h, w = shape
    image = picture(shape)
    predictor.set_image(image.transpose(1, 2, 0).copy())
    box = np.array([[0.1 * w, 0.2 * h, 0.7 * w, 0.8 * h]], np.float32)
    points, labels = np.array([[0.3 * w, 0.4 * h], [0.9 * w, 0.9 * h]], np.float32), np.array([1, 0])
    cases = [
        (Prompts(boxes=box), {"box": box[0]}),
        (Prompts(points=points, point_labels=labels), {"point_coords": points, "point_labels": labels}),
    ]
    seen = segmenter.encode(chip_of(image))
    for prompts, asked in cases:
        masks, iou, _ = predictor.predict(**asked, multimask_output=False)
        found = segmenter.decode(seen, prompts)
        assert len(found) == int(masks.any()) == 1
        assert agree(full(found, 0, shape), masks[0].astype(np.bool_))
        assert found.scores[0] == pytest.approx(float(iou[0].clip(0, 1)), abs=5e-3)
    masks, iou, _ = predictor.predict(point_coords=points[:1], point_labels=labels[:1], multimask_output=True)
    found = segmenter.decode(seen, Prompts(points=points[:1], point_labels=labels[:1]))
    assert agree(full(found, 0, shape), masks[iou.argmax()].astype(np.bool_))


@pytest.mark.parametrize("which", ["sam", "sam2"])
def test_an_earlier_mask_on_any_shape_is_read_where_it_lies(which, request):
    """The predictors take a mask at the square's quarter resolution; ours comes at the chip's size."""
    predictor, network = request.getfixturevalue(which)
    segmenter = prompt_segmenter(network, name="sam-prompt", source="")
    segmenter.autocast = False
    shape = (128, SIDE) if which == "sam" else (128, 128)
    image = picture(shape, 1)
    predictor.set_image(image.transpose(1, 2, 0).copy())
    rough = picture((shape[0] // 4, shape[1] // 4), 2)[0].astype(np.float32) / 16 - 8
    low = np.full((1, SIDE // 4, SIDE // 4), rough.min(), np.float32)
    if which == "sam":  # padded below
        low[0, : shape[0] // 4] = rough
    else:  # squashed: both sides doubled
        low[0] = torch.nn.functional.interpolate(torch.from_numpy(rough)[None, None], scale_factor=2.0, mode="bilinear")
    mask = torch.nn.functional.interpolate(torch.from_numpy(rough)[None, None], size=shape, mode="nearest")[0, 0]
    points, labels = np.array([[60.0, 40.0], [20.0, 90.0]], np.float32), np.array([1, 0])
    masks, iou, _ = predictor.predict(points, labels, mask_input=low, multimask_output=False)
    found = segmenter.segment([chip_of(image)], [Prompts(points=points, point_labels=labels, mask=mask.numpy())])[0]
    assert agree(full(found, 0, shape), masks[0].astype(np.bool_))
    assert found.scores[0] == pytest.approx(float(iou[0].clip(0, 1)), abs=1e-2)


def generators(which, predictor, config):
    """The package's generator on the predictor's model."""
    options = {
        "points_per_side": config.points_per_side,
        "pred_iou_thresh": config.pred_iou,
        "stability_score_thresh": config.stability,
        "stability_score_offset": config.stability_offset,
        "box_nms_thresh": config.nms,
    }
    if which == "sam":
        return SamAutomaticMaskGenerator(predictor.model, **options)
    from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator

    generator = SAM2AutomaticMaskGenerator(predictor.model, **options)
    generator.predictor = predictor
    return generator


@pytest.mark.parametrize("which", ["sam", "sam2"])
@pytest.mark.parametrize("shape", [(SIDE, SIDE), (110, 170)])
def test_everything_on_any_shape_is_what_the_generators_find(which, shape, request):
    predictor, network = request.getfixturevalue(which)
    config = EverythingConfig(points_per_side=4, pred_iou=0.4, stability=0.5, stability_offset=0.01, nms=1.0)
    segmenter = sam_everything.segmenter(network, config=config)
    segmenter.autocast = False
    image = picture(shape, 3)
    expected = generators(which, predictor, config).generate(image.transpose(1, 2, 0).copy())
    found = segmenter.segment([chip_of(image)])[0]
    assert len(expected) > 1
    assert abs(len(found) - len(expected)) <= 1  # a mask at a threshold by a hair
    theirs = [record["segmentation"].astype(np.bool_) for record in expected]
    matched = sum(any(agree(full(found, row, shape), mask) for mask in theirs) for row in range(len(found)))
    assert matched >= len(found) - 1


def spec(name):
    return EncoderSpec(
        name=name,
        image_size=1024,
        embedding=Level(256, 16),
        hidden=(),
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        fixed_size=name != "lite",
    )


def test_sizes_are_the_packages():
    from segment_anything.utils.transforms import ResizeLongestSide

    for shape in [(333, 500), (500, 333), (1, 900), (2000, 1500), (511, 1023)]:
        assert SamFit.of(shape, spec("sam-vit-b")).resized == ResizeLongestSide.get_preprocess_shape(*shape, 1024)
        assert SamFit.of(shape, spec("sam2-hiera-t")).resized == (1024, 1024)
        assert SamFit.of(shape, spec("lite")) is None
    for shape in [(1024, 1024), (700, 1024), (1024, 3)]:
        assert SamFit.of(shape, spec("sam-vit-b")) is None
    assert SamFit.of((1, 3000), spec("sam-vit-b")).resized == (1, 1024)  # the package would leave no row
    assert SamFit.of((1024, 1024), spec("sam2-hiera-t")) is None
    assert not SamFit.of((700, 1024), spec("sam2-hiera-t")).padded


def test_targets_go_where_the_image_goes():
    masks = torch.zeros(1, 300, 500, dtype=torch.uint8)
    masks[0, 100:200, 50:350] = 1
    target = Target(labels=torch.tensor([1]), boxes=torch.tensor([[50.0, 100, 350, 200]]), masks=masks)
    for name, scale in [("sam-vit-b", (2.048, 614 / 300)), ("sam2-hiera-t", (2.048, 1024 / 300))]:
        fit = SamFit.of((300, 500), spec(name))
        fitted = fit.target(target)
        ys, xs = np.nonzero(fitted.masks[0].numpy())
        tight = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        np.testing.assert_allclose(fitted.boxes[0], target.boxes[0] * torch.tensor(scale * 2), rtol=1e-4)
        np.testing.assert_allclose(fitted.boxes[0], tight, atol=1)
    empty = Target(labels=torch.zeros(0, dtype=torch.int64), boxes=torch.zeros(0, 4), masks=masks[:0])
    assert fit.target(empty).masks.shape == (0, 1024, 1024)


def test_training_sees_what_running_sees():
    """A crop smaller than the square is resized in training, too, and its objects with it."""
    _, network = tiny_sam(0)
    network.requires_grad_(requires_grad=True)
    seen = []
    look = network.look
    network.look = lambda images, origin: seen.append(images) or look(images, origin)
    masks = torch.zeros(1, 128, 128, dtype=torch.uint8)
    masks[0, 20:60, 30:90] = 1
    target = Target(labels=torch.tensor([0]), boxes=torch.tensor([[30.0, 20, 90, 60]]), masks=masks)
    terms = network.loss(torch.randint(0, 255, (1, 3, 128, 128), dtype=torch.uint8), [target])
    assert seen[0].shape == (1, 3, SIDE, SIDE)
    assert seen[0][..., SIDE - 1].any()  # no padding
    assert all(torch.isfinite(term) for term in terms.values())
