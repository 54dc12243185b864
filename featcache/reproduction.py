"""The network that made a store, once more: the same weights, preprocessing, runtime and precision, or an error."""

from __future__ import annotations

import dataclasses

from featcache.backbones import Backbone, load_backbone
from featcache.errors import BackboneError
from featcache.planning import spec_of
from featcache.runtime import Compute
from featcache.store import FeatureStore


def load_backbone_of(store: FeatureStore, weights: str = "pretrained") -> Backbone:
    """Load the backbone of a store; whether its weights are the store's is for ``compute_as_stored`` to say.

    Args:
        store: names backbone and image size.
        weights: a file, ``random`` or ``pretrained``: a store keeps the hash of its weights and not their place.

    Raises:
        BackboneError: see ``backbones.load_backbone``.
    """
    return load_backbone(store.spec.backbone, None if weights == "pretrained" else weights, store.spec.image_size)


def compute_as_stored(
    store: FeatureStore, backbone: Backbone, compute: Compute | None = None, *, way_out: str | None = None
) -> Compute:
    """How to compute what the store holds: device and threads as given, runtime and precision as in its spec.

    Args:
        store: the store.
        backbone: what is to compute.
        compute: device and threads.
        way_out: the flags that name other weights; None where the command takes several backbones.

    Raises:
        BackboneError: the backbone, or the decoder here, is not that of the spec.
    """
    spec, compute = store.spec, compute or Compute()
    if spec.runtime == "openvino" and compute.device == "auto":
        compute = dataclasses.replace(compute, device="cpu")
    compute = dataclasses.replace(compute, runtime=spec.runtime, precision=spec.precision)
    here = spec_of(backbone, recipe_seed=spec.recipe_seed, compute=compute)
    if here.decoder != spec.decoder:
        raise BackboneError(
            f"{store.path} was made with another decoder ({spec.differences(here)}): it can be read and verified, and "
            "computed again only by the cxr and the packages that its parts name"
        )
    if here != spec:
        raise BackboneError(
            f"{store.path} cannot be computed again with this {backbone.name} ({spec.differences(here)}): name the "
            f"weights that made it with {way_out or f'--backbone {spec.backbone} --weights FILE'}"
        )
    return compute
