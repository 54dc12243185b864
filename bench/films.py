"""Reading films of native size: how fast, and how like the whole decode; a part of ``bench.extract``."""

from __future__ import annotations

import functools
import io
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from bench.machine import show
from featcache.backbones import Backbone, load_backbone
from featcache.decode import WHOLE, decode, decode_for, eighths_for
from featcache.forward import compile_forward
from featcache.networks import Preprocessing
from featcache.planning import spec_of
from featcache.views import Geometry, render

ROUNDS = 3


def native(files: Sequence[Path]) -> list[str]:
    """Point 5: reading large films, against the usual full decode and resize, one thread each."""
    torch.set_num_threads(1)
    data = [file.read_bytes() for file in files]
    rows = []
    for name, weights in (("efficientnet_lite0", None), ("efficientnet_b4", "random")):
        backbone = load_backbone(name, weights)
        preprocessing, floor = backbone.preprocessing, spec_of(backbone).decode_floor
        ways: dict[str, Callable[[bytes], object]] = {
            "usual": functools.partial(usual_view, preprocessing, "RGB"),
            "grey": functools.partial(usual_view, preprocessing, "L"),
            "whole": functools.partial(clean_view, preprocessing, None),
            "cxr": functools.partial(clean_view, preprocessing, floor),
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _, (way, read) in itertools.product(range(ROUNDS), ways.items()):
            started = time.perf_counter()
            for film in data:
                read(film)
            times[way].append((time.perf_counter() - started) / len(data) * 1e3)
        middle = {way: statistics.median(found) for way, found in times.items()}
        shrunk = sum(eighths_for(min(decode(film).shape[:2]), floor) < WHOLE for film in data)
        whole, small = (
            features(backbone, [clean_view(preprocessing, least, film) for film in data]) for least in (None, floor)
        )
        cosine = np.sum(whole * small, 1) / np.linalg.norm(whole, axis=1) / np.linalg.norm(small, axis=1)
        rows.append(
            [
                f"{backbone.name}, {preprocessing.resize_side} px",
                f"{shrunk} of {len(data)}",
                *(f"{middle[way]:.1f}" for way in ways),
                *(f"{middle[way] / middle['cxr']:.1f}" for way in ("usual", "grey", "whole")),
                f"{cosine.min():.5f}",
            ]
        )
    header = [
        "for",
        "shrunk",
        "Pillow in RGB (timm's way), ms",
        "Pillow in grey, ms",
        "cxr, whole, ms",
        "cxr, ms",
        "ratio to RGB",
        "to grey",
        "to whole",
        "least cosine to the whole decode",
    ]
    return show(header, rows)


def usual_view(preprocessing: Preprocessing, colours: str, film: bytes) -> object:
    """What a timm transform does before it makes a tensor: full decode, resize, crop."""
    image = Image.open(io.BytesIO(film)).convert(colours)
    mode = InterpolationMode(preprocessing.interpolation)
    return transforms.center_crop(transforms.resize(image, preprocessing.resize_side, mode), preprocessing.image_size)


def clean_view(preprocessing: Preprocessing, floor: int | None, film: bytes) -> NDArray[np.uint8]:
    """Our clean view, [1, c, S, S] uint8."""
    geometry = Geometry(
        image_size=preprocessing.image_size,
        resize_side=preprocessing.resize_side,
        interpolation=preprocessing.interpolation,
    )
    seen = decode_for(film, [floor])[floor]
    return render(seen.pixels, "0" * 64, [0], geometry, (seen.height, seen.width)).numpy()


def features(backbone: Backbone, images: Sequence[NDArray[np.uint8]], batch_size: int = 8) -> NDArray[np.float32]:
    """Features of clean views, each [1, c, S, S]."""
    forward = compile_forward(backbone, batch_size, runtime="openvino", precision="float32", device="cpu")
    side = backbone.preprocessing.image_size
    pixels = np.stack([np.broadcast_to(image[0], (3, side, side)) for image in images])
    pixels = np.concatenate([pixels, pixels[: -len(pixels) % batch_size]])
    return np.concatenate([forward(batch) for batch in np.split(pixels, len(pixels) // batch_size)])[: len(images)]
