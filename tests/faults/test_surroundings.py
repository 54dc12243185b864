"""Clock, order of files, locale and hash seed do not matter: the store is the same to the byte."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from stores import bytes_below

from faults.conftest import CarryOut, command, environment
from faults.plans import Plan

NAMES = tuple(f"{name}-1.jpeg" for name in ("Ärzte", "ärzte", "I", "i", "İ", "ı", "Z", "a b"))
"""Names whose order or case locales disagree about."""

FLAGS = ("--device", "cpu", "--threads", "2", "--views", "2")


@pytest.fixture
def films(few_phantoms: Path, tmp_path: Path) -> Path:
    """The phantoms, some of them under such names, and one three times."""
    root = tmp_path / "here" / "films"
    for number, file in enumerate(sorted(few_phantoms.glob("*/*/*"))):
        name = NAMES[number] if number < len(NAMES) else file.name
        (root / file.parent.relative_to(few_phantoms)).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, root / file.parent.relative_to(few_phantoms) / name)
    for name in ("b-1.jpeg", "B-1.jpeg"):
        shutil.copy(file, root / "train" / "NORMAL" / name)
    return root


@pytest.fixture
def turkish(tmp_path: Path) -> dict[str, str]:
    """The variables of a Turkish locale, in which i and I are no pair; of none where it cannot be made."""
    making = ["localedef", "--no-archive", "-i", "tr_TR", "-f", "UTF-8", str(tmp_path / "tr_TR.UTF-8")]
    if shutil.which("localedef") is None or subprocess.run(making, capture_output=True, check=False).returncode:
        return {"LC_ALL": "POSIX"}
    return {"LOCPATH": str(tmp_path), "LC_ALL": "tr_TR.UTF-8"}


def test_clock_order_of_files_locale_and_hash_seed_change_no_byte(
    films: Path, carry_out: CarryOut, turkish: dict[str, str], tmp_path: Path
) -> None:
    usual, odd = tmp_path / "usual", tmp_path / "odd"
    # The same files elsewhere, made in another order, some before 1970 and some after 2100.
    there = tmp_path / "there" / "films"
    for file in sorted(films.rglob("*.jpeg"), reverse=True):
        (there / file.relative_to(films)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, there / file.relative_to(films))
        os.utime(there / file.relative_to(films), (-1, -1) if file.name < "Z" else (5e9, 5e9))
    with subprocess.Popen(
        [sys.executable, "-m", "faults.oddly", "86400", "7", *command("films", odd, *FLAGS)],
        cwd=there.parent,
        env=environment(**turkish, PYTHONIOENCODING="ascii", TZ="UTC-14", PYTHONHASHSEED="1"),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        (ending,) = carry_out(Plan(root=str(films), cache=str(usual), arguments=command(films, usual, *FLAGS)))
        out, err = running.communicate(timeout=120)
    assert ending.status == 0
    wanted = bytes_below(usual)
    assert sum("/part-" in name for name in wanted) == 5
    assert bytes_below(odd) == wanted
    # What a terminal's alphabet lacks keeps nobody from being told.
    assert running.returncode == 0, err
    assert ": 42 images " in out
