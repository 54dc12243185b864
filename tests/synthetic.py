"""Stores and runs made by hand: features drawn from a formula, figures written down. No image, no network."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.check import Scan
from featcache.images import ImageTable, strings
from featcache.index import PARTS_NAME, write_index
from featcache.parts import read_header, write_part
from featcache.spec import FeatureSpec
from featcache.store import FeatureStore, open_store
from heads.experiments.runs import FORMAT_VERSION, HeadRecord, RunRecord, save_run
from heads.experiments.split_logits import SplitLogits
from heads.statistics.metrics import Confusion, Metrics, evaluate
from heads.training.config import HeadConfig
from heads.training.early_stopping import History

COUNTS = {"train": (20, 40), "val": (4, 4), "test": (12, 18)}
"""Images a class in each folder; ``paper`` and ``patient`` make 48 train, 12 val and 30 test images of them."""

SPEC = FeatureSpec(
    backbone="synthetic",
    weights_sha256="0" * 64,
    image_size=32,
    resize_side=32,
    interpolation="bilinear",
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    decoder="none 0",
    decode_floor=512,
)


def images(counts: Mapping[str, Sequence[int]] = COUNTS, films: int = 1) -> ImageTable:
    """An image table with hashes; ``films`` images in a row are of one patient."""
    classes = ("NORMAL", "PNEUMONIA", "TUBERCULOSIS")[: len(next(iter(counts.values())))]
    rows = [
        (f"{folder}/{name}/{number:03d}.jpeg", name, f"{folder}/{name}-{number // films}", folder)
        for folder, of_class in counts.items()
        for name, count in zip(classes, of_class, strict=True)
        for number in range(count)
    ]
    rows.sort()
    image_id, label, patient, folder = (list(column) for column in zip(*rows, strict=True))
    table = ImageTable.from_columns(image_id, label, patient, folder, classes)
    digests = strings([hashlib.sha256(name.encode()).hexdigest() for name in image_id])
    size = np.full(len(table), 64, np.int32)
    return replace(table, sha256=digests, width=size, height=size)


def features_of(table: ImageTable, *, views: int = 2, dim: int = 6, seed: int = 0) -> NDArray[np.float32]:
    """Features [N, V, D]: noise of the image and its views around a mean of its class; the content decides them."""
    result = np.empty((len(table), views, dim), np.float32)
    for row, (digest, label) in enumerate(zip(table.sha256, table.label.tolist(), strict=True)):
        rng = np.random.default_rng((int(digest[:15], 16), seed))
        centre = np.roll(np.eye(1, dim)[0], label) + 0.7 * rng.standard_normal(dim)
        result[row] = centre + 0.3 * rng.standard_normal((views, dim))
    return result


def write_store(
    dataset: Path, table: ImageTable, backbone: str = "synthetic", *, views: int = 2, dim: int = 6, seed: int = 0
) -> FeatureStore:
    """Write a store in two parts, and open it."""
    spec = replace(SPEC, backbone=backbone)
    store = dataset / f"{backbone}-{spec.fingerprint[:12]}"
    features = features_of(table, views=views, dim=dim, seed=seed)
    half = len(table) // 2
    parts = [
        write_part(store / PARTS_NAME, spec, table.sha256[rows].tolist(), range(views), features[rows], {})
        for rows in (slice(None, half), slice(half, None))
    ]
    write_index(store, spec, Scan(table=table, quarantined=(), odd=()), [read_header(part) for part in parts])
    return open_store(store)


def metrics(loss: float = 0.5, accuracy: float = 0.8, **figures: Any) -> Metrics:
    """Figures of a split, those that are named and others that fit nothing."""
    given: dict[str, Any] = {
        "n": 100,
        "auc": 0.9,
        "f1": 0.75,
        "sensitivity": 0.85,
        "specificity": 0.65,
        "confusion": Confusion(tn=26, fp=14, fn=9, tp=51),
        "confusion_matrix": ((26, 14), (9, 51)),
        **figures,
    }
    return Metrics(loss=loss, accuracy=accuracy, **given)


def head(
    config: HeadConfig | None = None,
    val: Metrics | None = None,
    *,
    backbone: str = "resnet50",
    fingerprint: str = "f" * 64,
    views: int = 1,
    adapted: bool = False,
    penalty: float = 0.0,
    val_view_mean: Metrics | None = None,
) -> HeadRecord:
    """A fitted head's record with the figures of val given."""
    val = val or metrics()
    return HeadRecord(
        backbone=backbone,
        fingerprint=fingerprint,
        views=views,
        adapted=adapted,
        config=config or HeadConfig(),
        class_weight=(1.5, 0.75),
        history=History(
            train_loss=(0.9, 0.6, 0.4),
            train_accuracy=(0.5, 0.7, 0.8),
            penalty=(0.2, 0.1, penalty),
            val_loss=(0.8, 0.5, 0.55),
            val_accuracy=(0.6, 0.8, 0.7),
            val_loss_view_mean=(0.8, 0.5, 0.6),
        ),
        best_epoch=1,
        stop_reason="patience",
        penalty=penalty,
        val=val,
        val_view_mean=val_view_mean or val,
    )


def run(*heads: HeadRecord, run_id: str = "patient-0", **changes: Any) -> RunRecord:
    """A run of these heads."""
    given: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "run_id": run_id,
        "created": "2025-01-01T00:00:00+00:00",
        "dataset": "films",
        "images_sha256": "a" * 64,
        "classes": ("NORMAL", "PNEUMONIA"),
        "positive": 1,
        "split_rule": "patient",
        "split_seed": 0,
        "n": {"train": 4173, "val": 1043, "test": 624},
        "straddling": 0,
        "seconds": 1.5,
        "provenance": {"cxr": "0.1.0"},
        **changes,
    }
    return RunRecord(heads=heads, **given)


def split_logits(
    heads: int = 1, n: int = 10, classes: int = 2, seed: int = 0, *, lean: float = 1.0, split: str = "test"
) -> SplitLogits:
    """Logits that lean towards the right class; each patient has two images of one class."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) // 2 % classes
    logits = rng.standard_normal((heads, n, classes)) + lean * np.eye(classes)[label]
    return SplitLogits(
        logits=logits.astype(np.float32),
        logits_view_mean=(logits + rng.standard_normal(logits.shape) / 4).astype(np.float32),
        label=label,
        image_id=tuple(f"{split}/{number}.jpeg" for number in range(n)),
        patient_id=tuple(f"{split}/{number // 2}" for number in range(n)),
    )


def saved(dataset: Path, record: RunRecord, val: SplitLogits | None = None, test: SplitLogits | None = None) -> Path:
    """Save a run with weights that mean nothing, and logits that fit no figure unless given; returns its folder."""
    count, classes = len(record.heads), len(record.classes)
    weights = [{"kernel": np.ones((3, classes), np.float32), "bias": np.zeros(classes, np.float32)}] * count
    val = val or split_logits(count, 24, classes, seed=1, split="val")
    return save_run(dataset, record, weights, val, test or split_logits(count, 24, classes, seed=2))


def fitted(dataset: Path, *configs: HeadConfig, seed: int = 0, n: int = 60, **changes: Any) -> Path:
    """Save a run whose figures of val are those of its logits of val."""
    given = {name: changes.pop(name) for name in ("backbone", "fingerprint", "views") if name in changes}
    lean = changes.pop("lean", 1.5)
    count = len(configs)
    val = split_logits(count, n, seed=2 * seed, lean=lean, split="val")
    test = split_logits(count, n, seed=2 * seed + 1, lean=lean)
    heads = [
        head(
            config,
            evaluate(val.logits[number], val.label),
            val_view_mean=evaluate(val.logits_view_mean[number], val.label),
            **given,
        )
        for number, config in enumerate(configs)
    ]
    return saved(dataset, run(*heads, **changes), val, test)
