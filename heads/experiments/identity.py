"""What determines a run, and what it was made with."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version

from featcache.hardware import device_in_words
from featcache.images import ImageTable
from featcache.settings import usable_cores
from featcache.splits import Split
from heads.experiments.grids import StoreGrid


def run_id(
    grids: Sequence[StoreGrid],
    images: ImageTable,
    divided: Split,
    positive: int,
    folds: Sequence[str] = (),
    *,
    adapt: bool = False,
) -> str:
    """Name a run by all that determines it: version, images, split, features, views, configurations.

    Args:
        grids: what is fitted on which features.
        images: the image table.
        divided: how it is divided.
        positive: index of the positive class.
        folds: names of the folds that are held out besides.
        adapt: whether val and test are brought to the moments of train.
    """
    content = {
        "cxr": version("cxr"),
        "images": images_sha256(images),
        "grids": [[one.source.fingerprint, one.views, [asdict(config) for config in one.configs]] for one in grids],
        "split": [divided.rule, divided.seed],
        "positive": positive,
        "folds": list(folds),
        **({"adapt": True} if adapt else {}),
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return f"{divided.rule}-{digest[:10]}"


def images_sha256(images: ImageTable) -> str:
    """Hash over classes, and of every image its name, content, label, patient and folder."""
    digest = hashlib.sha256(json.dumps(images.classes).encode())
    for row in zip(images.image_id, images.sha256, images.label.tolist(), images.patient_id, images.split, strict=True):
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()


def provenance(device: str = "cpu") -> dict[str, str]:
    """Versions and hardware; ``device`` is where the heads were fitted."""
    packages = {name: version(name) for name in ("cxr", "torch", "numpy", "scikit-learn", "h5py")}
    here = {"python": platform.python_version(), "machine": platform.machine()}
    return {**packages, **here, "device": device_in_words(device), "cores": str(usable_cores())}
