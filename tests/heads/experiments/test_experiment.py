"""From stores to a saved run: everything that it says follows from the features, and can be followed back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic
import torch
from safetensors.numpy import load_file
from sklearn.metrics import confusion_matrix, f1_score, log_loss, recall_score, roc_auc_score
from synthetic import features_of, images, write_store

from featcache.atomic import WriteError
from featcache.errors import CxrError, DataError, RunError, SettingsError, StoreError
from featcache.images import strings
from featcache.joined import join, part_names
from featcache.settings import Settings
from featcache.splits import split
from featcache.store import FeatureStore
from heads.experiments.experiment import run_experiment
from heads.experiments.grids import configs_of
from heads.experiments.runs import Outcome, load_logits, load_run
from heads.experiments.split_logits import SplitLogits, read_logits
from heads.reporting.report import build_report
from heads.statistics.metrics import Metrics, probabilities
from heads.training.config import HeadConfig
from heads.training.model import HeadWeights, logits

LINEAR = HeadConfig(hidden=0, lr=0.05, epochs=4, patience=4, batch_size=24)
CONFIGS = (LINEAR, replace(LINEAR, hidden=4, l2=1e-2), replace(LINEAR, hidden=4, l2=1e-2, seed=1))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On tensors this small a second thread is only waited for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureStore, Outcome]:
    """A store and the run of CONFIGS on it; read them, never write to them."""
    dataset = tmp_path_factory.mktemp("cache") / "films"
    store = write_store(dataset, images())
    return store, run_experiment([store], dataset, CONFIGS)


def weights_of(outcome: Outcome) -> list[HeadWeights]:
    """The heads as they were stored."""
    tensors = load_file(outcome.folder / "weights.safetensors")
    return [
        HeadWeights.from_tensors(
            {name.partition("/")[2]: tensor for name, tensor in tensors.items() if name.startswith(f"{number}/")}
        )
        for number in range(len(outcome.record.heads))
    ]


def bytes_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


# ---- what is saved


def test_a_run_is_saved_whole_and_read_back_equal(usual: tuple[FeatureStore, Outcome]) -> None:
    store, outcome = usual
    assert not outcome.reused
    assert outcome.folder == store.path.parent / "runs" / outcome.record.run_id
    assert load_run(outcome.folder) == outcome.record
    assert set(bytes_of(outcome.folder)) == {"run.json", "weights.safetensors", "val.npz", "test.npz"}
    assert [path.name for path in outcome.folder.parent.iterdir()] == [outcome.record.run_id]


def test_a_run_tells_its_data_its_split_and_what_made_it(tmp_path: Path) -> None:
    table = images(films=3)
    record = run_experiment([write_store(tmp_path, table)], tmp_path, CONFIGS, rule="paper").record
    divided = split(table, "paper")
    assert record.dataset == tmp_path.name
    assert (record.classes, record.positive) == (("NORMAL", "PNEUMONIA"), 1)
    assert (record.split_rule, record.split_seed) == ("paper", 0)
    assert record.n == {"train": 48, "val": 12, "test": 30}
    assert record.straddling == len(divided.straddling) > 0
    assert {"cxr", "torch", "numpy", "scikit-learn", "python", "cores"} <= record.provenance.keys()
    assert [one.config for one in record.heads] == list(CONFIGS)
    # Balanced: n / (K · n_k) of 16 NORMAL and 32 PNEUMONIA.
    assert record.heads[0].class_weight == (1.5, 0.75)


def test_stored_logits_are_those_of_the_stored_weights_on_the_stores_features(
    usual: tuple[FeatureStore, Outcome],
) -> None:
    store, outcome = usual
    table = store.image_table
    divided = split(table, "patient")
    for name, rows in (("val", divided.val), ("test", divided.test)):
        stored = read_logits(outcome.folder / f"{name}.npz")
        assert stored.image_id == tuple(table.image_id[rows])
        np.testing.assert_array_equal(stored.label, table.label[rows])
        clean, second = store.features(stored.image_id), store.features(stored.image_id, view=1)
        for number, weights in enumerate(weights_of(outcome)):
            np.testing.assert_allclose(stored.logits[number], logits(weights, clean), rtol=1e-5, atol=1e-5)
            mean = (logits(weights, clean) + logits(weights, second)) / 2
            np.testing.assert_allclose(stored.logits_view_mean[number], mean, rtol=1e-5, atol=1e-5)


def assert_scikit_learn_says_the_same(figures: Metrics, logit: np.ndarray[Any, Any], stored: SplitLogits) -> None:
    probability = probabilities(logit)
    decision = (probability[:, 1] >= 0.5).astype(int)
    assert figures.n == len(stored.label)
    assert figures.accuracy == pytest.approx(np.mean(decision == stored.label))
    assert figures.loss == pytest.approx(log_loss(stored.label, probability))
    assert figures.auc == pytest.approx(roc_auc_score(stored.label, probability[:, 1]))
    assert figures.f1 == pytest.approx(f1_score(stored.label, decision))
    assert figures.sensitivity == pytest.approx(recall_score(stored.label, decision))
    assert figures.specificity == pytest.approx(recall_score(stored.label, decision, pos_label=0))
    assert figures.confusion is not None
    (tn, fp), (fn, tp) = confusion_matrix(stored.label, decision).tolist()
    assert vars(figures.confusion) == {"tn": tn, "fp": fp, "fn": fn, "tp": tp}


def test_figures_are_those_of_scikit_learn_on_the_stored_logits(usual: tuple[FeatureStore, Outcome]) -> None:
    _, outcome = usual
    val = load_logits(outcome.folder)
    for number, record in enumerate(outcome.record.heads):
        assert_scikit_learn_says_the_same(record.val, val.logits[number], val)
        assert_scikit_learn_says_the_same(record.val_view_mean, val.logits_view_mean[number], val)


def test_the_penalty_is_that_of_the_stored_kernel_and_val_loss_that_of_the_kept_epoch(
    usual: tuple[FeatureStore, Outcome],
) -> None:
    _, outcome = usual
    for record, weights in zip(outcome.record.heads, weights_of(outcome), strict=True):
        kernel = weights.kernel if weights.hidden is None else weights.hidden.kernel
        assert record.penalty == pytest.approx(
            record.config.l2 * float(np.sum(kernel.astype(np.float64) ** 2)), rel=1e-4
        )
        assert record.val.loss == pytest.approx(record.history.val_loss[record.best_epoch], abs=1e-5)
        assert record.history.val_loss[record.best_epoch] == min(record.history.val_loss)


def test_heads_stand_in_the_order_stores_then_configurations(tmp_path: Path) -> None:
    table = images()
    stores = [write_store(tmp_path, table, "one", views=2), write_store(tmp_path, table, "two", views=3, dim=9, seed=1)]
    outcome = run_experiment(stores, tmp_path, CONFIGS)
    assert [(one.backbone, one.config) for one in outcome.record.heads] == [
        (name, config) for name in ("one", "two") for config in CONFIGS
    ]
    assert [one.views for one in outcome.record.heads] == [2] * 3 + [3] * 3
    assert [weights.layout.features for weights in weights_of(outcome)] == [6] * 3 + [9] * 3
    assert read_logits(outcome.folder / "test.npz").logits.shape == (6, 30, 2)


def test_rows_are_found_by_image_whatever_the_order_in_the_store(tmp_path: Path) -> None:
    table = images()
    shuffled = table.take(np.random.default_rng(0).permutation(len(table)))
    outcome = run_experiment(
        [write_store(tmp_path, table, "sorted"), write_store(tmp_path, shuffled, "shuffled")],
        tmp_path,
        [LINEAR],
        table=table,
    )
    one, other = read_logits(outcome.folder / "test.npz").logits
    np.testing.assert_array_equal(one, other)


def test_the_positive_class_swaps_sensitivity_and_specificity(tmp_path: Path) -> None:
    store = write_store(tmp_path, images())
    figures = run_experiment([store], tmp_path, [LINEAR]).record.heads[0].val
    swapped = run_experiment([store], tmp_path, [LINEAR], positive="NORMAL").record
    assert swapped.positive == 0
    other = swapped.heads[0].val
    assert (other.sensitivity, other.specificity) == (figures.specificity, figures.sensitivity)
    assert other.auc == pytest.approx(figures.auc)


def test_three_classes_have_a_matrix_and_no_sensitivity(tmp_path: Path) -> None:
    table = images({"train": (20, 30, 25), "test": (5, 6, 7)})
    record = run_experiment([write_store(tmp_path, table)], tmp_path, [LINEAR]).record
    figures = record.heads[0].val
    assert (figures.confusion, figures.sensitivity, figures.specificity) == (None, None, None)
    assert [sum(row) for row in figures.confusion_matrix] == [4, 6, 5]
    assert figures.auc is not None


def test_fewer_views_than_the_store_has_can_be_asked_for(tmp_path: Path) -> None:
    store = write_store(tmp_path, images(), views=3)
    clean = run_experiment([store], tmp_path, [LINEAR], views=1).record.heads[0]
    assert clean.views == 1
    assert clean.val == clean.val_view_mean
    every = run_experiment([store], tmp_path, [LINEAR]).record.heads[0]
    assert every.views == 3
    assert every.val != every.val_view_mean


def test_progress_rises_to_the_end_and_names_the_backbone(tmp_path: Path) -> None:
    table = images()
    stores = [write_store(tmp_path, table, name) for name in ("one", "two")]
    told: list[tuple[int, int, str]] = []
    run_experiment(stores, tmp_path, CONFIGS, on_progress=lambda *now: told.append(now))
    done = [now[0] for now in told]
    assert done == sorted(done)
    assert {now[1] for now in told} == {2 * 3 * 4} == {done[-1]}
    assert told[0][2].startswith("one: 3 heads left, epoch 1, best val loss 0.")
    assert told[-1][2].startswith("two: 0 heads")


def test_configurations_are_the_product_of_what_the_settings_list() -> None:
    values: dict[str, Any] = {"hidden": [0, 8], "l2": [0, 1e-4], "learning_rate": [1e-3], "seeds": 2}
    values |= {"epochs": 7, "patience": 3, "batch_size": 32, "class_weights": "none", "view_policy": "clean"}
    values |= {"standardise": True, "head_precision": "bfloat16"}
    configs = configs_of(Settings(**values))
    assert len(configs) == 8
    assert {(one.hidden, one.l2, one.lr, one.seed) for one in configs} == {
        (hidden, l2, 1e-3, seed) for hidden in (0, 8) for l2 in (0.0, 1e-4) for seed in (0, 1)
    }
    assert {(one.epochs, one.patience, one.batch_size) for one in configs} == {(7, 3, 32)}
    assert {(one.class_weights, one.view_policy) for one in configs} == {("none", "clean")}
    assert {(one.standardise, one.precision) for one in configs} == {(True, "bfloat16")}


def test_heads_on_joined_stores_see_both_features_and_bear_both_names(tmp_path: Path) -> None:
    table = images()
    one = write_store(tmp_path, table, "one@pad=same", views=2)
    two = write_store(tmp_path, table, "torchvision:two", views=3, dim=9, seed=1)
    outcome = run_experiment([one, join([one, two])], tmp_path, [LINEAR])
    alone, joined = outcome.record.heads
    assert (joined.backbone, joined.views) == ("one@pad=same+torchvision:two", 2)
    assert part_names(joined.backbone, joined.fingerprint) == (
        ("one@pad=same", one.spec.fingerprint),
        ("torchvision:two", two.spec.fingerprint),
    )
    stored = read_logits(outcome.folder / "test.npz")
    both = np.concatenate([one.features(stored.image_id), two.features(stored.image_id)], axis=1)
    np.testing.assert_allclose(stored.logits[1], logits(weights_of(outcome)[1], both), rtol=1e-5, atol=1e-5)
    rows = build_report(tmp_path).rows
    assert {row.name for row in rows} == {"one", "one+two"}
    assert alone.views == 2


def test_joins_that_differ_in_one_part_alone_are_told_apart_in_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = images()
    one, two = write_store(tmp_path, table, "one"), write_store(tmp_path, table, "two", seed=1)
    monkeypatch.setattr(synthetic, "SPEC", replace(synthetic.SPEC, image_size=64))
    larger = write_store(tmp_path, table, "two", seed=2)
    run_experiment([join([one, two]), join([one, larger])], tmp_path, [LINEAR])
    prints = [store.spec.fingerprint[:6] for store in (one, two, larger)]
    assert {row.name for row in build_report(tmp_path).rows} == {f"one+two [{prints[0]}+{part}]" for part in prints[1:]}


def test_a_joined_store_of_which_a_part_lacks_images_is_refused_by_that_parts_name(tmp_path: Path) -> None:
    table = images()
    whole = write_store(tmp_path, table, "resnet50")
    lacking = write_store(tmp_path, table.take(np.arange(len(table)) != 5), "vgg19")
    message = refused(StoreError, [join([whole, lacking])], tmp_path, [LINEAR])
    assert f"vgg19 has no features for 1 of {len(table)} images in {lacking.path}" in message


# ---- the same experiment, and another one


def test_the_same_experiment_is_read_back_and_not_fitted_again(tmp_path: Path) -> None:
    store = write_store(tmp_path, images())
    first = run_experiment([store], tmp_path, CONFIGS)
    before = bytes_of(first.folder)
    told: list[int] = []
    again = run_experiment([store], tmp_path, CONFIGS, views=2, on_progress=lambda done, *_: told.append(done))
    assert again.reused
    assert (again.record, again.folder) == (first.record, first.folder)
    assert {name: data for name, (_, data) in bytes_of(first.folder).items()} == {
        name: data for name, (_, data) in before.items()
    }
    assert told == []


def test_whatever_differs_makes_another_run(tmp_path: Path) -> None:
    table = images()
    store, other = write_store(tmp_path, table), write_store(tmp_path, table, "other")
    fewer = table.take(np.arange(len(table)) > 0)
    renamed = replace(table, patient_id=strings([f"{patient}a" for patient in table.patient_id]))
    experiments: list[dict[str, Any]] = [
        {},
        {"rule": "paper"},
        {"split_seed": 1},
        {"views": 1},
        {"positive": "NORMAL"},
        {"configs": [replace(LINEAR, seed=1)]},
        {"configs": [replace(LINEAR, l2=0.1)]},
        {"stores": [other]},
        {"stores": [store, other]},
        {"table": fewer},
        {"table": renamed},
    ]
    outcomes = [
        run_experiment(one.pop("stores", [store]), tmp_path, one.pop("configs", [LINEAR]), **one) for one in experiments
    ]
    assert not any(outcome.reused for outcome in outcomes)
    assert len({outcome.record.run_id for outcome in outcomes}) == len(experiments)


def test_a_damaged_run_is_made_again(tmp_path: Path) -> None:
    store = write_store(tmp_path, images())
    first = run_experiment([store], tmp_path, [LINEAR])
    (first.folder / "run.json").write_bytes((first.folder / "run.json").read_bytes()[:-100])
    again = run_experiment([store], tmp_path, [LINEAR])
    assert (again.reused, again.folder) == (False, first.folder)
    assert again.record.heads == first.record.heads
    assert load_run(again.folder) == again.record


def test_a_run_of_an_older_format_is_made_again(tmp_path: Path) -> None:
    store = write_store(tmp_path, images())
    first = run_experiment([store], tmp_path, [LINEAR])
    held = json.loads((first.folder / "run.json").read_text())
    (first.folder / "run.json").write_text(json.dumps({**held, "format_version": 1}))
    assert not run_experiment([store], tmp_path, [LINEAR]).reused
    assert load_run(first.folder).format_version == 2


# ---- what is refused


def refused(kind: type[CxrError], *arguments: Any, **options: Any) -> str:
    """The message of an experiment that cannot be made; it leaves no run."""
    dataset: Path = arguments[1]
    with pytest.raises(kind) as failed:
        run_experiment(*arguments, **options)
    assert not list(dataset.glob("runs/*"))
    message = str(failed.value)
    assert "\n" not in message
    return message


def test_a_store_that_lacks_images_is_refused_with_what_makes_them(tmp_path: Path) -> None:
    table = images()
    store = write_store(tmp_path, table.take(np.arange(len(table)) >= 2), "resnet50")
    message = refused(StoreError, [store], tmp_path, [LINEAR], table=table)
    assert f"resnet50 has no features for 2 of {len(table)} images in {store.path}" in message
    assert table.image_id[0] in message
    assert message.endswith("run 'cxr extract --backbone resnet50' again")


def test_a_store_of_which_an_image_has_changed_is_refused(tmp_path: Path) -> None:
    table = images()
    store = write_store(tmp_path, table, "resnet50")
    changed = replace(table, sha256=strings(["f" * 64, *table.sha256[1:]]))
    message = refused(StoreError, [store], tmp_path, [LINEAR], table=changed)
    assert f"no features for 1 of {len(table)} images" in message
    assert table.image_id[0] in message


def test_two_stores_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    table = images()
    whole = write_store(tmp_path, table, "resnet50")
    lacking = write_store(tmp_path, table.take(np.arange(len(table)) != 5), "vgg19")
    message = refused(StoreError, [whole, lacking], tmp_path, [LINEAR])
    assert f"vgg19 has no features for 1 of {len(table)} images in {lacking.path}" in message
    assert f"unlike {whole.path}" in message
    assert "--backbone vgg19" in message


def test_more_views_than_the_store_has_are_refused(tmp_path: Path) -> None:
    store = write_store(tmp_path, images(), "resnet50", views=2)
    message = refused(StoreError, [store], tmp_path, [LINEAR], views=3)
    assert "has 2 views an image, wanted 3" in message
    assert "cxr extract --backbone resnet50" in message


def test_a_damaged_part_is_refused_by_name(tmp_path: Path) -> None:
    store = write_store(tmp_path, images())
    part = sorted((store.path / "parts").iterdir())[0]
    row = features_of(store.image_table)[0, 0].astype(np.float16).tobytes()
    parts = [path.read_bytes() for path in sorted((store.path / "parts").iterdir())]
    part = next(path for path, data in zip(sorted((store.path / "parts").iterdir()), parts, strict=True) if row in data)
    data = bytearray(part.read_bytes())
    data[data.index(row)] ^= 1
    part.write_bytes(data)
    message = refused(StoreError, [store], tmp_path, [LINEAR])
    assert str(part) in message
    assert "checksum" in message
    assert "cxr cache verify --remove-damaged" in message


def test_a_train_set_of_one_class_is_refused(tmp_path: Path) -> None:
    table = images({"train": (0, 30), "val": (2, 2), "test": (5, 5)})
    message = refused(RunError, [write_store(tmp_path, table)], tmp_path, [LINEAR], rule="folders")
    assert message.startswith("all 30 train images are PNEUMONIA: a head needs two classes")
    assert "cxr data check" in message


def test_a_split_that_leaves_a_part_empty_is_refused(tmp_path: Path) -> None:
    table = images({"train": (10, 10), "test": (5, 5)})
    message = refused(DataError, [write_store(tmp_path, table)], tmp_path, [LINEAR], rule="folders")
    assert "'folders' leaves no val images" in message


def test_an_unknown_positive_class_is_refused_with_those_there_are(tmp_path: Path) -> None:
    message = refused(DataError, [write_store(tmp_path, images())], tmp_path, [LINEAR], positive="FLU")
    assert "'FLU'" in message
    assert "NORMAL, PNEUMONIA" in message


def test_no_stores_are_refused_with_what_makes_one(tmp_path: Path) -> None:
    message = refused(StoreError, [], tmp_path, [LINEAR])
    assert str(tmp_path) in message
    assert "cxr extract" in message


def test_a_place_that_cannot_be_written_is_an_error_of_one_line(tmp_path: Path) -> None:
    store = write_store(tmp_path, images())
    (tmp_path / "runs").write_text("a file where the folder of runs should be")
    message = refused(WriteError, [store], tmp_path, [LINEAR])
    assert f"cannot write {tmp_path / 'runs'}" in message


# ---- transductive


def test_adapted_splits_have_the_moments_of_train_and_heads_say_what_they_say_of_such_features(tmp_path: Path) -> None:
    table = images()
    store = write_store(tmp_path, table, views=2)
    divided = split(table, "patient")
    plain = run_experiment([store], tmp_path, CONFIGS)
    outcome = run_experiment([store], tmp_path, CONFIGS, adapt=True)
    assert outcome.record.run_id != plain.record.run_id
    assert [head.adapted for head in (*plain.record.heads, *outcome.record.heads)] == [False] * 3 + [True] * 3
    train, test = (
        store.views(table.image_id[rows].tolist()).astype(np.float64) for rows in (divided.train, divided.test)
    )
    moments = [(one.reshape(-1, 6).mean(0), one.reshape(-1, 6).std(0)) for one in (train, test)]
    brought = (test - moments[1][0]) / moments[1][1] * moments[0][1] + moments[0][0]
    np.testing.assert_allclose(brought.reshape(-1, 6).mean(0), moments[0][0], atol=1e-6)
    stored = read_logits(outcome.folder / "test.npz")
    for number, weights in enumerate(weights_of(outcome)):
        wanted = np.mean([logits(weights, brought[:, view]) for view in (0, 1)], axis=0)
        np.testing.assert_allclose(stored.logits[number], logits(weights, brought[:, 0]), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(stored.logits_view_mean[number], wanted, rtol=1e-3, atol=1e-3)


def test_transductive_rows_are_marked_and_no_ensemble_mixes_them_with_others(tmp_path: Path) -> None:
    table = images()
    stores = [write_store(tmp_path, table, name, seed=seed) for seed, name in enumerate(("one", "two"))]
    for adapt in (False, True):
        run_experiment(stores, tmp_path, [LINEAR], adapt=adapt)
    report = build_report(tmp_path, ensembles=True)
    assert {row.name: row.row.transductive for row in report.rows} == {
        "one": False,
        "two": False,
        "one, transductive": True,
        "two, transductive": True,
        "mean of 2 backbones": False,
        "mean of 2 backbones, transductive": True,
    }
    assert [row["transductive"] for row in report.to_json()["rows"]] == [row.row.transductive for row in report.rows]
    assert any("transductive saw all images of val and test" in warning for warning in report.warnings)


def test_what_is_streamed_is_not_adapted(tmp_path: Path) -> None:
    store = write_store(tmp_path, images({"train": (2000, 2000), "test": (3, 3)}))
    message = refused(SettingsError, [store], tmp_path, [LINEAR], adapt=True, memory=50_000)
    assert "leave --adapt out" in message


def test_what_cannot_be_told_of_the_machine_is_said_before_heads_are_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(device: str) -> dict[str, str]:
        raise RuntimeError(f"nothing known of {device}")

    epochs: list[int] = []
    monkeypatch.setattr("heads.experiments.experiment.provenance", fails)
    store = write_store(tmp_path / "films", images())
    with pytest.raises(RuntimeError, match="nothing known of cpu"):
        run_experiment([store], tmp_path / "films", (LINEAR,), on_progress=lambda done, *_: epochs.append(done))
    assert epochs == []
