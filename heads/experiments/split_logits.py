"""What heads say of a split: logits with the images that they are of, and the files that keep them."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from featcache.errors import RunError

Kind = Literal["clean", "view_mean"]
KINDS: tuple[Kind, ...] = ("clean", "view_mean")
"""Logits of the clean view, and their mean over the views."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitLogits:
    """What the heads of a run say of one split.

    Attributes:
        logits: [heads, n, K] float32, of the clean view.
        logits_view_mean: [heads, n, K] float32, the mean over the views.
        label: [n] int64.
        image_id: [n].
        patient_id: [n]; intervals must count patients, not their films.
    """

    logits: NDArray[np.float32]
    logits_view_mean: NDArray[np.float32]
    label: NDArray[np.int64]
    image_id: tuple[str, ...]
    patient_id: tuple[str, ...]

    @cached_property
    def patient(self) -> NDArray[np.intp]:
        """The number of each image's patient, [n], in the order of their names."""
        return np.unique(np.array(self.patient_id), return_inverse=True)[1]

    def of(self, kind: Kind) -> NDArray[np.float32]:
        """The logits of a kind, [heads, n, K]."""
        return self.logits if kind == "clean" else self.logits_view_mean


def read_logits(path: Path) -> SplitLogits:
    """Read and check one file of logits.

    Raises:
        RunError: the file is missing or damaged.
    """
    return logits_in(read_arrays(path), path)


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read the arrays of a file of logits.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        # From memory: numpy leaves a file open that turns out to be no zip.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise damaged(path, str(error)) from error


def damaged(path: Path, what: str) -> RunError:
    """The error that names a damaged file of a run, and the way out."""
    return RunError(f"{path} is damaged ({what}): delete {path.parent} and run 'cxr fit-head' again")


def logits_in(arrays: Mapping[str, NDArray[Any]], path: Path) -> SplitLogits:
    """Check the arrays of a file of logits.

    Raises:
        RunError: one is missing, or they do not fit.
    """
    try:
        loaded = SplitLogits(
            logits=arrays["logits"],
            logits_view_mean=arrays["logits_view_mean"],
            label=arrays["label"],
            image_id=tuple(arrays["image_id"].tolist()),
            patient_id=tuple(arrays["patient_id"].tolist()),
        )
    except KeyError as error:
        raise damaged(path, f"it lacks {error}") from error
    n = len(loaded.label)
    shape = loaded.logits.shape
    fits = len(shape) == 3 and shape[1] == n and loaded.logits_view_mean.shape == shape
    if not fits or {len(loaded.image_id), len(loaded.patient_id)} != {n}:
        raise damaged(path, "its arrays differ in length")
    return loaded


def npz_bytes(split: SplitLogits, more: Mapping[str, NDArray[Any]] | None = None) -> bytes:
    """A file of logits, and of further arrays that go with them."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {
        **(more or {}),
        "logits": split.logits,
        "logits_view_mean": split.logits_view_mean,
        "label": split.label,
        "image_id": np.array(split.image_id, np.str_),
        "patient_id": np.array(split.patient_id, np.str_),
    }
    np.savez(buffer, **arrays)
    return buffer.getvalue()
