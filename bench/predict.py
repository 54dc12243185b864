"""``cxr predict`` against ``cxr extract``, and an ONNX graph against torch and OpenVINO: ``make bench-predict``.

A head is fitted on some films of a data set, and judges them again: what predict adds to the extraction (distances,
heads, text) and what it lacks (parts, an index) is the ratio of the two rates, measured in turn.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bench.extract import bare_rate, pass_rate
from bench.machine import describe, show, write_section
from featcache.atomic import new_text
from featcache.backbones import Backbone, load_backbone
from featcache.check import Scan, scan
from featcache.extraction import extract
from featcache.films import load_film
from featcache.images import ImageTable, discover
from featcache.loading import Rendering
from featcache.making import geometry_of
from featcache.store import open_store
from heads.experiments.experiment import run_experiment
from heads.prediction.answers import as_text
from heads.prediction.from_run import model_of_run
from heads.prediction.model import Model
from heads.prediction.onnx_export import Judge, export_onnx, onnx_session
from heads.prediction.predictor import Predictor
from heads.training.config import HeadConfig

BACKBONE = "efficientnet_lite0"
ROUNDS = 5
AGREED = 100
"""Films on which the graph's probabilities are compared."""


def main() -> None:
    """Measure and, with ``--write``, write it down."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--data", type=Path, required=True, help="a data set's folder")
    arguments.add_argument("--films", type=int, default=640, help="films judged in each round")
    arguments.add_argument("--seconds", type=float, default=6.0, help="of each bare rate")
    arguments.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    given = arguments.parse_args()
    lines = measure(given.data, given.films, given.seconds)
    if given.write:
        write_section("predict", "Predictions", [*lines, "", *describe()])


def measure(data: Path, count: int, seconds: float, backbone_name: str = BACKBONE) -> list[str]:
    """All figures, as lines of Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        films, model, backbone = fitted(data, count, Path(folder), backbone_name)
        lines = rates(films, data, model, backbone)
        lines += ["", *runtimes(films, data, model, backbone, Path(folder), seconds)]
    return lines


def fitted(data: Path, count: int, folder: Path, name: str) -> tuple[Scan, Model, Backbone]:
    """Some films of every split and class, and a head on the features of them."""
    table = discover(data)
    films = scan(evenly(table, count), data)
    backbone = load_backbone(name)
    (summary,) = extract(films, data, folder / "films", [backbone])
    run_experiment([open_store(summary.store)], folder / "films", [HeadConfig(epochs=20)])
    return films, model_of_run(folder / "films", root=data), backbone


def evenly(table: ImageTable, count: int) -> ImageTable:
    """About ``count`` images, every n-th of the table."""
    return table.take(np.arange(0, len(table), max(1, len(table) // count)))


def rates(films: Scan, root: Path, model: Model, backbone: Backbone) -> list[str]:
    """Images a second of predict and of extract, on the same files, in turn."""
    paths = [root / name for name in films.table.image_id]
    predictor = Predictor(model, [backbone])
    list(predictor.stream(paths[:64]))
    extracts, predicts = [], []
    for number in range(ROUNDS):
        for which in ("extract", "predict") if number % 2 else ("predict", "extract"):
            if which == "extract":
                extracts.append(pass_rate(films, root, [backbone], "cpu")[0])
            else:
                started = time.perf_counter()
                with tempfile.TemporaryDirectory() as folder, new_text(Path(folder) / "answers.csv") as file:
                    file.writelines(as_text(predictor.stream(paths), predictor, "csv"))
                predicts.append(len(paths) / (time.perf_counter() - started))
    ratios = sorted(one / other for one, other in zip(predicts, extracts, strict=True))
    row = [backbone.name, str(len(paths)), f"{statistics.median(extracts):.1f}", f"{statistics.median(predicts):.1f}"]
    row += [f"{statistics.median(ratios):.2f}", f"{ratios[0]:.2f} … {ratios[-1]:.2f}"]
    header = ["backbone", "films", "extract, img/s", "predict to CSV, img/s", "ratio", "least … most"]
    return show(header, [row])


def runtimes(films: Scan, root: Path, model: Model, backbone: Backbone, folder: Path, seconds: float) -> list[str]:
    """Images a second of the network alone on pixels in memory, by what runs it; and how far answers differ."""
    paths = [root / name for name in films.table.image_id[:: max(1, len(films.table) // AGREED)]][:AGREED]
    export_onnx(folder / "model.onnx", model, [backbone])
    session, judge = onnx_session(folder / "model.onnx"), Judge(model, [backbone])
    pixels = clean_pixels(model, paths)

    def graph(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = session.run(["probabilities"], {"pixels": batch})[0]
        return found

    def eager(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            found: NDArray[np.float32] = judge(torch.from_numpy(batch))[0].numpy()
        return found

    a_round = seconds / ROUNDS
    ran: dict[str, Callable[[], float]] = {
        "onnxruntime": lambda: rate(graph, pixels[:8], a_round),
        "torch, eager": lambda: rate(eager, pixels[:8], a_round),
        "OpenVINO, as extract and predict run it (features alone)": lambda: bare_rate(backbone, a_round, "cpu"),
    }
    measured: dict[str, list[float]] = {name: [] for name in ran}
    for _ in range(ROUNDS):
        for name, measure in ran.items():
            measured[name].append(measure())
    with_graph = np.concatenate([graph(pixels[row : row + 8]) for row in range(0, len(pixels), 8)])
    with_torch = np.concatenate([eager(pixels[row : row + 8]) for row in range(0, len(pixels), 8)])
    said = Predictor(model, [backbone]).stream(paths)
    predicted = np.stack([one.probabilities for one in said if one.probabilities is not None])
    rows = []
    for name, found in measured.items():
        ratios = [one / other for one, other in zip(found, measured["onnxruntime"], strict=True)]
        rows.append([name, f"{statistics.median(found):.1f}", f"{statistics.median(ratios):.2f}"])
    lines = show(["network by, batches of 8", "img/s", "against onnxruntime"], rows)
    from_torch, from_predict = np.abs(with_graph - with_torch), np.abs(with_graph - predicted)
    lines += ["", f"Probabilities of the graph on {len(paths)} films differ from torch's (float32 throughout) by"]
    lines += [
        f"{from_torch.max():.1e} at most, from those of `cxr predict`, which rounds features to float16 as the store"
    ]
    lines += [f"does, by {from_predict.max():.1e} at most and {np.median(from_predict):.1e} in the median."]
    return lines


def clean_pixels(model: Model, paths: list[Path]) -> NDArray[np.uint8]:
    """The clean views, [N, 3, S, S]."""
    spec = model.sources[0].spec
    clean = Rendering(geometry=geometry_of(spec), floor=spec.decode_floor, views=range(1))
    views = [load_film(path, frozenset([clean])).views[clean][0] for path in paths]
    return np.stack([np.broadcast_to(view, (3, *view.shape[1:])) for view in views])


def rate(run: Callable[[NDArray[np.uint8]], object], batch: NDArray[np.uint8], seconds: float) -> float:
    """Images a second on one batch."""
    run(batch)
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        run(batch)
        done += len(batch)
    return done / (time.perf_counter() - started)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    main()
