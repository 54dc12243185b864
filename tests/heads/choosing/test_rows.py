"""Rows of the table: seeds folded, runs superseded, names that tell apart, each split with its own selection."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import head, metrics, run, saved

from featcache.errors import RunError
from heads.choosing.decision import decide
from heads.choosing.rows import Row
from heads.experiments.runs import HeadRecord
from heads.training.config import HeadConfig

BASE = HeadConfig()


def rows_of(dataset: Path, *heads: HeadRecord) -> tuple[Row, ...]:
    """The rows of one run of these heads."""
    saved(dataset, run(*heads))
    return decide(dataset).rows


def test_whatever_but_the_seed_differs_is_a_row_of_its_own(tmp_path: Path) -> None:
    heads = [head(replace(BASE, seed=seed, l2=l2)) for l2 in (0.0, 1e-4) for seed in (0, 1)]
    heads += [head(views=4), head(backbone="vgg19"), head(fingerprint="e" * 64)]
    assert sorted(row.seeds for row in rows_of(tmp_path, *heads)) == [1, 1, 1, 2, 2]


def test_the_seed_of_the_lowest_val_loss_stands_for_its_row(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path, *(head(replace(BASE, seed=n), metrics(loss)) for n, loss in enumerate((0.3, 0.1, 0.2))))
    assert row.chosen is not None
    assert (row.best, row.chosen.config.seed) == (1, 1)
    assert row.candidate.scores["clean"] == (0.3, 0.1, 0.2)


def test_each_split_has_its_own_selection(tmp_path: Path) -> None:
    for rule, seed, losses in (("patient", 0, (0.5, 0.4)), ("paper", 0, (0.1, 0.2)), ("patient", 1, (0.3, 0.31))):
        heads = [head(replace(BASE, l2=l2), val=metrics(loss)) for l2, loss in zip((0.1, 0.2), losses, strict=True)]
        saved(tmp_path, run(*heads, run_id=f"{rule}-{seed}", split_rule=rule, split_seed=seed))
    chosen = {row.split: row.records[0].config.l2 for row in decide(tmp_path).selected}
    assert chosen == {("patient", 0): 0.2, ("paper", 0): 0.1, ("patient", 1): 0.1}


# ---- several runs


def test_the_run_that_was_asked_for_last_counts(tmp_path: Path) -> None:
    saved(tmp_path, run(head(val=metrics(accuracy=0.2)), run_id="z", created="2025-03-01T00:00:00+00:00"))
    saved(tmp_path, run(head(val=metrics(accuracy=0.1)), run_id="b", created="2024-12-31T00:00:00+00:00"))
    saved(tmp_path, run(head(val=metrics(accuracy=0.3)), run_id="a", created="2025-03-02T00:00:00+00:00"))
    (row,) = decide(tmp_path).rows
    assert row.run.run_id == "a"
    assert row.metrics["clean"][0].accuracy == 0.3


def test_a_later_run_of_fewer_seeds_hides_none(tmp_path: Path) -> None:
    saved(tmp_path, run(*(head(replace(BASE, seed=seed)) for seed in range(3)), run_id="old"))
    saved(tmp_path, run(head(), run_id="new"))
    (row,) = decide(tmp_path).rows
    assert (len(row.records), row.run.run_id) == (3, "old")


def test_runs_with_another_positive_class_are_rows_of_their_own(tmp_path: Path) -> None:
    saved(tmp_path, run(head(), run_id="one"))
    saved(tmp_path, run(head(), run_id="two", positive=0))
    report = decide(tmp_path)
    assert sorted(row.name.rpartition("positive ")[2] for row in report.rows) == sorted(report.rows[0].run.classes)


def test_seeds_of_different_runs_are_not_mixed(tmp_path: Path) -> None:
    saved(tmp_path, run(*(head(replace(BASE, seed=seed)) for seed in range(3)), run_id="old"))
    newer = run(head(), head(replace(BASE, l2=0.1)), run_id="new", created="2026-01-01T00:00:00+00:00")
    saved(tmp_path, newer)
    rows = decide(tmp_path).rows
    assert [(row.records[0].config.l2, row.seeds, row.run.run_id) for row in rows] == [
        (0, 3, "old"),
        (0.1, 1, "new"),
    ]


def test_only_the_runs_asked_for_are_reported(tmp_path: Path) -> None:
    for name, l2 in (("one", 0.1), ("two", 0.2), ("three", 0.3)):
        saved(tmp_path, run(head(replace(BASE, l2=l2)), run_id=name))
    assert {row.records[0].config.l2 for row in decide(tmp_path, ["one", "three"]).rows} == {0.1, 0.3}


def test_an_unknown_run_is_refused_with_those_there_are(tmp_path: Path) -> None:
    saved(tmp_path, run(head(), run_id="patient-1"))
    with pytest.raises(RunError, match=r"no run patient-2 in .*there are: patient-1"):
        decide(tmp_path, ["patient-2"])


def test_no_runs_are_refused_with_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no runs in .*run 'cxr fit-head' first"):
        decide(tmp_path)


def test_a_damaged_run_is_named_and_not_left_out(tmp_path: Path) -> None:
    saved(tmp_path, run(head(), run_id="good"))
    folder = saved(tmp_path, run(head(), run_id="bad"))
    (folder / "run.json").write_text("{}")
    with pytest.raises(RunError, match=r"bad.run\.json is damaged"):
        decide(tmp_path)


# ---- names


def names(dataset: Path, *heads: HeadRecord) -> list[str]:
    return [row.name for row in rows_of(dataset, *heads)]


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
    window=st.sampled_from([0, 256]),
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
    found = [row.name for row in decide(dataset).rows]
    assert len(set(found)) == len(found)
