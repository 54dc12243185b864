"""Makes the two heads beside it: fitted on 800 phantoms, chosen by val loss, for the test of where a map points.

``python tests/data/heads/make_phantom_heads.py``, again only where the phantoms or the heads' form change. Nothing
here knows where a lesion is.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from safetensors.numpy import save_file

from featcache.backbones import load_backbone
from featcache.check import scan
from featcache.extraction import extract
from featcache.images import discover
from featcache.phantom import write_phantoms
from featcache.store import open_store
from heads import Samples, fit, grid


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_phantoms(Path(scratch) / "phantoms", train=800, val=120, test=8, pneumonia_share=0.5, seed=21)
        scanned = scan(discover(folder), folder)
        (summary,) = extract(scanned, folder, Path(scratch) / "cache", [load_backbone("efficientnet_lite0")])
        store = open_store(summary.store)
        table, features = store.image_table, store.views()
    train, val = (
        Samples(features=features[rows], labels=table.label[rows], classes=2)
        for rows in (table.split == "train", table.split == "val")
    )
    for hidden in (0, 16):
        fitted = fit(
            train,
            val,
            grid(hidden=[hidden], l2=[0, 1e-4, 1e-2], lr=[1e-3, 1e-2], seeds=[0, 1], epochs=200, patience=20),
        )
        best = min(fitted, key=lambda head: head.history.val_loss[head.best_epoch])
        save_file(best.weights.tensors(), Path(__file__).parent / f"phantoms-hidden{hidden}.safetensors")
        print(best.config, best.history.val_loss[best.best_epoch], best.history.val_accuracy[best.best_epoch])  # noqa: T201


if __name__ == "__main__":
    main()
