"""Every backbone says what it gives and gives what it says; official files of every size load strictly."""

import functools
import re

import pytest
import torch

from rsgeoseg.backbones.build import BACKBONES, SAM2_BACKBONES, SAM_BACKBONES, build_encoder, start_from_sam
from rsgeoseg.backbones.promptable import PromptableSam, sam_decoder
from rsgeoseg.errors import ModelError, WeightsError

# channels and stride, as published: embedding, (skips), hidden
LEVELS = {
    "lite": ((128, 16), ((24, 4), (40, 8)), ((24, 4), (40, 8), (112, 16), (320, 32))),
    "sam-vit-b": ((256, 16), (), ((768, 16),) * 6),
    "sam-vit-l": ((256, 16), (), ((1024, 16),) * 12),
    "sam-vit-h": ((256, 16), (), ((1280, 16),) * 16),
    "sam2-hiera-t": ((256, 16), ((256, 4), (256, 8)), ((96, 4), (192, 8), (384, 16), (768, 32))),
    "sam2-hiera-s": ((256, 16), ((256, 4), (256, 8)), ((96, 4), (192, 8), (384, 16), (768, 32))),
    "sam2-hiera-b+": ((256, 16), ((256, 4), (256, 8)), ((112, 4), (224, 8), (448, 16), (896, 32))),
    "sam2-hiera-l": ((256, 16), ((256, 4), (256, 8)), ((144, 4), (288, 8), (576, 16), (1152, 32))),
}
IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


@functools.cache
def on_meta(backbone):
    """A network without values, which takes no time and no memory."""
    if backbone in SAM_BACKBONES:
        with torch.device("meta"):
            encoder = build_encoder(backbone)
    else:
        encoder = build_encoder(backbone, pretrained=False).to("meta")
    with torch.device("meta"):
        return PromptableSam(encoder, sam_decoder(encoder.spec))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_gives_what_it_says(backbone):
    encoder = on_meta(backbone).encoder
    spec, (h, w) = encoder.spec, (192, 320)
    embedding, skips, hidden = LEVELS[backbone]
    assert (spec.embedding.channels, spec.embedding.stride) == embedding
    assert tuple((level.channels, level.stride) for level in spec.hidden) == hidden
    assert tuple((level.channels, level.stride) for level in spec.skips or ()) == skips
    assert spec.is_pyramid is (backbone not in SAM_BACKBONES)
    assert spec.fixed_size is (backbone != "lite")  # lite has no positions
    assert spec.name == backbone
    if backbone != "lite":
        assert (spec.mean, spec.std, spec.image_size) == (*IMAGENET, 1024)
    features = encoder(torch.empty(2, 3, h, w, device="meta"))
    maps = [features.embedding, *(features.skips or ()), *features.hidden]
    assert [tuple(x.shape) for x in maps] == [
        (2, c, h // stride, w // stride) for c, stride in (embedding, *skips, *hidden)
    ]


@pytest.mark.parametrize("backbone", BACKBONES)
@torch.no_grad()
def test_its_decoder_takes_what_it_gives(backbone):
    embedding, skips, _ = LEVELS[backbone]
    decoder = sam_decoder(on_meta(backbone).encoder.spec)
    maps = [torch.randn(2, c, 64 // stride, 96 // stride) for c, stride in (embedding, *skips)]
    index, sparse = torch.tensor([0, 1, 1, 0, 1]), torch.randn(5, 2, decoder.dim)
    logits, tokens = decoder(maps[0], decoder.image_pe(4, 6), index, sparse, decoder.no_mask(), maps[1:] or None)
    assert logits.shape == (5, 16, 24)
    assert tokens.shape == (5, (6 if backbone in SAM2_BACKBONES else 5) + 2, decoder.dim)


def test_unknown_backbones_are_refused():
    with pytest.raises(ModelError, match="'resnet50' is unknown; choose from lite, sam-vit-b"):
        build_encoder("resnet50")


# --- official files ------------------------------------------------------------------------------------------------


def row(name, shape):
    """One random row, repeated along the other axes without taking memory; another one for every name."""
    values = torch.randn(shape[-1:], generator=torch.Generator().manual_seed(hash(name) % 2**31))
    return values.expand(tuple(shape))


@functools.cache
def official(backbone, version):
    """Names and shapes of an official file, from the package that its authors load it with."""
    if backbone in SAM_BACKBONES:
        from segment_anything import sam_model_registry

        with torch.device("meta"):
            state = sam_model_registry[backbone.removeprefix("sam-").replace("-", "_")]().state_dict()
    else:
        from sam2.build_sam import build_sam2

        size = backbone.removeprefix("sam2-hiera-")
        state = build_sam2(f"configs/{version}/{version}_hiera_{size}.yaml", ckpt_path=None, device="cpu").state_dict()
    return {name: row(name, tensor.shape) for name, tensor in state.items()}


def write(path, backbone, version, state):
    torch.save({"model": state} if backbone in SAM2_BACKBONES else state, path)
    return path


FILES = [pytest.param(backbone, "sam") for backbone in SAM_BACKBONES] + [
    pytest.param(backbone, version, marks=pytest.mark.slow)  # the package's module is built for its names
    for backbone in SAM2_BACKBONES
    for version in ("sam2", "sam2.1")
]


@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")
@pytest.mark.parametrize(("backbone", "version"), FILES)
def test_official_files_load_strictly(tmp_path, backbone, version):
    """Every tensor is matched; one more, one less or another shape is an error that names it."""
    state, network = official(backbone, version), on_meta(backbone)
    start_from_sam(network, write(tmp_path / "whole.pth", backbone, version, state))
    matched = {name for name in state if name.startswith(("image_encoder.", "no_mem_embed", "sam_prompt", "sam_mask"))}
    own = {name for name in network.state_dict() if name.startswith(("encoder.", "sam."))}
    assert len(own) == (len(state) if version == "sam" else len(matched))
    name = next(
        name for name in state if name.endswith("blocks.3.mlp.lin1.weight" if version == "sam" else "layers.0.weight")
    )
    for broken, words in (
        ({key: x for key, x in state.items() if key != name}, "1 missing"),
        (state | {f"{name}.extra": torch.zeros(1)}, "1 unknown"),
        (state | {name: torch.zeros(3, 3)}, "has shape (3, 3)"),
    ):
        with pytest.raises(WeightsError, match=re.escape(name)) as caught:
            start_from_sam(network, write(tmp_path / "broken.pth", backbone, version, broken))
        assert words in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "version"), [("sam-vit-b", "sam"), ("sam2-hiera-t", "sam2"), ("sam2-hiera-t", "sam2.1")]
)
def test_every_value_of_an_official_file_arrives(tmp_path, backbone, version):
    state = official(backbone, version)
    network = PromptableSam(build_encoder(backbone), sam_decoder(on_meta(backbone).encoder.spec))
    assert any(p.requires_grad for p in network.parameters())
    start_from_sam(network, write(tmp_path / "whole.pth", backbone, version, state))
    assert not any(p.requires_grad for p in network.encoder.parameters())
    by_row = {}
    for name, tensor in network.state_dict().items():
        theirs = name.removeprefix("encoder.").removeprefix("sam.")
        if theirs not in state:  # sam2 numbers the transformer's two layers and keeps more in its decoder
            theirs = re.sub(r"\.mlp\.lin([12])\.", lambda m: f".mlp.layers.{int(m[1]) - 1}.", theirs)
            theirs = f"sam_{theirs}" if f"sam_{theirs}" in state else f"sam_mask_decoder.{theirs}"
        assert torch.equal(tensor, state[theirs]), name
        by_row[theirs] = name
    rest = set(state) - set(by_row)
    assert all(name.startswith(VIDEO) for name in rest)
    assert bool(rest) is (version != "sam")


VIDEO = ("memory_", "obj_ptr_", "no_mem_pos_enc", "maskmem_", "no_obj_", "mask_downsample.")


@pytest.mark.parametrize("backbone", ["sam-vit-l", "lite"])
def test_files_of_another_backbone_are_refused(tmp_path, backbone):
    path = write(tmp_path / "b.pth", "sam-vit-b", "sam", official("sam-vit-b", "sam"))
    kind, words = {
        "sam-vit-l": (WeightsError, "expected ViT-L, found 768-wide ViT-B"),
        "lite": (ModelError, "lite backbone takes no SAM checkpoint"),
    }[backbone]
    with pytest.raises(kind, match=words):
        start_from_sam(on_meta(backbone), path)
