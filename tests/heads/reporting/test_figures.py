"""Forms of a figure in JSON."""

from __future__ import annotations

import pytest

from heads.reporting.figures import figure_json
from heads.statistics.intervals import Interval

INTERVAL = Interval(value=0.9, low=0.8, high=0.95)
ENDS = {"value": 0.9, "low": 0.8, "high": 0.95}


@pytest.mark.parametrize(
    ("values", "interval", "form"),
    [
        ([0.9], None, 0.9),
        ([1.0, 3.0], None, {"mean": 2.0, "sd": 2**0.5}),
        ([0.9], INTERVAL, ENDS),
        ([0.9, 0.7], INTERVAL, {"mean": 0.8, "sd": 0.02**0.5, **ENDS}),
        ([None, 0.9], INTERVAL, None),
        ([None], None, None),
    ],
)
def test_a_figure_has_the_form_of_what_is_known_of_it(
    values: list[float | None], interval: Interval | None, form: object
) -> None:
    found = figure_json(values, interval)
    assert found == (pytest.approx(form) if isinstance(form, dict) else form)
