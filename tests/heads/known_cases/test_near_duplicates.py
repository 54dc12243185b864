from __future__ import annotations

import dataclasses
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from synthetic import images

from featcache.backbones import Backbone
from featcache.check import scan
from featcache.extraction import extract
from featcache.images import ImageTable, discover
from featcache.runtime import Compute
from featcache.store import open_store
from heads.known_cases.near_duplicates import NEIGHBOURS, FilmPair, near_duplicates
from heads.known_cases.nearest import directions

COMPUTE = Compute(device="cpu", runtime="torch", precision="float32", batch_size=8, threads=2)


@pytest.fixture(scope="module")
def table() -> ImageTable:
    """98 films, two a patient."""
    return images(films=2)


@pytest.fixture(scope="module")
def features(table: ImageTable) -> NDArray[np.float32]:
    return np.random.default_rng(0).gamma(1.0, 1.0, (len(table), 24)).astype(np.float32)


def ids(pairs: tuple[FilmPair, ...]) -> set[frozenset[str]]:
    return {frozenset(pair.image_id) for pair in pairs}


def test_films_that_differ_give_no_pairs(table: ImageTable, features: NDArray[np.float32]) -> None:
    found = near_duplicates(table, features)
    assert found.pairs == ()
    assert 0 < found.fence < found.median < 1


def test_the_fence_is_tukeys_of_a_plain_loop(table: ImageTable, features: NDArray[np.float32]) -> None:
    units = directions(features).astype(np.float64)
    logarithms = []
    for one in range(len(table)):
        others = [
            1 - units[one] @ units[other]
            for other in range(len(table))
            if (table.patient_id[one], table.split[one]) != (table.patient_id[other], table.split[other])
        ]
        others.sort()
        logarithms.append(np.log(others[0] / others[NEIGHBOURS - 1]))
    low, median, high = np.quantile(logarithms, [0.25, 0.5, 0.75])
    found = near_duplicates(table, features)
    assert found.fence == pytest.approx(np.exp(low - 3 * (high - low)), rel=1e-4)
    assert found.median == pytest.approx(np.exp(median), rel=1e-4)


def test_a_film_that_was_copied_with_small_changes_is_found_and_told_what_it_is(
    table: ImageTable, features: NDArray[np.float32]
) -> None:
    changed = features.copy()
    of = {name: np.flatnonzero(table.split == name) for name in ("train", "test")}
    one, other, third = of["train"][5], of["test"][29], of["train"][50]
    for copy in (other, third):
        changed[copy] = changed[one] * (1 + 0.05 * np.random.default_rng(copy).standard_normal(24))
    found = near_duplicates(table, changed)
    names = table.image_id
    # Three copies: none hides another.
    assert ids(found.pairs) == {
        frozenset((names[one], names[other])),
        frozenset((names[one], names[third])),
        frozenset((names[other], names[third])),
    }
    (across,) = [pair for pair in found.pairs if set(pair.image_id) == {names[one], names[other]}]
    assert across.remark == "across splits, other label"
    assert set(across.split) == {"train", "test"}
    assert across.distance == pytest.approx(
        float(1 - np.prod(directions(changed[[one, other]]), axis=0).sum()), rel=1e-3
    )
    relative = [pair.relative_distance for pair in found.pairs]
    assert relative == sorted(relative)
    assert relative[-1] < found.fence


def test_films_of_one_patient_may_be_alike_within_a_folder_and_not_across_folders(
    table: ImageTable, features: NDArray[np.float32]
) -> None:
    changed = features.copy()
    train = np.flatnonzero(table.split == "train")
    one, sibling, other = train[4], train[5], np.flatnonzero(table.split == "val")[0]
    assert table.patient_id[one] == table.patient_id[sibling]
    changed[sibling] = changed[one] * 1.01
    assert near_duplicates(table, changed).pairs == ()
    patient = table.patient_id.copy()
    patient[other] = patient[one]
    changed[other] = changed[one] * np.linspace(0.99, 1.01, 24)
    (first, second) = near_duplicates(dataclasses.replace(table, patient_id=patient), changed).pairs
    assert {first.remark, second.remark} == {"across splits, same patient"}


def test_the_same_bytes_are_listed_whatever_the_features_and_take_no_part_in_the_rule(
    table: ImageTable, features: NDArray[np.float32]
) -> None:
    train = np.flatnonzero(table.split == "train")
    sha256 = table.sha256.copy()
    # A film and its twin of the same patient; and half of all films copied under other patients' names.
    sha256[train[5]] = sha256[train[4]]
    copies = np.arange(8, 40, 4)
    sha256[train[copies]] = sha256[train[copies + 2]]
    changed = features.copy()
    changed[train[5]], changed[train[copies]] = changed[train[4]], changed[train[copies + 2]]
    found = near_duplicates(dataclasses.replace(table, sha256=sha256), changed)
    expected = {frozenset((table.image_id[train[row]], table.image_id[train[row + 2]])) for row in copies}
    assert ids(found.pairs) == expected
    assert all(pair.identical and pair.distance == 0 and "same bytes" in pair.remark for pair in found.pairs)
    assert found.fence == pytest.approx(near_duplicates(table, features).fence, rel=0.1)


def test_of_too_few_films_only_the_same_bytes_are_told(table: ImageTable, features: NDArray[np.float32]) -> None:
    few = table.take(np.arange(0, 16, 2))
    sha256 = few.sha256.copy()
    sha256[3] = sha256[1]
    found = near_duplicates(dataclasses.replace(few, sha256=sha256), features[:8])
    assert (len(found.pairs), found.fence, found.pairs[0].identical) == (1, 0.0, True)


@pytest.mark.parametrize("quality", [75, 50])
@pytest.mark.parametrize("side", [64, 56])
def test_a_train_phantom_saved_anew_and_resized_into_test_is_found(
    quality: int, side: int, phantoms: Path, tmp_path: Path, tiny: Backbone
) -> None:
    films = shutil.copytree(phantoms, tmp_path / "films")
    source = sorted((films / "train/PNEUMONIA").iterdir())[11]
    with Image.open(source) as image:
        buffer = io.BytesIO()
        image.resize((side, side), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=quality)
    (films / "test/NORMAL/planted.jpeg").write_bytes(buffer.getvalue())
    (summary,) = extract(scan(discover(films), films), films, tmp_path / "cache", [tiny], compute=COMPUTE)
    store = open_store(summary.store)
    found = near_duplicates(store.image_table, store.features())
    planted = [pair for pair in found.pairs if "test/NORMAL/planted.jpeg" in pair.image_id]
    assert [set(pair.image_id) for pair in planted] == [
        {"test/NORMAL/planted.jpeg", source.relative_to(films).as_posix()}
    ]
    assert planted[0].remark == "across splits, other label"
    assert len(found.pairs) <= 5
