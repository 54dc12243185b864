"""``cxr predict`` as its users and their scripts see it."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from dicom_files import SECRET, dicom
from PIL import Image
from test_cli import SETTINGS, cxr, done, environment

import cli
from featcache.decode import decode
from featcache.errors import RunError
from heads.experiments.runs import load_logits, run_folders
from heads.prediction.answers import Tally
from heads.prediction.predictor import Prediction


@pytest.fixture(scope="module")
def work(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with settings, films, their features and fitted heads."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "cxr.toml").write_text(SETTINGS + 'data = "films"\n')
    shutil.copytree(phantoms, folder / "films")
    done("extract", cwd=folder)
    done("fit-head", cwd=folder)
    return folder


def val_ids(work: Path) -> list[str]:
    return list(load_logits(run_folders(work / "cache" / "films")[0]).image_id)


def test_json_has_the_keys_that_others_script_against_in_the_order_asked_for(work: Path) -> None:
    names = val_ids(work)
    said = done("predict", *names, "--json", cwd=work)
    rows = said.json
    first = ["path", "probability", "decision", "distance_percentile", "flagged", "reason"]
    assert all(list(row)[:6] == first for row in rows)
    assert [row["path"] for row in rows] == [f"films/{name}" for name in names]
    kept = load_logits(run_folders(work / "cache" / "films")[0])
    explained = done("explain", "--json", "--out", "maps", names[0], cwd=work).json
    np.testing.assert_allclose([row["logits"] for row in rows], kept.logits[explained["head"]], atol=1e-5)
    assert explained["name"] == rows[0]["head"]
    for row in rows:
        assert row["decision"] == ("PNEUMONIA" if row["probability"] >= row["threshold"] else "NORMAL")
        assert row["flagged"] == (row["distance_percentile"] > 95)
        assert bool(row["warning"]) == row["flagged"]
        assert row["operating_point"] == "youden"
        assert row["probabilities"]["PNEUMONIA"] == row["probability"]
        assert sum(row["probabilities"].values()) == pytest.approx(1)
    assert f"by {rows[0]['head']} (run " in said.err
    assert "operating point youden, chosen on val" in said.err
    # By construction at most a twentieth of val is flagged.
    assert sum(row["flagged"] for row in rows) <= 0.05 * len(rows)


def test_csv_and_table_say_the_same_as_json_and_a_file_the_same_as_stdout(work: Path, tmp_path: Path) -> None:
    asked = ["predict", "films/test", "nothing.png"]
    rows = done(*asked, "--json", cwd=work).json
    text = done(*asked, "--format", "csv", cwd=work).out
    table = done(*asked, cwd=work).out
    for form, wanted in (("csv", text), ("table", table)):
        told = done(*asked, "--format", form, "--out", tmp_path / "deep" / form, cwd=work)
        assert told.out == ""
        assert (tmp_path / "deep" / form).read_text() == wanted
    lines = list(csv.DictReader(io.StringIO(text)))
    assert len(lines) == len(rows) == 25
    shown = table.splitlines()[1:]
    for row, line, words in zip(rows, lines, shown, strict=True):
        assert line["path"] == row["path"]
        assert line["decision"] == (row["decision"] or "")
        assert line["flagged"] == {True: "true", False: "false", None: ""}[row["flagged"]]
        assert line["probability"] == ("" if row["probability"] is None else repr(row["probability"]))
        assert row["path"] in words
        if row["probability"] is not None:
            assert words.startswith(f"{100 * row['probability']:>7.1f} %  {row['decision']}")
    assert (rows[-1]["reason"], rows[-1]["probability"]) == ("no such file", None)
    assert shown[-1].endswith("nothing.png: no such file")


def test_all_failed_is_an_error_and_one_of_many_is_none(work: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    failed = cxr("predict", tmp_path / "empty.png", tmp_path / "no.png", "--json", cwd=work)
    assert failed.code == 1
    assert [row["reason"] for row in failed.json] == ["empty file", "no such file"]
    assert f"cxr: none of 2 files could be read ({tmp_path / 'empty.png'}: empty file)" in failed.err
    assert done("predict", tmp_path / "empty.png", val_ids(work)[0], cwd=work).code == 0


def test_a_file_stays_as_it_was_where_the_command_fails(work: Path, tmp_path: Path) -> None:
    (tmp_path / "answers.csv").write_text("before")
    refused = cxr("predict", "films/test", "--head", "99", "--out", tmp_path / "answers.csv", cwd=work)
    assert "no head 99" in refused.error
    assert (tmp_path / "answers.csv").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["answers.csv"]


def test_rows_ensembles_views_and_rules_by_flag(work: Path) -> None:
    name = val_ids(work)[0]
    rows = done("report", "--ensembles", "--json", cwd=work).json["rows"]
    ensemble = next(row for row in rows if row["ensemble"])
    for flags, views in (([], 1), (["--view-mean"], 2), (["--views", "4"], 4)):
        said = done("predict", name, "--row", ensemble["name"], *flags, "--json", cwd=work)
        (answer,) = said.json
        assert (answer["head"], answer["views"]) == (ensemble["name"], views)
        assert ("mean over" in said.err) == (views > 1)
        assert ("those that val chose for the mean over 2 views" in said.err) == (views == 4)
    for rule in ("f1", "specificity>=0.9", "0.5"):
        (answer,) = done("predict", name, "--operating-point", rule, "--json", cwd=work).json
        assert answer["operating_point"] == rule
    assert answer["threshold"] == 0.5


def test_wrong_flags_are_one_line(work: Path) -> None:
    def refused(*flags: str, code: int = 1) -> str:
        return cxr("predict", "films/test", *flags, cwd=work).line_of_exit(code)

    assert "--operating-point: no rule 'best'" in refused("--operating-point", "best", code=2)
    assert "--head and --row" in refused("--head", "1", "--row", "x", code=2)
    assert "--format is 'xml'" in refused("--format", "xml", code=2)
    assert "no row 'x' in the report" in refused("--row", "x")
    assert "no run none" in refused("--run", "none")
    assert "2 weights for 1 networks" in refused("--weights", "a", "--weights", "b", code=2)
    assert cxr("predict", "films/none*.png", cwd=work).error == "no file matches films/none*.png"


def test_flags_that_contradict_each_other_are_wrong_usage_and_one_that_changes_nothing_is_told(work: Path) -> None:
    name = val_ids(work)[0]
    for flags in (("--views", "1", "--view-mean"), ("--json", "--format", "csv"), ("--json", "--format", "table")):
        assert "give one of them" in cxr("predict", name, *flags, cwd=work).line_of_exit(2)
    assert cxr("predict", name, "--views", "1001", cwd=work).code == 2
    assert done("predict", name, "--json", "--format", "json", cwd=work).json
    assert "changes nothing" not in done("predict", name, "--view-mean", cwd=work).err


def test_view_mean_of_a_head_of_one_view_is_told_to_change_nothing(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work, tmp_path / "work")
    done("fit-head", "--views", "1", cwd=tmp_path / "work")
    said = done("predict", val_ids(work)[0], "--view-mean", cwd=tmp_path / "work")
    assert "--view-mean changes nothing: the head was trained on one view" in said.err


def test_the_last_line_counts_files_and_says_how_fast_they_were_read(work: Path) -> None:
    last = done("predict", val_ids(work)[0], cwd=work).err.rstrip("\n").splitlines()[-1]
    assert re.fullmatch(r"1 file: 1 \w+(, 1 flagged)?; \d+\.\d files/s", last)


def test_a_name_that_is_no_utf_8_keeps_its_bytes_in_a_csv_on_stdout(work: Path, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"\xff\xe9.jpeg")
    shutil.copy(work / "films" / val_ids(work)[0], odd)
    here, said = environment(PYTHONPATH=os.pathsep.join(filter(None, sys.path))), {}
    for form in ("csv", "json"):
        program = [sys.executable, "-c", "import cli; cli.main()", "predict", str(odd), "--format", form]
        said[form] = subprocess.run(program, cwd=work, env=here, capture_output=True, check=True).stdout
    assert os.fsencode(odd) in said["csv"]
    assert json.loads(said["json"])[0]["path"] == str(odd)
    assert said["json"].isascii()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RunError("the network fell"), OSError(5, "Input/output error")])
def test_a_file_stays_as_it_was_where_the_command_ends_halfway(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    answers = tmp_path / "answers.csv"
    answers.write_text("before")
    counted = Tally.count

    def halfway(tally: Tally, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        for number, one in enumerate(counted(tally, predictions)):
            if number == 3:
                raise error
            yield one

    monkeypatch.setattr(Tally, "count", halfway)
    asked = ("predict", "films/test", "--format", "csv", "--out", answers)
    if isinstance(error, OSError):
        # Nobody of ours raises one here: it is a bug, and keeps its traceback.
        with pytest.raises(OSError, match="Input/output"):
            cxr(*asked, cwd=work)
    else:
        assert cxr(*asked, cwd=work).code == (1 if isinstance(error, RunError) else 130)
    assert answers.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["answers.csv"]


def test_dicom_shows_its_projection_and_no_word_of_a_patient(work: Path, tmp_path: Path) -> None:
    pixels = decode((work / "films" / val_ids(work)[0]).read_bytes())
    for name, place, modality in (("pa", "PA", "CR"), ("lateral", "LL", "DX"), ("ct", "PA", "CT")):
        (tmp_path / f"{name}.dcm").write_bytes(dicom(pixels, ViewPosition=place, Modality=modality))
    frames = np.stack([pixels] * 2)
    (tmp_path / "video.dcm").write_bytes(dicom(frames[0], NumberOfFrames=2, encoded=frames.tobytes()))
    for form in ("json", "csv", "table"):
        said = done("predict", tmp_path, "--format", form, cwd=work)
        assert SECRET not in said.out + said.err
    by_name = {Path(row["path"]).stem: row for row in done("predict", tmp_path, "--json", cwd=work).json}
    assert (by_name["pa"]["projection"], by_name["lateral"]["projection"]) == ("PA", "lateral")
    assert by_name["ct"]["reason"] == "no radiograph: modality CT; wanted CR, DX, DR, RG"
    assert "frames" in by_name["video"]["reason"]


def test_a_name_moves_no_cursor(work: Path, tmp_path: Path) -> None:
    odd = tmp_path / "a\x1b[2Jb\n.jpeg"
    shutil.copy(work / "films" / val_ids(work)[0], odd)
    lines = done("predict", odd, cwd=work).out.splitlines()
    assert len(lines) == 2
    assert done("predict", odd, "--json", cwd=work).json[0]["path"] == str(odd)
    # Nor where nothing can be read, or no such thing is there: these names stand in the error.
    odd.write_bytes(b"")
    for asked in (odd, tmp_path / "\x1b[31m*.png"):
        said = cxr("predict", asked, "--json", cwd=work)
        assert said.code == 1
        assert "\N{REPLACEMENT CHARACTER}[" in said.err


@pytest.mark.parametrize(("command", "kept"), [("predict", False), ("bundle", False), ("extract", True)])
def test_an_interrupt_says_that_work_is_kept_only_where_it_is(
    work: Path, monkeypatch: pytest.MonkeyPatch, command: str, kept: bool
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for module in ("predict", "bundle", "extract"):
        monkeypatch.setattr(f"cxr.commands.{module}.load_settings", interrupt)
    said = cxr(command, *(("films",) if command == "predict" else ("--out", "model")[: 2 * (not kept)]), cwd=work)
    assert said.code == 130
    assert said.err.strip() == (cli.KEPT if kept else "cxr: interrupted")


def test_distances_are_measured_once_and_a_damaged_file_again(work: Path) -> None:
    name = val_ids(work)[0]
    before = done("predict", name, "--json", cwd=work).json
    (kept,) = (work / "cache" / "films" / "distances").iterdir()
    written = kept.stat().st_mtime_ns
    done("predict", name, cwd=work)
    assert kept.stat().st_mtime_ns == written
    content = kept.read_bytes()
    kept.write_bytes(content[: len(content) // 2])
    assert done("predict", name, "--json", cwd=work).json == before
    assert kept.read_bytes() == content


def test_without_the_films_at_hand_features_alone_tell_how_far_they_lie(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "cache", tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache" / "films" / "distances", ignore_errors=True)
    film = work / "films" / val_ids(work)[0]
    said = done("predict", film, "--data", "films", "--json", cwd=tmp_path)
    assert "the films of the data set are not at hand: how far a film lies is told by features alone" in said.err
    assert 0 <= said.json[0]["distance_percentile"] <= 100


def test_what_was_measured_on_the_films_is_used_without_them_too(work: Path, tmp_path: Path) -> None:
    film = work / "films" / val_ids(work)[0]
    wanted = done("predict", film, "--json", cwd=work).json[0]
    shutil.copytree(work / "cache", tmp_path / "cache")
    said = done("predict", film, "--data", "films", "--json", cwd=tmp_path)
    assert "features alone" not in said.err
    assert said.json == [{**wanted, "path": str(film)}]


def test_the_first_prediction_of_a_run_says_that_it_reads_many_films_and_names_the_one_that_it_cannot(
    work: Path, tmp_path: Path
) -> None:
    shutil.copytree(work, tmp_path / "work")
    shutil.rmtree(tmp_path / "work" / "cache" / "films" / "distances", ignore_errors=True)
    gone, asked = val_ids(work)[:2]
    (tmp_path / "work" / "films" / gone).unlink()
    said = done("predict", asked, cwd=tmp_path / "work")
    assert "measuring how far films lie, once for this run: " in said.err
    assert f"{gone}: no such file" in said.err
    assert "are not at hand" not in said.err
    shutil.copy(work / "films" / gone, tmp_path / "work" / "films" / gone)
    assert "features alone" not in done("predict", asked, cwd=tmp_path / "work").err
    assert "measuring" not in done("predict", asked, cwd=tmp_path / "work").err


def test_distances_of_other_images_under_the_same_names_are_not_those_of_the_run(work: Path, tmp_path: Path) -> None:
    place = tmp_path / "work"
    shutil.copytree(work, place)
    kept, films = place / "cache" / "films" / "distances", place / "films"
    shutil.rmtree(kept, ignore_errors=True)
    names = val_ids(work)[:4]
    before = done("predict", *names, "--json", cwd=place).json
    shutil.rmtree(kept)
    for film in films.glob("train/*/*"):
        pixels = decode(film.read_bytes())
        Image.fromarray(255 - pixels).save(film, quality=95)
    done("extract", cwd=place)
    changed = done("predict", *names, "--json", cwd=place)
    assert "the images have changed since the run" in changed.err
    assert {row["distance_percentile"] for row in changed.json} == {None}
    card = done("bundle", "--out", "model", cwd=place)
    assert "the images have changed since the run" in card.err
    shutil.rmtree(films)
    shutil.copytree(work / "films", films)
    done("extract", cwd=place)
    assert done("predict", *names, "--json", cwd=place).json == before
