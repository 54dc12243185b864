"""Small stand-ins for the published set: the same folders, and few films in them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from featcache.fetch import Counts

KAGGLE: Counts = {split: {"NORMAL": 2, "PNEUMONIA": 3} for split in ("train", "val", "test")}
MENDELEY: Counts = {"train": {"NORMAL": 4, "PNEUMONIA": 6}, "test": {"NORMAL": 2, "PNEUMONIA": 3}}
SMALL = {"Kaggle": KAGGLE, "Mendeley": MENDELEY}


def film(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (70, 80), np.uint8)).save(file, "JPEG")
    return file.getvalue()


def images(counts: Counts, prefix: str = "chest_xray") -> dict[str, bytes]:
    """Path in the zip → bytes."""
    names = [
        f"{split}/{label}/{n}.jpeg" for split, of in counts.items() for label, most in of.items() for n in range(most)
    ]
    return {f"{prefix}/{name}": film(number) for number, name in enumerate(names)}


def zipped(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path
