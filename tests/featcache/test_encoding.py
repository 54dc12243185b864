from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featcache.backbones import Backbone, load_backbone
from featcache.check import Scan, scan
from featcache.decode import UnreadableImageError
from featcache.encoding import ImageFile, encode
from featcache.errors import BackboneError
from featcache.extraction import extract
from featcache.images import discover
from featcache.reproduction import backbone_of
from featcache.runtime import Compute
from featcache.settings import load_settings
from featcache.spec import Runtime
from featcache.store import FeatureStore, open_store

COMPUTE = Compute(device="cpu", runtime="torch", precision="float32", batch_size=8, threads=2)


def files_of(store: FeatureStore, root: Path) -> list[ImageFile]:
    return [ImageFile(name=name, data=(root / name).read_bytes()) for name in store.image_table.image_id]


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_an_image_of_the_data_set_gets_the_very_feature_that_is_stored(
    runtime: Runtime, phantoms: Path, scanned_phantoms: Scan, tmp_path: Path, tiny: Backbone
) -> None:
    compute = Compute(device="cpu", runtime=runtime, precision="float32", batch_size=8, threads=2)
    (summary,) = extract(scanned_phantoms, phantoms, tmp_path, [tiny], compute=compute)
    store = open_store(summary.store)
    files = files_of(store, phantoms)
    kept = store.features()
    assert len(np.unique(kept, axis=0)) == len(files)
    # Runtime and precision are the store's, whatever is asked for; and neither order nor number matters.
    assert encode(files, store, tiny, Compute(device="cpu", runtime="auto")).tobytes() == kept.tobytes()
    assert encode(files[20:9:-1], store, tiny).tobytes() == kept[20:9:-1].tobytes()


def test_large_and_coloured_images_are_shrunk_and_rendered_as_an_extraction_does(
    tmp_path: Path, phantoms: Path, tiny: Backbone
) -> None:
    films = shutil.copytree(phantoms, tmp_path / "films")
    rng = np.random.default_rng(0)
    large = Image.fromarray(rng.integers(0, 255, (30, 43, 3), np.uint8)).resize((1501, 1103))
    large.save(films / "train/NORMAL/large.jpeg")
    large.save(films / "train/NORMAL/large.png")
    (summary,) = extract(scan(discover(films), films), films, tmp_path / "cache", [tiny], compute=COMPUTE)
    store = open_store(summary.store)
    names = ["train/NORMAL/large.jpeg", "train/NORMAL/large.png"]
    files = [ImageFile(name=name, data=(films / name).read_bytes()) for name in names]
    kept = store.features(names)
    assert not np.array_equal(kept[0], kept[1])
    assert encode(files, store, tiny).tobytes() == kept.tobytes()


def test_what_is_no_image_is_named_before_a_network_is_compiled(phantom_store: Path, tiny: Backbone) -> None:
    file = io.BytesIO()
    Image.new("L", (64, 64)).save(file, "JPEG")
    images = [ImageFile(name="good.jpeg", data=file.getvalue()), ImageFile(name="bad.jpeg", data=b"GIF89a")]
    with pytest.raises(UnreadableImageError, match=r"^bad\.jpeg: not a JPEG"):
        encode(images, open_store(phantom_store), tiny)


def test_another_network_is_refused(phantom_store: Path, phantoms: Path) -> None:
    store = open_store(phantom_store)
    with pytest.raises(BackboneError, match=r"weights_sha256 .* name the weights that made it with --weights FILE"):
        encode(files_of(store, phantoms)[:1], store, load_backbone("tiny_network:other"))


def test_the_network_of_a_store_comes_with_the_weights_that_settings_name(
    phantoms: Path, scanned_phantoms: Scan, tmp_path: Path
) -> None:
    made = load_backbone("efficientnet_lite0", "random", 64)
    few = Scan(table=scanned_phantoms.table.take(np.arange(2)), quarantined=(), odd=())
    (summary,) = extract(few, phantoms, tmp_path, [made], compute=COMPUTE)
    store = open_store(summary.store)
    named = load_settings(
        {"backbone": ["tiny_network:tiny", "efficientnet_lite0"], "weights": ["pretrained", "random"]}
    )
    assert backbone_of(store, named).weights_sha256 == store.spec.weights_sha256
    assert backbone_of(store, named).preprocessing.image_size == 64
    assert backbone_of(store, load_settings()).weights_sha256 != store.spec.weights_sha256
    # What a command is told of the one store that it works on counts more than what the settings say of a backbone.
    others = load_settings({"backbone": ["efficientnet_lite0"], "weights": ["pretrained"]})
    assert backbone_of(store, others, "random").weights_sha256 == store.spec.weights_sha256
    assert backbone_of(store, named, "pretrained").weights_sha256 != store.spec.weights_sha256
