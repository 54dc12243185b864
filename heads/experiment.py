"""From feature stores to a saved run: divide the images, fit every head on every store, seal test away."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featcache.errors import RunError, StoreError
from featcache.images import ImageTable, positive_class
from featcache.parts import FeatureArray
from featcache.settings import Settings
from featcache.splits import Split, SplitRule, split
from featcache.store import FeatureStore
from heads.config import HeadConfig, grid
from heads.group import FittedHead
from heads.metrics import evaluate
from heads.model import logits
from heads.runs import (
    FORMAT_VERSION,
    RUNS_NAME,
    HeadRecord,
    Outcome,
    RunRecord,
    SplitLogits,
    load_run,
    save_run,
)
from heads.train import EpochProgress, Samples, fit


@dataclass(frozen=True, kw_only=True, eq=False)
class _StoreHeads:
    """The heads of one store, with their logits by split: (clean, view mean), each [n, K]."""

    fitted: list[FittedHead]
    records: list[HeadRecord]
    val: list[tuple[NDArray[np.float32], NDArray[np.float32]]]
    test: list[tuple[NDArray[np.float32], NDArray[np.float32]]]


def configs_of(settings: Settings) -> tuple[HeadConfig, ...]:
    """The grid that the settings declare."""
    return grid(
        hidden=settings.hidden,
        l2=settings.l2,
        lr=settings.learning_rate,
        seeds=range(settings.seeds),
        epochs=settings.epochs,
        patience=settings.patience,
        batch_size=settings.batch_size,
        class_weights=settings.class_weights,
        view_policy=settings.view_policy,
    )


def run_experiment(
    stores: Sequence[FeatureStore],
    dataset: Path,
    configs: Sequence[HeadConfig],
    *,
    table: ImageTable | None = None,
    rule: SplitRule = "patient",
    split_seed: int = 0,
    views: int | None = None,
    positive: str | None = None,
    device: str = "cpu",
    on_progress: Callable[[int, int, str], None] | None = None,
) -> Outcome:
    """Fit all configurations on all stores and save the run.

    A run is determined by its images, features, split and configurations: the same ones again are not trained
    again but read back.

    Args:
        stores: features of the same images by different backbones.
        dataset: ``cache/<dataset>``, where the run is saved.
        configs: the heads.
        table: the data set's images as they are now; None takes the first store's.
        rule: how the images are divided.
        split_seed: the seed of that.
        views: views to train on; None takes all that every image has.
        positive: name of the positive class; None takes the second.
        device: a torch device.
        on_progress: told the epochs done of all heads, the epochs in all, and how it goes.

    Raises:
        StoreError: a store lacks images, or two stores do not fit.
        DataError: the split leaves a part empty, or there is no such class.
        RunError: the train split has one class, or a head diverged.
        WriteError: the disk is full.
    """
    if not stores:
        raise StoreError(f"no feature stores in {dataset}: run 'cxr extract' first")
    images = stores[0].image_table if table is None else table
    for store in stores:
        _require_images(store, images, stores[0])
    divided = split(images, rule, seed=split_seed)
    _require_classes(images, divided)
    positive_index = positive_class(images.classes, positive)
    run_id = _run_id(stores, images, divided, configs, views, positive_index)
    folder = dataset / RUNS_NAME / run_id
    if (folder / "run.json").is_file():
        try:
            known = Outcome(folder=folder, record=load_run(folder), reused=True)
            (folder / "run.json").touch()  # The report takes the run that was asked for last.
            return known
        except RunError:
            pass  # A damaged run is made again.
    started = time.perf_counter()
    results: list[_StoreHeads] = []
    for number, store in enumerate(stores):
        on_epoch = None if on_progress is None else _overall(on_progress, store, number, len(stores), configs)
        results.append(_fit_store(store, images, divided, configs, views, positive_index, device, on_epoch))
    record = RunRecord(
        format_version=FORMAT_VERSION,
        run_id=run_id,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        dataset=dataset.name,
        images_sha256=_images_sha256(images),
        classes=images.classes,
        positive=positive_index,
        split_rule=rule,
        split_seed=split_seed,
        n={"train": len(divided.train), "val": len(divided.val), "test": len(divided.test)},
        straddling=len(divided.straddling),
        seconds=time.perf_counter() - started,
        provenance=_provenance(),
        heads=tuple(record for result in results for record in result.records),
    )
    folder = save_run(
        dataset,
        record,
        [head.weights.tensors() for result in results for head in result.fitted],
        _split_logits(images, divided.val, [pair for result in results for pair in result.val]),
        _split_logits(images, divided.test, [pair for result in results for pair in result.test]),
    )
    return Outcome(folder=folder, record=record, reused=False)


def _fit_store(
    store: FeatureStore,
    images: ImageTable,
    divided: Split,
    configs: Sequence[HeadConfig],
    views: int | None,
    positive: int,
    device: str,
    on_epoch: Callable[[EpochProgress], None] | None,
) -> _StoreHeads:
    count = store.view_count if views is None else views
    features = {
        name: store.views(images.image_id[rows].tolist(), count)
        for name, rows in (("train", divided.train), ("val", divided.val), ("test", divided.test))
    }
    label = images.label
    classes = len(images.classes)
    fitted = fit(
        Samples(features=features["train"], labels=label[divided.train], classes=classes),
        Samples(features=features["val"], labels=label[divided.val], classes=classes),
        configs,
        device=device,
        on_epoch=on_epoch,
    )
    val = [_clean_and_mean(head, features["val"]) for head in fitted]
    test = [_clean_and_mean(head, features["test"]) for head in fitted]
    records = [
        HeadRecord(
            backbone=store.spec.backbone,
            fingerprint=store.spec.fingerprint,
            views=count,
            config=head.config,
            class_weight=head.class_weight,
            history=head.history,
            best_epoch=head.best_epoch,
            stop_reason=head.stop_reason,
            penalty=head.history.penalty[head.best_epoch],
            val=evaluate(val[number][0], label[divided.val], positive),
            val_view_mean=evaluate(val[number][1], label[divided.val], positive),
        )
        for number, head in enumerate(fitted)
    ]
    return _StoreHeads(fitted=fitted, records=records, val=val, test=test)


def _overall(
    on_progress: Callable[[int, int, str], None],
    store: FeatureStore,
    number: int,
    stores: int,
    configs: Sequence[HeadConfig],
) -> Callable[[EpochProgress], None]:
    """Turn one store's progress into that of the whole run."""
    epochs = sum(config.epochs for config in configs)

    def tell(now: EpochProgress) -> None:
        alive = now.heads - now.heads_done
        remark = f"{store.spec.backbone}: {alive} heads left, best val loss {now.best_val_loss:.4f}"
        on_progress((number + 1) * epochs - now.head_epochs_left, stores * epochs, remark)

    return tell


def _clean_and_mean(head: FittedHead, features: FeatureArray) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits [n, K] of the clean view, and their mean over the views, of features [n, V, D]."""
    n, views, dim = features.shape
    every = logits(head.weights, features.reshape(n * views, dim)).reshape(n, views, -1)
    return every[:, 0], every.mean(axis=1, dtype=np.float32)


def _split_logits(
    images: ImageTable, rows: NDArray[np.int64], pairs: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]
) -> SplitLogits:
    return SplitLogits(
        logits=np.stack([clean for clean, _ in pairs]),
        logits_view_mean=np.stack([mean for _, mean in pairs]),
        label=images.label[rows],
        image_id=tuple(images.image_id[rows].tolist()),
        patient_id=tuple(images.patient_id[rows].tolist()),
    )


def _require_images(store: FeatureStore, images: ImageTable, first: FeatureStore) -> None:
    """Every image must be in the store with its present content.

    Raises:
        StoreError: images are missing or have changed since they were extracted.
    """
    known = dict(zip(store.image_table.image_id, store.image_table.sha256, strict=True))
    wanted = zip(images.image_id, images.sha256, strict=True)
    missing = [image_id for image_id, digest in wanted if known.get(image_id) != digest]
    if missing:
        against = "" if store is first else f", unlike {first.path}"
        raise store.lacking(len(missing), len(images), missing[0], against)


def _require_classes(images: ImageTable, divided: Split) -> None:
    """A head needs two classes to learn from.

    Raises:
        RunError: the train images are all of one class.
    """
    present = np.unique(images.label[divided.train])
    if len(present) < 2:
        name = images.classes[int(present[0])]
        raise RunError(
            f"all {len(divided.train)} train images are {name}: a head needs two classes; check the labels with "
            "'cxr data check'"
        )


def _run_id(
    stores: Sequence[FeatureStore],
    images: ImageTable,
    divided: Split,
    configs: Sequence[HeadConfig],
    views: int | None,
    positive: int,
) -> str:
    """Name a run by all that determines it."""
    content = {
        "cxr": version("cxr"),
        "images": _images_sha256(images),
        "stores": [[store.spec.fingerprint, store.view_count if views is None else views] for store in stores],
        "split": [divided.rule, divided.seed],
        "positive": positive,
        "configs": [asdict(config) for config in configs],
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return f"{divided.rule}-{digest[:10]}"


def _images_sha256(images: ImageTable) -> str:
    digest = hashlib.sha256(json.dumps(images.classes).encode())
    for row in zip(images.image_id, images.sha256, images.label.tolist(), images.patient_id, images.split, strict=True):
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()


def _provenance() -> dict[str, str]:
    packages = {name: version(name) for name in ("cxr", "torch", "numpy", "scikit-learn", "h5py")}
    here = {"python": platform.python_version(), "machine": platform.machine()}
    return {**packages, **here, "cores": str(os.cpu_count())}
