"""State dicts in the authors' layouts: their names and shapes, reproducible values, little memory."""

import json
import os
import zlib
from pathlib import Path

import torch

FOLDER = (
    Path(os.environ.get("RSGEOSEG_SHARED_DATA", Path(__file__).parents[2] / ".." / "shared" / "data")).parent / "golden"
)


def value(name, shape):
    """A tensor that no other name has: one random row, repeated along the other axes without taking memory."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(zlib.crc32(name.encode()) % 1000)
    row = torch.randn(shape[-1:], generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    return row.expand(tuple(shape))


def filled(shapes, prefix=""):
    """A state dict; ``shapes``: by name, of numbers or tensors."""
    return {prefix + name: value(prefix + name, getattr(shape, "shape", shape)) for name, shape in shapes.items()}


def golden_keys(name, key="keys"):
    return json.loads((FOLDER / f"{name}.json").read_text())[key]


def sam(size="b", prefix=""):
    """A segment-anything model's state dict."""
    from segment_anything import sam_model_registry

    with torch.device("meta"):
        model = sam_model_registry[f"vit_{size}"]()
    return filled(model.state_dict(), prefix)


def huggingface():
    """A transformers ``SamModel``'s state dict, ViT-B; its two copies of one matrix are equal."""
    from transformers import SamConfig, SamModel

    with torch.device("meta"):
        model = SamModel(SamConfig())
    state = filled(model.state_dict())
    copy = "prompt_encoder.shared_embedding.positional_embedding"
    return state | {copy: state["shared_image_embedding.positional_embedding"]}


def sam2(config):
    """A sam2 model's state dict, e.g. ``configs/sam2.1/sam2.1_hiera_t.yaml``."""
    import logging

    from sam2.build_sam import build_sam2

    level = logging.root.level
    state = build_sam2(config, ckpt_path=None, device="cpu").state_dict()
    logging.root.setLevel(level)
    return filled(state)


def anchor_2023(dataset="NWPU"):
    """The published files of 2023, ViT-H."""
    keys = golden_keys("rsprompter_v1_keys", "NWPU")
    return filled(
        keys if dataset == "NWPU" else keys | golden_keys("rsprompter_v1_keys", f"{dataset}_shapes_that_differ")
    )


def anchor_2024():
    """What the code of 2024 saves for an anchor model on ViT-B."""
    return filled(golden_keys("rsprompter_v2_anchor_head"))


def query_2024():
    """What the code of 2024 saves for a query model on ViT-B."""
    return filled(golden_keys("rsprompter_v2_query_head"))


def with_lora(state, rank=4, *, prefix="backbone.vision_encoder."):
    """The same with peft's adapters on every ``qkv``, under peft's names."""
    wrapped = {}
    for name, tensor in state.items():
        if not name.startswith(prefix):
            wrapped[name] = tensor
            continue
        inner = f"{prefix}base_model.model.{name.removeprefix(prefix)}"
        if ".qkv." not in name:
            wrapped[inner] = tensor
            continue
        wrapped[inner.replace(".qkv.", ".qkv.base_layer.")] = tensor
        if name.endswith("weight"):
            layer = inner.removesuffix(".weight")
            for half, shape in (("A", (rank, tensor.shape[1])), ("B", (tensor.shape[0], rank))):
                seed = zlib.crc32(f"{layer}.{half}".encode())
                adapter = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
                wrapped[f"{layer}.lora_{half}.default.weight"] = adapter
    return wrapped


def saved(path, content, **options):
    torch.save(content, path, **options)
    return path
