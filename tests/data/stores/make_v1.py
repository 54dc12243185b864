"""Makes the golden store ``v1``, which every later cxr must open: ``python tests/data/stores/make_v1.py FOLDER``.

It was run once, when format 1 was laid down. The committed files are never made again: a store that only today's
code can open would prove nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from pathlib import Path

import numpy as np

from featcache.check import Quarantined, Scan
from featcache.images import ImageTable, strings
from featcache.index import INDEX_NAME, PARTS_NAME, write_index
from featcache.parts import read_header, write_part
from featcache.phantom import phantom
from featcache.spec import FeatureSpec

SPEC = FeatureSpec(
    backbone="golden@kind=synthetic",
    weights_sha256=hashlib.sha256(b"golden weights").hexdigest(),
    image_size=32,
    resize_side=36,
    interpolation="bicubic",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    runtime="torch",
    precision="float32",
    decoder="pillow-13",
    decode_floor=512,
)

IMAGES = (
    # (image_id, class, which phantom): the second and the sixth are byte-identical.
    ("test/NORMAL/IM-0001-0001.jpeg", "NORMAL", 0),
    ("test/PNEUMONIA/person1_virus_1.jpeg", "PNEUMONIA", 1),
    ("train/NORMAL/IM-0115-0001.jpeg", "NORMAL", 2),
    ("train/PNEUMONIA/person1_bacteria_1.jpeg", "PNEUMONIA", 3),
    ("train/PNEUMONIA/person2_bacteria_2.jpeg", "PNEUMONIA", 4),
    ("val/PNEUMONIA/person3_virus_3.jpeg", "PNEUMONIA", 1),
)
QUARANTINED = Quarantined(image_id="train/NORMAL/Röntgen.jpeg", reason="damaged or truncated: image file is truncated")


def make(store: Path) -> None:
    """Write three parts (one of them float32, one of a later view) and the index."""
    digests = [
        hashlib.sha256(phantom(number, size=64, lesion=number in (1, 3, 4))[0].tobytes()).hexdigest()
        for number in range(5)
    ]
    # Phantom i, view v, feature d: i + v/4 + d/64, which float16 holds exactly; one value overflows it.
    number, view, feature = np.ogrid[:5, :3, :8]
    features = (number + view / 4 + feature / 64).astype(np.float32)
    features[4, 1, 3] = 70_000
    parts = [
        write_part(
            store / PARTS_NAME,
            SPEC,
            [digests[i] for i in images],
            views,
            features[np.ix_(images, views)],
            {"cxr": "0.1.0"},
        )
        for images, views in ((range(3), range(2)), (range(3, 5), range(2)), (range(5), range(2, 3)))
    ]
    image_id, label, phantoms = (list(column) for column in zip(*IMAGES, strict=True))
    folder = [name.partition("/")[0] for name in image_id]
    patient = ["test/IM-0001", "test/person1", "train/IM-0115", "train/person1", "train/person2", "train/person3"]
    table = ImageTable.from_columns(image_id, label, patient, folder, ("NORMAL", "PNEUMONIA"))
    table = dataclasses.replace(
        table,
        sha256=strings([digests[number] for number in phantoms]),
        width=np.full(6, 64, np.int32),
        height=np.arange(64, 70, dtype=np.int32),
    )
    scanned = Scan(table=table, quarantined=(QUARANTINED,), odd=())
    write_index(store, SPEC, scanned, [read_header(part) for part in sorted(parts)])
    (store / f"{INDEX_NAME}.lock").unlink(missing_ok=True)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
