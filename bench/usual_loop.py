"""What people write to keep a backbone's features: the peer that ``bench.extract`` measures against.

It runs in a process of its own: ``python -m bench.usual_loop resnet50 random cpu IMAGE…`` prints its seconds as JSON.
Loading the network is not counted, nor is it for cxr.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch.utils.data import DataLoader, Dataset

from featcache.backbones import SHORT_NAMES, load_backbone
from featcache.settings import usable_cores

BATCH = 32


class Films(Dataset[torch.Tensor]):
    """Image files, opened by Pillow and put through the transform that timm makes for the weights."""

    def __init__(self, files: Sequence[str], transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(Image.open(self.files[index]).convert("RGB"))


def loop(name: str, weights: str, device: str, files: Sequence[str]) -> float:
    """DataLoader + Pillow + timm in float32, saved with torch.save; seconds."""
    backbone = load_backbone(name, None if weights == "pretrained" else weights)
    model: Any = backbone.network.model.to(device)  # timm's own module, without cxr's normalisation and pooling
    config = resolve_model_data_config(timm.create_model(SHORT_NAMES.get(name, name)))  # type: ignore[no-untyped-call]
    transform = create_transform(**config, is_training=False)
    started = time.perf_counter()
    features = []
    with torch.no_grad():
        for images in DataLoader(Films(files, transform), batch_size=BATCH, num_workers=usable_cores()):
            features.append(model.forward_features(images.to(device)).mean((2, 3)).cpu())
    with tempfile.TemporaryDirectory() as folder:
        torch.save(torch.cat(features), Path(folder) / "features.pt")
    return time.perf_counter() - started


if __name__ == "__main__":
    network, given, place, *images = sys.argv[1:]
    print(json.dumps({"seconds": loop(network, given, place, images)}))
