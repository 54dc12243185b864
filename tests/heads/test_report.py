"""The comparison table: seeds folded by hand-checked arithmetic, rows chosen by val, and forms that parse back."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import head, metrics, run, saved, split_logits

from featcache.errors import RunError
from heads.config import HeadConfig
from heads.metrics import Metrics
from heads.report import PAPER, PAPER_FINAL, Report, build_report, spread
from heads.runs import HeadRecord, save_run
from heads.tables import COMPACT_HEADER, HEADER, as_csv, cells, markdown, notes

BASE = HeadConfig()

GOOD, BAD = metrics(loss=0.1, accuracy=0.97), metrics(loss=3.0, accuracy=0.4)


def report_of(dataset: Path, *heads: HeadRecord, **changes: Any) -> Report:
    """The report of one run of these heads."""
    saved(dataset, run(*heads, **changes))
    return build_report(dataset)


# ---- seeds


def test_seeds_of_a_configuration_become_mean_and_deviation(tmp_path: Path) -> None:
    heads = [
        head(replace(BASE, seed=seed), val=metrics(loss, accuracy), test=metrics(auc=auc), penalty=penalty)
        for seed, (loss, accuracy, auc, penalty) in enumerate(
            [(0.3, 0.90, 0.95, 1.0), (0.1, 0.92, 0.96, 2.0), (0.2, 0.97, 0.97, 6.0)]
        )
    ]
    report = report_of(tmp_path, *heads)
    (row,) = report.rows
    assert row.figure("val", "accuracy") == [0.90, 0.92, 0.97]
    assert row.chosen.config.seed == 1
    (held,) = report.to_json()["rows"]
    assert held["seeds"] == 3
    # Deviations from the mean 0.93 are -0.03, -0.01, 0.04: sd = √(0.0026 / 2). Of 3 they are -2, -1, 3: √(14 / 2).
    assert held["val"]["accuracy"] == pytest.approx({"mean": 0.93, "sd": math.sqrt(0.0013)})
    assert held["val"]["loss"] == pytest.approx({"mean": 0.2, "sd": 0.1})
    assert held["test"]["auc"] == pytest.approx({"mean": 0.96, "sd": 0.01})
    assert held["test"]["penalty"] == pytest.approx({"mean": 3.0, "sd": math.sqrt(7)})
    assert held["test"]["confusion"]["tn"] == {"mean": 26, "sd": 0}
    (line,) = cells(report)
    assert line[1] == "93.00 ± 3.61"
    assert line[-1] == "3"


def test_one_seed_is_a_plain_figure(tmp_path: Path) -> None:
    report = report_of(tmp_path, head(val=metrics(accuracy=0.9414), test=metrics(0.5028, 0.7981)))
    (held,) = report.to_json()["rows"]
    assert (held["val"]["accuracy"], held["test"]["loss"], held["seeds"]) == (0.9414, 0.5028, 1)
    (line,) = cells(report)
    assert line[1:] == ("94.14", "79.81", "0.5028", "0.8500", "0.6500", "0.7500", "0.9000", "1")


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


def test_whatever_but_the_seed_differs_is_a_row_of_its_own(tmp_path: Path) -> None:
    heads = [head(replace(BASE, seed=seed, l2=l2)) for l2 in (0.0, 1e-4) for seed in (0, 1)]
    heads += [head(views=4), head(backbone="vgg19"), head(fingerprint="e" * 64)]
    report = report_of(tmp_path, *heads)
    assert sorted(len(row.records) for row in report.rows) == [1, 1, 1, 2, 2]


# ---- several runs


def test_the_run_that_was_asked_for_last_counts(tmp_path: Path) -> None:
    saved(tmp_path, run(head(test=metrics(accuracy=0.2)), run_id="z", created="2025-03-01T00:00:00+00:00"))
    saved(tmp_path, run(head(test=metrics(accuracy=0.1)), run_id="b", created="2024-12-31T00:00:00+00:00"))
    saved(tmp_path, run(head(test=metrics(accuracy=0.3)), run_id="a", created="2025-03-02T00:00:00+00:00"))
    (row,) = build_report(tmp_path).rows
    assert row.run.run_id == "a"
    assert row.figure("test", "accuracy") == [0.3]


def test_a_later_run_of_fewer_seeds_hides_none(tmp_path: Path) -> None:
    saved(tmp_path, run(*(head(replace(BASE, seed=seed)) for seed in range(3)), run_id="old"))
    saved(tmp_path, run(head(), run_id="new"))
    (row,) = build_report(tmp_path).rows
    assert (len(row.records), row.run.run_id) == (3, "old")


def test_runs_with_another_positive_class_are_rows_of_their_own(tmp_path: Path) -> None:
    saved(tmp_path, run(head(), run_id="one"))
    saved(tmp_path, run(head(), run_id="two", positive=0))
    report = build_report(tmp_path)
    assert sorted(row.name.rpartition("positive ")[2] for row in report.rows) == sorted(report.rows[0].run.classes)


def test_seeds_of_different_runs_are_not_mixed(tmp_path: Path) -> None:
    saved(tmp_path, run(*(head(replace(BASE, seed=seed)) for seed in range(3)), run_id="old"))
    newer = run(head(), head(replace(BASE, l2=0.1)), run_id="new", created="2026-01-01T00:00:00+00:00")
    saved(tmp_path, newer)
    report = build_report(tmp_path)
    assert [(row.config.l2, len(row.records), row.run.run_id) for row in report.rows] == [
        (0, 3, "old"),
        (0.1, 1, "new"),
    ]


def test_only_the_runs_asked_for_are_reported(tmp_path: Path) -> None:
    for name, l2 in (("one", 0.1), ("two", 0.2), ("three", 0.3)):
        saved(tmp_path, run(head(replace(BASE, l2=l2)), run_id=name))
    assert {row.config.l2 for row in build_report(tmp_path, ["one", "three"]).rows} == {0.1, 0.3}


def test_an_unknown_run_is_refused_with_those_there_are(tmp_path: Path) -> None:
    saved(tmp_path, run(head(), run_id="patient-1"))
    with pytest.raises(RunError, match=r"no run patient-2 in .*there are: patient-1"):
        build_report(tmp_path, ["patient-2"])


def test_no_runs_are_refused_with_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no runs in .*run 'cxr fit-head' first"):
        build_report(tmp_path)


def test_a_damaged_run_is_named_and_not_left_out(tmp_path: Path) -> None:
    saved(tmp_path, run(head(), run_id="good"))
    folder = saved(tmp_path, run(head(), run_id="bad"))
    (folder / "run.json").write_text("{}")
    with pytest.raises(RunError, match=r"bad.run\.json is damaged"):
        build_report(tmp_path)


# ---- selection


def test_the_best_on_val_is_selected_however_terrible_on_test(tmp_path: Path) -> None:
    report = report_of(
        tmp_path,
        head(replace(BASE, l2=0.1), val=replace(GOOD, loss=0.11), test=GOOD),
        head(replace(BASE, l2=0.2), val=replace(GOOD, loss=0.10), test=BAD),
    )
    (chosen,) = report.selected
    assert chosen.config.l2 == 0.2
    assert chosen.chosen.test == BAD


def test_the_best_on_test_is_not_selected_for_that(tmp_path: Path) -> None:
    report = report_of(
        tmp_path,
        head(replace(BASE, l2=0.1), val=BAD, test=GOOD),
        head(replace(BASE, l2=0.2), val=GOOD, test=BAD),
        head(replace(BASE, l2=0.3), val=BAD, test=GOOD),
    )
    assert [row.selected for row in report.rows] == [False, True, False]
    assert [line[0].startswith("▸ ") for line in cells(report)] == [False, True, False]


FIGURE = st.floats(0, 1)
METRICS = st.builds(
    metrics, loss=FIGURE, accuracy=FIGURE, auc=FIGURE, sensitivity=FIGURE, specificity=FIGURE, f1=FIGURE
)


@settings(max_examples=15)
@given(val=st.lists(METRICS, min_size=2, max_size=4), data=st.data())
def test_no_test_figure_moves_the_selection(
    val: list[Metrics], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def selected() -> list[tuple[bool, int]]:
        test = data.draw(st.lists(METRICS, min_size=len(val), max_size=len(val)))
        heads = [
            head(replace(BASE, l2=row // 2 / 10, seed=row % 2), one, other, penalty=other.loss, test_view_mean=other)
            for row, (one, other) in enumerate(zip(val, test, strict=True))
        ]
        report = report_of(tmp_path_factory.mktemp("cache"), *heads)
        return [(row.selected, row.best) for row in report.rows]

    assert selected() == selected()


def test_each_split_has_its_own_selection(tmp_path: Path) -> None:
    for rule, seed, losses in (("patient", 0, (0.5, 0.4)), ("paper", 0, (0.1, 0.2)), ("patient", 1, (0.3, 0.31))):
        heads = [head(replace(BASE, l2=l2), val=metrics(loss)) for l2, loss in zip((0.1, 0.2), losses, strict=True)]
        saved(tmp_path, run(*heads, run_id=f"{rule}-{seed}", split_rule=rule, split_seed=seed))
    report = build_report(tmp_path)
    chosen = {(row.run.split_rule, row.run.split_seed): row.config.l2 for row in report.selected}
    assert chosen == {("patient", 0): 0.2, ("paper", 0): 0.1, ("patient", 1): 0.1}
    assert len([note for note in notes(report) if note.startswith("selected on validation alone")]) == 3
    assert any("different splits" in warning for warning in report.warnings)


# ---- names


def names(dataset: Path, *heads: HeadRecord) -> list[str]:
    return [row.name for row in report_of(dataset, *heads).rows]


def test_rows_are_named_as_the_study_names_them(tmp_path: Path) -> None:
    assert names(tmp_path, head(), head(replace(BASE, l2=1e-4))) == ["resnet50", "resnet50 + L2 0.0001"]


def test_a_name_tells_what_differs_and_nothing_else(tmp_path: Path) -> None:
    heads = [head(replace(BASE, hidden=hidden, lr=lr)) for hidden in (0, 256) for lr in (1e-3, 1e-2)]
    assert names(tmp_path, *heads) == [
        "resnet50, linear, lr 0.001",
        "resnet50, linear, lr 0.01",
        "resnet50, hidden 256, lr 0.001",
        "resnet50, hidden 256, lr 0.01",
    ]


def test_standardised_heads_are_named_where_others_are_not(tmp_path: Path) -> None:
    plain, standardised = head(), head(replace(BASE, standardise=True))
    assert names(tmp_path / "both", plain, standardised) == ["resnet50", "resnet50, standardised"]
    assert names(tmp_path / "one", standardised) == ["resnet50"]


def test_options_and_libraries_of_a_backbone_are_named_where_they_tell_rows_apart(tmp_path: Path) -> None:
    spelled = ["torchvision:resnet50", "resnet50", "resnet50@pad_type=same", "vgg19@pad_type=same"]
    found = names(tmp_path, *(head(backbone=name, fingerprint=name.ljust(64, "x")) for name in spelled))
    assert len(set(found)) == 4
    assert "vgg19" in found


CONFIGS = st.builds(
    HeadConfig,
    hidden=st.sampled_from([0, 8]),
    l2=st.sampled_from([0.0, 1e-4, 0.5]),
    lr=st.sampled_from([1e-3, 1e-2]),
    epochs=st.sampled_from([5, 50]),
    patience=st.sampled_from([3, 10]),
    batch_size=st.sampled_from([16, 256]),
    class_weights=st.sampled_from(["balanced", "none"]),
    view_policy=st.sampled_from(["random", "clean"]),
    standardise=st.booleans(),
    precision=st.sampled_from(["float32", "bfloat16"]),
)
HEADS = st.builds(
    head,
    CONFIGS,
    backbone=st.sampled_from(["resnet50", "torchvision:resnet50", "resnet50@a=1", "resnet50@a=2", "my.net:make"]),
    fingerprint=st.sampled_from(["a" * 64, "b" * 64]),
    views=st.sampled_from([1, 4]),
)
SPLITS = st.sampled_from([("patient", 0), ("patient", 1), ("paper", 0), ("folders", 0)])


@settings(max_examples=25)
@given(heads=st.dictionaries(SPLITS, st.lists(HEADS, min_size=1, max_size=6), min_size=1))
def test_no_two_rows_share_a_name(
    heads: dict[tuple[str, int], list[HeadRecord]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    dataset = tmp_path_factory.mktemp("cache")
    for (rule, seed), of_split in heads.items():
        saved(dataset, run(*of_split, run_id=f"{rule}-{seed}", split_rule=rule, split_seed=seed))
    found = [row.name for row in build_report(dataset).rows]
    assert len(set(found)) == len(found)


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


def test_the_tables_own_uncertainty_is_told(tmp_path: Path) -> None:
    # 1.96 · √(0.9 · 0.1 / 624) = 2.35 points.
    warnings = report_of(tmp_path, head()).warnings
    assert any("with 624 test images" in warning and "±2.4 points" in warning for warning in warnings)


# ---- JSON

ROW_KEYS = {"name", "backbone", "head", "views", "split", "seeds", "selected", "n", "val", "test"}
VAL_KEYS = {"accuracy", "loss", "auc"}
TEST_KEYS = {"accuracy", "loss", "penalty", "sensitivity", "specificity", "f1", "auc", "confusion"}


def test_json_has_the_keys_that_others_script_against(tmp_path: Path) -> None:
    saved(tmp_path / "films", run(head(replace(BASE, l2=1e-4), views=4), head(replace(BASE, l2=1e-4, seed=1), views=4)))
    report = build_report(tmp_path / "films")
    text = json.dumps(report.to_json(), allow_nan=False)
    held = json.loads(text)
    assert {"dataset", "rows"} <= held.keys()
    assert held["dataset"] == "films"
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


def test_json_tells_view_mean_figures_apart(tmp_path: Path) -> None:
    report = report_of(tmp_path, head(test=metrics(accuracy=0.8), test_view_mean=metrics(accuracy=0.85)))
    (row,) = report.to_json()["rows"]
    assert (row["test"]["accuracy"], row["test_view_mean"]["accuracy"]) == (0.8, 0.85)
    assert (cells(report)[0][2], cells(report, view_mean=True)[0][2]) == ("80.00", "85.00")


def test_three_classes_report_their_matrix_and_leave_the_rest_empty(tmp_path: Path) -> None:
    three = metrics(
        sensitivity=None, specificity=None, confusion=None, confusion_matrix=((5, 1, 0), (2, 7, 0), (0, 0, 9))
    )
    report = report_of(tmp_path, head(val=three, test=three), classes=("A", "B", "C"))
    (row,) = json.loads(json.dumps(report.to_json(), allow_nan=False))["rows"]
    assert row["test"]["sensitivity"] is None
    assert row["test"]["confusion_matrix"] == [[5, 1, 0], [2, 7, 0], [0, 0, 9]]
    assert cells(report)[0][4:6] == ("–", "–")
    assert not any("TN" in note for note in notes(report))


# ---- text forms

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
    """Two seeds of each of two configurations, the one with L2 selected."""
    heads = [
        head(
            replace(BASE, l2=l2, seed=seed),
            val=metrics(0.2 - l2 - seed / 100, 0.95),
            test=metrics(0.4, 0.8 + seed / 100 + l2, auc=0.96),
        )
        for l2 in (0.0, 0.1)
        for seed in (0, 1)
    ]
    return report_of(tmp_path, *heads)


def test_the_papers_rows_stand_as_the_study_printed_them() -> None:
    assert [(row.name, row.val_accuracy, row.test_accuracy, row.test_loss) for row in PAPER] == papers_rows()


def test_the_papers_final_head_is_told_in_its_words() -> None:
    for figure in ("91.51", "0.9205", "0.9060", "0.9313", "0.9706", "TN 212", "FP 22", "FN 31", "TP 359"):
        assert figure in PAPER_FINAL


def test_markdown_parses_back_to_the_table(report: Report) -> None:
    rows = parsed_markdown(markdown(report))
    assert list(rows[0]) == list(HEADER)
    assert list(HEADER[:4]) == ["Model", "Validation Accuracy", "Test Accuracy", "Test Loss"]
    assert [tuple(row.values()) for row in rows] == cells(report)
    assert [row["Model"] for row in rows] == ["resnet50", "▸ resnet50 + L2 0.1"]
    assert rows[1]["Test Accuracy"] == "90.50 ± 0.71"
    assert rows[1]["AUC"] == "0.9600 ± 0.0000"


def test_markdown_with_the_paper_has_its_six_rows_below_ours(report: Report) -> None:
    rows = parsed_markdown(markdown(report, paper=True))
    columns = ("Validation Accuracy", "Test Accuracy", "Test Loss")
    found = [(row["Model"], *(float(row[column]) for column in columns)) for row in rows[2:]]
    assert found == [(f"paper: {name}", *figures) for name, *figures in papers_rows()]
    assert {row["AUC"] for row in rows[2:]} == {"–"}
    assert PAPER_FINAL in markdown(report, paper=True)
    assert "paper" not in markdown(report)


def test_csv_parses_back_to_the_figures_at_full_precision(report: Report) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(report))))
    assert [(row["model"], row["selected"], row["split"], row["seeds"]) for row in rows] == [
        ("resnet50", "0", "patient", "2"),
        ("resnet50 + L2 0.1", "1", "patient", "2"),
    ]
    assert float(rows[1]["val_accuracy"]) == 0.95
    assert float(rows[1]["test_accuracy"]) == pytest.approx(0.905)
    assert float(rows[1]["test_accuracy_sd"]) == pytest.approx(math.sqrt(0.5) / 100)
    figures = ("accuracy", "loss", "sensitivity", "specificity", "f1", "auc")
    assert rows[0].keys() >= {f"test_{name}{part}" for name in figures for part in ("", "_sd")}


def test_csv_of_one_seed_has_no_deviation_and_the_paper_no_more_than_it_printed(tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(report_of(tmp_path, head()), paper=True))))
    assert (rows[0]["test_loss"], rows[0]["test_loss_sd"]) == ("0.5", "")
    found = [
        (row["model"], *(float(row[name]) for name in ("val_accuracy", "test_accuracy", "test_loss")))
        for row in rows[1:]
    ]
    assert found == [
        (f"paper: {name}", pytest.approx(val / 100), pytest.approx(test / 100), loss)
        for name, val, test, loss in papers_rows()
    ]
    assert {row["test_auc"] for row in rows[1:]} == {""}


def test_the_compact_table_has_the_same_rows_and_no_deviations(report: Report) -> None:
    compact, wide = cells(report, paper=True, compact=True), cells(report, paper=True)
    assert [line[0] for line in compact] == [line[0] for line in wide]
    assert {len(line) for line in compact} == {len(COMPACT_HEADER)} == {len(HEADER)}
    assert not any("±" in cell for line in compact for cell in line)
    for narrow, full in zip(compact, wide, strict=True):
        for cell, figure in zip(narrow[1:4], full[1:4], strict=True):
            digits = len(cell.partition(".")[2])
            assert float(cell) == pytest.approx(float(figure.partition(" ")[0]), abs=0.51 * 10**-digits)


def test_the_selected_heads_confusion_matrix_is_told_in_the_papers_words(tmp_path: Path) -> None:
    report = report_of(
        tmp_path,
        head(val=metrics(loss=0.3)),
        head(replace(BASE, seed=1), val=metrics(loss=0.2), test=metrics(confusion=None)),
    )
    assert "TN" not in notes(report)[0]
    other = report_of(tmp_path / "other", head(val=metrics(loss=0.1)), head(replace(BASE, seed=1), val=BAD))
    assert notes(other)[0].startswith("selected on validation alone")
    assert "resnet50" in notes(other)[0]
    assert "seed 0, threshold 0.5" in notes(other)[0]
    assert "TN 26, FP 14, FN 9, TP 51" in notes(other)[0]
    assert notes(other)[1:] == list(other.warnings)


def test_a_comma_in_a_name_does_not_break_the_csv(tmp_path: Path) -> None:
    report = report_of(tmp_path, head(), head(replace(BASE, lr=0.1)))
    rows = list(csv.DictReader(io.StringIO(as_csv(report))))
    assert [row["model"] for row in rows] == [row.name for row in report.rows]
    assert all("," in row["model"] for row in rows)


def test_a_report_reads_no_logits(tmp_path: Path) -> None:
    record = run(head())
    folder = save_run(tmp_path, record, [], split_logits(), split_logits())
    for name in ("val.npz", "test.npz", "weights.safetensors"):
        (folder / name).unlink()
    assert build_report(tmp_path).rows[0].run == record
