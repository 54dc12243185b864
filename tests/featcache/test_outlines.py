from __future__ import annotations

import dataclasses
import io
import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from featcache.encoding import ImageFile, clean_view
from featcache.errors import UnreadableImageError
from featcache.outlines import SIDE, outline, outlines_of
from featcache.phantom import phantom
from featcache.store import open_store


def some_view(seed: int, side: int = 64, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(20, 200, (channels, side, side)).astype(np.uint8)


@pytest.mark.parametrize("side", [8, 64, 100, 224, 260])
def test_an_outline_is_the_fields_means_less_their_mean_at_length_1(side: int) -> None:
    view = some_view(side, side, 3)
    edges = [number * side // SIDE for number in range(SIDE + 1)]
    fields = np.array(
        [
            view[:, top:bottom, left:right].mean()
            for top, bottom in itertools.pairwise(edges)
            for left, right in itertools.pairwise(edges)
        ]
    )
    expected = fields - fields.mean()
    np.testing.assert_allclose(outline(view), expected / np.linalg.norm(expected), atol=1e-5)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_the_product_of_two_outlines_is_the_correlation_of_their_fields(one: int, other: int) -> None:
    views = [some_view(seed, 16) for seed in (one, other)]
    fields = [view[0].reshape(8, 2, 8, 2).mean((1, 3)).ravel() for view in views]
    expected = np.corrcoef(fields)[0, 1]
    assert float(outline(views[0]) @ outline(views[1])) == pytest.approx(expected, abs=1e-4)


def test_exposure_and_contrast_do_not_count_and_a_negative_has_the_opposite_outline() -> None:
    view = some_view(0)
    np.testing.assert_allclose(outline(view + np.uint8(50)), outline(view), atol=1e-5)
    np.testing.assert_allclose(outline(np.uint8(255) - view), -outline(view), atol=1e-5)
    np.testing.assert_allclose(outline(np.repeat(view, 3, axis=0)), outline(view), atol=1e-5)


@pytest.mark.parametrize("grey", [0, 77, 255])
def test_an_image_of_one_grey_has_no_outline(grey: int) -> None:
    assert not outline(np.full((1, 224, 224), grey, np.uint8)).any()


def test_outlines_of_a_data_set_are_those_of_the_files_clean_views(phantom_store: Path, phantoms: Path) -> None:
    store = open_store(phantom_store)
    rows = np.array([5, 0, 17])
    names = store.image_table.image_id[rows].tolist()
    files = [ImageFile(name=name, data=(phantoms / name).read_bytes()) for name in names]
    expected = np.stack([outline(clean_view(file, store.spec)) for file in files])
    np.testing.assert_array_equal(outlines_of(store.image_table, rows, phantoms, store.spec, threads=2), expected)
    assert len(np.unique(expected, axis=0)) == 3


def test_a_film_that_changed_or_is_gone_is_named(phantom_store: Path, phantoms: Path, tmp_path: Path) -> None:
    store, films = open_store(phantom_store), tmp_path / "films"
    shutil.copytree(phantoms, films)
    name = str(store.image_table.image_id[3])
    file = io.BytesIO()
    Image.fromarray(phantom(9, size=64, lesion=False)[0]).save(file, "JPEG")
    (films / name).write_bytes(file.getvalue())
    with pytest.raises(UnreadableImageError, match=f"^{name}: its content changed"):
        outlines_of(store.image_table, np.arange(6), films, store.spec)
    (films / name).unlink()
    with pytest.raises(UnreadableImageError, match=f"^{name}: "):
        outlines_of(store.image_table, np.arange(6), films, store.spec)


def test_the_threads_do_not_decide_the_outlines(phantom_store: Path, phantoms: Path) -> None:
    store = open_store(phantom_store)
    rows = np.arange(len(store.image_table))
    found = [outlines_of(store.image_table, rows, phantoms, store.spec, threads) for threads in (1, 3)]
    assert found[0].tobytes() == found[1].tobytes()
    other = dataclasses.replace(store.spec, image_size=32, resize_side=32)
    correlation = (outlines_of(store.image_table, rows, phantoms, other) * found[0]).sum(axis=1)
    assert correlation.min() > 0.98  # networks of other squares see the same outline
