"""What came of it: ``make results`` fits the heads of ``bench/kermany.toml`` and writes ``docs/results.md``.

It wants the four stores that the file names, of eight views, and reads the run back where it is there. The rule that
chooses, and the operating point, were written into docs/log.md before this test was read; others stand beside them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from bench.machine import describe
from featcache import atomic
from featcache.settings import load_settings
from featcache.workspace import dataset_folder, present_table
from heads.choosing.selection import SELECTION_RULES
from heads.experiments.experiment import run_grids
from heads.experiments.grid_file import declared_grid
from heads.experiments.runs import Outcome
from heads.reporting.report import Report, ReportRow, build_report
from heads.reporting.tables import Shown, markdown
from heads.statistics.metrics import decide as decided_at
from heads.statistics.metrics import probabilities
from heads.statistics.operating_point import choose

GRID = Path(__file__).parent / "kermany.toml"
RESULTS = Path(__file__).parents[1] / "docs" / "results.md"
RULE, POINT = "worst", "sensitivity>=0.95"

INTRODUCTION = """\
# Results

Kermany's chest radiographs (224×224 copies of all 5,856), patient-disjoint split ({train} train, {val} val, {test}
official test images), four small frozen backbones whose ImageNet weights could be had offline, 8 views, 5 seeds.
Written by `make results`. What is chosen is chosen on train and val alone; rule and operating point were written into
the [log](log.md) before these heads were tried on test. Other heads had been, an hour before, at all operating points:
the log says so, and with what.

```
cxr extract -b efficientnet_lite0 -b efficientnet_lite2 -b torchvision:squeezenet1_1 -b mobilenetv2_100@pad_type=same \\
    --weights pretrained --weights pretrained --weights squeezenet1_1.safetensors \\
    --weights mobilenetv2_100_same.safetensors --views 8
cxr grid --file bench/kermany.toml --select worst
cxr report --select worst --ensembles --view-mean --operating-point 'sensitivity>=0.95' --paper
make results DATA=chest_xray                # all but the extraction, and this page
```
"""

CLOSING = """
In brackets 95 % intervals. Test loss {loss:.4f}; expected calibration error {error:.3f}, and {scaled:.3f} at the
temperature of val. The study does not say how its threshold, epoch or row was chosen.
"""


def main() -> None:
    """Fit or read back, and write the page."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--data", type=Path, required=True, help="Kermany's set")
    arguments.add_argument("--cache", type=Path, help="where the stores lie")
    given = arguments.parse_args()
    settings = load_settings({"data": given.data, "cache": given.cache, "select": RULE})
    dataset = dataset_folder(settings)
    declared = declared_grid(GRID, None, settings, {})
    grids = declared.over(dataset)
    images, _ = present_table(settings, [grid.source for grid in grids])
    outcome = run_grids(grids, dataset, table=images, rule=declared.settings.split, select=RULE)
    started = time.perf_counter()
    run = [outcome.record.run_id]
    reports = {rule: build_report(dataset, run, rule=rule, ensembles=True) for rule in SELECTION_RULES}
    plain = build_report(dataset, run, rule=RULE)
    seconds = (time.perf_counter() - started) / (len(reports) + 1)
    text = page(outcome, reports, plain, seconds)
    atomic.write_text(RESULTS, text)
    print(text)


def page(outcome: Outcome, reports: dict[str, Report], plain: Report, seconds: float) -> str:
    """The page's text."""
    report = reports[RULE]
    n = outcome.record.n
    fitting, heads = outcome.record.seconds, len(outcome.record.heads)
    folds = "and their configurations once more without each of seven folds"
    lines = [
        INTRODUCTION.format(**n),
        *describe(),
        f"{heads} heads, {folds}: {fitting:.0f} s; a report with ensembles: {seconds:.0f} s.",
        "",
        "## What counts",
        "",
        *_verdict(report),
        "",
        "## What each rule chooses, and what test says of it",
        "",
        f"Mean over the views; operating point `{POINT}` of val. A rule picks an ensemble's members too. The rules: "
        + "; ".join(f"`{rule}`: {words}" for rule, words in SELECTION_RULES.items())
        + ".",
        "",
        *_rules(reports),
        "",
        "## Ensembles over backbones, seed by seed",
        "",
        *_seeds(report),
        "",
        f"## Every row at `{POINT}`, mean over the views",
        "",
        markdown(plain, Shown(paper=True, view_mean=True, rule=POINT)),
        "## The same at 0.5, clean view: as the study counts",
        "",
        markdown(plain, Shown(paper=True)),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _verdict(report: Report) -> list[str]:
    (row,) = report.selected
    figures = row.figures("test", view_mean=True)
    at: list[str] = []
    for name, rule in ((f"**{POINT}** (the rule)", POINT), ("0.5", None), ("youden", "youden"), ("f1", "f1")):
        decided = [_of(row, figure, rule) for figure in ("sensitivity", "specificity", "f1")]
        at.append(f"| {name} | {_percent(row, 'accuracy', rule)} | {' | '.join(decided)} | {_of(row, 'auc', None)} |")
    members = f", of {', '.join(row.row.ensemble.of)}" if row.row.ensemble else ""
    return [
        f"Selected by `{RULE}`: **{row.name}**{members}.",
        "",
        "| decided at | test accuracy | sensitivity | specificity | F1 | AUC |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *at,
        "| *the study's best row, ResNet50 + L2* | *92.34* | | | | |",
        "| *the study's final ResNet50 + L2* | *91.51* | *0.9205* | *0.9060* | *0.9313* | *0.9706* |",
        "",
        CLOSING.strip().format(
            loss=figures.figure("loss")[0],
            error=figures.calibration.expected_calibration_error,
            scaled=figures.scaled.expected_calibration_error,
        ),
    ]


def _rules(reports: dict[str, Report]) -> list[str]:
    lines = [
        "| rule | chooses | its score | val accuracy | test accuracy at 0.5 | test accuracy at the point | AUC |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for rule, report in reports.items():
        for scope in ("single rows", "with ensembles"):
            row = _chosen(report, rule, single=scope == "single rows")
            score = row.row.candidate.scores[rule]
            members = f": {'; '.join(row.row.ensemble.of)}" if row.row.ensemble else ""
            lines.append(
                f"| `{rule}`, {scope} | {row.name}{members} | {sum(score) / len(score):.4f} | "
                f"{_percent(row, 'accuracy', None, split='val')} | {_percent(row, 'accuracy', None)} | "
                f"{_percent(row, 'accuracy', POINT)} | {_of(row, 'auc', None)} |"
            )
    return lines


def _chosen(report: Report, rule: str, *, single: bool) -> ReportRow:
    rows = [row for row in report.rows if not single or row.row.ensemble is None]
    return min(rows, key=lambda row: np.mean(row.row.candidate.scores[rule]))


def _seeds(report: Report) -> list[str]:
    """Ensembles over backbones of one seed each: how much of a figure is luck of the seed."""
    lines = [
        "| ensemble | test AUC | test accuracy at 0.5 | at the point | sensitivity | specificity |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    by_name = {row.name: row for row in report.rows}
    for row in report.rows:
        if row.row.ensemble is None or row.row.ensemble.kind != "backbones":
            continue
        members = [by_name[name] for name in row.row.ensemble.of]
        found = np.array([_one_seed(members, row, seed) for seed in range(min(one.row.seeds for one in members))])
        mean, deviation = found.mean(0), found.std(0, ddof=1)
        shown = [f"{m * s:.{d}f} ± {e * s:.{d}f}" for m, e, s, d in zip(mean, deviation, *_SCALES, strict=True)]
        named = f"{row.name} ({'; '.join(row.row.ensemble.of)}), one seed each"
        lines.append(f"| {named} | {' | '.join(shown)} |")
    return lines


_SCALES = ((1, 100, 100, 1, 1), (4, 2, 2, 4, 4))


def _one_seed(members: Sequence[ReportRow], ensemble: ReportRow, seed: int) -> tuple[float, ...]:
    scales = [member.scale["view_mean"] for member in ensemble.row.members]
    positive = ensemble.row.run.positive

    def probability(splits: Sequence[np.ndarray]) -> np.ndarray:
        mean = np.mean([logits[seed] / scale for logits, scale in zip(splits, scales, strict=True)], axis=0)
        return probabilities(mean)[:, positive]

    val = probability([member.row.val.logits_view_mean for member in members])
    test = probability([member.test_logits.logits_view_mean for member in members])
    truth = {"val": ensemble.row.val.label == positive, "test": ensemble.test_logits.label == positive}
    point = choose(val, truth["val"], POINT)
    half, at = (decided_at(test, truth["test"], threshold) for threshold in (0.5, point.threshold))
    area = float(roc_auc_score(truth["test"], test))
    assert at.sensitivity is not None
    assert at.specificity is not None
    return area, half.accuracy, at.accuracy, at.sensitivity, at.specificity


def _of(row: ReportRow, name: str, rule: str | None, *, split: str = "test", scale: float = 1, digits: int = 4) -> str:
    figures = row.figures(split, view_mean=True)
    values = [value for value in figures.figure(name, rule) if value is not None]
    interval = figures.interval(name, rule)
    spread = f" ± {np.std(values, ddof=1) * scale:.{digits}f}" if len(values) > 1 else ""
    ends = f" ({interval.low * scale:.{digits}f}–{interval.high * scale:.{digits}f})" if interval else ""
    return f"{np.mean(values) * scale:.{digits}f}{spread}{ends}"


def _percent(row: ReportRow, name: str, rule: str | None, *, split: str = "test") -> str:
    return _of(row, name, rule, split=split, scale=100, digits=2)


if __name__ == "__main__":
    main()
