"""Images that no store holds to features, computed exactly as a store's spec says, and so comparable with its own.

The same file gives the same bytes as the extraction would (a test).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from featcache.backbones import Backbone
from featcache.decode import decode_for, oversize_is_an_error
from featcache.errors import UnreadableImageError
from featcache.films import ImageFile as ImageFile
from featcache.making import geometry_of
from featcache.parts import stored_as
from featcache.reproduction import forward_of
from featcache.runtime import Compute
from featcache.spec import FeatureSpec
from featcache.store import FeatureStore
from featcache.views import render


def encode(
    images: Sequence[ImageFile], store: FeatureStore, backbone: Backbone, compute: Compute | None = None
) -> NDArray[np.float32]:
    """Features of the clean view, [n, D] float32, rounded as the store keeps its own.

    Args:
        images: files of any data set.
        store: gives the spec.
        backbone: the network of that spec; see ``reproduction.backbone_of``.
        compute: device, batch size and threads; runtime and precision are the spec's.

    Raises:
        UnreadableImageError: an image cannot be read; the message begins with its name.
        BackboneError: see ``reproduction.forward_of``.
    """
    spec = store.spec
    # First all images: a network may take a minute to compile, and one bad file would come to light after it.
    pixels = [clean_view(image, spec) for image in images]
    forward, batch_size = forward_of(store, backbone, compute)
    features = np.empty((len(images), backbone.dim), np.float32)
    batch = np.zeros((batch_size, 3, spec.image_size, spec.image_size), np.uint8)
    for start in range(0, len(images), batch_size):
        some = pixels[start : start + batch_size]
        for place, one in zip(batch, some, strict=False):
            place[:] = one
        features[start : start + len(some)] = forward(batch)[: len(some)]
    return stored_as(features, spec.dtype).astype(np.float32)


def clean_view(image: ImageFile, spec: FeatureSpec) -> NDArray[np.uint8]:
    """View 0, [c, S, S] uint8 with one channel for a grey image and three for others.

    Raises:
        UnreadableImageError: the image cannot be read; the message begins with its name.
    """
    try:
        with oversize_is_an_error():
            film = decode_for(image.data, [spec.decode_floor])[spec.decode_floor]
    except UnreadableImageError as error:
        raise UnreadableImageError(f"{image.name}: {error}") from error
    view: NDArray[np.uint8] = render(film.pixels, image.sha256, [0], geometry_of(spec), (film.height, film.width))[
        0
    ].numpy()
    return view
