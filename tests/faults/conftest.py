"""What the fault tests share: the number of random instants and their seed, and extractions that may die."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pydantic
import pytest
from stores import bytes_below

from faults.plans import BACKBONE, IMAGES, PART_IMAGES, VIEWS, Ending, Plan
from faults.watched_network import NOTES
from featcache.backbones import Backbone, load_backbone
from featcache.check import Scan, scan
from featcache.extraction import Summary, extract
from featcache.images import discover
from featcache.phantom import write_phantoms
from featcache.runtime import Compute

INSTANTS = int(os.environ.get("CXR_FAULT_INSTANTS", "10"))
SEED = int(os.environ.get("CXR_FAULT_SEED", random.SystemRandom().randrange(2**32)))
"""Both are taken before any test removes the variables."""

COMPUTE = Compute(device="cpu", runtime="torch", precision="float32", batch_size=8, threads=2)

ROOT = Path(__file__).parents[2]

CarryOut = Callable[..., list[Ending]]
"""``(*plans)`` → how each ended; those of one call run at once."""

Phantoms = Callable[..., Plan]
"""``(name of the cache, **fate)`` → the plan to extract the phantoms there."""

ExtractHere = Callable[..., Summary]
"""``(cache, **settings)`` → what was done, in this process."""


def environment(**variables: str) -> dict[str, str]:
    """The variables of a program under test: ours and the tests' modules are found, no setting of the user's is."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CXR_")}
    path = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
    return {**kept, "PYTHONPATH": path, **variables}


def command(root: Path | str, cache: Path | str, *flags: str) -> tuple[str, ...]:
    """``extract`` with the watched network, as it is typed."""
    choices = ("--runtime", "torch", "--precision", "float32", "--extract-batch-size", "8")
    return ("extract", "--data", str(root), "--cache", str(cache), "--backbone", BACKBONE, *choices, *flags)


def lines_without_bars(said: str) -> list[str]:
    """What a command said besides its progress."""
    return [line for line in said.splitlines() if line and not line.startswith(("hashing ", "extracting "))]


def computed(cache: Path) -> int:
    """Images and views that the network has computed for a cache, in all processes."""
    return Path(f"{cache}.computed").stat().st_size if Path(f"{cache}.computed").exists() else 0


def processes_of(cache: Path) -> list[int]:
    """Processes that were started to compute for a cache, and still run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # It has ended.
            if f"{NOTES}={cache}.computed".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def repeated(times: int) -> pytest.MarkDecorator:
    """Run a test so many times, each with random numbers of its own."""
    return pytest.mark.parametrize("chance", range(times), indirect=True)


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers of the test's own; their seed is shown where the test fails."""
    request.node.add_report_section("setup", "seed", f"CXR_FAULT_SEED={SEED} draws the same again")
    return random.Random(f"{SEED} {request.node.name}")  # noqa: S311 - no secret is made here


@pytest.fixture(scope="session")
def carry_out(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CarryOut]:
    """A function that carries out plans, each in a process of its own."""
    complaints = tmp_path_factory.mktemp("mortal") / "stderr"
    with (
        complaints.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, "-m", "faults.mortal"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            # Of odd surroundings ``test_surroundings`` has others.
            env=environment(LC_ALL="C", PYTHONHASHSEED="0", TZ="UTC"),
            start_new_session=True,
            text=True,
        ) as server,
    ):
        requests, answers = server.stdin, server.stdout
        assert requests is not None
        assert answers is not None

        def ask(*plans: Plan) -> list[Ending]:
            requests.write(f"{pydantic.TypeAdapter(tuple[Plan, ...]).dump_json(plans).decode()}\n")
            requests.flush()
            answer = answers.readline()
            assert answer, complaints.read_text()
            return pydantic.TypeAdapter(list[Ending]).validate_json(answer)

        yield ask
        requests.close()
    assert complaints.read_text() == ""


@pytest.fixture(scope="session")
def few_phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom data set of 24 + 8 + 8 images, half of what other tests share; read it, never write to it."""
    return write_phantoms(tmp_path_factory.mktemp("data") / "phantoms", train=24, val=8, test=8, size=64)


@pytest.fixture(scope="session")
def scanned(few_phantoms: Path) -> Scan:
    """Their image table, hashed."""
    return scan(discover(few_phantoms), few_phantoms)


@pytest.fixture
def phantom_plan(few_phantoms: Path, tmp_path: Path) -> Phantoms:
    """A function that makes plans for the phantoms."""
    return lambda cache="cache", **fate: Plan(root=str(few_phantoms), cache=str(tmp_path / cache), **fate)


@pytest.fixture
def typed_plan(few_phantoms: Path, tmp_path: Path) -> Phantoms:
    """A function that makes plans for what ``undisturbed`` did, typed on the command line."""

    def plan(cache: str = "cache", where: Sequence[str] = ("--device", "cpu"), **fate: Any) -> Plan:
        arguments = command(few_phantoms, tmp_path / cache, *where, "--threads", "2", "--views", str(VIEWS))
        return Plan(root=str(few_phantoms), cache=str(tmp_path / cache), arguments=arguments, **fate)

    return plan


@pytest.fixture(scope="session")
def undisturbed(carry_out: CarryOut, few_phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an extraction of the phantoms writes that nothing happens to: path below the cache → content."""
    cache = tmp_path_factory.mktemp("undisturbed") / "cache"
    (ending,) = carry_out(Plan(root=str(few_phantoms), cache=str(cache)))
    assert (ending.status, ending.images, ending.said) == (0, IMAGES, "")
    return bytes_below(cache)


@pytest.fixture(scope="session")
def watched() -> Backbone:
    """The watched network, in this process."""
    return load_backbone(BACKBONE)


@pytest.fixture
def extract_here(scanned: Scan, few_phantoms: Path, watched: Backbone) -> ExtractHere:
    """A function that does in this process, into a cache, what ``undisturbed`` did; or with other settings."""

    def run(cache: Path, **settings: Any) -> Summary:
        given = {"views": VIEWS, "part_images": PART_IMAGES, "compute": COMPUTE, **settings}
        (summary,) = extract(scanned, few_phantoms, cache, [given.pop("backbone", watched)], **given)
        return summary

    return run


@pytest.fixture
def store(undisturbed: dict[str, bytes], tmp_path: Path) -> Path:
    """A store of what ``undisturbed`` wrote, to be damaged; below a cache of its own."""
    for name, content in undisturbed.items():
        (tmp_path / "damaged" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "damaged" / name).write_bytes(content)
    (store,) = (tmp_path / "damaged").iterdir()
    return store


def parts_in(store: Path) -> list[Path]:
    """The store's parts, sorted by name."""
    return sorted((store / "parts").iterdir())


def sound_bytes(store: Path) -> dict[str, bytes]:
    """The bytes below the store's cache, but for what has been set aside."""
    return {name: content for name, content in bytes_below(store.parent).items() if "/damaged/" not in name}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """A function that mounts a file system of its own as a cache, with options such as its size."""
    folder = tmp_path / "cache"
    folder.mkdir()

    def mount(options: str) -> Path:
        mounting = ["mount", "-t", "tmpfs", "-o", options, "cxr-test", str(folder)]
        if os.geteuid() != 0 or subprocess.run(mounting, capture_output=True, check=False).returncode:
            pytest.skip("only root may mount a disk; the limit on file sizes stands for a full one")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)  # noqa: S607 - wherever the system has it
