"""Films inside a page: small, whole, and those that were judged."""

from __future__ import annotations

import base64
import hashlib
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featcache.thumbnails import thumbnail
from heads.page.thumbnails import PICTURE_SIDE, Thumbnails


@pytest.fixture
def films(phantoms: Path, tmp_path: Path) -> tuple[Path, dict[str, str]]:
    root = shutil.copytree(phantoms, tmp_path / "films")
    names = [path.relative_to(root).as_posix() for path in sorted(root.glob("*/*/*.jpeg"))]
    return root, {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in names}


def test_a_picture_is_the_thumbnail_as_a_data_uri_with_its_size(films: tuple[Path, dict[str, str]]) -> None:
    root, hashes = films
    thumbnails = Thumbnails(root, hashes)
    name = next(iter(hashes))
    made = thumbnails.of(name, "a film")
    assert made is not None
    head, _, data = made.source.partition(",")
    assert head == "data:image/jpeg;base64"
    assert base64.b64decode(data) == thumbnail(root, name, PICTURE_SIDE)
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == (made.width, made.height)
    assert (made.alt, thumbnails.lost) == ("a film", {})
    again = thumbnails.of(name, "the same film")
    assert again is not None
    assert (again.source, again.alt) == (made.source, "the same film")


def test_large_films_are_small_in_the_page(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (900, 1400), np.uint8)
    Image.fromarray(noise).save(tmp_path / "film.png")
    digest = hashlib.sha256((tmp_path / "film.png").read_bytes()).hexdigest()
    made = Thumbnails(tmp_path, {"film.png": digest}).of("film.png", "")
    assert made is not None
    assert (made.width, made.height) == (160, 103)
    assert len(made.source) < 4 / 3 * (3 * PICTURE_SIDE**2)


def test_what_has_changed_is_gone_or_is_elsewhere_is_not_shown_and_told(films: tuple[Path, dict[str, str]]) -> None:
    root, hashes = films
    changed, gone, elsewhere, broken, *_ = hashes
    shutil.copy(root / list(hashes)[5], root / changed)
    (root / gone).unlink()
    outside = shutil.move(root / elsewhere, root.parent / "outside.jpeg")
    (root / elsewhere).symlink_to(outside)
    (root / broken).write_bytes(b"no image")
    hashes[broken] = hashlib.sha256(b"no image").hexdigest()
    thumbnails = Thumbnails(root, hashes)
    assert [thumbnails.of(name, "") for name in (changed, gone, elsewhere, broken, "unknown.jpeg")] == [None] * 5
    assert thumbnails.lost == {
        changed: "its content has changed since it was judged",
        gone: "no such file",
        elsewhere: "the link leads outside the data folder",
        broken: "not a JPEG, PNG or DICOM image",
        "unknown.jpeg": "no such file",
    }
