from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from featcache.backbones import Backbone, load_backbone
from featcache.check import scan
from featcache.errors import BackboneError
from featcache.extraction import extract
from featcache.images import discover
from featcache.index import PARTS_NAME
from featcache.parts import read_features, read_header, write_part
from featcache.recompute import recompute
from featcache.runtime import Compute
from featcache.store import FeatureStore, open_store

COMPUTE = Compute(device="cpu", runtime="torch", precision="float32", batch_size=8, threads=2)


@pytest.fixture
def films(phantoms: Path, tmp_path: Path) -> Path:
    shutil.copytree(phantoms, tmp_path / "films")
    return tmp_path / "films"


@pytest.fixture
def store(films: Path, tmp_path: Path, tiny: Backbone) -> FeatureStore:
    (summary,) = extract(scan(discover(films), films), films, tmp_path / "cache", [tiny], views=2, compute=COMPUTE)
    return open_store(summary.store)


def test_rows_computed_again_are_equal_in_every_byte(store: FeatureStore, films: Path, tiny: Backbone) -> None:
    seen: list[tuple[int, int]] = []
    found = recompute(store, films, tiny, 25, compute=COMPUTE, on_row=lambda *step: seen.append(step))
    assert (found.rows, found.equal, found.least_cosine, found.wrong, found.unreadable) == (25, 25, 1.0, (), ())
    assert seen == [(number, 25) for number in range(1, 26)]
    assert found.in_words() == f"{store.path}: 25 rows computed again, 25 equal in every byte"
    assert recompute(store, films, tiny, 10_000, compute=COMPUTE).rows == 2 * 88


def test_a_row_that_holds_another_images_feature_is_found_though_its_checksum_fits(
    store: FeatureStore, films: Path, tiny: Backbone
) -> None:
    (path,) = (store.path / PARTS_NAME).glob("part-*.h5")
    header = read_header(path)
    features = read_features(header).astype(np.float32)
    features[[3, 4]] = features[[4, 3]] * np.linspace(-1, 1, features.shape[-1])
    write_part(path.parent, header.spec, header.image_sha256, header.views, features.astype(np.float32), {})
    found = recompute(store, films, tiny, 2 * 88, compute=COMPUTE)
    swapped = store.image_table.image_id[np.isin(store.image_table.sha256, header.image_sha256[3:5])]
    assert {line.partition(",")[0] for line in found.wrong} == set(swapped)
    assert len(found.wrong) == 4
    assert found.equal == 2 * 88 - 4


def test_a_last_bit_is_told_and_not_called_wrong(store: FeatureStore, films: Path, tiny: Backbone) -> None:
    (path,) = (store.path / PARTS_NAME).glob("part-*.h5")
    header = read_header(path)
    features = read_features(header).copy()
    features[5] = np.nextafter(features[5], np.float16(9))
    write_part(path.parent, header.spec, header.image_sha256, header.views, features.astype(np.float32), {})
    found = recompute(store, films, tiny, 2 * 88, compute=COMPUTE)
    assert (found.wrong, found.equal) == ((), 2 * 88 - 2)
    assert 0.999 < found.least_cosine < 1
    assert "174 equal in every byte, the others agree to a cosine of " in found.in_words()


def test_an_image_that_has_changed_or_gone_is_listed_and_not_compared(
    store: FeatureStore, films: Path, tiny: Backbone
) -> None:
    gone, changed = (films / image_id for image_id in store.image_table.image_id[:2])
    gone.unlink()
    changed.write_bytes(changed.read_bytes() + b" ")
    seen: list[tuple[int, int]] = []
    found = recompute(store, films, tiny, 2 * 88, compute=COMPUTE, on_row=lambda *step: seen.append(step))
    assert seen[-1] == (2 * 88, 2 * 88)
    assert len(found.unreadable) == 4
    assert (found.rows, found.equal) == (2 * 86, 2 * 86)
    assert found.in_words().endswith("; 4 images are not here or have changed")


def test_another_network_is_refused_with_the_way_out(store: FeatureStore, films: Path) -> None:
    way_out = "name the weights that made it with --backbone tiny_network:tiny --weights FILE"
    with pytest.raises(BackboneError, match=rf"weights_sha256 .* against .*: {way_out}"):
        recompute(store, films, load_backbone("tiny_network:other"), 3, compute=COMPUTE)


def test_a_float32_part_is_compared_as_it_is_stored(store: FeatureStore, films: Path, tiny: Backbone) -> None:
    (path,) = (store.path / PARTS_NAME).glob("part-*.h5")
    header = read_header(path)
    assert header.dtype == "float16"
    features = read_features(header).astype(np.float32)
    features[7, 0, 0] = 1e6
    write_part(path.parent, header.spec, header.image_sha256, header.views, features, {})
    with h5py.File(path) as file:
        assert file["features"].dtype == np.float32
    found = recompute(store, films, tiny, 2 * 88, compute=COMPUTE)
    assert len(found.wrong) == 1
    assert found.equal == 2 * 88 - 1
    assert dataclasses.asdict(found)["wrong"] == found.wrong
