"""Trained weights as a file for ``run --weights``, with a model card for people beside it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from rsgeoseg.train.models import TRAINABLE
from rsgeoseg.weights.files import write_weights

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from rsgeoseg.evaluate.coco import CocoResult
    from rsgeoseg.train.config import TrainConfig


def export_weights(path: Path, network: nn.Module, config: TrainConfig, step: int, accuracy: CocoResult) -> None:
    """Write weights and card; each appears whole.

    Args:
        path: of the weights, ``.safetensors``; the card has the same name with ``.md``.
        network: plain, as ``network.plain_network`` gives it.
        config: of the training.
        step: that the weights are of.
        accuracy: of these weights on the held-out images.

    Raises:
        OutputError: they cannot be written.
    """
    description = {
        **TRAINABLE[config.model].describe(network),
        "training": {**config.to_dict(), "step": step},
        "accuracy": accuracy.to_dict(),
    }
    write_weights(path, network.state_dict(), description)
    card = path.with_suffix(".md")
    beside = card.with_name(f".{card.name}.part")
    beside.write_text(_card(path.name, config, step, accuracy, description), encoding="utf-8")
    os.replace(beside, card)  # noqa: PTH105  (atomic on every system)


def _card(name: str, config: TrainConfig, step: int, accuracy: CocoResult, description: dict[str, Any]) -> str:
    classes = [row.name for row in accuracy.per_class]
    source = config.dataset or config.annotations or ", ".join(config.scenes)
    lines = [
        f"# Model card: {name}",
        "",
        "| | |",
        "|---|---|",
        f"| model | `{config.model}` on `{description['backbone']}` |",
        f"| classes | {', '.join(classes)} |",
        f"| trained on | {source} |",
        f"| start | {config.start or config.sam_checkpoint or 'ImageNet weights of the encoder, random heads'} |",
        f"| weights of | step {step}, the best of all that were measured |",
        f"| mask AP, held-out images | {accuracy.ap:.3f} (AP50 {accuracy.ap50:.3f}, AP75 {accuracy.ap75:.3f}) |",
        "",
        "The held-out images chose the step, so the figures are a little too good. Licence and limits of the training",
        "images hold for these weights too.",
        "",
        "| class | AP | AP50 | objects | found |",
        "|---|---|---|---|---|",
        *(f"| {r.name} | {r.ap:.3f} | {r.ap50:.3f} | {r.n_truth} | {r.n_found} |" for r in accuracy.per_class),
        "",
        "## Settings",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in config.to_dict().items() if value not in (None, [], {})),
        "",
    ]
    return "\n".join(lines)
