"""How near ``cxr extract`` comes to the machine's limit, and how far it is ahead of what people write.

``make bench-extract DATA=/path/to/chest_xray NATIVE=/path/to/films`` prints the tables and writes them to
``docs/benchmarks.md``. Every claim is a ratio of two rates measured in turn within one run.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from bench.films import native
from bench.machine import describe, on_device, show, write_section
from featcache import loading
from featcache.backbones import Backbone, load_backbone
from featcache.check import Scan, scan
from featcache.decode import decode_for, eighths_for
from featcache.engines import OnDevices
from featcache.extraction import extract
from featcache.forward import compile_forward
from featcache.images import discover
from featcache.progress import Progress
from featcache.runtime import (
    Compute,
    choose_batch_size,
    choose_device,
    choose_precision,
    choose_runtime,
    choose_streams,
)
from featcache.settings import usable_cores
from featcache.spec import Precision

PAPER = ("resnet50", "vgg19", "inception_v3", "efficientnet_b4")


def main() -> None:
    """Measure and write it down."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--data", type=Path, required=True, help="a data set's folder")
    arguments.add_argument("--native", type=Path, help="a folder of films at native size")
    arguments.add_argument("--thingsvision", type=Path, help="the Python of an environment that has thingsvision")
    arguments.add_argument("--seconds", type=float, default=20.0, help="of bare forward that each part is sized for")
    arguments.add_argument("--only", choices=["end", "limit", "peers", "once", "native"], nargs="*")
    arguments.add_argument("--device", default="cpu", help="cuda: sections of its own")
    arguments.add_argument("--processes", type=int, default=1, help="that share the device in a pass")
    arguments.add_argument("--backbones", nargs="*", default=PAPER)
    arguments.add_argument("--rounds", type=int, default=2)
    given = arguments.parse_args()
    films = scan(discover(given.data), given.data, threads=max(2, usable_cores()))
    given.device = choose_device(given.device)
    films_at_native_size = sorted(given.native.rglob("*.jpeg")) if given.native else []
    parts: dict[str, tuple[str, Callable[[], list[str]]]] = {
        "end": ("Extraction end to end against the bare forward", lambda: end_to_end(films, given)),
        "limit": ("The bare forward against the machine's matrix products", lambda: limit(given)),
        "peers": ("Against what people write", lambda: peers(films, given)),
        "once": ("Two backbones, eight views, one decode", lambda: decode_once(films, given)),
        "native": ("Films at native size", lambda: native(films_at_native_size) if films_at_native_size else []),
    }
    for name, (heading, measure) in parts.items():
        if not given.only or name in given.only:
            lines = measure()
            if lines:
                section, title = on_device(f"extract-{name}", heading, given.device)
                write_section(section, title, [*lines, "", *describe(given.device)])


# --- what is measured ---


def bare_rate(backbone: Backbone, seconds: float, device: str) -> float:
    """Images a second of the best way that we know to run the network on pixels already in memory."""
    batch_size = choose_batch_size(None, device)
    runtime = choose_runtime("auto", device)
    forward = compile_forward(
        backbone, batch_size, runtime=runtime, precision=choose_precision("auto", device), device=device
    )
    side = backbone.preprocessing.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (batch_size, 3, side, side), np.uint8)
    streams = choose_streams(runtime, device, usable_cores())
    with ThreadPoolExecutor(streams) as pool:
        list(pool.map(forward, [pixels] * streams))
        started, done = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            done += sum(map(len, pool.map(forward, [pixels] * (2 * streams))))
        return done / (time.perf_counter() - started)


def pass_rate(
    films: Scan, root: Path, backbones: Sequence[Backbone], device: str, views: int = 1, processes: int = 1
) -> tuple[float, float]:
    """Images a second from the first hash to the last byte written, and MiB by which the process grew on the way.

    Loading and compiling networks is not counted; growth is that from a quarter of the images to the last.
    """
    first: list[float] = []
    held: list[float] = []

    def begun(now: Progress) -> None:
        first.append(time.perf_counter())
        if now.images_done in (now.images_total // 4, now.images_total):
            held.append(resident())

    # A table that gives hashes is taken at its word.
    named = dataclasses.replace(films.table, sha256=np.full_like(films.table.sha256, ""))
    engine = OnDevices([device] * processes) if processes > 1 else None
    with tempfile.TemporaryDirectory() as cache:
        started = time.perf_counter()
        again = scan(named, root, threads=max(2, usable_cores()))
        hashed = time.perf_counter() - started
        how: dict[str, Any] = {"views": views, "compute": Compute(device=device), "engine": engine}
        extract(again, root, Path(cache), backbones, on_progress=begun, **how)
        seconds = hashed + time.perf_counter() - first[0]
    return (len(films.table) - 1) / seconds, held[-1] - held[0]


def resident() -> float:
    """Memory of this process, in MiB; Linux only."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def some(films: Scan, count: int) -> Scan:
    """Every n-th image, about ``count``; at least a part's worth."""
    step = max(1, len(films.table) // max(count, 64))
    return Scan(table=films.table.take(np.arange(0, len(films.table), step)), quarantined=(), odd=())


def end_to_end(films: Scan, given: argparse.Namespace) -> list[str]:
    """Point 1: rate of the whole pass over that of the bare forward, in views."""
    rows = []
    here = [("efficientnet_lite0", None, 1), ("resnet50", "random", 1)]
    there = [(name, "random", views) for name in given.backbones for views in (1, 4)]
    for name, weights, views in here if given.device == "cpu" else there:
        backbone = load_backbone(name, weights)
        sample = some(films, max(640, int(bare_rate(backbone, 2, given.device) * given.seconds / views)))
        ratios, bares, passes, grown = [], [], [], []
        for _ in range(given.rounds):
            before = bare_rate(backbone, given.seconds / 4, given.device)
            rate, growth = pass_rate(sample, given.data, [backbone], given.device, views, given.processes)
            grown.append(growth)
            bare = (before + bare_rate(backbone, given.seconds / 4, given.device)) / 2
            ratios.append(rate * views / bare)
            bares.append(bare)
            passes.append(rate * views)
        rates = [f"{statistics.median(found):.1f}" for found in (bares, passes)]
        grew = f"{statistics.median(grown):+.0f}"
        rows.append([name, str(len(sample.table)), str(views), *rates, *spread(ratios), grew])
    header = ["backbone", "images", "views", "bare forward, views/s", "whole pass, views/s", "ratio", "least … most"]
    return [*at_once(given.processes), *show([*header, "growth, MiB"], rows)]


def at_once(processes: int) -> list[str]:
    """Said above a table of passes by several processes."""
    said = f"{processes} processes share the device and the cores; growth is that of the one that started them."
    return [said, ""] if processes > 1 else []


def ceiling(device: str, precision: Precision, seconds: float) -> float:
    """The best rate of matrix products in a precision, in GFLOP/s, over some sizes."""
    best = 0.0
    for size in (1024, 2048, 3072) if device == "cpu" else (4096, 8192):
        left, right = (torch.randn(size, size, device=device, dtype=getattr(torch, precision)) for _ in range(2))
        torch.mm(left, right)[0, 0].item()
        started, done = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            for _ in range(1 if device == "cpu" else 20):
                product = torch.mm(left, right)
                done += 1
            product[0, 0].item()  # Waits for a GPU.
        best = max(best, 2 * size**3 * done / (time.perf_counter() - started) / 1e9)
    return best


def limit(given: argparse.Namespace) -> list[str]:
    """Point 2: share of the matrix-product ceiling, and likeness to the plain float32 feature."""
    rows, device = [], given.device
    precision = choose_precision("auto", device)
    for name in given.backbones:
        backbone = load_backbone(name, "random")
        side = backbone.preprocessing.image_size
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            backbone.network(torch.zeros((1, 3, side, side), dtype=torch.uint8))
        work = counter.get_total_flops() / 1e9
        top = ceiling(device, precision, min(2.0, given.seconds / 8))
        rate = bare_rate(backbone, min(8.0, given.seconds), device)
        rows.append([name, str(side), f"{work:.1f}", f"{rate:.1f}", f"{work * rate:.0f}", f"{top:.0f}",
                     f"{100 * work * rate / top:.0f} %", f"{likeness(backbone, device):.6f}"])  # fmt: skip
    header = ["backbone", "pixels", "GFLOP an image", "img/s", "GFLOP/s", f"{precision} products, GFLOP/s", "share",
              "least cosine to eager float32"]  # fmt: skip
    return show(header, rows)


def likeness(backbone: Backbone, device: str, batch_size: int = 8) -> float:
    """Least cosine between a feature as we compute it and as eager torch does in float32 on the processor."""
    side = backbone.preprocessing.image_size
    row, column = np.mgrid[:side, :side] / side
    waves = np.random.default_rng(0).uniform(1, 20, (batch_size * 3, 2))
    pixels = np.array([127 + 127 * np.sin(a * row + b * column) for a, b in waves], np.uint8)
    pixels = pixels.reshape(batch_size, 3, side, side)
    with torch.no_grad():
        plain = backbone.network.to("cpu")(torch.from_numpy(pixels)).numpy()
    precision = choose_precision("auto", device)
    runtime = choose_runtime("auto", device)
    ours = compile_forward(backbone, batch_size, runtime=runtime, precision=precision, device=device)(pixels)
    return float((np.sum(ours * plain, 1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(plain, axis=1)).min())


def peers(films: Scan, given: argparse.Namespace) -> list[str]:
    """Point 3: our rate over those of the usual loop and of thingsvision, on the same images."""
    usual = [sys.executable, "-m", "bench.usual_loop", "{name}", "random", given.device]
    starts = {"DataLoader + Pillow + timm + torch.save": usual}
    if given.thingsvision:
        script = Path(__file__).with_name("thingsvision_peer.py")
        starts["thingsvision"] = [str(given.thingsvision.absolute()), str(script), "{name}"]
    rows = []
    for name in given.backbones:
        backbone = load_backbone(name, "random")
        sample = some(films, int(bare_rate(backbone, 2, given.device) * given.seconds / 2))
        files = [str(given.data / image_id) for image_id in sample.table.image_id]
        for peer, start in starts.items():
            ratios, ours, theirs = [], [], []
            for _ in range(given.rounds):
                rate, _ = pass_rate(sample, given.data, [backbone], given.device, 1, given.processes)
                needed = peer_seconds([word.format(name=name) for word in start], files)
                ratios.append(rate * needed / len(files))
                ours.append(rate)
                theirs.append(len(files) / needed)
            rates = [f"{statistics.median(found):.1f}" for found in (theirs, ours)]
            rows.append([name, peer, str(len(files)), *rates, *spread(ratios)])
    header = ["backbone", "peer", "images", "peer, img/s", "cxr extract, img/s", "ratio", "least … most"]
    return [*at_once(given.processes), *show(header, rows)]


def peer_seconds(start: Sequence[str], files: Sequence[str]) -> float:
    """Run a peer in a process of its own."""
    done = subprocess.run(
        [*start, *files],
        capture_output=True,
        text=True,
        check=True,
        env={key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"},
    )
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def decode_once(films: Scan, given: argparse.Namespace) -> list[str]:
    """Point 4: time of two backbones and eight views over the sum of the bare forwards; files decoded."""
    views, names = 8, (("efficientnet_lite0", None if given.device == "cpu" else "random"), ("resnet50", "random"))
    backbones = [load_backbone(name, weights) for name, weights in names]
    bare = [bare_rate(backbone, 3, given.device) for backbone in backbones]
    sample = some(films, int(2 * given.seconds / views / sum(1 / rate for rate in bare)))
    ratios, counts = [], []
    for _ in range(given.rounds):
        before = [bare_rate(backbone, given.seconds / 8, given.device) for backbone in backbones]
        with mock.patch.object(loading, "decode_for", side_effect=decode_for) as decoded:
            rate, _ = pass_rate(sample, given.data, backbones, given.device, views)
        after = [bare_rate(backbone, given.seconds / 8, given.device) for backbone in backbones]
        needed = views * sum(2 / (a + b) for a, b in zip(before, after, strict=True))
        ratios.append(1 / rate / needed)
        # A file is decoded once a size; backbones whose floors give the same size share it.
        sizes = [{_eighths(call.args[0], floor) for floor in call.args[1]} for call in decoded.mock_calls]
        counts.append(sum(map(len, sizes)))
    distinct = len(set(sample.table.sha256))
    row = [" + ".join(b.name for b in backbones), str(views), str(distinct), str(max(counts)), *spread(ratios)]
    return show(["backbones", "views", "images", "decoded", "time / sum of bare forwards", "least … most"], [row])


def _eighths(film: bytes, floor: int | None) -> int:
    return eighths_for(min(Image.open(io.BytesIO(film)).size), floor)


def spread(ratios: Sequence[float]) -> list[str]:
    """Median, and least to most."""
    return [f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f} … {max(ratios):.2f}"]


if __name__ == "__main__":
    main()
