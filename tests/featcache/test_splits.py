from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from featcache import splits
from featcache.check import Scan
from featcache.errors import DataError
from featcache.images import ImageTable, discover, strings
from featcache.splits import Split, SplitRule, patient_groups, split

Row = tuple[str, str, str]
"""(folder, class, patient) of an image."""


def table_of(rows: list[Row], classes: tuple[str, ...] = ("A", "B"), digests: list[str] | None = None) -> ImageTable:
    folder, label, patient = (list(column) for column in zip(*rows, strict=True))
    # Numbered by place, so that names say nothing of patients.
    names = [f"{place}/{name}/{number:04d}.png" for number, (place, name, _) in enumerate(rows)]
    table = ImageTable.from_columns(names, label, patient, folder, classes)
    return table if digests is None else dataclasses.replace(table, sha256=strings(digests))


def films(folder: str, of: dict[str, list[int]]) -> list[Row]:
    """Rows of patients of one class each: ``of`` gives each class's number of films a patient."""
    return [
        (folder, name, f"{folder}/{name}{number}")
        for name, sizes in of.items()
        for number, size in enumerate(sizes)
        for _ in range(size)
    ]


def parts(made: Split) -> list[list[int]]:
    return [made.train.tolist(), made.val.tolist(), made.test.tolist()]


def refused(table: ImageTable, rule: SplitRule) -> str:
    with pytest.raises(DataError) as caught:
        split(table, rule)
    return str(caught.value)


FOLDERS = st.sampled_from(["train", "train", "train", "val", "test"])


@st.composite
def tables(draw: st.DrawFn, folders: st.SearchStrategy[str] = FOLDERS) -> ImageTable:
    """Any table: patients of several labels and folders, films that occur twice, classes that are rare."""
    classes = ("A", "B", "C")[: draw(st.integers(2, 3))]
    patients = st.integers(0, draw(st.integers(3, 25)))
    row = st.tuples(folders, st.sampled_from(classes), patients.map("p{}".format))
    rows = draw(st.lists(row, min_size=8, max_size=60))
    digests = draw(st.lists(st.integers(0, 200).map("{:064x}".format), min_size=len(rows), max_size=len(rows)))
    return table_of(rows, classes, digests if draw(st.booleans()) else None)


def made_of(table: ImageTable, rule: SplitRule, seed: int = 0, share: float = 0.2) -> Split:
    """The split, where the table allows one."""
    try:
        return split(table, rule, seed=seed, val_share=share)
    except DataError:
        assume(False)
        raise


# --- any table


@settings(max_examples=30)
@given(table=tables(), seed=st.integers(0, 2**32), share=st.sampled_from([0.1, 0.2, 0.5]))
def test_no_patient_and_no_content_is_on_both_sides_of_a_patient_split(
    table: ImageTable, seed: int, share: float
) -> None:
    made = made_of(table, "patient", seed, share)
    sides = table.take(made.train), table.take(made.val)
    assert not set(sides[0].patient_id) & set(sides[1].patient_id)
    assert not (set(sides[0].sha256) & set(sides[1].sha256)) - {""}
    assert made.straddling == ()


@settings(max_examples=30)
@given(table=tables(), rule=st.sampled_from(["patient", "paper"]), seed=st.integers(0, 99))
def test_the_parts_are_the_train_folder_cut_in_two_and_the_test_folder(
    table: ImageTable, rule: SplitRule, seed: int
) -> None:
    assume((table.split == "test").any())
    train, val, test = parts(made_of(table, rule, seed))
    assert sorted(train + val) == np.flatnonzero(table.split == "train").tolist()
    assert test == np.flatnonzero(table.split == "test").tolist()
    assert train == sorted(train)
    assert val == sorted(val)


@settings(max_examples=30)
@given(table=tables(folders=st.just("")), seed=st.integers(0, 99))
def test_a_table_without_folders_is_divided_into_three_by_patient(table: ImageTable, seed: int) -> None:
    made = made_of(table, "patient", seed)
    assert sorted(itertools.chain(*parts(made))) == list(range(len(table)))
    patients = [set(table.patient_id[rows]) for rows in (made.train, made.val, made.test)]
    digests = [set(table.sha256[rows]) - {""} for rows in (made.train, made.val, made.test)]
    for one, other in itertools.combinations(range(3), 2):
        assert not patients[one] & patients[other]
        assert not digests[one] & digests[other]


@settings(max_examples=30)
@given(table=tables(), seed=st.integers(0, 2**32))
def test_the_same_seed_gives_the_same_split(table: ImageTable, seed: int) -> None:
    assert parts(made_of(table, "patient", seed)) == parts(made_of(table, "patient", seed))


@settings(max_examples=30)
@given(table=tables(), seed=st.integers(0, 99), other=st.integers(0, 99))
def test_paper_and_folders_do_not_draw(table: ImageTable, seed: int, other: int) -> None:
    for rule in ("paper", "folders"):
        assert parts(made_of(table, rule, seed)) == parts(made_of(table, rule, other))


def reachable(sizes: list[int]) -> set[int]:
    """Every sum that some patients make, by trying them all."""
    return {sum(chosen) for count in range(len(sizes) + 1) for chosen in itertools.combinations(sizes, count)}


@settings(max_examples=60)
@given(
    sizes=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=9), min_size=2, max_size=3),
    share=st.sampled_from([0.1, 0.2, 0.33, 0.5]),
    seed=st.integers(0, 9),
)
def test_val_is_as_near_the_share_as_whole_patients_of_one_label_can_be(
    sizes: list[list[int]], share: float, seed: int
) -> None:
    classes = ("A", "B", "C")[: len(sizes)]
    table = table_of(
        [*films("train", dict(zip(classes, sizes, strict=True))), *films("test", {"A": [1], "B": [1]})], classes
    )
    made = made_of(table, "patient", seed, share)
    found = np.bincount(table.label[made.val], minlength=len(classes)).tolist()
    for count, of_class in zip(found, sizes, strict=True):
        wanted = int(share * sum(of_class))
        assert abs(count - wanted) == min(abs(total - wanted) for total in reachable(of_class))


def test_patients_of_several_labels_are_drawn_too_without_passing_the_share() -> None:
    rows: list[Row] = [("train", name, f"p{number}") for number in range(50) for name in "AB"]
    table = table_of([*rows, *films("test", {"A": [1]})])
    made = split(table)
    assert np.bincount(table.label[made.val]).tolist() == [10, 10]
    assert made.straddling == ()


def test_more_patients_than_the_exact_search_takes_still_come_near(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "EXACT_PATIENTS", 30)
    sizes = {"A": [1, 2, 3] * 100, "B": [1, 1, 5] * 40}
    table = table_of([*films("train", sizes), *films("test", {"A": [1]})])
    made = split(table, seed=5)
    assert np.bincount(table.label[made.val]).tolist() == [120, 56]
    assert made.straddling == ()


# --- seeds and contents


def test_another_seed_draws_other_patients() -> None:
    table = table_of([*films("train", {"A": [1, 2] * 30, "B": [3] * 40}), *films("test", {"A": [1]})])
    drawn = {tuple(split(table, seed=seed).val.tolist()) for seed in range(8)}
    assert len(drawn) == 8


def test_every_patient_is_drawn_by_some_seed() -> None:
    table = table_of([*films("train", {"A": [1, 2] * 5, "B": [3] * 10}), *films("test", {"A": [1]})])
    seen = {patient for seed in range(40) for patient in table.patient_id[split(table, seed=seed).val]}
    assert seen == set(table.patient_id[table.split == "train"])


@given(seed=st.integers(0, 2**16))
def test_two_patients_with_one_byte_identical_film_stay_on_one_side(seed: int) -> None:
    rows = [*films("train", {"A": [2] * 10, "B": [2] * 10}), *films("test", {"A": [1]})]
    digests = [f"{number:064x}" for number in range(len(rows))]
    # A chain: patients 0, 1 and 2 of A, and of B one that shares with none.
    digests[2], digests[5] = digests[1], digests[3]
    table = table_of(rows, digests=digests)
    groups = patient_groups(table)
    assert len({*groups[:6]}) == 1
    assert len(set(groups.tolist())) == 21 - 2
    made = split(table, seed=seed)
    assert len({row in made.val for row in range(6)}) == 1


def test_images_that_were_not_scanned_share_nothing() -> None:
    table = table_of(films("train", {"A": [2, 1], "B": [1]}))
    assert patient_groups(table).tolist() == [0, 0, 1, 2]


# --- paper and folders


def keras_validation_names(names_of_class: dict[str, list[str]], share: float) -> set[str]:
    """What ``ImageDataGenerator(validation_split=share)`` yields as ``subset="validation"``.

    keras.src.legacy.preprocessing.image: the files of each class folder, sorted by name, from ``int(0 * n)`` to
    ``int(share * n)``.
    """
    chosen = set()
    for names in names_of_class.values():
        for number, name in enumerate(sorted(names)):
            if number < int(share * len(names)):
                chosen.add(name)
    return chosen


@given(
    names=st.lists(st.text("abAB01_-é.", min_size=1, max_size=6), min_size=10, max_size=40, unique=True),
    cut=st.floats(0.2, 0.8),
    share=st.sampled_from([0.2, 0.25, 0.3]),
)
def test_paper_is_keras_rule(names: list[str], cut: float, share: float) -> None:
    first = math.ceil(cut * len(names))
    label = ["A"] * first + ["B"] * (len(names) - first)
    image_id = [f"train/{name}/{file}" for name, file in zip(label, names, strict=True)]
    count = len(names)
    table = ImageTable.from_columns(
        [*image_id, "test/A/x"], [*label, "A"], [*names, "x"], ["train"] * count + ["test"], ("A", "B")
    )
    by_class: dict[str, list[str]] = defaultdict(list)
    for name, path in zip(label, image_id, strict=True):
        by_class[name].append(path)
    made = made_of(table, "paper", share=share)
    assert set(table.image_id[made.val]) == keras_validation_names(by_class, share)
    assert set(table.image_id[made.train]) == set(image_id) - set(table.image_id[made.val])


def test_paper_tells_the_patients_that_straddle_it() -> None:
    table = table_of([*films("train", {"A": [1] * 4 + [3, 2, 1], "B": [5, 5]}), *films("test", {"A": [1]})])
    made = split(table, "paper")
    assert made.val.tolist() == [0, 1, 10, 11]
    assert made.straddling == ("train/B0",)


def test_folders_are_taken_as_they_are() -> None:
    table = table_of([("val", "A", "p"), ("train", "B", "p"), ("test", "A", "q"), ("train", "A", "r"), ("", "A", "s")])
    made = split(table, "folders")
    assert parts(made) == [[1, 3], [0], [2]]
    assert (made.rule, made.straddling) == ("folders", ("p",))


# --- errors


def test_an_empty_part_is_refused_with_the_way_out() -> None:
    rows = films("train", {"A": [1] * 10, "B": [1] * 10})
    way_out = "name another with --split patient"
    assert refused(table_of(rows), "paper") == f"split 'paper' leaves no test images of 20: {way_out}"
    assert refused(table_of(rows), "folders") == f"split 'folders' leaves no val images of 20: {way_out}"
    few = [*films("train", {"A": [1] * 4, "B": [1] * 4}), *films("test", {"A": [1]})]
    assert refused(table_of(few), "paper") == f"split 'paper' leaves no val images of 9: {way_out}"


def test_too_few_patients_to_divide_are_refused() -> None:
    too_few = "there are too few patients to divide"
    single: list[Row] = [("train", "A", "p")] * 9 + [("train", "B", "p")] * 9
    table = table_of([*single, *films("test", {"A": [1]})])
    assert refused(table, "patient") == f"split 'patient' leaves no val images of 19: {too_few}"
    only_test = table_of(films("test", {"A": [1] * 5, "B": [1] * 5}))
    assert re.fullmatch(rf"split 'patient' leaves no train images of 10: {too_few}", refused(only_test, "patient"))


# --- the real set


def classes_of(table: ImageTable, rows: splits.Rows) -> tuple[int, ...]:
    return tuple(np.bincount(table.label[rows], minlength=2).tolist())


@pytest.mark.real
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_real_set_divides_by_patient_into_exactly_4173_1043_624(real_scan: Scan, seed: int) -> None:
    table = real_scan.table
    made = split(table, "patient", seed=seed)
    assert [len(part) for part in parts(made)] == [4173, 1043, 624]
    assert classes_of(table, made.val) == (268, 775)
    assert classes_of(table, made.test) == (234, 390)
    sides = table.take(made.train), table.take(made.val)
    assert not set(sides[0].patient_id) & set(sides[1].patient_id)
    assert not set(sides[0].sha256) & set(sides[1].sha256)
    assert made.straddling == ()


@pytest.mark.real
def test_the_papers_split_of_the_real_set_is_4173_1043_624_and_patients_straddle_it(real_scan: Scan) -> None:
    table = real_scan.table
    made = split(table, "paper")
    assert [len(part) for part in parts(made)] == [4173, 1043, 624]
    assert classes_of(table, made.val) == (268, 775)
    both = set(table.patient_id[made.train]) & set(table.patient_id[made.val])
    assert made.straddling == tuple(sorted(both))
    assert len(both) > 0


@pytest.mark.real
def test_the_real_folders_are_5216_16_624(real_data: Path) -> None:
    made = split(discover(real_data), "folders")
    assert [len(part) for part in parts(made)] == [5216, 16, 624]
