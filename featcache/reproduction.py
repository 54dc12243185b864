"""The network of a store once more: the same weights, preprocessing, runtime and precision, or an error.

So what it makes of an image, in the store or not, is comparable with what the store holds.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Protocol

from featcache.backbones import Backbone, load_backbone
from featcache.decode import DICOM
from featcache.errors import BackboneError
from featcache.forward import compile_forward
from featcache.naming import names_of
from featcache.planning import spec_of
from featcache.runtime import Compute, Forward, choose_batch_size, choose_device
from featcache.settings import Settings, weights_of
from featcache.spec import FeatureSpec, packages_of
from featcache.store import FeatureStore


class Specified(Protocol):
    """What says how features are made: a store, or what is known of one elsewhere."""

    @property
    def spec(self) -> FeatureSpec:
        """What the features are made with."""

    @property
    def path(self) -> Path:
        """Where that is written, for errors."""


def backbone_of(store: FeatureStore, settings: Settings, weights: str | None = None) -> Backbone:
    """Load the network of a store; whether its weights are the store's is for ``forward_of`` to say.

    A store keeps the hash of its weights and not their place.

    Args:
        store: names backbone and image size.
        settings: name weights for backbones; those of the store's count, by any of its names.
        weights: this store's, a file, ``random`` or ``pretrained``, whatever the settings say; None asks them.

    Raises:
        SettingsError: the settings name another number of weights than of backbones.
        BackboneError: it or its weights cannot be had here.
    """
    if weights is None and settings.weights:
        given = dict(zip(settings.backbone, weights_of(settings), strict=True))
        weights = next((given[name] for name in names_of(store.path) if name in given), None)
    return load_backbone(store.spec.backbone, None if weights == "pretrained" else weights, store.spec.image_size)


def compute_by(
    source: Specified, backbone: Backbone, compute: Compute | None = None, *, flags: str = "--weights FILE"
) -> Compute:
    """How to compute features by a spec: nothing is left to be chosen by what this machine has.

    Args:
        source: gives the spec.
        backbone: the network of that spec; see ``backbone_of``.
        compute: device, batch size and threads; runtime and precision are the spec's.
        flags: those of the command that would name the right weights, for the error.

    Raises:
        BackboneError: the backbone, or the decoder here, is not that of the spec.
    """
    spec, compute = source.spec, compute or Compute()
    if spec.runtime == "openvino" and compute.device == "auto":
        compute = dataclasses.replace(compute, device="cpu")
    compute = dataclasses.replace(compute, runtime=spec.runtime, precision=spec.precision)
    here = spec_of(backbone, recipe_seed=spec.recipe_seed, compute=compute, dicom=DICOM in spec.decoder)
    if here.decoder != spec.decoder:
        raise BackboneError(
            f"{source.path} was made with another decoder ({spec.differences(here)}): features like its own "
            f"are made only by the same major versions: pip install {packages_of(spec.decoder)}"
        )
    if here != spec:
        raise BackboneError(
            f"{source.path} cannot be computed again with this {backbone.name} ({spec.differences(here)}): name the "
            f"weights that made it with {flags}"
        )
    device = choose_device(compute.device)
    batch_size = choose_batch_size(compute.batch_size, device)
    return dataclasses.replace(compute, device=device, batch_size=batch_size)


def compiled(backbone: Backbone, compute: Compute, batch_size: int) -> Forward:
    """What runs a backbone as ``compute_by`` settled it, on batches of this size.

    Raises:
        BackboneError: it does not run here.
    """
    assert compute.runtime != "auto"
    assert compute.precision != "auto"
    return compile_forward(
        backbone,
        batch_size,
        runtime=compute.runtime,
        precision=compute.precision,
        device=compute.device,
        threads=compute.threads,
    )


def forward_of(
    source: Specified, backbone: Backbone, compute: Compute | None = None, *, flags: str = "--weights FILE"
) -> tuple[Forward, int]:
    """What computes features by a spec, and the batch size that it wants; see ``compute_by``.

    Raises:
        BackboneError: the backbone, or the decoder here, is not that of the spec, or it does not run here.
    """
    settled = compute_by(source, backbone, compute, flags=flags)
    assert settled.batch_size is not None
    return compiled(backbone, settled, settled.batch_size), settled.batch_size
