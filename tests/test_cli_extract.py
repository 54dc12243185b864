"""``cxr extract`` on several devices, in shares and not at all, and ``cxr cache verify --recompute``."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from stores import bytes_below
from test_cli import Result, cxr, done

QUICK = {"CXR_DEVICE": "cpu", "CXR_RUNTIME": "torch", "CXR_PRECISION": "float32", "CXR_BACKBONE": "tiny_network:tiny"}


@pytest.fixture
def films(phantoms: Path, tmp_path: Path) -> Path:
    return shutil.copytree(phantoms, tmp_path / "films")


def extract(folder: Path, *flags: str | Path, **variables: str) -> Result:
    return done("extract", "--data", "films", "--json", *flags, cwd=folder, **QUICK, **variables)


def refused(folder: Path, *flags: str | Path, **variables: str) -> Result:
    return cxr("extract", "--data", "films", *flags, cwd=folder, **{**QUICK, **variables})


def test_two_devices_write_what_one_writes(films: Path, tmp_path: Path) -> None:
    one = extract(films.parent, "--cache", "one").json
    two = extract(films.parent, "--cache", "two", "--devices", "cpu,cpu").json
    assert (two["images"], two["extracted"], two["notes"], two["lacking"]) == (88, 88, [], 0)
    assert two["fingerprint"] == one["fingerprint"]
    assert bytes_below(tmp_path / "two") == bytes_below(tmp_path / "one")


def test_shares_are_said_by_flag_or_by_slurm_and_the_latter_is_told(films: Path) -> None:
    slurm = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2"}
    second = extract(films.parent, **slurm)
    # There is a single chunk of 256 images, and it is the first worker's.
    assert (second.json["images"], second.json["lacking"]) == (0, 88)
    assert "worker 2/2, by SLURM_ARRAY_TASK_ID: say --worker 1/1 to do all of it here" in second.err
    first = extract(films.parent, "--worker", "1/2", **slurm)
    assert (first.json["images"], first.json["extracted"], first.json["lacking"]) == (88, 88, 0)
    assert "SLURM" not in first.err


def test_a_dry_run_says_what_would_be_done_and_leaves_nothing(films: Path, tmp_path: Path) -> None:
    result = done("extract", "--data", "films", "--views", "3", "--dry-run", cwd=films.parent, **QUICK)
    first, second = result.out.splitlines()
    wanted = "tiny_network:tiny: 88 of 88 images to compute, 1 parts, 0.0 MiB in cache/films/tiny_network"
    assert first.startswith(wanted)
    assert second.startswith("88 images × 3 views at ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["films"]
    told = extract(films.parent, "--views", "3", "--dry-run").json
    assert (told["images"], told["to_do"], told["views"], told["backbones"][0]["missing"]) == (88, 88, 3, 88)


@pytest.mark.parametrize(
    ("flags", "code", "told"),
    [
        (["--worker", "3/2"], 2, "--worker is '3/2': wanted i/n with i from 1 to n, as in 2/8"),
        (["--devices", "cpu,cuda:0"], 2, "--devices is 'cpu,cuda:0': all must be of one kind, cpu or cuda"),
        (["--devices", "gpu"], 1, "no device 'gpu': wanted auto, cpu, cuda or cuda:N"),
        (["--devices", "all"], 1, "--devices is all, and this machine has no CUDA device: leave it out"),
        (["--devices", "cpu", "--device", "cpu"], 2, "--devices goes with neither --device nor --engine ray"),
        (["--engine", "ray", "--ray-gpus", "1", "--precision", "auto"], 1, "the GPUs of a cluster cannot be asked"),
        (["--engine", "ray", "--dry-run"], 2, "--dry-run tries the speed of this machine, not of a cluster"),
        (["--engine", "spark"], 2, "--engine is 'spark': input should be 'local' or 'ray'"),
        (["--threads", "0"], 2, "--threads is 0: input should be greater than or equal to 1"),
    ],
)
def test_what_cannot_be_is_one_line(films: Path, flags: list[str], code: int, told: str) -> None:
    assert refused(films.parent, *flags).line_of_exit(code).startswith(told)


def test_an_extraction_on_a_cluster_without_ray_says_what_to_install(
    films: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    assert refused(films.parent, "--engine", "ray").error == "--engine ray needs Ray: pip install 'cxr[ray]'"


def test_rows_are_computed_again_on_demand_and_told(films: Path) -> None:
    extract(films.parent, "--views", "2")
    found = done("cache", "verify", "--data", "films", "--recompute", "9", cwd=films.parent, **QUICK)
    assert found.out.splitlines()[1].endswith(": 9 rows computed again, 9 equal in every byte")
    (again,) = done("cache", "verify", "--data", "films", "--recompute", "9", "--json", cwd=films.parent, **QUICK).json[
        "recomputed"
    ]
    assert (again["rows"], again["equal"], again["wrong"]) == (9, 9, [])


def test_rows_of_another_network_are_not_compared(films: Path) -> None:
    extract(films.parent)
    extract(films.parent, "-b", "efficientnet_lite0", "--weights", "random", "--image-size", "64")
    flags = ["--data", "films", "--recompute", "3"]
    refusal = cxr("cache", "verify", *flags, cwd=films.parent, **QUICK)
    assert refusal.code == 1
    reason, last = refusal.err.rstrip().splitlines()[-2:]
    assert "cannot be computed again with this efficientnet_lite0 (weights_sha256 " in reason
    assert reason.endswith("with --backbone efficientnet_lite0 --weights FILE")
    assert last.startswith("cxr: 1 of the cache's files or rows are damaged, missing or wrong")
    # What could be looked at was.
    assert [line.rpartition(": ")[2] for line in refusal.out.splitlines()] == [
        "sound",
        "sound",
        "no row computed again",
        "3 rows computed again, 3 equal in every byte",
    ]
    flags += ["-b", "efficientnet_lite0", "--weights", "random"]
    assert "3 equal in every byte" in done("cache", "verify", *flags, cwd=films.parent, **QUICK).out
