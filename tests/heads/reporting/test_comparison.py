"""Paired tests of the report against those of ``heads.statistics.paired`` called by hand, and Holm's correction."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from synthetic import fitted

from heads.reporting.report import build_report
from heads.statistics.paired import delong, holm, mcnemar
from heads.training.config import HeadConfig

BASE = HeadConfig()
CONFIGS = [replace(BASE, l2=l2, seed=seed) for l2 in (0.0, 0.1, 0.2) for seed in range(2)]


@pytest.mark.parametrize("kind", ["clean", "view_mean"])
def test_each_row_is_tested_against_the_selected_one_by_the_heads_that_stand_for_them(
    kind: str, tmp_path: Path
) -> None:
    fitted(tmp_path, *CONFIGS)
    report = build_report(tmp_path)
    (chosen,) = report.selected

    def probability(row: object) -> np.ndarray:
        logits = row.test_logits.of(kind)[row.row.best]  # type: ignore[attr-defined]  # a ReportRow
        positive: np.ndarray = softmax(logits.astype(np.float64), axis=1)[:, 1]
        return positive

    label, patient = chosen.test_logits.label, np.array(chosen.test_logits.patient_id)
    p: dict[str, list[float]] = {"auc": [], "accuracy": [], "youden": []}
    p_holm: dict[str, list[float]] = {name: [] for name in p}
    for row in report.rows:
        pair = row.against_selected[kind]  # type: ignore[index]  # one of both
        if row is chosen:
            assert pair is None
            continue
        assert pair is not None
        assert pair.selected == chosen.name
        one, other = probability(row), probability(chosen)
        assert pair.auc is not None
        assert pair.auc.test == delong(one, other, label == 1, patient)
        assert pair.accuracy.test == mcnemar(one >= 0.5, other >= 0.5, label == 1, patient)
        cuts = [
            each.row.choices[kind].operating_points["youden"][each.row.best].threshold  # type: ignore[index]
            for each in (row, chosen)
        ]
        assert pair.points["youden"].test == mcnemar(one >= cuts[0], other >= cuts[1], label == 1, patient)
        for name, test in (("auc", pair.auc), ("accuracy", pair.accuracy), ("youden", pair.points["youden"])):
            assert test.test.p is not None
            assert test.p_holm is not None
            p[name].append(test.test.p)
            p_holm[name].append(test.p_holm)
    for name, values in p.items():
        assert len(values) == 2
        assert p_holm[name] == holm(values)


def test_rows_of_another_split_or_other_test_images_are_not_tested_together(tmp_path: Path) -> None:
    fitted(tmp_path, *CONFIGS[:2], run_id="one")
    fitted(tmp_path, BASE, seed=1, run_id="two", split_rule="paper")
    fitted(tmp_path, replace(BASE, l2=0.7), seed=2, n=40, run_id="three", images_sha256="b" * 64)
    assert [row.against_selected["clean"] for row in build_report(tmp_path).rows] == [None] * 3


def test_holms_correction_is_that_of_a_worked_example() -> None:
    # Five tests: 5 · 0.01, then the larger of 4 · 0.02 and before, 3 · 0.03, 2 · 0.04 and 0.05 are below 0.09.
    assert holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert holm([0.04, None, 0.01, 0.9]) == pytest.approx([0.08, None, 0.03, 0.9])
    assert holm([]) == []
    assert holm([None]) == [None]


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holms_correction_rejects_what_his_procedure_rejects_step_by_step(p: list[float]) -> None:
    rejected: set[int] = set()
    for step, place in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        if (len(p) - step) * p[place] >= 0.05:
            break
        rejected.add(place)
    assert {place for place, value in enumerate(holm(p)) if value is not None and value < 0.05} == rejected
