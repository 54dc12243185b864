"""Head configurations and their grids."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heads.training.config import HeadConfig, grid

CONFIGS = st.builds(
    HeadConfig,
    hidden=st.integers(0, 4096),
    l2=st.floats(0, 1e3),
    lr=st.floats(1e-12, 1e3),
    epochs=st.integers(1, 10_000),
    patience=st.integers(1, 10_000),
    batch_size=st.integers(2, 10_000),
    class_weights=st.sampled_from(["balanced", "none"]),
    view_policy=st.sampled_from(["random", "clean"]),
    standardise=st.booleans(),
    precision=st.sampled_from(["float32", "bfloat16"]),
    seed=st.integers(0, 2**63 - 1),
)


@given(CONFIGS)
def test_config_comes_back_from_json_as_it_went(config: HeadConfig) -> None:
    assert HeadConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_whole_number_in_json_is_a_float_where_the_field_is_one() -> None:
    config = HeadConfig.from_json({**HeadConfig().to_json(), "l2": 0, "lr": 1})
    assert type(config.l2) is float
    assert type(config.lr) is float


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden", -1),
        ("l2", -1e-9),
        ("l2", float("inf")),
        ("l2", float("nan")),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("epochs", 0),
        ("patience", 0),
        ("batch_size", 1),
        ("class_weights", "equal"),
        ("view_policy", "all"),
        ("precision", "float16"),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_value_out_of_range_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"wanted .*{field}.*, got .*{value}"):
        HeadConfig.from_json({**HeadConfig().to_json(), field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden", "256"),
        ("hidden", 1.0),
        ("l2", True),
        ("lr", None),
        ("class_weights", 1),
        ("seed", False),
        ("standardise", 1),
    ],
)
def test_value_of_the_wrong_type_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"for {field}, got {value!r}"):
        HeadConfig.from_json({**HeadConfig().to_json(), field: value})


def test_unknown_and_missing_keys_are_refused_by_name() -> None:
    values = HeadConfig().to_json()
    with pytest.raises(ValueError, match="unknown key dropout"):
        HeadConfig.from_json({**values, "dropout": 0.5})
    del values["lr"]
    with pytest.raises(ValueError, match="missing key lr"):
        HeadConfig.from_json(values)


def test_grid_is_the_product_with_seeds_innermost_and_each_config_once() -> None:
    configs = grid(hidden=[0, 4], l2=[0.0, 1e-4, 0.0], lr=[1e-3], seeds=[1, 0], epochs=7)
    assert [(c.hidden, c.l2, c.seed) for c in configs] == [
        (hidden, l2, seed) for hidden in (0, 4) for l2 in (0.0, 1e-4) for seed in (1, 0)
    ]
    assert {c.epochs for c in configs} == {7}


def test_grid_with_an_empty_axis_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one value of lr"):
        grid(hidden=[0], l2=[0.0], lr=[], seeds=[0])
