"""The comparison table: what val chose, then what test says of it, with intervals and paired tests.

The order is the point: ``decide`` is done before ``open_test`` is called, and no figure of test goes back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from heads.choosing.decision import Decision, decide
from heads.choosing.row_names import TRANSDUCTIVE
from heads.choosing.rows import Row
from heads.experiments.split_logits import KINDS, Kind, SplitLogits
from heads.reporting.comparison import AgainstSelected, Gain, against_selected, gain_of_views
from heads.reporting.figures import Figures, figures_json, figures_of, points_json, spread
from heads.reporting.sealed import open_test
from heads.statistics.intervals import Resamples
from heads.statistics.metrics import evaluate

SUFFIX: dict[Kind, str] = {"clean": "", "view_mean": "_view_mean"}
"""How the keys of the JSON tell the kinds of logits apart."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportRow:
    """A row with its figures.

    Attributes:
        row: what val knows and chose of it.
        test_logits: its logits on test.
        val: figures by kind of logits.
        test: likewise.
        against_selected: paired tests on test against the selected row, by kind; None where there are none.
        gain_of_views: of a selected row with several views, by split.
    """

    row: Row
    test_logits: SplitLogits
    val: Mapping[Kind, Figures]
    test: Mapping[Kind, Figures]
    against_selected: Mapping[Kind, AgainstSelected | None]
    gain_of_views: Mapping[str, Gain] | None

    @property
    def name(self) -> str:
        """What the table calls it."""
        return self.row.name

    @property
    def selected(self) -> bool:
        """Whether val chose this row."""
        return self.row.selected

    def figures(self, split: str, *, view_mean: bool = False) -> Figures:
        """Figures of ``val`` or ``test``, of the clean view or of the mean over the views."""
        return (self.val if split == "val" else self.test)["view_mean" if view_mean else "clean"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """All rows of a data set.

    Attributes:
        decision: what val chose.
        rows: in the decision's order.
        warnings: what a reader must know before trusting a figure.
    """

    decision: Decision
    rows: tuple[ReportRow, ...]
    warnings: tuple[str, ...]

    @property
    def dataset(self) -> str:
        """The data set's name."""
        return self.decision.dataset

    @property
    def selected(self) -> tuple[ReportRow, ...]:
        """The rows that val chose, one a split."""
        return tuple(row for row in self.rows if row.selected)

    def trained(self, row: ReportRow) -> list[ReportRow]:
        """The row, if it was trained; of an ensemble the rows that it is the mean of."""
        if row.row.ensemble is None:
            return [row]
        members = [one for one in self.rows if one.name in row.row.ensemble.of]
        return [trained for one in members for trained in self.trained(one)]

    def to_json(self) -> dict[str, Any]:
        """The stable form that ``cxr report --json`` prints."""
        rows = [_row_json(row) for row in self.rows]
        return {
            "dataset": self.dataset,
            "selected_by": self.decision.rule,
            "rows": rows,
            "warnings": list(self.warnings),
        }


def build_report(
    dataset: Path,
    run_ids: Sequence[str] = (),
    *,
    rule: str | None = "clean",
    ensembles: bool = False,
    operating_rules: Sequence[str] = (),
) -> Report:
    """Decide by val, then open test, and give every row its figures.

    Args:
        dataset: ``cache/<dataset>``.
        run_ids: take these runs only.
        rule: by which rows are selected, of ``heads.choosing.selection.SELECTION_RULES``; None: see
            ``heads.choosing.decision.decide``.
        ensembles: add rows of ensembles.
        operating_rules: beside ``heads.choosing.selection.OPERATING_RULES``.

    Raises:
        RunError: no runs, an unknown run, or a damaged one.
    """
    decision = decide(dataset, run_ids, rule=rule, ensembles=ensembles, operating_rules=operating_rules)
    tests = open_test(decision)
    drawn: dict[Any, Resamples] = {}
    pairs = {kind: against_selected(decision.rows, tests, kind) for kind in KINDS}
    # Many small products: to share each among threads would take longer than to compute it.
    with threadpool_limits(1, user_api="blas"):
        rows = [
            ReportRow(
                row=row,
                test_logits=test,
                val={kind: _figures(row, row.val, kind, drawn, on_val=True) for kind in KINDS},
                test={kind: _figures(row, test, kind, drawn, on_val=False) for kind in KINDS},
                against_selected={kind: pairs[kind][number] for kind in KINDS},
                gain_of_views=_gains(row, test),
            )
            for number, (row, test) in enumerate(zip(decision.rows, tests, strict=True))
        ]
    return Report(decision=decision, rows=tuple(rows), warnings=tuple(_warnings(decision)))


def _figures(row: Row, split: SplitLogits, kind: Kind, drawn: dict[Any, Resamples], *, on_val: bool) -> Figures:
    """A row's figures; rows of the same images share the resamples of their patients."""
    positive = row.run.positive
    key = (positive, split.image_id, split.patient_id, split.label.tobytes())
    if key not in drawn:
        drawn[key] = Resamples(split.label == positive, split.patient)
    logits = split.of(kind)
    return figures_of(
        split,
        logits,
        row.metrics[kind] if on_val else tuple(evaluate(head, split.label, positive) for head in logits),
        drawn[key],
        positive=positive,
        best=row.best,
        temperature=row.choices[kind].temperature,
        points=row.choices[kind].operating_points,
        with_intervals=not on_val,
    )


def _gains(row: Row, test: SplitLogits) -> dict[str, Gain] | None:
    if not row.selected or np.array_equal(row.val.logits, row.val.logits_view_mean):
        return None
    return {"val": gain_of_views(row, row.val), "test": gain_of_views(row, test)}


def _warnings(decision: Decision) -> list[str]:
    rows, notes = decision.rows, list(decision.notes)
    straddling = {row.run.split_rule: row.run.straddling for row in rows if row.run.straddling}
    notes += [
        f"{patients} patients have images in both train and val of the {rule} split: its val figures flatter"
        for rule, patients in straddling.items()
    ]
    if any(row.transductive for row in rows):
        notes.append(
            f"rows marked {TRANSDUCTIVE} saw all images of val and test, without labels, and cannot judge a single film"
        )
    if len({row.split for row in rows}) > 1:
        notes.append("the rows stand on different splits: compare val figures within a split only")
    if len({row.run.images_sha256 for row in rows}) > 1:
        notes.append("the images or labels changed between the runs: run 'cxr fit-head' again to compare the rows")
    if min(row.run.n["val"] for row in rows) < 100:
        notes.append(f"val has only {min(row.run.n['val'] for row in rows)} images: what it selects is mostly chance")
    return notes


def _row_json(one: ReportRow) -> dict[str, Any]:
    row = one.row
    config = {key: value for key, value in row.config.to_json().items() if key != "seed"} if row.config else None
    first = row.records[0] if row.records else None
    ensemble = {"kind": row.ensemble.kind, "of": list(row.ensemble.of)} if row.ensemble else None
    held: dict[str, Any] = {
        "name": row.name,
        "backbone": first.backbone if first else None,
        "fingerprint": first.fingerprint if first else None,
        "run": row.run.run_id if first else None,
        "heads": list(row.members[0].heads) if first else None,
        "head": config,
        "views": first.views if first else None,
        "transductive": row.transductive,
        "ensemble": ensemble,
        "split": row.run.split_rule,
        "split_seed": row.run.split_seed,
        "positive": row.run.classes[row.run.positive],
        "seeds": row.seeds,
        "selected": row.selected,
        "n": row.run.n,
        "straddling_patients": row.run.straddling,
    }
    penalty = None if row.ensemble else spread([record.penalty for record in row.records])
    for kind, suffix in SUFFIX.items():
        pair = one.against_selected[kind]
        held[f"val{suffix}"] = figures_json(one.val[kind])
        held[f"test{suffix}"] = figures_json(one.test[kind]) | ({} if suffix else {"penalty": penalty})
        held[f"temperature{suffix}"] = row.choices[kind].temperature
        held[f"operating_points{suffix}"] = points_json(one.test[kind], one.val[kind])
        held[f"against_selected{suffix}"] = pair.to_json() if pair else None
    gain = one.gain_of_views
    return {**held, "gain_of_views": {split: found.to_json() for split, found in gain.items()} if gain else None}
