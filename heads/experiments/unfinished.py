"""What an interrupted run keeps: each group of heads, when it has been trained, in a file of its own.

They lie in ``cache/<dataset>/unfinished/<run id>``, away from the runs, and go when the run is saved. A file is whole
or absent; one that is damaged, or of other heads, counts as absent.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import filelock
import numpy as np
import xxhash
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from featcache import atomic
from heads.experiments.runs import RUNS_NAME
from heads.training.config import HeadConfig
from heads.training.early_stopping import History, StopReason
from heads.training.group import FittedHead
from heads.training.model import HeadWeights

UNFINISHED_NAME = "unfinished"
_FORMAT = "1"


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """A fitted head beside its weights."""

    config: HeadConfig
    history: History
    best_epoch: int
    stop_reason: StopReason
    class_weight: tuple[float, ...]

    @classmethod
    def of(cls, head: FittedHead) -> _Kept:
        return cls(
            config=head.config,
            history=head.history,
            best_epoch=head.best_epoch,
            stop_reason=head.stop_reason,
            class_weight=head.class_weight,
        )

    def with_weights(self, weights: HeadWeights) -> FittedHead:
        return FittedHead(
            config=self.config,
            weights=weights,
            history=self.history,
            best_epoch=self.best_epoch,
            stop_reason=self.stop_reason,
            class_weight=self.class_weight,
        )


_HEADS = TypeAdapter(tuple[_Kept, ...])


class UnfinishedRun:
    """The groups of a run's heads that have been trained, until the run is saved.

    Several processes may train the same run: they write the same bytes under the same names.

    Attributes:
        heads: heads that were found there and not trained again.
    """

    def __init__(self, dataset: Path, run_id: str) -> None:
        self.folder = dataset / UNFINISHED_NAME / run_id
        self.heads = 0

    def of(self, fingerprint: str, views: int, fold: str = "") -> GroupFiles:
        """The groups on the features of one store, without one of the folds."""
        return GroupFiles(self, [fingerprint, views, *([fold] if fold else [])])

    def remove(self) -> None:
        """Delete all that is kept."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # Other runs' lie there.
            self.folder.parent.rmdir()

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the lock under which the run is saved; waits while another process holds it.

        Raises:
            WriteError: the data set's folder cannot be written.
        """
        # Not in the folder, which goes while others wait.
        dataset = self.folder.parent.parent
        lock = filelock.FileLock(dataset / f"{RUNS_NAME}.lock")
        try:
            dataset.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError as error:
            raise atomic.explained(dataset / RUNS_NAME, None, error) from error
        try:
            yield
        finally:
            lock.release()


class GroupFiles:
    """What ``heads.training.train.fit`` asks for groups trained before, and gives those that it has trained."""

    def __init__(self, run: UnfinishedRun, features: Sequence[str | int]) -> None:
        self._run = run
        self._features = features

    def load(self, configs: Sequence[HeadConfig]) -> list[FittedHead] | None:
        """Return the group of exactly these heads; None where it is not there, or damaged."""
        heads = _read(self._path(configs), configs)
        if len(self._features) == 2:  # Heads fitted without a fold are none of the run's.
            self._run.heads += len(heads or ())
        return heads

    def keep(self, heads: Sequence[FittedHead]) -> None:
        """Write a trained group.

        Raises:
            WriteError: the disk is full or the folder cannot be written.
        """
        tensors = {
            f"{number}/{name}": array
            for number, head in enumerate(heads)
            for name, array in head.weights.tensors().items()
        }
        text = _HEADS.dump_json(tuple(map(_Kept.of, heads))).decode()
        metadata = {"format": _FORMAT, "heads": text, "xxh3_128": _checksum(text, tensors)}
        try:
            atomic.write_bytes(self._path([head.config for head in heads]), save(tensors, metadata))
        except atomic.WriteError as error:
            # Another process has saved the very run meanwhile, and removed the folder.
            if not isinstance(error.__cause__, FileNotFoundError):
                raise

    def _path(self, configs: Sequence[HeadConfig]) -> Path:
        """Named by all heads of the group: the shape of a group decides the last bits of its heads."""
        content = json.dumps([*self._features, [asdict(config) for config in configs]], sort_keys=True)
        return self._run.folder / f"group-{hashlib.sha256(content.encode()).hexdigest()[:24]}.safetensors"


def _read(path: Path, configs: Sequence[HeadConfig]) -> list[FittedHead] | None:
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        text = metadata.get("heads", "")
        if metadata.get("format") != _FORMAT or metadata.get("xxh3_128") != _checksum(text, tensors):
            return None
        kept = _HEADS.validate_json(text)
        if [one.config for one in kept] != list(configs):
            return None
        return [one.with_weights(_weights(number, tensors)) for number, one in enumerate(kept)]
    except (OSError, SafetensorError, ValidationError, ValueError):
        return None


def _weights(number: int, tensors: Mapping[str, NDArray[np.float32]]) -> HeadWeights:
    head = f"{number}/"
    return HeadWeights.from_tensors({k.removeprefix(head): v for k, v in tensors.items() if k.startswith(head)})


def _checksum(text: str, tensors: Mapping[str, NDArray[np.float32]]) -> str:
    digest = xxhash.xxh3_128(text.encode())
    for name, array in sorted(tensors.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
