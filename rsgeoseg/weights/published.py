"""Cards of public weights: where the authors' files are, what they hold, and the settings under which they work."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a file wants to be used: with other values it loads as well, and quietly does worse."""

    mean: tuple[float, float, float]
    """Subtracted from red, green and blue, on the 0-255 scale."""
    std: tuple[float, float, float]
    """Divided by, on the 0-255 scale."""
    resize: Literal["squash", "long side, padded"]
    """To 1024 x 1024 pixels: both sides as they come, or the long side with zeros (after normalisation) to the right
    and below."""
    decoder_eps: float
    """Epsilon of the layer norms in the mask decoder's transformer."""
    mask_values: Literal["logits", "probabilities"]
    """What is resampled from the decoder's grid to the image, bilinearly."""
    mask_resamplings: int
    """How often: once straight to the image, or twice, over the padded 1024 x 1024 square."""
    mask_threshold: float
    """Value at which a pixel belongs to the object: logits above it, probabilities from it on."""
    score: str
    """What the score of an object is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedCard:
    """One public weights file."""

    id: str
    """Name to ask for, e.g. ``sam-vit-b``."""
    models: tuple[str, ...]
    """Registry names of the models it serves."""
    backbone: str
    """Image encoder in the file."""
    file: str
    """File name, here, on mirrors and at the end of the URL."""
    url: str
    """Where the authors publish it."""
    bytes: int
    """Size of the file."""
    sha256: str
    """Digest of the file, 64 hexadecimal digits."""
    classes: tuple[str, ...]
    """Class names in the order of the class head; empty for files without classes."""
    licence: str
    """Licence of the weights, and what is known of the limits of the training images."""
    source: str
    """Publication and repository."""
    score_threshold: float
    """Score below which objects are left off a map."""
    settings: Settings
    """How the file wants to be used."""
    notes: str = ""
    """What one should know besides."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)


# ImageNet's statistics. SAM 2 writes them on the 0-1 scale (0.485, ...; 0.229, ...), rounded: times 255 they are these.
_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_SAM = Settings(
    mean=_MEAN,
    std=_STD,
    resize="long side, padded",
    decoder_eps=1e-5,
    mask_values="logits",
    mask_resamplings=2,
    mask_threshold=0.0,
    score="IoU of the mask with the object as the decoder predicts it",
)
_SAM2 = Settings(
    mean=_MEAN,
    std=_STD,
    resize="squash",
    decoder_eps=1e-5,
    mask_values="logits",
    mask_resamplings=1,
    mask_threshold=0.0,
    score="IoU of the mask with the object as the decoder predicts it",
)
_RSPROMPTER_2023 = Settings(
    mean=_MEAN,
    std=_STD,
    resize="squash",
    decoder_eps=1e-5,
    mask_values="probabilities",
    mask_resamplings=1,
    mask_threshold=0.5,
    score="class probability of the box head; the mask has no say",
)

_NWPU_CLASSES = (
    "airplane",
    "ship",
    "storage_tank",
    "baseball_diamond",
    "tennis_court",
    "basketball_court",
    "ground_track_field",
    "harbor",
    "bridge",
    "vehicle",
)

_DEFAULTS = {"sam-prompt": "sam-vit-b", "sam-everything": "sam-vit-b", "sam2-prompt": "sam2.1-hiera-t"}


@cache
def published_cards() -> tuple[PublishedCard, ...]:
    """Cards of all public files: SAM, SAM 2, SAM 2.1, RSPrompter."""
    return (
        _sam(
            "b",
            "sam_vit_b_01ec64.pth",
            375_042_383,
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        ),
        _sam(
            "l",
            "sam_vit_l_0b3195.pth",
            1_249_524_607,
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        ),
        _sam(
            "h",
            "sam_vit_h_4b8939.pth",
            2_564_550_879,
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        ),
        _sam2("2", "tiny", 155_906_050, "65b50056e05bcb13694174f51bb6da89c894b57b75ccdf0ba6352c597c5d1125"),
        _sam2("2", "small", 184_309_650, "95949964d4e548409021d47b22712d5f1abf2564cc0c3c765ba599a24ac7dce3"),
        _sam2("2", "base_plus", 323_493_298, "d0bb7f236400a49669ffdd1be617959a8b1d1065081789d7bbff88eded3a8071"),
        _sam2("2", "large", 897_952_466, "7442e4e9b732a508f80e141e7c2913437a3610ee0c77381a66658c3a445df87b"),
        _sam2("2.1", "tiny", 156_008_466, "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69"),
        _sam2("2.1", "small", 184_416_285, "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38"),
        _sam2("2.1", "base_plus", 323_606_802, "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5"),
        _sam2("2.1", "large", 898_083_611, "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318"),
        _rsprompter(
            "NWPU",
            2_653_974_255,
            "aa1acde05d8b35d53347afea02fb08a521a978404374023556bdab843cf17926",
            classes=_NWPU_CLASSES,
            notes="The order of the ten classes is the convention of the set's annotation file; the weights do not "
            "hold it. ",
        ),
        _rsprompter(
            "WHU",
            2_653_262_554,
            "173e97dfcc82766ae8f700141556be0e785f8d0d6e8de8340c1334a9233d962d",
            classes=("building",),
        ),
        _rsprompter(
            "SSDD",
            2_653_789_807,
            "d98b7ccea2404dcd550a6581696b93e259f5f8203cd4fb4a5fdcd28f3903c5e7",
            classes=("ship",),
        ),
    )


def find_published(name: str) -> PublishedCard | None:
    """Find the card with this id; None where there is none."""
    return next((card for card in published_cards() if card.id == name), None)


def default_card(model: str) -> PublishedCard | None:
    """Return what a model loads when it has no bundled weights and none are named: the smallest file that serves it.

    None for models whose weights depend on the user's classes.
    """
    return find_published(_DEFAULTS[model]) if model in _DEFAULTS else None


def public_card(model: str, weights: str | None) -> PublishedCard | None:
    """Find the public file that a user means, where no bundled one is meant; None for a path, or where there is none.

    Args:
        model: registry name.
        weights: id or path; None = the model's default.
    """
    return default_card(model) if weights is None else find_published(weights)


def settings_of(card: PublishedCard) -> dict[str, Any]:
    """Return the config values that a network needs and the card's file cannot tell.

    They are the names of the classes: all else is read off the tensors' names and shapes.
    """
    return {"classes": list(card.classes)} if card.classes else {}


def _sam(size: str, file: str, count: int, sha256: str) -> PublishedCard:
    return PublishedCard(
        id=f"sam-vit-{size}",
        models=("sam-prompt", "sam-everything"),
        backbone=f"sam-vit-{size}",
        file=file,
        url=f"https://dl.fbaipublicfiles.com/segment_anything/{file}",
        bytes=count,
        sha256=sha256,
        classes=(),
        licence="Apache-2.0",
        source="Kirillov et al., Segment Anything, ICCV 2023; facebookresearch/segment-anything",
        score_threshold=0.0,  # a user who prompts wants the mask; models that search have thresholds of their own
        settings=_SAM,
        notes="Also the start of a training on this backbone: `rsgeoseg train --sam-checkpoint FILE`.",
    )


def _sam2(version: Literal["2", "2.1"], size: str, count: int, sha256: str) -> PublishedCard:
    short = {"tiny": "t", "small": "s", "base_plus": "b+", "large": "l"}[size]
    file = f"sam{version}_hiera_{size}.pt"
    release = {"2": "072824", "2.1": "092824"}[version]
    return PublishedCard(
        id=f"sam{version}-hiera-{short}",
        models=("sam2-prompt", "sam-everything"),
        backbone=f"sam2-hiera-{short}",
        file=file,
        url=f"https://dl.fbaipublicfiles.com/segment_anything_2/{release}/{file}",
        bytes=count,
        sha256=sha256,
        classes=(),
        licence="Apache-2.0",
        source="Ravi et al., SAM 2: Segment Anything in Images and Videos, 2024; facebookresearch/sam2",
        score_threshold=0.0,
        settings=_SAM2,
        notes="The memory of the video model, which single images do not use, is left unread.",
    )


def _rsprompter(dataset: str, count: int, sha256: str, *, classes: tuple[str, ...], notes: str = "") -> PublishedCard:
    file = f"{dataset}_anchor.pth"
    return PublishedCard(
        id=f"rsprompter-anchor-{dataset.lower()}",
        models=("rsprompter-anchor",),
        backbone="sam-vit-h",
        file=file,
        url=f"https://huggingface.co/spaces/KyanChen/RSPrompter/resolve/main/pretrain/{file}",
        bytes=count,
        sha256=sha256,
        classes=classes,
        licence="Apache-2.0 (that of the authors' repository; the files carry none); the training images have terms "
        "of their own",
        source=f"Chen et al., RSPrompter, IEEE TGRS 2024, trained on {dataset}; KyanChen/RSPrompter, 2023 generation",
        score_threshold=0.5,
        settings=_RSPROMPTER_2023,
        notes=f"{notes}All of SAM was frozen in this generation, its decoder too, which the paper trains: the paper's "
        "accuracy is not to be expected.",
    )
