"""The test split, opened once everything is chosen: the only module that reads the logits of test."""

from __future__ import annotations

import functools
from pathlib import Path

from heads.choosing.decision import Decision
from heads.choosing.rows import logits_of
from heads.experiments.split_logits import SplitLogits, read_logits


def open_test(decision: Decision) -> tuple[SplitLogits, ...]:
    """Logits of test, of each row of a finished decision, in its order.

    A decision cannot be had without every choice made, and this module cannot be reached from what makes them
    (docs/adr/0006-sealed-test.md).

    Raises:
        RunError: a run's logits of test are missing or damaged, or the images of an ensemble's members differ.
    """
    load = functools.cache(_load)
    return tuple(logits_of(row.members, load, averaged=row.ensemble is not None) for row in decision.rows)


def _load(folder: Path) -> SplitLogits:
    return read_logits(folder / "test.npz")
