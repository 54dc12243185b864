from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.errors import StoreError
from featcache.spec import FORMAT_VERSION, FeatureSpec

SPEC = FeatureSpec(
    backbone="resnet50",
    weights_sha256="ab" * 32,
    image_size=224,
    resize_side=235,
    interpolation="bicubic",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    decoder="pillow-13",
    decode_floor=512,
)

CHANGED: dict[str, Any] = {
    "backbone": "resnet50@pad=same",
    "weights_sha256": "ab" * 31 + "ac",
    "image_size": 225,
    "resize_side": 236,
    "interpolation": "bilinear",
    "mean": (0.485, 0.456, 0.4060000000000001),
    "std": (0.229, 0.225, 0.224),
    "recipe": "strong",
    "recipe_seed": 1,
    "pooling": "max",
    "runtime": "openvino",
    "precision": "bfloat16",
    "dtype": "float32",
    "decoder": "pillow-14",
    "decode_floor": 600,
    "format_version": 2,
}

FIELDS = [field.name for field in dataclasses.fields(FeatureSpec)]


def refused(change: dict[str, Any] | str) -> str:
    text = change if isinstance(change, str) else json.dumps({**json.loads(SPEC.to_json()), **change})
    with pytest.raises(StoreError) as caught:
        FeatureSpec.from_json(text, "part-1.h5")
    return str(caught.value)


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_changes_the_fingerprint_and_is_named_as_the_difference(field: str) -> None:
    other = dataclasses.replace(SPEC, **{field: CHANGED[field]})
    assert other.fingerprint != SPEC.fingerprint
    assert SPEC.differences(other) == f"{field} {getattr(SPEC, field)} against {CHANGED[field]}"


def test_equal_specs_have_one_fingerprint_and_no_differences() -> None:
    again = dataclasses.replace(SPEC)
    assert again.fingerprint == SPEC.fingerprint
    assert SPEC.differences(again) == ""


def test_the_fingerprint_is_the_sha256_of_the_canonical_json() -> None:
    text = SPEC.to_json()
    assert SPEC.fingerprint == hashlib.sha256(text.encode()).hexdigest()
    assert list(json.loads(text)) == sorted(FIELDS)
    assert " " not in text


def test_the_fingerprint_of_a_spec_is_what_it_was_when_format_1_was_laid_down() -> None:
    assert SPEC.fingerprint == "f4f86bf9ab1f8f552c7c8f8be0d2879fea3ca12daffe5974b86604ad5abfffb7"


FLOATS = st.floats(allow_nan=False, allow_infinity=False)
TRIPLES = st.tuples(FLOATS, FLOATS, FLOATS)


@given(name=st.text(st.characters(codec="utf-8")), mean=TRIPLES, std=TRIPLES, seed=st.integers(0, 2**64))
def test_a_spec_comes_back_from_its_json(
    name: str, mean: tuple[float, float, float], std: tuple[float, float, float], seed: int
) -> None:
    spec = dataclasses.replace(SPEC, backbone=name, mean=mean, std=std, recipe_seed=seed)
    read = FeatureSpec.from_json(spec.to_json())
    assert read == spec
    assert read.fingerprint == spec.fingerprint
    assert spec.to_json().isascii()


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "spec", '{"a": 1'])
def test_text_that_is_no_json_is_refused(text: str) -> None:
    assert refused(text) == "part-1.h5: the spec is not JSON"


@pytest.mark.parametrize("text", ["[]", "1", "null", '"resnet50"'])
def test_json_that_is_no_object_is_refused(text: str) -> None:
    assert refused(text) == "part-1.h5: the spec is not a JSON object"


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_format_version_is_refused_with_the_way_out(version: Any) -> None:
    way_out = "install the cxr that wrote it, or extract again"
    assert refused({"format_version": version}) == (
        f"part-1.h5: store format {version!r}, this cxr reads {FORMAT_VERSION}; {way_out}"
    )


def test_an_unknown_and_a_missing_field_are_named() -> None:
    assert refused({"colour": 1}) == "part-1.h5: the spec's fields are not those of format 1: colour"
    lacking = {name: value for name, value in json.loads(SPEC.to_json()).items() if name != "pooling"}
    assert refused(json.dumps(lacking)) == "part-1.h5: the spec's fields are not those of format 1: pooling"


WRONG = [
    *((name, 7, "str") for name in ("backbone", "weights_sha256", "interpolation", "recipe", "pooling", "dtype")),
    ("decoder", None, "str"),
    *((name, "7", "int") for name in ("image_size", "resize_side", "recipe_seed", "decode_floor")),
    ("image_size", 224.0, "int"),
    ("image_size", True, "int"),
    ("format_version", True, "int"),
    ("runtime", "tensorrt", "Runtime"),
    ("precision", "float64", "Precision"),
    ("precision", ["float32"], "Precision"),
    ("mean", [0.5, 0.5], "tuple[float, float, float]"),
    ("mean", [0.5, 0.5, 1], "tuple[float, float, float]"),
    ("std", 0.5, "tuple[float, float, float]"),
    ("std", ["a", "b", "c"], "tuple[float, float, float]"),
]


@pytest.mark.parametrize(("field", "value", "kind"), WRONG)
def test_a_value_of_the_wrong_type_is_refused_by_name(field: str, value: Any, kind: str) -> None:
    assert refused({field: value}) == f"part-1.h5: {field} in the spec is {value!r}, wanted {kind}"


def test_every_field_has_a_value_that_is_refused() -> None:
    assert {field for field, _, _ in WRONG} == set(FIELDS)
