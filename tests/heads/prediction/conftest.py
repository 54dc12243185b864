"""A folder with films, their features and two runs of heads, by the command line; read it, never write to it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from test_cli import done

QUICK = {"CXR_DEVICE": "cpu", "CXR_RUNTIME": "torch", "CXR_PRECISION": "float32"}
BACKBONES = ("tiny_network:tiny", "tiny_network:other")


@pytest.fixture(scope="session")
def place(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``films``, and in ``cache`` stores of two networks and a run of eight heads: two seeds, alone and joined."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(phantoms, folder / "films")
    both = ("--backbone", BACKBONES[0], "--backbone", BACKBONES[1])
    done("extract", "--data", "films", *both, "--views", "3", cwd=folder, **QUICK)
    joined = ("--backbone", "+".join(BACKBONES))
    flags = ("--hidden", "0", "--hidden", "8", "--seeds", "2", "--epochs", "3", "--batch-size", "16")
    done("fit-head", "--data", "films", *both, *joined, *flags, cwd=folder, **QUICK)
    return folder


@pytest.fixture(scope="session")
def real_place(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``films``, 220 of the real ones, their features by EfficientNet-Lite0 and a head; read it, never write to it."""
    folder = tmp_path_factory.mktemp("real")
    for split, count in (("train", 60), ("test", 50)):
        for of_class in sorted((real_data / split).iterdir()):
            target = folder / "films" / split / of_class.name
            target.mkdir(parents=True)
            for film in sorted(of_class.glob("*.jpeg"))[:: 5 if split == "train" else 4][:count]:
                shutil.copy(film, target)
    backbone = ("--data", "films", "--backbone", "efficientnet_lite0")
    done("extract", *backbone, "--views", "2", cwd=folder)
    done("fit-head", *backbone, "--hidden", "16", "--epochs", "10", "--select", "clean", cwd=folder)
    return folder
