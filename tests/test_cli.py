"""The command line as its users and their scripts see it: words, JSON, exit codes, one-line errors."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import typer
from PIL import Image

import cli
from cxr import terminal
from featcache.settings import load_settings

SETTINGS = """
backbone = "tiny_network:tiny"
device = "cpu"
runtime = "torch"
precision = "float32"
extract_batch_size = 8
views = 2
hidden = 8
l2 = [0, 1e-3]
seeds = 2
epochs = 3
batch_size = 16
"""


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The whole of stdout as strict JSON."""
        return json.loads(self.out, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))

    @property
    def error(self) -> str:
        """The one line of a command that failed with a CxrError."""
        return self.line_of_exit(1)

    def line_of_exit(self, code: int) -> str:
        """The one line of a command that left with this code."""
        *notes, last = self.err.rstrip("\n").splitlines()
        assert self.code == code
        assert self.out == ""
        assert last.startswith("cxr: ")
        assert not any(note.startswith("cxr: ") for note in notes)
        return last.removeprefix("cxr: ")


def environment(**variables: str) -> dict[str, str]:
    """The variables of a program under test: the tests' modules are found, nothing of the user's changes the words."""
    terminal = {"COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"}
    kept = {name: value for name, value in os.environ.items() if name[:4] != "CXR_" and name not in terminal}
    return {**kept, "PYTHONPATH": str(Path(__file__).parent), **variables}


def cxr(*arguments: str | Path, cwd: Path, **variables: str) -> Result:
    """Run the program in this process, in a folder, with no terminal and no CXR_ variables but those given."""
    out, err = io.StringIO(), io.StringIO()
    # The consoles looked at the environment when they were made.
    plain: dict[str, Any] = {"_force_terminal": False, "is_interactive": False, "_color_system": None}
    plain["_width"] = int(variables.get("COLUMNS", "180"))
    with (
        mock.patch.dict(os.environ, environment(**variables), clear=True),
        mock.patch.multiple(terminal.out, **plain),
        mock.patch.multiple(terminal.err, **plain),
        mock.patch.object(sys, "argv", ["cxr", *map(str, arguments)]),
        mock.patch.object(sys, "excepthook"),
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as left,
    ):
        cli.main()
    result = Result(code=int(left.value.code or 0), out=out.getvalue(), err=err.getvalue())
    assert "\x1b" not in result.out + result.err
    assert "Traceback" not in result.err
    return result


def done(*arguments: str | Path, cwd: Path, **variables: str) -> Result:
    """Run a command that must succeed."""
    result = cxr(*arguments, cwd=cwd, **variables)
    assert result.code == 0, result.err
    return result


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On tensors this small a second thread is only waited for."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A folder in which the main job was done, and what each command wrote."""

    folder: Path
    init: Result
    check: Result
    extract: Result
    fit: Result
    report: Result


@pytest.fixture(scope="module")
def job(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The main job on the phantoms, with cxr.toml and no further flag; read it, never write to it."""
    folder = tmp_path_factory.mktemp("job")
    shutil.copytree(phantoms, folder / "films")
    init = done("init", "--data", "films", cwd=folder)
    with (folder / "cxr.toml").open("a") as file:
        file.write(SETTINGS)
    return Job(
        folder=folder,
        init=init,
        check=done("data", "check", cwd=folder),
        extract=done("extract", cwd=folder),
        fit=done("fit-head", cwd=folder),
        report=done("report", cwd=folder),
    )


@pytest.fixture
def work(job: Job, tmp_path: Path) -> Path:
    """A copy of the finished job's folder, to be spoilt."""
    return shutil.copytree(job.folder, tmp_path / "work")


def store_of(folder: Path) -> Path:
    (store,) = (folder / "cache" / "films").glob("tiny_network*")
    return store


def flip_a_feature(folder: Path) -> Path:
    """Change one bit of the features of a part; returns the part."""
    (part,) = (store_of(folder) / "parts").iterdir()
    import h5py

    with h5py.File(part) as file:
        offset = file["features"].id.get_offset()
    data = bytearray(part.read_bytes())
    data[offset + 5] ^= 1
    part.write_bytes(data)
    return part


# ---- the main job


def test_the_main_job_needs_no_flag_beside_the_settings_file(job: Job) -> None:
    assert "cxr.toml" in job.init.out
    assert "88 images × 2 views" in job.extract.out
    assert "88 computed, 0 reused" in job.extract.out
    assert job.fit.out.startswith("4 heads fitted in ")
    assert "'cxr report'" in job.fit.out
    assert (store_of(job.folder) / "features.h5").is_file()


def test_data_check_prints_counts_by_split_and_class(job: Job) -> None:
    rows = [line.split() for line in job.check.out.splitlines()]
    assert ["split", "NORMAL", "PNEUMONIA", "patients"] in rows
    counts = {row[0]: row[1:3] for row in rows if row and row[0] in ("train", "val", "test")}
    assert counts == {"train": ["12", "36"], "val": ["8", "8"], "test": ["9", "15"]}


def test_the_report_has_a_row_a_configuration_and_marks_the_selected(job: Job) -> None:
    for heading in ("Validation Accuracy", "Test Accuracy", "Test Loss", "Sensitivity", "Specificity", "AUC"):
        assert heading in job.report.out
    assert job.report.out.count("▸ tiny_network:tiny") == 1
    assert "+ L2" in job.report.out
    assert "TN " in job.report.out
    assert " ± " in job.report.out


def test_progress_goes_to_stderr_and_results_to_stdout(job: Job) -> None:
    for result, bar in ((job.check, "reading"), (job.extract, "extracting"), (job.fit, "fitting")):
        assert bar in result.err
        assert bar not in result.out
    assert "88/88" in job.extract.err
    assert "img/s" in job.extract.err


def test_the_same_commands_again_compute_nothing(work: Path) -> None:
    assert "0 computed, 88 reused" in done("extract", cwd=work).out
    assert done("fit-head", cwd=work).out.startswith("4 heads read back, nothing changed")


def test_flags_override_variables_which_override_the_file(work: Path) -> None:
    heads = [
        done("fit-head", "--json", cwd=work).json["heads"],
        done("fit-head", "--json", cwd=work, CXR_SEEDS="1").json["heads"],
        done("fit-head", "--json", "--seeds", "3", cwd=work, CXR_SEEDS="1").json["heads"],
    ]
    assert heads == [4, 2, 6]


def test_several_values_of_a_flag_make_a_grid(work: Path) -> None:
    flags = ["--l2", "0", "--l2", "1e-4", "--lr", "1e-3", "--learning-rate", "1e-2", "--seeds", "3", "--hidden", "0"]
    assert done("fit-head", *flags, "--json", cwd=work).json["heads"] == 12
    rows = done("report", "--json", cwd=work).json["rows"]
    assert {(row["head"]["l2"], row["head"]["lr"]) for row in rows if row["head"]["hidden"] == 0} == {
        (l2, lr) for l2 in (0.0, 1e-4) for lr in (1e-3, 1e-2)
    }


def test_a_fit_without_a_backbone_takes_every_store(work: Path) -> None:
    done("extract", "-b", "tiny_network:other", cwd=work)
    assert done("fit-head", "--json", cwd=work).json["heads"] == 8
    assert done("fit-head", "-b", "tiny_network:other", "--json", cwd=work).json["heads"] == 4


def test_a_fit_says_when_the_images_are_not_there_and_goes_on(work: Path) -> None:
    shutil.rmtree(work / "films")
    result = done("fit-head", "--hidden", "0", cwd=work)
    assert "the images are not here: using the image table kept in" in result.err


GRID = """
[[head]]
backbone = ["tiny_network:tiny", "tiny_network:tiny+tiny_network:other"]
hidden = [0, 4]
seeds = 2

[[head]]
hidden = 4
lr = 1e-2
"""


def test_a_grid_of_a_file_is_a_run_that_the_report_shows(work: Path) -> None:
    done("extract", "-b", "tiny_network:other", cwd=work)
    (work / "grid.toml").write_text(GRID)
    result = done("grid", "--file", "grid.toml", "--l2", "0.25", "--json", cwd=work)
    assert "heads left, epoch 3, best val loss" in result.err
    # Two stores, one of them joined, by two widths by two seeds; and two stores by two seeds at another rate.
    assert (result.json["heads"], result.json["reused"], result.json["continued"]) == (8 + 4, False, 0)
    rows = done("report", "--run", result.json["run"], "--json", cwd=work).json["rows"]
    assert {(row["backbone"], row["head"]["hidden"], row["head"]["lr"], row["head"]["l2"]) for row in rows} == {
        *(("tiny_network:tiny", hidden, 1e-3, 0.25) for hidden in (0, 4)),
        *(("tiny_network:tiny+tiny_network:other", hidden, 1e-3, 0.25) for hidden in (0, 4)),
        *((f"tiny_network:{name}", 4, 1e-2, 0.25) for name in ("tiny", "other")),
    }
    again = done("grid", "--file", "grid.toml", "--l2", "0.25", cwd=work)
    assert again.out.startswith("12 heads read back, nothing changed")
    assert not (work / "cache" / "films" / "unfinished").exists()


def test_backbones_joined_by_a_plus_are_fitted_as_one(work: Path) -> None:
    done("extract", "-b", "tiny_network:other", cwd=work)
    joined = "tiny_network:other+tiny_network:tiny"
    held = done("fit-head", "-b", joined, "--seeds", "1", "--json", cwd=work).json
    rows = done("report", "--run", held["run"], "--json", cwd=work).json["rows"]
    assert {row["backbone"] for row in rows} == {joined}


def test_the_presets_file_is_printed_to_start_from(job: Job, tmp_path: Path) -> None:
    shown = done("grid", "--preset", "paper", "--l2", "0.01", "--seeds", "5", "--show", cwd=tmp_path).out
    declared = tomllib.loads(shown)["head"]
    assert declared == [
        {"backbone": ["inception_v3", "vgg19", "efficientnet_b4", "resnet50"], "l2": 0, "seeds": 5},
        {"backbone": ["efficientnet_b4", "resnet50"], "l2": [0.01], "seeds": 5},
    ]
    message = cxr("grid", "--preset", "paper", cwd=job.folder).error
    wanted = "--backbone inception_v3 --backbone vgg19 --backbone efficientnet_b4 --backbone resnet50"
    assert f"run 'cxr extract {wanted}' first" in message


def test_wrong_grids_are_wrong_usage_or_an_error_of_one_line(work: Path) -> None:
    (work / "grid.toml").write_text(GRID)
    assert "either --file" in cxr("grid", cwd=work).line_of_exit(2)
    assert "either --file" in cxr("grid", "--file", "grid.toml", "--preset", "paper", cwd=work).line_of_exit(2)
    assert "wanted paper" in cxr("grid", "--preset", "study", cwd=work).line_of_exit(2)
    (work / "said.toml").write_text('split = "paper"\n[[head]]')
    assert "--split would change nothing" in cxr(
        "grid", "--file", "said.toml", "--split", "folders", cwd=work
    ).line_of_exit(2)
    (work / "wrong.toml").write_text("[[head]]\nl3 = 0")
    assert (
        "wrong.toml, head 1: unknown key 'l3'; did you mean l2?" in cxr("grid", "--file", "wrong.toml", cwd=work).error
    )
    assert "no grid file absent.toml" in cxr("grid", "--file", "absent.toml", cwd=work).error


# ---- JSON


def test_data_check_json_has_its_counts(job: Job) -> None:
    held = done("data", "check", "--json", cwd=job.folder).json
    assert held["counts"]["test"] == {"NORMAL": 9, "PNEUMONIA": 15}
    assert held.keys() >= {"images", "classes", "patients", "straddling", "duplicate_groups", "quarantined", "odd"}
    assert held["class_weights"] == {"NORMAL": 2.0, "PNEUMONIA": pytest.approx(2 / 3)}


EXTRACT_KEYS = {"backbone", "store", "fingerprint", "images", "extracted", "reused", "quarantined", "views", "seconds"}
EXTRACT_KEYS |= {"images_per_second", "limited_by"}


def test_data_table_writes_hashes_that_the_next_extraction_takes(work: Path) -> None:
    broken = work / "films" / "test" / "NORMAL" / "broken.jpeg"
    broken.write_bytes(b"")
    told = done("data", "table", "--out", "tables/images.csv", cwd=work)
    assert "88 of 89 images hashed in tables/images.csv: use --data films --table tables/images.csv" in told.out
    assert "without a hash: test/NORMAL/broken.jpeg: empty file" in told.err
    with (work / "tables" / "images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "label", "patient_id", "split", "sha256", "width", "height"]
    assert [row["path"] for row in rows if not row["sha256"]] == ["test/NORMAL/broken.jpeg"]
    again = done("data", "table", "--table", "tables/images.csv", "--out", "tables/again.csv", "--json", cwd=work)
    assert again.json["images"] == 89
    assert again.json["quarantined"] == [{"image_id": "test/NORMAL/broken.jpeg", "reason": "empty file"}]
    assert (work / "tables" / "again.csv").read_bytes() == (work / "tables" / "images.csv").read_bytes()
    extracted = done("extract", "--data", "films", "--table", "tables/images.csv", "--json", cwd=work).json
    assert (extracted["images"], extracted["extracted"], extracted["reused"]) == (88, 0, 88)
    assert extracted["quarantined"] == again.json["quarantined"]


def test_extract_json_has_the_keys_that_others_script_against(work: Path) -> None:
    held = done("extract", "--json", cwd=work).json
    assert held.keys() >= EXTRACT_KEYS
    assert (held["backbone"], held["images"], held["extracted"], held["reused"]) == ("tiny_network:tiny", 88, 0, 88)
    assert (held["views"], held["quarantined"]) == (2, [])
    assert work / held["store"] == store_of(work)
    assert store_of(work).name.endswith(held["fingerprint"][:12])


def test_extract_json_of_several_backbones_is_a_list_in_their_order(work: Path) -> None:
    flags = ["-b", "tiny_network:other", "-b", "tiny_network:tiny"]
    first, second = done("extract", "--json", *flags, cwd=work).json
    assert (first["backbone"], first["extracted"]) == ("tiny_network:other", 88)
    assert (second["backbone"], second["extracted"]) == ("tiny_network:tiny", 0)


def test_fit_head_json_names_the_run_and_what_val_selects(job: Job) -> None:
    held = done("fit-head", "--json", cwd=job.folder).json
    assert held.keys() >= {"run", "folder", "heads", "reused", "seconds", "selected", "val_loss", "n"}
    assert (held["heads"], held["reused"]) == (4, True)
    assert sum(held["n"].values()) == 72
    rows = done("report", "--json", cwd=job.folder).json["rows"]
    assert held["selected"] == next(row["name"] for row in rows if row["selected"])
    assert (job.folder / held["folder"] / "run.json").is_file()


ROW_KEYS = {"name", "backbone", "head", "views", "split", "seeds", "selected", "n", "val", "test"}
TEST_KEYS = {"accuracy", "loss", "penalty", "sensitivity", "specificity", "f1", "auc", "confusion"}


def test_report_json_has_the_keys_that_others_script_against(job: Job) -> None:
    result = done("report", "--json", cwd=job.folder)
    assert done("report", "--format", "json", cwd=job.folder).out == result.out
    held = result.json
    assert held.keys() >= {"dataset", "rows"}
    assert held["dataset"] == "films"
    assert len(held["rows"]) == 2
    for row in held["rows"]:
        assert row.keys() >= ROW_KEYS
        assert row["head"].keys() >= {"hidden", "l2", "lr"}
        assert row["n"].keys() == {"train", "val", "test"}
        assert row["val"].keys() >= {"accuracy", "loss", "auc"}
        assert row["test"].keys() >= TEST_KEYS
        assert row["test"]["accuracy"].keys() == {"mean", "sd", "value", "low", "high"}
    assert sum(row["selected"] for row in held["rows"]) == 1


def test_cache_commands_speak_json_too(work: Path) -> None:
    (row,) = done("cache", "list", "--json", cwd=work).json
    assert work / row["store"] == store_of(work)
    assert (row["images"], row["views"], row["state"], row["backbone"]) == (88, 2, "complete", "tiny_network:tiny")
    assert done("cache", "verify", "--json", cwd=work).json == {row["store"]: []}
    freed = done("cache", "remove", row["store"], "--json", cwd=work).json
    assert freed == {row["store"]: row["bytes"]}
    assert done("cache", "list", "--json", cwd=work).json == []


def commands() -> dict[str, set[str]]:
    """The flags of each command."""
    found: dict[str, set[str]] = {}

    def walk(command: Any, words: Sequence[str]) -> None:
        if hasattr(command, "commands"):
            for name, child in command.commands.items():
                walk(child, [*words, name])
        else:
            found[" ".join(words)] = {flag for option in command.params for flag in option.opts}

    walk(typer.main.get_command(cli.app), [])
    return found


@pytest.mark.parametrize("command", ["extract", "fit-head", "report", "cache list", "cache verify"])
def test_commands_on_the_cache_take_data_cache_and_json(command: str) -> None:
    assert commands()[command] >= {"--data", "--cache", "--json", "--config"}


def test_every_command_with_a_result_has_json() -> None:
    without = {name for name, flags in commands().items() if "--json" not in flags}
    assert without <= {"init", "data phantoms"}


# ---- forms of the report


def test_the_page_is_a_file_of_its_own_that_names_no_folder_of_this_machine(job: Job, tmp_path: Path) -> None:
    page = tmp_path / "out" / "page.html"
    result = done("report", "--html", page, "--view-mean", cwd=job.folder)
    assert f"wrote {page}" in result.err
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert "mean over the views" in text
    assert "cxr report --html page.html --view-mean" in text
    assert str(tmp_path) not in text
    assert str(job.folder) not in text
    # What is printed besides is the same as without it.
    assert result.out == done("report", "--view-mean", cwd=job.folder).out


def test_the_reports_forms_tell_the_same_figures(job: Job) -> None:
    rows = done("report", "--json", cwd=job.folder).json["rows"]
    table = list(csv.DictReader(io.StringIO(done("report", "--format", "csv", cwd=job.folder).out)))
    assert [line["model"] for line in table] == [row["name"] for row in rows]
    for line, row in zip(table, rows, strict=True):
        assert float(line["test_accuracy"]) == row["test"]["accuracy"]["mean"]
        assert float(line["test_auc_sd"]) == row["test"]["auc"]["sd"]
    text = done("report", "--format", "markdown", cwd=job.folder).out
    for row in rows:
        loss = row["test"]["loss"]
        told = f"{loss['mean']:.4f} ± {loss['sd']:.4f} ({loss['low']:.3f}–{loss['high']:.3f})"
        assert f"| {told} |" in text


def test_the_papers_rows_stand_below_ours_when_asked_for(job: Job) -> None:
    assert "paper" not in job.report.out
    for form in ("table", "markdown", "csv"):
        text = done("report", "--paper", "--format", form, cwd=job.folder).out
        assert text.count("paper: ") == 6
        assert text.index("tiny_network:tiny") < text.index("paper: InceptionV3") < text.index("paper: ResNet50 + L2")


def test_the_table_fits_a_narrow_terminal(job: Job) -> None:
    text = done("report", "--paper", cwd=job.folder, COLUMNS="80").out
    assert max(map(len, text.splitlines())) <= 80
    assert "paper: ResNet50 + L2" in text
    assert "92.3" in text


def test_view_mean_figures_are_other_figures(job: Job) -> None:
    clean = done("report", "--format", "csv", cwd=job.folder).out
    mean = done("report", "--format", "csv", "--view-mean", cwd=job.folder).out
    assert clean.splitlines()[0] == mean.splitlines()[0]
    assert clean != mean


def test_ensembles_are_rows_when_asked_for_by_flag_variable_or_file(work: Path) -> None:
    asked = done("report", "--ensembles", "--json", cwd=work).json["rows"]
    assert [row["ensemble"] and row["ensemble"]["kind"] for row in asked] == [None, None, "seeds", "seeds"]
    assert done("report", "--json", cwd=work, CXR_ENSEMBLES="1").json["rows"] == asked
    assert len(done("report", "--no-ensembles", "--json", cwd=work, CXR_ENSEMBLES="1").json["rows"]) == 2
    done("extract", "-b", "tiny_network:other", cwd=work)
    done("fit-head", cwd=work)
    kinds = [
        row["ensemble"] and row["ensemble"]["kind"]
        for row in done("report", "--ensembles", "--json", cwd=work).json["rows"]
    ]
    assert kinds == [None] * 4 + ["seeds"] * 4 + ["backbones"]
    assert "mean of 2 backbones: mean of the logits" in done("report", "--ensembles", cwd=work).out


def test_the_rule_of_selection_is_told_and_may_be_another(job: Job) -> None:
    for rule, words in (("clean", "mean val loss of the clean view"), ("views", "mean val loss of the mean over the")):
        assert (
            f"selected on train and val alone (lowest {words}" in done("report", "--select", rule, cwd=job.folder).out
        )
        held = done("report", "--json", cwd=job.folder, CXR_SELECT=rule).json
        assert held["selected_by"] == rule
        losses = [row["val_view_mean" if rule == "views" else "val"]["loss"]["mean"] for row in held["rows"]]
        assert [row["selected"] for row in held["rows"]] == [loss == min(losses) for loss in losses]
    assert "--select is 'test'" in cxr("report", "--select", "test", cwd=job.folder).line_of_exit(2)


def test_decisions_at_an_operating_point_are_other_decisions(job: Job) -> None:
    flags = ["report", "--format", "csv", "--operating-point"]
    sure, usual = (
        list(csv.DictReader(io.StringIO(done(*flags, rule, cwd=job.folder).out)))
        for rule in ("specificity>=0.9", "sensitivity>=1")
    )
    for one, other in zip(sure, usual, strict=True):
        assert one["test_auc"] == other["test_auc"]
        assert float(one["test_specificity"]) >= float(other["test_specificity"])
    held = done("report", "--json", "--operating-point", "specificity>=0.9", cwd=job.folder).json
    assert [point["rule"] for point in held["rows"][0]["operating_points"]][-1] == "specificity>=0.9"
    message = cxr("report", "--operating-point", "yuden", cwd=job.folder).line_of_exit(2)
    assert "--operating-point: no rule 'yuden'; there are: youden, f1, sensitivity>=X" in message


def test_a_run_of_an_older_format_is_told_and_left_out(work: Path) -> None:
    (old,) = (work / "cache" / "films" / "runs").iterdir()
    text = (old / "run.json").read_text()
    (old / "run.json").write_text(text.replace('"format_version": 2', '"format_version": 1'))
    assert "has format 1, this cxr reads 2: delete " in cxr("report", cwd=work).error
    done("fit-head", "--l2", "0.5", cwd=work)
    result = done("report", cwd=work)
    assert f"left out: cache/films/runs/{old.name}/run.json has format 1" in " ".join(result.out.split())
    assert done("fit-head", cwd=work).out.startswith("4 heads fitted")
    assert "left out" not in done("report", cwd=work).out


def test_figures_are_written_where_asked_and_told_on_stderr(job: Job, tmp_path: Path) -> None:
    flags: list[str | Path] = ["--figures", tmp_path / "figures", "--figure-format", "svg", "--json"]
    result = done("report", *flags, cwd=job.folder)
    assert result.json["rows"]
    written = sorted((tmp_path / "figures").iterdir())
    assert [path.name for path in written] == ["confusion-matrix.svg", "learning-curves.svg", "roc.svg"]
    for path in written:
        assert f"wrote {path}" in result.err


def test_an_unknown_form_is_refused_with_the_nearest(job: Job) -> None:
    told = cxr("report", "--format", "markdwon", cwd=job.folder).line_of_exit(2)
    assert "--format is 'markdwon', wanted table" in told
    message = cxr("report", "--figure-format", "jpg", cwd=job.folder).line_of_exit(2)
    assert "png" in message
    assert "svg" in message


def test_only_the_run_asked_for_is_reported(work: Path) -> None:
    other = done("fit-head", "--l2", "0.5", "--json", cwd=work).json["run"]
    assert len(done("report", "--json", cwd=work).json["rows"]) == 3
    (row,) = done("report", "--json", "--run", other, cwd=work).json["rows"]
    assert row["head"]["l2"] == 0.5
    refused = cxr("report", "--run", "no-such-run", cwd=work).error
    assert other in refused.partition("there are: ")[2]


# ---- init


def test_init_writes_settings_that_are_read_back(tmp_path: Path) -> None:
    done("init", "--data", "some films", "--cache", "elsewhere", cwd=tmp_path)
    with contextlib.chdir(tmp_path):
        loaded = load_settings()
    assert (loaded.data, loaded.cache, loaded.epochs) == (Path("some films"), Path("elsewhere"), 50)


def test_init_does_not_overwrite_unless_forced(tmp_path: Path) -> None:
    (tmp_path / "cxr.toml").write_text("epochs = 3\n")
    assert "cxr.toml exists already" in cxr("init", cwd=tmp_path).error
    assert (tmp_path / "cxr.toml").read_text() == "epochs = 3\n"
    done("init", "--force", cwd=tmp_path)
    assert "epochs = 50" in (tmp_path / "cxr.toml").read_text()


def test_phantoms_are_made_and_pass_the_check(tmp_path: Path) -> None:
    made = done("data", "phantoms", "films", "--train", "8", "--test", "4", cwd=tmp_path)
    assert "synthetic" in made.out
    held = done("data", "check", "films", "--json", cwd=tmp_path).json
    assert {split: sum(counts.values()) for split, counts in held["counts"].items()} == {
        "train": 8,
        "val": 16,
        "test": 4,
    }
    again = cxr("data", "phantoms", "films", "--train", "9", cwd=tmp_path)
    assert "films" in again.error


def test_a_settings_file_elsewhere_is_read_when_named(job: Job, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(f'data = "films"\ncache = "{job.folder / "cache"}"\n')
    assert len(done("report", "--json", "--config", "mine.toml", cwd=tmp_path).json["rows"]) == 2
    assert "no settings file absent.toml" in cxr("report", "--config", "absent.toml", cwd=tmp_path).error


# ---- cache


def test_cache_list_names_each_store_with_its_state(work: Path) -> None:
    text = done("cache", "list", cwd=work).out
    assert store_of(work).name in text
    assert "complete" in text
    (store_of(work) / "features.h5").unlink()
    (row,) = done("cache", "list", "--json", cwd=work).json
    assert "no features.h5" in row["state"]


@pytest.mark.parametrize("command", ["list", "verify"])
def test_the_cache_of_a_data_set_that_it_does_not_hold_is_not_called_sound(job: Job, command: str) -> None:
    message = cxr("cache", command, "--data", "elsewhere", cwd=job.folder).error
    assert "has no stores of elsewhere; it holds films" in message


def test_a_store_is_removed_by_the_name_that_list_gives(work: Path) -> None:
    store = store_of(work)
    assert f"removed {store.relative_to(work)}" in done("cache", "remove", store.relative_to(work), cwd=work).out
    assert not store.exists()
    assert "no feature stores in cache/films" in cxr("fit-head", "--l2", "0.5", cwd=work).error


@pytest.mark.parametrize("folder", ["films", "cache", "cache/films", "cache/films/../../films", "absent", "/"])
def test_what_is_no_store_is_not_removed(folder: str, work: Path) -> None:
    before = sorted(work.rglob("*"))
    assert "is no feature store below cache" in cxr("cache", "remove", folder, cwd=work).error
    assert sorted(work.rglob("*")) == before


def test_a_sound_cache_is_verified(job: Job) -> None:
    result = done("cache", "verify", cwd=job.folder)
    assert result.out.strip().endswith("sound")


def test_damage_is_found_removed_and_made_again(work: Path) -> None:
    part = flip_a_feature(work)
    found = cxr("cache", "verify", cwd=work)
    assert found.code == 1
    assert "1 damaged" in found.out
    assert "1 of the cache's files or rows are damaged, missing or wrong" in found.err.splitlines()[-1]
    assert f"{part.relative_to(work)} is damaged (its checksum does not match)" in found.err
    told = cxr("cache", "verify", "--json", cwd=work)
    assert told.code == 1
    assert len(told.json[str(store_of(work).relative_to(work))]) == 1
    assert done("cache", "verify", "--remove-damaged", cwd=work).out.strip().endswith("1 damaged")
    assert not part.exists()
    assert "88 computed, 0 reused" in done("extract", cwd=work).out
    assert done("cache", "verify", cwd=work).out.strip().endswith("sound")


# ---- bad input: one line on stderr, exit 1, no traceback


def test_no_such_folder(tmp_path: Path) -> None:
    for command in (["extract"], ["data", "check"]):
        assert "no such folder: absent" in cxr(*command, "--data", "absent", cwd=tmp_path).error


def test_no_data_set_named(tmp_path: Path) -> None:
    for command in (["extract"], ["data", "check"], ["fit-head"], ["report"]):
        message = cxr(*command, cwd=tmp_path).error
        assert message.startswith("no data set: name its folder with --data DIR, in CXR_DATA, or in cxr.toml")


def test_a_folder_without_classes(tmp_path: Path) -> None:
    (tmp_path / "films" / "train").mkdir(parents=True)
    (tmp_path / "films" / "train" / "stray.jpeg").touch()
    assert (
        "no images in films: wanted films/{train,val,test}/<class>/*.jpeg"
        in cxr("extract", "--data", "films", cwd=tmp_path).error
    )


def test_a_folder_of_one_class(tmp_path: Path) -> None:
    (tmp_path / "films" / "train" / "NORMAL").mkdir(parents=True)
    (tmp_path / "films" / "train" / "NORMAL" / "a.jpeg").touch()
    assert "the single class folder 'NORMAL'" in cxr("extract", "--data", "films", cwd=tmp_path).error


def test_unreadable_images_are_listed_with_their_reason_and_the_rest_is_used(work: Path) -> None:
    (work / "films" / "train" / "NORMAL" / "[red]broken :heart:.jpeg").write_bytes(b"not an image")
    name = "train/NORMAL/[red]broken :heart:.jpeg"
    result = done("extract", cwd=work)
    assert f"left out: {name}: " in result.err
    assert "88 images" in result.out
    (row,) = done("extract", "--json", cwd=work).json["quarantined"]
    assert row["image_id"] == name
    assert row["reason"]
    assert f"{name}: {row['reason']}" in done("data", "check", cwd=work).out
    assert "1 unreadable images are left out" in done("fit-head", "--l2", "0.5", cwd=work).err


def test_an_unreadable_image_is_an_error_when_strict(work: Path) -> None:
    (work / "films" / "test" / "NORMAL" / "empty.jpeg").touch()
    message = cxr("extract", "--strict", cwd=work).error
    assert message.startswith("test/NORMAL/empty.jpeg: ")
    assert "--strict wants every image" in message


def test_nothing_but_unreadable_images(work: Path) -> None:
    for path in (work / "films").rglob("*.jpeg"):
        path.write_bytes(b"\xff\xd8\xff")
    message = cxr("extract", cwd=work).error
    assert "no image can be used" in message
    assert "87 more" in message


def test_an_unknown_backbone(job: Job) -> None:
    assert "unknown backbone 'resnet5O'; did you mean" in cxr("extract", "-b", "resnet5O", cwd=job.folder).error
    assert (
        "backbone 'no_such_module:net' cannot be made"
        in cxr("extract", "-b", "no_such_module:net", cwd=job.folder).error
    )


def test_a_backbone_that_was_not_extracted(job: Job) -> None:
    message = cxr("fit-head", "-b", "tiny_network:tinny", cwd=job.folder).error
    assert "no features of 'tiny_network:tinny' in cache/films; did you mean tiny_network:tiny?" in message


def test_a_missing_index(work: Path) -> None:
    (store_of(work) / "features.h5").unlink()
    message = cxr("fit-head", "--l2", "0.5", cwd=work).error
    assert "has parts but no features.h5" in message
    assert "cxr extract" in message
    assert "0 computed, 88 reused" in done("extract", cwd=work).out
    assert done("fit-head", "--l2", "0.5", cwd=work).out.startswith("2 heads fitted")


def test_a_flipped_byte_in_a_part(work: Path) -> None:
    part = flip_a_feature(work)
    message = cxr("fit-head", "--l2", "0.5", cwd=work).error
    assert f"{part.relative_to(work)} is damaged" in message
    assert "cxr cache verify --remove-damaged" in message


def test_a_train_set_of_one_class(work: Path) -> None:
    for folder in ("train", "val"):
        shutil.rmtree(work / "films" / folder / "NORMAL")
    message = cxr("fit-head", "--split", "paper", cwd=work).error
    assert message.startswith("all 29 train images are PNEUMONIA: a head needs two classes")


def test_a_store_that_lacks_images(work: Path) -> None:
    Image.new("L", (64, 64), 90).save(work / "films" / "train" / "NORMAL" / "new.jpeg")
    message = cxr("fit-head", cwd=work).error
    assert "tiny_network:tiny has no features for 1 of 89 images in cache/films" in message
    assert "train/NORMAL/new.jpeg" in message
    assert message.endswith("run 'cxr extract --backbone tiny_network:tiny' again")
    assert "1 computed, 88 reused" in done("extract", cwd=work).out
    done("fit-head", cwd=work)


def test_more_views_than_were_extracted(job: Job) -> None:
    assert "has 2 views an image, wanted 4" in cxr("fit-head", "--views", "4", cwd=job.folder).error


def test_settings_that_are_wrong(work: Path) -> None:
    with (work / "cxr.toml").open("a") as file:
        file.write("image_sise = 224\n")
    assert "unknown key 'image_sise'; did you mean image_size?" in cxr("report", cwd=work).error
    assert "CXR_EPOCH; did you mean CXR_EPOCHS?" in cxr("report", cwd=work.parent, CXR_EPOCH="3").error
    assert "--split is 'patients'" in cxr("fit-head", "--split", "patients", cwd=work.parent).line_of_exit(2)
    assert "--l2 is -1.0" in cxr("fit-head", "--l2", "-1", cwd=work.parent).line_of_exit(2)


def test_no_runs_to_report(work: Path) -> None:
    shutil.rmtree(work / "cache" / "films" / "runs")
    assert "run 'cxr fit-head' first" in cxr("report", cwd=work).error


def test_a_damaged_run(work: Path) -> None:
    (run,) = (work / "cache" / "films" / "runs").iterdir()
    (run / "run.json").write_text("{")
    assert "run.json is damaged" in cxr("report", cwd=work).error


def test_markup_in_a_message_is_printed_as_it_is(tmp_path: Path) -> None:
    name = "[bold]no[/bold] [/] :smile:"
    assert f"no such folder: {name}; " in cxr("extract", "--data", name, cwd=tmp_path).error


def test_markup_in_names_is_printed_as_it_is(work: Path) -> None:
    (work / "cache").rename(work / "[red]cache")
    (work / "[red]cache" / "films").rename(work / "[red]cache" / "[b]films")
    (work / "films").rename(work / "[b]films")
    flags = ["--cache", "[red]cache", "--data", "[b]films"]
    listed = done("cache", "list", *flags, cwd=work).out
    assert listed.count("[red]cache") >= 2
    assert "[red]cache/[b]films/tiny_network-tiny" in listed
    assert "[red]cache/[b]films" in done("cache", "verify", *flags, cwd=work).out
    assert "[b]films" in done("report", *flags, cwd=work).out
    assert "in [red]cache/[b]films" in done("extract", *flags, cwd=work).out


# ---- exit codes


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["frobnicate"], "frobnicate"),
        (["extract", "--frobnicate"], "--frobnicate"),
        (["extract", "--views", "many"], "'--views'"),
        (["fit-head", "--l2"], "--l2"),
        (["cache", "remove"], "STORE"),
        (["report", "stray"], "stray"),
    ],
)
def test_wrong_usage_exits_2_and_names_what_is_wrong(arguments: list[str], told: str, tmp_path: Path) -> None:
    result = cxr(*arguments, cwd=tmp_path)
    assert (result.code, result.out) == (2, "")
    assert told in result.err


def test_a_bug_keeps_its_traceback(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("featcache.store.describe_stores", broken)
    monkeypatch.setattr(sys, "argv", ["cxr", "cache", "list"])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.chdir(job.folder)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        cli.main()


SLOW = """
import os, pathlib, time, torch

class Slow(torch.nn.Module):
    image_size = 32
    seen = 0

    def forward(self, pixels):
        self.seen += len(pixels)
        if self.seen > int(os.environ.get("WAIT_AFTER", 10**9)):
            pathlib.Path("waiting").touch()
            while not pathlib.Path("go on").exists():
                time.sleep(0.02)
        return torch.nn.functional.avg_pool2d(pixels, 8)
"""
"""Means of 8 × 8 pixels; once it has seen so many images it says so, and waits."""


def test_an_interrupt_exits_130_says_that_work_is_kept_and_a_rerun_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    for number in range(300):
        folder = tmp_path / "films" / "train" / ("NORMAL", "PNEUMONIA")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (64, 64), np.uint8)).save(folder / f"{number}.png", compress_level=0)
    (tmp_path / "slow_network.py").write_text(SLOW)
    (tmp_path / "cxr.toml").write_text(
        'data = "films"\nbackbone = "slow_network:Slow"\nruntime = "torch"\ndevice = "cpu"\n'
    )
    # One image finds D, 256 make the first part.
    variables = environment(WAIT_AFTER="257", PYTHONPATH=str(tmp_path))
    program = [sys.executable, "-c", "import cli; cli.main()", "extract", "--json"]
    with subprocess.Popen(
        program, cwd=tmp_path, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        until = time.monotonic() + 300
        while not (tmp_path / "waiting").exists() and running.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        (tmp_path / "go on").touch()
        out, err = running.communicate()
    assert running.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    last = err.rstrip("\n").splitlines()[-1]
    said = "finished parts, heads and runs are kept, the same command again goes on from there"
    assert last == f"cxr: interrupted; {said}"
    assert not list(tmp_path.rglob(".partial-*"))
    monkeypatch.syspath_prepend(tmp_path)
    held = done("extract", "--json", cwd=tmp_path).json
    assert (held["images"], held["reused"], held["extracted"]) == (300, 256, 44)
    assert done("cache", "verify", cwd=tmp_path).out.strip().endswith("sound")


# ---- the program itself


def python(program: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a Python of its own."""
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_is_there_without_torch() -> None:
    program = """
import sys, cli
heavy = {"torch", "timm", "torchvision", "sklearn", "matplotlib", "openvino"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
try:
    cli.main()
finally:
    assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
"""
    result = python(program, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    for word in ("Usage: ", "init", "data", "extract", "fit-head", "report", "cache"):
        assert word in result.stdout


def test_every_command_explains_itself() -> None:
    for command in commands():
        result = cxr(*command.split(), "--help", cwd=Path.cwd())
        assert result.code == 0
        assert f"cxr {command}" in result.out


def test_the_installed_program_prints_its_version() -> None:
    from importlib.metadata import version

    result = python("import cli; cli.main()", "--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{version('cxr')}\n", "")


def test_a_report_into_a_pipe_has_no_colour_codes(job: Job) -> None:
    program = "import os, sys; os.chdir(sys.argv.pop(1)); import cli; cli.main()"
    result = python(program, str(job.folder), "report", "--paper", NO_COLOR="1")
    assert (result.returncode, result.stderr) == (0, "")
    assert "paper: ResNet50 + L2" in result.stdout
    assert "\x1b" not in result.stdout
