"""How fast features come from a store, and what training costs that reads them from the disk: ``make bench-loading``.

Loading is compared with ``np.fromfile`` on a plain file of the same bytes. Training within a budget of memory is
compared with training in memory on the same windows; each runs in a process of its own, with a peak of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ByteSize, TypeAdapter

from bench.machine import describe, show, write_section
from featcache.check import Scan
from featcache.extraction import PART_IMAGES
from featcache.images import ImageTable, strings
from featcache.index import INDEX_NAME, PARTS_NAME, write_index
from featcache.parts import read_header, write_part
from featcache.spec import FeatureSpec
from featcache.splits import split
from featcache.store import open_store

SPEC = FeatureSpec(
    backbone="synthetic",
    weights_sha256="0" * 64,
    image_size=224,
    resize_side=256,
    interpolation="bilinear",
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    decoder="none 0",
    decode_floor=512,
)
CLASSES = ("NORMAL", "PNEUMONIA")
WIDTH = 1280

LOADING_HEADER = ("features", "what is read", "MB", "np.fromfile, ms", "cxr, ms", "rate of fromfile", "least … most")
STREAMING_HEADER = (
    *("heads", "rows/s in memory", "rows/s within the budget", "ratio", "least … most", "ratio by CPU seconds"),
    *("window, images", "peak in memory, MiB", "peak within the budget, MiB", "of that no mapped file, MiB"),
    *("above the budget, MiB", "equal"),
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Heads that are trained both ways: so many, with so many hidden units, for so many epochs."""

    name: str
    hidden: int
    heads: int
    epochs: int


CASES = (
    Case(name="4 linear", hidden=0, heads=4, epochs=2),
    Case(name="1 of 256 hidden units", hidden=256, heads=1, epochs=2),
)


def make_store(dataset: Path, images: int, views: int, width: int = WIDTH, part_images: int = PART_IMAGES) -> Path:
    """Write a store of images sorted by split and class, four fifths of them train; returns its folder."""
    bounds = {"test": images // 10, "train": images * 9 // 10, "val": images}
    rows: list[tuple[str, str, str, str]] = []
    start = 0
    for folder, stop in bounds.items():
        for number in range(start, stop):
            label = CLASSES[number - start >= (stop - start) // 4]
            rows.append((f"{folder}/{label}/{number:08d}.jpeg", label, f"{folder}/{label}-{number // 2}", folder))
        start = stop
    image_id, labels, patient, folders = (list(column) for column in zip(*rows, strict=True))
    size = np.full(images, 224, np.int32)
    table = ImageTable.from_columns(image_id, labels, patient, folders, CLASSES)
    table = replace(table, sha256=strings([_sha256(name) for name in image_id]), width=size, height=size)
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((2, 1, width), np.float32) * np.float32(0.125)
    store = dataset / f"synthetic-{SPEC.fingerprint[:12]}"
    headers = []
    for start in range(0, images, part_images):
        chosen = slice(start, min(start + part_images, images))
        digests = table.sha256[chosen].tolist()
        features = rng.standard_normal((len(digests), views, width), np.float32)
        features += centres[table.label[chosen]]
        headers.append(read_header(write_part(store / PARTS_NAME, SPEC, digests, range(views), features, {})))
    write_index(store, SPEC, Scan(table=table, quarantined=(), odd=()), headers)
    return store


def measure_loading(folder: Path, images: int, views: int, rounds: int) -> list[tuple[str, ...]]:
    """Load a store, and its splits by patient, in turn with plain files of the same bytes; rows for the header."""
    store = open_store(make_store(folder / f"{images}-{views}", images, views))
    table = store.image_table
    divided = split(table, "patient")
    # As fit-head reads them: one reading for all three.
    by_patient = table.image_id[np.concatenate([divided.train, divided.val, divided.test])].tolist()
    rows: list[tuple[str, ...]] = []
    plain = folder / "plain.bin"
    for what, request in (("all images", None), ("train, val, test by patient", by_patient)):
        store.views(request).tofile(plain)
        size = plain.stat().st_size
        times: list[tuple[float, float]] = []
        for _ in range(rounds):
            started = time.perf_counter()
            np.fromfile(plain, np.float16)
            between = time.perf_counter()
            store.views(request)
            times.append((between - started, time.perf_counter() - between))
        theirs, ours = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
        ratios = [peer / own for peer, own in times]
        shape = f"{images:,} × {views} × {WIDTH}"
        figures = (f"{size / 1e6:,.0f}", f"{theirs:.0f}", f"{ours:.0f}", f"{statistics.median(ratios):.2f}")
        rows.append((shape, what, *figures, f"{min(ratios):.2f} … {max(ratios):.2f}"))
    return rows


def measure_streaming(dataset: Path, memory: ByteSize, rounds: int) -> list[tuple[str, ...]]:
    """Train from a store within a budget, in turn with training in memory on windows of the same size."""
    rows: list[tuple[str, ...]] = []
    for case in CASES:
        pairs = []
        for _ in range(rounds):
            streamed = _child(dataset, case, memory=memory)
            pairs.append((_child(dataset, case, window=streamed["window"]), streamed))
        ratios = [streamed["rate"] / whole["rate"] for whole, streamed in pairs]
        by_cpu = [whole["cpu"] / streamed["cpu"] for whole, streamed in pairs]
        rates = [statistics.median(outcome["rate"] for outcome in column) for column in zip(*pairs, strict=True)]
        peaks = [max(outcome["peak"] for outcome in column) / 2**20 for column in zip(*pairs, strict=True)]
        own = max(streamed["own"] for _, streamed in pairs) / 2**20
        equal = all(whole["digest"] == streamed["digest"] for whole, streamed in pairs)
        rows.append(
            (
                case.name,
                *(f"{rate:,.0f}" for rate in rates),
                f"{statistics.median(ratios):.2f}",
                f"{min(ratios):.2f} … {max(ratios):.2f}",
                f"{statistics.median(by_cpu):.2f}",
                f"{pairs[0][1]['window']:,}",
                *(f"{peak:,.0f}" for peak in peaks),
                f"{own:,.0f}",
                f"{own - memory / 2**20:,.0f}",
                "to the bit" if equal else "no",
            )
        )
    return rows


def report_loading(folder: Path, rounds: int, *, write: bool) -> None:
    """Measure loading, show it, and write its section of ``docs/benchmarks.md``."""
    cases = ((5_856, 4), (50_000, 1))
    rows = [row for images, views in cases for row in measure_loading(folder, images, views, rounds)]
    lines = show(LOADING_HEADER, rows)
    if write:
        text = [
            f"`make bench-loading`: parts of {PART_IMAGES} images into one array, their checksums compared, in turn",
            f"with `np.fromfile` on a plain file of the same bytes, {rounds} times; files in the system's cache.",
            "",
        ]
        write_section("heads-loading", "Loading a store", [*text, *lines, "", *describe()])


def report_streaming(dataset: Path, memory: ByteSize, fits: int, *, write: bool) -> None:
    """Measure training beyond memory, show it, and write its section of ``docs/benchmarks.md``."""
    lines = show(STREAMING_HEADER, measure_streaming(dataset, memory, fits))
    if write:
        (parts,) = dataset.glob(f"*/{PARTS_NAME}")
        images = len(open_store(parts.parent).part)
        text = [
            f"`make bench-loading`: {images:,} × {WIDTH} float16, four fifths of them train, trained with",
            f"`--memory {memory.human_readable()}` and, in turn, in memory on windows of that size; each {fits} times,",
            "in a process of its own. Rows of train a second of the epochs, val included; files in the system's cache.",
            "",
        ]
        write_section("heads-streaming", "More features than memory", [*text, *lines, "", *describe()])


def fit_once(dataset: Path, case: Case, memory: int | None, window: int) -> dict[str, Any]:
    """Fit a case's heads as ``cxr fit-head`` does; train rows a second, peak of memory, and a digest of the outcome.

    The seconds are those of the epochs, val included; loading what is trained on in memory is not counted.
    """
    from heads.experiments.experiment import run_experiment
    from heads.training.config import HeadConfig

    (parts,) = dataset.glob(f"*/{PARTS_NAME}")
    store = open_store(parts.parent / INDEX_NAME)
    configs = [
        HeadConfig(hidden=case.hidden, seed=seed, epochs=case.epochs, patience=case.epochs, window=window)
        for seed in range(case.heads)
    ]
    ends: list[tuple[float, float]] = []
    peak = _Peak()
    record = run_experiment(
        [store],
        dataset,
        configs,
        rule="folders",
        memory=memory,
        on_progress=lambda *_: ends.append((time.perf_counter(), time.process_time())),
    ).record
    most, own = peak.stop()
    told = json.dumps([[head.history.val_loss, head.val.loss] for head in record.heads])
    return {
        # The first epoch has no beginning that is told.
        "rate": record.n["train"] * (len(ends) - 1) / (ends[-1][0] - ends[0][0]),
        "cpu": (ends[-1][1] - ends[0][1]) / (len(ends) - 1),
        "peak": most,
        "own": own,
        "window": record.heads[0].config.window,
        "digest": hashlib.sha256(told.encode()).hexdigest(),
    }


def _child(dataset: Path, case: Case, *, memory: int = 0, window: int = 0) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="bench-loading-") as folder:
        # A run that is there already would be read back.
        for parts in dataset.glob(f"*/{PARTS_NAME}"):
            (Path(folder) / parts.parent.name).symlink_to(parts.parent)
        command = [sys.executable, "-m", "bench.loading", "--case", case.name, "--folder", folder]
        command += ["--memory", str(memory), "--window", str(window)]
        told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    outcome: dict[str, Any] = json.loads(told)
    return outcome


class _Peak:
    """The most memory that this process has had, in bytes, sampled: all of it, and without mapped files."""

    def __init__(self) -> None:
        self.own = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> tuple[int, int]:
        """End the watch; the most in all, and of it what no file backs (0 where the system does not tell)."""
        self._over.set()
        self._thread.join()
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most, self.own

    def _watch(self) -> None:
        status = Path("/proc/self/status")
        while status.exists() and not self._over.wait(0.05):
            told = re.search(r"RssAnon:\s+(\d+) kB", status.read_text())
            self.own = max(self.own, 1024 * int(told[1]) if told else 0)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both, or be the child of such a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11, help="times that each store is loaded")
    parser.add_argument("--fits", type=int, default=3, help="times that each case is fitted, both ways")
    parser.add_argument("--images", type=int, default=1_000_000, help="images of the store that is streamed")
    parser.add_argument("--memory", default="512MiB", help="the budget")
    parser.add_argument("--only", choices=("loading", "streaming"), help="one of the sections")
    parser.add_argument("--write", action="store_true", help="write the tables to docs/benchmarks.md")
    parser.add_argument("--case", choices=[case.name for case in CASES], help=argparse.SUPPRESS)
    parser.add_argument("--window", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    memory = TypeAdapter(ByteSize).validate_python(given.memory)
    if given.case:
        case = next(case for case in CASES if case.name == given.case)
        print(json.dumps(fit_once(given.folder, case, memory or None, given.window)))
        return
    with tempfile.TemporaryDirectory(prefix="bench-loading-") as folder:
        if given.only != "streaming":
            report_loading(Path(folder), given.rounds, write=given.write)
        if given.only != "loading":
            make_store(Path(folder) / "streamed", given.images, 1)
            report_streaming(Path(folder) / "streamed", memory, given.fits, write=given.write)


if __name__ == "__main__":
    main()
