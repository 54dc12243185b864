"""Fetching the set, against small stand-ins: zips laid out as the published ones, and a module in Kaggle's place."""

from __future__ import annotations

import hashlib
import stat
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kermany import KAGGLE, MENDELEY, SMALL, film, images, zipped

from featcache import fetch
from featcache.errors import DataError
from featcache.fetch import PUBLISHED, Counts, fetch_kermany


def fetched(tmp_path: Path, files: Mapping[str, bytes], to: str = "films", **options: Any) -> fetch.Fetched:
    return fetch_kermany(tmp_path / to, zipped(tmp_path / "set.zip", files), published=SMALL, **options)


def why_not(tmp_path: Path, files: Mapping[str, bytes]) -> str:
    with pytest.raises(DataError) as caught:
        fetched(tmp_path, files)
    assert not (tmp_path / "films").exists()
    return str(caught.value)


def below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_counts_are_the_published_ones() -> None:
    assert {name: sum(sum(of.values()) for of in counts.values()) for name, counts in PUBLISHED.items()} == {
        "Kaggle": 5856,
        "Mendeley": 5856,
    }
    kaggle, mendeley = PUBLISHED["Kaggle"], PUBLISHED["Mendeley"]
    assert {label: kaggle["train"][label] + kaggle["val"][label] for label in kaggle["val"]} == mendeley["train"]


@pytest.mark.parametrize(
    ("counts", "prefix", "layout"),
    [(KAGGLE, "chest_xray", "Kaggle"), (MENDELEY, "ChestXRay2017/chest_xray", "Mendeley"), (KAGGLE, "", "Kaggle")],
)
def test_a_zip_becomes_the_folder_and_is_counted(tmp_path: Path, counts: Counts, prefix: str, layout: str) -> None:
    files = {name.lstrip("/"): data for name, data in images(counts, prefix).items()}
    found = fetched(tmp_path, files)
    assert (found.layout, found.counts, found.images, found.resumed) == (layout, counts, 15, 0)
    cut = len(prefix) + 1 if prefix else 0
    assert below(tmp_path / "films") == {name[cut:]: data for name, data in files.items()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["films", "set.zip"]


def test_the_hash_is_what_sha256sum_gives(tmp_path: Path) -> None:
    found = fetched(tmp_path, images(KAGGLE))
    command = "find * -type f | LC_ALL=C sort | xargs sha256sum | sha256sum"
    told = subprocess.run(["bash", "-c", command], cwd=tmp_path / "films", capture_output=True, text=True, check=True)  # noqa: S607
    assert told.stdout.split()[0] == found.sha256
    lines = [
        f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(below(tmp_path / "films").items())
    ]
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == found.sha256


def test_copies_within_and_what_a_mac_leaves_are_passed_over(tmp_path: Path) -> None:
    files = images(KAGGLE)
    more = {
        **images(KAGGLE, "chest_xray/chest_xray"),
        **{f"chest_xray/__MACOSX/{name}": b"" for name in files},
        **{f"__MACOSX/{name}": b"" for name in files},
        "chest_xray/.DS_Store": b"",
        "chest_xray/train/.DS_Store": b"",
        "chest_xray/train/NORMAL/._1.jpeg": b"",
        "README.txt": b"",
    }
    fetched(tmp_path, {**more, **files})
    assert below(tmp_path / "films") == {name.removeprefix("chest_xray/"): data for name, data in files.items()}


# --- what is refused


@pytest.mark.parametrize(
    "name", ["../out.jpeg", "/etc/out.jpeg", "chest_xray/../../out.jpeg", "a\\..\\out.jpeg", "C:/out"]
)
def test_a_path_that_leads_out_is_refused_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    assert "lead out of it" in why_not(tmp_path, {**images(KAGGLE), name: b"x"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set.zip"]


def test_a_link_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "set.zip", images(KAGGLE))
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("chest_xray/train/NORMAL/link.jpeg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="holds links or encrypted files"):
        fetch_kermany(tmp_path / "films", path, published=SMALL)


def test_other_counts_are_refused_before_anything_is_unpacked(tmp_path: Path) -> None:
    files = images(KAGGLE)
    del files["chest_xray/val/NORMAL/1.jpeg"]
    reason = why_not(tmp_path, files)
    assert (
        "it holds train 2/3, val 1/3, test 2/3; the published set has train 2/3, val 2/3, test 2/3 (Kaggle)" in reason
    )
    assert "or train 4/6, test 2/3 (Mendeley)" in reason
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set.zip"]


@pytest.mark.parametrize("limit", ["MAX_FILES", "MAX_FILE_BYTES", "MAX_BYTES"])
def test_more_or_larger_files_than_the_set_has_are_refused(
    tmp_path: Path, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, limit, 10)
    assert "more or larger files" in why_not(tmp_path, images(KAGGLE))


def test_an_image_that_does_not_decode_leaves_no_folder(tmp_path: Path) -> None:
    files = images(KAGGLE)
    files["chest_xray/test/NORMAL/0.jpeg"] = film(0)[:500]
    assert "test/NORMAL/0.jpeg: damaged or truncated" in why_not(tmp_path, files)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set.zip"]


def test_a_damaged_zip_says_so_and_one_that_is_not_there_how_to_get_it(tmp_path: Path) -> None:
    path = zipped(tmp_path / "set.zip", images(KAGGLE))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"set\.zip is damaged or no zip: download it again"):
        fetch_kermany(tmp_path / "films", path, published=SMALL)
    damaged = bytearray(whole)
    damaged[2000:2040] = bytes(40)
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"set\.zip is damaged or no zip"):
        fetch_kermany(tmp_path / "films", path, published=SMALL)
    with pytest.raises(DataError, match=r"no such file: .*none\.zip; download 'Chest X-Ray Images \(Pneumonia\)'"):
        fetch_kermany(tmp_path / "films", tmp_path / "none.zip", published=SMALL)


# --- again


def test_an_interrupted_try_is_taken_up_and_what_is_not_the_same_is_made_anew(tmp_path: Path) -> None:
    def interrupt(done: int, _total: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    files = images(KAGGLE)
    with pytest.raises(KeyboardInterrupt):
        fetched(tmp_path, files, on_image=interrupt)
    assert not (tmp_path / "films").exists()
    partial = tmp_path / ".partial-films"
    left = below(partial)
    assert len(left) == 6
    changed, cut, *_ = left
    (partial / changed).write_bytes(left[changed][:-1] + b"x")
    (partial / cut).write_bytes(left[cut][:99])
    (partial / "train/NORMAL/other.jpeg").write_bytes(film(99))
    found = fetched(tmp_path, files)
    assert found.resumed == 4
    assert below(tmp_path / "films") == {name.removeprefix("chest_xray/"): data for name, data in files.items()}
    assert not partial.exists()


def test_a_set_that_lies_there_is_looked_at_and_left_alone(tmp_path: Path) -> None:
    first = fetched(tmp_path, images(KAGGLE))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "films").rglob("*")}
    again = fetch_kermany(tmp_path / "films", published=SMALL)
    assert again == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "films").rglob("*")} == before


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    for name in ("A/1.jpeg", "B/2.jpeg"):
        (tmp_path / "films" / name).parent.mkdir(parents=True)
        (tmp_path / "films" / name).write_bytes(film(1))
    before = below(tmp_path / "films")
    with pytest.raises(DataError, match=r"exists and is not the whole set: .* name another folder with --to"):
        fetched(tmp_path, images(KAGGLE))
    assert below(tmp_path / "films") == before


# --- Kaggle


def test_kaggles_download_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def dataset_download(handle: str) -> str:
        asked.append(handle)
        for name, data in {**images(KAGGLE), **images(KAGGLE, "chest_xray/chest_xray")}.items():
            (tmp_path / "download" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "download" / name).write_bytes(data)
        (tmp_path / "download/chest_xray/train/NORMAL/link.jpeg").symlink_to("/etc/passwd")
        return str(tmp_path / "download")

    monkeypatch.setitem(sys.modules, "kagglehub", SimpleNamespace(dataset_download=dataset_download))
    found = fetch_kermany(tmp_path / "films", published=SMALL)
    assert asked == ["paultimothymooney/chest-xray-pneumonia"]
    assert found.layout == "Kaggle"
    assert below(tmp_path / "films") == {
        name.removeprefix("chest_xray/"): data for name, data in images(KAGGLE).items()
    }


def test_offline_the_error_names_both_pages_and_what_to_do_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dataset_download(_handle: str) -> str:
        raise ConnectionError("no route to anywhere\nand more")

    monkeypatch.setitem(sys.modules, "kagglehub", SimpleNamespace(dataset_download=dataset_download))
    with pytest.raises(DataError) as caught:
        fetch_kermany(tmp_path / "films", published=SMALL)
    said = str(caught.value)
    assert said.startswith("cannot download from Kaggle (ConnectionError): download 'Chest X-Ray Images (Pneumonia)'")
    title = "Labeled Optical Coherence Tomography (OCT) and Chest X-Ray Images for Classification"
    assert f"'{title}' (Mendeley Data 10.17632/rscbjbr9sj)" in said
    assert "cxr data fetch kermany --zip FILE --to DIR" in said
    assert "DIR/train/NORMAL" in said
    assert "\n" not in said


def test_without_the_extra_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(DataError, match=r"pip install 'cxr\[kaggle\]'; without it, download"):
        fetch_kermany(tmp_path / "films", published=SMALL)
