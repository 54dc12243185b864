from __future__ import annotations

import dataclasses
import hashlib
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from featcache.errors import BackboneError, StoreError
from featcache.parts import (
    LIBVER,
    FeatureArray,
    PartHeader,
    checksum,
    part_name,
    read_features,
    read_header,
    write_part,
)
from featcache.spec import FeatureSpec

SPEC = FeatureSpec(
    backbone="made",
    weights_sha256="0" * 64,
    image_size=32,
    resize_side=32,
    interpolation="bilinear",
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    decoder="pillow-13",
    decode_floor=512,
)
DIGESTS = [hashlib.sha256(bytes([number])).hexdigest() for number in range(6)]
FEATURES = np.random.default_rng(0).standard_normal((6, 2, 8)).astype(np.float32)
"""Of six images and two views, [6, 2, 8]."""

WAY_OUT = (
    "delete it with 'cxr cache verify --remove-damaged', then run 'cxr extract' again, which makes only what is missing"
)


def written(
    folder: Path,
    features: NDArray[np.float32] = FEATURES,
    views: Sequence[int] = range(2),
    spec: FeatureSpec = SPEC,
) -> Path:
    provenance: dict[str, str | int] = {
        "cxr": "0.1.0",
        "torch": "2.15",
        "timm": "1.0",
        "pillow": "13",
        "batch_size": 16,
    }
    return write_part(folder, spec, DIGESTS[: len(features)], views, features, provenance)


def read(path: Path, spec: FeatureSpec | None = None) -> tuple[PartHeader, FeatureArray]:
    header = read_header(path, spec)
    return header, read_features(header)


def refused(path: Path, spec: FeatureSpec | None = None) -> str:
    with pytest.raises(StoreError) as caught:
        read(path, spec)
    return str(caught.value)


def damage(path: Path, reason: str) -> str:
    return f"{path} is damaged ({reason}): {WAY_OUT}"


# --- what is written is read


@given(
    images=st.integers(1, 6),
    views=st.integers(1, 3),
    dim=st.integers(1, 9),
    first=st.integers(0, 5),
    seed=st.integers(0),
)
def test_what_was_written_is_read_back_rounded_to_float16(
    tmp_path_factory: pytest.TempPathFactory, images: int, views: int, dim: int, first: int, seed: int
) -> None:
    features = np.random.default_rng(seed).uniform(-60_000, 60_000, (images, views, dim)).astype(np.float32)
    folder = tmp_path_factory.mktemp("part")
    path = written(folder, features, range(first, first + views))
    header, found = read(path, SPEC)
    assert header == PartHeader(
        path=path,
        spec=SPEC,
        image_sha256=tuple(DIGESTS[:images]),
        views=tuple(range(first, first + views)),
        dim=dim,
        dtype="float16",
        checksum=header.checksum,
    )
    assert found.dtype == np.float16
    assert np.array_equal(found, features.astype(np.float16))
    shutil.rmtree(folder)


def test_a_part_with_a_value_beyond_float16_keeps_it_in_float32(tmp_path: Path) -> None:
    features = FEATURES.copy()
    features[2, 1, 3] = 70_000
    header, found = read(written(tmp_path, features))
    assert (header.dtype, found.dtype.name) == ("float32", "float32")
    assert found[2, 1, 3] == 70_000


def test_no_value_depends_on_a_neighbour_that_overflows(tmp_path: Path) -> None:
    features = FEATURES.copy()
    features[2, 1, 3] = -1e30
    alone = read(written(tmp_path / "alone"))[1].astype(np.float32)
    beside = read(written(tmp_path / "beside", features))[1]
    assert beside[2, 1, 3] == np.float32(-1e30)
    beside[2, 1, 3] = alone[2, 1, 3]
    assert np.array_equal(beside, alone)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_feature_that_is_no_finite_number_is_refused_and_nothing_is_written(tmp_path: Path, value: float) -> None:
    features = FEATURES.copy()
    features[4, 0, 0] = value
    with pytest.raises(BackboneError) as caught:
        written(tmp_path, features)
    assert str(caught.value) == (
        "made in float32 gives features that are no finite numbers for 1 of 6 images "
        f"(such as that of SHA-256 {DIGESTS[4]}): try --precision float32"
    )
    assert list(tmp_path.iterdir()) == []


def test_equal_parts_are_equal_files_of_equal_name(tmp_path: Path) -> None:
    one, other = written(tmp_path / "one"), written(tmp_path / "other")
    assert one.name == other.name == part_name(DIGESTS, range(2))
    assert one.read_bytes() == other.read_bytes()


def test_the_name_tells_images_order_and_views_apart() -> None:
    names = {
        part_name(DIGESTS, range(2)),
        part_name(DIGESTS, range(3)),
        part_name(DIGESTS, range(1, 3)),
        part_name(DIGESTS[:5], range(2)),
        part_name(DIGESTS[::-1], range(2)),
    }
    assert len(names) == 5


def test_a_part_is_what_the_format_says_to_any_hdf5_reader(tmp_path: Path) -> None:
    with h5py.File(written(tmp_path)) as file:
        assert set(file) == {"features", "image_sha256", "view"}
        assert file["features"].dtype == np.dtype("<f2")
        assert (file["features"].chunks, file["features"].compression) == (None, None)
        assert np.array_equal(file["features"][:], FEATURES.astype(np.float16))
        assert file["image_sha256"].asstr()[:].tolist() == DIGESTS
        assert file["image_sha256"].dtype == np.dtype("S64")
        assert file["view"].dtype == np.dtype("<i4")
        attributes = dict(file.attrs)
    assert attributes["format"] == b"cxr-feature-part"
    assert attributes["format_version"] == 1
    assert attributes["spec"].decode() == SPEC.to_json()
    assert attributes["checksum_algorithm"] == b"xxh3_128"
    assert attributes["provenance_torch"] == b"2.15"
    assert attributes["provenance_batch_size"] == 16


def test_the_checksum_covers_spec_hashes_views_and_features() -> None:
    half = FEATURES.astype(np.float16)
    text = SPEC.to_json()
    sums = {
        checksum(text, DIGESTS, range(2), half),
        checksum(text + " ", DIGESTS, range(2), half),
        checksum(text, DIGESTS[::-1], range(2), half),
        checksum(text, DIGESTS, range(1, 3), half),
        checksum(text, DIGESTS, range(2), half[::-1]),
        checksum(text, DIGESTS, range(2), -half),
    }
    assert len(sums) == 6
    big_endian = half.astype(">f2")
    assert checksum(text, DIGESTS, range(2), big_endian) == checksum(text, DIGESTS, range(2), half)


# --- damage


def test_a_flipped_byte_is_found_or_harmless_wherever_it_is(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    header, features = read(path)
    rng = random.Random(1)  # noqa: S311 - no secret is made here
    found = 0
    for offset in rng.sample(range(len(whole)), 250):
        data = bytearray(whole)
        data[offset] ^= rng.choice((1, 16, 128, 255, rng.randrange(1, 256)))
        path.write_bytes(data)
        try:
            seen, values = read(path, SPEC)
        except StoreError as error:
            assert str(path) in str(error)  # noqa: PT017 - the claim is either this or what follows
            found += 1
        else:
            assert seen == header, f"byte {offset}"
            assert values.dtype == features.dtype
            assert values.tobytes() == features.tobytes(), f"byte {offset}"
    assert found > 100


def test_a_flipped_byte_of_the_features_is_found_when_the_part_is_read(tmp_path: Path) -> None:
    path = written(tmp_path)
    data = bytearray(path.read_bytes())
    start = data.index(FEATURES.astype(np.float16).tobytes())
    for offset in range(start, start + FEATURES.size * 2, 7):
        flipped = bytearray(data)
        flipped[offset] ^= 4
        path.write_bytes(flipped)
        assert refused(path) == damage(path, "its checksum does not match")


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_part_is_found_by_its_header_alone(tmp_path: Path, kept: float) -> None:
    path = written(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(StoreError) as caught:
        read_header(path)
    assert str(caught.value).startswith(f"{path} is damaged (")
    assert str(caught.value).endswith(WAY_OUT)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "part-1.h5") in refused(tmp_path / "part-1.h5")


def test_text_is_no_part(tmp_path: Path) -> None:
    path = tmp_path / "part-1.h5"
    path.write_text("features")
    assert "file signature not found" in refused(path)


# --- parts of another make


def test_a_part_of_another_spec_names_the_fields_that_differ(tmp_path: Path) -> None:
    path = written(tmp_path)
    other = dataclasses.replace(SPEC, image_size=64, precision="bfloat16")
    assert refused(path, other) == (
        f"{path} was made by another spec: image_size 32 against 64, precision float32 against bfloat16"
    )


Change = Callable[[h5py.File], None]


def changed(folder: Path, change: Change) -> Path:
    """A part as some other program may have left it."""
    path = written(folder)
    with h5py.File(path, "r+", libver=LIBVER) as file:
        change(file)
    return path


def attribute(name: str, value: str | float | bytes | NDArray[np.int64]) -> Change:
    def change(file: h5py.File) -> None:
        file.attrs[name] = value

    return change


def dataset(name: str, values: NDArray[np.generic]) -> Change:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = values

    return change


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (attribute("format", "cxr-feature-store"), "'cxr-feature-store' version 1"),
        (attribute("format_version", 2), "'cxr-feature-part' version 2"),
    ],
)
def test_another_format_or_version_is_refused_with_the_way_out(tmp_path: Path, change: Change, found: str) -> None:
    path = changed(tmp_path, change)
    assert refused(path) == (
        f"{path} is {found}, wanted 'cxr-feature-part' version 1; "
        "it was written by another cxr: extract again into another --cache"
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (attribute("format", 1), "attribute format is not text"),
        (attribute("spec", 1), "attribute spec is not text"),
        (
            attribute("spec", np.bytes_(b"\xff")),
            "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
        ),
        (attribute("checksum", "0" * 32), "its checksum does not match"),
        (dataset("view", np.array([1, 2], np.int32)), "its name is not that of its content"),
        (dataset("view", np.array([0, 2], np.int32)), "views are (0, 2), wanted a rising range"),
        (dataset("view", np.array([1, 0], np.int32)), "views are (1, 0), wanted a rising range"),
        (dataset("view", np.array([-1, 0], np.int32)), "views are (-1, 0), wanted a rising range"),
        (dataset("view", np.array([0, 2**31 - 1], np.int32)), "views are (0, 2147483647), wanted a rising range"),
        (dataset("view", np.array([0], np.int32)), "features are (6, 2, 8) float16"),
        (dataset("features", FEATURES[:5].astype(np.float16)), "features are (5, 2, 8) float16"),
        (dataset("features", FEATURES[:, 0].astype(np.float16)), "features are (6, 8) float16"),
        (dataset("features", FEATURES.astype(np.float64)), "features are (6, 2, 8) float64"),
        (dataset("features", FEATURES.astype(np.float16).view(np.int16)), "features are (6, 2, 8) int16"),
        (dataset("features", FEATURES), "its checksum does not match"),
        (dataset("image_sha256", np.array(DIGESTS[::-1], "S64")), "its name is not that of its content"),
    ],
)
def test_a_part_whose_contents_do_not_fit_together_is_damaged(tmp_path: Path, change: Change, reason: str) -> None:
    path = changed(tmp_path, change)
    assert refused(path) == damage(path, reason)


@pytest.mark.parametrize("name", ["features", "image_sha256", "view"])
def test_a_part_without_one_of_its_datasets_is_damaged(tmp_path: Path, name: str) -> None:
    def change(file: h5py.File) -> None:
        del file[name]

    assert " is damaged (" in refused(changed(tmp_path, change))


@pytest.mark.parametrize("name", ["format", "spec", "checksum"])
def test_a_part_without_one_of_its_attributes_is_damaged(tmp_path: Path, name: str) -> None:
    def change(file: h5py.File) -> None:
        del file.attrs[name]

    path = changed(tmp_path, change)
    assert refused(path) == damage(path, f"it has no attribute {name}")


def test_a_part_without_a_version_is_of_another_one(tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        del file.attrs["format_version"]

    assert "is 'cxr-feature-part' version None, wanted" in refused(changed(tmp_path, change))


def test_a_version_that_is_no_number_is_damage(tmp_path: Path) -> None:
    path = changed(tmp_path, attribute("format_version", np.array([1, 2])))
    assert f"{path} is damaged (The truth value of an array" in refused(path)


@pytest.mark.parametrize("name", ["features", "image_sha256", "view"])
def test_a_dataset_that_points_into_another_file_is_refused_unread(tmp_path: Path, name: str) -> None:
    other = written(tmp_path / "other")
    values = {"features": FEATURES.astype(np.float16), "image_sha256": np.array(DIGESTS, "S64")}
    like = values.get(name, np.arange(2, dtype=np.int32))
    raw = tmp_path / "raw"
    raw.write_bytes(like.tobytes())

    def link(file: h5py.File) -> None:
        file[name] = h5py.ExternalLink(str(other), name)

    def external(file: h5py.File) -> None:
        file.create_dataset(name, like.shape, like.dtype, external=[(str(raw), 0, like.nbytes)])

    def virtual(file: h5py.File) -> None:
        layout = h5py.VirtualLayout(like.shape, like.dtype)
        layout[:] = h5py.VirtualSource(str(other), name, like.shape)
        file.create_virtual_dataset(name, layout)

    for number, way in enumerate((link, external, virtual)):

        def change(file: h5py.File, way: Change = way) -> None:
            del file[name]
            way(file)

        path = changed(tmp_path / str(number), change)
        with h5py.File(path) as file:
            assert np.array_equal(file[name][:], like), "the trap must be a working one"
        assert refused(path) == damage(path, f"/{name} points to other files")


@pytest.mark.parametrize(
    ("name", "shape", "kind", "size"),
    [
        ("features", (2**30, 2, 2**10), "f2", 2**42),
        ("image_sha256", (2**40,), "S64", 2**46),
        ("view", (2**40,), "i4", 2**42),
    ],
)
def test_a_dataset_that_claims_more_than_the_file_has_is_refused_before_memory_is_taken(
    tmp_path: Path, name: str, shape: tuple[int, ...], kind: str, size: int
) -> None:
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, shape, kind)

    path = changed(tmp_path, change)
    assert path.stat().st_size < 10_000
    assert refused(path) == damage(path, f"/{name} claims {size} bytes, more than the file has")


def test_parts_in_the_older_file_format_of_hdf5_are_read_too(tmp_path: Path) -> None:
    """Text of variable length and HDF5 1.8's layout: what another writer of the format may choose."""
    path = written(tmp_path)
    older = tmp_path / "older" / path.name
    older.parent.mkdir()
    with h5py.File(path) as source, h5py.File(older, "w") as target:
        for name, values in source.items():
            target[name] = values[:]
        for name, value in source.attrs.items():
            target.attrs[name] = value.decode() if isinstance(value, bytes) else value
    assert read(older, SPEC)[1].tobytes() == read(path)[1].tobytes()
