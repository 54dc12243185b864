"""PATH on the command line: files, folders with all below, patterns."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from featcache.errors import DataError
from featcache.film_paths import film_paths
from featcache.films import load_film


@pytest.fixture
def films(tmp_path: Path) -> Path:
    for name in ("b.jpeg", "a.dcm", "sub/c.png", "sub/.hidden", ".git/d.png", "sub/deep/IM0001", "other.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def names(films: Path, *asked: str, root: Path | None = None) -> list[str]:
    return [path.relative_to(films).as_posix() for path in film_paths(asked, root)]


def test_of_a_folder_every_visible_file_is_meant_by_name(films: Path) -> None:
    assert names(films, str(films)) == ["a.dcm", "b.jpeg", "other.txt", "sub/c.png", "sub/deep/IM0001"]


def test_patterns_are_a_shells(films: Path) -> None:
    assert names(films, f"{films}/*.jpeg", f"{films}/**/*.png") == ["b.jpeg", "sub/c.png"]
    with pytest.raises(DataError, match=r"no file matches .*\*\.bmp"):
        names(films, f"{films}/*.bmp")
    # Folders that a pattern matches are no files.
    with pytest.raises(DataError, match="no file matches"):
        names(films, f"{films}/su*")


def test_a_file_whose_name_is_a_pattern_is_that_file(films: Path) -> None:
    (films / "x[1].png").touch()
    assert names(films, f"{films}/x[1].png") == ["x[1].png"]


def test_names_of_the_data_set_are_found_below_its_folder(films: Path) -> None:
    assert names(films, "sub/c.png", "sub", root=films) == ["sub/c.png", "sub/c.png", "sub/deep/IM0001"]


def test_an_empty_folder_is_told_and_a_missing_file_is_left_to_the_reader(films: Path) -> None:
    (films / "none").mkdir()
    (films / "none" / ".hidden").touch()
    with pytest.raises(DataError, match="no files in"):
        names(films, str(films / "none"))
    assert list(film_paths([str(films / "gone.png")])) == [films / "gone.png"]


def test_files_are_found_as_they_are_asked_for(films: Path) -> None:
    found = film_paths([str(films / "a.dcm"), str(films / "*.bmp")])
    assert next(found) == films / "a.dcm"
    with pytest.raises(DataError):
        next(found)


def test_a_name_that_is_too_long_is_left_to_the_reader_who_says_so(films: Path) -> None:
    long = str(films / ("x" * 300 + ".png"))
    assert list(film_paths([long, str(films / "a.dcm")], root=films)) == [Path(long), films / "a.dcm"]
    assert load_film(Path(long), frozenset()).reason == "cannot be read: File name too long"


def denied(place: Path) -> PermissionError:
    return PermissionError(13, "Permission denied", str(place))


@pytest.fixture
def locked(films: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that may not be entered, even by root."""
    folder, stat, scandir = films / "sub" / "deep", os.stat, os.scandir

    def no_stat(path: Any, *rest: Any, **options: Any) -> os.stat_result:
        if isinstance(path, str | os.PathLike) and Path(path).parent == folder:
            raise denied(Path(path))
        return stat(path, *rest, **options)

    def no_list(path: Any = ".") -> Any:
        if Path(path) == folder:
            raise denied(folder)
        return scandir(path)

    monkeypatch.setattr(os, "stat", no_stat)
    monkeypatch.setattr(os, "scandir", no_list)
    return folder


def test_a_file_in_a_folder_that_may_not_be_entered_is_left_to_the_reader_who_says_so(
    films: Path, locked: Path
) -> None:
    asked = locked / "IM0001"
    assert list(film_paths([str(asked)], root=films)) == [asked]
    assert load_film(asked, frozenset()).reason == "cannot be read: Permission denied"


@pytest.mark.usefixtures("locked")
def test_a_subfolder_that_cannot_be_listed_is_one_row_and_the_folder_itself_an_error(films: Path) -> None:
    assert names(films, str(films)) == ["a.dcm", "b.jpeg", "other.txt", "sub/c.png", "sub/deep"]
    with pytest.raises(DataError, match=r"cannot list .*deep: Permission denied"):
        names(films, str(films / "sub" / "deep"))


@pytest.fixture
def without_permission(films: Path) -> Iterator[Path]:
    folder = films / "sub" / "deep"
    folder.chmod(0)
    if os.access(folder, os.R_OK):
        folder.chmod(0o700)
        pytest.skip("root may list any folder")
    yield folder
    folder.chmod(0o700)


def test_a_folder_without_permission_is_told_as_such(without_permission: Path) -> None:
    assert load_film(without_permission, frozenset()).reason == "a folder that cannot be listed: Permission denied"
