"""DIOR-RSVG: the same samples on every machine, boxes and words, and annotations that are refused."""

import os
import pickle

import cv2
import numpy as np
import pytest

from rsgeoseg.datasets.dior_rsvg import DiorRsvg, read_annotation
from rsgeoseg.errors import UsageError

SHIP = ("ship", (1, 2, 5, 6), "A ship on the left")
DAM = ("dam", (0, 0, 20, 16), "The dam")
TOLL = ("Expressway-toll-station", (3, 3, 4, 4), "A toll station")


def node(name, box, text):
    corners = "".join(
        f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return (
        f"<object><name>{name}</name><pose>Unspecified</pose><bndbox>{corners}</bndbox>"
        f"<description>{text}</description></object>"
    )


def annotation(root, stem, *objects, head=""):
    (root / "Annotations").mkdir(parents=True, exist_ok=True)
    inner = "".join(node(*one) for one in objects)
    path = root / "Annotations" / f"{stem}.xml"
    path.write_text(f"{head}<annotation><filename>{stem}.jpg</filename>{inner}</annotation>", encoding="utf-8")
    return path


def write(root, order=("00003", "00001", "00002")):
    """Three annotations, written in any order: one, no and three objects."""
    objects = {"00001": [SHIP], "00002": [], "00003": [DAM, SHIP, TOLL]}
    (root / "JPEGImages").mkdir(parents=True, exist_ok=True)
    for stem in order:
        annotation(root, stem, *objects[stem])
        pixels = np.full((16, 20, 3), 10 * int(stem), np.uint8)
        (root / "JPEGImages" / f"{stem}.jpg").write_bytes(cv2.imencode(".jpg", pixels)[1].tobytes())
    (root / "train.txt").write_text("3\n0\n")
    (root / "val.txt").write_text("1\n")
    (root / "test.txt").write_text("2\n2\n")
    return root


def test_numbers_count_objects_of_annotations_sorted_by_name(tmp_path):
    train = DiorRsvg(write(tmp_path), "train")
    assert train.samples == ("00001 0", "00003 2")
    assert DiorRsvg(tmp_path, "val").samples == ("00003 0",)
    assert DiorRsvg(tmp_path, "test").samples == ("00003 1",)  # listed twice, counted once
    sample = train[1]
    assert sorted(sample) == ["bbox_xyxy", "image", "label", "text"]
    assert sample["text"] == "A toll station"
    assert sample["bbox_xyxy"].tolist() == [3, 3, 4, 4]
    assert train.classes[sample["label"]] == "Expressway-toll-station"
    assert sample["image"].shape == (3, 16, 20)
    assert sample["image"].mean() == pytest.approx(30, abs=2)
    first = train.expression(0)
    assert (first.name, first.image_id, first.shape) == ("JPEGImages/00001.jpg", 1, None)


def test_the_order_in_which_the_disk_lists_files_does_not_matter(tmp_path, monkeypatch):
    expected = DiorRsvg(write(tmp_path), "train").samples
    listed = os.scandir

    class Backwards(list):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def close(self):
            pass

    def backwards(path="."):
        with listed(path) as entries:
            return Backwards(sorted(entries, key=lambda entry: entry.name, reverse=True))

    monkeypatch.setattr(os, "scandir", backwards)
    assert DiorRsvg(tmp_path, "train").samples == expected


def test_samples_can_be_kept_as_a_listing_and_given_back(tmp_path):
    train = DiorRsvg(write(tmp_path), "train")
    listing = tmp_path / "mine.txt"
    listing.write_text("\n".join(reversed(train.samples)) + "\n")
    again = DiorRsvg(tmp_path, listing=listing)
    assert again.samples == train.samples[::-1]
    assert again[0]["text"] == "A toll station"
    assert pickle.loads(pickle.dumps(again))[1]["text"] == "A ship on the left"


@pytest.mark.parametrize("line", ["00003 3", "00003", "00002 0", "00009 0", "../x 0", "00003 -1", "00003 0 1"])
def test_lines_of_a_listing_that_point_to_nothing_are_refused(tmp_path, line):
    write(tmp_path)
    (tmp_path / "mine.txt").write_text(f"00001 0\n{line}\n")
    with pytest.raises(UsageError, match=r"mine\.txt: line 2 points to no object"):
        DiorRsvg(tmp_path, listing=tmp_path / "mine.txt")


def test_a_listing_that_repeats_itself_is_refused(tmp_path):
    write(tmp_path)
    (tmp_path / "mine.txt").write_text("00001 0\n00003 1\n00001 0\n")
    with pytest.raises(UsageError, match="lists 1 objects twice"):
        DiorRsvg(tmp_path, listing=tmp_path / "mine.txt")


@pytest.mark.parametrize("line", ["4", "-1", "00001.jpg", "1.0"])
def test_numbers_without_an_object_are_refused(tmp_path, line):
    write(tmp_path)
    (tmp_path / "val.txt").write_text(f"1\n{line}\n")
    with pytest.raises(UsageError, match=rf"val\.txt: line 2 is '{line}', but the annotations have objects 0 to 3"):
        DiorRsvg(tmp_path, "val")


@pytest.mark.parametrize("options", [{}, {"split": "val", "listing": "mine.txt"}])
def test_either_a_split_or_a_listing(tmp_path, options):
    with pytest.raises(UsageError, match="either a split or a listing"):
        DiorRsvg(write(tmp_path), **options)


def test_missing_files_are_named_with_the_layout(tmp_path):
    write(tmp_path)
    (tmp_path / "JPEGImages/00003.jpg").unlink()
    with pytest.raises(UsageError, match=r"(?s)1 of 2 expected.*JPEGImages/00003.jpg.*counts all objects"):
        DiorRsvg(tmp_path, "train")
    with pytest.raises(UsageError, match="Annotations, JPEGImages"):
        DiorRsvg(tmp_path / "nowhere", "train")


@pytest.mark.parametrize(
    ("one", "match"),
    [
        (("tank", (0, 0, 1, 1), "A tank"), r"object 1 has .* an unknown class \('tank'\)"),
        (("ship", (0, 0, "", 1), "A ship"), "object 1 has no box of four numbers"),
        (("ship", (0, 0, 1, 1), " "), "object 1 has no description"),
    ],
)
def test_objects_without_class_box_or_words_are_refused(tmp_path, one, match):
    path = annotation(tmp_path, "00001", SHIP, one)
    with pytest.raises(UsageError, match=rf"00001\.xml: {match}"):
        read_annotation(path)


@pytest.mark.parametrize("box", [(0, 0, 21, 16), (-1, 0, 3, 3), (4, 4, 4, 8), (0, 9, 3, 8), ("nan", 0, 3, 3)])
def test_boxes_outside_their_image_are_refused_when_read(tmp_path, box):
    annotation(write(tmp_path), "00001", ("ship", box, "A ship"))
    dataset = DiorRsvg(tmp_path, "train")
    with pytest.raises(UsageError, match=r"00001\.jpg: box .* image of 20 x 16 pixels"):
        dataset[0]


def laughs(levels=12):
    entities = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10 if i else "ha"}">' for i in range(levels))
    return f"<!DOCTYPE annotation [{entities}]>"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_document_types_are_refused_in_any_encoding(tmp_path, encoding):
    path = annotation(tmp_path, "00001", ("ship", (0, 0, 1, 1), "&a11;"), head=laughs())
    path.write_bytes(path.read_text().encode(encoding))
    with pytest.raises(UsageError, match=r"declares a document type|cannot be read as UTF-8 XML"):
        read_annotation(path)


@pytest.mark.parametrize("content", [b"", b"<annotation>", b"\xff\xfe<", b"not xml"])
def test_what_is_no_xml_is_refused(tmp_path, content):
    path = tmp_path / "00001.xml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="cannot be read as UTF-8 XML"):
        read_annotation(path)


def test_an_annotation_cannot_point_outside_the_images(tmp_path):
    path = annotation(tmp_path, "00001", SHIP)
    path.write_text(path.read_text().replace("00001.jpg", "../../00001.jpg"))
    with pytest.raises(UsageError, match="names no image of JPEGImages"):
        read_annotation(path)


def test_plot_draws_the_box(tmp_path):
    dataset = DiorRsvg(write(tmp_path), "train")
    figure = dataset.plot(dataset[1])
    assert figure.get_suptitle() == "A toll station"
    (edge,) = figure.axes[1].patches
    assert (edge.get_xy(), edge.get_width(), edge.get_height()) == ((2.5, 2.5), 1, 1)
