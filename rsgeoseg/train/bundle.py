"""Put trained weights into the package: the file, its card for programs, its card for people.

    python -m rsgeoseg.train.bundle runs/x/weights.safetensors --id rsprompter-query-lite-nwpu --data ... --recipe ...

The accuracy on the card is measured here, on the held-out images, not taken from a log.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from rsgeoseg.datasets.coco import CocoInstances
from rsgeoseg.registry import load_model
from rsgeoseg.train.callbacks import VALIDATION_THRESHOLD
from rsgeoseg.train.validate import evaluate_images
from rsgeoseg.weights.cards import BUNDLED, WeightsCard
from rsgeoseg.weights.files import read_weights, sha256_of, write_weights

logger = logging.getLogger(__name__)


def bundle(
    weights: Path,
    images: Path,
    annotations: Path,
    *,
    card_id: str,
    data: str,
    recipe: str,
    licence: str,
    limits: str,
    score_threshold: float,
    gsd_range: tuple[float, float] | None,
) -> WeightsCard:
    """Measure weights on the held-out images and put them into the package.

    Args:
        weights: file that a training exported.
        images: folder of the COCO set it was trained on.
        annotations: its annotations.
        card_id: name of the weights.
        data: what they were trained on.
        recipe: how.
        licence: of the weights, with limits of the training images.
        limits: what the model cannot do.
        score_threshold: score below which objects are left off a map.
        gsd_range: metres per pixel of the training images.
    """
    file = read_weights(weights)
    # a training's settings name folders of the machine that it ran on
    description = {key: value for key, value in file.description.items() if key not in {"training", "accuracy"}}
    _, held = CocoInstances(images, annotations).split()
    model = load_model(description["model"], weights=weights)
    accuracy = evaluate_images(model.at_threshold(VALIDATION_THRESHOLD), held)  # type: ignore[attr-defined]
    target = BUNDLED / f"{card_id}.safetensors"
    BUNDLED.mkdir(exist_ok=True)
    write_weights(target, file.tensors, description)
    card = WeightsCard(
        id=card_id,
        model=description["model"],
        backbone=description["backbone"],
        file=target.name,
        bytes=target.stat().st_size,
        sha256=sha256_of(target),
        classes=tuple(description["config"]["classes"]),
        licence=licence,
        data=data,
        recipe=recipe,
        accuracy={
            "mask_ap": round(accuracy.ap, 4),
            "mask_ap50": round(accuracy.ap50, 4),
            "mask_ap75": round(accuracy.ap75, 4),
        },
        limits=limits,
        chip_size=model.spec.chip_size,
        overlap=model.spec.overlap,
        score_threshold=score_threshold,
        gsd_range=gsd_range,
    )
    target.with_suffix(".json").write_text(json.dumps(card.to_dict(), indent=1) + "\n")
    for row in accuracy.per_class:
        logger.info("%-20s AP %.3f  AP50 %.3f  %d objects", row.name, row.ap, row.ap50, row.n_truth)
    return card


def main() -> None:
    """Read the card's texts from the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    for name in ("images", "annotations"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("id", "data", "recipe", "licence", "limits"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--score-threshold", type=float, default=0.5)
    parser.add_argument("--gsd", type=float, nargs=2)
    args = parser.parse_args()
    card = bundle(
        args.weights,
        args.images,
        args.annotations,
        card_id=args.id,
        data=args.data,
        recipe=args.recipe,
        licence=args.licence,
        limits=args.limits,
        score_threshold=args.score_threshold,
        gsd_range=tuple(args.gsd) if args.gsd else None,
    )
    logger.info("%s", json.dumps(card.to_dict(), indent=1))


if __name__ == "__main__":
    main()
