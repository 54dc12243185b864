"""Tables that bring their images' hashes: no file is opened for them, and a wrong one is found."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache import check
from featcache.check import scan
from featcache.errors import DataError
from featcache.images import ImageTable, discover, read_csv, strings, write_csv
from featcache.settings import Settings
from featcache.store import open_store
from featcache.workspace import hashed_table, present_table, scan_images

COLUMNS = [field.name for field in dataclasses.fields(ImageTable) if field.name != "classes"]


def settings_of(**values: Any) -> Settings:
    """Settings of these values and no file."""
    return Settings(**values)


def same(one: ImageTable, other: ImageTable) -> bool:
    equal = [getattr(one, name).tolist() == getattr(other, name).tolist() for name in COLUMNS]
    return all(equal) and one.classes == other.classes


@pytest.fixture
def films(phantoms: Path, tmp_path: Path) -> Path:
    """A copy of the phantoms, to be changed."""
    return Path(shutil.copytree(phantoms, tmp_path / "films"))


@pytest.fixture
def given_table(films: Path, tmp_path: Path) -> Path:
    """The phantoms' table with their hashes, beside their folder."""
    write_csv(tmp_path / "images.csv", scan(discover(films), films).table)
    return tmp_path / "images.csv"


@pytest.fixture
def no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads an image fails."""

    def refuse(_: Path, image_id: str) -> bytes:
        pytest.fail(f"{image_id} was read")

    monkeypatch.setattr(check, "read_file", refuse)


def wrong_hash(table: Path, row: int) -> str:
    """Give an image of a table another hash; returns its name."""
    lines = table.read_text().splitlines()
    cells = lines[row + 1].split(",")
    cells[4] = hashlib.sha256(b"other").hexdigest()
    lines[row + 1] = ",".join(cells)
    table.write_text("\n".join(lines))
    return cells[0]


# --- the file


def csv_of(folder: Path, *lines: str) -> Path:
    (folder / "given.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder / "given.csv"


def test_hashes_and_sizes_of_a_csv_are_taken_and_empty_ones_are_unknown(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"1").hexdigest()
    table = read_csv(csv_of(tmp_path, "height,sha256,path,label,width", f"30,{digest},a.png,A,20", ",,b.png,B,0", ""))
    assert table.sha256.tolist() == [digest, ""]
    assert (table.width.tolist(), table.height.tolist()) == ([20, 0], [30, 0])
    assert {column.dtype.name for column in (table.width, table.height)} == {"int32"}


@pytest.mark.parametrize(
    ("cells", "complaint"),
    [
        ("abc,,", "sha256 is 'abc', wanted 64 lower-case hex digits, or nothing"),
        (f"{'A' * 64},,", f"sha256 is '{'A' * 64}', wanted 64 lower-case hex digits, or nothing"),
        (f"{'a' * 65},,", f"sha256 is '{'a' * 65}', wanted 64 lower-case hex digits, or nothing"),
        (",-1,", "width is '-1', wanted a whole number of pixels, 0 where it is not known"),
        (",,12.0", "height is '12.0', wanted a whole number of pixels, 0 where it is not known"),
        (",,³", "height is '³', wanted a whole number of pixels, 0 where it is not known"),
        (",9999999999,", "width is '9999999999', wanted a whole number of pixels, 0 where it is not known"),
    ],
)
def test_a_wrong_hash_or_size_in_a_csv_is_refused_with_its_line(tmp_path: Path, cells: str, complaint: str) -> None:
    table = csv_of(tmp_path, "path,label,sha256,width,height", "a.png,A,,,", f"b.png,B,{cells}")
    with pytest.raises(DataError) as caught:
        read_csv(table)
    assert str(caught.value) == f"{table}, line 3: {complaint}"


words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
sizes_of_films = st.lists(st.integers(0, 99_999), min_size=6, max_size=6)
names = st.lists(words.map(lambda word: f"films/{word.replace('/', '')}x.png"), min_size=2, max_size=6, unique=True)


@given(names=names, patient=words, sizes=sizes_of_films, seed=st.integers(0, 9))
def test_a_table_written_and_read_is_the_same(names: list[str], patient: str, sizes: list[int], seed: int) -> None:
    count = len(names)
    labels, splits = ["a, b", 'ill "x"'] * count, ["train", "", "test", "val", "", "train"]
    table = ImageTable.from_columns(names, labels[:count], [patient] * count, splits[:count], ("a, b", 'ill "x"'))
    digests = ["" if (row + seed) % 3 == 0 else hashlib.sha256(bytes([row, seed])).hexdigest() for row in range(count)]
    size = np.array(sizes[:count], np.int32)
    table = dataclasses.replace(table, sha256=strings(digests), width=size, height=size[::-1])
    with tempfile.TemporaryDirectory() as folder:
        write_csv(Path(folder) / "t.csv", table)
        assert same(read_csv(Path(folder) / "t.csv"), table)


# --- the scan


@pytest.mark.usefixtures("no_file")
def test_a_table_with_every_hash_is_scanned_without_opening_a_file(
    phantoms: Path, scanned_phantoms: check.Scan, tmp_path: Path
) -> None:
    write_csv(tmp_path / "images.csv", scanned_phantoms.table)
    told: list[Any] = []
    settings = settings_of(data=phantoms, table=tmp_path / "images.csv")
    scanned = scan_images(settings, on_image=lambda *now: told.append(now))
    assert same(scanned.table, scanned_phantoms.table)
    assert (scanned.quarantined, scanned.odd, told) == ((), (), [])


@pytest.mark.usefixtures("no_file")
def test_a_fit_takes_the_hashes_of_a_table_though_the_images_are_not_here(
    phantom_store: Path, scanned_phantoms: check.Scan, tmp_path: Path
) -> None:
    write_csv(tmp_path / "images.csv", scanned_phantoms.table)
    settings = settings_of(data=tmp_path / "not here", table=tmp_path / "images.csv")
    table, note = present_table(settings, [open_store(phantom_store)])
    assert table is not None
    assert same(table, scanned_phantoms.table)
    assert note == ""


def test_of_a_table_with_some_hashes_only_the_other_images_are_read(
    films: Path, given_table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = read_csv(given_table)
    table.sha256[[3, 5]] = ""
    (films / table.image_id[5]).write_bytes(b"no image")
    read: list[str] = []
    plain = check.read_file

    def noted(root: Path, name: str) -> bytes:
        read.append(name)
        return plain(root, name)

    monkeypatch.setattr(check, "read_file", noted)
    told: list[int] = []
    scanned = scan(table, films, on_image=told.append)
    assert sorted(read) == sorted(table.image_id[[3, 5]])
    assert told == [len(table) - 1, len(table)]
    assert [(row.image_id, row.reason) for row in scanned.quarantined] == [
        (table.image_id[5], "not a JPEG, PNG or DICOM image")
    ]
    assert same(scanned.table, read_csv(given_table).take(np.arange(len(table)) != 5))


def test_a_whole_scan_reads_every_file_and_finds_the_hash_that_is_wrong(films: Path, given_table: Path) -> None:
    name = wrong_hash(given_table, 7)
    assert scan(read_csv(given_table), films).quarantined == ()
    scanned = scan(read_csv(given_table), films, whole=True)
    assert [(row.image_id, row.reason) for row in scanned.quarantined] == [
        (name, "its SHA-256 is not the one in the table: make the table anew with 'cxr data table'")
    ]
    assert name not in scanned.table.image_id
    assert len(scanned.table) == 87


def test_few_files_are_under_way_at_once_however_many_there_are(
    phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "FILES_A_TASK", 2)
    monkeypatch.setattr(check, "READ_AHEAD", 2)
    started = threading.Semaphore(0)
    plain = check.read_file

    def counted(root: Path, name: str) -> bytes:
        started.release()
        return plain(root, name)

    monkeypatch.setattr(check, "read_file", counted)

    def look(done: int) -> None:
        begun = 0
        while started.acquire(blocking=False):
            begun += 1
        seen.append((seen[-1] if seen else 0) + begun)
        assert seen[-1] <= done + 4

    seen: list[int] = []
    assert len(scan(discover(phantoms), phantoms, on_image=look).table) == 88


# --- the table of a data set


def test_a_hashed_table_keeps_an_unreadable_image_without_a_hash(films: Path, tmp_path: Path) -> None:
    table = discover(films)
    (films / table.image_id[2]).write_bytes(b"")
    whole, unreadable = hashed_table(settings_of(data=films))
    assert [(row.image_id, row.reason) for row in unreadable] == [(table.image_id[2], "empty file")]
    assert whole.image_id.tolist() == table.image_id.tolist()
    assert np.flatnonzero(whole.sha256 == "").tolist() == [2]
    write_csv(tmp_path / "images.csv", whole)
    again = scan(read_csv(tmp_path / "images.csv"), films)
    assert again.quarantined == unreadable
    assert same(again.table, scan(table, films).table)


def test_a_hashed_table_takes_no_hash_as_given(films: Path, given_table: Path) -> None:
    right = read_csv(given_table)
    wrong_hash(given_table, 0)
    whole, unreadable = hashed_table(settings_of(data=films, table=given_table))
    assert same(whole, right)
    assert unreadable == ()


# --- the extraction


def test_a_wrong_hash_is_found_when_the_image_is_computed(films: Path, given_table: Path, tmp_path: Path) -> None:
    from featcache.backbones import load_backbone
    from featcache.extraction import extract
    from featcache.runtime import Compute

    name = wrong_hash(given_table, 4)
    compute = Compute(device="cpu", runtime="torch", precision="float32", batch_size=8, threads=2)
    scanned = scan(read_csv(given_table), films)
    (summary,) = extract(scanned, films, tmp_path / "cache", [load_backbone("tiny_network:tiny")], compute=compute)
    assert [row.image_id for row in summary.quarantined] == [name]
    assert "content" in summary.quarantined[0].reason
    assert "table" in summary.quarantined[0].reason
    store = open_store(summary.store)
    assert len(store.image_table) == 87
    assert name not in store.image_table.image_id
