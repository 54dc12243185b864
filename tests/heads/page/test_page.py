"""What the page shows: the report's figures, scikit-learn's counts at every threshold, rows that val alone ranks."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, roc_curve
from synthetic import fitted, head, images, run, saved, split_logits, write_store

from featcache.passes import Pass, note_pass
from heads.choosing.rows import Row
from heads.experiments.identity import images_sha256
from heads.experiments.split_logits import SplitLogits
from heads.page.evaluation import Evaluation, evaluate_rows, evaluated_rows, resamples_of
from heads.page.page import Page, build_page
from heads.page.rows import AXES, COLUMNS, page_rows, study_rows
from heads.page.static_figures import static_figures
from heads.reporting.notes import notes
from heads.reporting.report import Report, build_report
from heads.reporting.tables import PAPER_MARK, Shown, cells
from heads.statistics.calibration import reliability
from heads.statistics.intervals import bootstrap, wilson
from heads.statistics.metrics import evaluate, probabilities
from heads.training.config import HeadConfig

BASE = HeadConfig()
KINDS = [False, True]
PASS = Pass(
    ended="2026-01-01T00:00:00+00:00",
    images=90,
    views=2,
    backbones=2,
    seconds=12.5,
    images_per_second=7.6,
    limited_by="compute",
    device="a processor, 2 threads",
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two backbones, each of two settings with two seeds; read it, never write to it."""
    folder = tmp_path_factory.mktemp("several")
    for number, backbone in enumerate(("resnet50", "vgg19")):
        configs = [replace(BASE, l2=l2, seed=one) for l2 in (0.0, 1e-4) for one in range(2)]
        lean = 1.5 + number / 2
        fitted(folder, *configs, run_id=f"patient-{number}", backbone=backbone, fingerprint=f"{number}" * 64, lean=lean)
    return folder


@pytest.fixture(scope="module")
def report(dataset: Path) -> Report:
    """Their report, with ensembles."""
    return build_report(dataset, ensembles=True)


@pytest.fixture(scope="module")
def evaluations(report: Report) -> tuple[Evaluation, ...]:
    """Four of its rows, evaluated on their clean view."""
    return evaluate_rows(report, "clean", evaluated_rows(report, 4))


def page_of(dataset: Path, shown: Shown | None = None) -> Page:
    return build_page(build_report(dataset), dataset, shown)


def probability_of(report: Report, one: Evaluation, *, view_mean: bool = False) -> NDArray[np.float64]:
    row = report.rows[one.row]
    logits = row.test_logits.of("view_mean" if view_mean else "clean")[row.row.best]
    return probabilities(logits)[:, 1]


# ---- the table


@pytest.mark.parametrize("view_mean", KINDS)
@pytest.mark.parametrize("rule", [None, "youden"])
def test_the_table_tells_what_the_terminal_tells(view_mean: bool, rule: str | None, report: Report) -> None:
    shown = Shown(view_mean=view_mean, rule=rule)
    for row, line in zip(page_rows(report, shown), cells(report, shown, "intervals"), strict=True):
        told = [f"{cell.text} {cell.interval}".strip() + "*" * cell.differs for cell in row.cells]
        assert [("▸ " if row.selected else "") + row.name, *told, str(row.seeds)] == list(line)


def test_the_study_stands_beside_ours_as_the_terminal_has_it_where_test_is_its(tmp_path: Path) -> None:
    fitted(tmp_path, BASE)
    page = page_of(tmp_path)
    assert page.classes == ("NORMAL", "PNEUMONIA")
    assert page.provenance.splits[0].counts[2].images == 60
    lines = cells(build_report(tmp_path), Shown(paper=True), "main")[1:]
    told = [(PAPER_MARK + row.name, *(cell.text for cell in row.cells), "1") for row in study_rows()]
    assert told == [tuple(line) for line in lines]
    assert page.study == study_rows()  # the run says that test has the study's 624 images
    other = tmp_path / "others"
    saved(other, run(head(), n={"train": 10, "val": 24, "test": 24}))
    assert page_of(other).study == ()
    assert page_of(other, Shown(paper=True)).study == study_rows()


def test_the_drop_is_the_accuracy_of_val_and_test_of_the_head_that_stands_for_the_row(report: Report) -> None:
    for row, shown in zip(report.rows, page_rows(report, Shown()), strict=True):
        best, drop = row.row.best, shown.drop
        assert drop is not None
        for value, split in ((drop.val, row.row.val), (drop.test, row.test_logits)):
            assert value == pytest.approx(100 * evaluate(split.logits[best], split.label).accuracy, abs=0.006)
        assert drop.low is not None
        assert drop.high is not None
        assert drop.low < drop.test < drop.high


def test_columns_are_sorted_by_the_mean_over_seeds(report: Report) -> None:
    for row, shown in zip(report.rows, page_rows(report, Shown()), strict=True):
        for (split, name, _), cell in zip(COLUMNS, shown.cells, strict=True):
            logits = row.row.val if split == "val" else row.test_logits
            each = [getattr(evaluate(one, logits.label), name) for one in logits.logits]
            assert cell.value == pytest.approx(np.mean(each)), name


def test_learning_curves_are_the_histories_of_every_seed_and_an_ensemble_has_none(report: Report) -> None:
    for row, shown in zip(report.rows, page_rows(report, Shown()), strict=True):
        if row.row.ensemble:
            assert (shown.curves, shown.axes) == ((), {})
            continue
        for curve, record in zip(shown.curves, row.row.records, strict=True):
            history = record.history
            assert (curve.seed, curve.best) == (record.config.seed, record.best_epoch)
            assert curve.train_loss == pytest.approx(history.train_loss, abs=1e-4)
            assert curve.val_accuracy == pytest.approx(history.val_accuracy, abs=1e-4)
        assert shown.curves[shown.kept].seed == row.row.records[row.row.best].config.seed
        assert (shown.axes["backbone"], shown.axes["l2"]) == (row.row.records[0].backbone, row.row.records[0].config.l2)


def test_the_axes_are_all_that_makes_a_head_but_its_seed() -> None:
    assert set(AXES) == {field.name for field in fields(HeadConfig)} - {"seed"} | {"backbone", "views", "adapted"}


def test_rows_of_one_basis_and_equal_axes_are_one_row(tmp_path: Path) -> None:
    others: tuple[dict[str, Any], ...] = (
        {},
        {"split_rule": "paper"},
        {"split_seed": 1},
        {"positive": 0},
        {"images_sha256": "b" * 64},
    )
    for number, changes in enumerate(others):
        fitted(tmp_path, BASE, replace(BASE, epochs=20), run_id=f"run-{number}", **changes)
    fitted(tmp_path, BASE, run_id="run-9", fingerprint="e" * 64)
    rows = page_rows(build_report(tmp_path), Shown())
    assert len(rows) == 9  # of the two hashes of images the newer one counts
    assert len({(row.basis, *row.axes.values()) for row in rows}) == len(rows)
    assert {row.axes["backbone"] for row in rows} == {"resnet50 [ffffff]", "resnet50 [eeeeee]"}
    assert {row.basis.partition(",")[0] for row in rows} == {"patient split", "patient split 1", "paper split"}
    assert any(", positive NORMAL" in row.basis for row in rows)


def test_every_split_is_counted_by_itself(tmp_path: Path) -> None:
    for number, (rule, n) in enumerate((("patient", 60), ("paper", 40))):
        fitted(tmp_path, BASE, run_id=f"run-{number}", split_rule=rule, n=n)
    page = page_of(tmp_path)
    told = {one.name: [part.images for part in one.counts[1:]] for one in page.provenance.splits}
    assert told == {"patient split": [60, 60], "paper split": [40, 40]}
    assert page.selected == 2


def test_how_films_are_decided_is_told_by_their_classes(tmp_path: Path, dataset: Path) -> None:
    assert page_of(dataset).decided_at == "decided at threshold 0.5"
    assert page_of(dataset, Shown(rule="youden")).decided_at == "decided at the threshold set on val for youden"
    logits = split_logits(1, 30, 3)
    record = head(val=evaluate(logits.logits[0], logits.label))
    saved(tmp_path, run(record, classes=("NORMAL", "PNEUMONIA", "TUBERCULOSIS")), logits, logits)
    for rule in (None, "youden"):
        page = page_of(tmp_path, Shown(rule=rule))
        assert page.decided_at.startswith("each image decided for its most probable class")
        assert not any("chosen on val" in note for note in page.notes)


def test_of_many_patients_fewer_resamples_are_drawn_and_of_no_fewer_than_percentiles_need() -> None:
    assert [resamples_of(people) for people in (1, 624, 3_355, 20_000, 600_000)] == [
        10_000,
        10_000,
        10_000,
        1_677,
        1_000,
    ]


def test_rows_are_told_one_by_one_as_they_are_evaluated(report: Report, dataset: Path) -> None:
    told: list[tuple[int, int]] = []
    page = build_page(report, dataset, most=3, on_row=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert page.resamples == page.most_resamples == 10_000


def test_effects_are_mean_and_deviation_over_seeds(report: Report) -> None:
    for row, shown in zip(report.rows, page_rows(report, Shown()), strict=True):
        for effects, logits in ((shown.val, row.row.val), (shown.test, row.test_logits)):
            each = [100 * evaluate(one, logits.label).accuracy for one in logits.logits]
            assert effects["accuracy"].mean == pytest.approx(np.mean(each), abs=1e-4)
            spread = effects["accuracy"].sd
            assert spread is None if len(each) == 1 else spread == pytest.approx(np.std(each, ddof=1), abs=1e-4)


# ---- evaluation


@pytest.mark.parametrize("view_mean", KINDS)
def test_every_threshold_counts_as_scikit_learn_does(view_mean: bool, report: Report) -> None:
    for one in evaluate_rows(report, "view_mean" if view_mean else "clean", evaluated_rows(report, 1)):
        assert one.binary is not None
        truth, p = report.rows[one.row].test_logits.label == 1, probability_of(report, one, view_mean=view_mean)
        held = one.binary.thresholds
        assert list(held.value) == sorted(set(held.value))
        for cut, tp, fp in zip(held.value, held.tp, held.fp, strict=True):
            tn, false, fn, true = confusion_matrix(truth, p >= cut).ravel().tolist()
            assert (tp, fp) == (true, false)
            assert (one.binary.positives - tp, one.binary.negatives - fp) == (fn, tn)


def test_the_points_that_val_chose_are_among_the_thresholds_and_count_as_the_report_does(
    report: Report, evaluations: tuple[Evaluation, ...]
) -> None:
    for one in evaluations:
        row, binary = report.rows[one.row], one.binary
        assert binary is not None
        figures, best = row.figures("test"), row.row.best
        told = {rule: point.at for point in binary.chosen for rule in point.rules}
        assert told.keys() == {"0.5", *figures.points}
        for rule, at in told.items():
            point = figures.points.get(rule)
            assert binary.thresholds.value[at] == (point.points[best].threshold if point else 0.5)
            counts = point.figures[best].confusion if point else figures.metrics[best].confusion
            assert counts is not None
            assert (binary.thresholds.tp[at], binary.thresholds.fp[at]) == (counts.tp, counts.fp)


def test_intervals_at_a_threshold_are_those_of_the_table_rounded_once(
    report: Report, evaluations: tuple[Evaluation, ...]
) -> None:
    one = evaluations[0]
    logits = report.rows[one.row].test_logits
    assert one.binary is not None
    held, at = one.binary.thresholds, one.binary.chosen[0].at
    p, truth = probability_of(report, one), logits.label == 1
    found = bootstrap(p, truth, np.array(logits.patient_id))
    assert found.sensitivity is not None
    assert found.specificity is not None
    told = [
        (f"{held.sensitivity[0][at]:.3f}", f"{held.sensitivity[1][at]:.3f}"),
        (f"{held.specificity[0][at]:.3f}", f"{held.specificity[1][at]:.3f}"),
        (f"{held.accuracy[0][at]:.1f}", f"{held.accuracy[1][at]:.1f}"),
    ]
    assert told == [
        (f"{found.sensitivity.low:.3f}", f"{found.sensitivity.high:.3f}"),
        (f"{found.specificity.low:.3f}", f"{found.specificity.high:.3f}"),
        (f"{100 * found.accuracy.low:.1f}", f"{100 * found.accuracy.high:.1f}"),
    ]
    interval = report.rows[one.row].figures("test").interval("auc")
    assert interval is not None
    assert one.binary.auc == (interval.value, interval.low, interval.high)


def test_curves_bins_and_histogram_are_of_the_heads_probabilities(
    report: Report, evaluations: tuple[Evaluation, ...]
) -> None:
    for one in evaluations:
        row, binary = report.rows[one.row], one.binary
        assert binary is not None
        truth, p = row.test_logits.label == 1, probability_of(report, one)
        false, true, _ = roc_curve(truth, p)
        assert binary.roc[0] == pytest.approx(false, abs=1e-4)
        assert binary.roc[1] == pytest.approx(true, abs=1e-4)
        assert binary.val_roc is not None
        assert binary.val_roc[0][-1] == 1
        place, low, high = (np.array(side) for side in binary.roc_band)
        assert np.all(low <= high)
        assert len(place) == 101
        for told, bins in (
            (binary.reliability, reliability(p, truth)),
            (binary.reliability_scaled, reliability(scaled(row.test_logits, row.row.best, binary.temperature), truth)),
        ):
            assert sum(one.n for one in told) == len(truth)
            for shown, exact in zip(told, bins, strict=True):
                assert (shown.probability, shown.positive) == pytest.approx(
                    (exact.probability, exact.positive), abs=1e-4
                )
                ends = wilson(exact.positive, exact.n)
                assert (shown.low, shown.high) == pytest.approx((ends.low, ends.high), abs=1e-4)
        negative, positive = binary.histogram
        for counts, of in ((negative, p[~truth]), (positive, p[truth])):
            assert sum(counts) == len(of)
            assert counts[-1] == int((of >= 0.95).sum())
        assert np.array(one.confusion).tolist() == confusion_matrix(truth, p >= 0.5).tolist()


def scaled(split: SplitLogits, best: int, temperature: float) -> NDArray[np.float64]:
    return probabilities(split.logits[best] / temperature)[:, 1]


def test_the_evaluated_rows_are_selected_ensembles_and_each_backbones_best_first(report: Report) -> None:
    places = evaluated_rows(report)
    assert sorted(places) == list(range(len(report.rows)))  # fewer than twelve: all of them
    assert report.rows[places[0]].selected
    few = [report.rows[place].row for place in evaluated_rows(report, 4)]
    assert any(row.ensemble and row.ensemble.kind == "backbones" for row in few)

    def loss(row: Row) -> float:
        return float(np.mean([metrics.loss for metrics in row.metrics["clean"]]))

    for backbone in ("resnet50", "vgg19"):
        rivals = [one.row for one in report.rows if not one.row.ensemble and one.row.records[0].backbone == backbone]
        mine = [row for row in few if row.ensemble is None and row.records[0].backbone == backbone]
        assert loss(mine[0]) == min(map(loss, rivals))


def test_test_has_no_say_in_which_rows_are_evaluated(report: Report) -> None:
    turned = [replace(row, test_logits=replace(row.test_logits, logits=-row.test_logits.logits)) for row in report.rows]
    for most in range(1, 9):
        assert evaluated_rows(replace(report, rows=tuple(turned)), most) == evaluated_rows(report, most)


def test_more_than_two_classes_have_a_confusion_matrix_and_no_curves(tmp_path: Path) -> None:
    logits = split_logits(1, 30, 3)
    classes = ("NORMAL", "PNEUMONIA", "TUBERCULOSIS")
    record = head(val=evaluate(logits.logits[0], logits.label))
    saved(tmp_path, run(record, classes=classes), logits, logits)
    page = page_of(tmp_path, Shown(rule="youden"))
    assert not page.binary
    assert page.evaluations[0].binary is None
    assert page.rows[0].drop is None  # no class is positive, so no rule has a threshold
    decided = logits.logits[0].argmax(axis=1)
    assert np.array(page.evaluations[0].confusion).tolist() == confusion_matrix(logits.label, decided).tolist()


def test_a_test_of_one_class_alone_has_no_curves(tmp_path: Path) -> None:
    logits = split_logits(1, 20)
    alone = replace(logits, label=np.ones(20, np.int64))
    saved(tmp_path, run(head(val=evaluate(logits.logits[0], logits.label))), logits, alone)
    page = page_of(tmp_path)
    assert not page.binary
    assert page.evaluations[0].confusion[0] == (0, 0)


# ---- where it comes from


def test_provenance_counts_images_and_patients_and_tells_the_spec_of_every_store(tmp_path: Path) -> None:
    store = write_store(tmp_path, images())
    note_pass(store.path, PASS)
    made: dict[str, Any] = {"backbone": "synthetic", "fingerprint": store.fingerprint, "views": 2}
    fitted(tmp_path, replace(BASE, l2=1e-4), BASE, **made)
    page = build_page(build_report(tmp_path), tmp_path, command="cxr report --html page.html")
    (divided,) = page.provenance.splits
    train, val, test = divided.counts
    assert divided.name == "patient split"
    assert (train.images, val.images, test.images) == (4173, 60, 60)
    assert (test.of_class, test.patients) == ((30, 30), 30)
    (run_,) = page.provenance.runs
    assert {one.name: one.value for one in run_.varied}["l2"] == "0, 0.0001"
    assert run_.heads_per_second == pytest.approx(2 / 1.5)
    (told,) = page.provenance.stores
    assert told.images == len(images())
    spec: dict[str, Any] = json.loads(store.spec.to_json())
    assert {one.name for one in told.spec} == spec.keys() - {"backbone"}
    assert {one.name: one.value for one in told.spec}["image_size"] == "32"
    assert told.made_with == "cxr extract --backbone synthetic --views 2"
    (words,) = told.passes
    assert words.startswith("2026-01-01T00:00:00+00:00: 90 images × 2 views, 2 backbones in 12.5 s, 7.6 img/s, limited")
    assert words.endswith("by compute, on a processor, 2 threads")


def test_classes_and_patients_of_train_are_told_where_a_store_holds_the_runs_very_images(tmp_path: Path) -> None:
    table = images(films=2)
    store = write_store(tmp_path, table)
    made: dict[str, Any] = {"backbone": "synthetic", "fingerprint": store.fingerprint}
    fitted(tmp_path, BASE, **made, images_sha256=images_sha256(table), split_rule="folders", n=60)
    train = page_of(tmp_path).provenance.splits[0].counts[0]
    rows = table.split == "train"
    assert train.of_class == tuple(np.bincount(table.label[rows]).tolist())
    assert train.patients == len(set(table.patient_id[rows]))


def test_a_store_that_is_gone_takes_no_row_with_it(tmp_path: Path) -> None:
    fitted(tmp_path, BASE, backbone="a+b", fingerprint=f"{'1' * 64}+{'2' * 64}")
    page = page_of(tmp_path)
    assert [(store.backbone, store.spec, store.images) for store in page.provenance.stores] == [
        ("a", (), None),
        ("b", (), None),
    ]


def test_the_notes_are_the_terminals(report: Report, dataset: Path) -> None:
    assert build_page(report, dataset, most=1).notes == tuple(notes(report, paper=True))


def test_static_figures_stand_for_the_selected_row_and_learning_curves_for_the_first_that_was_trained(
    report: Report,
) -> None:
    static = static_figures(report, evaluated_rows(report))
    places = evaluated_rows(report)
    trained = next(place for place in places if report.rows[place].row.chosen)
    words = [one.words for one in static]
    assert report.rows[trained].name in words[0]
    assert all(report.rows[places[0]].name in one for one in words[1:])
    assert all(one.source.startswith("data:image/svg+xml;base64,") for one in static)
    assert static_figures(report, places) == static  # the same bytes again
