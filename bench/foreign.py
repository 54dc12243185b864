"""Images that no head for chest films should be asked about, drawn or made of films: for ``bench.trust`` and the tests.

What is drawn is named so: no film of another part of the body could be had with a licence that lets it lie here.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps
from scipy.ndimage import gaussian_filter

Field = NDArray[np.float64]

FAULTS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "inverted": ImageOps.invert,
    "turned by 45°": lambda film: film.rotate(45, Image.Resampling.BILINEAR),
    "turned by 90°": lambda film: film.rotate(90),
    "turned by 180°": lambda film: film.rotate(180),
    "turned by 270°": lambda film: film.rotate(270),
}
"""What happens to films on their way, and is to be told."""

LESSER: dict[str, Callable[[Image.Image], Image.Image]] = {
    "mirrored": ImageOps.mirror,
    "turned by 15°": lambda film: film.rotate(15, Image.Resampling.BILINEAR),
    "turned by 30°": lambda film: film.rotate(30, Image.Resampling.BILINEAR),
    "darkened to a sixth": lambda film: film.point(lambda value: value // 6),
    "blurred": lambda film: film.filter(ImageFilter.GaussianBlur(film.width / 28)),
    "left half": lambda film: film.crop((0, 0, film.width // 2, film.height)),
}
"""What need not be told (a mirrored chest looks like a chest), and is measured all the same."""


def png(image: Image.Image) -> bytes:
    """A file of the very pixels."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def blanks(size: int = 224) -> list[Image.Image]:
    """Black, white, nine greys, and seven that go from dark to bright."""
    line = np.linspace(0, 1, size)
    x, y = np.meshgrid(line, line)
    radius = np.hypot(x - 0.5, y - 0.5) * 1.4
    flat = [np.full((size, size), grey / 255) for grey in (0, 16, 32, 64, 96, 128, 160, 192, 224, 240, 255)]
    return [_image(field) for field in (*flat, x, y, 1 - x, 1 - y, (x + y) / 2, radius, 1 - radius)]


def noises(size: int = 224, seed: int = 0) -> list[Image.Image]:
    """White noise about several greys, and noise whose spectrum falls off more and more, down to clouds."""
    rng = np.random.default_rng(seed)
    levels = [(0.5, 0.01), (0.5, 0.04), (0.5, 0.12), (0.5, 0.25), (0.5, 0.5), (0.12, 0.04), (0.25, 0.08), (0.8, 0.08)]
    white = [rng.normal(mean, deviation, (size, size)) for mean, deviation in levels]
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    frequency[0, 0] = 1
    spectra = [np.fft.fft2(rng.standard_normal((size, size))) / frequency ** (0.5 + step / 5) for step in range(12)]
    clouds = [np.fft.ifft2(spectrum).real for spectrum in spectra]
    return [*map(_image, white), *(_image(0.5 + 0.2 * (cloud - cloud.mean()) / cloud.std()) for cloud in clouds)]


def lower_leg(seed: int, size: int = 384) -> Image.Image:
    """A drawn film of a lower leg: shin and calf bone, tubes with a bright cortex, in soft tissue on a dark ground.

    Every third has the knee's joint line, every fifth a fracture, every fourth is a narrow film, every eighth lies.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] * 2 / size - 1
    tilt = rng.normal(0, 0.08) + (np.pi / 2 if seed % 8 == 7 else 0)
    across, along = np.cos(tilt) * x - np.sin(tilt) * y, np.sin(tilt) * x + np.cos(tilt) * y
    half = rng.uniform(0.42, 0.75) * (1 - rng.uniform(0.05, 0.3) * (along + 1) / 2)
    flesh = 0.30 * np.sqrt(np.clip(1 - (across / half) ** 2, 0, 1)) + 0.06 * _edge(half - np.abs(across), 0.05)

    def bone(centre: float, width: float, bow: float, flare: float, density: float) -> Field:
        ends = np.exp(-(((along + 1) / 0.28) ** 2)) + 0.8 * np.exp(-(((along - 1) / 0.25) ** 2))
        out = np.abs(across - centre - bow * (1 - along**2)) / (width * (1 + flare * ends))
        wall, canal = (np.sqrt(np.clip(1 - (out / inner) ** 2, 0, 1)) for inner in (1, 0.62))
        shaft = np.clip(1 - (along / 0.8) ** 4, 0, 1)
        return np.asarray(_edge(1 - out, 0.12) * density * (wall - 0.55 * canal * shaft + 0.15))

    side = 1 if seed % 2 else -1
    shin = bone(
        -side * rng.uniform(0.04, 0.14),
        rng.uniform(0.13, 0.19),
        side * 0.03,
        rng.uniform(0.5, 1.1),
        rng.uniform(0.45, 0.62),
    )
    calf = bone(
        side * rng.uniform(0.22, 0.34),
        rng.uniform(0.05, 0.08),
        side * 0.02,
        rng.uniform(0.5, 1.0),
        rng.uniform(0.3, 0.45),
    )
    bones = shin + calf
    if seed % 3 == 0:
        line = rng.uniform(-0.75, -0.5)
        thigh = 0.5 * _edge(line - along, 0.03) * _edge(0.33 - np.abs(across), 0.08)
        bones = (np.where(along > line, bones, 0) + thigh) * _edge(np.abs(along - line) - 0.03, 0.03)
    if seed % 5 == 4:
        bones *= 1 - 0.6 * _edge(0.012 - np.abs(along - 0.2 - 0.5 * across * rng.uniform(-1, 1)), 0.01)
    grain = gaussian_filter(rng.standard_normal((size, size)), 0.7)
    film = rng.uniform(0.02, 0.12) + (flesh + bones) * rng.uniform(0.85, 1.15)
    film = np.clip(film, 0, 1) ** rng.uniform(0.75, 1.2) + rng.uniform(0.02, 0.05) * grain
    return _image(film[:, size // 5 : -size // 5] if seed % 4 == 3 else film)


def _edge(distance: Field, width: float) -> Field:
    """Rise smoothly from 0 to 1 where a signed distance passes through 0, within ``width``."""
    t = np.clip(distance / width + 0.5, 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def _image(field: Field) -> Image.Image:
    return Image.fromarray((np.clip(field, 0, 1) * 255).astype(np.uint8))
