"""PATH on the command line: files, folders with all below, patterns."""

from __future__ import annotations

from pathlib import Path

import pytest

from featcache.errors import DataError
from featcache.film_paths import film_paths


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
