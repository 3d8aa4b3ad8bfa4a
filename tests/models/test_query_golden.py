"""The query head against numbers of the authors' own code, array by array."""

from pathlib import Path

import golden
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rsgeoseg.backbones.features import Encoder, EncoderSpec, Features, Level
from rsgeoseg.backbones.fitted import Fit
from rsgeoseg.models.rsprompter_query.config import QueryConfig
from rsgeoseg.models.rsprompter_query.network import RSPrompterQuery
from rsgeoseg.models.rsprompter_query.released import released_masks, released_pairs
from rsgeoseg.nn.scored_masks import whole_masks
from rsgeoseg.weights.files import WeightsFile, config_from_json, load_into
from rsgeoseg.weights.foreign import name_tensors
from rsgeoseg.weights.pickles import TensorFile

pytestmark = pytest.mark.skipif(
    not golden.FOLDER.is_dir(), reason="NOT RUN: reference numbers ../shared/golden are absent"
)


class NoEncoder(Encoder):
    """Stands where SAM ViT-B would: the reference starts from its features."""

    def __init__(self):
        super().__init__()
        self.spec = EncoderSpec(
            name="given",
            image_size=1024,
            embedding=Level(256, 16),
            hidden=(Level(768, 16),) * 6,
            mean=(0.0,) * 3,
            std=(1.0,) * 3,
        )


@pytest.fixture(scope="module")
def reference():
    """The authors' description and arrays, and our network with the same weights, which come in as a user's would."""
    description, arrays = golden.load("rsprompter_v2_query_head")
    state = {}
    for name, shape in description["keys"].items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(0)
        elif name.startswith("backbone."):  # nothing here reads the encoder
            state[name] = torch.zeros(()).expand(shape)
        else:
            state[name] = golden.fill(name, shape, description["formula_overrides"])
    tensors, about = name_tensors(TensorFile(state, "flat", None), Path("golden"))
    network = RSPrompterQuery(NoEncoder(), config_from_json(QueryConfig, about["config"])).eval()
    head = {name: x for name, x in tensors.items() if not name.startswith("encoder.")}
    load_into(network, WeightsFile(head, about, ""), Path("golden"))
    return description, arrays, network


@pytest.fixture(scope="module")
def computed(reference):
    _, _, network = reference
    hidden = tuple(torch.from_numpy(golden.smooth(200 + i, 768, 64, 64, 8, 1.0))[None] for i in (1, 3, 5, 7, 9, 11))
    embedding = torch.from_numpy(golden.smooth(199, 256, 64, 64, 8, 1.0))[None]
    with torch.no_grad():
        aggregated = network.neck.feature_aggregator(hidden)
        split = network.neck.feature_spliter(aggregated)
        _, refined = network.pixel_decoder(split)
        scene = network.describe(Features(embedding=embedding, hidden=hidden))
        sets = network.decode(scene, network.start(scene))
    return aggregated, split, refined, scene, sets


def check(reference, name, ours, tolerance=None):
    description, arrays, _ = reference
    theirs = arrays[name]
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    # two runs of their own code differ by up to two_run; another order of summation is allowed ten times that
    allowed = (
        tolerance if tolerance is not None else max(10 * description["two_run_tolerance"]["per_array"][name], 1e-4)
    )
    assert np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max() <= allowed, name


def test_the_formula_is_theirs(reference):
    description, _, _ = reference
    assert (
        _crc(golden.smooth(7, 3, 10, 9, 4, 1.5)) == description["generator_check"]["entries"]["smooth(7,3,10,9,4,1.5)"]
    )
    for name, entry in description["weight_check"]["entries"].items():
        value = golden.fill(name, description["keys"][name], description["formula_overrides"]).numpy()
        assert _crc(value) == entry["crc32_of_float32_bytes"], name


def _crc(array):
    import zlib

    return zlib.crc32(np.ascontiguousarray(array).tobytes())


def test_enhancer(reference, computed):
    aggregated, split, _, _, _ = computed
    check(reference, "aggregator_s", aggregated[:, ::8, ::4, ::4], 1e-3)
    for level, step in enumerate((16, 8, 4, 2, 1)):
        check(reference, f"split{level}_s", split[level][:, ::8, ::step, ::step])


def test_pixel_decoder(reference, computed):
    _, _, refined, scene, _ = computed
    check(reference, "pixdec_mask_feature_s", scene.mask_feature[:, ::8, ::16, ::16])
    for level, step in enumerate((1, 2, 4)):
        check(reference, f"pixdec_memory{level}_s", refined[level][:, ::4, ::step, ::step])
    check(reference, "image_pe_s", scene.embedding_pe[:, ::8, ::4, ::4], 1e-5)


def test_every_prediction_set(reference, computed):
    _, _, _, scene, sets = computed
    assert len(sets) == 7
    for index, prediction in enumerate(sets):
        check(reference, f"dec{index}_query_postnorm_s", prediction.state[..., ::4], 2e-4)
        check(reference, f"dec{index}_cls", prediction.class_logits, 5e-4)
        shape = scene.memory_shapes[index % 3]
        reduced = F.interpolate(scene.mask_feature, size=shape, mode="bilinear", align_corners=False)
        logits = torch.einsum("bqc,bchw->bqhw", prediction.kernels, reduced)
        # a logit within float noise of zero may fall on either side
        check(reference, f"dec{index}_attn_open", (logits >= 0).flatten(2).sum(-1), 1)


@pytest.fixture(scope="module")
def decoded(reference, computed):
    _, _, network = reference
    _, _, _, scene, sets = computed
    image, query = torch.zeros(20, dtype=torch.int64), torch.arange(20)
    masks = {}
    with torch.no_grad():
        for index in (0, 3, 6):
            coarse = network.coarse_logits(scene, sets[index], None, image, query)
            masks[index] = coarse, network.fine_logits(scene, sets[index], coarse, image, query)
    return masks


def test_coarse_and_fine_masks(reference, decoded):
    for index, (coarse, fine) in decoded.items():
        check(reference, f"dec{index}_coarse_s8", coarse[None, :, ::8, ::8], 2e-3)
        check(reference, f"dec{index}_mask_s8", fine[None, :, ::8, ::8], 2e-3)


def test_prompts(reference, computed, decoded):
    _, _, network = reference
    _, _, _, scene, sets = computed
    image, query = torch.zeros(20, dtype=torch.int64), torch.arange(20)
    with torch.no_grad():
        sparse = network.sparse_prompts(sets[-1], image, query)
        dense = network.sam.dense_prompts(decoded[6][0])
        _, tokens = network.sam(scene.embedding, scene.embedding_pe, image, sparse, dense)
        check(reference, "last_sparse", sparse[:, None, :, ::2], 5e-4)
        check(reference, "last_dense_s", dense[:, ::16, ::8, ::8], 2e-3)
        check(reference, "last_iou", network.sam.iou(tokens)[:, None, None], 1e-4)


def test_the_config_is_chosen_by_the_file(reference):
    config = reference[2].config
    assert (config.numerics, config.resize) == ("released", "longest")
    assert (config.num_queries, config.prompts_per_query, len(config.classes)) == (20, 5, 10)


def test_final_instances(reference, computed, decoded):
    """The released post-processing: crop of 681 rows, logits resampled twice, score = probability x quality."""
    _, arrays, _ = reference
    _, _, _, _, sets = computed
    fit = Fit.of((333, 500), 1024, "longest")
    assert fit.cut == (681, 1024)
    query, labels, probability = released_pairs(sets[-1].class_logits[0], 20)
    masks, quality = released_masks(decoded[6][1][query], fit)
    scores = (probability * quality).numpy()
    order = np.argsort(-scores, kind="stable")
    np.testing.assert_allclose(scores[order], arrays["ins_scores"], atol=2e-4)
    np.testing.assert_array_equal(labels[order], arrays["ins_labels"])
    masks = masks.numpy()[order]
    areas = masks.sum((1, 2))
    assert np.abs(areas - arrays["ins_mask_area"]).max() <= 2
    packed = np.packbits(masks[:, ::8, ::8], axis=-1)
    assert (np.unpackbits(packed, axis=-1) != np.unpackbits(arrays["ins_mask_s8_packed"], axis=-1)).sum() <= 2
    found = whole_masks(
        zip(masks, scores[order], labels.numpy()[order], strict=True), np.ones((333, 500), bool), score_threshold=0
    )
    some = areas > 0
    assert len(found) == some.sum()
    np.testing.assert_array_equal(found.boxes, arrays["ins_boxes"][some])
    np.testing.assert_allclose(found.scores, arrays["ins_scores"][some], atol=2e-4)
