"""The whole way with DICOM files, and fetching, by the commands."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from dicom_files import SECRET, dicom
from kermany import KAGGLE, SMALL, images, zipped
from test_cli import SETTINGS, cxr, done

from featcache import fetch
from featcache.decode import decode
from featcache.dicom import dicom_decoder


@pytest.fixture(scope="module")
def work(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with settings, and the phantoms as DICOM, one of them another modality."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "cxr.toml").write_text(SETTINGS)
    for number, path in enumerate(sorted(phantoms.rglob("*.jpeg"))):
        place = folder / "films" / path.relative_to(phantoms).with_suffix(".dcm")
        place.parent.mkdir(parents=True, exist_ok=True)
        modality = "CT" if number == 40 else "DX"
        place.write_bytes(
            dicom(decode(path.read_bytes()), Modality=modality, ViewPosition="AP" if number % 2 else "PA")
        )
    return folder


def test_dicom_goes_all_the_way_and_no_word_of_a_patient_with_it(work: Path) -> None:
    check = done("data", "check", "films", cwd=work)
    assert "projections of the DICOM files: 44 AP, 43 PA\n" in check.out
    assert "no radiograph: modality CT; wanted CR, DX, DR, RG" in check.out
    extracted = done("extract", "--data", "films", "--json", cwd=work)
    assert extracted.json["images"] == 87
    assert "left out: " in extracted.err
    fitted = done("fit-head", "--data", "films", cwd=work)
    report = done("report", "--data", "films", "--json", cwd=work)
    assert len(report.json["rows"]) >= 1
    listed = done("cache", "list", "--json", cwd=work)
    assert listed.json[0]["images"] == 87
    for result in (check, extracted, fitted, report, listed):
        assert SECRET not in result.out + result.err
    assert not [path for path in (work / "cache").rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def test_without_the_extra_one_line_tells_how_to_read_dicom(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dicom_decoder.cache_clear()
    monkeypatch.setitem(sys.modules, "pydicom", None)
    try:
        check = done("data", "check", "films", cwd=work)
        assert check.out.count("pip install 'cxr[dicom]'") == 1
        assert cxr("extract", "--data", "films", cwd=work).error.count("pip install 'cxr[dicom]'") == 1
    finally:
        dicom_decoder.cache_clear()


def test_fetch_places_the_set_and_says_what_else_to_do_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "PUBLISHED", SMALL)
    zipped(tmp_path / "set.zip", images(KAGGLE))
    told = done("data", "fetch", "kermany", "--zip", "set.zip", "--to", "films", cwd=tmp_path)
    assert told.out.startswith("15 images (train 5, val 5, test 5; Kaggle's folders) in films, each decoded\n")
    again = done("data", "fetch", "kermany", "--to", "films", "--json", cwd=tmp_path).json
    assert (again["images"], again["counts"]) == (15, KAGGLE)
    assert again["sha256"] in told.out

    def dataset_download(_handle: str) -> str:
        raise ConnectionError("offline")

    monkeypatch.setitem(sys.modules, "kagglehub", SimpleNamespace(dataset_download=dataset_download))
    assert "Chest X-Ray Images (Pneumonia)" in cxr("data", "fetch", "kermany", "--to", "other", cwd=tmp_path).error
    assert "wanted kermany" in cxr("data", "fetch", "kermani", cwd=tmp_path).line_of_exit(2)
