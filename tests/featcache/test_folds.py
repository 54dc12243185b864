from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.errors import DataError
from featcache.folds import block_folds, series_folds
from featcache.images import ImageTable, discover, patient_of, strings
from featcache.splits import patient_groups, split


def named(of: dict[str, list[str]]) -> ImageTable:
    """Train images by class and file name, patients as the names say."""
    pairs = [(label, f"train/{label}/{name}") for label, names in of.items() for name in names]
    image_ids = [image_id for _, image_id in pairs]
    patients = [patient_of(image_id, "train") for image_id in image_ids]
    labels = [label for label, _ in pairs]
    return ImageTable.from_columns(image_ids, labels, patients, ["train"] * len(pairs), tuple(sorted(of)))


def kermany_like() -> ImageTable:
    return named(
        {
            "NORMAL": [
                *(f"IM-{number:04d}-0001.jpeg" for number in range(10)),
                *(f"NORMAL2-IM-{number:04d}-0001.jpeg" for number in range(20)),
            ],
            "PNEUMONIA": [
                *(f"person{number}_bacteria_{film}.jpeg" for number in range(30) for film in (1, 2)),
                *(f"person{number}_virus_1.jpeg" for number in range(30, 50)),
            ],
        }
    )


def test_a_block_is_consecutive_patients_of_every_series() -> None:
    table = kermany_like()
    folds = block_folds(table, np.arange(len(table)), 5)
    assert [fold.name for fold in folds] == [f"block {number} of 5" for number in range(1, 6)]
    second = table.image_id[folds[1].held_out].tolist()
    assert second == [
        *(f"train/NORMAL/IM-{number:04d}-0001.jpeg" for number in (2, 3)),
        *(f"train/NORMAL/NORMAL2-IM-{number:04d}-0001.jpeg" for number in range(4, 8)),
        *(f"train/PNEUMONIA/person{number}_bacteria_{film}.jpeg" for number in range(6, 12) for film in (1, 2)),
        *(f"train/PNEUMONIA/person{number}_virus_1.jpeg" for number in range(34, 38)),
    ]


def test_folds_hold_out_every_image_once_and_no_patient_is_on_both_sides() -> None:
    table = kermany_like()
    rows = np.arange(3, len(table))
    for folds in (block_folds(table, rows, 4), series_folds(table, rows)):
        assert np.array_equal(np.sort(np.concatenate([fold.held_out for fold in folds])), rows)
        for fold in folds:
            assert np.array_equal(np.sort(np.concatenate([fold.held_out, fold.rest])), rows)
            assert not set(table.patient_id[fold.held_out]) & set(table.patient_id[fold.rest])
            assert set(table.label[fold.held_out]) == {0, 1} == set(table.label[fold.rest])


def test_a_series_fold_holds_out_the_files_that_are_named_alike() -> None:
    table = kermany_like()
    first, second = series_folds(table, np.arange(len(table)))
    assert first.name == "NORMAL: IM, PNEUMONIA: person-bacteria"
    assert second.name == "NORMAL: NORMAL-IM, PNEUMONIA: person-virus"
    held = table.image_id[second.held_out].tolist()
    assert len(held) == 40
    assert all("NORMAL2" in name or "virus" in name for name in held)


def test_a_class_of_one_series_is_held_out_by_blocks() -> None:
    table = named(
        {
            "A": [f"left-{number}.png" for number in range(6)] + [f"right-{number}.png" for number in range(6)],
            "B": [f"scan{number}.png" for number in range(8)],
        }
    )
    first, second = series_folds(table, np.arange(len(table)))
    assert first.name == "A: left, B: block 1 of 2"
    assert [name for name in table.image_id[second.held_out] if "/B/" in name] == [
        f"train/B/scan{number}.png" for number in range(4, 8)
    ]


def test_without_two_series_there_is_no_series_fold() -> None:
    table = named({"A": [f"scan{number}.png" for number in range(6)], "B": [f"scan{n}.png" for n in range(9, 15)]})
    assert series_folds(table, np.arange(len(table))) == ()


def test_patients_are_ordered_by_their_numbers_and_not_by_their_letters() -> None:
    table = named({label: [f"person{number}_x_1.png" for number in range(1, 21)] for label in "AB"})
    table = dataclasses.replace(table, patient_id=strings([name.rpartition("_")[0] for name in table.image_id]))
    first, _ = block_folds(table, np.arange(len(table)), 2)
    assert set(table.image_id[first.held_out][:10]) == {f"train/A/person{number}_x_1.png" for number in range(1, 11)}


def test_patients_who_share_an_image_are_one() -> None:
    table = named({label: [f"person{number}_x_1.png" for number in range(12)] for label in "AB"})
    digests = [f"{number:064x}" for number in range(len(table))]
    digests[11] = digests[0]
    table = dataclasses.replace(table, sha256=strings(digests))
    group = patient_groups(table)
    for fold in block_folds(table, np.arange(len(table)), 3):
        assert not set(group[fold.held_out]) & set(group[fold.rest])


def test_too_few_patients_are_an_error_that_names_the_class() -> None:
    table = named({"A": ["p1_x_1.png", "p2_x_1.png"], "B": [f"p{number}_x_1.png" for number in range(9)]})
    with pytest.raises(DataError, match="A has 2 patients in train and val, too few for 5 held-out folds"):
        block_folds(table, np.arange(len(table)))
    with pytest.raises(ValueError, match="two blocks at least"):
        block_folds(table, np.arange(len(table)), 1)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.sampled_from("AB"), st.integers(0, 12)), min_size=1, max_size=40), st.integers(2, 4))
def test_blocks_differ_by_no_more_than_a_patient_and_a_rounding(films: list[tuple[str, int]], count: int) -> None:
    base = [(label, number) for label in "AB" for number in range(5)]
    names: dict[str, list[str]] = {"A": [], "B": []}
    for film, (label, number) in enumerate(base + films):
        names[label].append(f"{label}{number}_x_{film}.png")
    table = named(names)
    patients = strings([name.partition("_")[0] for name in table.image_id])
    table = dataclasses.replace(table, patient_id=patients)
    largest = max(np.unique(patients.astype(str), return_counts=True)[1])
    for index in (0, 1):
        of_class = table.label == index
        images = [int(of_class[fold.held_out].sum()) for fold in block_folds(table, np.arange(len(table)), count)]
        assert abs(max(images) - min(images)) <= 2 * largest


@pytest.mark.real
def test_split_and_folds_of_the_real_set_fit(real_data: Path) -> None:
    table = discover(real_data)
    divided = split(table, "patient")
    rows = np.sort(np.concatenate([divided.train, divided.val]))
    assert len(series_folds(table, rows)) == 2
    for fold in block_folds(table, rows):
        assert 950 < len(fold.held_out) < 1150
