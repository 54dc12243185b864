"""``cxr neighbours`` and ``cxr data audit``."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_network
import torch
from test_cli import cxr, done, environment

QUICK = {"CXR_DEVICE": "cpu", "CXR_RUNTIME": "torch", "CXR_PRECISION": "float32", "CXR_DATA": "films"}
BACKBONE = ("-b", "tiny_network:tiny")


@pytest.fixture(scope="module")
def work(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with films, among them a copy in test of one of train, and their store; read it, never write to it."""
    folder = tmp_path_factory.mktemp("known")
    films = shutil.copytree(phantoms, folder / "films")
    shutil.copy(train_film(folder), films / "test/NORMAL/copy.jpeg")
    done("extract", *BACKBONE, cwd=folder, **QUICK)
    return folder


def train_film(folder: Path) -> Path:
    return sorted((folder / "films/train/PNEUMONIA").iterdir())[3]


def test_the_nearest_films_are_shown_with_labels_and_patients(work: Path) -> None:
    name = sorted((work / "films/test/NORMAL").iterdir())[0].relative_to(work / "films").as_posix()
    result = done("neighbours", name, "-k", "3", cwd=work, **QUICK)
    assert result.out.startswith(f"{name} (NORMAL, test, {name.removesuffix('-0001.jpeg').replace('/NORMAL', '')}): ")
    lines = [line.split() for line in result.out.splitlines() if " train/" in line]
    assert len(lines) == 3
    assert [line[2] for line in lines] == ["train"] * 3
    assert sorted(lines, key=lambda line: float(line[0])) == lines
    (asked,) = done("neighbours", name, "-k", "3", "--json", cwd=work, **QUICK).json
    assert [found["image_id"] for found in asked["neighbours"]] == [line[4] for line in lines]
    assert asked["neighbours"][0].keys() == {"image_id", "label", "patient_id", "split", "distance", "same_patient"}


def test_a_new_file_is_run_through_the_network_and_has_the_neighbours_of_its_twin(work: Path, tmp_path: Path) -> None:
    film = train_film(work)
    twin = tmp_path / "twin.jpeg"
    # Another byte after its end: another content with the same picture.
    twin.write_bytes(film.read_bytes() + b" ")
    new, known = done("neighbours", twin, film, "-k", "6", "--among", "all", "--json", cwd=work, **QUICK).json
    assert (new["label"], new["copies"]) == (None, [])
    assert {one["image_id"] for one in new["neighbours"][:2]} == set(known["copies"])
    assert len(known["copies"]) == 2
    assert max(one["distance"] for one in new["neighbours"][:2]) < 1e-6
    strip = [(one["image_id"], one["distance"]) for one in new["neighbours"][2:]]
    assert strip == [(one["image_id"], pytest.approx(one["distance"], abs=1e-6)) for one in known["neighbours"][:4]]


def test_a_new_file_takes_the_weights_that_are_named_whatever_backbone_the_settings_have(
    work: Path, tmp_path: Path
) -> None:
    shutil.copytree(work / "films", tmp_path / "films")
    torch.save(tiny_network.other().state_dict(), tmp_path / "w.pth")
    done("extract", *BACKBONE, "--weights", "w.pth", cwd=tmp_path, **QUICK)
    (tmp_path / "new.jpeg").write_bytes(train_film(work).read_bytes() + b" ")
    refused = cxr("neighbours", "new.jpeg", cwd=tmp_path, **QUICK).error
    assert refused.endswith("name the weights that made it with --weights FILE")
    (found,) = done("neighbours", "new.jpeg", "--weights", "w.pth", "--json", cwd=tmp_path, **QUICK).json
    assert found["neighbours"][0]["distance"] < 1e-6
    # An image that the store holds needs none.
    assert done("neighbours", train_film(tmp_path), cwd=tmp_path, **QUICK).out


def test_the_image_itself_and_its_copies_are_no_neighbours(work: Path) -> None:
    (asked,) = done("neighbours", "test/NORMAL/copy.jpeg", "-k", "100", "--json", cwd=work, **QUICK).json
    assert len(asked["copies"]) == 2
    assert not {one["image_id"] for one in asked["neighbours"]} & set(asked["copies"])
    assert "the same bytes as train/PNEUMONIA" in done("neighbours", "test/NORMAL/copy.jpeg", cwd=work, **QUICK).out


def test_the_audit_lists_pairs_and_labels_as_table_json_csv_and_pictures(work: Path, tmp_path: Path) -> None:
    flags = ("--show", "2", "--csv", tmp_path / "all.csv", "--thumbnails", tmp_path / "sheets")
    result = done("data", "audit", *flags, cwd=work, **QUICK)
    assert "same bytes, across splits, other label" in result.out
    assert "labels are contradicted by films of other patients" in result.out
    assert {path.name for path in (tmp_path / "sheets").iterdir()} == {"near-duplicates.png", "doubtful-labels.png"}
    assert f"wrote {tmp_path / 'all.csv'}" in result.err
    held = done("data", "audit", "--json", cwd=work, **QUICK).json
    assert held["images"] == 89
    with (tmp_path / "all.csv").open(newline="") as file:
        kinds = [row["kind"] for row in csv.DictReader(file)]
    assert kinds.count("near-duplicate") == len(held["near_duplicates"]["pairs"])
    assert kinds.count("label") == len(held["label_candidates"])
    assert held["near_duplicates"]["pairs"][0]["identical"]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["neighbours", "absent.jpeg"], 1, "no image absent.jpeg: it is neither a file nor an image id of the store"),
        (["neighbours", "films/README.txt"], 1, "films/README.txt: not a JPEG, PNG or DICOM image"),
        (["neighbours", "x", "--among", "trian"], 2, "--among is 'trian', wanted train, val, test, all"),
        (["neighbours", "x", "-b", "resnet50"], 1, "no features of 'resnet50' in cache/films"),
        (["data", "audit", "-b", "resnet50"], 1, "no features of 'resnet50' in cache/films"),
        (["data", "audit", "--cache", "empty"], 1, "no feature stores in empty/films: run 'cxr extract"),
    ],
)
def test_what_cannot_be_is_one_line(work: Path, arguments: list[str], code: int, told: str) -> None:
    assert cxr(*arguments, cwd=work, **QUICK).line_of_exit(code).startswith(told)


def test_cached_images_need_no_torch(work: Path) -> None:
    program = "import sys, cli\ntry:\n    cli.main()\nexcept SystemExit as left:\n    assert not left.code, left.code\n"
    program += "assert 'torch' not in sys.modules"
    for arguments in (["neighbours", "test/NORMAL/copy.jpeg", "--json"], ["data", "audit", "--json"]):
        variables = environment(**QUICK, PYTHONPATH=str(Path(__file__).parents[1]))
        result = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=work,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (result.returncode, result.stderr) == (0, "")
