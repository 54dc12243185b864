"""The same on an NVIDIA GPU, where there is one: features, heads, answers and evidence beside the processor's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from featcache.backbones import Backbone, load_backbone
from featcache.check import Scan
from featcache.engines import OnDevices
from featcache.extraction import extract
from featcache.forward import compile_forward
from featcache.recompute import recompute
from featcache.runtime import Compute, choose_batch_size, choose_precision
from featcache.spec import Precision
from featcache.store import FeatureStore, open_store
from heads import HeadConfig, Samples, fit, grid
from heads.experiments.experiment import run_experiment
from heads.prediction.from_run import model_of_run
from heads.prediction.predictor import Predictor
from heads.prediction.saliency import Explainer

pytestmark = [pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]

BATCH = 16
PRECISIONS: list[Precision] = ["float32", "bfloat16", "float16"]


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    """Smooth pictures, [16, 3, 224, 224]."""
    row, column = np.mgrid[:224, :224] / 224
    waves = np.random.default_rng(0).uniform(1, 20, (BATCH * 3, 2))
    pictures = np.array([127 + 127 * np.sin(a * row + b * column) for a, b in waves], np.uint8)
    return pictures.reshape(BATCH, 3, 224, 224)


def network() -> Backbone:
    return load_backbone("resnet18", "random")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "vit_tiny_patch16_224", "torchvision:densenet121"])
def test_features_are_the_processors_but_for_the_precision(
    name: str, precision: Precision, pixels: NDArray[np.uint8]
) -> None:
    backbone = load_backbone(name, "random")
    with torch.inference_mode():
        wanted = backbone.network(torch.from_numpy(pixels)).numpy()
    got = compile_forward(backbone, BATCH, runtime="torch", precision=precision, device="cuda")(pixels)
    assert got.dtype == np.float32
    cosine = np.sum(got * wanted, 1) / np.linalg.norm(got, axis=1) / np.linalg.norm(wanted, axis=1)
    assert cosine.min() > (0.99999 if precision == "float32" else 0.999)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_feature_hangs_on_no_neighbour_no_place_and_no_stream(
    precision: Precision, pixels: NDArray[np.uint8]
) -> None:
    forward = compile_forward(network(), BATCH, runtime="torch", precision=precision, device="cuda")
    wanted = forward(pixels)
    for _ in range(4):  # Either stream has its turn.
        np.testing.assert_array_equal(forward(pixels), wanted)
    np.testing.assert_array_equal(forward(pixels[::-1].copy()), wanted[::-1])
    alone = np.zeros_like(pixels)
    alone[5] = pixels[3]
    np.testing.assert_array_equal(forward(alone)[5], wanted[3])
    again = compile_forward(network(), BATCH, runtime="torch", precision=precision, device="cuda")
    np.testing.assert_array_equal(again(pixels), wanted)


@pytest.fixture(scope="module")
def placed(phantoms: Path, scanned_phantoms: Scan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of three views made on the GPU, and a run of four heads fitted on it there."""
    cache = tmp_path_factory.mktemp("cuda")
    extract(scanned_phantoms, phantoms, cache / "phantoms", [network()], views=3, compute=Compute(device="cuda"))
    (store,) = stores(cache)
    configs = grid(hidden=[0, 8], l2=[0.0, 1e-3], lr=[1e-2], seeds=[0], epochs=5, batch_size=16)
    run_experiment([store], store.path.parent, configs, device="cuda")
    return cache


def stores(cache: Path) -> list[FeatureStore]:
    return [open_store(file.parent) for file in sorted(cache.glob("phantoms/*/features.h5"))]


def test_a_store_is_made_in_the_devices_precision_and_again_to_the_byte(
    placed: Path, phantoms: Path, scanned_phantoms: Scan, tmp_path: Path
) -> None:
    (store,) = stores(placed)
    assert (store.spec.runtime, store.spec.precision) == ("torch", choose_precision("auto", "cuda"))
    compute, cache = Compute(device="cuda"), tmp_path / "phantoms"
    # In a process of its own, as `--devices` starts one a GPU.
    extract(scanned_phantoms, phantoms, cache, [network()], views=3, compute=compute, engine=OnDevices(["cuda:0"]))
    for part in sorted((store.path / "parts").iterdir()):
        assert (cache / store.path.name / "parts" / part.name).read_bytes() == part.read_bytes()


def test_a_batch_too_large_for_the_gpu_is_halved_and_told(
    phantoms: Path, scanned_phantoms: Scan, tmp_path: Path
) -> None:
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved() + 700 * 2**20
    torch.cuda.set_per_process_memory_fraction(held / torch.cuda.get_device_properties(0).total_memory)
    try:
        compute = Compute(device="cuda", batch_size=2048)
        (summary,) = extract(scanned_phantoms, phantoms, tmp_path, [network()], compute=compute)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert summary.notes
    assert "out of memory for 2048 images at once, went on with 1024" in summary.notes[0]
    store = open_store(Path(summary.store))
    assert np.isfinite(store.features(list(scanned_phantoms.table.image_id))).all()


@pytest.mark.parametrize("hidden", [0, 32])
def test_heads_are_the_processors_but_for_rounding(hidden: int) -> None:
    train, val = drawn(400, 1), drawn(160, 2)
    configs = grid(hidden=[hidden], l2=[0.0, 1e-3], lr=[1e-2, 1e-3], seeds=[0, 1], epochs=6, batch_size=64)
    here, there = (fit(train, val, configs, device=device) for device in ("cpu", "cuda"))
    for ours, theirs in zip(here, there, strict=True):
        np.testing.assert_allclose(ours.history.val_loss, theirs.history.val_loss, rtol=2e-3, atol=2e-4)
    (alone,) = fit(train, val, configs[3:4], device="cuda")
    np.testing.assert_allclose(alone.history.val_loss, there[3].history.val_loss, rtol=1e-4, atol=1e-5)


def test_heads_in_bfloat16_learn_what_those_in_float32_do() -> None:
    train, val = drawn(2000, 1), drawn(500, 2)
    config = HeadConfig(hidden=64, lr=1e-3, epochs=8, batch_size=128)
    (full,), (low,) = (fit(train, val, [one], device="cuda") for one in (config, replace(config, precision="bfloat16")))
    assert min(low.history.val_loss) == pytest.approx(min(full.history.val_loss), abs=0.02)


def drawn(images: int, seed: int, width: int = 48) -> Samples:
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % 2
    features = rng.standard_normal((images, 2, width)) + 0.3 * labels[:, None, None]
    return Samples(features=np.maximum(features, 0).astype(np.float16), labels=labels, classes=2)


def test_answers_and_evidence_of_films_are_those_of_the_store_and_the_run(placed: Path, phantoms: Path) -> None:
    (store,) = stores(placed)
    model = model_of_run(placed / "phantoms", head=3, root=phantoms)
    networks, compute = [network()], Compute(device="cuda")
    predictor = Predictor(model, networks, compute)
    films = sorted((phantoms / "test").glob("*/*.jpeg"))
    answers = list(predictor.stream(films))
    names = [str(film.relative_to(phantoms)) for film in films]
    stored = store.features(names)
    told = np.array([answer.features for answer in answers])
    np.testing.assert_array_equal(told.astype(stored.dtype), stored)
    # With a network that predicting has moved to the GPU.
    explainer = Explainer(model, networks, compute)
    for film, answer in zip(films[:4], answers, strict=False):
        assert answer.logits is not None
        evidence = explainer.explain(film.read_bytes()).evidence
        assert evidence == pytest.approx(float(answer.logits[1] - answer.logits[0]), abs=0.1)


def test_rows_computed_again_are_the_stores(placed: Path, phantoms: Path) -> None:
    (store,) = stores(placed)
    found = recompute(store, phantoms, network(), 10, compute=Compute(device="cuda"))
    assert (found.rows, found.equal, found.wrong) == (10, 10, ())
    assert choose_batch_size(None, "cuda") == 64
