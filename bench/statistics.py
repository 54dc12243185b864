"""How long intervals take, and a report of many rows: ``make bench-statistics``.

Logits are drawn: 1,043 images of val and 624 of test, some 1.5 images a patient as in the study's data set. The
resampling is timed in turn with scikit-learn called once a resample, and with ``scipy.stats.bootstrap``, which knows
images but not patients.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, recall_score

from bench.machine import describe, show, write_section
from heads.experiments.runs import FORMAT_VERSION, HeadRecord, RunRecord, save_run
from heads.experiments.split_logits import KINDS, SplitLogits
from heads.reporting.report import build_report
from heads.statistics.intervals import RESAMPLES, bootstrap
from heads.statistics.metrics import evaluate, probabilities
from heads.training.config import HeadConfig
from heads.training.early_stopping import History

IMAGES = {"train": 4173, "val": 1043, "test": 624}

HEADER = ("step", "seconds", "of a core", "against ours", "wanted")

LOOP = 200
"""Resamples of the loop over scikit-learn, whose time is scaled to ``RESAMPLES``."""


def split_logits(heads: int, images: int, seed: int) -> SplitLogits:
    """Logits of heads that differ a little, right in some nine of ten images."""
    random = np.random.default_rng(seed)
    person = np.sort(random.integers(2 * images // 3, size=images))
    label = (person % 8 >= 3).astype(np.int64)
    margin = np.where(label, 1.6, -1.6) + random.normal(size=images) + 0.3 * random.normal(size=(heads, images))
    clean = np.stack([-margin, margin], axis=2).astype(np.float32)
    return SplitLogits(
        logits=clean,
        logits_view_mean=(clean + 0.3 * random.normal(size=clean.shape)).astype(np.float32),
        label=label,
        image_id=tuple(f"{seed}/{number}.jpeg" for number in range(images)),
        patient_id=tuple(f"{seed}/{number}" for number in person.tolist()),
    )


def write_run(dataset: Path, rows: int, seeds: int) -> None:
    """A run of rows × seeds heads, over four backbones."""
    val, test = (split_logits(rows * seeds, IMAGES[name], seed) for seed, name in enumerate(("val", "test")))
    heads: list[HeadRecord] = []
    for number in range(rows * seeds):
        row, seed = divmod(number, seeds)
        figures = {kind: evaluate(val.of(kind)[number], val.label) for kind in KINDS}
        history = History(
            train_loss=(0.5,),
            train_accuracy=(0.8,),
            penalty=(0.0,),
            val_loss=(figures["clean"].loss,),
            val_accuracy=(figures["clean"].accuracy,),
            val_loss_view_mean=(figures["view_mean"].loss,),
        )
        heads.append(
            HeadRecord(
                backbone=f"network{row % 4}",
                fingerprint=f"{row % 4}" * 64,
                views=4,
                adapted=False,
                config=HeadConfig(l2=1e-6 * (row // 4), seed=seed),
                class_weight=(1.0, 1.0),
                history=history,
                best_epoch=0,
                stop_reason="patience",
                penalty=0.0,
                val=figures["clean"],
                val_view_mean=figures["view_mean"],
            )
        )
    record = RunRecord(
        format_version=FORMAT_VERSION,
        run_id="drawn",
        created="2026-01-01T00:00:00+00:00",
        dataset=dataset.name,
        images_sha256="0" * 64,
        classes=("NORMAL", "PNEUMONIA"),
        positive=1,
        split_rule="patient",
        split_seed=0,
        n=IMAGES,
        straddling=0,
        seconds=0.0,
        provenance={},
        heads=tuple(heads),
    )
    save_run(dataset, record, [{"kernel": np.zeros((1, 1), np.float32)}] * len(heads), val, test)


def by_scikit_learn(truth: NDArray[np.bool_], decision: NDArray[np.bool_], patient: NDArray[Any]) -> None:
    """``LOOP`` resamples of patients, the four figures by scikit-learn in each."""
    random = np.random.default_rng(0)
    rows = [np.flatnonzero(patient == who) for who in np.unique(patient)]
    strata = [[own for own in rows if truth[own[0]] == positive] for positive in (True, False)]
    for _ in range(LOOP):
        drawn = [stratum[k] for stratum in strata for k in random.integers(len(stratum), size=len(stratum))]
        t, d = truth[np.concatenate(drawn)], decision[np.concatenate(drawn)]
        accuracy_score(t, d), recall_score(t, d), recall_score(t, d, pos_label=False), f1_score(t, d)


def by_scipy(truth: NDArray[np.bool_], decision: NDArray[np.bool_]) -> None:
    """The accuracy alone, over images."""
    right = (truth == decision).astype(np.float64)
    stats.bootstrap((right,), np.mean, n_resamples=RESAMPLES, method="percentile", vectorized=True, rng=0)


def measure(rows: int, seeds: int, rounds: int) -> list[tuple[str, str, str, str, str]]:
    """Time everything in turn, and return the table's lines; medians."""
    test = split_logits(1, IMAGES["test"], 1)
    probability, truth = probabilities(test.logits[0])[:, 1], test.label == 1
    patient, decision = np.array(test.patient_id), probability >= 0.5
    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder) / "drawn"
        write_run(dataset, rows, seeds)
        steps: dict[str, tuple[Callable[[], Any], float]] = {
            "ours": (lambda: bootstrap(probability, truth, patient), 1.0),
            "loop": (lambda: by_scikit_learn(truth, decision, patient), RESAMPLES / LOOP),
            "scipy": (lambda: by_scipy(truth, decision), 1.0),
            "report": (lambda: build_report(dataset), 1.0),
            "ensembles": (lambda: build_report(dataset, ensembles=True), 1.0),
        }
        laps: dict[str, list[float]] = {name: [] for name in steps}
        used: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(rounds):
            for name, (step, scale) in steps.items():
                started, busy = time.perf_counter(), time.process_time()
                step()
                laps[name].append(scale * (time.perf_counter() - started))
                used[name].append(scale * (time.process_time() - busy))
    # Where other work has the cores, the seconds of a core tell more than the clock's.
    took = {name: f"{statistics.median(every):.3g}" for name, every in laps.items()}
    core = {name: f"{statistics.median(every):.3g}" for name, every in used.items()}
    ratio = {
        name: statistics.median(peer / own for peer, own in zip(used[name], used["ours"], strict=True))
        for name in ("loop", "scipy")
    }
    drawn = f"{RESAMPLES:,} resamples of {IMAGES['test']} images"
    heads = f"{rows} rows × {seeds} seeds"
    return [
        (f"{drawn} by patient: accuracy, sensitivity, specificity, F1", took["ours"], core["ours"], "", "2"),
        (
            f"the same, scikit-learn in a loop (of {LOOP}, scaled)",
            took["loop"],
            core["loop"],
            f"{ratio['loop']:.0f} ×",
            "",
        ),
        (
            "scipy.stats.bootstrap: accuracy alone, by image",
            took["scipy"],
            core["scipy"],
            f"{ratio['scipy']:.1f} ×",
            "",
        ),
        (f"a report of {heads}, all figures, intervals and tests", took["report"], core["report"], "", "10"),
        (f"the same with its ensembles, {2 * rows + 1} rows or more", took["ensembles"], core["ensembles"], "", ""),
    ]


def main() -> None:
    """Measure, print, and write the section on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="replace the section in docs/benchmarks.md")
    options = parser.parse_args()
    about = describe()
    lines = show(HEADER, measure(options.rows, options.seeds, options.rounds))
    if options.write:
        text = f"Medians of {options.rounds} rounds, all steps in turn in each; ratios are of seconds of a core."
        write_section("statistics", "Intervals and the report", [*about, "", text, "", *lines])


if __name__ == "__main__":
    main()
