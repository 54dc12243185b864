"""From a classifier to a feature extractor: normalise, run up to the last map, average it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torchvision.models import DenseNet

from featcache.errors import BackboneError


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What the weights expect of an image; see ``FeatureSpec`` for the fields' units."""

    image_size: int
    resize_side: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class PooledNetwork(nn.Module):
    """Normalise, run the network up to its last map, average over the map.

    Pixels come in as uint8 [B, 3, S, S]; what goes out is [B, D] float32.
    """

    def __init__(self, model: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model = model
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.register_buffer("mean", 255 * torch.tensor(preprocessing.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(preprocessing.std).view(1, 3, 1, 1), persistent=False)
        self.features: Callable[[torch.Tensor], torch.Tensor] = getattr(model, "forward_features", model)
        self.prefix = int(getattr(model, "num_prefix_tokens", 0))
        self.channels = getattr(model, "num_features", None)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features [B, D] float32 of pixels [B, 3, S, S] uint8."""
        last = self._last(pixels)
        if last.ndim == 4:
            return last.float().mean((1, 2) if self._has_channels_last(last) else (2, 3))
        if last.ndim == 3:
            return last[:, self.prefix :].float().mean(1)
        return last.float()

    def last_map(self, pixels: torch.Tensor) -> torch.Tensor:
        """What ``forward`` averages, [B, D, h, w] float32, of pixels [B, 3, S, S] uint8.

        Tokens of a transformer stand in rows over the square, so they are a map too.

        Raises:
            BackboneError: the network ends in a vector, or in tokens that fill no square.
        """
        last = self._last(pixels)
        if last.ndim == 4:
            return (last.movedim(3, 1) if self._has_channels_last(last) else last).float()
        tokens = last[:, self.prefix :] if last.ndim == 3 else last[:, :0]
        side = math.isqrt(tokens.shape[1])
        if not side or side**2 != tokens.shape[1]:
            raise BackboneError(f"its last layer gives {tuple(last.shape)}, which is no map of places")
        return tokens.transpose(1, 2).reshape(len(tokens), -1, side, side).float()

    def _last(self, pixels: torch.Tensor) -> torch.Tensor:
        last = self.features((pixels.float() - self.mean) / self.std)
        if not isinstance(last, torch.Tensor):
            raise TypeError(f"its last map is a {type(last).__name__}, wanted one tensor")
        return last

    def _has_channels_last(self, last: torch.Tensor) -> bool:
        """Whether a map is [B, h, w, D]: Swin and its kin put the channels there."""
        return last.shape[1] != self.channels and last.shape[3] == self.channels


class LastMap(nn.Module):
    """A network before its average: uint8 pixels [B, 3, S, S] → maps [B, D, h, w] float32."""

    def __init__(self, network: PooledNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """The last map; see ``PooledNetwork.last_map``."""
        return self.network.last_map(pixels)


class TorchvisionFeatures(nn.Module):
    """A torchvision classifier up to what its average pooling is given, [B, D, h, w]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        children = dict(model.named_children())
        if isinstance(model, DenseNet):
            # Its last activation stands in ``forward``, not among its children.
            self.last: nn.Module = nn.Sequential(model.features, nn.ReLU())
        elif "avgpool" in children:
            # What stands before it, in the order in which torchvision's networks call it.
            names = list(children)
            self.last = nn.Sequential(*(children[name] for name in names[: names.index("avgpool")]))
        elif "features" in children:
            self.last = children["features"]
        else:
            raise BackboneError(
                f"torchvision's {type(model).__name__} has no last map to average; use timm's model of that name"
            )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """The last map [B, D, h, w] of normalised pixels [B, 3, S, S]."""
        last: torch.Tensor = self.last(pixels)
        return last

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:  # noqa: ANN401 - torch's signature
        """Load torchvision's own state, whose names know nothing of this wrapper."""
        return self.model.load_state_dict(state, strict, assign)
