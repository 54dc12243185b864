"""Where the figures of a page come from: images, features, runs, versions, commands."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featcache.errors import CxrError
from featcache.joined import part_names
from featcache.passes import Pass, read_passes
from featcache.splits import split
from featcache.store import FeatureStore, open_store, store_folders
from heads.experiments.identity import images_sha256
from heads.experiments.runs import RunRecord
from heads.page.rows import split_words
from heads.page.run_grid import grid_file
from heads.reporting.report import Report, ReportRow
from heads.training.config import HeadConfig


@dataclass(frozen=True, kw_only=True)
class SplitCounts:
    """Images and patients of a split.

    A run keeps no labels of train; its classes and patients are told where a store still holds the run's very images.

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
class SplitProvenance:
    """A split that rows stand on: in words, and what each of its parts holds."""

    name: str
    counts: tuple[SplitCounts, ...]


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
        made_with: roughly the command that makes it: backbone and views, not what else its spec says.
        passes: the extractions that filled it, each in words.
    """

    backbone: str
    fingerprint: str
    spec: tuple[Told, ...]
    images: int | None
    quarantined: int | None
    made_with: str
    passes: tuple[str, ...]


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
        grid: the run's heads as a file for ``cxr grid --file``.
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
    grid: str

    @property
    def heads_per_second(self) -> float:
        """How fast heads were fitted, folds that were held out included."""
        return self.heads / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """All of it."""

    splits: tuple[SplitProvenance, ...]
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
    opened = _opened(dataset)
    runs = {row.row.run.run_id: row.row.run for row in report.rows}
    firsts: dict[tuple[str, str], ReportRow] = {}
    for row in report.rows:
        run = row.row.run
        firsts.setdefault((split_words(*row.row.split), run.images_sha256), row)
    return Provenance(
        splits=tuple(_split(basis, row, opened.values()) for basis, row in firsts.items()),
        stores=tuple(_stores(runs.values(), opened)),
        runs=tuple(_run(run) for run in runs.values()),
        command=command,
    )


def _split(basis: tuple[str, str], row: ReportRow, stores: Iterable[FeatureStore]) -> SplitProvenance:
    name, _ = basis
    run, val, test = row.row.run, row.row.val, row.test_logits
    classes = len(run.classes)
    return SplitProvenance(
        name=name,
        counts=(
            _train(run, stores),
            _counted("val", val.label, val.patient_id, classes),
            _counted("test", test.label, test.patient_id, classes),
        ),
    )


def _counted(name: str, label: NDArray[np.int64], patient_id: Iterable[str], classes: int) -> SplitCounts:
    return SplitCounts(
        name=name,
        images=len(label),
        of_class=tuple(np.bincount(label, minlength=classes).tolist()),
        patients=len(set(patient_id)),
    )


def _train(run: RunRecord, stores: Iterable[FeatureStore]) -> SplitCounts:
    for store in stores:
        table = store.image_table
        if images_sha256(table) == run.images_sha256:
            rows = split(table, run.split_rule, seed=run.split_seed).train
            return _counted("train", table.label[rows], table.patient_id[rows].tolist(), len(run.classes))
    return SplitCounts(name="train", images=run.n["train"])


def _opened(dataset: Path) -> dict[str, FeatureStore]:
    """The data set's stores by fingerprint."""
    opened: dict[str, FeatureStore] = {}
    for folder in store_folders(dataset):
        # An unfinished or damaged store tells nothing; the rows do not hang on it.
        with contextlib.suppress(CxrError):
            store = open_store(folder)
            opened[store.fingerprint] = store
    return opened


def _stores(runs: Iterable[RunRecord], opened: Mapping[str, FeatureStore]) -> Iterable[StoreProvenance]:
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
            made_with=shlex.join(["cxr", "extract", "--backbone", backbone, "--views", str(count)]),
            passes=tuple(_pass(one) for one in read_passes(found.path)) if found else (),
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
        grid=grid_file(run),
    )


def _pass(one: Pass) -> str:
    others = f", {one.backbones} backbones" if one.backbones > 1 else ""
    return (
        f"{one.ended}: {one.images} images × {one.views} views{others} in {one.seconds:.1f} s, "
        f"{one.images_per_second:.1f} img/s, limited by {one.limited_by}, on {one.device}"
    )


def _words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple | list):
        return ", ".join(_words(one) for one in value)
    return str(value)
