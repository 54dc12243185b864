"""How near ``heads.fit`` comes to the machine's matrix products, and how far it is ahead of what people write.

``make bench-heads`` prints the tables and writes them to ``docs/benchmarks.md``. Every claim is a ratio of two
rates measured in turn within one run. Features are drawn, of the shapes of the chest X-ray set: what they say
does not matter to the time, but for the epoch at which a head stops.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from bench.machine import describe, on_device, show, write_section
from bench.usual_heads import usual_loop
from featcache.runtime import choose_device, has_fast_bfloat16
from heads import HeadConfig, Samples, fit, grid

TRAIN, VAL, BATCH, HIDDEN = 4173, 1043, 256, 256
WIDTHS = (1280, 2048)
ROUNDS = 3
SIDE = 3072  # of the square product that tells the machine's rate
Result = TypeVar("Result")
PAPER: tuple[tuple[str, int, list[float]], ...] = (  # the study's rows: backbone, D, penalties
    ("inception_v3", 2048, [0.0]),
    ("vgg19", 512, [0.0]),
    ("efficientnet_b4", 1792, [0.0, 1e-4]),
    ("resnet50", 2048, [0.0, 1e-4]),
)


def main() -> None:
    """Measure and write it down."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--heads", type=int, default=64, help="heads of the grid whose rate is measured")
    arguments.add_argument("--epochs", type=int, default=2, help="epochs of that grid")
    arguments.add_argument("--only", choices=["rate", "table", "linear", "bfloat16"], nargs="*")
    arguments.add_argument("--dry", action="store_true", help="print the tables, write nothing")
    arguments.add_argument("--device", default="cpu", help="cuda: sections of its own")
    given = arguments.parse_args()
    device = choose_device(given.device)
    parts: dict[str, tuple[str, Callable[[], list[str]]]] = {
        "rate": (
            "A grid of heads against the machine and the usual loop",
            lambda: rate(given.heads, given.epochs, device),
        ),
        "table": ("The study's table from features in memory", lambda: table(device)),
        "linear": ("A thousand linear heads", lambda: linear(device)),
        "bfloat16": ("Heads in bfloat16", lambda: bfloat16(given.heads, given.epochs, device)),
    }
    for name, (title, measure) in parts.items():
        if not given.only or name in given.only:
            lines = measure()
            if not given.dry:
                section, title = on_device(f"heads-{name}", title, device)
                write_section(section, title, [*lines, "", *describe(device)])


# --- what is measured ---


def drawn(images: int, width: int, seed: int) -> Samples:
    """Features [N, 1, D] float16 as a network's after pooling: not negative, and their classes overlap."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(images) < 0.74).astype(np.int64)
    latent = rng.standard_normal((images, 32)) + 0.35 * labels[:, None]
    mixing = np.random.default_rng(width).standard_normal((32, width)) / 6
    features = np.maximum(latent @ mixing + 0.5 * rng.standard_normal((images, width)), 0)
    return Samples(features=features[:, None].astype(np.float16), labels=labels, classes=2)


def splits(width: int) -> tuple[Samples, Samples]:
    """A train and a val split of the set's size."""
    return drawn(TRAIN, width, 1), drawn(VAL, width, 2)


def sgemm_rate(device: str = "cpu", times: int = 3) -> float:
    """GFLOP/s of a product of two large square matrices in float32, the best of some."""
    one, other = (torch.randn(SIDE, SIDE, device=device) for _ in range(2))
    products = 1 if device == "cpu" else 20

    def multiply() -> float:
        for _ in range(products):
            product = torch.mm(one, other)
        return product[0, 0].item()  # Waits for a GPU.

    return 2 * SIDE**3 * products / min(seconds(multiply) for _ in range(times)) / 1e9


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    return timed(work)[0]


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    """How long it takes, and what comes of it."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def in_turn(rounds: int, **candidates: Callable[[], float]) -> Iterator[dict[str, float]]:
    """Measure all candidates one after the other, and again: what else the machine does meets all of them."""
    for _ in range(rounds):
        yield {name: measure() for name, measure in candidates.items()}


def rate(heads: int, epochs: int, device: str) -> list[str]:
    """A grid's GFLOP/s as a share of sgemm's, and its heads a second against two usual loops."""
    rows = []
    for width in WIDTHS:
        train, val = splits(width)
        configs = _square_grid(heads, epochs)
        usual = configs[1]
        flop = 4 * TRAIN * width * HIDDEN * epochs  # a head: forward product and the weights' gradient
        rounds = [
            {
                **found,
                "GFLOP/s": heads * flop / found["grid"] / 1e9,
                "share": heads * flop / found["grid"] / 1e9 / found["sgemm"],
                "loader": found["loader"] * heads / found["grid"],
                "sliced": found["sliced"] * heads / found["grid"],
            }
            for found in in_turn(
                ROUNDS,
                sgemm=partial(sgemm_rate, device),
                grid=partial(seconds, partial(fit, train, val, configs, device=device)),
                loader=partial(seconds, partial(usual_loop, train, val, usual, loader=True, device=device)),
                sliced=partial(seconds, partial(usual_loop, train, val, usual, loader=False, device=device)),
            )
        ]
        middle = {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}
        rows.append(
            [
                f"{heads} heads, D = {width}",
                f"{middle['sgemm']:.0f}",
                f"{middle['GFLOP/s']:.0f}",
                _between([100 * found["share"] for found in rounds], "{:.0f}"),
                f"{heads * epochs / middle['grid']:.1f}",
                _between([found["loader"] for found in rounds], "{:.1f}"),
                _between([found["sliced"] for found in rounds], "{:.1f}"),
            ]
        )
    header = ["grid", "sgemm, GFLOP/s", "heads, GFLOP/s", "share of sgemm, %", "head epochs/s"]
    return [
        f"H = {HIDDEN}, N = {TRAIN}, batch {BATCH}, Adam, {epochs} epochs. Counted are 4·N·D·H FLOP a head and epoch;",
        f"the time is that of the whole fit, with the val loss of {VAL} images after each epoch. The usual loops train",
        "one head with torch's own modules and optimiser: from a shuffling DataLoader, and over slices of a shuffled",
        f"copy. Medians of {ROUNDS} rounds, all measured in turn in each; least … most in brackets.",
        "",
        *show([*header, "times DataLoader's heads/s", "times the slices'"], rows),
    ]


def _square_grid(heads: int, epochs: int) -> Sequence[HeadConfig]:
    penalties = np.geomspace(1e-6, 1e-2, max(1, heads // 4)).tolist()
    return grid(hidden=[HIDDEN], l2=penalties, lr=[1e-3], seeds=range(4), epochs=epochs, patience=epochs)[:heads]


def _between(values: Sequence[float], form: str) -> str:
    low, middle, high = (form.format(value) for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} … {high})"


def table(device: str) -> list[str]:
    """Seconds for the study's six rows, three seeds each."""
    data = {name: splits(width) for name, width, _ in PAPER}
    rows, total = [], 0.0
    for name, width, penalties in PAPER:
        configs = grid(hidden=[HIDDEN], l2=penalties, lr=[1e-3], seeds=range(3))
        spent, fitted = timed(partial(fit, *data[name], configs, device=device))
        total += spent
        epochs = sum(head.epochs_run for head in fitted)
        loss = statistics.fmean(head.history.val_loss[head.best_epoch] for head in fitted)
        rows.append([name, str(width), str(len(fitted)), str(epochs), f"{loss:.3f}", f"{spent:.1f}"])
    heads, epochs = (sum(int(row[column]) for row in rows) for column in (2, 3))
    rows.append(["in all", "", str(heads), str(epochs), "", f"{total:.1f}"])
    return [
        f"Six rows × 3 seeds, H = {HIDDEN}, N = {TRAIN} + {VAL}, up to 50 epochs, patience 10. Wanted: 60 s.",
        "",
        *show(["backbone", "D", "heads", "epochs run", "mean val loss", "seconds"], rows),
    ]


def linear(device: str, heads: int = 1000, width: int = 1280, sample: int = 12) -> list[str]:
    """Seconds for a grid of linear heads, and for scikit-learn's fits of the same penalties."""
    train, val = splits(width)
    path = np.geomspace(1e-6, 1e-1, heads)
    grids = {
        "one path of 1,000 penalties": grid(hidden=[0], l2=path.tolist(), lr=[1e-3], seeds=[0]),
        "50 penalties × 5 rates × 4 seeds": grid(
            hidden=[0], l2=path[:: heads // 50].tolist(), lr=[1e-4, 3e-4, 1e-3, 3e-3, 1e-2], seeds=range(4)
        ),
    }
    x, y = train.features[:, 0].astype(np.float32), train.labels
    # Ours is mean loss + λ·Σ_k|w_k|², which for two classes is scikit-learn's at C = 1/(λ·N) (heads' tests).
    peers = [
        LogisticRegression(C=1 / (l2 * TRAIN), class_weight="balanced", max_iter=1000)
        for l2 in path[:: heads // sample][:sample]
    ]
    rows = []
    peer = seconds(lambda: [one.fit(x, y) for one in peers]) / len(peers) * heads
    for name, configs in grids.items():
        spent, fitted = timed(partial(fit, train, val, configs, device=device))
        epochs = sum(head.epochs_run for head in fitted)
        rows.append([name, str(epochs), f"{spent:.1f}", f"{peer:.0f}", f"{peer / spent:.1f}"])
    return [
        f"D = {width}, N = {TRAIN} + {VAL}, batch {BATCH}, up to 50 epochs, patience 10. Wanted: 60 s. The peer is",
        "scikit-learn's LogisticRegression (lbfgs, float32, balanced, to its own tolerance) over the same path,",
        f"extrapolated from {len(peers)} fits spread over it. It finds each penalty's optimum; the heads stop at their",
        "lowest val loss.",
        "",
        *show(["grid", "head epochs", "heads, s", "scikit-learn, s", "ratio"], rows),
    ]


def bfloat16(heads: int, epochs: int, device: str) -> list[str]:
    """The rate in bfloat16 against float32, where the processor has such products."""
    if not has_fast_bfloat16(device):
        line = "Not measured: this processor has no products in bfloat16 (AVX512-BF16 or AMX), and `fit` refuses to"
        print(f"{line} emulate them.")
        return [line, "emulate them. What the path computes is tested, not how fast."]
    train, val = splits(WIDTHS[-1])
    configs = _square_grid(heads, epochs)
    low = [replace(config, precision="bfloat16") for config in configs]
    losses: dict[str, list[float]] = {"float32": [], "bfloat16": []}

    def measure(name: str, configs: Sequence[HeadConfig]) -> float:
        spent, fitted = timed(partial(fit, train, val, configs, device=device))
        losses[name] = [head.history.val_loss[head.best_epoch] for head in fitted]
        return spent

    rounds = list(
        in_turn(ROUNDS, float32=lambda: measure("float32", configs), bfloat16=lambda: measure("bfloat16", low))
    )
    apart = statistics.fmean(losses["bfloat16"]) - statistics.fmean(losses["float32"])
    ratio = _between([found["float32"] / found["bfloat16"] for found in rounds], "{:.2f}")
    row = [f"{heads} heads, D = {WIDTHS[-1]}", ratio, f"{apart:+.4f}", f"{statistics.stdev(losses['float32']):.4f}"]
    header = ["grid", "times float32's rate", "mean val loss, less float32's", "sd of val loss over the grid"]
    return show(header, [row])


if __name__ == "__main__":
    main()
