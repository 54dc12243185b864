"""``cxr doctor`` as its users and their scripts see it; what each check finds is proven in featcache/test_doctor.py."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import Result, cxr, done, environment

IN_ORDER = ["--backbone", "tiny_network:tiny"]
PLAIN = {"CXR_DEVICE": "cpu", "CXR_RUNTIME": "torch"}
"""On the processor and by torch: no conversion to wait for, and the same on a machine with a GPU."""


def checked(result: Result) -> dict[str, str]:
    """State by what was checked, of what a run printed; a way out stands on a line of its own."""
    lines = [line.split(maxsplit=2) for line in result.out.splitlines() if not line.startswith(" ")]
    assert all(len(line) == 3 for line in lines)
    return {name: state for state, name, _ in lines}


def test_where_all_is_well_each_check_is_a_line_and_nothing_is_left(phantoms: Path, tmp_path: Path) -> None:
    result = done("doctor", "--data", phantoms, "--views", "4", *IN_ORDER, cwd=tmp_path, **PLAIN)
    states = checked(result)
    assert states.keys() >= {"python", "torch", "cpu", "decoder", "data", "weights", "cache", "locks", "hdf5", "space"}
    assert {state for name, state in states.items() if name[:4] != "cuda"} == {"ok"}
    assert "88 images of 2 classes" in result.out
    assert "(88 images × 4 views × 16 features)" in result.out
    assert result.err == ""
    assert list(tmp_path.iterdir()) == []


def test_what_fails_is_told_with_the_way_out_and_counted_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    result = cxr("doctor", "-b", "resnt50", "--cache", "taken", "--data", "films", cwd=tmp_path, **PLAIN)
    assert result.code == 1
    states = checked(result)
    assert {name for name, state in states.items() if state == "failed"} == {"data", "weights", "cache"}
    assert result.err == f"cxr: 3 of {len(states)} checks failed (data, weights, cache); each says what to do\n"
    lines = result.out.splitlines()
    broken = lines.index("failed   weights  unknown backbone 'resnt50'")
    assert lines[broken + 1].startswith("         → did you mean resnet50")
    assert "failed   data     no such folder: films" in lines


def test_json_has_every_finding_whole_and_nothing_else_on_stdout(tmp_path: Path) -> None:
    findings = done("doctor", "--json", *IN_ORDER, cwd=tmp_path, **PLAIN).json
    assert all(finding.keys() == {"checked", "state", "found", "remedy"} for finding in findings)
    assert [finding["checked"] for finding in findings][:3] == ["python", "torch", "cpu"]
    failing = cxr("doctor", "--json", "-b", "resnt50", "--weights", "random", cwd=tmp_path, **PLAIN)
    assert failing.code == 1
    assert failing.err.startswith("cxr: 1 of ")
    (broken,) = (finding for finding in failing.json if finding["state"] == "failed")
    assert (broken["checked"], broken["found"]) == ("weights", "unknown backbone 'resnt50'")


def test_settings_come_from_the_file_too(phantoms: Path, tmp_path: Path) -> None:
    (tmp_path / "cxr.toml").write_text(
        f'data = "{phantoms}"\nbackbone = "tiny_network:tiny"\ncache = "stores"\nviews = 3\n'
        'device = "cpu"\nruntime = "torch"\n'
    )
    result = done("doctor", cwd=tmp_path)
    assert f"ok       cache    {tmp_path / 'stores'} can be written" in result.out
    assert "(88 images × 3 views × 16 features)" in result.out
    elsewhere = done("doctor", "--config", tmp_path / "cxr.toml", "--views", "1", cwd=tmp_path.parent)
    assert "(88 images × 1 view × 16 features)" in elsewhere.out


def test_a_wrong_flag_is_wrong_usage_and_a_warning_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "--views is 0" in cxr("doctor", "--views", "0", cwd=tmp_path).line_of_exit(2)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    result = done("doctor", "-b", "torchvision:squeezenet1_1", cwd=tmp_path, **PLAIN)
    assert checked(result)["weights"] == "warning"
    assert "--weights squeezenet1_1-" in result.out


def test_in_an_empty_folder_without_connection_it_tells_what_to_do(tmp_path: Path) -> None:
    """The program itself, through a pipe, as a user runs it for the first time."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    variables = environment(HF_ENDPOINT=f"http://127.0.0.1:{port}", HF_HOME=str(tmp_path / "hf"))
    work = tmp_path / "work"
    work.mkdir()
    root = Path(__file__).parents[1]
    variables["PYTHONPATH"] = os.pathsep.join([str(root), variables["PYTHONPATH"]])
    run = subprocess.run(
        [sys.executable, "-c", "import cli; cli.main()", "doctor", "--json"],
        cwd=work,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert run.stderr.startswith("cxr: 1 of ")
    findings = {finding["checked"]: finding for finding in json.loads(run.stdout)}
    assert [name for name, finding in findings.items() if finding["state"] == "failed"] == ["weights"]
    assert "resnet50.tv_in1k is not cached" in findings["weights"]["found"]
    assert "--backbone efficientnet_lite0" in findings["weights"]["remedy"]
    assert findings["data"]["found"].startswith("no data set named")
    assert findings["space"]["found"].endswith(" free; an image will take 5.0 KiB (1 view × 2,048 features)")
    assert list(work.iterdir()) == []
