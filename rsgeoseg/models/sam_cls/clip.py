"""Labels without training: CLIP compares a crop with the names of the classes (paper section III-C2, last sentence).

CLIP comes from a folder of the user's in the layout of the transformers package; nothing is ever downloaded, and it is
no part of the network's own weights.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from rsgeoseg.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Per band, 0-1: what OpenAI's CLIP was trained with; used where the folder has no ``preprocessor_config.json``."""
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
"""Per band, 0-1."""


class ClipLabeller:
    """Class logits of crops from CLIP; the sentences are encoded once, the text tower is then let go.

    Args:
        folder: with ``config.json``, weights and tokenizer of a ``CLIPModel``.
        classes: class names; underscores are read as spaces.
        prompt: sentence with ``{class}`` for the name (Radford et al., CLIP, section 3.1.4).
        background: sentences for what is no object.

    Raises:
        ModelError: transformers is not installed, or the folder does not hold a CLIP model.
    """

    def __init__(self, folder: Path | None, classes: Sequence[str], *, prompt: str, background: Sequence[str]) -> None:
        if folder is None or not (folder / "config.json").is_file():
            msg = f"the CLIP labeller needs clip_folder: a folder with a CLIPModel of transformers; got {folder}"
            raise ModelError(msg)
        model, tokenizer = _read(folder)
        sentences = [prompt.replace("{class}", name.replace("_", " ")) for name in classes] + list(background)
        tokens = tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            text = model.text_projection(model.text_model(**tokens).pooler_output)
        self.classes = len(classes)
        self.text = torch.nn.functional.normalize(text, dim=-1)
        self.scale = model.logit_scale.detach().exp()
        self.vision, self.projection = model.vision_model.eval(), model.visual_projection.eval()
        self.side = int(model.config.vision_config.image_size)
        self.mean, self.std = _normalisation(folder)

    def __call__(self, crops: Tensor) -> Tensor:
        """Compare crops (N, 3, side, side) uint8 with the sentences: (N, C + 1) logits, background last."""
        device = crops.device
        self.vision, self.projection = self.vision.to(device), self.projection.to(device)
        mean, std = (torch.tensor(x, device=device)[:, None, None] for x in (self.mean, self.std))
        pooled = self.vision(pixel_values=(crops.float() / 255 - mean) / std).pooler_output
        image = torch.nn.functional.normalize(self.projection(pooled).float(), dim=-1)
        logits = self.scale.to(device) * image @ self.text.to(device).T
        return torch.cat([logits[:, : self.classes], logits[:, self.classes :].logsumexp(1, keepdim=True)], 1)


def _read(folder: Path) -> tuple[Any, Any]:
    """Read model and tokenizer from a folder."""
    try:
        from transformers import AutoTokenizer, CLIPModel  # noqa: PLC0415  (an extra, and slow to import)
    except ImportError as error:
        msg = "the CLIP labeller needs transformers; install it with pip install 'rsgeoseg[text]'"
        raise ModelError(msg) from error
    try:
        model: Any = CLIPModel.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        msg = f"{folder}: cannot be read as a CLIPModel of transformers ({str(error).splitlines()[0]}); save it again"
        raise ModelError(msg) from error
    return model.eval(), tokenizer


def _normalisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    settings = folder / "preprocessor_config.json"
    values = json.loads(settings.read_text()) if settings.is_file() else {}
    return tuple(values.get("image_mean", OPENAI_MEAN)), tuple(values.get("image_std", OPENAI_STD))
