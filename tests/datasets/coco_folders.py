"""COCO folders of published datasets, made small."""

import json

import cv2
import numpy as np


def write_images(folder, names, size=(60, 80)):
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        cv2.imwrite(str(folder / name), np.full((*size, 3), 40 + number, np.uint8))


def document(names, classes, size=(60, 80)):
    """Two rectangles in every image but the last, of classes in turn."""
    annotations = []
    for image in range(len(names) - 1):
        for place in range(2):
            x, y = 5 + 30 * place, 10 + image
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image + 1,
                    "category_id": 1 + (image + place) % len(classes),
                    "segmentation": [[x, y, x + 20, y, x + 20, y + 10, x, y + 10]],
                    "area": 200,
                    "bbox": [x, y, 20, 10],
                    "iscrowd": 0,
                }
            )
    return {
        "images": [
            {"id": i + 1, "file_name": name, "height": size[0], "width": size[1]} for i, name in enumerate(names)
        ],
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(classes)],
    }


def write_coco(path, names, classes):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document(names, classes)))
