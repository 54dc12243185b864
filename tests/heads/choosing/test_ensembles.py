"""Ensembles against plain means of the logits of their members, chosen on val."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic import fitted, split_logits

from featcache.errors import RunError
from heads.choosing.decision import decide
from heads.choosing.rows import Member, Row, logits_of
from heads.choosing.selection import scale_of_member
from heads.experiments.split_logits import KINDS, SplitLogits
from heads.reporting.report import build_report
from heads.reporting.sealed import open_test
from heads.statistics.metrics import evaluate
from heads.training.config import HeadConfig

BASE = HeadConfig()
CONFIGS = [replace(BASE, l2=l2, seed=seed) for l2 in (0.0, 0.1) for seed in range(3)]


def backbones(dataset: Path, *leans: float, **changes: object) -> None:
    """A run of six heads for each backbone; how far its logits lean to the truth differs."""
    for number, lean in enumerate(leans):
        name = f"net{number}"
        given = {"backbone": name, "fingerprint": name.ljust(64, "x"), "run_id": name, "lean": lean, **changes}
        fitted(dataset, *CONFIGS, seed=number, n=80, **given)


def kinds(rows: tuple[Row, ...]) -> list[str | None]:
    return [row.ensemble.kind if row.ensemble else None for row in rows]


def test_without_being_asked_for_there_are_none(tmp_path: Path) -> None:
    backbones(tmp_path, 1.0, 1.0)
    assert kinds(decide(tmp_path).rows) == [None] * 4


def test_a_mean_over_seeds_is_that_of_the_raw_logits_on_both_splits(tmp_path: Path) -> None:
    backbones(tmp_path, 1.0)
    decision = decide(tmp_path, ensembles=True)
    tests = open_test(decision)
    assert kinds(decision.rows) == [None, None, "seeds", "seeds"]
    for plain, mean in ((0, 2), (1, 3)):
        row, ensemble = decision.rows[plain], decision.rows[mean]
        assert ensemble.name == f"{row.name}, mean of 3 seeds"
        assert ensemble.ensemble is not None
        assert ensemble.ensemble.of == (row.name,)
        assert ensemble.config == row.config
        for parts, whole in ((row.val, ensemble.val), (tests[plain], tests[mean])):
            for kind in KINDS:
                np.testing.assert_allclose(whole.of(kind), parts.of(kind).mean(0, keepdims=True), rtol=1e-6, atol=1e-6)
            assert whole.image_id == parts.image_id
        assert ensemble.metrics["clean"] == (evaluate(ensemble.val.logits[0], ensemble.val.label),)
        assert (ensemble.seeds, ensemble.best, ensemble.chosen) == (1, 0, None)


@pytest.mark.parametrize("rule", ["clean", "views"])
def test_a_mean_over_backbones_is_that_of_the_scaled_seed_means_of_each_ones_best_row(
    rule: str, tmp_path: Path
) -> None:
    backbones(tmp_path, 0.6, 1.4, 1.0)
    decision = decide(tmp_path, ensembles=True, rule=rule)
    tests = open_test(decision)
    ensembles = [n for n, row in enumerate(decision.rows) if row.ensemble and row.ensemble.kind == "backbones"]
    assert decision.rows[ensembles[0]].name == "mean of 3 backbones"
    for number in ensembles:
        ensemble = decision.rows[number]
        assert ensemble.ensemble is not None
        members = [n for n, row in enumerate(decision.rows) if row.name in ensemble.ensemble.of]
        for n in members:
            rivals = [
                row for row in decision.rows[:6] if row.records[0].backbone == decision.rows[n].records[0].backbone
            ]
            name = "clean" if rule == "clean" else "views"
            assert min(rivals, key=lambda row: sum(row.candidate.scores[name])) is decision.rows[n]
        for kind in KINDS:
            means = [decision.rows[n].val.of(kind).mean(0) for n in members]
            label = ensemble.val.label
            scales = [scale_of_member(mean, label) for mean in means]
            expected = np.mean([mean / scale for mean, scale in zip(means, scales, strict=True)], axis=0)
            np.testing.assert_allclose(ensemble.val.of(kind)[0], expected, rtol=1e-5, atol=1e-5)
            # The scales are val's on test too.
            others = [tests[n].of(kind).mean(0) / scale for n, scale in zip(members, scales, strict=True)]
            np.testing.assert_allclose(tests[number].of(kind)[0], np.mean(others, axis=0), rtol=1e-5, atol=1e-5)


def test_the_subset_is_the_one_of_the_lowest_val_loss(tmp_path: Path) -> None:
    backbones(tmp_path, 1.5, -3.0, 1.5)  # The second says the opposite of the truth.
    rows = decide(tmp_path, ensembles=True).rows
    subset = rows[-1]
    assert subset.name == "mean of 2 of 3 backbones"
    assert subset.ensemble is not None
    assert [name.partition(" ")[0] for name in subset.ensemble.of] == ["net0", "net2"]
    assert subset.metrics["clean"][0].loss < rows[-2].metrics["clean"][0].loss
    assert len(rows[-2].members) == 3


def test_an_ensemble_may_be_selected_and_is_reported_with_what_it_is_of(tmp_path: Path) -> None:
    backbones(tmp_path, 0.8, 0.8)
    held = build_report(tmp_path, ensembles=True).to_json()["rows"]
    losses = [row["val"]["loss"].get("mean", row["val"]["loss"]["value"]) for row in held]
    selected = [row["selected"] for row in held]
    assert selected.index(True) == losses.index(min(losses))
    assert held[selected.index(True)]["ensemble"]["kind"] == "backbones"
    (row,) = [row for row in held if row["name"] == "mean of 2 backbones"]
    assert len(row["ensemble"]["of"]) == 2
    assert (row["backbone"], row["head"], row["seeds"], row["test"]["penalty"]) == (None, None, 1, None)
    seeds = next(row for row in held if row["ensemble"] and row["ensemble"]["kind"] == "seeds")
    assert (seeds["backbone"], seeds["head"]["hidden"]) == ("net0", 256)


def test_rows_of_other_splits_images_or_classes_are_not_mixed(tmp_path: Path) -> None:
    backbones(tmp_path, 1.0, 1.0)
    for change in ({"split_rule": "paper"}, {"images_sha256": "b" * 64, "split_seed": 1}, {"positive": 0}):
        fitted(tmp_path, BASE, seed=5, n=80, run_id=f"other-{next(iter(change))}", backbone="net9", **change)
    rows = decide(tmp_path, ensembles=True).rows
    over = [row for row in rows if row.ensemble and row.ensemble.kind == "backbones"]
    assert over
    for row in over:
        assert row.name.endswith(", patient split, positive PNEUMONIA, images aaaaaa")
        assert {member.folder.name for member in row.members} <= {"net0", "net1"}
    assert len({row.name for row in rows}) == len(rows)


def test_members_of_other_images_are_refused() -> None:
    def load(folder: Path) -> SplitLogits:
        return split_logits(1, 20, split=folder.name)

    members = [Member(folder=Path(name), heads=(0,)) for name in ("one", "two")]
    with pytest.raises(RunError, match="two and one are of other images: run 'cxr fit-head' again"):
        logits_of(members, load, averaged=True)
