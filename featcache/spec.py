"""All that determines a feature's value, and its hash.

Two features may be compared only when their specs are equal. The fingerprint names the store's folder; code
compares specs, never fingerprints.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any, Literal, Self, get_args

from featcache.errors import StoreError

FORMAT_VERSION = 1

Precision = Literal["float32", "bfloat16", "float16"]
Runtime = Literal["torch", "openvino"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """What a feature was made with; every field changes the fingerprint.

    Attributes:
        backbone: the network's name, its options included.
        weights_sha256: hash of the names, types, shapes and bytes of all weights.
        image_size: side of the square that the network sees, in pixels.
        resize_side: the clean image's shorter side is resized to this before the centre crop, in pixels.
        interpolation: ``bilinear`` or ``bicubic``, with antialiasing.
        mean: per channel, on pixels scaled to 0..1.
        std: per channel, on pixels scaled to 0..1.
        recipe: name of the recipe that draws augmented views.
        recipe_seed: seed of that recipe.
        pooling: how the last map becomes a vector.
        runtime: what ran the network; two runtimes differ in the last bits.
        precision: the type the network computed in.
        dtype: the type features are stored in.
        decoder: what turned files into pixels, with its major version.
        decode_floor: a JPEG may be decoded smaller while its shorter side stays at least this, in pixels.
        format_version: version of the store format.
    """

    backbone: str
    weights_sha256: str
    image_size: int
    resize_side: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    recipe: str = "standard"
    recipe_seed: int = 0
    pooling: str = "gap"
    runtime: Runtime = "torch"
    precision: Precision = "float32"
    dtype: str = "float16"
    decoder: str
    decode_floor: int
    format_version: int = FORMAT_VERSION

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON, as hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """The canonical JSON: sorted keys, no spaces, shortest decimal that gives the number back."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, where: str = "spec") -> Self:
        """Parse a stored spec strictly.

        Raises:
            StoreError: not JSON, an unknown or missing field, a wrong type, or a format of another version.
        """
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise StoreError(f"{where}: the spec is not JSON") from error
        if not isinstance(raw, dict):
            raise StoreError(f"{where}: the spec is not a JSON object")
        if raw.get("format_version") != FORMAT_VERSION:
            raise StoreError(
                f"{where}: store format {raw.get('format_version')!r}, this cxr reads {FORMAT_VERSION}; "
                "install the cxr that wrote it, or extract again"
            )
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if raw.keys() != fields.keys():
            odd = ", ".join(sorted(raw.keys() ^ fields.keys()))
            raise StoreError(f"{where}: the spec's fields are not those of format {FORMAT_VERSION}: {odd}")
        return cls(**{name: _parse(where, name, str(fields[name].type), raw[name]) for name in fields})

    def differences(self, other: FeatureSpec) -> str:
        """Name the fields in which two specs differ: ``image_size 224 against 260``."""
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        return ", ".join(f"{k} {mine[k]} against {theirs[k]}" for k in mine if mine[k] != theirs[k])


def _parse(where: str, name: str, kind: str, value: Any) -> Any:  # noqa: ANN401 - JSON may hold anything
    """Check one JSON value against the field's annotation."""
    good: bool
    match kind:
        case "str":
            good = isinstance(value, str)
        case "int":
            good = isinstance(value, int) and not isinstance(value, bool)
        case "Precision" | "Runtime":
            good = value in get_args({"Precision": Precision, "Runtime": Runtime}[kind])
        case _:
            good = isinstance(value, list) and len(value) == 3 and all(isinstance(x, float) for x in value)
            value = tuple(value) if good else value
    if not good:
        raise StoreError(f"{where}: {name} in the spec is {value!r}, wanted {kind}")
    return value


def packages_of(decoder: str) -> str:
    """What pip is asked for to have the decoder of a spec, but for imagecodecs, which counts by years."""
    parts = (part.rpartition("-") for part in decoder.split())
    # A spec may come from anyone, and this is to be typed into a shell.
    versions = {name: major for name, _, major in parts if major.isdecimal() and major.isascii()}
    return " ".join(f"'{name}=={versions[name]}.*'" for name in ("simplejpeg", "pillow", "pydicom") if name in versions)
