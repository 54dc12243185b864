from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.check import read_file, scan
from featcache.errors import DataError, UnreadableImageError
from featcache.images import ImageTable, discover, patient_of, positive_class, read_csv
from featcache.phantom import phantom


def lay(root: Path, *names: str) -> Path:
    """Empty files below ``root``: nothing here opens an image."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def refused_folder(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        discover(root)
    return str(caught.value)


def csv_of(folder: Path, *lines: str) -> Path:
    path = folder / "images.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def refused_csv(folder: Path, *lines: str) -> str:
    with pytest.raises(DataError) as caught:
        read_csv(csv_of(folder, *lines))
    return str(caught.value)


def column(table: ImageTable, name: str) -> Sequence[str]:
    values: Sequence[str] = getattr(table, name).tolist()
    return values


# --- folders


def test_every_visible_file_of_a_class_folder_is_a_row_sorted_by_path(tmp_path: Path) -> None:
    root = lay(
        tmp_path,
        "train/PNEUMONIA/person10_virus_1.jpeg",
        "train/PNEUMONIA/person1_bacteria_2.jpeg",
        "train/NORMAL/IM-0115-0001.jpeg",
        "train/NORMAL/notes.txt",
        "train/NORMAL/.DS_Store",
        "train/.hidden/NORMAL.jpeg",
        "test/NORMAL/IM-0001-0001.jpeg",
        "README.txt",
    )
    table = discover(root)
    assert table.classes == ("NORMAL", "PNEUMONIA")
    assert column(table, "image_id") == [
        "test/NORMAL/IM-0001-0001.jpeg",
        "train/NORMAL/IM-0115-0001.jpeg",
        "train/NORMAL/notes.txt",
        "train/PNEUMONIA/person10_virus_1.jpeg",
        "train/PNEUMONIA/person1_bacteria_2.jpeg",
    ]
    assert table.label.tolist() == [0, 0, 0, 1, 1]
    assert column(table, "split") == ["test", "train", "train", "train", "train"]
    assert column(table, "patient_id")[3:] == ["train/person10", "train/person1"]
    assert set(column(table, "sha256")) == {""}
    assert not table.width.any()


def test_rows_are_in_the_order_of_their_bytes_whatever_the_locale(tmp_path: Path) -> None:
    names = ["Ä.jpeg", "Z.jpeg", "a.jpeg", "é.jpeg", "_.jpeg"]
    root = lay(tmp_path, *(f"NORMAL/{name}" for name in names), "PNEUMONIA/x.jpeg")
    assert column(discover(root), "image_id")[:-1] == [f"NORMAL/{name}" for name in sorted(names, key=str.encode)]


def test_a_folder_of_classes_without_splits_is_a_table_without_splits(tmp_path: Path) -> None:
    table = discover(lay(tmp_path, "b/2.png", "a/1.png", "c/3.png"))
    assert table.classes == ("a", "b", "c")
    assert column(table, "image_id") == ["a/1.png", "b/2.png", "c/3.png"]
    assert column(table, "split") == ["", "", ""]
    assert column(table, "patient_id") == ["a/1.png", "b/2.png", "c/3.png"]


def test_classes_are_those_of_all_splits_together(tmp_path: Path) -> None:
    table = discover(lay(tmp_path, "train/A/1.png", "train/B/2.png", "test/C/3.png"))
    assert table.classes == ("A", "B", "C")
    assert table.counts("train") == (1, 1, 0)
    assert table.counts("test") == (0, 0, 1)


def test_images_in_a_subfolder_of_a_class_folder_are_rows_of_that_class(tmp_path: Path) -> None:
    table = discover(lay(tmp_path, "train/A/1.png", "train/A/2024/2.png", "train/A/.trash/3.png", "train/B/4.png"))
    assert column(table, "image_id") == ["train/A/1.png", "train/A/2024/2.png", "train/B/4.png"]
    assert table.label.tolist() == [0, 0, 1]


def test_an_image_beside_the_class_folders_is_an_error_and_not_left_out(tmp_path: Path) -> None:
    root = lay(tmp_path, "train/A/1.png", "train/B/2.png", "train/3.JPEG", "train/notes.txt")
    assert refused_folder(root) == (
        f"{root / 'train' / '3.JPEG'} lies in no class folder: move it into one, or use --table images.csv"
    )


def test_a_missing_folder_is_named_with_the_way_out(tmp_path: Path) -> None:
    missing = tmp_path / "chest_xray"
    assert refused_folder(missing) == f"no such folder: {missing}; name the data set's folder with --data DIR"


def test_a_folder_without_classes_tells_the_layout_wanted(tmp_path: Path) -> None:
    root = lay(tmp_path / "films", "loose.jpeg", "train/loose.jpeg")
    assert refused_folder(root) == (
        f"no images in {root}: wanted films/{{train,val,test}}/<class>/*.jpeg, or films/<class>/*.jpeg"
    )


def test_a_folder_around_the_data_set_hints_at_the_inner_one(tmp_path: Path) -> None:
    lay(tmp_path, "chest_xray/train/NORMAL/1.jpeg", "chest_xray/train/PNEUMONIA/2.jpeg")
    assert refused_folder(tmp_path).endswith(f"; did you mean {tmp_path / 'chest_xray'}?")


def test_a_single_class_is_refused_by_name(tmp_path: Path) -> None:
    root = lay(tmp_path, "train/NORMAL/1.jpeg", "test/NORMAL/2.jpeg")
    message = refused_folder(root)
    assert message == f"{root} has the single class folder 'NORMAL': a comparison needs two classes or more"


def test_a_file_name_that_is_no_utf8_is_refused_and_shown(tmp_path: Path) -> None:
    root = lay(tmp_path, "NORMAL/1.jpeg", "PNEUMONIA/2.jpeg")
    try:
        Path(os.fsdecode(bytes(root / "NORMAL") + b"/x\xff.jpeg")).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    message = refused_folder(root)
    assert f"a file's name in {root} is not UTF-8: 'NORMAL/x\\udcff.jpeg'" in message
    assert message.endswith("; rename it")


def test_a_folder_that_may_not_be_listed_is_named(tmp_path: Path) -> None:
    root = lay(tmp_path, "NORMAL/1.jpeg", "PNEUMONIA/2.jpeg")
    (root / "PNEUMONIA").chmod(0)
    if os.access(root / "PNEUMONIA", os.R_OK):
        pytest.skip("root may list every folder")
    message = refused_folder(root)
    (root / "PNEUMONIA").chmod(0o700)
    assert message == f"cannot list {root / 'PNEUMONIA'}: Permission denied"


# --- tables


def test_a_csv_gives_the_rows_in_its_order_with_normalised_paths(tmp_path: Path) -> None:
    table = read_csv(
        csv_of(
            tmp_path,
            "\ufeffpath,label,patient_id,split,remark",
            "b/./2.png,ill,p7,train,x",
            '"a, b/1.png",well,,test,y',
            "train/person3_virus_1.jpeg,ill,,val,z",
            "c.png,well,,,",
        )
    )
    assert table.classes == ("ill", "well")
    assert column(table, "image_id") == ["b/2.png", "a, b/1.png", "train/person3_virus_1.jpeg", "c.png"]
    assert table.label.tolist() == [0, 1, 0, 1]
    assert column(table, "patient_id") == ["p7", "test/a, b/1.png", "train/person3", "c.png"]
    assert column(table, "split") == ["train", "test", "val", ""]


def test_a_csv_needs_no_more_than_path_and_label(tmp_path: Path) -> None:
    table = read_csv(csv_of(tmp_path, "label,path", "1,x.png", "0,y.png"))
    assert (table.classes, column(table, "split"), column(table, "image_id")) == (
        ("0", "1"),
        ["", ""],
        ["x.png", "y.png"],
    )


def test_a_missing_csv_is_named_with_the_columns_wanted(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_csv(tmp_path / "no.csv")
    wanted = "--table wants a CSV with the columns path,label[,patient_id,split]"
    assert str(caught.value) == f"no such table: {tmp_path / 'no.csv'}; {wanted}"


@pytest.mark.parametrize(
    ("header", "missing"), [("path,klass", "label"), ("file,label", "path"), ("a,b", "label or path")]
)
def test_a_missing_column_is_named_beside_those_there_are(tmp_path: Path, header: str, missing: str) -> None:
    assert f"has no column {missing}; it has {header.split(',')}" in refused_csv(tmp_path, header, "x,y")


def test_an_empty_csv_has_no_columns(tmp_path: Path) -> None:
    (tmp_path / "images.csv").touch()
    with pytest.raises(DataError, match="has no column label or path; it has None"):
        read_csv(tmp_path / "images.csv")


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (",ill,,train", "path or label is empty"),
        ("x.png,,,train", "path or label is empty"),
        ("x.png", "path or label is empty"),
        ("/etc/passwd,ill,,train", "/etc/passwd leads outside the data folder; paths are relative to --data"),
        ("../x.png,ill,,train", "../x.png leads outside the data folder; paths are relative to --data"),
        ("a/../../x.png,ill,,train", "a/../../x.png leads outside the data folder; paths are relative to --data"),
        ("x.png,ill,,training", "split is 'training', wanted train, val, test or nothing"),
        ("x\0.png,ill,,train", "holds a NUL character"),
    ],
)
def test_a_wrong_row_of_a_csv_is_refused_with_its_line(tmp_path: Path, row: str, complaint: str) -> None:
    message = refused_csv(tmp_path, "path,label,patient_id,split", "a.png,well,,train", row, "b.png,ill,,train")
    assert message == f"{tmp_path / 'images.csv'}, line 3: {complaint}"


def test_a_path_named_twice_is_refused_however_it_is_spelled(tmp_path: Path) -> None:
    message = refused_csv(tmp_path, "path,label", "a/x.png,well", "b/y.png,ill", "a/./x.png,ill")
    assert message == f"{tmp_path / 'images.csv'} names a/x.png twice"


@pytest.mark.parametrize(("rows", "held"), [(["a.png,well"], "1 class(es) ['well']"), ([], "0 class(es) []")])
def test_a_csv_of_fewer_than_two_classes_is_refused(tmp_path: Path, rows: list[str], held: str) -> None:
    message = refused_csv(tmp_path, "path,label", *rows)
    assert message == f"{tmp_path / 'images.csv'} holds {held}: a comparison needs two or more"


def test_a_csv_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images.csv").write_bytes("path,label\nä.png,well\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"images.csv is not a UTF-8 CSV: 'utf-8' codec can't decode byte 0xe4"):
        read_csv(tmp_path / "images.csv")


def test_a_csv_field_without_end_is_refused(tmp_path: Path) -> None:
    message = refused_csv(tmp_path, "path,label", '"' + "x" * 200_000)
    assert "is not a UTF-8 CSV: field larger than field limit" in message


# --- patients and classes


@pytest.mark.parametrize(
    ("image_id", "split", "patient"),
    [
        ("train/PNEUMONIA/person63_bacteria_306.jpeg", "train", "train/person63"),
        ("test/PNEUMONIA/person63_virus_1.jpeg", "test", "test/person63"),
        ("val/PNEUMONIA/person1946_bacteria_4874.jpeg", "val", "train/person1946"),
        ("train/NORMAL/IM-0115-0001.jpeg", "train", "train/IM-0115"),
        ("train/NORMAL/IM-0115-0001-0002.jpeg", "train", "train/IM-0115"),
        ("val/NORMAL/NORMAL2-IM-1427-0001.jpeg", "val", "train/NORMAL2-IM-1427"),
        ("train/NORMAL/NORMAL2-IM-1427-0001-0002.jpeg", "train", "train/NORMAL2-IM-1427"),
        ("PNEUMONIA/person7_virus_1.png", "", "person7"),
        ("train/NORMAL/anything else.png", "train", "train/NORMAL/anything else.png"),
        ("val/NORMAL/other.png", "val", "train/NORMAL/other.png"),
        ("train/PNEUMONIA/personal_1.png", "train", "train/PNEUMONIA/personal_1.png"),
        ("films/x.png", "", "films/x.png"),
    ],
)
def test_the_patient_is_what_stands_before_the_film_qualified_by_its_series(
    image_id: str, split: str, patient: str
) -> None:
    assert patient_of(image_id, split) == patient


def test_the_positive_class_is_the_second_unless_named() -> None:
    classes = ("NORMAL", "PNEUMONIA")
    assert positive_class(classes) == 1
    assert positive_class(classes, "NORMAL") == 0


def test_an_unknown_positive_class_is_refused_beside_those_there_are() -> None:
    with pytest.raises(DataError) as caught:
        positive_class(("NORMAL", "PNEUMONIA"), "pneumonia")
    assert str(caught.value) == "no class 'pneumonia' in this data set; it has NORMAL, PNEUMONIA"


@given(rows=st.lists(st.integers(0, 5), max_size=8))
def test_taking_rows_takes_every_column_and_keeps_the_classes(rows: list[int]) -> None:
    table = ImageTable.from_columns(
        list("abcdef"), ["y", "x", "z", "x", "y", "x"], list("ppqrst"), ["train"] * 4 + ["test"] * 2, ("x", "y", "z")
    )
    taken = table.take(np.array(rows, np.int64))
    assert column(taken, "image_id") == ["abcdef"[row] for row in rows]
    assert taken.label.tolist() == [[1, 0, 2, 0, 1, 0][row] for row in rows]
    assert column(taken, "patient_id") == ["ppqrst"[row] for row in rows]
    assert taken.classes == ("x", "y", "z")
    assert len(taken) == len(rows)
    assert sum(taken.counts("train")) + sum(taken.counts("test")) == len(rows)


# --- links


def test_links_that_lead_out_are_quarantined_and_those_within_are_used(tmp_path: Path) -> None:
    from PIL import Image

    root, outside = tmp_path / "data", tmp_path / "outside"
    for folder in (root / "NORMAL", root / "PNEUMONIA", outside):
        folder.mkdir(parents=True)
    for number, folder in enumerate((root / "NORMAL", outside)):
        Image.fromarray(phantom(number, size=64, lesion=False)[0]).save(folder / "film.png")
    (root / "PNEUMONIA" / "inner.png").symlink_to("../NORMAL/film.png")
    (root / "PNEUMONIA" / "outer.png").symlink_to(outside / "film.png")
    (root / "PNEUMONIA" / "climbing.png").symlink_to("../../outside/film.png")
    (root / "PNEUMONIA" / "nowhere.png").symlink_to("missing.png")
    (root / "PNEUMONIA" / "circle.png").symlink_to("circle.png")
    (root / "LINKED").symlink_to(outside)
    scanned = scan(discover(root), root)
    assert column(scanned.table, "image_id") == ["NORMAL/film.png", "PNEUMONIA/inner.png"]
    assert {row.image_id: row.reason for row in scanned.quarantined} == {
        "LINKED/film.png": "the link leads outside the data folder",
        "PNEUMONIA/circle.png": "cannot be read: Too many levels of symbolic links",
        "PNEUMONIA/climbing.png": "the link leads outside the data folder",
        "PNEUMONIA/nowhere.png": "no such file",
        "PNEUMONIA/outer.png": "the link leads outside the data folder",
    }


def test_a_folder_that_leads_in_a_circle_has_no_file_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for name in ("loop", "loop/film.jpeg"):
        with pytest.raises(UnreadableImageError, match=r"^cannot be read: Too many levels of symbolic links$"):
            read_file(tmp_path, name)


def test_a_pipe_is_quarantined_and_not_waited_for(tmp_path: Path) -> None:
    root = lay(tmp_path, "NORMAL/1.png", "PNEUMONIA/2.png")
    os.mkfifo(root / "NORMAL" / "pipe.png")
    reasons = {row.image_id: row.reason for row in scan(discover(root), root).quarantined}
    assert reasons["NORMAL/pipe.png"] == "not a plain file"
