"""The mapping to 0-255: hand-computed values, every dtype, odd bands, round trips."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsgeoseg.errors import UsageError
from rsgeoseg.geo.stretch import Stretch, StretchRule, estimate_stretch, parse_stretch

ALL_DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
def test_values_by_hand(dtype):
    image = np.array([[[0, 10, 20, 30, 60, 100]]], dtype)
    out = Stretch("minmax", (10.0,), (60.0,)).apply(image)
    # (v - 10) / 50 * 255: 20 -> 51, 30 -> 102.
    assert out.tolist() == [[[0, 0, 51, 102, 255, 255]]]
    assert out.dtype == np.uint8


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@settings(max_examples=25)
@given(low=st.floats(-120, 100), span=st.floats(0.5, 300), seed=st.integers(0, 99))
def test_tables_agree_with_arithmetic(dtype, low, span, seed):
    kind = np.dtype(dtype)
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 120, 50) if kind.kind == "u" else rng.integers(-120, 120, 50)
    image = values.astype(kind).reshape(1, 5, 10)
    out = Stretch("minmax", (low,), (low + span,)).apply(image)
    exact = np.clip((image.astype(np.float64) - low) * 255 / span, 0, 255)
    assert np.abs(out - exact).max() <= 0.5 + 1e-3


def test_negative_int16_is_below_zero_not_above():
    image = np.array([[[-32768, -1, 0, 32767]]], np.int16)
    assert Stretch("minmax", (-1.0,), (0.0,)).apply(image).tolist() == [[[0, 0, 255, 255]]]


def test_uint8_without_a_stretch_is_handed_through():
    image = np.arange(12, dtype=np.uint8).reshape(1, 3, 4)
    assert Stretch("none").apply(image) is image


def test_none_clips_other_dtypes():
    image = np.array([[[-5, 3, 254.6, 900, math.nan]]], np.float32)
    assert Stretch("none").apply(image).tolist() == [[[0, 3, 255, 255, 0]]]


def test_invalid_pixels_become_zero_and_the_input_stays():
    image = np.full((2, 2, 2), 200, np.uint8)
    valid = np.array([[True, False], [True, True]])
    out = Stretch("none").apply(image, valid)
    assert out[:, 0, 1].tolist() == [0, 0]
    assert out.sum() == 6 * 200
    assert (image == 200).all()


def test_nan_and_infinities_do_not_wrap():
    image = np.array([[[math.nan, math.inf, -math.inf, 5.0]]], np.float64)
    assert Stretch("minmax", (0.0,), (10.0,)).apply(image).tolist() == [[[0, 255, 0, 128]]]


def test_auto_leaves_uint8_and_stretches_the_rest():
    assert estimate_stretch(parse_stretch("auto"), np.zeros((3, 4, 4), np.uint8)) == Stretch("none")
    sample = np.arange(101, dtype=np.uint16).reshape(1, 1, 101)
    assert estimate_stretch(parse_stretch("auto"), sample) == Stretch("percentile", (2.0,), (98.0,))


def test_each_band_has_its_own_percentiles():
    sample = np.stack([np.arange(101), np.arange(101) * 10]).reshape(2, 1, 101).astype(np.float32)
    assert estimate_stretch(parse_stretch("percentile:10,90"), sample) == Stretch("percentile", (10, 100), (90, 900))


def test_only_valid_finite_pixels_count():
    sample = np.array([[[0, 100, 9999, math.nan, math.inf, -math.inf]]], np.float32)
    valid = np.array([[True, True, False, True, True, True]])
    stretch = estimate_stretch(parse_stretch("percentile:0,100"), sample, valid)
    assert stretch == Stretch("percentile", (0.0,), (100.0,))


@pytest.mark.parametrize(("dtype", "value"), [("uint16", 700), ("float32", 0.25), ("float64", 1e300), ("int16", -5)])
def test_a_constant_band_becomes_zero(dtype, value):
    sample = np.full((1, 4, 4), value, dtype)
    stretch = estimate_stretch(parse_stretch("auto"), sample)
    assert not stretch.apply(sample).any()


def test_a_nearly_constant_band_uses_all_of_its_values():
    sample = np.full((1, 100, 100), 1000, np.uint16)
    sample[0, 0, 0] = 3000
    stretch = estimate_stretch(parse_stretch("auto"), sample)
    assert stretch == Stretch("percentile", (1000.0,), (3000.0,))


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_no_valid_pixel_still_gives_a_mapping(dtype, caplog):
    sample = np.zeros((3, 2, 2), dtype)
    stretch = estimate_stretch(parse_stretch("auto"), sample, np.zeros((2, 2), bool))
    assert stretch == Stretch("percentile", (0.0,) * 3, (1.0,) * 3)
    assert "no valid pixel" in caplog.text


def test_minmax_is_the_same_for_all_bands():
    stretch = estimate_stretch(parse_stretch("minmax:0,3000"), np.zeros((2, 1, 1), np.uint16))
    assert stretch == Stretch("minmax", (0.0, 0.0), (3000.0, 3000.0))


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("auto", StretchRule("auto")),
        ("none", StretchRule("none")),
        ("percentile", StretchRule("percentile", 2, 98)),
        (" Percentile:0.5,99.5 ", StretchRule("percentile", 0.5, 99.5)),
        ("minmax:-10,3e3", StretchRule("minmax", -10, 3000)),
    ],
)
def test_parse(text, rule):
    assert parse_stretch(text) == rule


@pytest.mark.parametrize(
    "text",
    ["", "linear", "auto:1", "minmax", "minmax:5", "minmax:5,5", "minmax:0,nan", "percentile:98,2", "percentile:-1,98",
     "percentile:2,101", "minmax:1,2,3", "percentile:a,b"],
)  # fmt: skip
def test_parse_refuses(text):
    with pytest.raises(UsageError, match="percentile:2,98"):
        parse_stretch(text)


def test_json_round_trip_and_order():
    stretch = Stretch("percentile", (1.5, 2.5), (10.0, 20.0))
    assert Stretch.from_dict(json.loads(json.dumps(stretch.to_dict()))) == stretch
    assert stretch.take((1, 0, 1)) == Stretch("percentile", (2.5, 1.5, 2.5), (20.0, 10.0, 20.0))
    assert Stretch("none").take((0, 0, 0)) == Stretch("none")


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [("minmax", (1.0,), (1.0,)), ("minmax", (1.0,), ()), ("none", (1.0,), (2.0,)), ("minmax", (math.nan,), (1.0,))],
)
def test_impossible_stretches_are_refused(kind, low, high):
    with pytest.raises(ValueError, match="stretch"):
        Stretch(kind, low, high)


def test_wrong_number_of_bands_is_refused():
    with pytest.raises(ValueError, match="2 bands, the image 3"):
        Stretch("minmax", (0.0, 0.0), (1.0, 1.0)).apply(np.zeros((3, 1, 1)))
