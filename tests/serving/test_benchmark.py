"""The benchmark of the server runs, and its section says what happened."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from served import QUICK, ROOT

from bench import machine, serve


def test_the_benchmark_of_the_server_writes_its_section(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "BENCHMARKS", tmp_path / "benchmarks.md")
    monkeypatch.chdir(place)
    for name, value in {**QUICK, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}.items():
        monkeypatch.setenv(name, value)
    few = ["--data", "films", "--cache", "cache", "--seconds", "1", "--clients", "4", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["bench.serve", *few, "--write"])
    serve.main()
    section = (tmp_path / "benchmarks.md").read_text()
    assert "<!-- serve -->\n## Serving\n" in section
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| 1 ")]
    assert [row[0] for row in rows] == ["| 1 predict", "| 1 serve"]
    answers = rows[1][6]
    assert answers.endswith("× 200")
    assert int(answers.split(" ")[0]) > 0
    assert "neither 200 nor a 503 with Retry-After: 0." in section
