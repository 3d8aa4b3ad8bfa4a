"""Conversion: bit-equal tensors, what the new file says, and what is never written over."""

import argparse

import pytest
import torch
import upstream

from rsgeoseg.errors import OutputError, WeightsError
from rsgeoseg.weights.convert import convert
from rsgeoseg.weights.files import read_weights, sha256_of, write_weights
from rsgeoseg.weights.foreign import read_foreign

needs_golden = pytest.mark.skipif(
    not upstream.FOLDER.is_dir(), reason="NOT RUN: reference numbers ../shared/golden are absent"
)


@pytest.fixture
def folder(tmp_path):
    """Hundreds of megabytes are not left behind."""
    yield tmp_path
    for path in tmp_path.iterdir():
        path.unlink()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A SAM file; values on one row, so it is small."""
    return upstream.saved(tmp_path_factory.mktemp("source") / "sam_vit_b.pth", upstream.sam("b"))


def message(kind, call, *arguments, **options):
    with pytest.raises(kind) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def check(report, expected, **description):
    """Every tensor bit for bit, and the header."""
    written = read_weights(report.target)
    assert written.tensors.keys() == expected.keys()
    assert report.tensors == len(expected)
    for name, tensor in expected.items():
        assert written.tensors[name].dtype == tensor.dtype
        assert torch.equal(written.tensors[name], tensor), name
    assert written.description == report.description
    assert written.digest == report.digest == sha256_of(report.target)
    assert report.description["origin"] == {"file": report.source.name, "sha256": sha256_of(report.source)}
    assert description.items() <= report.description.items()
    assert sorted(path.name for path in report.target.parent.iterdir() if path != report.source) == [report.target.name]


@pytest.mark.slow
def test_sam(folder, source):
    report = convert(source, folder / "new.safetensors")
    assert report.container == "flat"
    read = read_foreign(source)
    check(report, read.tensors, model="sam", backbone="sam-vit-b", config={}, layout="sam", ignored=[], absent=[])
    again = read_foreign(report.target)  # whoever takes a file of the authors takes the new one as well
    assert again.description == report.description
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in read.tensors.items())


@pytest.mark.slow
def test_a_network_loads_what_was_converted(folder, source):
    from segment_anything import sam_model_registry

    from rsgeoseg.backbones.sam_vit import build_sam_vit, split_sam_checkpoint

    target = convert(source, folder / "new.safetensors").target
    with torch.device("meta"):
        package = sam_model_registry["vit_b"]()
    parts = split_sam_checkpoint(target)
    for part, tensors in parts.items():
        package.get_submodule(part).load_state_dict(tensors, strict=True, assign=True)
    encoder = build_sam_vit("b", checkpoint=target)
    state = upstream.sam("b")
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, state[name]), name


@pytest.mark.slow
@needs_golden
def test_mmengine_with_lora(folder):
    classes = tuple(f"kind {index}" for index in range(10))
    state = upstream.with_lora(upstream.query_2024(), rank=16)
    content = {"meta": {"dataset_meta": {"classes": classes}}, "state_dict": state, "message_hub": argparse.Namespace()}
    source = upstream.saved(folder / "epoch_9.pth", content)
    assert "weights convert" in message(WeightsError, read_foreign, source)
    report = convert(source, folder / "new.safetensors", lora_alpha=8)
    assert report.container == "mmengine"
    assert report.description["lora"] == {"rank": 16, "alpha": 8, "alpha_given": True, "layers": 12}
    assert report.description["config"]["classes"] == list(classes)
    expected = read_foreign(upstream.saved(folder / "plain.pth", upstream.query_2024())).tensors
    (folder / "plain.pth").unlink()
    for block in range(12):
        layer = f"backbone.vision_encoder.base_model.model.layers.{block}.attn.qkv"
        a, b = (state[f"{layer}.lora_{half}.default.weight"] for half in "AB")
        expected[f"encoder.image_encoder.blocks.{block}.attn.qkv.weight"] = (
            state[f"{layer}.base_layer.weight"] + 0.5 * b @ a
        )
    check(report, expected, model="rsprompter-query", layout="rsprompter-2024")


@pytest.mark.slow
@needs_golden
def test_lightning_anchor_of_2023(folder):
    """The layout of 2023 at the size of ViT-B: the published ViT-H differs in widths alone, and takes 2.6 GB."""
    state = {name: x for name, x in upstream.anchor_2023().items() if not name.startswith("backbone.")}
    for name in [n for n in state if "down_sample_layers" in n or "fusion_layers" in n]:
        if int(name.split(".")[3]) >= 4:  # blocks 4, 6, 8, 10
            del state[name]
        elif name.endswith("0.conv.weight"):
            state[name] = upstream.value(name, (32, 768, 1, 1)) if "down" in name else state[name]
    state |= upstream.sam("b", "backbone.")
    source = upstream.saved(
        folder / "last.ckpt",
        {"state_dict": state, "pytorch-lightning_version": "2", "hyper_parameters": argparse.Namespace()},
    )
    report = convert(source, folder / "new.safetensors", classes=[f"c{i}" for i in range(10)])
    assert report.container == "lightning"
    expected = read_foreign(upstream.saved(folder / "plain.pth", state)).tensors
    (folder / "plain.pth").unlink()
    check(report, expected, model="rsprompter-anchor", backbone="sam-vit-b", layout="rsprompter-2023")
    assert report.description["config"]["classes"][9] == "c9"
    assert read_weights(report.target).tensors["neck.up_layers.1.bn.num_batches_tracked"].dtype == torch.int64


# --- float32 -------------------------------------------------------------------------------------------------------


def test_weights_are_written_as_they_are_only_when_asked(tmp_path):
    tensors = {"a": torch.tensor([1 / 3]), "n": torch.tensor(70000)}
    write_weights(tmp_path / "a.safetensors", tensors, {}, dtype=None)
    assert torch.equal(read_weights(tmp_path / "a.safetensors").tensors["a"], tensors["a"])
    write_weights(tmp_path / "b.safetensors", tensors, {})
    read = read_weights(tmp_path / "b.safetensors").tensors
    assert torch.equal(read["a"], tensors["a"].half().float())
    assert read["n"].item() == 70000


@pytest.mark.slow
def test_tensors_that_share_memory(folder):
    """A training program may save one flat buffer and views of it; tied tensors are one."""
    state, start = upstream.sam("b"), 0
    names = [name for name in state if name.startswith("mask_decoder.")]
    flat = torch.randn(sum(state[name].numel() for name in names))
    for name in names:
        size = state[name].numel()
        state[name] = flat[start : start + size].view(state[name].shape)
        start += size
    state["prompt_encoder.no_mask_embed.weight"] = state["prompt_encoder.not_a_point_embed.weight"]
    source = upstream.saved(folder / "sam.pth", state)
    check(convert(source, folder / "new.safetensors"), read_foreign(source).tensors)


# --- targets -------------------------------------------------------------------------------------------------------


def test_an_existing_file_stays(tmp_path, source):
    target = tmp_path / "new.safetensors"
    target.write_text("mine")
    assert "exists" in message(OutputError, convert, source, target)
    assert target.read_text() == "mine"


def test_a_failed_conversion_leaves_the_old_file(tmp_path):
    target = tmp_path / "new.safetensors"
    target.write_text("mine")
    bad = upstream.saved(tmp_path / "bad.pth", {"image_encoder.pos_embed": torch.zeros(1)})
    message(WeightsError, convert, bad, target, overwrite=True)
    assert target.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.pth", "new.safetensors"]


@pytest.mark.slow
def test_overwriting_when_asked(folder, source):
    target = folder / "new.safetensors"
    target.write_text("mine")
    convert(source, target, overwrite=True)
    assert read_weights(target).description["layout"] == "sam"


def test_targets_that_cannot_be(tmp_path, source):
    assert "ends in .safetensors" in message(OutputError, convert, source, tmp_path / "new.pth")
    assert "folder does not exist" in message(OutputError, convert, source, tmp_path / "none" / "new.safetensors")
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"x")
    (tmp_path / "b.safetensors").symlink_to(path)
    for target in (path, tmp_path / "b.safetensors"):
        assert "is the source itself" in message(OutputError, convert, path, target, overwrite=True)
    assert path.read_bytes() == b"x"
    missing = tmp_path / "missing.pth"
    assert "no such weights file" in message(WeightsError, convert, missing, tmp_path / "new.safetensors")


def test_a_full_disk_leaves_nothing(tmp_path, source):
    """A limit on the size of files fails a write half way, as a full disk does."""
    resource = pytest.importorskip("resource", reason="NOT RUN: no limits on this system")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        text = message(OutputError, convert, source, tmp_path / "new.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot be written" in text
    assert list(tmp_path.iterdir()) == []


def test_our_own_files_need_no_conversion(tmp_path):
    path = tmp_path / "own.safetensors"
    write_weights(path, {"a": torch.zeros(1)}, {"model": "sam"})
    assert "already" in message(WeightsError, convert, path, tmp_path / "new.safetensors")
