"""What is flagged, of films and all else: ``make bench-trust DATA=chest_xray FOREIGN=pictures``.

Test stays closed: ``TEST=1`` opens it, once the rule is written down, and writes docs/trust.md.

The stores of the data set lie in the cache. ``pictures`` holds folders of JPEG and PNG files, one a kind of picture;
what needs no files (blank, noise, drawn legs, films inverted and turned) is made here.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.foreign import FAULTS, LESSER, blanks, lower_leg, noises, png
from bench.machine import describe, show, write_section
from featcache.encoding import ImageFile, clean_view, encode
from featcache.folds import Fold, block_folds, series_folds
from featcache.outlines import outline, outlines_of
from featcache.reproduction import backbone_of
from featcache.settings import Settings, load_settings
from featcache.splits import patient_groups, split
from featcache.store import FeatureStore
from featcache.workspace import compute_of, open_stores
from heads.prediction.distance import DistanceReference
from heads.statistics.intervals import wilson

PAGE = Path(__file__).parents[1] / "docs" / "trust.md"
FILMS, LEGS = 200, 40


def pictures(store: FeatureStore, val: NDArray[np.int64], root: Path, foreign: Path) -> dict[str, list[ImageFile]]:
    """Files by kind: made of val films, drawn, and read from the folders below ``foreign``."""
    drawn = {
        "blank (black, white, grey, ramps)": blanks(),
        "noise": noises(),
        "lower leg, drawn": [lower_leg(seed) for seed in range(LEGS)],
    }
    chosen = np.random.default_rng(0).choice(val, min(FILMS, len(val)), replace=False)
    films = [Image.open(root / name).convert("L") for name in store.image_table.image_id[np.sort(chosen)].tolist()]
    changed = {f"val, {kind}": [change(film) for film in films] for kind, change in (FAULTS | LESSER).items()}
    kinds = {
        kind: [ImageFile(name=f"{kind} {number}", data=png(image)) for number, image in enumerate(images)]
        for kind, images in (changed | drawn).items()
    }
    for folder in sorted(path for path in foreign.iterdir() if path.is_dir()):
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        kinds[folder.name] = [ImageFile(name=path.name, data=path.read_bytes()) for path in files]
    return {kind: files for kind, files in kinds.items() if files}


class Measured:
    """Features and outlines of a store's images, and what a reference says of them."""

    def __init__(self, store: FeatureStore, root: Path) -> None:
        self.table = store.image_table
        self.features = store.features()
        self.outlines = outlines_of(self.table, np.arange(len(self.table)), root, store.spec)

    def reference(self, train: NDArray[np.int64], val: NDArray[np.int64]) -> DistanceReference:
        """Fitted on some rows, its limit by others."""
        return DistanceReference.fit(self.features[train], self.features[val], self.outlines[train], self.outlines[val])

    def flagged(self, reference: DistanceReference, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of some rows are flagged."""
        return reference.flagged(self.features[rows], self.outlines[rows])

    def held_out(self, fold: Fold, seed: int) -> float:
        """Share of a fold that is flagged; a fifth of the other patients sets the limit."""
        patient = patient_groups(self.table)[fold.rest]
        known = np.unique(patient)
        limit = np.isin(patient, np.random.default_rng(seed).choice(known, len(known) // 5, replace=False))
        return float(self.flagged(self.reference(fold.rest[~limit], fold.rest[limit]), fold.held_out).mean())


def measure(
    store: FeatureStore, root: Path, foreign: Path, settings: Settings, *, sealed: bool
) -> dict[str, tuple[int, float]]:
    """Images and share flagged, by kind, for one store."""
    measured, table = Measured(store, root), store.image_table
    parts = split(table, settings.split, seed=settings.split_seed)
    started = time.perf_counter()
    reference = measured.reference(parts.train, parts.val)
    seconds = time.perf_counter() - started
    size = sum(array.nbytes for array in reference.to_arrays().values())
    print(f"{store.backbone}: fitted in {seconds:.1f} s, {size / 1e6:.2f} MB")

    found = {"val (5 by construction)": (len(parts.val), float(measured.flagged(reference, parts.val).mean()))}
    rows = np.sort(np.concatenate([parts.train, parts.val]))
    for kind, folds in (("blocks of patients", block_folds(table, rows)), ("name series", series_folds(table, rows))):
        shares = [measured.held_out(fold, seed) for seed, fold in enumerate(folds)]
        if shares:
            images = sum(len(fold.held_out) for fold in folds)
            found[f"held-out {kind}, mean"] = (images, statistics.mean(shares))
            found[f"held-out {kind}, worst"] = (images, max(shares))
    backbone = backbone_of(store, settings)
    for kind, files in pictures(store, parts.val, root, foreign).items():
        outlines = np.stack([outline(clean_view(file, store.spec)) for file in files])
        features = encode(files, store, backbone, compute_of(settings))
        found[kind] = (len(files), float(reference.flagged(features, outlines).mean()))
    of_class = [(name, parts.test[table.label[parts.test] == label]) for label, name in enumerate(table.classes)]
    for name, chosen in [] if sealed else [("all", parts.test), *of_class]:
        found[f"test, {name}"] = (len(chosen), float(measured.flagged(reference, chosen).mean()))
    return found


def rows_of(found: Sequence[dict[str, tuple[int, float]]]) -> list[list[str]]:
    """A line a kind: images, and the share flagged for each store, in percent, with its interval."""
    return [
        [
            kind,
            str(images),
            *(_told(one[kind][1], images, alone=not kind.startswith(("val (", "held-out"))) for one in found),
        ]
        for kind, (images, _) in found[0].items()
    ]


def _told(share: float, images: int, *, alone: bool) -> str:
    """A share in percent, with Wilson's interval where it is one of so many images and no figure of several folds."""
    found = wilson(share, images)
    return f"{100 * share:.1f}" + (f" ({100 * found.low:.0f}–{100 * found.high:.0f})" if alone else "")


def main() -> None:
    """Measure every store, print the table, and write it."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--data", type=Path, required=True, help="the data set's folder")
    arguments.add_argument("--cache", type=Path, help="where its stores lie")
    arguments.add_argument("--foreign", type=Path, required=True, help="a folder of folders of pictures")
    arguments.add_argument("--backbone", action="append", default=[], help="with --weights, in the same order")
    arguments.add_argument("--weights", action="append", default=[], help="a file, or 'pretrained'")
    arguments.add_argument("--test", action="store_true", help="open test: for those who choose no more")
    arguments.add_argument("--write", action="store_true", help="write the table into docs/trust.md")
    given = arguments.parse_args()
    named = {"backbone": given.backbone, "weights": given.weights, "cache": given.cache}
    settings = load_settings({"data": given.data} | {name: value for name, value in named.items() if value})
    stores = open_stores(settings, settings.backbone if given.backbone else ())
    found = [measure(store, given.data, given.foreign, settings, sealed=not given.test) for store in stores]
    lines = show(
        ["flagged, % (95 % interval)", "n", *(store.backbone.partition("@")[0] for store in stores)], rows_of(found)
    )
    if given.write:
        write_section("trust", "What is flagged", [*describe(), "", *lines], PAGE)


if __name__ == "__main__":
    main()
