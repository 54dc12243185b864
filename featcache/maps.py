"""One film through the network, up to the map that its feature is the average of."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from featcache.backbones import Backbone
from featcache.decode import Pixels, decode_for, oversize_is_an_error
from featcache.errors import BackboneError
from featcache.making import geometry_of
from featcache.named_files import read_named
from featcache.networks import LastMap, PooledNetwork
from featcache.reproduction import Specified, forward_of
from featcache.runtime import Compute
from featcache.views import Window, clean_window, render


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FilmMap:
    """A film, and what the network makes of its clean view.

    Attributes:
        pixels: the whole film, upright, [H, W] or [H, W, 3] uint8.
        sha256: hash of the file's bytes.
        window: what the map covers of it, in the film's pixels. A cell's values come from more than its own share of
            the window: its receptive field is as wide as the film in most networks, though its middle counts most.
        last_map: [D, h, w] float32; the mean over h and w is the feature.
    """

    pixels: Pixels
    sha256: str
    window: Window
    last_map: NDArray[np.float32]

    @property
    def feature(self) -> NDArray[np.float32]:
        """The film's feature, [D] float32: what a store holds of it, but for the rounding of the stored type."""
        mean: NDArray[np.float32] = self.last_map.mean((1, 2), dtype=np.float64).astype(np.float32)
        return mean


class FilmMapper:
    """Makes the maps of films by the network, preprocessing, runtime and precision of a store.

    Args:
        store: says how its features were made; a store, or a source of a model.
        backbone: its network, as ``reproduction.backbone_of`` gives it.
        compute: device and threads.

    Raises:
        BackboneError: it is not the store's network, does not run here, or has no map of places.
    """

    def __init__(self, store: Specified, backbone: Backbone, compute: Compute | None = None) -> None:
        assert isinstance(backbone.network, PooledNetwork), type(backbone.network)
        _require_map(backbone, backbone.network)
        self.spec = store.spec
        self.geometry = geometry_of(store.spec)
        up_to_map = dataclasses.replace(backbone, network=LastMap(backbone.network).eval())
        one = dataclasses.replace(compute or Compute(), batch_size=1)
        self.forward, _ = forward_of(store, up_to_map, one)

    def film(self, path: Path) -> FilmMap:
        """Read one image file, and run the network over its clean view.

        Raises:
            UnreadableImageError: it cannot be read; the message is the reason.
            BackboneError: the map is not finite.
        """
        return self.film_of(read_named(path), str(path))

    def film_of(self, data: bytes, name: str = "a film") -> FilmMap:
        """The same for the bytes of a file.

        Args:
            data: the file.
            name: what it is called in an error.

        Raises:
            UnreadableImageError: it is no image that we read.
            BackboneError: the map is not finite.
        """
        with oversize_is_an_error():
            floor = self.spec.decode_floor
            films = decode_for(data, {floor, None})
        digest = hashlib.sha256(data).hexdigest()
        small, pixels = films[floor], films[None].pixels
        view = render(small.pixels, digest, [0], self.geometry, (small.height, small.width)).numpy()
        square = np.zeros((1, 3, *view.shape[-2:]), np.uint8)
        square[:] = view
        last_map = self.forward(square)[0]
        if not np.isfinite(last_map).all():
            raise BackboneError(
                f"{self.spec.backbone} in {self.spec.precision} gives a map of {name} that is not finite: extract with "
                "--precision float32"
            )
        window = clean_window(pixels.shape[0], pixels.shape[1], self.geometry)
        return FilmMap(pixels=pixels, sha256=digest, window=window, last_map=last_map)


def _require_map(backbone: Backbone, network: PooledNetwork) -> None:
    """Run one black image: the surest word on shapes, before a runtime translates the network.

    Raises:
        BackboneError: there is no map of places.
    """
    black = torch.zeros((1, 3, *[backbone.preprocessing.image_size] * 2), dtype=torch.uint8)
    try:
        with torch.inference_mode():
            # Where the network is: whoever predicts with it has moved it to a GPU.
            network.last_map(black.to(network.mean.device))
    except BackboneError as error:
        raise BackboneError(f"what {backbone.name} sees cannot be shown: {error}") from error
