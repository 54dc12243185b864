"""Forms of the table that parse back to the report's figures, and notes that tell what stands in it."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic import fitted, head, metrics, run, saved, split_logits

from heads.reporting.figures import FIGURES, spread
from heads.reporting.notes import notes
from heads.reporting.paper import PAPER, PAPER_FINAL
from heads.reporting.report import Report, build_report
from heads.reporting.tables import COMPACT_HEADER, HEADER, Shown, as_csv, cells, markdown, terminal
from heads.training.config import HeadConfig

BASE = HeadConfig()
PLAIN = Shown()

PAPERS_TABLE = """
| InceptionV3 | 94.14 | 79.81 | 0.5028 |
| VGG19 | 91.04 | 84.01 | 0.5791 |
| EfficientNetB4 | 96.5 | 78.17 | 0.5403 |
| ResNet50 | 98.08 | 90.77 | 0.2251 |
| EfficientNetB4 + L2 | 94.49 | 84.96 | 1.2863 |
| ResNet50 + L2 | 95.04 | 92.34 | 0.3553 |
"""
"""As it stands in the study."""


def papers_rows() -> list[tuple[str, float, float, float]]:
    lines = [line.strip("| ").split(" | ") for line in PAPERS_TABLE.strip().splitlines()]
    return [(name, *map(float, figures)) for name, *figures in lines]  # type: ignore[misc]  # three figures each


def parsed_markdown(text: str) -> list[dict[str, str]]:
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert set("".join(lines[1])) <= {"-", ":"}
    assert len({len(line) for line in lines}) == 1
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


@pytest.fixture
def report(tmp_path: Path) -> Report:
    """Two seeds of each of two configurations, and a third that says the opposite of the truth."""
    configs = [replace(BASE, l2=l2, seed=seed) for l2 in (0.0, 0.1) for seed in (0, 1)]
    fitted(tmp_path, *configs)
    fitted(tmp_path, replace(BASE, l2=0.5), seed=0, lean=-3.0, run_id="wrong")
    return build_report(tmp_path)


@pytest.mark.parametrize(
    ("values", "folded"),
    [
        ([0.5], 0.5),
        ([1.0, 3.0], {"mean": 2.0, "sd": math.sqrt(2)}),
        ([None], None),
        ([0.5, None], None),
        ([], None),
    ],
)
def test_a_missing_figure_is_missing_and_not_averaged_away(values: list[float | None], folded: object) -> None:
    assert spread(values) == (pytest.approx(folded) if isinstance(folded, dict) else folded)


def test_the_papers_rows_stand_as_the_study_printed_them() -> None:
    assert [(row.name, row.val_accuracy, row.test_accuracy, row.test_loss) for row in PAPER] == papers_rows()


def test_the_papers_final_head_is_told_in_its_words() -> None:
    for figure in ("91.51", "0.9205", "0.9060", "0.9313", "0.9706", "TN 212", "FP 22", "FN 31", "TP 359"):
        assert figure in PAPER_FINAL


def test_markdown_parses_back_to_the_figures(report: Report) -> None:
    rows = parsed_markdown(markdown(report, PLAIN))
    assert list(rows[0]) == list(HEADER)
    assert list(HEADER[:4]) == ["Model", "Validation Accuracy", "Test Accuracy", "Test Loss"]
    assert [tuple(row.values()) for row in rows] == cells(report, PLAIN)
    for line, row in zip(rows, report.to_json()["rows"], strict=True):
        assert line["Model"].removeprefix("▸ ") == row["name"]
        assert line["Model"].startswith("▸ ") == row["selected"]
        accuracy, auc = row["test"]["accuracy"], row["test"]["auc"]
        ends = f"({100 * accuracy['low']:.1f}–{100 * accuracy['high']:.1f})"
        told = f"{100 * accuracy['mean']:.2f} ± {100 * accuracy['sd']:.2f} {ends}" if "mean" in accuracy else None
        told = told or f"{100 * accuracy['value']:.2f} {ends}"
        assert line["Test Accuracy"].removesuffix("*") == told
        assert line["AUC"].removesuffix("*").endswith(f"({auc['low']:.3f}–{auc['high']:.3f})")


def test_rows_that_differ_from_the_selected_one_are_marked_and_told(report: Report) -> None:
    auc, accuracy = HEADER.index("AUC"), HEADER.index("Test Accuracy")
    for line, row in zip(cells(report, PLAIN), report.to_json()["rows"], strict=True):
        pair = row["against_selected"]
        assert line[auc].endswith("*") == (pair is not None and pair["auc"]["p_holm"] < 0.05)
        assert line[accuracy].endswith("*") == (pair is not None and pair["accuracy"]["p_holm"] < 0.05)
    assert [line[auc].endswith("*") for line in cells(report, PLAIN)].count(True) == 1
    (note,) = [note for note in notes(report) if note.startswith("marked *")]
    assert "of 2 other rows 1 differ from the selected one on test in AUC, 1 in accuracy" in note
    assert "Holm" in note


def test_rows_that_do_not_differ_are_said_not_to(tmp_path: Path) -> None:
    fitted(tmp_path, BASE, replace(BASE, l2=0.1), n=12)
    (note,) = [note for note in notes(build_report(tmp_path)) if "none differs" in note]
    assert note.startswith("of 1 other row none differs from the selected one on test")


def test_markdown_with_the_paper_has_its_six_rows_below_ours(report: Report) -> None:
    rows = parsed_markdown(markdown(report, Shown(paper=True)))
    columns = ("Validation Accuracy", "Test Accuracy", "Test Loss")
    found = [(row["Model"], *(float(row[column]) for column in columns)) for row in rows[3:]]
    assert found == [(f"paper: {name}", *figures) for name, *figures in papers_rows()]
    assert {row["AUC"] for row in rows[3:]} == {"–"}
    assert PAPER_FINAL in markdown(report, Shown(paper=True))
    assert "paper" not in markdown(report, PLAIN)


@pytest.mark.parametrize("view_mean", [False, True])
def test_csv_parses_back_to_the_figures_at_full_precision(view_mean: bool, report: Report) -> None:
    lines = list(csv.DictReader(io.StringIO(as_csv(report, Shown(view_mean=view_mean)))))
    suffix = "_view_mean" if view_mean else ""
    for line, row in zip(lines, report.to_json()["rows"], strict=True):
        assert (line["model"], line["selected"]) == (row["name"], str(int(row["selected"])))
        assert (line["split"], line["seeds"]) == ("patient", str(row["seeds"]))
        for split, names in (("val", ["accuracy"]), ("test", FIGURES)):
            for name in names:
                figure = row[split + suffix][name]
                assert float(line[f"{split}_{name}"]) == figure.get("mean", figure["value"])
                assert line[f"{split}_{name}_sd"] == ("" if "sd" not in figure else str(figure["sd"]))
                for end in ("value", "low", "high"):
                    assert float(line[f"{split}_{name}_{end}"]) == figure[end]
        pair = row[f"against_selected{suffix}"]
        for name in ("auc", "accuracy"):
            for p in ("p", "p_holm"):
                assert line[f"{name}_{p}"] == ("" if pair is None else str(pair[name][p]))


def test_the_paper_has_no_more_in_csv_than_it_printed(report: Report) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(report, Shown(paper=True)))))[3:]
    columns = ("val_accuracy", "test_accuracy", "test_loss")
    assert [(row["model"], *(float(row[name]) for name in columns)) for row in rows] == [
        (f"paper: {name}", pytest.approx(val / 100), pytest.approx(test / 100), loss)
        for name, val, test, loss in papers_rows()
    ]
    filled = {name for row in rows for name, value in row.items() if value}
    assert filled == {"model", "selected", "split", "seeds", *columns}


def test_a_comma_in_a_name_does_not_break_the_csv(tmp_path: Path) -> None:
    fitted(tmp_path, BASE, replace(BASE, lr=0.1))
    report = build_report(tmp_path)
    rows = list(csv.DictReader(io.StringIO(as_csv(report, PLAIN))))
    assert [row["model"] for row in rows] == [row.name for row in report.rows]
    assert all("," in row["model"] for row in rows)


def test_a_terminal_gets_as_much_as_it_has_room_for(report: Report) -> None:
    shown = Shown(paper=True)
    asked = {width: terminal(report, shown, width) for width in (60, 80, 110, 140, 180, 260)}
    assert asked[60][0] == asked[80][0] == COMPACT_HEADER
    assert asked[260][0] == asked[180][0] == HEADER
    told = {
        width: sum("–" in cell and len(cell) > 1 for line in lines for cell in line)
        for width, (_, lines) in asked.items()
    }
    assert told[60] == told[80] == told[110] == told[140] == 0
    assert told[180] == 3 * 2  # test accuracy and AUC
    assert told[260] == 3 * 7
    deviations = {width: any("±" in cell for line in lines for cell in line) for width, (_, lines) in asked.items()}
    assert deviations == {60: False, 80: False, 110: True, 140: True, 180: True, 260: True}
    for width in (110, 140, 180, 260):
        header, lines = asked[width]
        columns = [max(len(line[place]) for line in (header, *lines)) for place in range(len(header))]
        assert sum(columns) + 2 * len(columns) <= width
    sensitivity = COMPACT_HEADER.index("Sens")
    assert ["±" in asked[width][1][0][sensitivity] for width in (110, 140)] == [False, True]
    compact, full = asked[80][1], cells(report, shown)
    for narrow, wide in zip(compact, full, strict=True):
        assert narrow[0] == wide[0]
        for cell, figure in zip(narrow[1:4], wide[1:4], strict=True):
            digits = len(cell.removesuffix("*").partition(".")[2])
            assert float(cell.removesuffix("*")) == pytest.approx(
                float(figure.partition(" ")[0]), abs=0.51 * 10**-digits
            )


# ---- operating points and notes


def test_at_an_operating_point_the_table_shows_its_decisions_and_says_so(report: Report) -> None:
    rule = "sensitivity>=0.95"
    lines = parsed_markdown(markdown(report, Shown(rule=rule)))
    names = {"Test Accuracy": ("accuracy", 100, 2), "Sensitivity": ("sensitivity", 1, 4), "F1": ("f1", 1, 4)}
    for line, row in zip(lines, report.to_json()["rows"], strict=True):
        (point,) = [point for point in row["operating_points"] if point["rule"] == rule]
        for column, (name, scale, digits) in names.items():
            value = point[name].get("mean", point[name]["value"])
            assert line[column].startswith(f"{value * scale:.{digits}f}")
        val = point["val"]["accuracy"]
        assert line["Validation Accuracy"].startswith(f"{100 * (val['mean'] if isinstance(val, dict) else val):.2f}")
        assert line["AUC"].startswith(f"{row['test']['auc'].get('mean', row['test']['auc']['value']):.4f}")
    assert notes(report, rule=rule)[0].endswith(f"at the operating point {rule}, chosen on val")


def test_the_selected_row_is_told_at_one_half_and_at_each_rule(report: Report) -> None:
    (row,) = [row for row in report.to_json()["rows"] if row["selected"]]
    told = notes(report)
    assert told[0] == f"selected on train and val alone (lowest mean val loss of the clean view): {row['name']}"
    accuracy = row["test"]["accuracy"]
    assert told[1].startswith("it on test (seed ")
    ends = f"({100 * accuracy['low']:.1f}–{100 * accuracy['high']:.1f})"
    assert f"threshold 0.5 accuracy {100 * accuracy['value']:.1f} {ends}" in told[1]
    for point in row["operating_points"]:
        (line,) = [line for line in told[2:] if line.startswith("it at ") and point["rule"] in line]
        assert (
            f"(threshold {point['threshold']:.3f}, chosen on val): accuracy {100 * point['accuracy']['value']:.1f}"
            in line
        )
    calibration = row["test"]["calibration"]
    (line,) = [line for line in told if line.startswith("its calibration on test")]
    assert f"Brier score {calibration['brier']:.3f}" in line
    assert f"temperature {row['temperature']:.2f} fitted on val" in line
    (line,) = [line for line in told if line.startswith("its mean over the views less its clean view")]
    gain = row["gain_of_views"]["test"]["auc"]
    assert f"on test AUC {gain['difference']['value']:+.3f}" in line


def test_the_counts_told_are_those_of_the_head_that_stands_for_the_row(tmp_path: Path) -> None:
    label = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    decided = np.array([0, 0, 1, 1, 1, 1, 1, 0])
    right, wrong = np.eye(2)[decided], np.eye(2)[1 - label]
    test = replace(split_logits(2, 8), logits=np.stack([wrong, right]).astype(np.float32), label=label)
    heads = [head(BASE, metrics(0.3)), head(replace(BASE, seed=1), metrics(0.2))]
    saved(tmp_path, run(*heads), split_logits(2, 20, seed=5, split="val"), test)
    told = notes(build_report(tmp_path))[1]
    assert "seed 1" in told
    assert "TN 2, FP 1, FN 1, TP 4" in told


def test_three_classes_are_told_without_counts_of_two(tmp_path: Path) -> None:
    three = metrics(
        sensitivity=None, specificity=None, confusion=None, confusion_matrix=((5, 1, 0), (2, 7, 0), (0, 0, 9))
    )
    saved(tmp_path, run(head(val=three), classes=("A", "B", "C")))
    report = build_report(tmp_path)
    assert cells(report, PLAIN)[0][4:6] == ("–", "–")
    assert cells(report, Shown(rule="youden"))[0][2] == "–"
    assert not any("TN" in note for note in notes(report))
    assert notes(report)[0].startswith("selected on train and val alone")


def test_members_of_ensembles_are_told(tmp_path: Path) -> None:
    for number, name in enumerate(("one", "two")):
        fitted(tmp_path, BASE, seed=number, backbone=name, fingerprint=name.ljust(64, "x"), run_id=name)
    (note,) = [note for note in notes(build_report(tmp_path, ensembles=True)) if note.startswith("mean of 2 backbones")]
    assert note.endswith("each divided by its temperature: one; two")
