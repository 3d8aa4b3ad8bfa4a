"""The whole job with a model that costs nothing, in ours and in peers: scene pixels per second.

    python benchmarks/peers/engine.py [--quick] [--size 8192] [--timeout 1800]

The model reads each object's id off the pixels. The scene is a tiled ZSTD GeoTIFF with 20 objects per Mpx, cut into
chips of 1024 pixels with 128 pixels of overlap. Each tool runs in a process of its own, from the file on disk to its
own end: georeferenced polygons in a GeoPackage (ours, samgeo), or objects in pixels in memory (supervision). SAHI ends
in pixels, too; the few lines that carry its outlines into a GeoPackage are in this script. Each tool has done a small
scene before the clock starts, so imports are not counted. Tools that are not installed are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import geopandas
import numpy as np
import pyogrio
import rasterio.shutil
import shapely
from isolated import Measured, measure

from rsgeoseg.contract import Chip
from rsgeoseg.testing.oracle import OracleSegmenter, oracle_spec
from rsgeoseg.testing.scenes import TEN_CLASSES, generate_scene

if TYPE_CHECKING:
    from collections.abc import Callable

    from isolated import Work
    from numpy.typing import NDArray

    from rsgeoseg.contract import Instances

    Job = Callable[[Path, Path], int]

CHIP, OVERLAP = 1024, 128


def oracle() -> OracleSegmenter:
    return OracleSegmenter(spec=oracle_spec(TEN_CLASSES, chip_size=CHIP, overlap=OVERLAP))


def answer(pixels: NDArray[np.uint8]) -> Instances:
    """Instances of a tile (h, w, 3)."""
    image = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return oracle().segment([Chip(image=image, valid=np.ones(image.shape[1:], np.bool_))])[0]


def dense(instances: Instances, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Masks of the whole tile (N, h, w), as these packages want them."""
    masks = np.zeros((len(instances), *shape[:2]), np.bool_)
    for canvas, (x0, y0, x1, y1), mask in zip(masks, instances.boxes.tolist(), instances.masks, strict=True):
        canvas[y0:y1, x0:x1] = mask
    return masks


def rsgeoseg_job() -> Job:
    import rsgeoseg

    def work(scene: Path, out: Path) -> int:
        rsgeoseg.run(scene, oracle(), output=out, overwrite=True)
        return int(pyogrio.read_info(out)["features"])

    return work


def sahi_job(*, lean: bool) -> Job:
    """SAHI reads the scene whole, and its result stays in pixels: our lines take it to a GeoPackage.

    Args:
        lean: outline the crop of each mask, by code of this script; else tile-sized masks, as SAHI's adapters do.
    """
    from sahi.models.base import DetectionModel
    from sahi.predict import get_sliced_prediction
    from sahi.prediction import ObjectPrediction
    from sahi.utils.cv import get_coco_segmentation_from_bool_mask

    class Null(DetectionModel):
        def load_model(self) -> None:
            self.model = self

        def perform_inference(self, image: NDArray[np.uint8]) -> None:
            found = answer(image)
            if lean:
                outlines = [contours(mask, *box[:2]) for box, mask in zip(found.boxes, found.masks, strict=True)]
            else:
                outlines = [get_coco_segmentation_from_bool_mask(mask) for mask in dense(found, image.shape)]
            self._original_predictions = found, outlines

        def _create_object_prediction_list_from_original_predictions(
            self, shift_amount_list: list, full_shape_list: list | None = None
        ) -> None:
            found, outlines = self._original_predictions
            columns = zip(found.labels.tolist(), found.scores.tolist(), outlines, strict=True)
            self._object_prediction_list_per_image = [[
                ObjectPrediction(
                    category_id=label, category_name=TEN_CLASSES[label], score=score, segmentation=rings,
                    shift_amount=shift_amount_list[0], full_shape=full_shape_list[0],
                )
                for label, score, rings in columns if rings
            ]]  # fmt: skip

    model = Null(device="cpu")

    def work(scene: Path, out: Path) -> int:
        with rasterio.open(scene) as source:
            affine, crs = source.transform, source.crs
            pixels = np.ascontiguousarray(source.read().transpose(1, 2, 0))
        found = get_sliced_prediction(
            pixels, model, slice_height=CHIP, slice_width=CHIP, overlap_height_ratio=OVERLAP / CHIP,
            overlap_width_ratio=OVERLAP / CHIP, perform_standard_pred=False, verbose=0,
        )  # fmt: skip
        items = found.object_prediction_list
        shapes = [
            shapely.MultiPolygon([shapely.Polygon(np.reshape(ring, (-1, 2))) for ring in item.mask.segmentation])
            for item in items
        ]
        columns = {"class_name": [item.category.name for item in items], "score": [item.score.value for item in items]}
        world = shapely.transform(shapes, lambda xy: np.stack(affine * xy.T, axis=1))
        pyogrio.write_dataframe(geopandas.GeoDataFrame(columns, geometry=world, crs=crs), out)
        return len(items)

    return work


def contours(mask: NDArray[np.bool_], x0: int, y0: int) -> list[list[float]]:
    """Outer contours of a crop as SAHI's own conversion draws them of the tile."""
    lines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [(line.reshape(-1, 2) + np.array([x0, y0])).ravel().tolist() for line in lines if len(line) > 2]


def supervision_job(kind: str = "non_max_suppression") -> Job:
    """Supervision reads window by window; its result stays in pixels."""
    import supervision

    def null(tile: NDArray[np.uint8]) -> supervision.Detections:
        found = answer(tile)
        if not len(found):
            return supervision.Detections.empty()
        return supervision.Detections(
            xyxy=found.boxes.astype(np.float64) - np.array([0, 0, 1, 1]), mask=dense(found, tile.shape),
            confidence=found.scores.astype(np.float64), class_id=found.labels.astype(int),
        )  # fmt: skip

    slicer = supervision.InferenceSlicer(
        null, slice_wh=CHIP, overlap_wh=OVERLAP, compact_masks=True, thread_workers=2, overlap_filter=kind
    )

    def work(scene: Path, _out: Path) -> int:
        with rasterio.open(scene) as source:
            return len(slicer(source))

    return work


def samgeo_job() -> Job:
    """Run samgeo's tiled path with a mask generator that knows the answer: one mask of all objects, then polygons.

    Its tiles are pasted: objects keep no ids, a 3 x 3 erosion keeps neighbours apart and takes a pixel all around.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        from samgeo.samgeo import SamGeo

    class Generator:
        def generate(self, image: NDArray[np.uint8]) -> list[dict[str, object]]:
            return [{"segmentation": mask, "area": int(mask.sum())} for mask in dense(answer(image), image.shape)]

    class Null(SamGeo):
        def __init__(self) -> None:
            self.mask_generator = Generator()

    model, side = Null(), CHIP - OVERLAP

    def work(scene: Path, out: Path) -> int:
        masks = out.with_suffix(".tif")
        with contextlib.redirect_stderr(io.StringIO()):
            model.generate(str(scene), str(masks), batch=True, batch_sample_size=(side, side), bound=OVERLAP // 2,
                           foreground=True)  # fmt: skip
            model.tiff_to_gpkg(str(masks), str(out))
        return int(pyogrio.read_info(out)["features"])

    return work


JOBS: dict[str, tuple[Callable[[], Job], str, str]] = {
    "rsgeoseg": (rsgeoseg_job, "rsgeoseg", "polygons in a GeoPackage"),
    "SAHI get_sliced_prediction": (partial(sahi_job, lean=False), "sahi", "outlines in a GeoPackage by our lines"),
    "SAHI, outlines of crops by our lines": (partial(sahi_job, lean=True), "sahi", "the same"),
    "samgeo generate(batch=True)": (samgeo_job, "samgeo", "polygons in a GeoPackage, without ids and classes"),
    "supervision InferenceSlicer": (supervision_job, "supervision", "masks in pixels, in memory"),
    "supervision, no filter": (partial(supervision_job, kind="none"), "supervision", "the same, nothing joined"),
}
"""By the name in the table: the job, its package, where it ends."""


def prepare(name: str, scene: Path, small: Path, out: Path) -> Work:
    """Make a tool ready: it has done a small scene."""
    work = JOBS[name][0]()
    work(small, out)
    for old in (out, out.with_suffix(".tif")):
        old.unlink(missing_ok=True)
    return lambda: work(scene, out), int


def make_scene(scene: Path, size: int, density: float) -> int:
    """Write a scene of ids as a tiled ZSTD GeoTIFF; the number of its objects."""
    ids = scene.with_name("ids.tif")
    truth = generate_scene(ids, height=size, width=size, density=density, seed=1, oracle_ids=True)
    options = {"TILED": "YES", "BLOCKXSIZE": 512, "BLOCKYSIZE": 512, "COMPRESS": "ZSTD", "INTERLEAVE": "PIXEL"}
    rasterio.shutil.copy(ids, scene, driver="GTiff", **options)
    ids.unlink()
    return sum(1 for _ in truth.objects())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=8192, help="side of the scene, pixels")
    parser.add_argument("--density", type=float, default=20.0, help="objects per Mpx")
    parser.add_argument("--repeat", type=int, default=3, help="the best run counts")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds after which a tool is ended")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="what Mpx/s counts")
    parser.add_argument("--quick", action="store_true", help="a small scene, once")
    args = parser.parse_args()
    if args.quick:
        args.size, args.repeat, args.timeout = 1536, 1, 20
    rates: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        folder = Path(scratch)
        expected = make_scene(folder / "scene.tif", args.size, args.density)
        make_scene(folder / "small.tif", 1200, args.density)
        print(f"scene: {args.size} x {args.size}, {expected} objects, made in {time.perf_counter() - start:.1f} s")
        print("\n| tool | Mpx/s | seconds | CPU s | peak MB | objects | its end |\n|---|---|---|---|---|---|---|")
        for name, (_, package, end) in JOBS.items():
            if find_spec(package) is None:
                continue
            done = best(name, folder, args)
            if done.error:
                print(f"| {name} | | {done.seconds:.0f} | | | {done.error} | {end} |", flush=True)
                continue
            rates[name] = args.size**2 / 1e6 / done.on(args.clock)
            print(f"| {name} | {rates[name]:.1f} | {done.seconds:.2f} | {done.cpu_seconds:.2f} | "
                  f"{done.megabytes:.0f} | {done.result} of {expected} | {end} |", flush=True)  # fmt: skip
    ours = rates.pop("rsgeoseg")
    beside = "".join(f"; {ours / rate:.1f} x {name}" for name, rate in rates.items())
    print(f"engine: {ours:.1f} Mpx/s (bar 60){beside} (bar 5)")


def best(name: str, folder: Path, args: argparse.Namespace) -> Measured:
    """Measure until a run fails or takes long; the fastest counts."""
    runs: list[Measured] = []
    while len(runs) < args.repeat and not (runs and (runs[-1].error or runs[-1].seconds > 60)):
        files = folder / "scene.tif", folder / "small.tif", folder / "found.gpkg"
        runs.append(measure(prepare, name, *files, timeout=args.timeout))
    whole = [run for run in runs if not run.error]
    return min(whole, key=lambda run: run.on(args.clock)) if whole else runs[-1]


if __name__ == "__main__":
    main()
