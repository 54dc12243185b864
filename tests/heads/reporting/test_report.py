"""The report: what val chose, and what test says of it, figure by figure as scikit-learn and the intervals have it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score, log_loss, recall_score, roc_auc_score
from synthetic import fitted, head, metrics, run, saved, split_logits

from heads.experiments.runs import HeadRecord
from heads.reporting.report import Report, build_report
from heads.statistics.auc import auc_interval
from heads.statistics.calibration import expected_calibration_error
from heads.statistics.intervals import bootstrap
from heads.training.config import HeadConfig

BASE = HeadConfig()
THREE = [replace(BASE, seed=seed) for seed in range(3)]
KINDS = {"": "clean", "_view_mean": "view_mean"}


def report_of(dataset: Path, *heads: HeadRecord, **changes: Any) -> Report:
    """The report of one run of these heads."""
    saved(dataset, run(*heads, **changes))
    return build_report(dataset)


def json_of(report: Report) -> dict[str, Any]:
    """The JSON form, through its text."""
    held: dict[str, Any] = json.loads(json.dumps(report.to_json(), allow_nan=False))
    return held


def figures_by_scikit_learn(logits: np.ndarray, label: np.ndarray, threshold: float = 0.5) -> dict[str, float]:
    p = softmax(logits.astype(np.float64), axis=1)
    decision = (p[:, 1] >= threshold).astype(int)
    return {
        "accuracy": accuracy_score(label, decision),
        "loss": log_loss(label, p),
        "auc": roc_auc_score(label, p[:, 1]),
        "sensitivity": recall_score(label, decision),
        "specificity": recall_score(label, decision, pos_label=0),
        "f1": f1_score(label, decision),
    }


# ---- figures


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("suffix", KINDS)
def test_figures_of_seeds_are_scikit_learns_mean_and_deviation(split: str, suffix: str, tmp_path: Path) -> None:
    fitted(tmp_path, *THREE)
    report = build_report(tmp_path)
    logits = report.rows[0].row.val if split == "val" else report.rows[0].test_logits
    of_kind = logits.logits_view_mean if suffix else logits.logits
    singles = [figures_by_scikit_learn(one, logits.label) for one in of_kind]
    (row,) = json_of(report)["rows"]
    best = report.rows[0].row.best
    for name in singles[0]:
        found, values = row[split + suffix][name], [one[name] for one in singles]
        assert found["mean"] == pytest.approx(np.mean(values)), name
        assert found["sd"] == pytest.approx(np.std(values, ddof=1)), name
        assert found["value"] == pytest.approx(values[best]), name
        assert found["low"] <= found["value"] <= found["high"], name


@pytest.mark.parametrize("split", ["val", "test"])
def test_intervals_are_those_of_the_head_that_stands_for_the_row_by_patient(split: str, tmp_path: Path) -> None:
    fitted(tmp_path, *THREE)
    report = build_report(tmp_path)
    (one,) = report.rows
    logits = one.row.val if split == "val" else one.test_logits
    assert one.row.best == int(np.argmin([record.val.loss for record in one.row.records]))
    p = softmax(logits.logits[one.row.best].astype(np.float64), axis=1)[:, 1]
    truth, patient = logits.label == 1, np.array(logits.patient_id)
    figures = json_of(report)["rows"][0][split]
    for name, interval in bootstrap(p, truth, patient).to_json().items():
        assert interval is not None
        assert {end: figures[name][end] for end in interval} == pytest.approx(interval), name
    area = auc_interval(p, truth, patient)
    assert area is not None
    assert (figures["auc"]["low"], figures["auc"]["high"]) == pytest.approx((area.low, area.high))


def test_one_seed_is_a_value_with_an_interval_and_counts_are_plain(tmp_path: Path) -> None:
    fitted(tmp_path, BASE)
    (row,) = json_of(build_report(tmp_path))["rows"]
    assert row["test"]["accuracy"].keys() == {"value", "low", "high"}
    assert sum(row["test"]["confusion"].values()) == 60
    assert row["test"]["penalty"] == 0
    assert row["seeds"] == 1


def test_the_penalty_has_a_mean_and_no_interval(tmp_path: Path) -> None:
    heads = [head(replace(BASE, seed=seed), penalty=penalty) for seed, penalty in enumerate((1.0, 2.0, 6.0))]
    (row,) = json_of(report_of(tmp_path, *heads))["rows"]
    # Of the mean 3 the deviations are -2, -1, 3: sd = √(14 / 2).
    assert row["test"]["penalty"] == pytest.approx({"mean": 3.0, "sd": math.sqrt(7)})
    assert row["test"]["confusion"]["tn"].keys() == {"mean", "sd"}


def test_calibration_is_told_before_and_after_the_temperature_of_val(tmp_path: Path) -> None:
    fitted(tmp_path, *THREE)
    report = build_report(tmp_path)
    (one,) = report.rows
    (row,) = json_of(report)["rows"]
    for suffix, kind in KINDS.items():
        logits = one.test_logits.of(kind)[one.row.best].astype(np.float64)  # type: ignore[arg-type]  # one of both
        for told, z in (
            (row[f"test{suffix}"]["calibration"], logits),
            (row[f"test{suffix}"]["calibration"]["at_temperature"], logits / row[f"temperature{suffix}"]),
        ):
            p, label = softmax(z, axis=1), one.test_logits.label
            assert told["loss"] == pytest.approx(log_loss(label, p))
            assert told["brier"] == pytest.approx(brier_score_loss(label, p[:, 1]))
            assert told["expected_calibration_error"] == pytest.approx(expected_calibration_error(p[:, 1], label == 1))
    val = row["val"]["calibration"]
    assert val["at_temperature"]["loss"] <= val["loss"] + 1e-9


# ---- operating points


def test_operating_points_are_chosen_on_val_and_their_figures_are_tests(tmp_path: Path) -> None:
    fitted(tmp_path, *THREE)
    report = build_report(tmp_path, operating_rules=["specificity>=0.9"])
    (one,), (row,) = report.rows, json_of(report)["rows"]
    for suffix, kind in KINDS.items():
        points = row[f"operating_points{suffix}"]
        assert [point["rule"] for point in points] == ["youden", "sensitivity>=0.95", "f1", "specificity>=0.9"]
        for point in points:
            assert point["split"] == "val"
            cuts = one.row.choices[kind].operating_points[point["rule"]]  # type: ignore[index]  # one of both
            assert point["threshold"] == cuts[one.row.best].threshold
            for split, logits in (("test", one.test_logits), ("val", one.row.val)):
                of_kind = logits.logits_view_mean if suffix else logits.logits
                told = point if split == "test" else point["val"]
                every = [
                    figures_by_scikit_learn(z, logits.label, cut.threshold)
                    for z, cut in zip(of_kind, cuts, strict=True)
                ]
                for name in ("accuracy", "sensitivity", "specificity", "f1"):
                    assert told[name]["mean"] == pytest.approx(np.mean([figures[name] for figures in every]))
                    assert told[name]["sd"] == pytest.approx(np.std([figures[name] for figures in every], ddof=1))
            p = softmax(
                (one.test_logits.logits_view_mean if suffix else one.test_logits.logits)[one.row.best].astype(float),
                axis=1,
            )
            patient = np.array(one.test_logits.patient_id)
            expected = bootstrap(p[:, 1], one.test_logits.label == 1, patient, threshold=point["threshold"])
            assert (point["accuracy"]["low"], point["accuracy"]["high"]) == (
                expected.accuracy.low,
                expected.accuracy.high,
            )


def test_three_classes_report_what_is_defined_and_leave_the_rest_empty(tmp_path: Path) -> None:
    configs = [replace(BASE, seed=seed, l2=l2) for l2 in (0.0, 0.1) for seed in range(2)]
    label = np.arange(60) // 2 % 3
    three = metrics(
        sensitivity=None, specificity=None, confusion=None, confusion_matrix=((5, 1, 0), (2, 7, 0), (0, 0, 9))
    )
    splits = [split_logits(4, 60, 3, seed=seed, split=name) for seed, name in enumerate(("val", "test"))]
    record = run(*(head(config, three) for config in configs), classes=("A", "B", "C"))
    saved(tmp_path, record, *splits)
    report = build_report(tmp_path, ensembles=True, operating_rules=["youden"])
    rows = json_of(report)["rows"]
    assert len(rows) == 4
    for row, one in zip(rows, report.rows, strict=True):
        test = row["test"]
        assert (test["sensitivity"], test["specificity"], row["operating_points"]) == (None, None, [])
        assert "confusion" not in test
        assert np.sum(test["confusion_matrix"]) == 60
        right = one.test_logits.logits[one.row.best].argmax(1) == label
        assert test["accuracy"]["value"] == pytest.approx(right.mean())
        assert test["accuracy"]["low"] < right.mean() < test["accuracy"]["high"]
        assert 0 < test["calibration"]["brier"] < 2
    other = next(row for row in rows if not row["selected"])
    assert other["against_selected"]["auc"] is None
    assert other["against_selected"]["accuracy"]["method"] == "mcnemar"


# ---- the view mean


def test_the_gain_of_the_views_is_tested_for_the_selected_row_on_both_splits(tmp_path: Path) -> None:
    fitted(tmp_path, *THREE, replace(BASE, l2=0.5))
    for row in json_of(build_report(tmp_path))["rows"]:
        if not row["selected"]:
            assert row["gain_of_views"] is None
            continue
        for split in ("val", "test"):
            gain = row["gain_of_views"][split]
            for name, method in (("auc", "delong"), ("accuracy", "mcnemar")):
                difference = row[f"{split}_view_mean"][name]["value"] - row[split][name]["value"]
                assert gain[name]["difference"]["value"] == pytest.approx(difference)
                assert gain[name]["method"] == method
                assert 0 <= gain[name]["p"] <= 1


def test_one_view_gains_nothing(tmp_path: Path) -> None:
    val, test = (replace(one, logits_view_mean=one.logits) for one in (split_logits(seed=1), split_logits(seed=2)))
    saved(tmp_path, run(head()), val, test)
    assert json_of(build_report(tmp_path))["rows"][0]["gain_of_views"] is None


# ---- warnings


def test_straddling_patients_are_told(tmp_path: Path) -> None:
    (warning, *_) = report_of(tmp_path, head(), split_rule="paper", straddling=361).warnings
    assert warning.startswith("361 patients have images in both train and val of the paper split")


def test_a_clean_split_is_not_warned_of(tmp_path: Path) -> None:
    assert not any("patients" in warning for warning in report_of(tmp_path, head()).warnings)


def test_a_small_val_is_told(tmp_path: Path) -> None:
    warnings = report_of(tmp_path, head(), split_rule="folders", n={"train": 5216, "val": 16, "test": 624}).warnings
    assert any(warning.startswith("val has only 16 images") for warning in warnings)
    assert not any("val has only" in warning for warning in report_of(tmp_path / "other", head()).warnings)


def test_rows_on_different_images_are_told(tmp_path: Path) -> None:
    saved(tmp_path, run(head(), run_id="before"))
    assert not any("changed" in warning for warning in build_report(tmp_path).warnings)
    saved(tmp_path, run(head(replace(BASE, l2=0.1)), run_id="after", images_sha256="b" * 64))
    assert any("images or labels changed between the runs" in warning for warning in build_report(tmp_path).warnings)


# ---- JSON

ROW_KEYS = {"name", "backbone", "head", "views", "split", "seeds", "selected", "n", "val", "test", "ensemble"}
VAL_KEYS = {"accuracy", "loss", "auc"}
TEST_KEYS = {"accuracy", "loss", "penalty", "sensitivity", "specificity", "f1", "auc", "confusion", "calibration"}


def test_json_has_the_keys_that_others_script_against(tmp_path: Path) -> None:
    configs = [replace(BASE, l2=1e-4, seed=seed) for seed in range(2)]
    fitted(tmp_path / "films", *configs, views=4)
    held = json_of(build_report(tmp_path / "films", rule="views"))
    assert held.keys() >= {"dataset", "rows", "selected_by", "warnings"}
    assert (held["dataset"], held["selected_by"]) == ("films", "views")
    (row,) = held["rows"]
    assert row.keys() >= ROW_KEYS
    assert (row["backbone"], row["views"], row["split"], row["seeds"]) == ("resnet50", 4, "patient", 2)
    assert row["selected"] is True
    assert row["n"] == {"train": 4173, "val": 1043, "test": 624}
    assert row["head"].items() >= {"hidden": 256, "l2": 1e-4, "lr": 1e-3}.items()
    assert "seed" not in row["head"]
    assert row["val"].keys() >= VAL_KEYS
    assert row["test"].keys() >= TEST_KEYS
    assert row["test"]["confusion"].keys() == {"tn", "fp", "fn", "tp"}
    assert row["ensemble"] is None
