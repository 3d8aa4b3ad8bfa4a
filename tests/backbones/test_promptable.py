"""Prompts and answers against segment_anything and sam2 with the same random weights; what is shared."""

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from tiny_sam import SIDE, chip_of, picture, tiny_sam

from rsgeoseg.backbones.chips import images_of
from rsgeoseg.backbones.features import Encoder, EncoderSpec, Features, Level
from rsgeoseg.backbones.prompt_segmenter import prompt_segmenter
from rsgeoseg.backbones.promptable import PromptableSam, build_promptable
from rsgeoseg.backbones.sam2_parts import Sam2PromptedDecoder
from rsgeoseg.backbones.sam_parts import MULTIPLE, SamPromptedDecoder
from rsgeoseg.contract import Prompts
from rsgeoseg.errors import PromptError

CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def asked(count=5, seed=1):
    """Random points with labels, boxes and masks, on an extent of 192 pixels."""
    torch.manual_seed(seed)
    points = torch.rand(count, 3, 2) * 192
    labels = torch.tensor([[1, 0, -1]]).repeat(count, 1)
    corner = torch.rand(count, 2) * 90
    return points, labels, torch.cat([corner, corner + 20 + torch.rand(count, 2) * 70], 1), torch.randn(count, 48, 48)


@torch.no_grad()
@pytest.mark.parametrize("kinds", ["points", "boxes", "points boxes"])
def test_sparse_prompts_are_the_packages(kinds):
    torch.manual_seed(0)
    decoder = SamPromptedDecoder(dim=64, mlp_dim=96, grid=12)
    points, labels, boxes, _ = asked()
    dots, squares = "points" in kinds, "boxes" in kinds
    theirs, _ = decoder.prompt_encoder(
        points=(points, labels) if dots else None, boxes=boxes if squares else None, masks=None
    )
    ours = decoder.sparse_prompts(
        points=points if dots else None, point_labels=labels if dots else None, boxes=boxes if squares else None
    )
    torch.testing.assert_close(ours, theirs, **CLOSE)


def test_no_prompt_is_an_error():
    with pytest.raises(ValueError, match="points"):
        SamPromptedDecoder(dim=64, mlp_dim=96, grid=4).sparse_prompts()


@torch.no_grad()
@pytest.mark.parametrize("multimask", [False, True])
def test_answers_are_the_predictors(multimask):
    """Points, boxes and a mask through a whole small SAM: logits, qualities and masks of ``SamPredictor``."""
    theirs, ours = tiny_sam()
    image = picture()
    predictor = SamPredictor(theirs)
    predictor.set_image(image.transpose(1, 2, 0))
    scene = ours.look(images_of([chip_of(image)], ours.encoder.spec, torch.device("cpu")))
    points, labels = torch.tensor([[[40.0, 60.0], [200.0, 30.0]]]), torch.tensor([[1, 0]])
    box, mask = torch.tensor([[30.0, 40.0, 120.0, 200.0]]), torch.randn(1, 1, 64, 64)
    for dots, square, before in [(True, False, None), (False, True, None), (True, True, mask), (True, False, mask)]:
        _, iou, logits = predictor.predict(
            point_coords=points[0].numpy() if dots else None,
            point_labels=labels[0].numpy() if dots else None,
            box=box[0].numpy() if square else None,
            mask_input=None if before is None else before[0].numpy(),
            multimask_output=multimask,
        )
        found = ours.decode(
            scene,
            torch.zeros(1, dtype=torch.int64),
            points=points if dots else None,
            point_labels=labels if dots else None,
            boxes=box if square else None,
            masks=before,
            multimask=multimask,
        )
        scale = np.abs(logits).max()
        torch.testing.assert_close(found.logits[0] / scale, torch.from_numpy(logits) / scale, **CLOSE)
        torch.testing.assert_close(found.iou[0], torch.from_numpy(iou), **CLOSE)


@torch.no_grad()
def test_prompts_of_several_images_at_once_equal_each_alone():
    torch.manual_seed(0)
    network = build_promptable("lite", pretrained=False).eval()
    scene = network.look(torch.randn(2, 3, 128, 128))
    index, boxes = torch.tensor([1, 0, 1]), torch.tensor([[5.0, 5, 60, 60], [20, 30, 90, 100], [0, 0, 127, 40]])
    together = network.decode(scene, index, boxes=boxes, multimask=True)
    for row, image in enumerate(index.tolist()):
        zero = torch.zeros(1, dtype=torch.int64)
        alone = network.decode(scene.one(image), zero, boxes=boxes[row : row + 1], multimask=True)
        torch.testing.assert_close(together.logits[row], alone.logits[0], **CLOSE)
        torch.testing.assert_close(together.iou[row], alone.iou[0], **CLOSE)


@torch.no_grad()
def test_an_origin_shifts_the_prompts_with_the_image():
    """A crop looked at as the part of a larger image has the positions of that part, for image and prompts alike."""
    torch.manual_seed(0)
    decoder = SamPromptedDecoder(dim=64, mlp_dim=96, grid=12)
    network = PromptableSam(PlainEncoder(decoder.grid, 64), decoder)
    images, index = torch.randn(1, 3, 64, 64), torch.zeros(1, dtype=torch.int64)
    far = network.look(images, origin=(32.0, 64.0))
    torch.testing.assert_close(far.embedding_pe, decoder.image_pe(12, 12)[:, :, 4:8, 2:6], **CLOSE)
    one = torch.ones(1, 1, dtype=torch.int64)
    shifted = network.attend(far, index, points=torch.tensor([[[10.0, 20.0]]]), point_labels=one)
    sparse = decoder.sparse_prompts(points=torch.tensor([[[42.0, 84.0]]]), point_labels=one)
    expected = decoder.attend(far.embedding, far.embedding_pe, index, sparse, decoder.no_mask(), far.skips)
    torch.testing.assert_close(shifted.tokens, expected.tokens, **CLOSE)


class PlainEncoder(Encoder):
    """A stride-16 encoder of one layer."""

    def __init__(self, grid, dim):
        super().__init__()
        self.spec = EncoderSpec(
            name="plain",
            image_size=grid * 16,
            embedding=Level(dim, 16),
            hidden=(),
            mean=(127.0,) * 3,
            std=(64.0,) * 3,
        )
        self.patch = torch.nn.Conv2d(3, dim, 16, stride=16)

    def forward(self, images):
        return Features(embedding=self.patch(images), hidden=())


def sam2_pair(dim=64, side=12, *, stable):
    """Give sam2's prompt encoder and mask decoder, random, and ours with the same weights."""
    from sam2.modeling.sam.mask_decoder import MaskDecoder
    from sam2.modeling.sam.prompt_encoder import PromptEncoder
    from sam2.modeling.sam.transformer import TwoWayTransformer

    torch.manual_seed(0)
    prompter = PromptEncoder(
        embed_dim=dim, image_embedding_size=(side, side), input_image_size=(16 * side,) * 2, mask_in_chans=16
    )
    decoder = MaskDecoder(
        transformer_dim=dim,
        transformer=TwoWayTransformer(depth=2, embedding_dim=dim, mlp_dim=96, num_heads=8),
        use_high_res_features=True,
        iou_prediction_use_sigmoid=True,
        dynamic_multimask_via_stability=True,
        pred_obj_scores=True,
        pred_obj_scores_mlp=True,
        use_multimask_token_for_obj_ptr=True,
    ).eval()
    if stable:  # large logits do not change sign when the threshold moves a little
        torch.nn.init.normal_(decoder.output_hypernetworks_mlps[0].layers[-1].bias, std=1e4)
    ours = Sam2PromptedDecoder(dim=dim, mlp_dim=96, grid=side, skip_channels=(dim, dim)).eval()
    state = {f"prompt_encoder.{name}": x for name, x in prompter.state_dict().items()}
    for name, x in decoder.state_dict().items():
        own = name.startswith(("conv_s0", "conv_s1", "obj_score_token", "pred_obj_score_head"))
        plain = name.replace("mlp.layers.0", "mlp.lin1").replace("mlp.layers.1", "mlp.lin2")
        state[name if own else f"mask_decoder.{plain if 'transformer' in name else name}"] = x
    ours.load_state_dict(state)
    return prompter, decoder, ours


@torch.no_grad()
@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("kinds", ["points", "boxes", "points boxes masks"])
def test_sam2s_answers_are_the_packages(kinds, multimask, stable):
    prompter, decoder, ours = sam2_pair(stable=stable)
    points, labels, boxes, masks = asked()
    coords, marks = [], []  # sam2's predictor puts box corners before the points, as points with labels 2 and 3
    if "boxes" in kinds:
        coords.append(boxes.reshape(-1, 2, 2))
        marks.append(torch.tensor([[2, 3]]).repeat(len(boxes), 1))
    if "points" in kinds:
        coords.append(points)
        marks.append(labels)
    given = masks[:, None] if "masks" in kinds else None
    sparse, dense = prompter(points=(torch.cat(coords, 1), torch.cat(marks, 1)), boxes=None, masks=given)
    embedding, skips = torch.randn(1, 64, 12, 12), (torch.randn(1, 64, 48, 48), torch.randn(1, 64, 24, 24))
    logits, iou, _, presence = decoder(
        image_embeddings=embedding,
        image_pe=prompter.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=multimask,
        repeat_image=True,
        high_res_features=[decoder.conv_s0(skips[0]), decoder.conv_s1(skips[1])],
    )
    attended = ours.attend(
        embedding,
        ours.image_pe(12, 12),
        torch.zeros(len(points), dtype=torch.int64),
        ours.sparse_prompts(
            points=points if "points" in kinds else None,
            point_labels=labels if "points" in kinds else None,
            boxes=boxes if "boxes" in kinds else None,
        ),
        ours.no_mask() if given is None else ours.dense_prompts(masks),
        ours.project_skips(skips),
    )
    if multimask:
        found, quality = ours.masks(attended, MULTIPLE), ours.qualities(attended.tokens)[:, MULTIPLE]
    else:
        found, quality = ours.single(attended)
        first = ours.masks(attended, slice(0, 1))
        assert torch.allclose(found, first, rtol=1e-3) is stable  # both ways of choosing were taken
    torch.testing.assert_close(found / logits.abs().max(), logits / logits.abs().max(), **CLOSE)
    torch.testing.assert_close(quality, iou, **CLOSE)
    torch.testing.assert_close(ours.presence(attended.tokens), presence[:, 0], **CLOSE)


class PackageSam2(Encoder):
    """sam2's own encoder behind our interface."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.spec = EncoderSpec(
            name="sam2-hiera-t",
            image_size=1024,
            embedding=Level(256, 16),
            hidden=(),
            mean=tuple(255 * x for x in (0.485, 0.456, 0.406)),
            std=tuple(255 * x for x in (0.229, 0.224, 0.225)),
            skips=(Level(256, 4), Level(256, 8)),
            fixed_size=True,
        )

    def forward(self, images):
        fine, middle, coarse = self.model.image_encoder(images)["backbone_fpn"]
        return Features(coarse + self.model.no_mem_embed.reshape(1, -1, 1, 1), (), (fine, middle))


@pytest.mark.slow
@torch.no_grad()
def test_sam2_from_end_to_end():
    """``SAM2ImagePredictor`` on Hiera-T against our decoder on the same features, with the weights by name."""
    from sam2.build_sam import build_sam2
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    torch.manual_seed(0)
    model = build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", device="cpu")
    state = {}
    for name, x in model.state_dict().items():
        if name.startswith(("sam_prompt_encoder.", "sam_mask_decoder.")):
            short = name.removeprefix("sam_").removeprefix("mask_decoder.")
            own = short.startswith(("conv_s0", "conv_s1", "obj_score_token", "pred_obj_score_head", "prompt_encoder"))
            short = short if own else f"mask_decoder.{short}"
            if "transformer" in short:
                short = short.replace("mlp.layers.0", "mlp.lin1").replace("mlp.layers.1", "mlp.lin2")
            state[short] = x
    sam = Sam2PromptedDecoder(skip_channels=(256, 256))
    sam.load_state_dict(state)
    network = PromptableSam(PackageSam2(model), sam).eval()
    image = picture(3, 1024)
    predictor = SAM2ImagePredictor(model)
    predictor.set_image(image.transpose(1, 2, 0).copy())
    scene = network.look(images_of([chip_of(image)], network.encoder.spec, torch.device("cpu")))
    points, box = np.array([[300.0, 500.0]]), np.array([100.0, 200.0, 700.0, 900.0])
    for multimask in (False, True):
        _, iou, logits = predictor.predict(points, np.array([1]), box=box, multimask_output=multimask)
        found = network.decode(
            scene,
            torch.zeros(1, dtype=torch.int64),
            points=torch.from_numpy(points)[None].float(),
            point_labels=torch.ones(1, 1, dtype=torch.int64),
            boxes=torch.from_numpy(box)[None].float(),
            multimask=multimask,
        )
        scale = np.abs(logits).max()
        torch.testing.assert_close(found.logits[0] / scale, torch.from_numpy(logits) / scale, **CLOSE)
        torch.testing.assert_close(found.iou[0], torch.from_numpy(iou), **CLOSE)


@pytest.mark.slow
@torch.no_grad()
def test_vit_b_from_end_to_end():
    """``SamPredictor`` on ViT-B against ours, a chip of 1024 pixels."""
    from segment_anything import sam_model_registry

    torch.manual_seed(0)
    theirs = sam_model_registry["vit_b"]().eval()
    for block in theirs.image_encoder.blocks:
        torch.nn.init.normal_(block.attn.rel_pos_h, std=0.02)
        torch.nn.init.normal_(block.attn.rel_pos_w, std=0.02)
    ours = build_promptable("sam-vit-b").eval()
    ours.encoder.image_encoder.load_state_dict(theirs.image_encoder.state_dict())
    ours.encoder.precision = "fp32"
    ours.sam.prompt_encoder.load_state_dict(theirs.prompt_encoder.state_dict())
    ours.sam.mask_decoder.load_state_dict(theirs.mask_decoder.state_dict())
    image = picture(4, 1024)
    predictor = SamPredictor(theirs)
    predictor.set_image(image.transpose(1, 2, 0))
    scene = ours.look(images_of([chip_of(image)], ours.encoder.spec, torch.device("cpu")))
    box = np.array([100.0, 200.0, 700.0, 900.0])
    _, iou, logits = predictor.predict(box=box, multimask_output=True)
    found = ours.decode(
        scene, torch.zeros(1, dtype=torch.int64), boxes=torch.from_numpy(box)[None].float(), multimask=True
    )
    scale = np.abs(logits).max()
    torch.testing.assert_close(found.logits[0] / scale, torch.from_numpy(logits) / scale, **CLOSE)
    torch.testing.assert_close(found.iou[0], torch.from_numpy(iou), **CLOSE)


class TestSegmenter:
    """What the segmenter makes of prompts, against the package's predictor."""

    @pytest.fixture(scope="class")
    def both(self):
        theirs, ours = tiny_sam(2)
        predictor = SamPredictor(theirs)
        image = picture(5)
        predictor.set_image(image.transpose(1, 2, 0))
        segmenter = prompt_segmenter(ours, name="sam-prompt", source="")
        segmenter.autocast = False
        return predictor, segmenter, chip_of(image)

    @staticmethod
    def full(instances, row):
        canvas = np.zeros((SIDE, SIDE), np.bool_)
        x0, y0, x1, y1 = instances.boxes[row]
        canvas[y0:y1, x0:x1] = instances.masks[row]
        return canvas

    def test_boxes_are_one_object_each(self, both):
        predictor, segmenter, chip = both
        boxes = np.array([[20, 30, 90, 100], [100, 10, 240, 60], [5, 150, 60, 250]], np.float32)
        instances = segmenter.segment([chip], [Prompts(boxes=boxes)])[0]
        assert len(instances) == 3
        for row, box in enumerate(boxes):
            masks, iou, _ = predictor.predict(box=box, multimask_output=False)
            np.testing.assert_array_equal(self.full(instances, row), masks[0])
            assert instances.scores[row] == pytest.approx(float(iou[0].clip(0, 1)), abs=1e-4)

    def test_one_point_gets_the_best_of_three(self, both):
        predictor, segmenter, chip = both
        points, labels = np.array([[77, 130]], np.float32), np.array([1])
        masks, iou, _ = predictor.predict(points, labels, multimask_output=True)
        instances = segmenter.segment([chip], [Prompts(points=points, point_labels=labels)])[0]
        assert len(instances) == 1
        np.testing.assert_array_equal(self.full(instances, 0), masks[iou.argmax()])

    def test_points_together_make_one_object_that_a_mask_refines(self, both):
        predictor, segmenter, chip = both
        points, labels = np.array([[77, 130], [10, 10], [140, 90]], np.float32), np.array([1, 0, 1])
        low = np.random.default_rng(0).normal(size=(1, 64, 64)).astype(np.float32)
        for mask in (None, low):
            masks, _, _ = predictor.predict(points, labels, mask_input=mask, multimask_output=False)
            fine = None if mask is None else mask[0].repeat(4, 0).repeat(4, 1)
            instances = segmenter.segment([chip], [Prompts(points=points, point_labels=labels, mask=fine)])[0]
            assert len(instances) == 1
            np.testing.assert_array_equal(self.full(instances, 0), masks[0])

    def test_a_mask_alone_makes_an_object(self, both):
        predictor, segmenter, chip = both
        low = np.random.default_rng(1).normal(size=(1, 64, 64)).astype(np.float32)
        masks, _, _ = predictor.predict(mask_input=low, multimask_output=False)
        instances = segmenter.segment([chip], [Prompts(mask=low[0].repeat(4, 0).repeat(4, 1))])[0]
        np.testing.assert_array_equal(self.full(instances, 0), masks[0])

    def test_an_embedding_can_be_asked_again(self, both):
        _, segmenter, chip = both
        prompt = Prompts(boxes=np.array([[20, 30, 90, 100]], np.float32))
        seen = segmenter.encode(chip)
        segmenter.decode(seen, Prompts(points=np.array([[9, 9]], np.float32), point_labels=np.array([1])))
        again, directly = segmenter.decode(seen, prompt), segmenter.segment([chip], [prompt])[0]
        np.testing.assert_array_equal(self.full(again, 0), self.full(directly, 0))

    @pytest.mark.parametrize(
        ("prompt", "says"),
        [
            (Prompts(points=np.zeros((2, 2), np.float32), point_labels=np.array([1])), "labels"),
            (Prompts(points=np.zeros((1, 2), np.float32), point_labels=np.array([2])), "1 \\(object\\)"),
            (Prompts(points=np.full((1, 2), np.nan, np.float32), point_labels=np.array([1])), "finite"),
            (Prompts(boxes=np.array([[5, 5, 5, 9]], np.float32)), "x0 < x1"),
            (Prompts(mask=np.zeros((4, 4), np.float32)), "chip's size"),
            (Prompts(mask=np.full((SIDE, SIDE), np.inf, np.float32)), "finite"),
            (
                Prompts(
                    boxes=np.array([[0, 0, 9, 9], [9, 9, 20, 20]], np.float32),
                    mask=np.zeros((SIDE, SIDE), np.float32),
                ),
                "one box",
            ),
        ],
    )
    def test_refuses_what_cannot_be_meant(self, both, prompt, says):
        _, segmenter, chip = both
        with pytest.raises(PromptError, match=says):
            segmenter.segment([chip], [prompt])
