"""``bundle.json``: what a bundle is made of, and the hashes that hold it together; see docs/bundle-format.md."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

from pydantic import ConfigDict, TypeAdapter, ValidationError

from featcache.errors import BundleError, StoreError, is_printable, printable
from featcache.spec import FeatureSpec
from heads.experiments.split_logits import KINDS, Kind
from heads.prediction.measured import Measured

FORMAT = "cxr-bundle"
FORMAT_VERSION = 1

MANIFEST_NAME, HEADS_NAME, DISTANCE_NAME, CARD_NAME = (
    "bundle.json",
    "heads.safetensors",
    "distance.safetensors",
    "README.md",
)
WEIGHTS_NAME = re.compile(r"weights-[0-9]{1,3}\.safetensors")

SHA256 = re.compile(r"[0-9a-f]{64}")

SIDES = (16, 4096)
"""Pixels that a network may be given, as for ``--image-size``: more would be asked for to fill the memory."""

LONGEST_TEXT, LONGEST_REMARK = 1_000, 100_000
"""Characters of a name, and of what is said of where the bundle came from, which lists heads."""

STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, kw_only=True)
class SourceEntry:
    """A network: its spec and that one's fingerprint, and the file of its weights, where the bundle holds it."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    spec: dict[str, Any]
    fingerprint: str
    weights: str | None

    @property
    def parsed(self) -> FeatureSpec:
        """The spec."""
        return FeatureSpec.from_json(json.dumps(self.spec))


@dataclass(frozen=True, kw_only=True)
class MemberEntry:
    """So many heads on the features of some sources; see ``model.ModelMember``."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    sources: tuple[int, ...]
    heads: int
    scale: dict[Kind, float]


@dataclass(frozen=True, kw_only=True)
class PointEntry:
    """An operating point."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    threshold: float
    rule: str
    split: str


@dataclass(frozen=True, kw_only=True)
class ChoicesEntry:
    """What val chose for logits of one kind."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    temperature: float
    operating_points: tuple[PointEntry, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that ``bundle.json`` holds, but for the hash over itself.

    Attributes:
        format: ``FORMAT``.
        format_version: of this layout.
        name: what the comparison table called the model.
        dataset: the data set that it was fitted on.
        classes: class names.
        positive: index of the positive class.
        views: views an image that its heads were trained on.
        sources: the networks.
        members: the heads.
        choices: by kind of logits.
        measured: what test said of it; None where it was not asked.
        provenance: what it came from, for a person.
        files: SHA-256 of each other file of the folder, as hex, by name.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    format: str
    format_version: int
    name: str
    dataset: str
    classes: tuple[str, ...]
    positive: int
    views: int
    sources: tuple[SourceEntry, ...]
    members: tuple[MemberEntry, ...]
    choices: dict[Kind, ChoicesEntry]
    measured: Measured | None
    provenance: dict[str, str]
    files: dict[str, str]

    @property
    def sha256(self) -> str:
        """What names the bundle: the hash over this, and so over every file's hash."""
        plain = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(plain.encode()).hexdigest()

    def to_bytes(self) -> bytes:
        """The file's content; there is one for each manifest."""
        return (json.dumps({**asdict(self), "sha256": self.sha256}, indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Self:
        """Parse and check a file's content; every byte counts.

        Raises:
            BundleError: it is not what ``to_bytes`` writes, or what it says is out of range.
        """
        try:
            raw = json.loads(data)
            version = raw.get("format_version") if isinstance(raw, dict) else None
            if isinstance(version, int) and raw.get("format") == FORMAT and version != FORMAT_VERSION:
                raise BundleError(
                    f"{where} has format {version}, this cxr reads {FORMAT_VERSION}: make the bundle again, or install "
                    "the cxr that made it"
                )
            digest = raw.pop("sha256", "") if isinstance(raw, dict) else ""
            manifest = TypeAdapter(cls).validate_json(json.dumps(raw))
        except ValidationError as error:
            first = error.errors()[0]
            place = ascii(".".join(map(str, first["loc"])))[1:-1]
            raise damaged(where, f"{place}: {ascii(first['msg'])[1:-1]}"[:300]) from error
        except (ValueError, RecursionError) as error:
            raise damaged(where, "it is not JSON") from error
        if manifest.sha256 != digest or manifest.to_bytes() != data:
            raise damaged(where, "its hash over itself does not match")
        if wrong := manifest.wrong:
            raise damaged(where, wrong)
        return manifest

    @property
    def wrong(self) -> str:
        """What cannot be, in a few words; empty where all is well."""
        try:
            specs = [source.parsed for source in self.sources]
        except StoreError as error:
            return printable(str(error))[:300]
        known = {HEADS_NAME, DISTANCE_NAME, CARD_NAME}
        named = [source.weights for source in self.sources if source.weights is not None]
        scales = [scale for member in self.members for scale in member.scale.values()]
        points = [point for one in self.choices.values() for point in one.operating_points]
        texts = [self.name, self.dataset, *self.classes, *(text for one in points for text in (one.rule, one.split))]
        told = {} if self.measured is None else self.measured.figures
        texts += [one.rule for of_kind in told.values() for one in of_kind]
        remarks = [*self.provenance, *self.provenance.values()]
        low, high = SIDES
        faults = {
            "its format": self.format != FORMAT or self.format_version != FORMAT_VERSION,
            "its files": not {HEADS_NAME, CARD_NAME} <= self.files.keys()
            or self.files.keys() - known != set(named)
            or len(set(named)) < len(named)
            or not all(WEIGHTS_NAME.fullmatch(name) for name in named)
            or not all(SHA256.fullmatch(digest) for digest in self.files.values()),
            "its words": not all(is_printable(text) for text in (*texts, *remarks, *(spec.backbone for spec in specs)))
            or any(len(text) > LONGEST_TEXT for text in texts)
            or any(len(text) > LONGEST_REMARK for text in remarks),
            "its classes": len(set(self.classes)) < max(2, len(self.classes))
            or not 0 <= self.positive < len(self.classes),
            "its sources": not specs
            or any(spec.fingerprint != one.fingerprint for spec, one in zip(specs, self.sources, strict=True))
            or any(not low <= spec.image_size <= high for spec in specs)
            or any(not spec.image_size <= spec.resize_side <= 4 * high for spec in specs)
            or any(not 1 <= spec.decode_floor <= 8 * high for spec in specs),
            "its views": not 1 <= self.views <= 1000,
            "its members": not self.members
            or any(not member.sources or member.heads < 1 for member in self.members)
            or any(not 0 <= source < len(specs) for member in self.members for source in member.sources)
            or any(set(member.scale) != set(KINDS) for member in self.members)
            or not all(math.isfinite(scale) and scale > 0 for scale in scales),
            "its choices": set(self.choices) != set(KINDS)
            or not all(math.isfinite(one.temperature) and one.temperature > 0 for one in self.choices.values())
            or not all(math.isfinite(point.threshold) for point in points)
            or (len(self.classes) != 2 and bool(points)),
            "its figures": self.measured is not None and self.measured.wrong,
        }
        return ", ".join(name for name, wrong in faults.items() if wrong)


def damaged(where: str, why: str) -> BundleError:
    """The error for a bundle that is not as it was written."""
    return BundleError(f"{where} is damaged or was tampered with ({why}): get the bundle again from who made it")
