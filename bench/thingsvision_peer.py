"""thingsvision's extractor, as a peer of ``bench.extract``.

It pins an older torch, so it needs an environment of its own and imports nothing of ours:
``/its/python bench/thingsvision_peer.py resnet50 IMAGE…`` prints its seconds as JSON; loading is not counted.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

BATCH = 32

LAST_MAPS = {"resnet50": "layer4", "vgg19": "features", "inception_v3": "Mixed_7c", "efficientnet_b4": "bn2"}
"""The module whose output is the last map."""


def seconds(name: str, files: Sequence[str]) -> float:
    """Extract the last map of a timm network with random weights, averaged over the map, into an array."""
    from thingsvision import get_extractor
    from thingsvision.utils.data import DataLoader, ImageDataset

    extractor = get_extractor(model_name=name, source="timm", device="cpu", pretrained=False)
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        images.mkdir()
        for number, file in enumerate(files):
            (images / f"{number:06d}.jpeg").symlink_to(Path(file).resolve())
        backend = extractor.get_backend()
        started = time.perf_counter()
        dataset = ImageDataset(
            root=str(images), out_path=folder, backend=backend, transforms=extractor.get_transformations()
        )
        batches = DataLoader(dataset=dataset, batch_size=BATCH, backend=backend)
        features = extractor.extract_features(
            batches=batches, module_name=LAST_MAPS[name], flatten_acts=False, output_type="tensor"
        )
        features.mean((2, 3)).numpy()
        return time.perf_counter() - started


if __name__ == "__main__":
    # Its progress bars go to stderr; what it prints must not get between us and the last line.
    print(json.dumps({"seconds": seconds(sys.argv[1], sys.argv[2:])}))
