"""All that is chosen for a report, by train and val: rows, the selected ones, temperatures, thresholds, ensembles.

Neither this module nor anything that it imports can reach ``heads.reporting.sealed``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from featcache.errors import RunError
from heads.choosing.ensembles import ensemble_rows
from heads.choosing.rows import Row, held_out_scores, read_rows
from heads.choosing.selection import FOLD_RULES, OPERATING_RULES, Choices, select, settle
from heads.experiments.held_out import load_held_out
from heads.experiments.runs import load_logits
from heads.experiments.split_logits import KINDS, Kind


@dataclass(frozen=True, kw_only=True, eq=False)
class Decision:
    """What was chosen, finished: whoever shows it to ``heads.reporting.sealed`` may read the logits of test.

    Attributes:
        dataset: the data set's name.
        rule: by which rows were selected, of ``selection.SELECTION_RULES``.
        operating_rules: whose thresholds the rows have.
        rows: in the order split, backbone, configuration; ensembles last.
        notes: what a reader must know of what was left out.
    """

    dataset: str
    rule: str
    operating_rules: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def selected(self) -> tuple[Row, ...]:
        """The rows that val chose, one a split: val losses compare within a split only."""
        return tuple(row for row in self.rows if row.selected)


def decide(
    dataset: Path,
    run_ids: Sequence[str] = (),
    *,
    rule: str | None = "clean",
    ensembles: bool = False,
    operating_rules: Sequence[str] = (),
) -> Decision:
    """Read the runs of a data set, without their test logits, and choose.

    Args:
        dataset: ``cache/<dataset>``.
        run_ids: take these runs only.
        rule: of ``selection.SELECTION_RULES``; None takes ``worst`` where all rows were fitted with folds held out,
            else ``views``.
        ensembles: add rows of ensembles, which may be selected too.
        operating_rules: beside ``selection.OPERATING_RULES``.

    Raises:
        RunError: no runs, an unknown run, or a damaged one; or no row of a split has the rule's score.
    """
    load = functools.cache(load_logits)
    rows, notes = read_rows(dataset, run_ids, load)
    load_folds = functools.cache(load_held_out)
    rows = [replace(row, held_out=held_out_scores(row.members, load_folds)) for row in rows]
    lacking = sum(not row.held_out for row in rows)
    if rule is None:
        rule = "views" if lacking else "worst"
        if 0 < lacking < len(rows):
            notes.append(
                f"selected by views, not worst: {lacking} of {len(rows)} rows were fitted without held-out folds"
            )
    elif rule in FOLD_RULES and lacking:
        notes.append(
            f"{lacking} of {len(rows)} rows were fitted without held-out folds and cannot be selected by {rule}"
        )
    if ensembles:
        rows += ensemble_rows(rows, load, load_folds, rule)
    rules = tuple(dict.fromkeys((*OPERATING_RULES, *operating_rules)))
    rows = [replace(row, choices={kind: _choices(row, kind, rules) for kind in KINDS}) for row in rows]
    for split in dict.fromkeys(row.split for row in rows):
        members = [number for number, row in enumerate(rows) if row.split == split]
        try:
            choice = members[select([rows[number].candidate for number in members], rule)]
        except ValueError as error:
            raise RunError(
                f"no head in {dataset} has what --select {rule} compares: run 'cxr fit-head --select {rule}'"
            ) from error
        rows[choice] = replace(rows[choice], selected=True)
    return Decision(dataset=dataset.name, rule=rule, operating_rules=rules, rows=tuple(rows), notes=tuple(notes))


def _choices(row: Row, kind: Kind, rules: Sequence[str]) -> Choices:
    val = row.val
    return settle(val.of(kind), val.label, positive=row.run.positive, best=row.best, rules=rules)
