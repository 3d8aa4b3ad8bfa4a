"""Weights and inputs of the reference numbers, made by the formula that their JSON states."""

import json
import math
import os
import re
import zlib
from pathlib import Path

import numpy as np
import torch

SHARED = Path(os.environ.get("RSGEOSEG_SHARED_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
FOLDER = SHARED.parent / "golden"


def load(name):
    """The description and the arrays of one reference."""
    return json.loads((FOLDER / f"{name}.json").read_text()), np.load(FOLDER / f"{name}.npz")


def fill(name, shape, overrides):
    """The value of one state-dict entry, float32."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith(("positional_encoding_gaussian_matrix", "positional_embedding")):
        value = rng.standard_normal(shape).astype(np.float32)
    elif len(shape) >= 2:
        scale = np.float32(1 / math.sqrt(math.prod(shape[1:])))
        value = rng.standard_normal(shape).astype(np.float32) * scale
    elif name.endswith("running_var"):
        value = (0.5 + rng.random(shape)).astype(np.float32)
    elif len(shape) == 1 and name.endswith("weight"):
        value = (1 + 0.1 * rng.standard_normal(shape)).astype(np.float32)
    else:
        value = (0.1 * rng.standard_normal(shape)).astype(np.float32)
    for rule in overrides:
        if re.search(rule["regex"], name):
            value = value * np.float32(rule["scale"]) if "scale" in rule else value + np.float32(rule["add"])
    return torch.from_numpy(np.asarray(value, np.float32))


def smooth(seed, channels, height, width, block, scale):
    """A blocky random map (channels, height, width) float32."""
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((channels, math.ceil(height / block), math.ceil(width / block))).astype(np.float32)
    fine = rng.standard_normal((channels, height, width)).astype(np.float32)
    blocks = np.repeat(np.repeat(coarse, block, axis=1), block, axis=2)[:, :height, :width]
    return ((blocks + np.float32(0.3) * fine) * np.float32(scale)).astype(np.float32)


_HF_SAM = {  # Hugging Face's names of SAM's mask decoder and mask prompt encoder -> segment-anything's
    r"upscale_conv1": "output_upscaling.0",
    r"upscale_layer_norm": "output_upscaling.1",
    r"upscale_conv2": "output_upscaling.3",
    r"layer_norm_final_attn": "norm_final_attn",
    r"layer_norm(\d)": r"norm\1",
    r"(mlps\.\d|prediction_head)\.proj_in": r"\1.layers.0",
    r"(mlps\.\d|prediction_head)\.proj_out": r"\1.layers.2",
    r"(mlps\.\d|prediction_head)\.layers\.0\.(weight|bias)$": r"\1.layers.1.\2",
}


def _decoder_name(name):
    # middle layers first: proj_in becomes layers.0 afterwards
    name = re.sub(r"(mlps\.\d|prediction_head)\.layers\.0\.", r"\1.layers.1.", name)
    for pattern in list(_HF_SAM)[:-1]:
        name = re.sub(pattern, _HF_SAM[pattern], name)
    return name


def query_name(name):
    """Our name of an entry of the released query layout; None = not part of the head."""
    if name.startswith("backbone."):
        return None
    if name.startswith("shared_image_embedding."):
        return "sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    if name.startswith("neck."):
        return name
    name = name.removeprefix("panoptic_head.")
    if name.startswith("mask_decoder.mask_decoder."):
        return "sam.mask_decoder." + _decoder_name(name.removeprefix("mask_decoder.mask_decoder."))
    if name.startswith("sam_mask_embed."):
        part = name.removeprefix("sam_mask_embed.")
        order = {"conv1": "0", "layer_norm1": "1", "conv2": "3", "layer_norm2": "4", "conv3": "6"}
        for theirs, ours in order.items():
            part = re.sub(rf"^{theirs}\.", f"{ours}.", part)
        return "sam.prompt_encoder.mask_downscaling." + part
    name = re.sub(r"^transformer_decoder\.", "", name)
    name = name.replace("pixel_decoder.encoder.layers.", "pixel_decoder.encoder.")
    name = re.sub(r"(self|cross)_attn\.attn\.", r"\1_attn.", name)
    return name.replace("ffn.layers.0.0.", "ffn.0.").replace("ffn.layers.1.", "ffn.2.")
