"""What stands below the table: what was selected and how, what test says of it, and warnings."""

from __future__ import annotations

from heads.choosing.selection import OPERATING_RULES, SELECTION_RULES
from heads.reporting.comparison import SIGNIFICANT
from heads.reporting.figures import DECIDED, Figures
from heads.reporting.paper import PAPER_FINAL
from heads.reporting.report import Report, ReportRow
from heads.statistics.intervals import Interval
from heads.statistics.metrics import Confusion
from heads.statistics.paired import PairedTest


def notes(report: Report, *, paper: bool = False, view_mean: bool = False, rule: str | None = None) -> list[str]:
    """The notes, each a line.

    Args:
        report: the rows.
        paper: tell of the study's final head.
        view_mean: of the mean logit over the views instead of the clean view.
        rule: at whose operating points the table shows decisions; None for 0.5.
    """
    lines: list[str] = []
    if rule is not None and any(rule in row.figures("test", view_mean=view_mean).points for row in report.rows):
        lines.append(f"accuracy, sensitivity, specificity and F1 are at the operating point {rule}, chosen on val")
    for row in report.selected:
        lines += _selected(report, row, view_mean=view_mean, rule=rule)
    lines += _tests(report, view_mean=view_mean, rule=rule)
    for row in report.rows:
        if row.row.ensemble is not None and row.row.ensemble.kind == "backbones":
            lines.append(
                f"{row.name}: mean of the logits, each divided by its temperature: {'; '.join(row.row.ensemble.of)}"
            )
    if paper:
        lines.append(PAPER_FINAL)
    return [*lines, *report.warnings]


def _selected(report: Report, row: ReportRow, *, view_mean: bool, rule: str | None) -> list[str]:
    test, best = row.figures("test", view_mean=view_mean), row.row.best
    lines = [f"selected on train and val alone ({SELECTION_RULES[report.decision.rule]}): {row.name}"]
    chosen = row.row.chosen
    whose = [f"seed {chosen.config.seed}"] if chosen and row.row.seeds > 1 else []
    whose += ["mean over the views"] if view_mean else []
    whose += ["95 % intervals by patient"]
    confusion = test.metrics[best].confusion
    if confusion is not None:
        figures = f"AUC {_ranged(test.interval('auc'))}; at threshold 0.5 {_decided(test, None)}, {_counts(confusion)}"
        lines.append(f"it on test ({', '.join(whose)}): {figures}")
    # Rules that chose one threshold share a line.
    cuts: dict[float, list[str]] = {}
    for name in dict.fromkeys((*OPERATING_RULES, *([rule] if rule else []))):
        if name in test.points:
            cuts.setdefault(test.points[name].points[best].threshold, []).append(name)
    for cut, rules in cuts.items():
        counts = _counts(test.points[rules[0]].figures[best].confusion)
        lines.append(
            f"it at {', '.join(rules)} (threshold {cut:.3f}, chosen on val): {_decided(test, rules[0])}, {counts}"
        )
    before, after = test.calibration, test.scaled
    temperature = row.row.choices["view_mean" if view_mean else "clean"].temperature
    lines.append(
        f"its calibration on test: expected calibration error {before.expected_calibration_error:.3f}, Brier score "
        f"{before.brier:.3f}, loss {before.loss:.3f}; at the temperature {temperature:.2f} fitted on val "
        f"{after.expected_calibration_error:.3f}, {after.brier:.3f}, {after.loss:.3f}"
    )
    if row.gain_of_views is not None:
        gains = []
        for split, gain in row.gain_of_views.items():
            auc = f"AUC {_difference(gain.auc, 1, 3)}, " if gain.auc else ""
            gains.append(f"on {split} {auc}accuracy {_difference(gain.accuracy, 100, 1)}")
        lines.append(f"its mean over the views less its clean view: {'; '.join(gains)}")
    return lines


def _tests(report: Report, *, view_mean: bool, rule: str | None) -> list[str]:
    pairs = [row.against_selected["view_mean" if view_mean else "clean"] for row in report.rows]
    compared = [pair for pair in pairs if pair is not None]
    if not compared:
        return []
    decided = [pair.accuracy if rule is None else pair.points.get(rule) for pair in compared]
    aucs = sum(pair.auc is not None and pair.auc.significant for pair in compared)
    accuracies = sum(one is not None and one.significant for one in decided)
    how = f"DeLong, McNemar; p < {SIGNIFICANT} after Holm's correction for the rows"
    rows = f"of {len(compared)} other row{'s' * (len(compared) > 1)}"
    if not aucs + accuracies:
        return [f"{rows} none differs from the selected one on test, in AUC or accuracy ({how})"]
    return [f"marked *: {rows} {aucs} differ from the selected one on test in AUC, {accuracies} in accuracy ({how})"]


def _decided(figures: Figures, rule: str | None) -> str:
    names = {"accuracy": "accuracy", "sensitivity": "sensitivity", "specificity": "specificity", "f1": "F1"}
    told = [
        f"{names[name]} {_ranged(figures.interval(name, rule), 100 if name == 'accuracy' else 1)}" for name in DECIDED
    ]
    return ", ".join(told)


def _ranged(interval: Interval | None, scale: int = 1) -> str:
    if interval is None:
        return "–"
    digits = 1 if scale == 100 else 3
    value, low, high = (f"{end * scale:.{digits}f}" for end in (interval.value, interval.low, interval.high))
    return f"{value} ({low}–{high})"


def _difference(test: PairedTest, scale: int, digits: int) -> str:
    value, low, high = (
        f"{end * scale:+.{digits}f}" for end in (test.difference.value, test.difference.low, test.difference.high)
    )
    return f"{value} ({low} to {high}{'' if test.p is None else f', p = {test.p:.2g}'})"


def _counts(confusion: Confusion) -> str:
    return f"TN {confusion.tn}, FP {confusion.fp}, FN {confusion.fn}, TP {confusion.tp}"
