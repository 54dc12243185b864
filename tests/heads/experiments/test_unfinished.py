"""What an interrupted run has trained is not trained again, and what comes out is the same to the bit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthetic import images, write_store

from featcache.atomic import WriteError
from featcache.errors import RunError
from featcache.joined import join
from featcache.naming import every_store
from featcache.store import FeatureStore
from heads.experiments.experiment import run_grids
from heads.experiments.grids import StoreGrid
from heads.experiments.runs import Outcome, run_folders
from heads.experiments.split_logits import read_logits
from heads.experiments.unfinished import UNFINISHED_NAME, UnfinishedRun
from heads.training import group, train
from heads.training.config import HeadConfig
from heads.training.early_stopping import EarlyStopping
from heads.training.group import FittedHead
from heads.training.train import EpochProgress, Samples, fit

LINEAR = HeadConfig(hidden=0, lr=0.05, epochs=3, patience=3, batch_size=24)
CONFIGS = tuple(replace(LINEAR, hidden=hidden, l2=l2) for hidden in (0, 4, 6) for l2 in (0.0, 1e-3))
"""Three groups of two heads a store: a group is of one hidden size and one seed."""

GROUPS = 2 * 3


class Struck(BaseException):
    """What ends a run in these tests; no ``except`` of ours may catch it."""


class Trained(list[list[HeadConfig]]):
    """The groups that are trained; after so many the next one is struck."""

    most: int | None = None


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On tensors this small a second thread is only waited for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Trained:
    """The groups that are trained from now on."""
    groups = Trained()
    plain = group.train_group

    def noted(stoppings: Sequence[EarlyStopping], *others: Any) -> list[FittedHead]:
        if len(groups) == groups.most:
            raise Struck
        groups.append([stopping.config for stopping in stoppings])
        return plain(stoppings, *others)

    monkeypatch.setattr(train, "train_group", noted)
    return groups


def stores(dataset: Path) -> list[FeatureStore]:
    """Two stores, made where they are not there yet."""
    if dataset.exists():
        return every_store(dataset)
    return [write_store(dataset, images(), "one"), write_store(dataset, images(), "two", dim=9, seed=1)]


def run(dataset: Path, on_progress: Callable[[int, int, str], None] | None = None) -> Outcome:
    """A store, and two joined, three groups each."""
    one, two = stores(dataset)
    grids = [StoreGrid.of(source, CONFIGS) for source in (one, join([one, two]))]
    return run_grids(grids, dataset, on_progress=on_progress)


def strike(dataset: Path, groups: int, trained: Trained) -> None:
    """Make a run that ends when so many groups have been trained."""
    trained.most = groups
    with pytest.raises(Struck):
        run(dataset)
    trained.most = None
    trained.clear()


def unfinished(dataset: Path) -> list[Path]:
    return sorted((dataset / UNFINISHED_NAME).glob("*/group-*"))


def assert_same(one: Outcome, other: Outcome) -> None:
    """Weights to the bit, logits to the bit, and what the record says of the heads."""
    assert one.record.heads == other.record.heads
    assert one.record.run_id == other.record.run_id
    assert (one.folder / "weights.safetensors").read_bytes() == (other.folder / "weights.safetensors").read_bytes()
    for split in ("val", "test"):
        mine, theirs = (read_logits(outcome.folder / f"{split}.npz") for outcome in (one, other))
        np.testing.assert_array_equal(mine.logits, theirs.logits)
        np.testing.assert_array_equal(mine.logits_view_mean, theirs.logits_view_mean)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The run that nothing happens to."""
    return run(tmp_path_factory.mktemp("undisturbed") / "films")


@pytest.mark.parametrize("groups", [0, 1, 5])
def test_a_run_goes_on_after_the_last_group_that_was_trained(
    groups: int, undisturbed: Outcome, trained: Trained, tmp_path: Path
) -> None:
    dataset = tmp_path / "films"
    strike(dataset, groups, trained)
    assert run_folders(dataset) == []
    assert len(unfinished(dataset)) == groups
    told: list[tuple[int, int, str]] = []
    continued = run(dataset, lambda *now: told.append(now))
    assert (len(trained), continued.continued, continued.reused) == (GROUPS - groups, 2 * groups, False)
    assert_same(continued, undisturbed)
    assert not (dataset / UNFINISHED_NAME).exists()
    assert [now[0] for now in told] == sorted(now[0] for now in told)
    assert told[-1][0] == told[-1][1] == 2 * 6 * 3
    said = f"{2 * groups} of them before an interruption"
    assert (said in continued.in_words()) == (groups > 0)
    assert continued.to_json()["continued"] == 2 * groups


@pytest.mark.parametrize("damage", ["half", "empty", "flipped", "another", "folder"])
def test_what_is_damaged_is_trained_again(damage: str, undisturbed: Outcome, trained: Trained, tmp_path: Path) -> None:
    dataset = tmp_path / "films"
    strike(dataset, 2, trained)
    victim, sound = unfinished(dataset)
    data = victim.read_bytes()
    if damage == "folder":
        victim.unlink()
        victim.mkdir()
    else:
        # The last byte is a weight's: safetensors itself would not notice.
        flipped = bytes([*data[:-1], data[-1] ^ 1])
        victim.write_bytes(
            {"half": data[: len(data) // 2], "empty": b"", "flipped": flipped}.get(damage, sound.read_bytes())
        )
    trained.clear()
    if damage == "folder":
        with pytest.raises(WriteError, match="cannot write"):
            run(dataset)
        return
    continued = run(dataset)
    assert (len(trained), continued.continued) == (GROUPS - 1, 2)
    assert_same(continued, undisturbed)


def test_a_kept_group_is_read_back_equal(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = Samples(features=rng.standard_normal((30, 2, 5), np.float32), labels=np.arange(30) % 2, classes=2)
    heads = fit(samples, samples, CONFIGS)
    groups = UnfinishedRun(tmp_path, "patient-0").of("f" * 64, 2)
    groups.keep(heads)
    read = groups.load(CONFIGS)
    assert read is not None
    for mine, theirs in zip(read, heads, strict=True):
        assert replace(mine, weights=theirs.weights).__dict__ == theirs.__dict__
        assert {name: array.tobytes() for name, array in mine.weights.tensors().items()} == {
            name: array.tobytes() for name, array in theirs.weights.tensors().items()
        }


def test_a_group_of_other_heads_views_features_or_another_run_is_not_taken(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = Samples(features=rng.standard_normal((30, 2, 5), np.float32), labels=np.arange(30) % 2, classes=2)
    UnfinishedRun(tmp_path, "patient-0").of("f", 2).keep(fit(samples, samples, CONFIGS[:2]))
    assert UnfinishedRun(tmp_path, "patient-0").of("f", 2).load(CONFIGS[:2]) is not None
    for run_id, fingerprint, views, configs in [
        ("patient-1", "f", 2, CONFIGS[:2]),
        ("patient-0", "e", 2, CONFIGS[:2]),
        ("patient-0", "f", 1, CONFIGS[:2]),
        ("patient-0", "f", 2, CONFIGS[:1]),
        ("patient-0", "f", 2, CONFIGS[1::-1]),
        ("patient-0", "f", 2, tuple(replace(config, l2=1e-3) for config in CONFIGS[:2])),
    ]:
        assert UnfinishedRun(tmp_path, run_id).of(fingerprint, views).load(configs) is None


def test_a_group_is_as_large_as_if_none_had_been_trained(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of five heads of a shape in groups of two, the third is not joined by a later one where the first are there."""
    monkeypatch.setattr(train, "group_size", lambda *_: 2)
    rng = np.random.default_rng(0)
    samples = Samples(features=rng.standard_normal((30, 1, 5), np.float32), labels=np.arange(30) % 2, classes=2)
    configs = [replace(LINEAR, l2=l2) for l2 in (0.0, 1e-4, 1e-3, 1e-2, 1e-1)]
    sizes: list[list[int]] = []
    for _ in range(2):
        trained.clear()
        groups = UnfinishedRun(tmp_path, "patient-0").of("f", 1)
        fit(samples, samples, configs, kept=groups)
        sizes.append([len(group) for group in trained])
        victim = groups._path(configs[1:3])
        victim.unlink()
    assert sizes == [[1, 2, 2], [2]]


def test_two_processes_that_make_the_same_run_at_once_both_get_it(undisturbed: Outcome, tmp_path: Path) -> None:
    """The second has trained all but one epoch when the first saves the run and removes what is kept."""
    dataset = tmp_path / "films"
    others: list[Outcome] = []
    before: dict[str, tuple[int, int]] = {}

    def let_another_finish(done: int, total: int, _: str) -> None:
        if done > total - 4 and not others:
            others.append(run(dataset))
            before.update({f.name: (f.stat().st_ino, f.stat().st_size) for f in others[0].folder.iterdir()})

    mine = run(dataset, let_another_finish)
    (other,) = others
    # While it is told of, the last group goes on.
    assert (mine.reused, other.reused) == (True, False)
    assert other.continued in (2 * (GROUPS - 1), 2 * GROUPS)
    assert {f.name: (f.stat().st_ino, f.stat().st_size) for f in mine.folder.iterdir()} == before
    assert_same(mine, undisturbed)
    assert not (dataset / UNFINISHED_NAME).exists()


def test_only_one_of_those_that_are_done_at_once_saves_the_run(undisturbed: Outcome, tmp_path: Path) -> None:
    dataset = tmp_path / "films"
    stores(dataset)
    outcomes: list[Outcome] = []
    threads = [threading.Thread(target=lambda: outcomes.append(run(dataset))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcome.reused for outcome in outcomes) == [False, True]
    assert_same(outcomes[0], undisturbed)
    assert [path.name for path in (dataset / "runs").iterdir()] == [undisturbed.record.run_id]


def test_what_a_slower_process_left_goes_when_the_run_is_read_back(tmp_path: Path) -> None:
    dataset = tmp_path / "films"
    first = run(dataset)
    UnfinishedRun(dataset, first.record.run_id).of("f", 1).keep([])
    assert len(unfinished(dataset)) == 1
    assert run(dataset).reused
    assert not (dataset / UNFINISHED_NAME).exists()


def test_what_other_runs_keep_is_left_alone(trained: Trained, tmp_path: Path) -> None:
    dataset = tmp_path / "films"
    strike(dataset, 2, trained)
    kept = unfinished(dataset)
    (one, _) = stores(dataset)
    run_grids([StoreGrid.of(one, CONFIGS[:1])], dataset)
    assert unfinished(dataset) == kept


def test_a_head_that_diverges_does_not_cost_the_groups_before_it(trained: Trained, tmp_path: Path) -> None:
    dataset = tmp_path / "films"
    one, _ = stores(dataset)
    diverging = replace(LINEAR, hidden=8, lr=1e30)
    with pytest.raises(RunError, match="not finite in the first epoch"):
        run_grids([StoreGrid.of(one, (*CONFIGS, diverging))], dataset)
    assert len(unfinished(dataset)) == 3
    assert len(trained) == 4


def test_progress_tells_the_epoch_of_the_group(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = Samples(features=rng.standard_normal((30, 1, 5), np.float32), labels=np.arange(30) % 2, classes=2)
    told: list[EpochProgress] = []
    groups = UnfinishedRun(tmp_path, "patient-0").of("f", 1)
    fit(samples, samples, CONFIGS[:4], on_epoch=told.append, kept=groups)
    assert [now.epoch for now in told] == [1, 2, 3, 1, 2, 3]
    told.clear()
    fit(samples, samples, CONFIGS[:4], on_epoch=told.append, kept=groups)
    assert [(now.heads_done, now.head_epochs_left, now.head_epochs_done) for now in told] == [(2, 6, 6), (4, 0, 12)]
