from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from featcache.backbones import Backbone, load_backbone
from featcache.errors import BackboneError
from featcache.forward import compile_forward
from featcache.networks import PooledNetwork, Preprocessing
from featcache.runtime import (
    Compute,
    Forward,
    choose_device,
    choose_precision,
    choose_runtime,
    keep_to_one_thread,
)
from featcache.spec import Runtime
from featcache.work import Source

BATCH = 6
RUNTIMES: list[Runtime] = ["torch", "openvino"]

Compiled = Callable[[Runtime, int], Forward]


@pytest.fixture(scope="module")
def lite0() -> Backbone:
    return load_backbone("efficientnet_lite0")


@pytest.fixture(scope="module")
def compiled(lite0: Backbone) -> Compiled:
    """EfficientNet-Lite0 compiled once a runtime and number of threads: compiling takes OpenVINO seconds."""
    made: dict[tuple[str, int], Forward] = {}

    def compile_once(runtime: Runtime, threads: int) -> Forward:
        if (runtime, threads) not in made:
            made[runtime, threads] = compile_forward(
                lite0, BATCH, runtime=runtime, precision="float32", device="cpu", threads=threads
            )
        return made[runtime, threads]

    return compile_once


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    """A batch of smooth pictures, [6, 3, 224, 224]."""
    row, column = np.mgrid[:224, :224] / 224
    random = np.random.default_rng(0)
    waves = [np.sin(row * a + b) * np.cos(column * c + d) for a, b, c, d in random.uniform(1, 20, (BATCH * 3, 4))]
    return np.array(127 + 127 * np.stack(waves).reshape(BATCH, 3, 224, 224), np.uint8)


# --- one value a picture, whatever is computed with it ---


def test_openvino_and_torch_agree_on_the_direction_of_every_feature(
    compiled: Compiled, pixels: NDArray[np.uint8]
) -> None:
    by_torch, by_openvino = (compiled(runtime, 2)(pixels) for runtime in RUNTIMES)
    assert by_torch.shape == by_openvino.shape == (BATCH, 1280)
    lengths = np.linalg.norm(by_torch, axis=1) * np.linalg.norm(by_openvino, axis=1)
    assert ((by_torch * by_openvino).sum(1) / lengths > 0.9999).all()
    # And on their size, which a cosine does not see.
    np.testing.assert_allclose(by_openvino, by_torch, rtol=0, atol=1e-3)
    assert by_torch.dtype == by_openvino.dtype == np.float32


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_feature_does_not_depend_on_the_place_in_the_batch(
    compiled: Compiled, pixels: NDArray[np.uint8], runtime: Runtime
) -> None:
    forward = compiled(runtime, 2)
    order = np.array([3, 5, 0, 1, 4, 2])
    np.testing.assert_array_equal(forward(pixels[order]), forward(pixels)[order])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_feature_does_not_depend_on_its_neighbours(
    compiled: Compiled, pixels: NDArray[np.uint8], runtime: Runtime
) -> None:
    forward = compiled(runtime, 2)
    together = forward(pixels)
    for number in (0, BATCH - 1):
        alone = np.zeros_like(pixels)
        alone[number] = pixels[number]
        np.testing.assert_array_equal(forward(alone)[number], together[number])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_feature_does_not_depend_on_the_number_of_threads(
    compiled: Compiled, pixels: NDArray[np.uint8], runtime: Runtime
) -> None:
    np.testing.assert_array_equal(compiled(runtime, 1)(pixels), compiled(runtime, 2)(pixels))


def test_a_feature_of_torch_does_not_depend_on_the_programs_threads_or_the_batch_size(
    lite0: Backbone, compiled: Compiled, pixels: NDArray[np.uint8]
) -> None:
    together = compiled("torch", 2)(pixels)
    torch.set_num_threads(1)
    np.testing.assert_array_equal(compiled("torch", 2)(pixels), together)
    single = compile_forward(lite0, 1, runtime="torch", precision="float32", device="cpu", threads=3)
    np.testing.assert_array_equal(single(pixels[4:5])[0], together[4])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_next_batch_leaves_the_features_of_the_last_alone(
    compiled: Compiled, pixels: NDArray[np.uint8], runtime: Runtime
) -> None:
    forward = compiled(runtime, 2)
    first = forward(pixels)
    kept, shown = first.copy(), pixels.copy()
    forward(255 - pixels)
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(pixels, shown)


def test_a_lower_precision_is_near_and_comes_back_as_float32(pixels: NDArray[np.uint8]) -> None:
    tiny = load_backbone("tiny_network:tiny")
    small = np.ascontiguousarray(pixels[:, :, :32, :32])
    full, low = (
        compile_forward(tiny, BATCH, runtime="torch", precision=precision, device="cpu")(small)
        for precision in ("float32", "bfloat16")
    )
    assert low.dtype == np.float32
    assert not np.array_equal(low, full)
    np.testing.assert_allclose(low, full, rtol=0.05, atol=0.02)


# --- choices ---


def test_a_processor_gets_openvino_and_an_accelerator_torch_unless_named() -> None:
    assert choose_runtime("auto", "cpu") == "openvino"
    assert choose_runtime("auto", "cuda:1") == "torch"
    assert choose_runtime("torch", "cpu") == "torch"


def test_openvino_is_not_taken_for_a_device_that_it_would_leave_idle() -> None:
    with pytest.raises(
        BackboneError, match=r"runs on the processor, not on cuda: say --device cpu, or --runtime torch"
    ):
        choose_runtime("openvino", "cuda")


@pytest.mark.parametrize(("there", "device"), [(True, "cuda"), (False, "cpu")])
def test_the_device_is_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch, there: bool, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert choose_device() == device
    assert choose_device("cpu") == "cpu"


def test_a_named_cuda_device_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == "cuda:1"
    with pytest.raises(BackboneError, match=r"no device 'cuda:2' on this machine"):
        choose_device("cuda:2")


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu9", "no device 'gpu9': wanted auto, cpu, cuda or cuda:N"),
        ("", "no device '': wanted auto, cpu, cuda or cuda:N"),
        ("meta", "no device 'meta' on this machine: say --device cpu"),
        ("cuda", "no device 'cuda' on this machine: say --device cpu"),
        ("cuda:3", "no device 'cuda:3' on this machine: say --device cpu"),
    ],
)
def test_a_device_that_is_not_there_is_one_clear_message(
    monkeypatch: pytest.MonkeyPatch, device: str, message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackboneError) as caught:
        choose_device(device)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [
        ({}, "float32"),
        ({"avx2": True}, "float32"),
        ({"avx512_bf16": True}, "bfloat16"),
        ({"amx_bf16": True}, "bfloat16"),
    ],
)
def test_a_processor_computes_in_bfloat16_only_where_that_is_fast(
    monkeypatch: pytest.MonkeyPatch, capabilities: Mapping[str, bool], precision: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert choose_precision("auto", "cpu") == precision
    assert choose_precision("float16", "cpu") == "float16"


@pytest.mark.parametrize(
    ("capability", "precision"),
    # A T4 is 7.5: torch.cuda.is_bf16_supported() would say yes of it, because it can emulate.
    [((7, 5), "float16"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")],
)
def test_an_accelerator_computes_in_bfloat16_where_that_is_fast_or_else_float16(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], precision: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert choose_precision("auto", "cuda:0") == precision
    assert choose_precision("float32", "cuda:0") == "float32"


def test_compute_leaves_every_choice_open_by_default() -> None:
    compute = Compute()
    assert (compute.device, compute.runtime, compute.precision) == ("auto", "auto", "auto")
    assert compute.threads >= 1


# --- OpenVINO's limits and manners ---


class Moody(nn.Module):
    """Takes another way for bright pictures, which no exported program can follow."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels * 2 if pixels.mean() > 0 else pixels


def test_a_network_that_openvino_cannot_take_names_the_way_out() -> None:
    preprocessing = Preprocessing(
        image_size=16, resize_side=16, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )
    network = PooledNetwork(Moody(), preprocessing).eval()
    backbone = Backbone(
        name="own:moody",
        network=network,
        preprocessing=preprocessing,
        weights_sha256="0" * 64,
        dim=3,
        source=Source(name="own:moody"),
    )
    with pytest.raises(BackboneError, match=r"^OpenVINO cannot take own:moody \(.+\): say --runtime torch$"):
        compile_forward(backbone, 2, runtime="openvino", precision="float32", device="cpu")
    # What it advises works.
    bright = np.full((2, 3, 16, 16), 255, np.uint8)
    by_torch = compile_forward(backbone, 2, runtime="torch", precision="float32", device="cpu")
    np.testing.assert_allclose(by_torch(bright), np.full((2, 3), 2.0), rtol=1e-6)


CONVERSION = """
import json, socket, sys, warnings
import numpy as np
from featcache.backbones import load_backbone
from featcache.forward import compile_forward

LEAVING = {"socket.connect", "socket.getaddrinfo", "socket.sendto", "os.fork", "os.posix_spawn", "subprocess.Popen"}
left = []
sys.addaudithook(lambda event, rest: left.append(f"{event} {rest}") if event in LEAVING else None)
backbone, filters = load_backbone("tiny_network:tiny"), len(warnings.filters)
left.clear()

forward = compile_forward(backbone, 2, runtime="openvino", precision="float32", device="cpu", threads=1)
features = forward(np.zeros((2, 3, 32, 32), np.uint8))

said = {"shape": features.shape, "left": list(left), "filters": len(warnings.filters) - filters}
said["hidden"] = "openvino_telemetry" in sys.modules
try:
    socket.create_connection(("127.0.0.1", 9), timeout=1)
except OSError:
    said["control"] = left[-1]
print(json.dumps(said))
"""


def test_converting_a_network_opens_no_connection_starts_no_process_and_writes_nothing_at_home(tmp_path: Path) -> None:
    home, scratch = tmp_path / "home", tmp_path / "scratch"
    home.mkdir()
    scratch.mkdir()
    path = ":".join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CONVERSION],
        env={"HOME": str(home), "TMPDIR": str(scratch), "PYTHONPATH": path, "PATH": "/usr/bin:/bin"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert said["control"].startswith("socket.connect ")  # the recorder records
    assert said["shape"] == [2, 16]
    assert said["left"] == []
    assert said["filters"] == 0
    assert not said["hidden"]
    assert [str(file.relative_to(home)) for file in home.rglob("*")] == []
    assert done.stderr == ""


def test_a_thread_that_keeps_to_itself_stays_so_whatever_others_are_set_to() -> None:
    with ThreadPoolExecutor(1, initializer=keep_to_one_thread) as pool:
        pool.submit(int).result()
        torch.set_num_threads(3)
        assert pool.submit(lambda: (torch.ones(100_000).sum(), torch.get_num_threads())[1]).result() == 1
    # torch's own setter does not hold in a thread that has computed nothing yet.
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        pool.submit(int).result()
        torch.set_num_threads(3)
        assert pool.submit(torch.get_num_threads).result() == 3
