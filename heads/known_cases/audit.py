"""What ``cxr data audit`` tells: near-duplicates and doubtful labels, found by the cached features.

An audit chooses nothing among heads, so it reads every folder, the test folder too; what it finds there is told
apart, because labels of test that are changed after heads have been looked at make their figures worthless.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache import atomic
from featcache.images import ImageTable
from featcache.named_images import only_store
from featcache.settings import Settings
from featcache.workspace import data_root, present_table
from heads.known_cases.contact_sheet import MAX_PICTURES, contact_sheet
from heads.known_cases.label_errors import COLUMNS as LABEL_COLUMNS
from heads.known_cases.label_errors import LabelCandidate, label_candidates
from heads.known_cases.near_duplicates import COLUMNS as PAIR_COLUMNS
from heads.known_cases.near_duplicates import NearDuplicates, near_duplicates

CSV_COLUMNS: tuple[str, ...] = ("kind", "image_id", "label", "split", "patient_id", "distance", "relative_distance")
CSV_COLUMNS += ("identical", "other_image_id", "other_label", "other_split", "other_patient_id")
CSV_COLUMNS += ("self_confidence", "rather", "confident")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit:
    """The findings.

    Attributes:
        store: the store whose features were read.
        backbone: its network.
        images: how many were looked at.
        near_duplicates: films that are nearly the same.
        label_candidates: films whose labels may be wrong, the least credible first.
        notes: what the user should know of the images.
    """

    store: str
    backbone: str
    images: int
    near_duplicates: NearDuplicates
    label_candidates: tuple[LabelCandidate, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it, JSON-ready."""
        return dataclasses.asdict(self)

    def tables(self, shown: int) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
        """Title, columns and cells of the first ``shown`` of each list."""
        pairs = [pair.cells() for pair in self.near_duplicates.pairs[:shown]]
        doubted = [candidate.cells() for candidate in self.label_candidates[:shown]]
        return [("Near-duplicates", PAIR_COLUMNS, pairs), ("Doubtful labels", LABEL_COLUMNS, doubted)]

    def remarks(self, shown: int) -> list[str]:
        """How the lists came about and how to read them, a line each."""
        found, doubted = self.near_duplicates, self.label_candidates
        identical = sum(pair.identical for pair in found.pairs)
        across = sum(pair.split[0] != pair.split[1] for pair in found.pairs)
        in_test = sum(candidate.split == "test" for candidate in doubted)
        lines = [f"{len(found.pairs)} pairs of different patients or folders, {across} of them across splits"]
        lines[0] += f": {identical} with the same bytes, the others with a relative distance below {found.fence:.3f} "
        lines[0] += f"(Tukey's outer fence; the median is {found.median:.3f})"
        confident = sum(candidate.confident for candidate in doubted)
        lines.append(
            f"{len(doubted)} of {self.images} labels are contradicted by films of other patients, {confident} of them "
            "confidently; a reader decides, not this list"
        )
        if in_test:
            lines.append(
                f"{in_test} of them lie in test: to change test labels after heads have been looked at is not honest; "
                "leave them, or give the figures with both"
            )
        if max(len(found.pairs), len(doubted)) > shown:
            lines.append(f"the first {shown} of each list are shown; --json and --csv hold all")
        return [f"· {line}" for line in (*lines, *self.notes)]

    def to_csv(self) -> str:
        """Both lists as one CSV, a finding a row."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, CSV_COLUMNS, restval="")
        writer.writeheader()
        for pair in self.near_duplicates.pairs:
            row: dict[str, Any] = {"kind": "near-duplicate", "identical": int(pair.identical)}
            row |= {"distance": f"{pair.distance:.6f}", "relative_distance": f"{pair.relative_distance:.6f}"}
            for name in ("image_id", "label", "split", "patient_id"):
                row[name], row[f"other_{name}"] = getattr(pair, name)
            writer.writerow(row)
        for candidate in self.label_candidates:
            row = dataclasses.asdict(candidate) | {"confident": int(candidate.confident)}
            row["self_confidence"] = f"{candidate.self_confidence:.6f}"
            writer.writerow({"kind": "label", **{name: row[name] for name in row.keys() & set(CSV_COLUMNS)}})
        return text.getvalue()


def run_audit(settings: Settings) -> Audit:
    """Audit a data set by the features of one store.

    Args:
        settings: name data set and cache, and the backbone where there are several stores.

    Raises:
        StoreError: no such store, or it lacks features of images as they are now.
        DataError: a class has too few patients.
    """
    store = only_store(settings)
    present, note = present_table(settings, [store])
    table = store.image_table if present is None else present
    known = dict(zip(store.image_table.image_id, store.image_table.sha256, strict=True))
    lacking = [name for name, digest in zip(table.image_id, table.sha256, strict=True) if known.get(name) != digest]
    if lacking:
        raise store.lacking(len(lacking), len(table), lacking[0])
    return audit(table, store.features(table.image_id.tolist()), str(store.path), store.spec.backbone, [note])


def audit(
    table: ImageTable,
    features: NDArray[np.floating],
    store: str = "",
    backbone: str = "",
    notes: Sequence[str] = (),
) -> Audit:
    """Audit images by their features of the clean view, [N, D].

    Raises:
        DataError: a class has too few patients.
    """
    return Audit(
        store=store,
        backbone=backbone,
        images=len(table),
        near_duplicates=near_duplicates(table, features),
        label_candidates=label_candidates(table, features),
        notes=tuple(filter(None, notes)),
    )


def write_findings(
    found: Audit, settings: Settings, csv_file: Path | None, folder: Path | None, shown: int
) -> list[Path]:
    """Write what is wanted: all findings as a CSV, and a contact sheet of the first of each list.

    Returns:
        What was written; a list that is empty has no sheet.

    Raises:
        WriteError: a file or folder cannot be written.
        DataError: no data set is named.
    """
    files: dict[Path, bytes] = {} if csv_file is None else {csv_file: found.to_csv().encode()}
    if folder is not None:
        files |= {folder / f"{name}.png": sheet for name, sheet in sheets(found, data_root(settings), shown).items()}
    for path, content in files.items():
        atomic.write_bytes(path, content)
    return list(files)


def sheets(found: Audit, root: Path, shown: int) -> dict[str, bytes]:
    """Contact sheets as PNG, by name: the first ``shown`` pairs and doubtful labels, as far as a sheet holds them.

    Args:
        found: the findings.
        root: the folder that the image ids are relative to.
        shown: findings a list.
    """
    drawn: dict[str, bytes] = {}
    pairs = found.near_duplicates.pairs[: min(shown, MAX_PICTURES // 2)]
    if pairs:
        captions = [
            f"{'same bytes' if pair.identical else f'{pair.relative_distance:.3f}'} {label}\n{image_id}"
            for pair in pairs
            for label, image_id in zip(pair.label, pair.image_id, strict=True)
        ]
        drawn["near-duplicates"] = contact_sheet(root, [name for pair in pairs for name in pair.image_id], captions)
    doubted = found.label_candidates[: min(shown, MAX_PICTURES)]
    if doubted:
        captions = [f"{one.label}, {one.self_confidence:.4f}; {one.rather}?\n{one.image_id}" for one in doubted]
        drawn["doubtful-labels"] = contact_sheet(root, [one.image_id for one in doubted], captions)
    return drawn
