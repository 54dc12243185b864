"""A model in a folder of its own, to be handed on: safetensors, JSON and Markdown, each file under its hash.

The hashes find damage, and changes by whoever does not make them anew; who made a bundle is told by the hash over all
of it, which ``cxr bundle`` prints, got on another way than the bundle.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save
from safetensors.torch import save as save_torch

from featcache import atomic
from featcache.backbones import Backbone
from featcache.errors import BundleError, RunError
from featcache.networks import PooledNetwork, TorchvisionFeatures
from heads.prediction.distance import DistanceReference
from heads.prediction.manifest import (
    CARD_NAME,
    DISTANCE_NAME,
    FORMAT,
    FORMAT_VERSION,
    HEADS_NAME,
    MANIFEST_NAME,
    ChoicesEntry,
    Manifest,
    MemberEntry,
    PointEntry,
    SourceEntry,
    damaged,
)
from heads.prediction.model import Model, ModelChoices, ModelMember, Source
from heads.statistics.operating_point import OperatingPoint
from heads.training.model import HeadWeights

MOST_BYTES = {MANIFEST_NAME: 2**22, CARD_NAME: 2**22, HEADS_NAME: 2**30, DISTANCE_NAME: 2**28}
"""What a file may take; networks' weights may take any."""

OPTIONS = {"pad_type"}
"""Options of a network that a bundle may name unasked. Others may name files or addresses, or ask for any memory."""


def write_bundle(folder: Path, model: Model, card: str, backbones: Sequence[Backbone] | None = None) -> str:
    """Write a bundle, whole or not at all.

    Args:
        folder: where; it must not exist.
        model: what.
        card: the model card, Markdown.
        backbones: the networks whose weights go with it, one a source; None leaves them out, and they are had from
            where they were.

    Returns:
        The hash over all of it, which names it.

    Raises:
        WriteError: the disk is full, the place cannot be written, or there is something already.
        BundleError: what ``load_bundle`` would refuse, such as a class whose name moves a terminal's cursor.
        ValueError: a network's weights are not those of its spec.
    """
    heads = {
        f"{number}/{head}/{name}": np.ascontiguousarray(array)
        for number, member in enumerate(model.members)
        for head, weights in enumerate(member.heads)
        for name, array in weights.tensors().items()
    }
    contents: dict[str, bytes] = {HEADS_NAME: save(heads), CARD_NAME: card.encode()}
    if model.distance is not None:
        arrays = model.distance.to_arrays()
        contents[DISTANCE_NAME] = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    names: list[str | None] = [None] * len(model.sources)
    for number, backbone in enumerate(backbones or ()):
        if backbone.weights_sha256 != model.sources[number].spec.weights_sha256:
            raise ValueError(f"write_bundle: the weights of {backbone.name} are not those of the model's spec")
        names[number] = f"weights-{number}.safetensors"
        contents[str(names[number])] = _weights(backbone)
    manifest = Manifest(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        name=model.name,
        dataset=model.dataset,
        classes=model.classes,
        positive=model.positive,
        views=model.views,
        sources=tuple(
            SourceEntry(spec=json.loads(source.spec.to_json()), fingerprint=source.spec.fingerprint, weights=name)
            for source, name in zip(model.sources, names, strict=True)
        ),
        members=tuple(
            MemberEntry(sources=member.sources, heads=len(member.heads), scale=dict(member.scale))
            for member in model.members
        ),
        choices={
            kind: ChoicesEntry(
                temperature=chosen.temperature,
                operating_points=tuple(
                    PointEntry(**dataclasses.asdict(point)) for point in chosen.operating_points.values()
                ),
            )
            for kind, chosen in model.choices.items()
        },
        measured=model.measured,
        provenance=dict(model.provenance),
        files={name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
    )
    if wrong := manifest.wrong:
        raise BundleError(
            f"{ascii(model.name)[1:-1]} cannot be bundled, for it could not be read again ({wrong}): names must be of "
            "printable characters, and not of thousands"
        )
    with atomic.new_folder(folder) as temporary:
        for name, content in {**contents, MANIFEST_NAME: manifest.to_bytes()}.items():
            (temporary / name).write_bytes(content)
    return manifest.sha256


def load_bundle(folder: Path, *, code: Sequence[str] = ()) -> Model:
    """Read a bundle, and refuse it where anything is not as it was written.

    Args:
        folder: the bundle's.
        code: networks of the user's own (``module.path:callable``), or of options of his own, that it may name; a
            bundle must not choose what code is run here.

    Raises:
        BundleError: no bundle there, a damaged or tampered one, or one that asks for code.
    """
    manifest = Manifest.from_bytes(_read(folder, MANIFEST_NAME), str(folder / MANIFEST_NAME))
    try:
        there = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise BundleError(f"{folder} cannot be listed: {error.strerror or error}") from error
    wanted = sorted({MANIFEST_NAME, *manifest.files})
    if there != wanted:
        odd = ", ".join(sorted(set(there) ^ set(wanted))[:3])
        raise damaged(str(folder), f"it should hold {', '.join(wanted)} and nothing else, not so of {ascii(odd)[1:-1]}")
    contents: dict[str, bytes] = {}
    for name, digest in manifest.files.items():
        path = folder / name
        if name in MOST_BYTES:
            contents[name] = _read(folder, name)
            found = hashlib.sha256(contents[name]).hexdigest()
        else:
            found = _digest(path)
        if found != digest:
            raise damaged(str(path), "its hash does not match")
    for source in manifest.sources:
        _refuse_code(folder, source.parsed.backbone, code)
    return Model(
        name=manifest.name,
        dataset=manifest.dataset,
        classes=manifest.classes,
        positive=manifest.positive,
        views=manifest.views,
        sources=tuple(
            Source(spec=one.parsed, path=folder, weights=None if one.weights is None else folder / one.weights)
            for one in manifest.sources
        ),
        members=_members(manifest, contents[HEADS_NAME], folder / HEADS_NAME),
        choices={
            kind: ModelChoices(
                temperature=one.temperature,
                operating_points={
                    point.rule: OperatingPoint(**dataclasses.asdict(point)) for point in one.operating_points
                },
            )
            for kind, one in manifest.choices.items()
        },
        distance=_distance(contents[DISTANCE_NAME], folder / DISTANCE_NAME) if DISTANCE_NAME in contents else None,
        notes=() if DISTANCE_NAME in contents else ("the bundle does not know how far films lie from train",),
        provenance=manifest.provenance,
        bundle=manifest.sha256,
        measured=manifest.measured,
    )


def _refuse_code(folder: Path, backbone: str, code: Sequence[str]) -> None:
    architecture, *options = backbone.split("@")
    if backbone in code:
        return
    if ":" in architecture and not architecture.startswith("torchvision:") and architecture not in code:
        raise BundleError(
            f"{folder} wants the network {architecture!a}, which is code that would be run here: say --backbone "
            f"{ascii(architecture)[1:-1]} if that is yours"
        )
    if odd := {option.partition("=")[0] for option in options} - OPTIONS:
        raise BundleError(
            f"{folder} wants a network with the option {ascii(min(odd))[1:-1]}, which may name files or ask for any "
            f"memory: say --backbone {ascii(backbone)[1:-1]} if that is meant"
        )


def _read(folder: Path, name: str) -> bytes:
    """A file of the bundle, if it is a plain one of a size that can be."""
    path = folder / name
    try:
        facts = path.lstat()
        if not stat.S_ISREG(facts.st_mode):
            raise damaged(str(path), "it is no plain file")
        if facts.st_size > MOST_BYTES[name]:
            raise damaged(str(path), f"it has {facts.st_size} bytes, more than {MOST_BYTES[name]}")
        with path.open("rb") as file:
            return file.read(facts.st_size + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        if name == MANIFEST_NAME:
            raise BundleError(f"no bundle in {folder}: 'cxr bundle --out {folder}' makes one") from error
        raise damaged(str(folder), f"it lacks {name}") from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error


def _digest(path: Path) -> str:
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise damaged(str(path), "it is no plain file")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error


def _tensors(content: bytes, path: Path) -> Mapping[str, NDArray[Any]]:
    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise damaged(str(path), f"it is no safetensors file: {error}"[:200]) from error


def _members(manifest: Manifest, content: bytes, path: Path) -> tuple[ModelMember, ...]:
    tensors = _tensors(content, path)
    of_head: dict[str, dict[str, NDArray[Any]]] = {}
    for name, array in tensors.items():
        member, head, rest = (*name.split("/", 2), "", "")[:3]
        of_head.setdefault(f"{member}/{head}/", {})[rest] = array
    members = []
    for number, entry in enumerate(manifest.members):
        heads = []
        for count in range(min(entry.heads, len(tensors))):
            prefix = f"{number}/{count}/"
            try:
                weights = HeadWeights.from_tensors(of_head.pop(prefix, {}))
            except ValueError as error:
                raise damaged(str(path), str(error)) from error
            if weights.layout.classes != len(manifest.classes):
                raise damaged(str(path), f"head {prefix[:-1]} knows {weights.layout.classes} classes")
            if not all(np.isfinite(one).all() for one in weights.tensors().values()):
                raise damaged(str(path), f"head {prefix[:-1]} holds what is no finite number")
            heads.append(weights)
        if len(heads) != entry.heads:
            raise damaged(str(path), f"member {number} has {len(heads)} heads, wanted {entry.heads}")
        members.append(ModelMember(sources=entry.sources, heads=tuple(heads), scale=entry.scale))
    if of_head:
        raise damaged(str(path), f"it holds more than its heads, such as those of {ascii(min(of_head))[:60]}")
    return tuple(members)


def _distance(content: bytes, path: Path) -> DistanceReference:
    try:
        return DistanceReference.from_arrays(_tensors(content, path))
    except RunError as error:
        raise damaged(str(path), str(error)) from error


def _weights(backbone: Backbone) -> bytes:
    """A network's state, with mean and std where ``load_backbone`` looks for them."""
    assert isinstance(backbone.network, PooledNetwork)
    model = backbone.network.model
    state = (model.model if isinstance(model, TorchvisionFeatures) else model).state_dict()
    # Copies: safetensors refuses tensors that share memory.
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    known = backbone.preprocessing
    record = {"mean": " ".join(map(repr, known.mean)), "std": " ".join(map(repr, known.std))}
    return bytes(save_torch(copies, metadata=record))
