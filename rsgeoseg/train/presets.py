"""Named recipes: how the papers trained each model on each dataset, and how the bundled weights were trained.

Source: Chen et al., RSPrompter, section IV-C (N_p, K_p, size, augmentation, optimiser, epochs); where the paper says
nothing, the released configs (KyanChen/RSPrompter, branch release, f4e73c3, ``configs/rsprompter/``). Every preset says
where paper and code differ. Data, weights to start from and device are the user's to add.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rsgeoseg.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A recipe."""

    title: str
    """What it repeats."""
    values: dict[str, Any]
    """Options of ``TrainConfig``."""
    notes: tuple[str, ...]
    """What paper and code say differently, and what is done here."""


_COMMON: dict[str, Any] = {
    "backbone": "sam-vit-h",
    "crop": 1024,
    "scale": [0.1, 2.0],
    "symmetries": "flip",
    "mosaic": 0.0,
    "colour": 0.0,
    "blur": 0.0,
    "centred": 0.0,
    "weight_decay": 0.05,
    "warmup": 50,
    "final": 0.001,
    "average": 0.0,
    "batch_size": 16,
}
_COMMON_NOTES = (
    "scale 0.1-2.0 is of the crop's side in the code and of the image here; drawn log-uniformly here, uniformly there",
    "crops that hold nothing stay, as in the code; objects under a fifth of which is left are no targets (code: all)",
    "cosine by step here, by epoch in the code; both from 50 warm-up steps down to 0.001 of the rate",
    "norms and biases have no weight decay here; in the code they have",
    "SAM's encoder is frozen as in the paper; since commit ea74a9d the released code trains it by mistake",
    "batch 16 as in the paper; the configs have 1-2 images on each GPU: use --accumulate to reach 16",
    "ViT-H as in the paper; the shipped dataset configs name ViT-B: --backbone sam-vit-b",
)
_QUERIES = {"whu": 100, "nwpu": 70, "ssdd": 30}
_EPOCHS = {
    "rsprompter-anchor": {"whu": 200, "nwpu": 300, "ssdd": 300},
    "rsprompter-query": {"whu": 300, "nwpu": 500, "ssdd": 500},
    "sam-seg-maskrcnn": {"whu": 200, "nwpu": 250, "ssdd": 250},
    "sam-seg-mask2former": {"whu": 300, "nwpu": 600, "ssdd": 600},
    "sam-det": {"whu": 200, "nwpu": 300, "ssdd": 300},
    "sam-cls": {"whu": 500, "nwpu": 500, "ssdd": 500},
}
_RATES = {
    "rsprompter-anchor": 1e-4,
    "rsprompter-query": 1e-4,
    "sam-seg-maskrcnn": 2e-4,
    "sam-seg-mask2former": 1e-4,
    "sam-det": 1e-4,
    "sam-cls": 5e-4,
}
_NAMES = {"whu": "WHU building", "nwpu": "NWPU VHR-10", "ssdd": "SSDD"}


def _of_model(model: str, data: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What a model's recipe adds to the common one."""
    notes: tuple[str, ...]
    if model == "rsprompter-query":
        options = {"num_queries": _QUERIES[data], "prompts_per_query": 5}
        notes = (
            f"N_p {_QUERIES[data]}, K_p 5 (paper section IV-C)",
            "epochs 300/500/500 in the paper (WHU, NWPU, SSDD), 300/600/600 in the code",
            "dice (weight 5) beside cross-entropy as in the code; Eq. 9 has none: --set-loss dice_weight=0",
            "gradient norm 0.1 as in the code; fp16 with DeepSpeed there, --precision fp16 or bf16 here",
        )
        return {"model_options": options, "clip": 0.1}, notes
    if model == "rsprompter-anchor":
        notes = (
            "K_p 5; epochs 200/300/300 in the paper, 300/500/600 in the code; rate 1e-4 in the paper, 2e-4 in the code",
            "no clipping, as in the code; AMP",
        )
        return {"model_options": {"prompts_per_roi": 5}, "clip": 0.0}, notes
    if model == "sam-det":
        return {"scale": [1.0, 1.0], "clip": 0.0, "encoder_factor": 1.0}, (
            "no large-scale jitter (code); 200-300 epochs in the code, by dataset assumed; the paper gives none",
        )
    if model == "sam-cls":
        return {"weight_decay": 1e-4, "scale": [1.0, 1.0], "clip": 0.0}, (
            "ResNet-18, AdamW 5e-4, 500 epochs: the 2023 code; the paper gives no figures",
        )
    clip = 0.01 if model == "sam-seg-mask2former" else 0.0
    return {"clip": clip}, (
        "rate of the code's NWPU config, epochs too on NWPU; the paper gives none for SAM-seg",
        "on WHU the prompters' epochs of the paper (200, 300) and on SSDD those of NWPU: assumed, neither says",
        "gradient norm 0.01 with Mask2Former's heads, as Mask2Former's own recipe; none with Mask R-CNN's",
    )


def _paper_preset(model: str, data: str) -> Preset:
    values, notes = _of_model(model, data)
    return Preset(
        title=f"{model} on {_NAMES[data]} as in the RSPrompter paper",
        values={**_COMMON, "model": model, "epochs": _EPOCHS[model][data], "lr": _RATES[model], **values},
        notes=(*notes, *_COMMON_NOTES),
    )


PRESETS: dict[str, Preset] = {f"{model}-{data}": _paper_preset(model, data) for model in _EPOCHS for data in _NAMES} | {
    "lite": Preset(
        title="as the bundled rsprompter-query was trained: hours on a CPU, not days on a GPU",
        values={"model": "rsprompter-query", "backbone": "lite"},
        notes=("these are the defaults of `rsgeoseg train`",),
    ),
    "lite-few": Preset(
        title="a new class from a few dozen polygons, starting from the bundled weights: under an hour on a CPU",
        values={
            "model": "rsprompter-query",
            "backbone": "lite",
            "start": "rsprompter-query-lite-nwpu",
            "lr": 2e-4,
            "warmup": 30,
            "average": 0.98,
            "steps": 300,
            "interval": 50,
            "crop": 384,
            "scale": [0.7, 1.4],
        },
        notes=("a shorter memory of the averaged weights, because there are few steps",),
    ),
}
"""By name."""


def find_preset(name: str) -> Preset:
    """Look a preset up.

    Raises:
        UsageError: there is none of this name.
    """
    if name not in PRESETS:
        msg = f"there is no preset {name!r}; choose from {', '.join(PRESETS)}"
        raise UsageError(msg)
    return PRESETS[name]
