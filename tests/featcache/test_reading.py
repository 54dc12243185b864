"""Rows come from a store whole or in blocks, in any order; what is taken without HDF5 is verified all the same."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from synthetic import SPEC, features_of, images

from featcache import layouts
from featcache.check import Scan
from featcache.errors import StoreError
from featcache.images import ImageTable
from featcache.index import INDEX_NAME, PARTS_NAME, stored_dtype, write_index
from featcache.layouts import matching_rows
from featcache.parts import PartHeader, part_name, read_header, write_part
from featcache.store import FeatureStore, open_store

VIEWS, DIM, PART = 3, 5, 16
TABLE = images({"train": (30, 50), "test": (8, 12)})
FEATURES = features_of(TABLE, views=VIEWS, dim=DIM).astype(np.float16)


def make(folder: Path, table: ImageTable = TABLE, features: NDArray[np.float16] = FEATURES) -> FeatureStore:
    """A store of seven parts, the last of which is short; view 2 lies in parts of its own, in another order."""
    rows = np.arange(len(table))
    headers = []
    for views, order in (((0, 1), rows), ((2,), rows[::-1])):
        for start in range(0, len(rows), PART):
            chosen = order[start : start + PART]
            stored = features[np.ix_(chosen, np.array(views))].astype(np.float32)
            path = write_part(folder / PARTS_NAME, SPEC, table.sha256[chosen].tolist(), views, stored, {})
            headers.append(read_header(path))
    write_index(folder, SPEC, Scan(table=table, quarantined=(), odd=()), headers)
    return open_store(folder)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Read it, never write to it."""
    return make(tmp_path_factory.mktemp("store"))


def parts_of_views_0_and_1(store: FeatureStore) -> list[Path]:
    paths = sorted((store.path / PARTS_NAME).glob("part-*.h5"))
    return [path for path in paths if read_header(path).views == (0, 1)]


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


def where(path: Path, name: str) -> int:
    with h5py.File(path) as file:
        return int(file[name].id.get_offset())


# ---- what is read


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 99), min_size=1, max_size=150), st.integers(1, VIEWS))
def test_any_rows_come_in_the_order_asked_for(store: FeatureStore, rows: list[int], views: int) -> None:
    names = TABLE.image_id[rows].tolist()
    assert np.array_equal(store.views(names, views), FEATURES[rows, :views])
    assert np.array_equal(store.features(names, view=views - 1), FEATURES[rows, views - 1].astype(np.float32))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(0, 99), min_size=1, max_size=120, unique=True),
    st.integers(1, 40),
    st.sampled_from(["all views", "clean"]),
)
def test_blocks_are_the_rows_each_time_they_are_read(
    store: FeatureStore, rows: list[int], size: int, which: str
) -> None:
    reader = store.reader(store.rows(TABLE.image_id[rows].tolist()), range(VIEWS))
    reader = reader.clean() if which == "clean" else reader
    wanted = FEATURES[rows, :1] if which == "clean" else FEATURES[rows]
    assert reader.shape == wanted.shape
    for _ in range(3):
        for start in range(0, len(rows), size):
            stop = min(start + size, len(rows))
            out = np.full((stop - start, *reader.shape[1:]), np.nan, np.float16)
            reader.read(start, stop, out)
            assert np.array_equal(out, wanted[start:stop])


def test_blocks_may_be_read_as_float32(store: FeatureStore) -> None:
    reader = store.reader(np.arange(100), range(VIEWS))
    out = np.empty((40, VIEWS, DIM), np.float32)
    for _ in range(2):
        reader.read(10, 50, out)
        assert np.array_equal(out, FEATURES[10:50].astype(np.float32))


def test_views_that_do_not_follow_one_another_are_misuse(store: FeatureStore) -> None:
    with pytest.raises(ValueError, match=r"views from 0 on that follow one another, got 100 images and views \[0, 2\]"):
        store.reader(np.arange(100), [0, 2])


def test_hdf5_opens_one_part_of_a_size_and_no_other(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def noted(path: Path, *arguments: object) -> PartHeader:
        opened.append(path.name)
        return read_header(path, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(layouts, "read_header", noted)
    assert np.array_equal(store.reader(np.arange(100), [0, 1])._read_all(np.dtype(np.float16)), FEATURES[:, :2])
    sizes = {path.stat().st_size for path in parts_of_views_0_and_1(store)}
    assert len(parts_of_views_0_and_1(store)) == 7
    assert len(sizes) == 2
    # Several threads may come upon a new size at once.
    assert {(store.path / PARTS_NAME / name).stat().st_size for name in opened} == sizes
    assert len(opened) < 7


def test_parts_of_one_size_may_hold_other_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = []
    for view in (2, 0, 1):
        for at in range(0, 100, PART):
            rows = slice(at, at + PART)
            digests, features = TABLE.sha256[rows].tolist(), FEATURES[rows, view : view + 1].astype(np.float32)
            headers.append(read_header(write_part(tmp_path / PARTS_NAME, SPEC, digests, [view], features, {})))
    assert len({header.path.stat().st_size for header in headers}) == 2
    write_index(tmp_path, SPEC, Scan(table=TABLE, quarantined=(), odd=()), headers)
    reader, out = open_store(tmp_path).reader(np.arange(100), range(VIEWS)), np.empty((30, VIEWS, DIM), np.float16)
    for time in range(2):
        if time:
            monkeypatch.setattr(layouts, "read_header", None)  # nothing is opened again
        for start in range(0, 90, 30):
            reader.read(start, start + 30, out)
            assert np.array_equal(out, FEATURES[start : start + 30])


def test_a_wide_part_makes_all_wide_and_a_narrow_block_is_refused(tmp_path: Path) -> None:
    huge = FEATURES.astype(np.float32)
    huge[20, 0, 0] = 70_000.0
    paths = [
        write_part(
            tmp_path / PARTS_NAME, SPEC, TABLE.sha256[at : at + PART].tolist(), range(VIEWS), huge[at : at + PART], {}
        )
        for at in range(0, 100, PART)
    ]
    write_index(tmp_path, SPEC, Scan(table=TABLE, quarantined=(), odd=()), list(map(read_header, paths)))
    store = open_store(tmp_path)
    assert stored_dtype(tmp_path) == np.float32
    assert store.views().dtype == np.float32
    assert np.array_equal(store.views(), huge)
    assert store.views(TABLE.image_id[:PART].tolist()).dtype == np.float16
    reader = store.reader(np.arange(100), range(VIEWS))
    reader.read(0, PART, np.empty((PART, VIEWS, DIM), np.float16))
    with pytest.raises(StoreError, match="does not fit its parts"):
        reader.read(PART, 2 * PART, np.empty((PART, VIEWS, DIM), np.float16))


def test_parts_of_other_programs_are_read_by_hdf5(tmp_path: Path) -> None:
    store = make(tmp_path)
    for path in parts_of_views_0_and_1(store):
        with h5py.File(path, "r+") as file:
            features = file["features"][:]
            del file["features"]
            file.create_dataset("features", data=features, chunks=features.shape)
    for _ in range(2):
        assert np.array_equal(store.views(), FEATURES)
    reader, out = store.reader(np.arange(100), range(VIEWS)), np.empty((100, VIEWS, DIM), np.float16)
    for _ in range(2):
        reader.read(0, 100, out)
        assert np.array_equal(out, FEATURES)


# ---- what is not to be believed


@pytest.mark.parametrize("name", ["features", "image_sha256"])
def test_a_flipped_byte_of_any_part_is_found(tmp_path: Path, name: str) -> None:
    store = make(tmp_path)
    for path in parts_of_views_0_and_1(store):
        flip(path, where(path, name) + 77)
        with pytest.raises(StoreError, match=f"{path.name} is damaged"):
            store.views()
        flip(path, where(path, name) + 77)
    assert np.array_equal(store.views(), FEATURES)


def test_a_flipped_byte_is_found_when_a_block_is_read_again(tmp_path: Path) -> None:
    store = make(tmp_path)
    reader, out = store.reader(np.arange(100), range(VIEWS)), np.empty((20, VIEWS, DIM), np.float16)
    reader.read(5, 25, out)
    (path,) = (path for path in parts_of_views_0_and_1(store) if TABLE.sha256[20] in read_header(path).image_sha256)
    flip(path, where(path, "features") + 2 * DIM * 2 * 4)  # in its fifth image, which is the 21st
    with pytest.raises(StoreError, match=f"{path.name} is damaged"):
        reader.read(5, 25, out)


def test_a_pipe_in_the_place_of_a_part_holds_nothing_up(tmp_path: Path) -> None:
    store = make(tmp_path)
    reader, out = store.reader(np.arange(100), range(VIEWS)), np.empty((20, VIEWS, DIM), np.float16)
    reader.read(5, 25, out)
    (path,) = (path for path in parts_of_views_0_and_1(store) if TABLE.sha256[20] in read_header(path).image_sha256)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(StoreError, match=f"{path.name} is damaged \\(not a plain file"):
        reader.read(5, 25, out)


def test_a_part_made_again_under_way_is_read_as_it_is_now(tmp_path: Path) -> None:
    store = make(tmp_path)
    reader, out = store.reader(np.arange(100), range(VIEWS)), np.empty((20, VIEWS, DIM), np.float16)
    reader.read(0, 20, out)
    path = parts_of_views_0_and_1(store)[0]
    header = read_header(path)
    rows = [TABLE.sha256.tolist().index(digest) for digest in header.image_sha256]
    again = FEATURES[rows, :2].astype(np.float32)
    write_part(path.parent, SPEC, header.image_sha256, header.views, again, {"comment": "another size of file"})
    reader.read(0, 20, out)
    assert np.array_equal(out, FEATURES[:20])


def test_a_part_under_the_name_of_another_is_damaged(tmp_path: Path) -> None:
    store = make(tmp_path)
    first, second = parts_of_views_0_and_1(store)[:2]
    if first.stat().st_size != second.stat().st_size:
        second = parts_of_views_0_and_1(store)[2]
    second.write_bytes(first.read_bytes())
    with pytest.raises(StoreError, match=f"{second.name} is damaged \\(its name is not that of its content"):
        store.views()


def test_an_index_that_names_other_parts_does_not_fit(tmp_path: Path) -> None:
    store = make(tmp_path)
    swapped = replace(store, part=store.part[::-1].copy())
    reader, out = swapped.reader(np.arange(100), range(VIEWS)), np.empty((100, VIEWS, DIM), np.float16)
    with pytest.raises(StoreError, match=f"{INDEX_NAME} does not fit its parts"):
        reader.read(0, 100, out)
    with pytest.raises(StoreError, match=f"{INDEX_NAME} does not fit its parts"):
        swapped.views()


# ---- pieces of it


def test_rows_are_found_whatever_their_order_and_however_alike_they_begin() -> None:
    rng = np.random.default_rng(0)
    alike = np.array([f"{'0' * 8}{number:056x}" for number in range(50)], "S64")
    apart = np.array([f"{number:064x}"[::-1] for number in range(50)], "S64")
    for held in (alike, apart):
        for rows in (np.arange(50), np.arange(7, 30), rng.permutation(50)[:20], np.array([3, 3, 1])):
            found = matching_rows(held, held[rows])
            assert found is not None
            assert np.array_equal(found, rows)
        assert matching_rows(held[:30], held[20:40]) is None


def test_the_name_of_a_part_is_that_which_writing_gives_it() -> None:
    digests = TABLE.sha256[:9].tolist()
    for views in ((0,), (1, 2), tuple(range(12))):
        assert layouts._name(np.array(digests, "S64"), views) == part_name(digests, views)
