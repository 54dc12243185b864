"""What the network sees of an image: the clean view 0, and augmented views that depend on nothing but the image.

View v of an image is drawn from (content hash, v, recipe seed) alone: not from the batch, the worker, the order
or the other views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from featcache.conversion import GATE
from featcache.decode import Pixels

RECIPES = ("standard",)


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How pixels become the network's square; backbones of equal geometry share their views.

    Attributes:
        image_size: side of the square, in pixels.
        resize_side: what the clean image's shorter side becomes before the centre crop, in pixels.
        interpolation: ``bilinear`` or ``bicubic``.
        recipe: name of the recipe of augmented views.
        recipe_seed: its seed.
    """

    image_size: int
    resize_side: int
    interpolation: str
    recipe: str = "standard"
    recipe_seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Window:
    """What the network's square shows of a film: a rectangle in the film's pixels, whose first one ends at 1.0."""

    top: float
    left: float
    height: float
    width: float


def clean_window(height: float, width: float, geometry: Geometry) -> Window:
    """Where the clean view 0 lies on a film of this height and width in pixels, by ``_clean``'s rounding."""
    shorter, square = min(height, width), geometry.image_size
    # A resized side is a whole number, so the longer one's scale is not quite the shorter one's.
    sides = [int(geometry.resize_side * side / shorter) for side in (height, width)]
    scales = [side / resized for side, resized in zip((height, width), sides, strict=True)]
    top, left = (round((resized - square) / 2) * scale for resized, scale in zip(sides, scales, strict=True))
    return Window(top=top, left=left, height=square * scales[0], width=square * scales[1])


def render(
    pixels: Pixels,
    sha256: str,
    views: Sequence[int],
    geometry: Geometry,
    extent: tuple[float, float] | None = None,
) -> torch.Tensor:
    """Make some views of an image, [v, c, S, S] uint8 with one channel for grey images and three for others.

    Args:
        pixels: [H, W] or [H, W, 3] uint8.
        sha256: the content hash that seeds the augmented views.
        views: view numbers; 0 is the clean image.
        geometry: the network's square.
        extent: height and width of the film in pixels where it ends within the last one; see ``decode.Decoded``.
    """
    assert geometry.recipe in RECIPES, geometry.recipe
    image = torch.from_numpy(np.array(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1), order="C"))
    with GATE.render():
        made = [
            _clean(image, extent, geometry) if view == 0 else _augmented(image, sha256, view, geometry)
            for view in views
        ]
    return torch.stack(made)


def _clean(image: torch.Tensor, extent: tuple[float, float] | None, geometry: Geometry) -> torch.Tensor:
    """The preprocessing that belongs to the weights: resize the shorter side, crop the centre."""
    if extent is None or extent == tuple(image.shape[-2:]):
        resized = transforms.resize(
            image, [geometry.resize_side], interpolation=InterpolationMode(geometry.interpolation), antialias=True
        )
    else:
        # The film alone fills the square, to a fraction of a pixel; torchvision's resize knows whole pixels only.
        shorter = min(extent)
        sides = [int(geometry.resize_side * side / shorter) for side in extent]
        # torch rounds side · factor down: the tiny addition keeps rounding errors from costing a line.
        factors = [(wanted + 1e-6) / side for wanted, side in zip(sides, extent, strict=True)]
        resized = nn.functional.interpolate(
            image[None], scale_factor=factors, mode=geometry.interpolation, antialias=True
        )[0]
    cropped: torch.Tensor = transforms.center_crop(resized, [geometry.image_size, geometry.image_size])
    return cropped


def _augmented(image: torch.Tensor, sha256: str, view: int, geometry: Geometry) -> torch.Tensor:
    """One view by the recipe ``standard``: what differs between films of one chest, and no more.

    Another crop (position, collimation), a mirror, a small turn; then exposure (contrast, brightness, gamma) and
    sharpness (a coarser detector or a little motion). Every number is drawn whether used or not, so that each
    one's meaning stays when another is changed.
    """
    random = np.random.default_rng(
        np.random.SeedSequence([int(sha256[:32], 16), int(sha256[32:], 16), view, geometry.recipe_seed])
    )
    area, log_ratio, top, left = random.uniform([0.65, -0.12, 0, 0], [1.0, 0.12, 1, 1])
    mirrored, angle = random.random() < 0.5, random.uniform(-7, 7)
    contrast, brightness, gamma = np.exp(random.uniform([-0.35, -0.2, -0.3], [0.35, 0.2, 0.3]))
    softness, sigma, coarseness = random.random(), random.uniform(0.4, 1.6), random.uniform(1.2, 2.5)

    height, width = image.shape[-2:]
    shape = np.sqrt(area) * np.exp([log_ratio / 2, -log_ratio / 2])
    crop_height, crop_width = (max(1, round(n * min(1.0, s))) for n, s in zip((height, width), shape, strict=True))
    side = geometry.image_size
    view_pixels: torch.Tensor = transforms.resized_crop(
        image,
        top=round(top * (height - crop_height)),
        left=round(left * (width - crop_width)),
        height=crop_height,
        width=crop_width,
        size=[side, side],
        interpolation=InterpolationMode(geometry.interpolation),
        antialias=True,
    )
    if mirrored:
        view_pixels = transforms.horizontal_flip(view_pixels)
    view_pixels = transforms.rotate(view_pixels, angle, interpolation=InterpolationMode.BILINEAR)
    view_pixels = transforms.adjust_contrast(view_pixels, contrast)
    view_pixels = _exposed(view_pixels, brightness, gamma)
    if softness < 1 / 3:
        view_pixels = transforms.gaussian_blur(view_pixels, [7, 7], [sigma, sigma])
    elif softness < 2 / 3:
        coarse = [max(1, round(side / coarseness))] * 2
        view_pixels = transforms.resize(
            transforms.resize(view_pixels, coarse, antialias=True), [side, side], antialias=True
        )
    return view_pixels


def _exposed(pixels: torch.Tensor, brightness: float, gamma: float) -> torch.Tensor:
    """Pixels [c, H, W] uint8 with another brightness and gamma.

    Both change each of the 256 values by itself: to ask for those alone is the same, and ten times as fast.
    """
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 256)
    values = transforms.adjust_gamma(transforms.adjust_brightness(values, brightness), gamma)
    return torch.from_numpy(values.numpy().ravel()[pixels.numpy()])
