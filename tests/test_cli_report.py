"""``cxr report`` in terminals wide and narrow, with and without colour, and in none."""

from __future__ import annotations

import itertools
import os
import pty
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic import fitted
from test_cli import cxr, done, environment

from heads.reporting.paper import PAPER
from heads.training.config import HeadConfig

BACKBONES = (
    "resnet50.tv_in1k",
    "tf_efficientnet_b4.aa_in1k",
    "vit_base_patch14_reg4_dinov2.lvd142m",
    "convnext_tiny.in12k_ft_in1k+vit_base_patch14_reg4_dinov2.lvd142m",
)
"""As long as the libraries' own names are, alone and side by side."""

PROGRAM = "import os, sys; os.chdir(sys.argv.pop(1)); import cli; cli.main()"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of sixteen rows, five seeds each; read it, never write to it."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "films").mkdir()
    base = HeadConfig()
    configs = [
        replace(base, l2=l2, hidden=hidden, standardise=not hidden, seed=seed)
        for l2 in (0.0, 1e-4)
        for hidden in (0, 256)
        for seed in range(5)
    ]
    for number, name in enumerate(BACKBONES):
        print_ = "+".join(part.ljust(64, "x") for part in name.split("+"))
        fitted(folder / "cache/films", *configs, seed=number, backbone=name, fingerprint=print_, run_id=f"run-{number}")
    return folder


def report(work: Path, *flags: str, width: int) -> str:
    return done("report", "--data", "films", *flags, cwd=work, COLUMNS=str(width)).out


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("flags", [(), ("--paper", "--ensembles", "--operating-point", "sensitivity>=0.95")])
def test_table_and_notes_fit_the_terminal_and_no_figure_is_cut(work: Path, width: int, flags: tuple[str, ...]) -> None:
    lines = report(work, *flags, width=width).splitlines()
    assert max(map(len, lines)) <= width
    rows = done("report", "--data", "films", *flags, "--json", cwd=work).json["rows"]
    head = next(number for number, line in enumerate(lines) if line.lstrip().startswith("Model "))
    body = list(itertools.takewhile(str.strip, lines[head + 2 :]))
    # The column of seeds ends where its heading does; a folded name's further lines do not reach it.
    last = len(lines[head].rstrip()) - 1
    starts = [number for number, line in enumerate(body) if line[last].isdigit()]
    names = [row["name"] for row in rows] + [f"paper: {row.name}" for row in PAPER] * ("--paper" in flags)
    for name, start, stop in zip(names, starts, [*starts[1:], len(body)], strict=True):
        folded = [re.split(" {2,}", line.strip().removeprefix("▸ "))[0] for line in body[start:stop]]
        assert "".join(folded).replace(" ", "") == name.replace(" ", "")
        figures = [cell for cell in re.split(" {2,}", body[start].strip())[1:] if cell]
        assert len(figures) == 8
        assert all(re.fullmatch(r"–|[\d.]+( ± [\d.]+)?( \([\d.]+–[\d.]+\))?\*?", cell) for cell in figures)


def test_a_wide_terminal_shows_intervals_and_a_narrow_one_means(work: Path) -> None:
    narrow, wide = (report(work, width=width) for width in (80, 200))
    header = ["Model", "Val", "Test", "Loss", "Sens", "Spec", "F1", "AUC", "n"]
    assert header in [line.split() for line in narrow.splitlines()]
    assert "Validation Accuracy" in wide
    body = [line for line in wide.splitlines() if " ± " in line]
    assert len(body) == 16
    assert all(line.count("–") == 2 for line in body)
    assert not any(" ± " in line for line in narrow.splitlines())


@pytest.mark.parametrize("width", [80, 200])
def test_curves_stand_below_the_table_and_fit(work: Path, width: int) -> None:
    text = report(work, "--curves", width=width)
    assert max(map(len, text.splitlines())) <= width
    table, curves = text.split("cross-entropy  ╌╌ train  ── val  ┊ epoch 2")
    assert "val loss 0.5000 at epoch 2 of 3 (kept), where train is at 0.6000" in " ".join(table.split())
    assert ("accuracy" in curves) == (width == 200)


def test_curves_are_of_the_selected_row_or_of_one_that_is_named(work: Path) -> None:
    held = done("report", "--data", "films", "--json", "--curves", cwd=work).json
    (selected,) = [row["name"] for row in held["rows"] if row["selected"]]
    assert [one["name"] for one in held["curves"]] == [selected]
    assert held["curves"][0]["val_loss"] == [0.8, 0.5, 0.55]
    name = next(row["name"] for row in held["rows"] if not row["selected"])
    assert f"{name}, seed " in " ".join(report(work, "--curves", "--row", name, width=180).split())
    assert "curves" not in done("report", "--data", "films", "--json", cwd=work).json


def test_curves_of_an_ensemble_are_those_of_its_members(work: Path) -> None:
    flags = ("--ensembles", "--curves", "--row", "mean of 4 backbones", "--json")
    held = done("report", "--data", "films", *flags, cwd=work).json
    (row,) = [row for row in held["rows"] if row["name"] == "mean of 4 backbones"]
    assert [one["name"] for one in held["curves"]] == row["ensemble"]["of"]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--row", "resnet50"), "--row says whose curves are drawn: say --curves too"),
        (("--curves", "--format", "csv"), "--curves are drawn below the table or told in JSON, not in --format csv"),
        (
            ("--curves", "--row", "resnet50.tv_in1k, hiden 256"),
            "no row 'resnet50.tv_in1k, hiden 256' in the table; did",
        ),
        (("--pictures",), "--pictures and --weights are of the page: say --html FILE too"),
        (("--weights", "w.pth", "--html", "p.html"), "--weights and --device are those of --pictures"),
        (("--device", "cpu", "--html", "p.html"), "--weights and --device are those of --pictures"),
    ],
)
def test_what_cannot_be_drawn_is_wrong_usage(work: Path, flags: tuple[str, ...], told: str) -> None:
    assert told in cxr("report", "--data", "films", *flags, cwd=work).line_of_exit(2)


def test_pictures_without_the_films_are_an_error_and_no_page_is_written(work: Path, tmp_path: Path) -> None:
    flags = ("--html", tmp_path / "page.html", "--pictures")
    refused = cxr("report", "--data", "elsewhere/films", *flags, cwd=work)
    assert (refused.code, refused.err.splitlines()[-1]) == (
        1,
        "cxr: elsewhere/films is not there: --pictures wants the films; name their folder with --data DIR",
    )
    assert refused.out == ""  # before anything is computed
    assert not (tmp_path / "page.html").exists()


def test_a_page_tells_no_folders_of_the_command_that_made_it(work: Path, tmp_path: Path) -> None:
    home = tmp_path / "home-of-alice"
    home.mkdir()
    (home / "films").mkdir()
    page = tmp_path / "page.html"
    flags = (f"--cache={work / 'cache'}", "--html", page, "--operating-point=sensitivity>=0.95")
    done("report", f"--data={home}/films", *flags, cwd=work)
    done("report", "--data", f"../{tmp_path.name}/films", "--cache", "./cache", "--html", tmp_path / "2.html", cwd=work)
    text, other = page.read_text(encoding="utf-8"), (tmp_path / "2.html").read_text(encoding="utf-8")
    assert "<code>cxr report --data=films --cache=cache --html page.html" in text
    assert "sensitivity&gt;=0.95" in text
    assert "<code>cxr report --data films --cache cache --html 2.html</code>" in other
    for folder in ("alice", tmp_path.name, str(work)):
        assert folder not in text + other


def test_a_file_whose_name_is_no_utf_8_is_written(work: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.html")
    done("report", "--data", "films", "--html", tmp_path / name, cwd=work)
    assert "caf?.html" in (tmp_path / name).read_text(encoding="utf-8")


# ---- real terminals and none


def in_a_terminal(work: Path, *flags: str, **variables: str) -> str:
    """What the program writes to a terminal of 80 columns that knows colours."""
    controller, terminal = pty.openpty()
    given = environment(
        **{"PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm-256color", "COLUMNS": "80", **variables}
    )
    arguments = [sys.executable, "-c", PROGRAM, str(work), "report", "--data", "films", *flags]
    with subprocess.Popen(arguments, env=given, stdout=terminal, stderr=subprocess.PIPE, close_fds=True) as process:
        os.close(terminal)
        written = bytearray()
        while True:
            try:
                block = os.read(controller, 65536)
            except OSError:  # the other end is closed
                break
            if not block:
                break
            written += block
        assert process.wait() == 0
    os.close(controller)
    return written.decode()


def test_a_terminal_gets_colours_unless_no_color_is_set(work: Path) -> None:
    coloured = in_a_terminal(work, "--curves")
    assert "\x1b[38;5;" in coloured
    plain = in_a_terminal(work, "--curves", NO_COLOR="1")
    assert "\x1b[3" not in plain.replace("\x1b[3m", "")
    assert "38;5" not in plain
    assert "╌╌ train" in plain


def test_a_pipe_gets_no_codes_at_all(work: Path) -> None:
    arguments = [sys.executable, "-c", PROGRAM, str(work), "report", "--data", "films", "--curves"]
    given = environment(PYTHONPATH=os.pathsep.join(sys.path), TERM="xterm-256color")
    result = subprocess.run(arguments, env=given, capture_output=True, text=True, encoding="utf-8", check=True)
    assert "\x1b" not in result.stdout
    assert "╌╌ train" in result.stdout


def test_where_there_is_only_ascii_marks_and_curves_are_drawn_in_it(work: Path) -> None:
    arguments = [sys.executable, "-c", PROGRAM, str(work), "report", "--data", "films", "--curves"]
    given = environment(PYTHONPATH=os.pathsep.join(sys.path), PYTHONIOENCODING="ascii", COLUMNS="80")
    result = subprocess.run(arguments, env=given, capture_output=True, text=True, encoding="ascii", check=True)
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("|> ") for line in lines) == 1
    assert "?" not in result.stdout
    assert "cross-entropy  .. train  oo val  : epoch 2" in lines
