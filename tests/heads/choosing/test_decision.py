"""What is chosen is chosen without test: the files of test may be missing, or hold anything."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import fitted, head, metrics, run, saved

from featcache.errors import OutdatedRunError, RunError
from heads.choosing.decision import Decision, decide
from heads.choosing.selection import OPERATING_RULES, settle
from heads.experiments.runs import load_logits
from heads.experiments.split_logits import KINDS
from heads.reporting.report import build_report
from heads.reporting.sealed import open_test
from heads.training.config import HeadConfig

BASE = HeadConfig()
SEEDS = [replace(BASE, l2=l2, seed=seed) for l2 in (0.0, 0.1) for seed in range(2)]


def chosen(decision: Decision) -> list[object]:
    """All that a decision says, without arrays."""
    return [
        (
            row.name,
            row.selected,
            row.best,
            row.ensemble,
            row.members,
            row.choices,
            row.metrics,
            row.val.logits.tobytes(),
        )
        for row in decision.rows
    ]


def two_backbones(dataset: Path) -> list[Path]:
    return [
        fitted(dataset, *SEEDS, seed=number, backbone=name, fingerprint=name.ljust(64, "x"), run_id=name)
        for number, name in enumerate(("one", "two"))
    ]


def spoil(folder: Path, how: str) -> None:
    """Make a run's logits of test say anything, or nothing."""
    path = folder / "test.npz"
    if how == "missing":
        path.unlink()
    elif how == "garbage":
        path.write_bytes(b"not a zip")
    else:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            held = {name: arrays[name] for name in arrays.files}
        buffer = io.BytesIO()
        np.savez(buffer, **{**held, "logits": -9 * held["logits"], "logits_view_mean": np.zeros_like(held["logits"])})
        path.write_bytes(buffer.getvalue())


@pytest.mark.parametrize("how", ["missing", "garbage", "reversed"])
@pytest.mark.parametrize("rule", ["clean", "views"])
def test_choices_are_the_same_whatever_the_files_of_test_hold(how: str, rule: str, tmp_path: Path) -> None:
    folders = two_backbones(tmp_path)
    before = chosen(decide(tmp_path, rule=rule, ensembles=True))
    assert len(before) == 4 + 4 + 1
    for folder in folders:
        spoil(folder, how)
    assert chosen(decide(tmp_path, rule=rule, ensembles=True)) == before
    if how == "reversed":
        report = build_report(tmp_path, rule=rule, ensembles=True)
        assert chosen(report.decision) == before
    else:
        with pytest.raises(RunError, match=r"test\.npz is damaged"):
            open_test(decide(tmp_path))


@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_no_logits_of_test_move_what_a_report_selects(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    dataset = tmp_path_factory.mktemp("cache")
    folder = fitted(dataset, *SEEDS, seed=seed, n=24, lean=0.5)
    first = chosen(build_report(dataset).decision)
    spoil(folder, "reversed")
    assert chosen(build_report(dataset).decision) == first


def test_test_logits_are_those_of_each_rows_heads(tmp_path: Path) -> None:
    two_backbones(tmp_path)
    decision = decide(tmp_path)
    for row, test in zip(decision.rows, open_test(decision), strict=True):
        (member,) = row.members
        with np.load(io.BytesIO((member.folder / "test.npz").read_bytes()), allow_pickle=False) as arrays:
            np.testing.assert_array_equal(test.logits, arrays["logits"][list(member.heads)])
            np.testing.assert_array_equal(test.logits_view_mean, arrays["logits_view_mean"][list(member.heads)])


def test_thresholds_and_temperature_are_of_the_kind_of_logits_they_are_for(tmp_path: Path) -> None:
    fitted(tmp_path, *SEEDS)
    decision = decide(tmp_path, operating_rules=["specificity>=0.9"])
    assert decision.operating_rules == (*OPERATING_RULES, "specificity>=0.9")
    for row in decision.rows:
        for kind in KINDS:
            expected = settle(
                row.val.of(kind), row.val.label, positive=1, best=row.best, rules=decision.operating_rules
            )
            assert row.choices[kind] == expected
        assert row.choices["clean"] != row.choices["view_mean"]


def test_the_rule_of_the_view_mean_selects_by_it(tmp_path: Path) -> None:
    heads = [
        head(replace(BASE, l2=l2), metrics(clean), val_view_mean=metrics(mean))
        for l2, clean, mean in ((0.1, 0.2, 0.3), (0.2, 0.3, 0.2))
    ]
    saved(tmp_path, run(*heads))
    for rule, l2 in (("clean", 0.1), ("views", 0.2)):
        (row,) = decide(tmp_path, rule=rule).selected
        assert row.config is not None
        assert row.config.l2 == l2


def test_a_run_of_an_older_format_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    fitted(tmp_path, BASE, run_id="new")
    saved(tmp_path, run(head(replace(BASE, l2=0.5)), run_id="old", format_version=1))
    decision = decide(tmp_path)
    assert [row.run.run_id for row in decision.rows] == ["new"]
    (note,) = decision.notes
    assert note.startswith("left out: ")
    assert "old/run.json has format 1, this cxr reads 2: delete " in note
    assert note.endswith("old and fit again")
    assert note in build_report(tmp_path).warnings
    with pytest.raises(OutdatedRunError, match="fit again"):
        decide(tmp_path, ["old"])


def test_runs_of_older_formats_alone_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        saved(tmp_path, run(head(), run_id=name, format_version=1))
    with pytest.raises(RunError, match=r"fit again \(2 runs are of older formats\)"):
        decide(tmp_path)


def test_a_record_of_more_heads_than_it_has_logits_of_is_damaged(tmp_path: Path) -> None:
    folder = fitted(tmp_path, BASE)
    val = load_logits(folder)
    saved(tmp_path, run(head(), head(replace(BASE, seed=1))), val, val)
    with pytest.raises(RunError, match="is damaged"):
        decide(tmp_path)
