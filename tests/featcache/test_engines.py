from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stores import bytes_below

from featcache.backbones import Backbone
from featcache.check import Scan, scan
from featcache.engines import DEATHS, OnDevices
from featcache.errors import BackboneError, DataError, EngineError
from featcache.extraction import Summary, extract
from featcache.images import discover
from featcache.progress import Progress
from featcache.runtime import Compute
from featcache.sharing import Share
from featcache.store import open_store
from featcache.work import Source

COMPUTE = Compute(device="cpu", runtime="torch", precision="float32", batch_size=8, threads=2)


Run = Callable[..., Summary]


@pytest.fixture
def run(phantoms: Path, scanned_phantoms: Scan, tmp_path: Path, tiny: Backbone) -> Run:
    def run(cache: str, **settings: Any) -> Summary:
        given = {"views": 2, "part_images": 8, "compute": COMPUTE, **settings}
        (summary,) = extract(scanned_phantoms, phantoms, tmp_path / cache, [tiny], **given)
        return summary

    return run


@pytest.fixture(scope="module")
def undisturbed(
    phantoms: Path, scanned_phantoms: Scan, tiny: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """What one process writes: name → content."""
    cache = tmp_path_factory.mktemp("undisturbed")
    extract(scanned_phantoms, phantoms, cache, [tiny], views=2, part_images=8, compute=COMPUTE)
    return bytes_below(cache)


def children() -> list[int]:
    """Worker processes that this one has started; other tests keep processes of their own."""
    lists = Path("/proc/self/task").glob("*/children")
    started = [pid for file in lists for pid in file.read_text().split()]
    return [int(pid) for pid in started if b"featcache.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


# --- one process a device ---


def test_two_devices_write_the_bytes_of_one(run: Run, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    seen: list[Progress] = []
    summary = run("two", engine=OnDevices(["cpu", "cpu"]), on_progress=seen.append)
    assert bytes_below(tmp_path / "two") == undisturbed
    assert (summary.images, summary.extracted, summary.reused, summary.notes) == (88, 88, 0, ())
    assert seen[-1].images_done == seen[-1].images_total == 88
    assert children() == []


def test_processes_that_die_again_and_again_end_the_command_and_finished_parts_stay(
    run: Run, tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def murderous(_: Progress) -> None:
        for pid in children():
            os.kill(pid, signal.SIGKILL)

    # So slow that none ends its part before the word of its first image, and death, have come.
    monkeypatch.setenv("TINY_NETWORK_SECONDS", "0.3")
    with pytest.raises(EngineError, match=rf"^the process on cpu was killed by SIGKILL, as {DEATHS - 1} before it did"):
        run("killed", engine=OnDevices(["cpu"]), on_progress=murderous)
    assert children() == []
    monkeypatch.delenv("TINY_NETWORK_SECONDS")
    run("killed")
    assert bytes_below(tmp_path / "killed") == undisturbed


def test_what_a_process_reports_is_raised_here_in_its_own_type(
    phantoms: Path, scanned_phantoms: Scan, tmp_path: Path, tiny: Backbone
) -> None:
    backbone = Backbone(**{**vars(tiny), "source": Source(name="tiny_network:other")})
    with pytest.raises(BackboneError, match=r"^the weights of tiny_network:other here are not those of the pass"):
        extract(scanned_phantoms, phantoms, tmp_path / "cache", [backbone], compute=COMPUTE, engine=OnDevices(["cpu"]))
    assert children() == []


def test_an_error_in_the_caller_leaves_no_process_behind(run: Run) -> None:
    def interrupt(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("interrupted", engine=OnDevices(["cpu", "cpu"]), on_progress=interrupt)
    assert children() == []


# --- shares ---


def test_two_halves_at_once_make_the_bytes_of_one(run: Run, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    summaries: dict[int, Summary] = {}

    def half(index: int) -> None:
        summaries[index] = run("halves", share=Share(index=index, count=2))

    threads = [threading.Thread(target=half, args=(index,)) for index in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bytes_below(tmp_path / "halves") == undisturbed
    assert sum(summary.extracted for summary in summaries.values()) == 88
    assert min(summary.extracted for summary in summaries.values()) == 40
    assert {summary.lacking for summary in summaries.values()} >= {0}


def test_a_half_alone_says_what_is_not_there_yet(run: Run, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    first = run("halves", share=Share(index=1, count=2))
    assert (first.images, first.extracted, first.reused, first.lacking) == (48, 48, 0, 40)
    assert first.in_words().endswith("; 40 are other workers' and not there yet")
    second = run("halves", share=Share(index=2, count=2))
    assert (second.images, second.extracted, second.reused, second.lacking) == (88, 40, 48, 0)
    assert bytes_below(tmp_path / "halves") == undisturbed


def test_what_one_worker_could_not_read_is_listed_by_the_one_that_ends_last(
    phantoms: Path, tmp_path: Path, tiny: Backbone
) -> None:
    films = tmp_path / "films"
    shutil.copytree(phantoms, films)
    cut = sorted(films.glob("train/NORMAL/*"))[0]
    cut.write_bytes(cut.read_bytes()[:-600])
    scanned = scan(discover(films), films)
    number = scanned.table.image_id.tolist().index(str(cut.relative_to(films)))
    order = (1, 2) if (number // 8) % 2 == 0 else (2, 1)  # its worker first
    for index in order:
        share = Share(index=index, count=2)
        (summary,) = extract(scanned, films, tmp_path / "c", [tiny], part_images=8, compute=COMPUTE, share=share)
    assert [row.image_id for row in summary.quarantined] == [str(cut.relative_to(films))]
    assert (summary.images, summary.lacking) == (87, 0)
    store = open_store(summary.store)
    assert store.quarantined == summary.quarantined
    assert len(store.features()) == 87
    # Mended, it comes in, whatever the note says.
    shutil.copy(phantoms / cut.relative_to(films), cut)
    (mended,) = extract(scan(discover(films), films), films, tmp_path / "c", [tiny], part_images=8, compute=COMPUTE)
    assert (mended.images, mended.extracted, mended.quarantined) == (88, 1, ())


def test_strict_ends_all_processes(phantoms: Path, tmp_path: Path, tiny: Backbone) -> None:
    films = tmp_path / "films"
    shutil.copytree(phantoms, films)
    cut = sorted(films.glob("train/NORMAL/*"))[0]
    cut.write_bytes(cut.read_bytes()[:-600])
    with pytest.raises(DataError, match="strict wants every image"):
        extract(
            scan(discover(films), films),
            films,
            tmp_path / "cache",
            [tiny],
            compute=COMPUTE,
            part_images=8,
            strict=True,
            engine=OnDevices(["cpu"]),
        )
    assert children() == []


# --- made elsewhere ---


def test_a_part_that_another_process_has_made_meanwhile_is_not_made_again(
    run: Run, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    started = iter([True])

    def let_another_go_first(_: Progress) -> None:
        if next(started, False):
            run("shared")

    summary = run("shared", on_progress=let_another_go_first)
    # The chunk under way, and the two that were looked at before, are all that is made twice.
    assert (summary.images, summary.reused) == (88, 88 - summary.extracted)
    assert summary.extracted <= 4 * 8
    assert bytes_below(tmp_path / "shared") == undisturbed


# --- a cluster ---


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A Ray cluster of a driver's node without work and two nodes with two processors each, on this machine."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [made.add_node(num_cpus=2) for _ in range(2)]
    made.wait_for_nodes()
    ray.init(address=made.address, log_to_driver=False, configure_logging=False)
    yield made, nodes
    ray.shutdown()
    made.shutdown()  # type: ignore[no-untyped-call]  # Ray types only half of it


@pytest.mark.filterwarnings("ignore")
def test_a_cluster_that_loses_a_node_writes_the_bytes_of_one_process(
    run: Run, tmp_path: Path, undisturbed: dict[str, bytes], cluster: Any
) -> None:
    from featcache.ray_engine import OnRay

    made, nodes = cluster

    def lose_a_node(_: Progress) -> None:
        if len(nodes) == 2:
            made.remove_node(nodes.pop(), allow_graceful=False)

    summary = run("cluster", engine=OnRay(threads=2), on_progress=lose_a_node)
    assert len(nodes) == 1
    assert bytes_below(tmp_path / "cluster") == undisturbed
    assert summary.images == 88
