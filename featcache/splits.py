"""Which images train a head, which choose among heads, and which are looked at once.

A split is made when a head is fitted and never baked into a store. All randomness comes from the seed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from featcache.errors import DataError
from featcache.images import ImageTable, Strings

SplitRule = Literal["patient", "paper", "folders"]

EXACT_PATIENTS = 20_000
"""Up to so many patients a class, the subset sum is solved exactly; of more, the first are taken at random."""

Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Split:
    """Rows of an image table by use.

    Attributes:
        rule: the rule that made it.
        seed: its seed; only ``patient`` draws.
        train: [n] rows, ascending.
        val: [n] rows, ascending.
        test: [n] rows, ascending.
        straddling: patients with images in train and in val, sorted.
    """

    rule: SplitRule
    seed: int
    train: Rows
    val: Rows
    test: Rows
    straddling: tuple[str, ...]


def split(table: ImageTable, rule: SplitRule = "patient", *, seed: int = 0, val_share: float = 0.2) -> Split:
    """Divide a table by one of the three rules.

    ``patient``: the test folder untouched, the train folder divided so that no patient is on both sides, with
    as near ``int(val_share · n)`` val images a class as whole patients allow. Without a test folder a fifth of
    the patients is held out as test first. ``paper``: Keras' ``validation_split``, the first images of each
    class in the order of their names are val. ``folders``: as the folders are.

    Raises:
        DataError: a part would be empty, or the folders do not say what the rule needs.
    """
    folder = table.split
    test = np.flatnonzero(folder == "test")
    pool = np.flatnonzero((folder == "train") | (folder == ""))
    if rule == "folders":
        train, val = np.flatnonzero(folder == "train"), np.flatnonzero(folder == "val")
    elif rule == "paper":
        val = _first_by_name(table, pool, val_share)
        train = np.setdiff1d(pool, val)
    else:
        patients = patient_groups(table)
        random = np.random.default_rng(np.random.SeedSequence([seed, 0x5011]))
        if len(test) == 0:
            test = _whole_patients(table, pool, patients, val_share, random)
            pool = np.setdiff1d(pool, test)
        val = _whole_patients(table, pool, patients, val_share, random)
        train = np.setdiff1d(pool, val)
    for name, rows in (("train", train), ("val", val), ("test", test)):
        if len(rows) == 0:
            raise DataError(
                f"split {rule!r} leaves no {name} images of {len(table)}: "
                + ("name another with --split patient" if rule != "patient" else "there are too few patients to divide")
            )
    straddling = set(table.patient_id[train]) & set(table.patient_id[val])
    return Split(rule=rule, seed=seed, train=train, val=val, test=test, straddling=tuple(sorted(straddling)))


def patient_groups(table: ImageTable) -> NDArray[np.int64]:
    """Number the patients, counting those who share a byte-identical image as one; [N] int64.

    The same film under two patient numbers would put one image on both sides of a split.
    """
    # Python's own strings, in dictionaries: as arrays of text a million hashes take a gigabyte to sort.
    patient = _numbered(table.patient_id, sorted(set(table.patient_id)))
    hashed = table.sha256 != ""
    if not hashed.any():
        return patient
    content = _numbered(table.sha256[hashed], dict.fromkeys(table.sha256[hashed]))
    size = int(patient.max()) + 1, int(content.max()) + 1
    # Bipartite graph, patients and contents as nodes: its connected components are the groups.
    edges = coo_array((np.ones(len(content)), (patient[hashed], content + size[0])), shape=(sum(size), sum(size)))
    _, component = connected_components(edges, directed=False)
    groups: NDArray[np.int64] = component[patient].astype(np.int64)
    return groups


def _numbered(values: Strings, names: Iterable[str]) -> NDArray[np.int64]:
    """The place of each value among some names, [N]."""
    place = {name: number for number, name in enumerate(names)}
    return np.fromiter(map(place.__getitem__, values), np.int64, len(values))


def _first_by_name(table: ImageTable, pool: Rows, share: float) -> Rows:
    """The first ``int(share · n)`` images of each class, sorted by name, as Keras cuts them."""
    chosen: list[Rows] = []
    for label in range(len(table.classes)):
        rows = pool[table.label[pool] == label]
        rows = rows[np.argsort(table.image_id[rows].astype(str), kind="stable")]
        chosen.append(rows[: int(share * len(rows))])
    return np.sort(np.concatenate(chosen))


def _whole_patients(
    table: ImageTable, pool: Rows, patients: NDArray[np.int64], share: float, random: np.random.Generator
) -> Rows:
    """Rows of randomly drawn whole patients, as near ``int(share · n)`` images a class as they allow.

    Patients whose images carry several labels are drawn greedily first; those of one label then fill each class
    by an exact subset sum, so that where every patient has one label the result is the nearest there is.
    """
    classes = len(table.classes)
    numbers, group = np.unique(patients[pool], return_inverse=True)
    images = np.zeros((len(numbers), classes), np.int64)
    np.add.at(images, (group, table.label[pool]), 1)
    wanted = np.floor(share * images.sum(axis=0)).astype(np.int64)
    order = random.permutation(len(numbers))
    chosen = np.zeros(len(numbers), bool)
    mixed = (images > 0).sum(axis=1) > 1
    for number in order[mixed[order]]:
        if np.all(images[number] <= wanted):
            chosen[number] = True
            wanted -= images[number]
    for label in range(classes):
        single = order[~mixed[order] & (images[order, label] > 0)]
        chosen[single[_subset_near(images[single, label], int(wanted[label]))]] = True
    return np.sort(pool[chosen[group]])


def _subset_near(sizes: NDArray[np.int64], wanted: int) -> NDArray[np.int64]:
    """Indices of a subset of ``sizes`` whose sum is as near ``wanted`` as can be, early ones preferred.

    ``reachable[i]`` is a bit set: bit s says that some of the first i sizes sum to s. Walking back from the
    nearest reachable sum and leaving out whatever can be left out prefers the front of the (shuffled) list.
    """
    first = max(0, len(sizes) - EXACT_PATIENTS)
    # Of a list too long for the bit sets, a proportional front part is taken as it comes.
    front = int(np.searchsorted(np.cumsum(sizes[:first]), wanted * first / max(len(sizes), 1), side="right"))
    taken = list(range(front))
    wanted -= int(sizes[:front].sum())
    rest = sizes[first:]
    reachable = [1]
    for size in rest:
        reachable.append(reachable[-1] | (reachable[-1] << int(size)))
    total = int(rest.sum())
    sums = (total_sum for total_sum in range(total + 1) if reachable[-1] >> total_sum & 1)
    target = min(sums, key=lambda total_sum: abs(total_sum - wanted))
    for index in range(len(rest) - 1, -1, -1):
        if not reachable[index] >> target & 1:
            taken.append(first + index)
            target -= int(rest[index])
    return np.array(taken, np.int64)
