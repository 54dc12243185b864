"""A run: the saved outcome of one ``fit-head``, in a folder that is whole or absent.

``run.json`` holds configurations, histories and figures of val, ``weights.safetensors`` the heads, ``val.npz`` and
``test.npz`` the logits, ``folds.npz`` those of folds held out from train and val. What is read here tells nothing of
test: its logits are ``heads.reporting.sealed``'s to read, and its figures are computed from them once all is chosen
(docs/adr/0006-sealed-test.md).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from featcache import atomic
from featcache.errors import OutdatedRunError, RunError
from featcache.splits import SplitRule
from heads.experiments.split_logits import SplitLogits, npz_bytes, read_logits
from heads.statistics.metrics import Metrics
from heads.training.config import HeadConfig
from heads.training.early_stopping import History

FORMAT_VERSION = 2
RUNS_NAME = "runs"
VAL_NAME = "val.npz"


@dataclass(frozen=True, kw_only=True)
class HeadRecord:
    """One fitted head and its figures, of which none is of test.

    Attributes:
        backbone: the frozen network's name.
        fingerprint: of the features' spec.
        views: views an image that it was trained on.
        adapted: whether val and test were brought to the moments of train (transductive).
        config: what made it.
        class_weight: [K] weight of each class in the train loss.
        history: figures an epoch.
        best_epoch: the epoch whose weights were kept, from 0.
        stop_reason: why training ended.
        penalty: λ·Σw² of the kept weights.
        val: figures on the clean view of val.
        val_view_mean: figures of the mean logit over the views of val.
    """

    backbone: str
    fingerprint: str
    views: int
    adapted: bool
    config: HeadConfig
    class_weight: tuple[float, ...]
    history: History
    best_epoch: int
    stop_reason: str
    penalty: float
    val: Metrics
    val_view_mean: Metrics


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """All that ``run.json`` holds.

    Attributes:
        format_version: of this layout.
        run_id: the folder's name, determined by what went into the run.
        created: when it ended, ISO 8601 in UTC.
        dataset: the data set's name.
        images_sha256: hash over the images, labels and patients.
        classes: class names.
        positive: index of the positive class.
        split_rule: how the images were divided.
        split_seed: the seed of that.
        n: images by split.
        straddling: patients with images in train and in val.
        seconds: training time.
        provenance: versions and hardware.
        heads: the fitted heads.
    """

    format_version: int
    run_id: str
    created: str
    dataset: str
    images_sha256: str
    classes: tuple[str, ...]
    positive: int
    split_rule: SplitRule
    split_seed: int
    n: dict[str, int]
    straddling: int
    seconds: float
    provenance: dict[str, str]
    heads: tuple[HeadRecord, ...]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A run and its folder; ``reused`` when the very same run was there already.

    ``continued`` counts the heads that were trained before an interruption.
    """

    folder: Path
    record: RunRecord
    reused: bool
    continued: int = 0

    def to_json(self) -> dict[str, Any]:
        """What ``cxr fit-head --json`` prints of it."""
        record = self.record
        named = {"run": record.run_id, "folder": str(self.folder), "heads": len(record.heads), "reused": self.reused}
        return {**named, "continued": self.continued, "seconds": record.seconds, "n": record.n}

    def in_words(self) -> str:
        """The same, as a sentence."""
        how = "read back, nothing changed" if self.reused else f"fitted in {self.record.seconds:.1f} s"
        how += f" ({self.continued} of them before an interruption)" if self.continued else ""
        n = self.record.n
        return f"{len(self.record.heads)} heads {how} on {n['train']} train and {n['val']} val images, in {self.folder}"


_RECORD = TypeAdapter(RunRecord)


@dataclass(frozen=True, kw_only=True)
class _Version:
    format_version: int


_VERSION = TypeAdapter(_Version)


def save_run(
    dataset: Path,
    record: RunRecord,
    weights: Sequence[Mapping[str, NDArray[np.float32]]],
    val: SplitLogits,
    test: SplitLogits,
    others: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a run's folder, replacing one of the same id; returns the folder.

    Args:
        dataset: ``cache/<dataset>``.
        record: what ``run.json`` holds.
        weights: of each head, by the names of ``HeadWeights.tensors``.
        val: logits of val.
        test: logits of test.
        others: further files by name.

    Raises:
        WriteError: the disk is full or the folder cannot be written.
    """
    from safetensors.numpy import save

    folder = dataset / RUNS_NAME / record.run_id
    tensors = {f"{head}/{name}": array for head, state in enumerate(weights) for name, array in state.items()}
    if folder.exists():
        # Only a damaged or older run is ever written again; a whole one is found and returned before.
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise atomic.explained(folder, None, error) from error
    with atomic.new_folder(folder) as temporary:
        (temporary / "run.json").write_bytes(_RECORD.dump_json(record, indent=1))
        (temporary / "weights.safetensors").write_bytes(save(tensors))
        for name, content in {VAL_NAME: npz_bytes(val), "test.npz": npz_bytes(test), **(others or {})}.items():
            (temporary / name).write_bytes(content)
    return folder


def load_run(folder: Path) -> RunRecord:
    """Read and check ``run.json``.

    Raises:
        OutdatedRunError: it is of another version.
        RunError: no run there, or a damaged one.
    """
    path = folder / "run.json"
    try:
        data = path.read_bytes()
        found = _VERSION.validate_json(data).format_version
        if found != FORMAT_VERSION:
            raise OutdatedRunError(
                f"{path} has format {found}, this cxr reads {FORMAT_VERSION}: delete {folder} and fit again"
            )
        record = _RECORD.validate_json(data)
    except FileNotFoundError as error:
        raise RunError(f"no run in {folder}: 'cxr fit-head' makes one") from error
    except (OSError, ValidationError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(error)
        raise RunError(f"{path} is damaged ({what}): delete {folder} and run 'cxr fit-head' again") from error
    return record


def load_logits(folder: Path) -> SplitLogits:
    """Read the logits of val.

    Raises:
        RunError: the file is missing or damaged.
    """
    return read_logits(folder / VAL_NAME)


def run_folders(dataset: Path) -> list[Path]:
    """Folders of the runs of a data set, sorted by name."""
    folder = dataset / RUNS_NAME
    return sorted(path.parent for path in folder.glob("*/run.json")) if folder.is_dir() else []
