"""The benchmarks run, and each writes its own section alone."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest
import torch

from bench import heads, machine, predict, scale, statistics, trust
from bench.foreign import FAULTS, LESSER, blanks, noises, png
from bench.usual_heads import usual_loop
from featcache.settings import load_settings
from featcache.store import open_store
from heads import HeadConfig, fit
from heads.training import train


@pytest.fixture
def benchmarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "BENCHMARKS", tmp_path / "benchmarks.md")
    return tmp_path / "benchmarks.md"


def test_a_section_is_added_at_the_end_and_replaced_in_its_place(benchmarks: Path) -> None:
    machine.write_section("one", "First", ["a", "b"])
    machine.write_section("two", "Second", ["c"])
    machine.write_section("one", "First again", ["d"])
    first = "<!-- one -->\n## First again\n\nd\n<!-- /one -->"
    second = "<!-- two -->\n## Second\n\nc\n<!-- /two -->"
    assert benchmarks.read_text() == f"{machine.HEADING}\n{first}\n\n{second}\n"


def test_what_stands_around_a_section_stays(benchmarks: Path) -> None:
    benchmarks.write_text("before\n<!-- one -->\nold\n<!-- /one -->\nafter\n")
    machine.write_section("one", "New", ["line"])
    assert benchmarks.read_text() == "before\n<!-- one -->\n## New\n\nline\n<!-- /one -->\nafter\n"


def test_a_section_without_an_end_is_not_written_over(benchmarks: Path) -> None:
    benchmarks.write_text("<!-- one -->\nold\n")
    with pytest.raises(ValueError, match="has <!-- one --> and no <!-- /one --> after it"):
        machine.write_section("one", "New", [])
    assert benchmarks.read_text() == "<!-- one -->\nold\n"


def test_the_machine_is_described_without_its_name() -> None:
    told = " ".join(machine.describe())
    assert "cores" in told
    assert "numpy" in told
    assert platform.node() not in told


def test_a_table_is_printed_and_comes_back_as_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    assert machine.show(["step", "s"], [["read|write", "1.0"]]) == [
        "| step | s |",
        "| --- | ---: |",
        "| read/write | 1.0 |",
    ]
    assert "read|write" in capsys.readouterr().out


def test_the_trust_benchmark_shows_every_kind_and_opens_test_only_where_asked(
    phantom_store: Path, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "LEGS", 2)
    (tmp_path / "kind" / "nested").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "kind" / "one.png").write_bytes(png(blanks(64)[0]))
    (tmp_path / "kind" / "README.txt").write_text("no picture")
    store, settings = open_store(phantom_store), load_settings({"data": phantoms})
    found = [trust.measure(store, phantoms, tmp_path, settings, sealed=sealed) for sealed in (True, False)]
    assert [kind for kind in found[1] if kind not in found[0]] == ["test, all", "test, NORMAL", "test, PNEUMONIA"]
    assert all(found[1][kind] == told for kind, told in found[0].items())
    assert {f"val, {kind}" for kind in (*FAULTS, *LESSER)} < found[0].keys()
    assert (found[0]["kind"][0], found[0]["noise"][0], found[1]["test, all"][0]) == (1, len(noises()), 24)
    assert "empty" not in found[0]
    val, flagged = found[0]["val (5 by construction)"]
    assert flagged == sum(100 * rank / val > 95 for rank in range(val)) / val
    assert [line[0] for line in trust.rows_of(found[:1])] == list(found[0])
    assert len(trust.rows_of([found[0], found[0]])[0]) == 4
    every = {"val (5 by construction)": (40, 0.05), "held-out blocks of patients, worst": (40, 0.1), "kind": (40, 1.0)}
    assert [line[2] for line in trust.rows_of([every])] == ["5.0", "10.0", "100.0 (91–100)"]
    for opened, flags in ((False, []), (True, ["--test"])):
        asked: list[bool] = []
        monkeypatch.setattr(trust, "open_stores", lambda *_: [store])
        monkeypatch.setattr(trust, "measure", lambda *_, sealed, asked=asked: asked.append(sealed) or every)
        monkeypatch.setattr(sys, "argv", ["trust", "--data", str(phantoms), "--foreign", str(tmp_path), *flags])
        trust.main()
        assert asked == [not opened]


def test_the_scale_benchmark_measures_all_that_it_shows(tmp_path: Path) -> None:
    measured = set()
    for name, step in scale.STEPS.items():
        case = scale.Case(folder=tmp_path, parts=5, images=3)
        step(case)
        measured |= {(name, piece) for piece in case.laps}
    assert scale.SHOWN.keys() <= measured


def test_a_step_of_the_scale_benchmark_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    scale.make(scale.Case(folder=tmp_path, parts=2, images=3))
    outcome = scale.child("table", tmp_path, parts=2, images=3)
    assert set(outcome["laps"]) == {"read the CSV"}
    assert outcome["peak"] > 10e6


def test_the_heads_benchmark_measures_all_that_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"TRAIN": 60, "VAL": 20, "HIDDEN": 4, "WIDTHS": (6, 8), "ROUNDS": 1, "SIDE": 16}
    small |= {"PAPER": (("one", 6, [0.0]), ("other", 8, [0.0, 1e-4]))}
    for name, value in small.items():
        monkeypatch.setattr(heads, name, value)
    monkeypatch.setattr(train, "has_fast_bfloat16", lambda _: True)  # emulated, if need be
    monkeypatch.setattr(heads, "has_fast_bfloat16", lambda _: True)

    def figures(lines: list[str]) -> list[list[str]]:
        rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")][2:]
        assert all(float(cell.split()[0]) >= 0 for row in rows for cell in row[1:] if cell[:1].isdigit())
        return rows

    assert len(figures(heads.rate(4, 1, "cpu"))) == len(heads.WIDTHS)
    assert [row[2] for row in figures(heads.table("cpu"))] == ["3", "6", "9"]
    assert len(figures(heads.linear("cpu", heads=50, width=6, sample=2))) == 2
    assert len(figures(heads.bfloat16(4, 1, "cpu"))) == 1
    monkeypatch.setattr(heads, "has_fast_bfloat16", lambda _: False)
    assert heads.bfloat16(4, 1, "cpu")[0].startswith("Not measured: this processor has no products in bfloat16")


def test_usual_loops_learn_what_a_head_learns() -> None:
    train_split, val = heads.drawn(400, 12, 1), heads.drawn(200, 12, 2)
    config = HeadConfig(hidden=8, epochs=8, lr=1e-2, batch_size=32)
    (head,) = fit(train_split, val, [config])
    for loader in (True, False):
        torch.manual_seed(0)  # What people write draws from torch's own generator.
        assert usual_loop(train_split, val, config, loader=loader) == pytest.approx(head.history.val_loss[-1], abs=0.1)


def test_the_benchmark_of_statistics_measures_all_that_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "IMAGES", {"train": 90, "val": 40, "test": 30})
    monkeypatch.setattr(statistics, "LOOP", 2)
    lines = statistics.measure(rows=8, seeds=2, rounds=1)
    assert [len(line) for line in lines] == [len(statistics.HEADER)] * 5
    assert all(float(line[1]) >= 0 for line in lines)
    assert "a report of 8 rows × 2 seeds" in lines[3][0]


def test_the_benchmark_of_predictions_measures_all_that_it_shows(
    phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "ROUNDS", 1)
    lines = predict.measure(phantoms, 88, 0.2, "tiny_network:tiny")
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    assert [row[0] for row in cells if row[0] not in ("---", "backbone", "network by, batches of 8")] == [
        "tiny_network:tiny",
        "onnxruntime",
        "torch, eager",
        "OpenVINO, as extract and predict run it (features alone)",
    ]
    assert cells[2][1] == "88"
    assert all(float(row[1]) > 0 for row in cells if row[1][:1].isdigit())
    assert lines[-3].startswith("Probabilities of the graph on 88 films differ from torch's")
