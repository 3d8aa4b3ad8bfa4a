"""The anchor network of both generations against numbers of the authors' own code, array by array."""

from pathlib import Path

import golden
import numpy as np
import pytest
import torch

from rsgeoseg.backbones.features import Encoder, EncoderSpec, Features, Level
from rsgeoseg.backbones.fitted import Fit
from rsgeoseg.models.rsprompter_anchor import segmenter
from rsgeoseg.models.rsprompter_anchor.config import AnchorConfig
from rsgeoseg.models.rsprompter_anchor.network import RSPrompterAnchor
from rsgeoseg.models.rsprompter_anchor.released import released_masks
from rsgeoseg.nn.box_head import decode_boxes
from rsgeoseg.nn.roi_features import box_levels
from rsgeoseg.weights.files import WeightsFile, config_from_json, load_into
from rsgeoseg.weights.foreign import name_tensors
from rsgeoseg.weights.pickles import TensorFile

pytestmark = pytest.mark.skipif(
    not golden.FOLDER.is_dir(), reason="NOT RUN: reference numbers ../shared/golden are absent"
)

SIDE = 1024
NOISE = 1e-3
"""Of a detection's mask logits: float noise moves its box by up to 0.001 pixels, and so what is read there."""
CASES = {
    "2023": {
        "name": "rsprompter_v1_anchor_vit_h_head",
        "encoder": "backbone.image_encoder.",
        "maps": [(1280, 100 + i) for i in range(4, 32, 2)],
        "embedding": 99,
        "policy": "squash",
        "original": (600, 800),
        "rpn_steps": (16, 8, 4),
        "neck": {"neck_out{}_s": (8, 4, 2)},
        "pe_steps": (16, 8, 4),
        "sine_step": 4,
    },
    "2024": {
        "name": "rsprompter_v2_anchor_head",
        "encoder": "backbone.vision_encoder.",
        "maps": [(768, 200 + i) for i in range(1, 13, 2)],
        "embedding": 199,
        "policy": "longest",
        "original": (333, 500),
        "rpn_steps": (32, 16, 8, 4, 2),
        "neck": {"split{}_s": (16, 8, 4, 2, 1)},
        "pe_steps": (32, 16, 8, 4),
        "sine_step": 32,
    },
}


class NoEncoder(Encoder):
    """Stands where SAM's ViT would: the references start from its features."""

    def __init__(self, widths):
        super().__init__()
        self.spec = EncoderSpec(
            name="given",
            image_size=SIDE,
            embedding=Level(256, 16),
            hidden=tuple(Level(width, 16) for width in widths),
            mean=(0.0,) * 3,
            std=(1.0,) * 3,
        )


def filled(description, encoder):
    """A whole state dict in the authors' layout; the encoder's values, which nothing here reads, are zeros."""
    state = {}
    for name, shape in description["keys"].items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(0)
        elif name.startswith(encoder):
            state[name] = torch.zeros(()).expand(shape)
        else:
            state[name] = golden.fill(name, shape, description["formula_overrides"])
    return state


class Reference:
    """One generation: the authors' arrays, our network with the same weights, what it makes of the same features."""

    def __init__(self, generation):
        self.case = CASES[generation]
        self.description, self.arrays = golden.load(self.case["name"])
        state = filled(self.description, self.case["encoder"])
        tensors, about = name_tensors(TensorFile(state, "flat", None), Path("golden"))
        self.config = config_from_json(AnchorConfig, about["config"])
        self.network = RSPrompterAnchor(NoEncoder([c for c, _ in self.case["maps"]]), self.config).eval()
        head = {name: x for name, x in tensors.items() if not name.startswith("encoder.")}
        load_into(self.network, WeightsFile(head, about, ""), Path("golden"))
        self.fit = Fit.of(self.case["original"], SIDE, self.config.resize)
        hidden = tuple(torch.from_numpy(golden.smooth(seed, c, 64, 64, 8, 1.0))[None] for c, seed in self.case["maps"])
        embedding = torch.from_numpy(golden.smooth(self.case["embedding"], 256, 64, 64, 8, 1.0))[None]
        with torch.no_grad():
            if generation == "2024":
                self.aggregated = self.network.neck.feature_aggregator(hidden)
            self.scene = self.network.describe(Features(embedding=embedding, hidden=hidden), (SIDE, SIDE))
        self.rois = torch.tensor(self.description["inputs"]["fixed_rois"])[:, 1:]

    def check(self, name, ours, tolerance=None):
        theirs, ours = self.arrays[name], np.asarray(ours.detach() if isinstance(ours, torch.Tensor) else ours)
        assert ours.shape == theirs.shape, (name, ours.shape, theirs.shape)
        # two runs of their own code differ by up to two_run; another order of summation is allowed ten times that
        allowed = max(10 * self.description["two_run_tolerance"]["per_array"][name], 1e-5)
        difference = np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max()
        assert difference <= (allowed if tolerance is None else tolerance), (name, difference)


@pytest.fixture(scope="module", params=list(CASES))
def reference(request):
    torch.manual_seed(0)
    return Reference(request.param)


def matched(ours, theirs):
    """For each of their boxes the nearest of ours, and how far the worst corner is off, pixels."""
    distance = np.abs(ours[None] - theirs[:, None]).max(-1)
    return distance.argmin(1), distance.min(1)


def test_the_config_is_chosen_by_the_file(reference):
    assert reference.config.numerics == "released"
    assert reference.config.resize == reference.case["policy"]
    assert reference.config.prompts_per_roi == 5
    assert len(reference.config.classes) == 10


def test_enhancer(reference):
    for pattern, steps in reference.case["neck"].items():
        for level, step in enumerate(steps):
            reference.check(pattern.format(level), reference.scene.maps[level][:, ::8, ::step, ::step])
    if reference.config.generation == "2024":
        reference.check("aggregator_s", reference.aggregated[:, ::8, ::4, ::4])


def test_proposal_network(reference):
    with torch.no_grad():
        logits, deltas = reference.network.rpn.head(reference.scene.maps)
    for level, step in enumerate(reference.case["rpn_steps"]):
        reference.check(f"rpn_cls{level}_s", logits[level][..., ::step, ::step])
        reference.check(f"rpn_reg{level}_s", deltas[level][..., ::step, ::step])


def test_proposals(reference, monkeypatch):
    """As sets: near-tied scores swap their order between runs of one program."""
    rpn, kept = reference.network.rpn, []
    original = rpn.filter_proposals
    monkeypatch.setattr(rpn, "filter_proposals", lambda *given: kept.append(original(*given)) or kept[-1])
    with torch.no_grad():
        (boxes,), losses = rpn.propose(reference.scene.maps, (SIDE, SIDE))
    assert losses == {}
    assert len(boxes) == reference.arrays["rpn_num"][0]
    ours, theirs = boxes.numpy(), reference.arrays["rpn_boxes"]
    which, distance = matched(ours, theirs)
    assert (distance <= 0.05).mean() >= 0.995
    near = distance <= 0.05
    scores = kept[0][1][0].numpy()[which]
    np.testing.assert_allclose(scores[near], reference.arrays["rpn_scores"][near], atol=1e-5)
    assert (matched(theirs, ours)[1] <= 0.05).mean() >= 0.995


def test_positions(reference):
    strides = reference.config.strides
    read = [x for x, stride in zip(reference.scene.maps, strides, strict=True) if stride <= 32]
    step = reference.case["sine_step"]
    sine = reference.network._positions(read, (0.0, 0.0))
    reference.check("sine_pe_s", sine[:, ::8, ::step, ::step])
    for level, step in enumerate(reference.case["pe_steps"]):
        reference.check(f"pe_feat{level}_s", reference.scene.placed[level][:, ::16, ::step, ::step])


def test_features_in_boxes(reference):
    network, scene, rois = reference.network, reference.scene, reference.rois
    np.testing.assert_array_equal(box_levels(rois, len(scene.placed)), reference.arrays["roi_levels"])
    reference.check("roi_bbox_feats_s", network.read_boxes(scene, [rois], 7)[:, ::8])
    reference.check("roi_mask_feats_s", network.read_boxes(scene, [rois], 14)[:, ::32])


def test_box_head(reference):
    with torch.no_grad():
        class_logits, deltas = reference.network.classify(reference.scene, [reference.rois])
    reference.check("roi_cls", class_logits)
    reference.check("roi_reg", deltas)
    reference.check("roi_decoded", decode_boxes(deltas, reference.rois, (SIDE, SIDE)).flatten(1))


def test_prompts_and_mask_decoder(reference):
    network, scene, rois = reference.network, reference.scene, reference.rois
    with torch.no_grad():
        features = network.read_boxes(scene, [rois], 14)
        reference.check("roi_point_emb_raw_s", network.prompt_head(features)[:, ::4])
        sparse = network.sparse_prompts(features)
        reference.check("roi_sparse", sparse.reshape(reference.arrays["roi_sparse"].shape))
        logits, coarse = network.masks(scene, [rois])
        assert coarse is None
        reference.check("roi_mask_logits_s8", logits[:, ::8, ::8].reshape(reference.arrays["roi_mask_logits_s8"].shape))
        if "roi_iou" in reference.arrays:
            image = torch.zeros(len(rois), dtype=torch.int64)
            given = scene.embedding, scene.embedding_pe, image, sparse, network.sam.no_mask()
            reference.check("roi_iou", network.sam.iou(network.sam(*given)[1]))


def test_detections_and_masks(reference):
    """Boxes, scores, labels as sets; masks of matched boxes pixel by pixel, at the original size."""
    arrays, fit = reference.arrays, reference.fit
    model = segmenter(reference.network, score_threshold=0.05)
    with torch.inference_mode():
        (found,), (logits,) = model._detect(reference.scene)
        which, distance = matched(found.boxes.numpy(), arrays["det_boxes_1024"])
        assert len(found.boxes) == len(arrays["det_boxes_1024"])
        assert sorted(which) == list(range(len(which)))
        assert distance.max() <= 0.05
        np.testing.assert_allclose(found.scores.numpy()[which], arrays["det_scores"], atol=2e-4)
        np.testing.assert_array_equal(found.labels.numpy()[which], arrays["det_labels"])
        scale = np.array([fit.resized[1] / fit.original[1], fit.resized[0] / fit.original[0]] * 2)
        np.testing.assert_allclose(found.boxes.numpy()[which] / scale, arrays["det_boxes"], atol=0.05)
    # every pixel agrees, but for those that noise can turn: theirs lie between the masks of lowered and raised logits
    stacked = torch.stack(logits)[torch.from_numpy(which)]
    least, ours, most = (
        released_masks(stacked + shift, fit, reference.config.generation) for shift in (-NOISE, 0, NOISE)
    )
    least, ours, most = least.numpy(), ours.numpy(), most.numpy()
    assert (most & ~least).mean() < 3e-3
    for theirs, part in (("det_mask_s8_packed", np.s_[:, ::8, ::8]), ("det_mask0_full_packed", np.s_[:4])):
        columns = ours[part].shape[-1]
        masks = np.unpackbits(arrays[theirs], axis=-1, count=columns).astype(bool)
        assert not (masks & ~most[part]).any()
        assert not (least[part] & ~masks).any()
        assert (masks != ours[part]).mean() < 2e-4
    areas = arrays["det_mask_area"]
    assert (least.sum((1, 2)) <= areas).all()
    assert (areas <= most.sum((1, 2))).all()


def test_the_crop_is_truncated(reference):
    """1024 / 500 resizes 333 rows to 682, of which the code of 2024 keeps 681."""
    wanted = {"2023": ((1024, 1024), (1024, 1024)), "2024": ((682, 1024), (681, 1024))}
    assert (reference.fit.resized, reference.fit.cut) == wanted[reference.config.generation]
