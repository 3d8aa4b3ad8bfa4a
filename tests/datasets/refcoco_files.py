"""A small dataset in RefCOCO's format: three images of 12 x 10 pixels, four expressions."""

import json
import pickle

import cv2
import numpy as np
from pycocotools import mask as rle

HEIGHT, WIDTH = 10, 12


def block(x0, y0, x1, y1, height=HEIGHT, width=WIDTH):
    """A mask with one rectangle."""
    mask = np.zeros((height, width), np.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


def packed(mask):
    """COCO's compressed encoding, ready for JSON."""
    encoded = rle.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def picture(path, grey, height=HEIGHT, width=WIDTH):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((height, width, 3), grey, np.uint8)
    path.write_bytes(cv2.imencode(path.suffix, pixels)[1].tobytes())


def annotation(number, image, mask):
    # corners instead of x y w h, and the category under a name of its own: as RRSIS-D has it
    return {"id": number, "image_id": image, "segmentation": [packed(mask)], "bbox": [0, 0, 1, 1], "categories_id": 2}


def reference(number, image, split, *texts, category=2):
    return {
        "ref_id": number, "ann_id": number, "image_id": image, "category_id": category, "split": split,
        "file_name": f"{image:05}.jpg", "sent_ids": list(range(len(texts))),
        "sentences": [{"raw": text, "sent": text.lower(), "tokens": text.split(), "sent_id": 0} for text in texts],
    }  # fmt: skip


def document():
    names = {1: "ship", 2: "dam"}
    return {
        "images": [{"id": i, "file_name": f"{i:05}.jpg", "height": HEIGHT, "width": WIDTH} for i in (1, 2, 3)],
        "categories": [{"id": number, "name": name} for number, name in sorted(names.items(), reverse=True)],
        "annotations": [
            annotation(11, 1, block(2, 3, 6, 8)),
            annotation(12, 2, block(0, 0, 12, 5)),
            annotation(13, 3, block(7, 1, 9, 2)),
        ],
    }


def references():
    return [
        reference(12, 2, "train", "  A dam at the Top ", "the upper half"),
        reference(11, 1, "train", "the ship", category=1),
        reference(13, 3, "test", "a small dam"),
    ]


def write(root, folder="rrsisd", *, instances=None, refs=None, protocol=2):
    """Write the dataset; ``refs`` may be bytes."""
    for image in (1, 2, 3):
        picture(root / "images" / folder / "JPEGImages" / f"{image:05}.jpg", 40 * image)
    (root / folder).mkdir(exist_ok=True)
    (root / folder / "instances.json").write_text(json.dumps(instances or document()))
    content = refs if isinstance(refs, bytes) else pickle.dumps(refs or references(), protocol=protocol)
    (root / folder / "refs(unc).p").write_bytes(content)
    return root
