"""The frozen networks: name → architecture, weights, preprocessing; and one vector [D] an image out.

A backbone is spelled as timm names it (``resnet50``), as ``torchvision:NAME``, or as the user's own
``module.path:callable``; timm options follow an ``@`` (``mobilenetv2_100@pad_type=same``). Feature: global
average pooling of the last map.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import timm
import torch
import torchvision
from timm.data.config import resolve_model_data_config
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from featcache import weights as weight_files
from featcache.errors import BackboneError, nearest
from featcache.networks import PooledNetwork, Preprocessing, TorchvisionFeatures
from featcache.work import Source

SHORT_NAMES = {
    # The weights nearest to those that Keras ships, which the study used.
    "resnet50": "resnet50.tv_in1k",
    "vgg19": "vgg19.tv_in1k",
    "inception_v3": "inception_v3.tf_in1k",
    "efficientnet_b4": "tf_efficientnet_b4.aa_in1k",
    # Their ImageNet weights come with packages of the registry, so they need no hub.
    "efficientnet_lite0": "tf_efficientnet_lite0.in1k",
    "efficientnet_lite2": "tf_efficientnet_lite2.in1k",
}

RANDOM_SEED = 0
"""Seed of ``--weights random``, so that its store can be extended and compared."""


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A frozen network, ready to be run by ``runtime``.

    Attributes:
        name: as the spec keeps it: the user's spelling, options included.
        network: uint8 pixels [B, 3, S, S] → features [B, D] float32; normalisation and pooling are inside.
        preprocessing: what happens before the pixels reach it.
        weights_sha256: hash of all weights.
        dim: D.
        source: how another process loads it again.
    """

    name: str
    network: nn.Module
    preprocessing: Preprocessing
    weights_sha256: str
    dim: int
    source: Source


def load_backbone(name: str, weights: str | None = None, image_size: int | None = None) -> Backbone:
    """Load a backbone with its weights, on the CPU, in evaluation mode.

    Args:
        name: see the module's docstring.
        weights: a ``.safetensors`` or ``.pth`` file; ``random`` for seeded random weights; None for pretrained.
        image_size: overrides the side that the weights were trained at, in pixels.

    Raises:
        BackboneError: no such backbone, its weights cannot be had, or they do not fit it.
    """
    record = weight_files.read_record(weights) if weights not in (None, "random") else {}
    architecture, options = _spelled(name)
    if "architecture" in record:
        options = _options_of_record(str(weights), architecture, options, str(record["architecture"]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        if architecture.startswith("torchvision:"):
            model, preprocessing = _torchvision(architecture.removeprefix("torchvision:"), weights)
        elif ":" in architecture:
            model, preprocessing = _own(architecture)
        else:
            model, preprocessing = _timm(architecture, options, weights)
    if weights not in (None, "random"):
        weight_files.load_strictly(model, str(weights), name)
        preprocessing = _with_record(preprocessing, record, str(weights))
    if image_size is not None:
        ratio = preprocessing.resize_side / preprocessing.image_size
        preprocessing = replace(preprocessing, image_size=image_size, resize_side=math.floor(image_size * ratio + 1e-6))
    model = model.eval().requires_grad_(requires_grad=False)
    # Of torchvision's own network: the hash must not depend on our wrapper.
    digest = weights_sha256(model.model if isinstance(model, TorchvisionFeatures) else model)
    network = PooledNetwork(model, preprocessing).eval()
    spelled = "@".join([architecture, *(f"{key}={value}" for key, value in sorted(options.items()))])
    return Backbone(
        name=spelled,
        network=network,
        preprocessing=preprocessing,
        weights_sha256=digest,
        dim=_dim(network, preprocessing, spelled),
        source=Source(name=name, weights=weights, image_size=image_size),
    )


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 over name, type, shape and bytes of every tensor of the state, in the order of the names."""
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _spelled(name: str) -> tuple[str, dict[str, str]]:
    """Architecture and options of ``architecture@key=value@key=value``."""
    architecture, *rest = name.split("@")
    options: dict[str, str] = {}
    for option in rest:
        key, equals, value = option.partition("=")
        if not (key.isidentifier() and equals and value):
            raise BackboneError(
                f"backbone {name!r}: option {option!r} is not key=value, as in mobilenetv2_100@pad_type=same"
            )
        options[key] = value
    return architecture, options


def _options_of_record(file: str, architecture: str, options: dict[str, str], record: str) -> dict[str, str]:
    """Options that a weights file's own record adds: ``timm mobilenetv2_100, pad_type='same'``.

    Padding changes every feature and no tensor's shape, so strict loading alone would not notice.
    """
    made_for, *rest = (part.strip() for part in record.split(","))
    library, _, model = made_for.partition(" ")
    asked = architecture.removeprefix("torchvision:")
    full = SHORT_NAMES.get(asked, asked)
    if model not in (asked, full, full.partition(".")[0]) or (library == "torchvision") != (asked != architecture):
        wanted = f"torchvision:{model}" if library == "torchvision" else model
        raise BackboneError(f"{file} holds weights of {record!r}, not of {architecture}: use --backbone {wanted}")
    recorded = {key: value.strip("'\"") for key, _, value in (part.partition("=") for part in rest)}
    return {**recorded, **options}


def _timm(name: str, options: Mapping[str, str], weights: str | None) -> tuple[nn.Module, Preprocessing]:
    full = SHORT_NAMES.get(name, name)
    if not timm.is_model(full):
        known = [*SHORT_NAMES, *timm.list_models()]
        raise BackboneError(
            f"unknown backbone {name!r}{nearest(name, known)} ('cxr extract --help' tells the spellings)"
        )
    try:
        keywords: dict[str, Any] = {key: _value(value) for key, value in options.items()}
        model = timm.create_model(full, pretrained=False, **keywords)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BackboneError(f"backbone {name}: timm refuses the options {dict(options)}: {error}") from error
    if weights is None:
        weight_files.load_pretrained(model, name, full)
    config = resolve_model_data_config(model)  # type: ignore[no-untyped-call]  # timm has no types for it
    size = int(config["input_size"][-1])
    return model, Preprocessing(
        image_size=size,
        resize_side=math.floor(size / config["crop_pct"]),
        interpolation=config["interpolation"] if config["interpolation"] in ("bilinear", "bicubic") else "bicubic",
        mean=_triple(config["mean"]),
        std=_triple(config["std"]),
    )


def _torchvision(name: str, weights: str | None) -> tuple[nn.Module, Preprocessing]:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise BackboneError(f"unknown backbone 'torchvision:{name}'{nearest(name, known)}")
    if name in ("googlenet", "inception_v3"):
        raise BackboneError(f"torchvision's {name} rescales its own input: use timm's inception_v3 instead")
    model = torchvision.models.get_model(name, weights=None)
    recommended = torchvision.models.get_model_weights(name).DEFAULT
    if weights is None:
        weight_files.load_from_address(model, f"torchvision:{name}", recommended.url)
    presets = recommended.transforms()
    preprocessing = Preprocessing(
        image_size=int(presets.crop_size[0]),
        resize_side=int(presets.resize_size[0]),
        interpolation=presets.interpolation.value,
        mean=_triple(presets.mean),
        std=_triple(presets.std),
    )
    return TorchvisionFeatures(model), preprocessing


def _own(spelled: str) -> tuple[nn.Module, Preprocessing]:
    """The user's own ``module.path:callable``, which returns a network of maps [B, D, h, w] or vectors [B, D].

    Attributes ``image_size``, ``mean`` and ``std`` of the network override 224 pixels and ImageNet's statistics.
    """
    module_name, _, attribute = spelled.partition(":")
    if "" not in sys.path:
        # A module in the working folder, as 'python -m' would find it; last, so that it hides nothing.
        sys.path.append("")
    try:
        model = getattr(importlib.import_module(module_name), attribute)()
    except Exception as error:
        raise BackboneError(f"backbone {spelled!r} cannot be made: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise BackboneError(f"backbone {spelled!r} made a {type(model).__name__}, wanted a torch.nn.Module")
    try:
        size = int(getattr(model, "image_size", 224))
        mean = _triple(getattr(model, "mean", IMAGENET_DEFAULT_MEAN))
        std = _triple(getattr(model, "std", IMAGENET_DEFAULT_STD))
    except (TypeError, ValueError) as error:
        raise BackboneError(
            f"backbone {spelled!r}: its image_size is not a number, or its mean or std are not three: {error}"
        ) from error
    return model, Preprocessing(image_size=size, resize_side=size, interpolation="bilinear", mean=mean, std=std)


def _with_record(preprocessing: Preprocessing, record: Mapping[str, str], file: str) -> Preprocessing:
    """Take mean and std from a weights file's own record, where it has one."""
    found: dict[str, Any] = {}
    try:
        found = {key: _triple(record[key].split()) for key in ("mean", "std") if key in record}
    except ValueError as error:
        raise BackboneError(f"{file}: mean and std in its record are not three numbers each: {error}") from error
    return replace(preprocessing, **found)


def _triple(values: Any) -> tuple[float, float, float]:  # noqa: ANN401 - tuples, lists and tensors
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _value(text: str) -> str | int | float | bool:
    """An option's value as timm wants it."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return {"true": True, "false": False}.get(text.lower(), text)


def _dim(network: nn.Module, preprocessing: Preprocessing, name: str) -> int:
    """D, by running one black image: the surest word on shapes, and it finds an impossible image size."""
    side = preprocessing.image_size
    try:
        with torch.inference_mode():
            features = network(torch.zeros((1, 3, side, side), dtype=torch.uint8))
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise BackboneError(
            f"backbone {name} cannot run on {side}×{side} pixels: {str(error).splitlines()[0]}"
        ) from error
    if features.ndim != 2:
        raise BackboneError(f"backbone {name} gives {tuple(features.shape)}, wanted a map [B, D, h, w] or [B, D]")
    return int(features.shape[1])
