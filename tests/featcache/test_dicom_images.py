"""DICOM files of a data set: how they are found, told of, and kept apart in the spec."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dicom_files import SECRET, dicom
from PIL import Image

from featcache.backbones import Backbone
from featcache.check import Scan, scan, summarise, summary_lines
from featcache.decode import DECODER, decode
from featcache.dicom import dicom_decoder
from featcache.errors import BackboneError, DataError
from featcache.extraction import brief_of, extract
from featcache.images import discover
from featcache.making import load_source
from featcache.planning import plan, spec_of
from featcache.recompute import recompute
from featcache.runtime import Compute
from featcache.store import open_store

COMPUTE = Compute(device="cpu", runtime="torch", precision="float32", batch_size=8, threads=2)


@pytest.fixture(scope="module")
def films(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantoms as DICOM, half of them without a suffix; some PA, some AP, one lateral, and a report."""
    root = tmp_path_factory.mktemp("data") / "films"
    for number, path in enumerate(sorted(phantoms.rglob("*.jpeg"))):
        place = root / path.relative_to(phantoms).with_suffix(".dcm" if number % 2 else "")
        place.parent.mkdir(parents=True, exist_ok=True)
        view = "LL" if number == 3 else "AP" if number % 5 == 0 else "PA"
        place.write_bytes(dicom(decode(path.read_bytes()), ViewPosition=view))
    (root / "train/NORMAL/report.dcm").write_bytes(dicom(np.zeros((8, 8), np.uint8), Modality="SR"))
    return root


@pytest.fixture(scope="module")
def scanned(films: Path) -> Scan:
    return scan(discover(films), films)


def test_dicom_files_are_images_whatever_they_are_called(scanned: Scan, scanned_phantoms: Scan) -> None:
    assert len(scanned.table) == len(scanned_phantoms.table) == 88
    reasons = [(row.image_id, row.reason) for row in scanned.quarantined]
    assert reasons == [("train/NORMAL/report.dcm", "no radiograph: modality SR; wanted CR, DX, DR, RG")]
    assert set(scanned.table.width) == {64}
    assert scanned.dicom


def test_the_summary_counts_projections_and_lists_lateral_films(scanned: Scan) -> None:
    summary = summarise(scanned)
    assert summary["projections"] == {"PA": 69, "AP": 18, "lateral": 1}
    assert "projections of the DICOM files: 69 PA, 18 AP, 1 lateral" in summary_lines(summary)
    assert [row["reason"] for row in summary["odd"]] == ["a lateral film"]


def test_jpegs_have_no_projections_and_no_line_of_them(scanned_phantoms: Scan) -> None:
    summary = summarise(scanned_phantoms)
    assert summary["projections"] == {}
    assert not scanned_phantoms.dicom
    assert not [line for line in summary_lines(summary) if "projection" in line]


def test_no_patient_is_in_the_image_table_nor_in_any_byte_of_the_store(
    films: Path, scanned: Scan, tiny: Backbone, tmp_path: Path
) -> None:
    assert SECRET.encode() in (films / scanned.table.image_id[0]).read_bytes()
    (summary,) = extract(scanned, films, tmp_path / "films", [tiny], views=2, compute=COMPUTE)
    stored = [path.read_bytes() for path in Path(summary.store).rglob("*") if path.is_file()]
    assert len(stored) >= 2
    assert not [data for data in stored if SECRET.encode() in data]
    columns = [scanned.table.image_id, scanned.table.patient_id, scanned.table.split, scanned.table.sha256]
    assert not [value for column in columns for value in column if SECRET in value]
    assert SECRET not in repr(summarise(scanned)) + repr(summary.to_json())


def test_patients_are_told_by_the_files_names_as_for_any_image(scanned: Scan, scanned_phantoms: Scan) -> None:
    assert sorted(scanned.table.patient_id) == sorted(scanned_phantoms.table.patient_id)


def test_a_dicom_and_its_png_have_the_same_features(films: Path, scanned: Scan, tiny: Backbone, tmp_path: Path) -> None:
    root = tmp_path / "png"
    for image_id in scanned.table.image_id:
        place = root / Path(image_id).with_suffix(".png")
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(decode((films / image_id).read_bytes())).save(place)
    pngs = scan(discover(root), root)
    stores = [
        open_store(Path(extract(one, where, tmp_path / where.name, [tiny], compute=COMPUTE)[0].store))
        for one, where in ((scanned, films), (pngs, root))
    ]
    ids = [list(store.image_table.image_id) for store in stores]
    assert [name.removesuffix(".dcm") for name in ids[0]] == [name.removesuffix(".png") for name in ids[1]]
    assert np.array_equal(stores[0].features(), stores[1].features())


# --- the spec


def test_what_decodes_dicom_is_in_the_spec_of_sets_with_dicom_and_of_no_others(tiny: Backbone) -> None:
    plain, with_dicom = (spec_of(tiny, compute=COMPUTE, dicom=one) for one in (False, True))
    assert plain.decoder == DECODER
    assert with_dicom == replace(plain, decoder=f"{DECODER} {dicom_decoder()}")


def test_given_hashes_do_not_hide_dicom(scanned: Scan, scanned_phantoms: Scan, films: Path, phantoms: Path) -> None:
    assert scan(scanned.table, films).dicom
    assert not scan(scanned_phantoms.table, phantoms).dicom


def test_a_dicom_file_that_is_called_a_jpeg_is_refused(tmp_path: Path) -> None:
    for name in ("a/one.dcm", "b/two.png", "b/three.JPG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(dicom(np.zeros((70, 70), np.uint8)))
    found = scan(discover(tmp_path), tmp_path)
    reason = "a DICOM file by the name of a JPEG or PNG: rename it to .dcm"
    assert {row.image_id: row.reason for row in found.quarantined} == {"b/two.png": reason, "b/three.JPG": reason}


def test_rows_of_dicom_can_be_computed_again(films: Path, scanned: Scan, tiny: Backbone, tmp_path: Path) -> None:
    (summary,) = extract(scanned, films, tmp_path / "films", [tiny], compute=COMPUTE)
    again = recompute(open_store(Path(summary.store)), films, tiny, 5, compute=COMPUTE)
    assert (again.rows, again.equal, again.wrong) == (5, 5, ())


def test_parts_name_the_packages_that_decoded_them(films: Path, scanned: Scan, tiny: Backbone, tmp_path: Path) -> None:
    (summary,) = extract(scanned, films, tmp_path / "films", [tiny], compute=COMPUTE)
    part = next(Path(summary.store).glob("parts/*.h5")).read_bytes()
    assert b"pydicom" in part
    assert b"imagecodecs" in part


def test_a_machine_that_decodes_otherwise_makes_no_parts(scanned: Scan, tiny: Backbone, tmp_path: Path) -> None:
    job = plan(scanned, tmp_path, tiny, 0, COMPUTE)
    assert load_source(brief_of(scanned.table, tmp_path, [job], 1, COMPUTE), 0).name == tiny.name
    other = replace(job, spec=replace(job.spec, decoder=job.spec.decoder.replace("pydicom-", "pydicom-9")))
    with pytest.raises(BackboneError, match="install the same packages"):
        load_source(brief_of(scanned.table, tmp_path, [other], 1, COMPUTE), 0)


# --- without the extra


def test_without_the_extra_dicom_files_are_listed_and_a_set_of_nothing_else_stops(
    films: Path, tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dicom_decoder.cache_clear()
    monkeypatch.setitem(sys.modules, "pydicom", None)
    try:
        found = scan(discover(films), films)
        assert len(found.quarantined) == 89
        assert {row.reason for row in found.quarantined} == {"a DICOM file, which needs: pip install 'cxr[dicom]'"}
        lines = [line for line in summary_lines(summarise(found)) if "pip install" in line]
        assert len(lines) == 1
        assert lines[0].startswith("  test/NORMAL/")
        assert lines[0].endswith(" and 88 more: a DICOM file, which needs: pip install 'cxr[dicom]'")
        with pytest.raises(DataError, match=r"pip install 'cxr\[dicom\]' \(and 88 more"):
            extract(found, films, tmp_path / "films", [tiny], compute=COMPUTE)
    finally:
        dicom_decoder.cache_clear()


def test_a_loose_dicom_file_beside_the_class_folders_is_named(tmp_path: Path) -> None:
    for name in ("a/one.dcm", "b/two.dcm", "loose.dicom"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"loose\.dicom lies in no class folder"):
        discover(tmp_path)
