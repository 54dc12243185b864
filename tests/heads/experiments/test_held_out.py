"""Heads fitted without whole folds of train and val, and what selection makes of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic import images, write_store

from featcache.errors import DataError, RunError, SettingsError
from featcache.folds import block_folds, series_folds
from featcache.images import ImageTable, strings
from featcache.splits import split
from heads.choosing.decision import decide
from heads.experiments import experiment
from heads.experiments.experiment import run_experiment
from heads.experiments.held_out import FOLDS_NAME, load_held_out
from heads.experiments.runs import Outcome
from heads.statistics.metrics import probabilities
from heads.training.config import HeadConfig
from heads.training.model import logits
from heads.training.samples import Samples
from heads.training.train import fit

LINEAR = HeadConfig(hidden=0, lr=0.05, epochs=4, patience=4, batch_size=24)
CONFIGS = (LINEAR, replace(LINEAR, l2=1e-2), replace(LINEAR, l2=1e-2, seed=1))


def two_series() -> ImageTable:
    """Half of the NORMALs bear another name, as films of another device do; the other class has one series."""
    table = images()
    renamed = [
        name.replace("NORMAL/", "NORMAL/IM-") if "/NORMAL/" in name and row % 2 else name
        for row, name in enumerate(table.image_id)
    ]
    return replace(table, image_id=strings(renamed))


@pytest.fixture
def outcome(tmp_path: Path) -> Outcome:
    store = write_store(tmp_path / "films", two_series())
    return run_experiment([store], tmp_path / "films", CONFIGS, select="worst")


def test_logits_of_a_fold_are_those_of_a_head_fitted_without_it(outcome: Outcome, tmp_path: Path) -> None:
    table = two_series()
    store = write_store(tmp_path / "again", table)
    divided = split(table, "patient")
    rows = np.sort(np.concatenate([divided.train, divided.val]))
    held = load_held_out(outcome.folder)
    assert held is not None
    folds = [*block_folds(table, rows), *series_folds(table, rows)]
    assert held.names == tuple(fold.name for fold in folds)
    assert held.kinds == ("blocks",) * 5 + ("series",) * 2
    for number in (1, 5):
        fold = folds[number]

        def part(chosen: np.ndarray) -> Samples:
            return Samples(features=store.views(table.image_id[chosen].tolist()), labels=table.label[chosen], classes=2)

        train, val = (part(np.intersect1d(fold.rest, of)) for of in (divided.train, divided.val))
        fitted = fit(train, val, CONFIGS[:2])
        mine = held.fold == number
        assert [name for name, is_mine in zip(held.split.image_id, mine, strict=True) if is_mine] == table.image_id[
            fold.held_out
        ].tolist()
        for head, one in enumerate(fitted):
            wanted = [
                logits(one.weights, store.features(table.image_id[fold.held_out].tolist(), view)) for view in (0, 1)
            ]
            np.testing.assert_allclose(held.split.logits[head, mine], wanted[0], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(
                held.split.logits_view_mean[head, mine], np.mean(wanted, axis=0), rtol=1e-5, atol=1e-5
            )


def test_no_image_of_test_is_in_a_fold_and_every_other_is_held_out_once_of_each_kind(outcome: Outcome) -> None:
    table = two_series()
    divided = split(table, "patient")
    held = load_held_out(outcome.folder)
    assert held is not None
    inside = sorted(table.image_id[np.concatenate([divided.train, divided.val])].tolist())
    for kind in ("blocks", "series"):
        of_kind = np.array([held.kinds[fold] == kind for fold in held.fold])
        assert sorted(np.array(held.split.image_id)[of_kind].tolist()) == inside


def test_heads_that_differ_in_the_seed_alone_share_what_is_held_out(outcome: Outcome) -> None:
    held = load_held_out(outcome.folder)
    assert held is not None
    np.testing.assert_array_equal(held.split.logits[1], held.split.logits[2])
    assert not np.array_equal(held.split.logits[0], held.split.logits[1])


def test_scores_are_mean_losses_of_folds_and_the_worst(outcome: Outcome) -> None:
    held = load_held_out(outcome.folder)
    assert held is not None
    z = held.split.logits_view_mean[0]
    right = probabilities(z)[np.arange(len(z)), held.split.label]
    losses = [-float(np.mean(np.log(right[held.fold == number]))) for number in range(7)]
    wanted = {"blocks": np.mean(losses[:5]), "series": np.mean(losses[5:]), "worst": max(losses)}
    assert held.scores(z) == pytest.approx(wanted)
    (row,) = [row for row in decide(outcome.folder.parents[1]).rows if row.seeds == 1]
    assert row.held_out == pytest.approx(wanted)


@pytest.mark.parametrize("rule", ["blocks", "series", "worst"])
def test_a_rule_of_folds_selects_the_row_of_the_lowest_score(rule: str, outcome: Outcome) -> None:
    decision = decide(outcome.folder.parents[1], rule=rule, ensembles=True)
    scores = {row.name: row.held_out[rule] for row in decision.rows}
    assert len(scores) == 3  # Two rows, and the mean of the seeds of one.
    (selected,) = decision.selected
    assert scores[selected.name] == min(scores.values())


def test_an_ensembles_scores_are_of_the_mean_of_its_members_logits(tmp_path: Path) -> None:
    table = two_series()
    stores = [write_store(tmp_path, table, name, seed=seed) for seed, name in enumerate(("one", "two"))]
    outcome = run_experiment(stores, tmp_path, [LINEAR], select="worst")
    held = load_held_out(outcome.folder)
    assert held is not None
    (row,) = [row for row in decide(tmp_path, rule="worst", ensembles=True).rows if row.ensemble]
    scales = [member.scale["view_mean"] for member in row.members]
    mean = np.mean([held.split.logits_view_mean[head] / scale for head, scale in enumerate(scales)], axis=0)
    assert row.held_out == pytest.approx(held.scores(mean))


def test_a_run_without_folds_is_another_run_and_has_no_such_scores(outcome: Outcome, tmp_path: Path) -> None:
    store = write_store(tmp_path / "plain", two_series())
    plain = run_experiment([store], tmp_path / "plain", CONFIGS)
    assert plain.record.run_id != outcome.record.run_id
    assert not (plain.folder / FOLDS_NAME).exists()
    with pytest.raises(RunError, match="run 'cxr fit-head --select worst'"):
        decide(tmp_path / "plain", rule="worst")


def test_progress_counts_the_folds_fits_too(tmp_path: Path) -> None:
    store = write_store(tmp_path, two_series())
    told: list[tuple[int, int, str]] = []
    run_experiment([store], tmp_path, CONFIGS, select="worst", on_progress=lambda *now: told.append(now))
    # Three heads of four epochs, and two configurations without each of seven folds.
    assert told[-1][:2] == (4 * (3 + 2 * 7),) * 2
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert told[-1][2].startswith("synthetic, fold 7 of 7: ")


def test_folds_want_patients_and_memory(tmp_path: Path) -> None:
    few = write_store(tmp_path / "few", images({"train": (4, 12), "test": (3, 3)}))
    with pytest.raises(DataError, match="NORMAL has 4 patients in train and val, too few for 5 held-out folds"):
        run_experiment([few], tmp_path / "few", [LINEAR], select="worst")
    many = write_store(tmp_path / "many", images({"train": (2000, 2000), "test": (3, 3)}))
    with pytest.raises(SettingsError, match="give more --memory"):
        run_experiment([many], tmp_path / "many", [LINEAR], select="worst", memory=50_000)


def test_a_fold_without_which_val_would_lack_a_class_is_left_out(tmp_path: Path) -> None:
    """Of ``folders`` val is a folder of its own, whose patients bear the last numbers: the last block holds it out."""
    table = two_series()
    divided = split(table, "folders")
    rows = np.sort(np.concatenate([divided.train, divided.val]))
    every = [*block_folds(table, rows), *series_folds(table, rows)]
    wanted = [
        fold.name
        for fold in every
        if all(set(table.label[np.intersect1d(fold.rest, of)]) == {0, 1} for of in (divided.train, divided.val))
    ]
    assert len(wanted) < len(every)
    outcome = run_experiment([write_store(tmp_path, table)], tmp_path, [LINEAR], rule="folders", select="worst")
    held = load_held_out(outcome.folder)
    assert held is not None
    assert list(held.names) == wanted


def test_a_rule_whose_folds_cannot_be_had_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    store = write_store(tmp_path, images())
    with pytest.raises(DataError, match=r"no series of patients can be held out .*: choose by another --select"):
        run_experiment([store], tmp_path, [LINEAR], select="series")
    assert not (tmp_path / "unfinished").exists()
    assert load_held_out(run_experiment([store], tmp_path, [LINEAR], select="worst").folder) is not None


def test_a_later_run_without_folds_does_not_hide_one_with_them(tmp_path: Path) -> None:
    store = write_store(tmp_path, two_series())
    run_experiment([store], tmp_path, [LINEAR], select="worst")
    run_experiment([store], tmp_path, [LINEAR], select="clean")
    assert decide(tmp_path, rule=None).rule == "worst"
    run_experiment([store], tmp_path, [replace(LINEAR, l2=0.5)], select="clean")
    assert decide(tmp_path, rule=None).notes == (
        "selected by views, not worst: 1 of 2 rows were fitted without held-out folds",
    )
    decision = decide(tmp_path, rule="worst")
    assert decision.notes == ("1 of 2 rows were fitted without held-out folds and cannot be selected by worst",)
    (row,) = decision.selected
    assert row.held_out


def test_heads_fitted_without_a_fold_are_not_counted_as_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write_store(tmp_path, two_series())
    monkeypatch.setattr(experiment, "save_run", lambda *_: (_ for _ in ()).throw(RunError("struck")))
    with pytest.raises(RunError, match="struck"):
        run_experiment([store], tmp_path, CONFIGS, select="worst")
    monkeypatch.undo()
    assert run_experiment([store], tmp_path, CONFIGS, select="worst").continued == len(CONFIGS)


def test_folds_are_held_out_where_they_can_be_if_nothing_is_said(tmp_path: Path) -> None:
    held_out = {
        "enough": run_experiment([write_store(tmp_path / "a", two_series())], tmp_path / "a", [LINEAR], select=None),
        "few patients": run_experiment(
            [write_store(tmp_path / "b", images({"train": (4, 12), "test": (3, 3)}))],
            tmp_path / "b",
            [LINEAR],
            select=None,
        ),
        "little memory": run_experiment(
            [write_store(tmp_path / "c", images({"train": (2000, 2000), "test": (3, 3)}))],
            tmp_path / "c",
            [LINEAR],
            select=None,
            memory=50_000,
        ),
    }
    assert {why: (one.folder / FOLDS_NAME).exists() for why, one in held_out.items()} == {
        "enough": True,
        "few patients": False,
        "little memory": False,
    }
    assert [decide(tmp_path / of, rule=None).rule for of in "abc"] == ["worst", "views", "views"]


@pytest.mark.parametrize("damage", ["half", "folds", "flipped", "heads"])
def test_damaged_folds_are_named(damage: str, outcome: Outcome) -> None:
    path = outcome.folder / FOLDS_NAME
    if damage == "half":
        path.write_bytes(path.read_bytes()[:500])
    elif damage == "heads":
        with np.load(path) as arrays:
            fewer = {name: arrays[name][:1] for name in ("logits", "logits_view_mean")}
            np.savez(path, **{**arrays, **fewer})
    elif damage == "flipped":
        data = bytearray(path.read_bytes())
        data[data.index(b"fold.npy") + 200] ^= 1
        path.write_bytes(data)
    else:
        with np.load(path) as arrays:
            np.savez(path, **{**arrays, "fold": arrays["fold"][:-1]})
    with pytest.raises(RunError, match=f"{FOLDS_NAME} is damaged"):
        decide(outcome.folder.parents[1])
