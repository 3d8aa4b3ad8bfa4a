import json

import pytest

from rsgeoseg.engine.options import PipelineOptions, class_labels, parse_numbers
from rsgeoseg.engine.order import RunJob
from rsgeoseg.errors import UsageError
from rsgeoseg.jobs import RunOptions, check_names
from rsgeoseg.testing.oracle import oracle_spec


def test_a_job_survives_json_with_every_field_set():
    job = RunJob(
        scene="a.tif", model="m", output="o.gpkg", weights="w", device="cpu", batch_size=4, chip_size=512, overlap=64,
        bands=(3, 2, 1), stretch="none", gsd=0.3, aoi="a.gpkg", bbox=(0.0, 1.0, 2.0, 3.0), classes=("ship", "bridge"),
        score_threshold=0.25, min_area="20m2", nms=0.6, simplify=1.5, regularize=True, dst_crs="EPSG:4326",
        format="gpkg", overwrite=True, on_chip_error="skip", offline=True,
    )  # fmt: skip
    again = RunJob.from_json(job.to_json())
    assert again == job
    assert again != RunJob(scene="a.tif")
    assert set(json.loads(job.to_json())) == set(RunJob.__dataclass_fields__)


def test_loose_forms_become_exact():
    job = RunJob(scene="a.tif", batch_size="8", bands="3,2,1", bbox="0,0,10,20.5", classes=" ship, storage tank ,")
    assert (job.batch_size, job.bands, job.bbox) == (8, (3, 2, 1), (0.0, 0.0, 10.0, 20.5))
    assert job.classes == ("ship", "storage tank")
    assert RunJob(scene="a.tif", batch_size="auto").batch_size is None


def test_the_keyword_options_are_the_fields_of_a_job():
    assert set(RunOptions.__annotations__) == set(RunJob.__dataclass_fields__) - {"scene", "model", "output"}


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("batch_size", 0, "batch-size 0"),
        ("batch_size", "many", "batch-size 'many'"),
        ("chip_size", -5, "chip-size -5"),
        ("overlap", -1, "overlap -1"),
        ("score_threshold", 1.5, "score-threshold 1.5"),
        ("nms", 0, "nms 0"),
        ("bands", "1,b", "bands '1,b'"),
        ("bands", "0,1,2", "numbered from 1"),
        ("bbox", "1,2,3", "X0,Y0,X1,Y1"),
        ("bbox", "5,0,1,9", "X0 < X1"),
        ("gsd", 0.0, "gsd 0.0"),
        ("simplify", -1.0, "simplify -1.0"),
        ("min_area", "20", "20m2"),
        ("on_chip_error", "shrug", "raise or skip"),
        ("scene", "", "no scene"),
    ],
)
def test_an_unusable_value_is_refused_in_words(option, value, words):
    with pytest.raises(UsageError, match=words.split()[0]) as caught:
        RunJob(**{"scene": "a.tif", option: value})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"scene": "a", "chipsize": 3}'])
def test_a_broken_json_job_is_refused(text):
    with pytest.raises(UsageError):
        RunJob.from_json(text)


def test_an_unknown_option_lists_the_known_ones():
    with pytest.raises(UsageError, match=r"chipsize.*chip_size"):
        check_names({"chipsize": 3})


def test_class_names_are_found_however_they_are_written():
    spec = oracle_spec(["storage tank", "ship"])
    assert class_labels(["Storage_Tank"], spec) == {0}
    assert class_labels(["ship", "storage-tank"], spec) == {0, 1}
    assert class_labels(None, spec) is None
    with pytest.raises(UsageError, match=r"'boat' is unknown to oracle: choose from storage tank, ship"):
        class_labels(["ship", "boat"], spec)


def test_numbers():
    assert parse_numbers("bands", [1, 2], whole=True) == (1, 2)
    with pytest.raises(UsageError):
        parse_numbers("bbox", "1,,2")


def test_pipeline_options_check_themselves():
    with pytest.raises(UsageError, match="chip-size"):
        PipelineOptions(chip_size=0, overlap=0)
    with pytest.raises(UsageError, match="readers"):
        PipelineOptions(chip_size=8, overlap=0, readers=0)
    options = PipelineOptions(chip_size=8, overlap=2, labels=frozenset({1}))
    assert options.to_dict(oracle_spec(["a", "b"]))["classes"] == ["b"]
