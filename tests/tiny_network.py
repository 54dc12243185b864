"""A tiny deterministic network for tests, spelled ``tiny_network:tiny`` as a backbone."""

from __future__ import annotations

import os
import time

import torch
from torch import nn


class Tiny(nn.Module):
    """Two convolutions, seeded weights: normalised pixels [B, 3, 32, 32] → maps [B, 16, 8, 8]."""

    image_size = 32
    mean = (0.5, 0.5, 0.5)
    std = (0.25, 0.25, 0.25)

    def __init__(self, seed: int = 7) -> None:
        super().__init__()
        first, second = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in (first, second):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * 0.2)
                assert layer.bias is not None
                layer.bias.zero_()
        self.layers = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """The last map, not before ``TINY_NETWORK_SECONDS``."""
        time.sleep(float(os.environ.get("TINY_NETWORK_SECONDS", "0")))
        maps: torch.Tensor = self.layers(pixels)
        return maps


def tiny() -> nn.Module:
    """The same network each time."""
    return Tiny()


def other() -> nn.Module:
    """The same architecture with other weights."""
    return Tiny(seed=8)
