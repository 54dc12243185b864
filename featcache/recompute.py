"""Trust, but compute again: some random rows of a store, compared with what is stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featcache.backbones import Backbone
from featcache.errors import StoreError
from featcache.loading import Rendering, Wanted, load_ahead
from featcache.making import geometry_of
from featcache.parts import stored_as
from featcache.reproduction import forward_of
from featcache.runtime import Compute
from featcache.store import FeatureStore

LEAST_COSINE = 0.999
"""Below it a row is called wrong; other versions of a runtime differ in the last bits, and never so much."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recomputed:
    """What came of it.

    Attributes:
        store: the store's folder.
        rows: rows computed again.
        equal: those that agree in every byte.
        least_cosine: of the others to what is stored; 1 where there are none.
        wrong: image and view of each row that is something else than it should be.
        unreadable: images that are not here any more, or have changed, and so could not be compared.
        refused: why no row could be computed here; empty when some could.
    """

    store: str
    rows: int
    equal: int
    least_cosine: float
    wrong: tuple[str, ...]
    unreadable: tuple[str, ...]
    refused: str = ""

    def in_words(self) -> str:
        """The same, as a sentence."""
        if self.refused:
            return f"{self.store}: no row computed again"
        rest = "" if self.equal == self.rows else f", the others agree to a cosine of {self.least_cosine:.6f} or better"
        lost = f"; {len(self.unreadable)} images are not here or have changed" if self.unreadable else ""
        return f"{self.store}: {self.rows} rows computed again, {self.equal} equal in every byte{rest}{lost}"


def recompute(
    store: FeatureStore,
    root: Path,
    backbone: Backbone,
    count: int,
    *,
    seed: int = 0,
    compute: Compute | None = None,
    on_row: Callable[[int, int], None] = lambda *_: None,
) -> Recomputed:
    """Compute random rows of a store again and compare them.

    Args:
        store: the store.
        root: where its images lie.
        backbone: the network of the store's spec.
        count: rows, at most as many as there are.
        seed: decides which.
        compute: device, batch size and threads; runtime and precision are the spec's.
        on_row: told of rows done and in all.

    Raises:
        BackboneError: the backbone, or the decoder here, is not that of the spec, or it does not run here.
        StoreError: a part is damaged.
    """
    spec, compute = store.spec, compute or Compute()
    rows = _chosen(store, count, seed)
    flags = f"--backbone {spec.backbone} --weights FILE"
    forward, batch_size = forward_of(store, backbone, compute, flags=flags)
    wanted = [_wanted(store, row, view) for row, view in rows]
    wrong, unreadable, equal, least = [], [], 0, 1.0
    pixels = np.zeros((batch_size, 3, spec.image_size, spec.image_size), np.uint8)
    with load_ahead(root, wanted, compute.threads) as images:
        for number, (image, (row, view)) in enumerate(zip(images, rows, strict=True)):
            name = f"{store.image_table.image_id[row]}, view {view}"
            on_row(number + 1, len(rows))
            if image.reason:
                unreadable.append(f"{name}: {image.reason}")
                continue
            (views,) = image.views.values()
            pixels[0] = views[0]
            made = forward(pixels)[0]
            kept = store.features([str(store.image_table.image_id[row])], view)[0]
            cosine = _cosine(made, kept)
            if np.array_equal(stored_as(made, spec.dtype).astype(np.float32), kept):
                equal += 1
            elif cosine < LEAST_COSINE:
                wrong.append(f"{name}: cosine {cosine:.4f} to what is stored")
            else:
                least = min(least, cosine)
    return Recomputed(
        store=str(store.path),
        rows=len(rows) - len(unreadable),
        equal=equal,
        least_cosine=least,
        wrong=tuple(wrong),
        unreadable=tuple(unreadable),
    )


def _chosen(store: FeatureStore, count: int, seed: int) -> list[tuple[int, int]]:
    """Rows of the table and views, at random among those that are there, in the order of the table.

    Raises:
        StoreError: there are none.
    """
    there = np.argwhere(store.part >= 0)
    if not len(there):
        raise StoreError(f"{store.path} holds no features: run 'cxr extract' first")
    chosen = np.random.default_rng(seed).choice(len(there), min(count, len(there)), replace=False)
    return [(int(row), int(view)) for row, view in there[np.sort(chosen)]]


def _wanted(store: FeatureStore, row: int, view: int) -> Wanted:
    rendering = Rendering(geometry=geometry_of(store.spec), floor=store.spec.decode_floor, views=range(view, view + 1))
    table = store.image_table
    return Wanted(image_id=str(table.image_id[row]), sha256=str(table.sha256[row]), renderings=frozenset([rendering]))


def _cosine(made: NDArray[np.float32], kept: NDArray[np.float32]) -> float:
    one, other = made.astype(np.float64), kept.astype(np.float64)
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / lengths if lengths else float(np.array_equal(one, other))
