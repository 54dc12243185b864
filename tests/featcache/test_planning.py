"""What is missing, how it is cut into parts, and the index over them, against loops that anyone can check."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import SPEC

from featcache import planning
from featcache.check import Scan
from featcache.images import ImageTable, strings
from featcache.index import INDEX_NAME, PARTS_NAME, read_index, write_index
from featcache.parts import PartHeader, read_header, write_part
from featcache.planning import chunks_of, first_missing, plan, store_folder
from featcache.runtime import Compute
from featcache.store import open_store, part_headers

DIGESTS = [hashlib.sha256(bytes([number])).hexdigest() for number in range(8)]
"""Few, so that tables and parts share many of them."""

Held = tuple[list[str], range]
"""A part's hashes and views."""


@st.composite
def parts(draw: st.DrawFn) -> list[Held]:
    """Parts of some of the images and a range of views, overlapping or with gaps between them."""
    held = []
    for _ in range(draw(st.integers(0, 5))):
        digests = draw(st.lists(st.sampled_from(DIGESTS), min_size=1, max_size=5, unique=True))
        first = draw(st.integers(0, 2))
        held.append((digests, range(first, first + draw(st.integers(1, 3)))))
    return held


tables = st.lists(st.sampled_from(DIGESTS), min_size=1, max_size=14)
"""Hashes of a table's images, copies among them."""


def scan_of(digests: Sequence[str]) -> Scan:
    count = len(digests)
    names, labels = [f"films/{row}.png" for row in range(count)], ["NORMAL", "PNEUMONIA"] * count
    table = ImageTable.from_columns(names, labels[:count], names, [""] * count, ("NORMAL", "PNEUMONIA"))
    return Scan(table=replace(table, sha256=strings(list(digests))), quarantined=(), odd=())


def value(digest: str, view: int) -> float:
    """What the only feature of an image's view is, in these tests."""
    return DIGESTS.index(digest) + view / 8


@dataclass(frozen=True, kw_only=True)
class Made:
    """A data set's folder, and its store of some parts."""

    dataset: Path
    store: Path
    headers: list[PartHeader]


def made(folder: Path, held: Sequence[Held]) -> Made:
    store = store_folder(folder, SPEC)
    (store / PARTS_NAME).mkdir(parents=True)
    for digests, views in held:
        features = np.array([[[value(digest, view)] for view in views] for digest in digests], np.float32)
        write_part(store / PARTS_NAME, SPEC, digests, views, features, {})
    return Made(
        dataset=folder, store=store, headers=[one for one in part_headers(store, SPEC) if isinstance(one, PartHeader)]
    )


@pytest.fixture(autouse=True)
def _one_spec() -> Iterator[None]:
    """Whatever the backbone, its features are made by ``SPEC``."""
    with mock.patch.object(planning, "spec_of", return_value=SPEC):
        yield


NONE: Any = SimpleNamespace()
"""Stands for a backbone; nothing is asked of it."""


def missing_of(digest: str, held: Sequence[Held]) -> int:
    """The first view that no part has of an image."""
    view = 0
    while any(digest in digests and view in views for digests, views in held):
        view += 1
    return view


@settings(max_examples=40)
@given(table=tables, held=parts())
def test_the_plan_is_that_of_a_loop(table: list[str], held: list[Held]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = made(Path(folder), held)
        job = plan(scan_of(table), store.dataset, NONE, 0, Compute(device="cpu"))
        wanted = [missing_of(digest, held) for digest in table]
        assert (job.store, job.spec, job.replaced) == (store.store, SPEC, ())
        assert job.first_missing.tolist() == wanted
        assert first_missing(scan_of(table).table.sha256, store.headers[::-1]).tolist() == wanted


@given(
    table=tables,
    lacks=st.lists(st.lists(st.integers(0, 3), min_size=14, max_size=14), min_size=1, max_size=3),
    views=st.integers(1, 3),
    part_images=st.integers(1, 6),
)
def test_the_cut_is_that_of_a_loop(table: list[str], lacks: list[list[int]], views: int, part_images: int) -> None:
    firsts = [row for row, digest in enumerate(table) if digest not in table[:row]]
    wanted = []
    for number, start in enumerate(range(0, len(firsts), part_images)):
        rows = [
            row for row in firsts[start : start + part_images] if any(of_backbone[row] < views for of_backbone in lacks)
        ]
        if rows:
            wanted.append((number, rows))
    jobs: Any = [SimpleNamespace(first_missing=np.array(of_backbone[: len(table)])) for of_backbone in lacks]
    assert chunks_of(scan_of(table), jobs, views, part_images) == wanted


@settings(max_examples=40)
@given(table=tables, held=parts())
def test_the_index_holds_what_the_parts_hold_for_every_copy_of_an_image(table: list[str], held: list[Held]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = made(Path(folder), held)
        write_index(store.store, SPEC, scan_of(table), store.headers)
        part = read_index(store.store).part
        there = [[any(digest in of and view in views for of, views in held) for view in range(6)] for digest in table]
        count = part.shape[1]
        assert count == max((views[-1] + 1 for _, views in held), default=1)
        assert (part >= 0).tolist() == [row[:count] for row in there]
        for row, digest in enumerate(table):
            for view in np.flatnonzero(part[row] >= 0).tolist():
                header = store.headers[part[row, view]]
                assert digest in header.image_sha256
                assert view in header.views
        if held:
            wanted = [[value(digest, view) for view in range(count)] for digest in table]
            with h5py.File(store.store / INDEX_NAME) as file:
                features = file["features"][:, :, 0]
            assert np.array_equal(features, np.where(part >= 0, wanted, np.nan), equal_nan=True)


def test_an_image_without_features_is_nan_though_two_parts_share_those_of_another(tmp_path: Path) -> None:
    # Both parts' elements together are as many as the index has, which HDF5 took for all of it.
    store = made(tmp_path, [(DIGESTS[:1], range(1)), (DIGESTS[:1], range(2))])
    write_index(store.store, SPEC, scan_of([DIGESTS[0], DIGESTS[0], DIGESTS[1]]), store.headers)
    with h5py.File(store.store / INDEX_NAME) as file:
        features = file["features"][:, :, 0]
    assert np.array_equal(features, [[0, 1 / 8], [0, 1 / 8], [np.nan, np.nan]], equal_nan=True)


@settings(max_examples=40)
@given(table=tables, held=parts(), random=st.randoms(use_true_random=False))
def test_features_come_in_the_order_asked_for_from_any_parts(table: list[str], held: list[Held], random: Any) -> None:
    # Two whole parts, so that all is there, beside those that overlap them.
    held = [*held, (DIGESTS[:4], range(3)), (DIGESTS[4:], range(3))]
    with tempfile.TemporaryDirectory() as folder:
        store = made(Path(folder), held)
        scanned = scan_of(table)
        write_index(store.store, SPEC, scanned, store.headers)
        rows = random.sample(range(len(table)), random.randint(1, len(table)))
        views = open_store(store.store).views(scanned.table.image_id[rows].tolist(), count=3)
        assert views[:, :, 0].tolist() == [[value(table[row], view) for view in range(3)] for row in rows]


def test_a_header_is_read_without_the_features(tmp_path: Path) -> None:
    written = write_part(tmp_path, SPEC, DIGESTS[:2], range(1), np.zeros((2, 1, 4), np.float32), {})
    with h5py.File(written) as file:
        offset, size = file["features"].id.get_offset(), file["features"].nbytes
    data = written.read_bytes()
    written.write_bytes(data[:offset] + b"\xff" * size + data[offset + size :])
    assert read_header(written, SPEC).image_sha256 == tuple(DIGESTS[:2])
