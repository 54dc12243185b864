"""One part: the features of a few hundred images, in an HDF5 file that is whole or absent.

``docs/store-format.md`` specifies the file. A part is named by what it holds, so that two workers who make the
same part write the same name.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from featcache import atomic
from featcache.errors import BackboneError, StoreError
from featcache.spec import FORMAT_VERSION, FeatureSpec

FORMAT = "cxr-feature-part"
CHECKSUM = "xxh3_128"
LIBVER = ("v110", "v110")
"""HDF5's file format from 1.10 on, which keeps checksums of its own structure; in the older one, which h5py writes
unless told otherwise, a flipped byte can crash the library. Text of variable length is kept where it has no checksum,
so ours is of fixed length."""

FeatureArray = NDArray[np.float16] | NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class PartHeader:
    """What a part holds, without its features.

    Attributes:
        path: the file.
        spec: what its features were made with.
        image_sha256: [n] content hashes as hex.
        views: [v] view numbers.
        dim: D.
        dtype: ``float16``, or ``float32`` where that overflowed.
        checksum: of all that a reader uses, as hex.
    """

    path: Path
    spec: FeatureSpec
    image_sha256: tuple[str, ...]
    views: tuple[int, ...]
    dim: int
    dtype: str
    checksum: str


def part_name(image_sha256: Sequence[str], views: Sequence[int]) -> str:
    """File name of the part that holds these images and views, in this order."""
    content = f"{','.join(image_sha256)};{','.join(map(str, views))}"
    return f"part-{hashlib.sha256(content.encode()).hexdigest()[:16]}.h5"


def write_part(
    folder: Path,
    spec: FeatureSpec,
    image_sha256: Sequence[str],
    views: Sequence[int],
    features: NDArray[np.float32],
    provenance: dict[str, str | int],
) -> Path:
    """Write a part, whole or not at all.

    Args:
        folder: the store's ``parts`` folder.
        spec: what the features were made with.
        image_sha256: [n] content hashes.
        views: [v] view numbers.
        features: [n, v, D] float32; stored in float16, or float32 where that overflows.
        provenance: versions and batch size; nothing here may determine a value that ``spec`` does not.

    Raises:
        WriteError: the disk is full or the folder cannot be written.
        BackboneError: a feature is infinite or not a number.
    """
    odd = np.flatnonzero(~np.isfinite(features).all(axis=(1, 2)))
    if len(odd):
        raise BackboneError(
            f"{spec.backbone} in {spec.precision} gives features that are no finite numbers for {len(odd)} of "
            f"{len(features)} images (such as that of SHA-256 {image_sha256[odd[0]]}): try --precision float32"
        )
    stored = stored_as(features, spec.dtype)
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=LIBVER) as file:
        file.create_dataset("features", data=stored)
        file.create_dataset("image_sha256", data=np.array(image_sha256, "S64"))
        file.create_dataset("view", data=np.array(views, np.int32))
        file.attrs["format"] = np.bytes_(FORMAT)
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["spec"] = np.bytes_(spec.to_json())
        file.attrs["checksum_algorithm"] = np.bytes_(CHECKSUM)
        file.attrs["checksum"] = np.bytes_(checksum(spec.to_json(), image_sha256, views, stored))
        for name, value in sorted(provenance.items()):
            file.attrs[f"provenance_{name}"] = np.bytes_(value) if isinstance(value, str) else value
    path = folder / part_name(image_sha256, views)
    atomic.write_bytes(path, buffer.getbuffer())
    return path


def stored_as(features: NDArray[np.float32], dtype: str) -> FeatureArray:
    """Features, finite and of any shape, as a part keeps them: in ``dtype``, or in float32 where one overflows it.

    A feature beyond 65,504 does not fit float16: its part alone keeps the wider type. What fits is rounded all the
    same, so that no value depends on which images share its part.
    """
    with np.errstate(over="ignore"):
        stored: FeatureArray = features.astype(dtype)
    fits = np.isfinite(stored)
    return stored if fits.all() else np.where(fits, stored.astype(np.float32), features)


def read_header(path: Path, spec: FeatureSpec | None = None) -> PartHeader:
    """Read what a part holds.

    Args:
        path: the file.
        spec: when given, the part must have been made by it.

    Raises:
        StoreError: no part, damaged, of another format version, or made by another spec.
    """
    with opened(path, FORMAT) as file:
        try:
            found = FeatureSpec.from_json(text_attribute(file, "spec"), str(path))
            if spec is not None and found != spec:
                raise StoreError(f"{path} was made by another spec: {found.differences(spec)}")
            features, image_sha256, view = (
                require_plain(file, name, path) for name in ("features", "image_sha256", "view")
            )
            shape = features.shape
            header = PartHeader(
                path=path,
                spec=found,
                image_sha256=tuple(image_sha256.asstr()[:].tolist()),
                views=tuple(view[:].tolist()),
                dim=int(shape[-1]),
                dtype=features.dtype.name,
                checksum=text_attribute(file, "checksum"),
            )
        except (KeyError, OSError, RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise damaged(path, error) from error
    if shape != (len(header.image_sha256), len(header.views), header.dim) or header.dtype not in (
        "float16",
        "float32",
    ):
        raise damaged(path, f"features are {shape} {header.dtype}")
    first = min(header.views, default=-1)
    if first < 0 or header.views != tuple(range(first, first + len(header.views))):
        raise damaged(path, f"views are {header.views}, wanted a rising range")
    if part_name(header.image_sha256, header.views) != path.name:
        raise damaged(path, "its name is not that of its content")
    return header


def read_features(header: PartHeader) -> FeatureArray:
    """Read a part's features [n, v, D] and compare their checksum.

    Raises:
        StoreError: damaged; a changed byte anywhere in the features, hashes, views or spec is found.
    """
    with opened(header.path, FORMAT) as file:
        try:
            features: FeatureArray = file["features"][:]
        except (KeyError, OSError, RuntimeError, ValueError) as error:
            raise damaged(header.path, error) from error
    if checksum(header.spec.to_json(), header.image_sha256, header.views, features) != header.checksum:
        raise damaged(header.path, "its checksum does not match")
    return features


def checksum(spec_json: str, image_sha256: Sequence[str], views: Sequence[int], features: FeatureArray) -> str:
    """XXH3-128 over spec, hashes, views and the little-endian features, as hex."""
    digest = xxhash.xxh3_128()
    digest.update(spec_json.encode())
    digest.update("".join(image_sha256).encode())
    digest.update(np.array(views, "<i4").tobytes())
    digest.update(np.ascontiguousarray(features, features.dtype.newbyteorder("<")).data)
    return digest.hexdigest()


def require_plain(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    """Open a dataset, unless it reaches into other files or claims more bytes than the file has.

    Raises:
        StoreError: either; reading it would leave the cache or fill the memory.
        KeyError: there is none of this name.
    """
    steps = name.split("/")
    for depth in range(1, len(steps) + 1):
        # Asked of each link before it is followed: following an external one opens the other file.
        if file.id.links.get_info("/".join(steps[:depth]).encode()).type != h5py.h5l.TYPE_HARD:
            raise damaged(path, f"/{name} points to other files")
    dataset = file[name]
    if dataset.external or dataset.is_virtual:
        raise damaged(path, f"/{name} points to other files")
    if dataset.nbytes > path.stat().st_size:
        raise damaged(path, f"/{name} claims {dataset.nbytes} bytes, more than the file has")
    return dataset


def opened(path: Path, wanted_format: str) -> h5py.File:
    """Open an HDF5 file of ours for reading.

    Raises:
        StoreError: not HDF5, or of another format or version.
    """
    if not path.exists():
        raise StoreError(f"{path} is missing: run 'cxr extract' again, which makes only what is missing")
    if not path.is_file():
        # A pipe would hold us up for ever.
        raise damaged(path, "not a plain file")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise damaged(path, error) from error
    try:
        found = text_attribute(file, "format")
        version = file.attrs.get("format_version")
        fits = found == wanted_format and bool(version == FORMAT_VERSION)
    except (KeyError, OSError, RuntimeError, TypeError, ValueError, UnicodeDecodeError) as error:
        file.close()
        raise damaged(path, error) from error
    if not fits:
        file.close()
        raise StoreError(
            f"{path} is {found!r} version {version}, wanted {wanted_format!r} version {FORMAT_VERSION}; "
            "it was written by another cxr: extract again into another --cache"
        )
    return file


def text_attribute(file: h5py.File, name: str) -> str:
    """A root attribute as text.

    Raises:
        ValueError: it is missing, or no text.
    """
    if name not in file.attrs:
        raise ValueError(f"it has no attribute {name}")
    value = file.attrs[name]
    if isinstance(value, bytes):
        return value.decode()
    if not isinstance(value, str):
        raise ValueError(f"attribute {name} is not text")
    return value


def damaged(path: Path, why: object) -> StoreError:
    """The error for a file that is not what was written."""
    reason = str(why).strip().splitlines()[0][:200] if str(why).strip() else type(why).__name__
    return StoreError(
        f"{path} is damaged ({reason}): delete it with 'cxr cache verify --remove-damaged', "
        "then run 'cxr extract' again, which makes only what is missing"
    )
