"""Held-out folds that differ from the rest: a stand-in, within train and val, for the shift that test will bring.

A random fold looks like what a head was trained on, and so flatters it. Here patients are held out who were filmed
together: a block of consecutive patient numbers, which follow acquisition, or all whose files are named alike, as a
hospital or a device names them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featcache.errors import DataError
from featcache.images import ImageTable
from featcache.splits import Rows, patient_groups

BLOCKS = 5
LEAST_SERIES = 0.05
"""A series of a smaller share of its class is not held out by itself: it would say little."""

NUMBER_OR_TEXT = re.compile(r"\d+|\D+")
WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Rows of an image table that are held out, and the rest; no patient is in both.

    Attributes:
        name: what is held out, in words.
        held_out: [n] rows, ascending.
        rest: [n] rows, ascending.
    """

    name: str
    held_out: Rows
    rest: Rows


@dataclass(frozen=True, kw_only=True, eq=False)
class _Patients:
    """Patients in the order of their numbers; class and series are those of a patient's first image.

    Attributes:
        of_row: [n] patient of each row.
        images: [P] images.
        label: [P] class.
        series: [P] words of the file's name.
    """

    of_row: NDArray[np.int64]
    images: NDArray[np.int64]
    label: NDArray[np.int64]
    series: NDArray[np.str_]


def block_folds(table: ImageTable, rows: Rows, count: int = BLOCKS) -> tuple[Fold, ...]:
    """Cut the patients of each class and series, in the order of their numbers, into consecutive blocks.

    Args:
        table: the images.
        rows: those of train and val, [n].
        count: blocks, 2 at least.

    Returns:
        A fold a block; it holds out that block of every class and series.

    Raises:
        DataError: a class has fewer patients than there are blocks.
    """
    patients = _patients(table, rows)
    block = _blocks(table, patients, count)
    return _folds(rows, patients, [(f"block {number + 1} of {count}", block == number) for number in range(count)])


def series_folds(table: ImageTable, rows: Rows) -> tuple[Fold, ...]:
    """Hold out one name series of each class: the images whose files are named with the same words.

    ``IM-0115-0001`` and ``NORMAL2-IM-1427-0001`` are two series of one class, ``person1_virus_6`` and
    ``person1_bacteria_2`` of another. The first fold holds out the first series of each class, the second the second,
    and around again for a class that has fewer; of a class with one series, a block of consecutive patients.

    Args:
        table: the images.
        rows: those of train and val, [n].

    Returns:
        As many folds as the class of the most series has of them; none where no class has two.

    Raises:
        DataError: a class has fewer patients than there are folds.
    """
    patients = _patients(table, rows)
    series = {label: _sizeable(patients, label) for label in np.unique(patients.label).tolist()}
    count = max(map(len, series.values()))
    if count < 2:
        return ()
    block = _blocks(table, patients, count)
    held_out: list[tuple[str, NDArray[np.bool_]]] = []
    for number in range(count):
        mask = np.zeros(len(patients.images), bool)
        names: list[str] = []
        for label, known in series.items():
            of_class = patients.label == label
            if len(known) > 1:
                name = known[number % len(known)]
                mask |= of_class & (patients.series == name)
            else:
                name = f"block {number + 1} of {count}"
                mask |= of_class & (block == number)
            names.append(f"{table.classes[label]}: {name}")
        held_out.append((", ".join(names), mask))
    return _folds(rows, patients, held_out)


def _patients(table: ImageTable, rows: Rows) -> _Patients:
    group = patient_groups(table)[rows]
    names, image_ids = table.patient_id[rows], table.image_id[rows]
    order = sorted(range(len(rows)), key=lambda row: (_natural(str(names[row])), image_ids[row]))
    first: dict[int, int] = {}
    for row in order:
        first.setdefault(int(group[row]), row)
    number = {patient: place for place, patient in enumerate(first)}
    of_row = np.array([number[patient] for patient in group.tolist()], np.int64)
    firsts = list(first.values())
    return _Patients(
        of_row=of_row,
        images=np.bincount(of_row, minlength=len(firsts)).astype(np.int64),
        label=table.label[rows][firsts],
        series=np.array([_words(image_ids[row]) for row in firsts], np.str_),
    )


def _natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """A key by which person2 comes before person10."""
    pieces = NUMBER_OR_TEXT.findall(name)
    return tuple((0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in pieces)


def _words(image_id: str) -> str:
    """``train/NORMAL/NORMAL2-IM-1427-0001.jpeg`` → ``NORMAL-IM``: a file's name without its numbers and suffix."""
    return "-".join(WORD.findall(image_id.rpartition("/")[2].rpartition(".")[0]))


def _sizeable(patients: _Patients, label: int) -> Sequence[str]:
    """The series of a class that are large enough to be held out, sorted."""
    of_class = patients.label == label
    names, place = np.unique(patients.series[of_class], return_inverse=True)
    images = np.bincount(place, patients.images[of_class])
    return [str(name) for name, share in zip(names, images / images.sum(), strict=True) if share >= LEAST_SERIES]


def _blocks(table: ImageTable, patients: _Patients, count: int) -> NDArray[np.int64]:
    """Each patient's block, [P]: consecutive patients, about as many images a block."""
    if count < 2:
        raise ValueError(f"folds: wanted two blocks at least, got {count}")
    block = np.zeros(len(patients.images), np.int64)
    for label in np.unique(patients.label).tolist():
        of_class = patients.label == label
        if (known := int(of_class.sum())) < count:
            raise DataError(
                f"{table.classes[label]} has {known} patients in train and val, too few for {count} held-out folds: "
                "choose by --select clean or views"
            )
        for name in np.unique(patients.series[of_class]):
            members = np.flatnonzero(of_class & (patients.series == name))
            before = np.cumsum(patients.images[members]) - patients.images[members]
            block[members] = before * count // patients.images[members].sum()
    return block


def _folds(rows: Rows, patients: _Patients, held_out: Sequence[tuple[str, NDArray[np.bool_]]]) -> tuple[Fold, ...]:
    folds: list[Fold] = []
    for name, mask in held_out:
        chosen = mask[patients.of_row]
        folds.append(Fold(name=name, held_out=np.sort(rows[chosen]), rest=np.sort(rows[~chosen])))
    return tuple(folds)
