from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featcache.errors import DataError
from featcache.phantom import DESCRIPTION, Lesion, Pixels, phantom, write_phantoms

MARK = np.s_[-12:, 96:160]  # where SYNTHETIC stands on a film of 256 px


def away_from(lesion: Lesion, size: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Distance of each pixel from the lesion's centre in units of its radius."""
    row, column = np.mgrid[:size, :size]
    return np.asarray(np.hypot(row - lesion.row, column - lesion.column) / lesion.radius)


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def pairs() -> list[tuple[Pixels, Pixels, tuple[Lesion, ...]]]:
    """The same films without and with pneumonia."""
    seeds = range(24)
    return [(phantom(seed, lesion=False)[0], *phantom(seed, lesion=True)) for seed in seeds]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("phantoms") / "small", train=40, val=6, test=16, size=64)


def test_same_arguments_give_same_pixels_and_lesions() -> None:
    first, second = (phantom(7, lesion=True, shift=True, patient_seed=3) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    assert first[1] == second[1]
    assert first[0].shape == (256, 256)
    assert first[0].dtype == np.uint8


def test_another_seed_shift_or_patient_gives_another_film() -> None:
    films = [
        phantom(7, lesion=False),
        phantom(8, lesion=False),
        phantom(7, lesion=False, shift=True),
        phantom(7, lesion=False, patient_seed=8),
    ]
    assert len({pixels.tobytes() for pixels, _ in films}) == len(films)


def test_two_films_of_a_patient_are_nearer_than_films_of_two_patients() -> None:
    def distance(one: Pixels, other: Pixels) -> float:
        return 1 - float(np.corrcoef(one.ravel(), other.ravel())[0, 1])

    own = [distance(*(phantom(k, lesion=False, patient_seed=p)[0] for k in (50, 51))) for p in range(12)]
    others = [distance(*(phantom(k, lesion=False, patient_seed=p + 20 * k)[0] for k in (50, 51))) for p in range(12)]
    assert np.mean(own) < 0.7 * np.mean(others)


@pytest.mark.parametrize("size", [64, 97, 256])
def test_a_lesion_changes_its_disc_and_nothing_else(size: int) -> None:
    for seed in range(12):
        healthy, ill = phantom(seed, size=size, lesion=False)[0], phantom(seed, size=size, lesion=True)[0]
        lesions = phantom(seed, size=size, lesion=True)[1]
        outside = np.min([away_from(lesion, size) for lesion in lesions], axis=0) >= 1
        difference = np.abs(ill.astype(int) - healthy)
        assert difference[outside].max() <= 2
        assert difference[~outside].max() > 20


def test_a_lesion_lies_in_dark_lung_and_brightens_it(
    pairs: list[tuple[Pixels, Pixels, tuple[Lesion, ...]]],
) -> None:
    for healthy, ill, lesions in pairs:
        assert 1 <= len(lesions) <= 2
        for lesion in lesions:
            core = away_from(lesion, 256) < 0.3
            assert healthy[core].mean() < 0.75 * healthy[100:200, 120:150].mean()  # heart and spine
            assert ill[core].mean() > healthy[core].mean() + 15


def test_classes_are_alike_outside_the_lesions(written: Path) -> None:
    places = json.loads((written / "lesions.json").read_text(encoding="utf-8"))
    brightness: dict[str, list[float]] = {"NORMAL": [], "PNEUMONIA": []}
    for image_id in places:
        # No lesion reaches the rim, so a rim tells the classes apart only if something else does.
        pixels = np.asarray(Image.open(written / image_id))
        rim = np.concatenate([pixels[:8].ravel(), pixels[-14:].ravel()])
        brightness[image_id.split("/")[1]].append(float(rim.mean()))
    normal, pneumonia = (np.array(values) for values in brightness.values())
    error = np.sqrt(normal.var() / len(normal) + pneumonia.var() / len(pneumonia))
    assert abs(normal.mean() - pneumonia.mean()) < 3 * error


def test_healthy_films_have_no_lesions() -> None:
    assert phantom(1, lesion=False)[1] == ()


def test_the_mark_is_the_same_on_every_film(pairs: list[tuple[Pixels, Pixels, tuple[Lesion, ...]]]) -> None:
    first = pairs[0][0][MARK]
    assert first.max() > 200
    assert first.min() < 30
    for healthy, ill, _ in pairs:
        np.testing.assert_array_equal(healthy[MARK], first)
        np.testing.assert_array_equal(ill[MARK], first)


def test_a_film_too_small_for_the_mark_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 64 px"):
        phantom(0, size=32, lesion=False)


def test_folders_and_counts_are_as_asked(written: Path) -> None:
    counts = {
        folder.relative_to(written).as_posix(): len(list(folder.glob("*.jpeg")))
        for folder in sorted(written.glob("*/*"))
    }
    assert counts == {
        "train/NORMAL": 10,
        "train/PNEUMONIA": 30,
        "val/NORMAL": 3,
        "val/PNEUMONIA": 3,
        "test/NORMAL": 6,
        "test/PNEUMONIA": 10,
    }


def test_names_are_those_of_the_real_set_and_some_patients_have_several_films(written: Path) -> None:
    names = {label: [path.stem for path in written.glob(f"*/{label}/*")] for label in ("NORMAL", "PNEUMONIA")}
    assert all(re.fullmatch(r"(NORMAL2-)?IM-\d{4}-\d{4}", name) for name in names["NORMAL"])
    assert all(re.fullmatch(r"person\d+_(bacteria|virus)_\d+", name) for name in names["PNEUMONIA"])
    train, test = (
        [path.stem.split("_")[0] for path in written.glob(f"{split}/PNEUMONIA/*")] for split in ("train", "test")
    )
    assert len(set(train)) < len(train)
    assert set(train) & set(test), "test numbers its persons anew"


def test_lesions_json_has_every_image_and_lesions_for_the_ill_alone(written: Path) -> None:
    places = json.loads((written / "lesions.json").read_text(encoding="utf-8"))
    assert set(places) == {path.relative_to(written).as_posix() for path in written.rglob("*.jpeg")}
    for image_id, lesions in places.items():
        assert bool(lesions) == ("/PNEUMONIA/" in image_id)
        for lesion in lesions:
            found = Lesion(**lesion)
            assert 0 < found.row < 64
            assert 0 < found.column < 64


def test_every_file_says_that_it_is_synthetic(written: Path) -> None:
    for path in written.rglob("*.jpeg"):
        with Image.open(path) as image:
            assert image.info["comment"] == DESCRIPTION.encode()
            assert image.getexif()[0x010E] == DESCRIPTION
            assert (image.mode, image.size) == ("L", (64, 64))
    assert DESCRIPTION in (written / "README.txt").read_text(encoding="utf-8")


def test_same_arguments_write_the_same_bytes(written: Path, tmp_path: Path) -> None:
    again = write_phantoms(tmp_path / "again", train=40, val=6, test=16, size=64)
    assert digests(again) == digests(written)


def test_another_seed_writes_other_images(tmp_path: Path) -> None:
    sizes = {"train": 4, "val": 2, "test": 2, "size": 64}
    one, other = (write_phantoms(tmp_path / f"{seed}", seed=seed, **sizes) for seed in (0, 1))
    assert not set(digests(one).values()) & set(digests(other).values())


def test_what_was_asked_for_is_reused(written: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in written.rglob("*")}
    assert write_phantoms(written, train=40, val=6, test=16, size=64) == written
    assert {path: path.stat().st_mtime_ns for path in written.rglob("*")} == before


def test_other_phantoms_are_refused(written: Path) -> None:
    with pytest.raises(DataError, match="name another folder"):
        write_phantoms(written, train=40, val=6, test=16, size=64, seed=1)


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious", encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(str(tmp_path))):
        write_phantoms(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 64 px"):
        write_phantoms(tmp_path / "new", train=4, val=2, test=2, size=32)
    assert list(tmp_path.iterdir()) == []


def test_a_share_beyond_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="within 0 and 1"):
        write_phantoms(tmp_path / "new", pneumonia_share=74)
