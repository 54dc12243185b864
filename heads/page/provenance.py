"""Where the figures of a page come from: images, features, runs, versions, commands."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featcache.errors import CxrError
from featcache.joined import part_names
from featcache.store import FeatureStore, open_store, store_folders
from heads.experiments.runs import RunRecord
from heads.experiments.split_logits import SplitLogits
from heads.reporting.report import Report
from heads.training.config import HeadConfig


@dataclass(frozen=True, kw_only=True)
class SplitCounts:
    """Images and patients of a split; of train a run keeps the number of images alone.

    Attributes:
        name: train, val or test.
        images: how many.
        of_class: images of each class.
        patients: how many.
    """

    name: str
    images: int
    of_class: tuple[int, ...] | None = None
    patients: int | None = None


@dataclass(frozen=True, kw_only=True)
class Told:
    """A name and what is told of it."""

    name: str
    value: str


@dataclass(frozen=True, kw_only=True)
class StoreProvenance:
    """Features that heads were fitted on.

    Attributes:
        backbone: the frozen network.
        fingerprint: of the spec.
        spec: its fields; empty where the store is no longer in the cache.
        images: in the store.
        quarantined: images that could not be used.
        made_with: the command that makes it.
    """

    backbone: str
    fingerprint: str
    spec: tuple[Told, ...]
    images: int | None
    quarantined: int | None
    made_with: str


@dataclass(frozen=True, kw_only=True)
class RunProvenance:
    """A run whose heads stand in the table.

    Attributes:
        run_id: its name.
        created: when it ended, ISO 8601 in UTC.
        heads: how many it has.
        seconds: training time.
        split: how the images were divided.
        straddling: patients in train and in val.
        images_sha256: hash over images, labels and patients.
        varied: fields of the heads' configurations with the values that they take.
        versions: of packages, and the machine.
    """

    run_id: str
    created: str
    heads: int
    seconds: float
    split: str
    straddling: int
    images_sha256: str
    varied: tuple[Told, ...]
    versions: tuple[Told, ...]

    @property
    def heads_per_second(self) -> float:
        """How fast heads were fitted, folds that were held out included."""
        return self.heads / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """All of it."""

    splits: tuple[SplitCounts, ...]
    stores: tuple[StoreProvenance, ...]
    runs: tuple[RunProvenance, ...]
    command: str


def provenance_of(report: Report, dataset: Path, command: str = "") -> Provenance:
    """Gather where a report's rows come from.

    Args:
        report: the rows.
        dataset: ``cache/<dataset>``, whose stores are looked up.
        command: that made the page.
    """
    first = report.rows[0]
    classes = len(first.row.run.classes)
    runs = {row.row.run.run_id: row.row.run for row in report.rows}
    return Provenance(
        splits=(
            SplitCounts(name="train", images=first.row.run.n["train"]),
            _counted("val", first.row.val, classes),
            _counted("test", first.test_logits, classes),
        ),
        stores=tuple(_stores(runs.values(), dataset)),
        runs=tuple(_run(run) for run in runs.values()),
        command=command,
    )


def _counted(name: str, split: SplitLogits, classes: int) -> SplitCounts:
    return SplitCounts(
        name=name,
        images=len(split.label),
        of_class=tuple(np.bincount(split.label, minlength=classes).tolist()),
        patients=len(set(split.patient_id)),
    )


def _stores(runs: Iterable[RunRecord], dataset: Path) -> Iterable[StoreProvenance]:
    opened: dict[str, FeatureStore] = {}
    for folder in store_folders(dataset):
        try:
            store = open_store(folder)
        except CxrError:
            continue  # An unfinished or damaged store tells nothing; the rows do not hang on it.
        opened[store.fingerprint] = store
    views: dict[tuple[str, str], int] = {}
    for run in runs:
        for head in run.heads:
            for part in part_names(head.backbone, head.fingerprint):
                views[part] = max(views.get(part, 0), head.views)
    for (backbone, fingerprint), count in views.items():
        found = opened.get(fingerprint)
        yield StoreProvenance(
            backbone=backbone,
            fingerprint=fingerprint,
            spec=_spec(found) if found else (),
            images=len(found.part) if found else None,
            quarantined=len(found.quarantined) if found else None,
            made_with=f"cxr extract --backbone {backbone} --views {count}",
        )


def _spec(store: FeatureStore) -> tuple[Told, ...]:
    fields = dataclasses.asdict(store.spec)
    return tuple(Told(name=name, value=_words(value)) for name, value in fields.items() if name != "backbone")


def _run(run: RunRecord) -> RunProvenance:
    values = {
        field.name: sorted({getattr(head.config, field.name) for head in run.heads})
        for field in dataclasses.fields(HeadConfig)
    }
    return RunProvenance(
        run_id=run.run_id,
        created=run.created,
        heads=len(run.heads),
        seconds=run.seconds,
        split=f"{run.split_rule}, seed {run.split_seed}",
        straddling=run.straddling,
        images_sha256=run.images_sha256,
        varied=tuple(Told(name=name, value=", ".join(_words(one) for one in held)) for name, held in values.items()),
        versions=tuple(Told(name=name, value=value) for name, value in run.provenance.items()),
    )


def _words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple | list):
        return ", ".join(_words(one) for one in value)
    return str(value)
