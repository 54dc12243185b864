from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from featcache.decode import UnreadableImageError
from featcache.errors import DataError, StoreError
from featcache.images import ImageTable
from featcache.named_images import features_of, find_images, only_store
from featcache.settings import load_settings
from featcache.store import FeatureStore, open_store


@pytest.fixture(scope="module")
def store(phantom_store: Path) -> FeatureStore:
    return open_store(phantom_store)


@pytest.fixture(scope="module")
def table(store: FeatureStore) -> ImageTable:
    return store.image_table


def film_of(table: ImageTable, row: int = 30) -> str:
    return str(table.image_id[row])


def test_an_image_id_is_found_without_its_file(table: ImageTable) -> None:
    (found,) = find_images([film_of(table)], table)
    assert (found.row, found.sha256, found.data) == (30, table.sha256[30], None)


def test_a_file_is_known_by_its_bytes_wherever_it_lies(table: ImageTable, phantoms: Path, tmp_path: Path) -> None:
    shutil.copy(phantoms / film_of(table), tmp_path / "copy.jpeg")
    (tmp_path / "link.jpeg").symlink_to(phantoms / film_of(table))
    names = [str(phantoms / film_of(table)), str(tmp_path / "copy.jpeg"), str(tmp_path / "link.jpeg")]
    assert [found.row for found in find_images(names, table)] == [30, 30, 30]


def test_a_file_of_the_data_set_that_has_changed_is_another_image(
    table: ImageTable, phantoms: Path, tmp_path: Path
) -> None:
    films = shutil.copytree(phantoms, tmp_path / "films")
    path = films / film_of(table)
    path.write_bytes(path.read_bytes() + b" ")
    (found,) = find_images([film_of(table)], table, films)
    assert found.row is None
    assert found.data == path.read_bytes()
    assert find_images([film_of(table)], table, phantoms)[0].row == 30


def test_of_copies_the_one_that_was_named_is_meant(table: ImageTable, phantoms: Path, tmp_path: Path) -> None:
    twin = table.sha256.copy()
    twin[60] = twin[30]
    copies = ImageTable(**{**vars(table), "sha256": twin})
    films = shutil.copytree(phantoms, tmp_path / "films")
    shutil.copy(films / film_of(table, 30), films / film_of(table, 60))
    for row in (30, 60):
        assert find_images([film_of(table, row)], copies, films)[0].row == row
        assert find_images([str(films / film_of(table, row))], copies)[0].row == row


def test_what_is_neither_file_nor_image_is_told_with_the_nearest_name(table: ImageTable, tmp_path: Path) -> None:
    wrong = film_of(table).replace("train", "trian")
    with pytest.raises(DataError, match=rf"^no image {wrong}: .* did you mean {film_of(table)}\?$"):
        find_images([wrong], table, tmp_path)


def test_a_file_that_cannot_be_read_is_named(
    table: ImageTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "large.jpeg").write_bytes(b"12345")
    monkeypatch.setattr("featcache.check.MAX_FILE_BYTES", 4)
    with pytest.raises(UnreadableImageError, match=r"large\.jpeg: larger than 0 MiB"):
        find_images([str(tmp_path / "large.jpeg")], table)


def test_cached_and_new_images_come_in_the_order_asked_for(
    store: FeatureStore, table: ImageTable, phantoms: Path, tmp_path: Path
) -> None:
    new = tmp_path / "new.jpeg"
    new.write_bytes((phantoms / film_of(table, 40)).read_bytes() + b" ")
    found = find_images([film_of(table, 7), str(new), film_of(table, 3)], table)
    assert [one.row for one in found] == [7, None, 3]
    features = features_of(found, store, load_settings())
    # A trailing byte changes the hash and not the picture.
    assert features.tobytes() == store.features([film_of(table, row) for row in (7, 40, 3)]).tobytes()
    assert features.dtype == np.float32


def test_among_several_stores_one_must_be_named(phantom_store: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "phantoms"
    for name in ("first", "second"):
        shutil.copytree(phantom_store, dataset / name)

    def found(**named: list[str]) -> str:
        return only_store(load_settings({"cache": tmp_path, "data": Path("phantoms"), **named})).path.name

    for named in ({}, {"backbone": ["tiny_network:tiny"]}):
        with pytest.raises(StoreError, match=r"holds 2 stores that fit: say --backbone with one of first, second$"):
            found(**named)
    assert found(backbone=["second"]) == "second"
