"""DIOR-RSVG: boxes and expressions on 17 402 images of DIOR, 800 x 800 pixels, 20 classes.

Source: Zhan et al., RSVG: Exploring Data and Models for Visual Grounding on Remote Sensing Data (IEEE TGRS 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from xml.etree import ElementTree as ET

from rsgeoseg.datasets.labelled import ImageFile, list_missing, size_of
from rsgeoseg.datasets.referring import Expression, ReferringDataset, read_lines
from rsgeoseg.datasets.source import check_split
from rsgeoseg.errors import UsageError

if TYPE_CHECKING:
    from rsgeoseg.datasets.instances import Transforms

CLASSES = (
    "airplane", "airport", "baseballfield", "basketballcourt", "bridge", "chimney", "dam", "Expressway-Service-area",
    "Expressway-toll-station", "golffield", "groundtrackfield", "harbor", "overpass", "ship", "stadium", "storagetank",
    "tenniscourt", "trainstation", "vehicle", "windmill",
)  # fmt: skip
"""Classes of DIOR, spelled as in the annotations."""

_LAYOUT = """  ROOT/
    Annotations/00001.xml ...
    JPEGImages/00001.jpg ...
    train.txt, val.txt, test.txt   one number per line: counts all objects of all annotations"""


@dataclass(frozen=True, slots=True)
class _Object:
    source: str
    """Annotation's name without suffix."""
    position: int
    """In the annotation, from 0."""
    image: str
    label: int
    box: tuple[float, float, float, float]
    text: str


class DiorRsvg(ReferringDataset):
    """DIOR-RSVG in the layout of its authors, in the order of the annotations; it has boxes and no masks.

    The published splits are numbers that count the objects of all annotations **in the order in which the authors'
    disk listed the files**, which nobody else can know: the same numbers are different samples on other machines, and
    released weights were seen to have trained on what others call the test set. Here the files are sorted by name, so
    that every machine has the same samples; scores on them cannot be compared with published ones, and the training
    and test samples of one image may lie in different splits. To fix the samples for good, keep ``samples`` of a split
    as a file and give it back as ``listing``; its order is kept.

    Args:
        root: dataset folder.
        split: ``train``, ``val`` or ``test``; None where a listing is given.
        listing: text file of your own samples instead, a line each: annotation's name without suffix, and which of
            its objects, from 0 (``00012 3``).
        transforms: applied to every sample.

    Raises:
        UsageError: files are missing or are something else, a number or line points to no object, an object has no
            box or words, or both or neither of split and listing are given.
    """

    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test")

    def __init__(
        self,
        root: Path | str,
        split: str | None = None,
        *,
        listing: Path | str | None = None,
        transforms: Transforms | None = None,
    ) -> None:
        super().__init__(CLASSES, transforms)
        if (split is None) == (listing is None):
            msg = "give either a split or a listing of your own samples"
            raise UsageError(msg)
        if split is not None:
            check_split("DIOR-RSVG", split, self.splits)
        self.root = Path(root)
        list_missing(self.root, ["Annotations", "JPEGImages"], _LAYOUT)
        if listing is not None:
            self._objects = _listed(self.root, Path(listing))
        else:
            list_missing(self.root, [f"{split}.txt"], _LAYOUT)
            self._objects = _numbered(self.root, f"{split}.txt")
        names = sorted({found.image for found in self._objects})
        list_missing(self.root, names, _LAYOUT)
        self._ids = {name: number for number, name in enumerate(names, start=1)}

    @property
    def samples(self) -> tuple[str, ...]:
        """The samples by name, as lines of a ``listing``."""
        return tuple(f"{found.source} {found.position}" for found in self._objects)

    def __len__(self) -> int:
        """Count expressions."""
        return len(self._objects)

    def expression(self, index: int) -> Expression:
        """Give expression ``index``; reads the size of its image.

        Raises:
            UsageError: the image cannot be read, or the box reaches outside it.
        """
        found = self._objects[index]
        height, width = size_of(self.root / found.image)
        x0, y0, x1, y1 = found.box
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            msg = f"{found.image}: box {found.box} is empty or reaches outside the image of {width} x {height} pixels"
            raise UsageError(msg)
        return Expression(
            name=found.image,
            image_id=self._ids[found.image],
            text=found.text,
            width=width,
            height=height,
            box=found.box,
            label=found.label,
            reader=ImageFile(self.root / found.image),
        )


def _numbered(root: Path, listing: str) -> tuple[_Object, ...]:
    """Find objects by their number in all annotations, sorted by name."""
    everything = [found for path in sorted((root / "Annotations").glob("*.xml")) for found in read_annotation(path)]
    chosen = set()
    for number, line in read_lines(root / listing):
        if not line.isdecimal() or int(line) >= len(everything):
            what = f"line {number} is '{line}', but the annotations have objects 0 to {len(everything) - 1}"
            msg = f"{root / listing}: {what}; are all annotations there?"
            raise UsageError(msg)
        chosen.add(int(line))
    return tuple(everything[index] for index in sorted(chosen))


def _listed(root: Path, listing: Path) -> tuple[_Object, ...]:
    """Find objects by their annotation's name and their place in it."""
    known: dict[str, tuple[_Object, ...]] = {}
    chosen = []
    for number, line in read_lines(listing):
        source, _, position = line.partition(" ")
        path = root / "Annotations" / f"{source}.xml"
        if Path(source).name == source and source not in known and path.is_file():
            known[source] = read_annotation(path)
        if not position.isdecimal() or int(position) >= len(known.get(source, ())):
            msg = f"{listing}: line {number} points to no object: '{line}'; write '00012 3', counted from 0"
            raise UsageError(msg)
        chosen.append(known[source][int(position)])
    if len(set(chosen)) != len(chosen):
        msg = f"{listing}: lists {len(chosen) - len(set(chosen))} objects twice; every sample counts once"
        raise UsageError(msg)
    return tuple(chosen)


def read_annotation(path: Path) -> tuple[_Object, ...]:
    """Read the objects of one annotation (Pascal VOC's XML with a ``description`` for each object).

    Raises:
        UsageError: it is not UTF-8 XML, declares a document type, or an object lacks its class, box or words.
    """
    try:
        content = path.read_bytes().decode("utf-8-sig")
        # entities, with which a small file expands to a huge one, are declared in a document type, and only there
        if "<!DOCTYPE" in content:
            msg = f"{path}: declares a document type, which no annotation needs; nothing of it was read"
            raise UsageError(msg)
        tree = ET.fromstring(content)  # noqa: S314  (no document type, so nothing expands)
    except (OSError, UnicodeDecodeError, ET.ParseError) as error:
        msg = f"{path}: cannot be read as UTF-8 XML ({error})"
        raise UsageError(msg) from error
    image = (tree.findtext("filename") or "").strip()
    if not image or Path(image).name != image:
        msg = f"{path}: names no image of JPEGImages ('{image}')"
        raise UsageError(msg)
    return tuple(_object(path, image, number, node) for number, node in enumerate(tree.findall("object")))


def _object(path: Path, image: str, number: int, node: ET.Element) -> _Object:
    name, text = ((node.findtext(tag) or "").strip() for tag in ("name", "description"))
    try:
        x0, y0, x1, y1 = (float(node.findtext(f"bndbox/{tag}") or "") for tag in ("xmin", "ymin", "xmax", "ymax"))
        label = CLASSES.index(name)
    except ValueError as error:
        msg = f"{path}: object {number} has no box of four numbers or an unknown class ('{name}')"
        raise UsageError(msg) from error
    if not text:
        msg = f"{path}: object {number} has no description; mend the annotation"
        raise UsageError(msg)
    return _Object(path.stem, number, f"JPEGImages/{image}", label, (x0, y0, x1, y1), text)
