"""What a million images ask of planning and of the store: ``make bench-scale``.

A synthetic store of 2,000 parts × 500 images is made in a temporary folder, with features of eight numbers, and a CSV
of 1,000,000 rows with hashes. No image exists and no network runs. Each step runs in a process of its own, so that the
peak of memory is the step's.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.machine import describe, show, write_section
from featcache.check import Scan, scan
from featcache.images import CSV_COLUMNS, read_csv
from featcache.index import INDEX_NAME, PARTS_NAME, write_index
from featcache.parts import PartHeader, write_part
from featcache.store import open_store, part_headers

if TYPE_CHECKING:
    from featcache.backbones import Backbone
    from featcache.runtime import Compute

DIM = 8
"""Features an image: planning does not depend on their number."""

HEADER = ("step", "seconds", "peak, MB", "wanted")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A synthetic data set in a folder, and how long the pieces of a step took.

    Attributes:
        folder: holds ``images.csv``, and a cache for each of the data sets ``all`` and ``half``.
        parts: in the store of ``all``; that of ``half`` has every second one.
        images: a part.
        laps: piece → seconds, in order.
    """

    folder: Path
    parts: int
    images: int
    laps: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def lap(self, name: str) -> Iterator[None]:
        """Measure a piece."""
        started = time.perf_counter()
        yield
        self.laps[name] = time.perf_counter() - started

    def scanned(self) -> Scan:
        """The image table with its hashes; no image is opened, there is none."""
        with self.lap("read the CSV"):
            return scan(read_csv(self.folder / "images.csv"), self.folder)

    def store(self, dataset: str = "all") -> Path:
        """The only store of a data set."""
        (parts,) = (self.folder / dataset).glob(f"*/{PARTS_NAME}")
        return parts.parent


def make(case: Case) -> None:
    """Write the CSV and the parts."""
    from featcache.planning import spec_of, store_folder

    spec = spec_of(_backbone(), compute=_compute())
    random = np.random.default_rng(0)
    stores = [store_folder(case.folder / dataset, spec) / PARTS_NAME for dataset in ("all", "half")]
    stores[1].mkdir(parents=True)
    with (case.folder / "images.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(CSV_COLUMNS)
        for part in range(case.parts):
            numbers = range(part * case.images, (part + 1) * case.images)
            digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in numbers]
            for number, digest in zip(numbers, digests, strict=True):
                label, patient = ("NORMAL", "PNEUMONIA")[number % 2], f"patient{number // 4:08d}"
                path = f"train/{number // 10_000:04d}/{patient}/image{number:09d}.jpeg"
                table.writerow([path, label, f"train/{patient}", "train", digest, 1024, 1024])
            features = random.standard_normal((case.images, 1, DIM), np.float32)
            written = write_part(stores[0], spec, digests, range(1), features, {})
            if part % 2:
                os.link(written, stores[1] / written.name)


def table(case: Case) -> None:
    """Read the table alone."""
    case.scanned()


def plan_all(case: Case) -> None:
    """Plan where nothing is missing."""
    _plan(case, "all", lacking=0)


def plan_half(case: Case) -> None:
    """Plan where every second part is missing."""
    _plan(case, "half", lacking=(case.parts + 1) // 2)


def _plan(case: Case, dataset: str, lacking: int) -> None:
    from featcache.planning import chunks_of, plan

    backbone, compute = _backbone(), _compute()
    started = time.perf_counter()
    scanned = case.scanned()
    with case.lap("find what is missing"):
        job = plan(scanned, case.folder / dataset, backbone, 0, compute)
    with case.lap("cut into parts"):
        chunks = chunks_of(scanned, [job], 1, case.images)
    case.laps["in all"] = time.perf_counter() - started
    assert len(chunks) == lacking, f"{len(chunks)} parts are missing, wanted {lacking}"


def index(case: Case) -> None:
    """Write features.h5."""
    scanned = case.scanned()
    with case.lap("read the parts' headers"):
        headers = [header for header in part_headers(case.store()) if isinstance(header, PartHeader)]
    with case.lap("write features.h5"):
        write_index(case.store(), headers[0].spec, scanned, headers)


def open_index(case: Case) -> None:
    """Open features.h5, as users of h5py do and as cxr does."""
    import h5py

    with case.lap("open features.h5 with h5py, read a row"), h5py.File(case.store() / INDEX_NAME) as file:
        row = file["features"][case.images]
    with case.lap("open the store"):
        store = open_store(case.store())
    assert np.isfinite(row).all()
    assert store.view_count == 1


def read_part(case: Case) -> None:
    """Read the features of one part's images, by their names."""
    store = open_store(case.store())
    with case.lap("decode the image table"):
        names = store.image_table.image_id[: case.images].tolist()
    with case.lap("features of one part's images"):
        store.features(names)


def read_all(case: Case) -> None:
    """Read all features, with their checksums."""
    store = open_store(case.store())
    with case.lap(f"features of all images, D = {DIM}"):
        features = store.features()
    assert features.shape == (case.parts * case.images, DIM)


STEPS: dict[str, Callable[[Case], None]] = {
    "make": make,
    "table": table,
    "plan_all": plan_all,
    "plan_half": plan_half,
    "index": index,
    "open_index": open_index,
    "read_part": read_part,
    "read_all": read_all,
}

SHOWN = {
    # (step, piece) → what is said of it, and what is wanted of it.
    ("table", "read the CSV"): ("read the CSV", ""),
    ("plan_all", "find what is missing"): ("all parts there: find what is missing", ""),
    ("plan_all", "cut into parts"): ("all parts there: cut into parts", ""),
    ("plan_all", "in all"): ("all parts there: planning in all", "60 s, 2,000 MB"),
    ("plan_half", "in all"): ("half of the parts there: planning in all", "60 s, 2,000 MB"),
    ("index", "read the parts' headers"): ("read the parts' headers", ""),
    ("index", "write features.h5"): ("write features.h5", ""),
    ("open_index", "open features.h5 with h5py, read a row"): ("open features.h5 with h5py, read a row", "1 s"),
    ("open_index", "open the store"): ("open the store (open_store)", "1 s"),
    ("read_part", "decode the image table"): ("decode the image table, once a store", ""),
    ("read_part", "features of one part's images"): ("features of one part's images, by name", ""),
    ("read_all", f"features of all images, D = {DIM}"): (f"features of all images, D = {DIM}", ""),
}


def measure(parts: int, images: int) -> list[tuple[str, str, str, str]]:
    """Run every step in a process of its own; rows for ``HEADER``."""
    with tempfile.TemporaryDirectory(prefix="bench-scale-") as folder:
        outcomes = {step: child(step, Path(folder), parts, images) for step in STEPS}
    rows = []
    for (step, piece), (told, wanted) in SHOWN.items():
        outcome = outcomes[step]
        rows.append((told, f"{outcome['laps'][piece]:.2f}", f"{outcome['peak'] / 1e6:,.0f}", wanted))
    return rows


def child(step: str, folder: Path, parts: int, images: int) -> dict[str, Any]:
    """Run one step in a process of its own; returns its ``laps`` in seconds and its ``peak`` in bytes."""
    command = [sys.executable, "-m", "bench.scale", "--step", step, "--folder", str(folder)]
    command += ["--parts", str(parts), "--images", str(images)]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    outcome: dict[str, Any] = json.loads(told)
    return outcome


def _backbone() -> Backbone:
    """A backbone that is nothing but its name: planning asks for no more than its spec."""
    from torch import nn

    from featcache.backbones import Backbone
    from featcache.networks import Preprocessing
    from featcache.work import Source

    half, quarter = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    return Backbone(
        name="synthetic",
        network=nn.Identity(),
        preprocessing=Preprocessing(image_size=32, resize_side=32, interpolation="bilinear", mean=half, std=quarter),
        weights_sha256="0" * 64,
        dim=DIM,
        source=Source(name="synthetic"),
    )


def _compute() -> Compute:
    from featcache.runtime import Compute

    return Compute(device="cpu", runtime="torch", precision="float32")


def main() -> None:
    """Run all steps, or one of them as the child of such a run."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--parts", type=int, default=2000, help="parts of the store")
    arguments.add_argument("--images", type=int, default=500, help="images a part")
    arguments.add_argument("--write", action="store_true", help="write the table to docs/benchmarks.md")
    arguments.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    arguments.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.step:
        case = Case(folder=given.folder, parts=given.parts, images=given.images)
        STEPS[given.step](case)
        print(json.dumps({"laps": case.laps, "peak": _peak()}))
        return
    lines = show(HEADER, measure(given.parts, given.images))
    if given.write:
        images = f"{given.parts * given.images:,} images in {given.parts:,} parts, D = {DIM}, 1 view"
        text = [
            f"`make bench-scale`: {images}, files in the system's cache. Each step ran in a process of",
            "its own, whose peak of memory stands beside it; of planning's, some 800 MB are torch, which it asks for",
            "the device.",
            "",
        ]
        write_section("scale", "A million images", [*text, *lines, "", *describe()])


def _peak() -> int:
    """The most memory that this process has had, in bytes; on Linux no less than its parent, which is small."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


if __name__ == "__main__":
    main()
