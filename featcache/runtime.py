"""What runs a frozen network, and in which precision: OpenVINO on processors, torch on accelerators.

Measured on two cores without AVX-512 (docs/log.md): OpenVINO gives EfficientNet-Lite0 some four times torch's
eager rate. Features of one runtime do not depend on the place in the batch or on the number of threads (tests
hold both to it), but two runtimes differ in the last bits: the runtime is part of the spec.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import queue
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from featcache.backbones import Backbone
from featcache.errors import BackboneError
from featcache.spec import Precision, Runtime


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
    """How to compute.

    Attributes:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        runtime: part of the spec, once chosen.
        precision: part of the spec, once chosen.
        batch_size: images the network sees at once; does not change a value beyond its last bit. None: what suits
            the device.
        threads: threads that decode, and threads of a processor's network.
    """

    device: str = "auto"
    runtime: Runtime | Literal["auto"] = "auto"
    precision: Precision | Literal["auto"] = "auto"
    batch_size: int | None = None
    threads: int = dataclasses.field(default_factory=lambda: os.cpu_count() or 1)


Forward = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Pixels [B, 3, S, S] uint8, B fixed, to features [B, D] float32. May be called from several threads at once."""


class OutOfMemoryError(BackboneError):
    """The device has no room for a batch of this size."""


def cuda_devices() -> list[str]:
    """The names of this machine's CUDA devices."""
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())]


def choose_device(device: str = "auto") -> str:
    """``cuda`` where there is one, else ``cpu``, unless named.

    Raises:
        BackboneError: torch knows no such device here.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device)
    except RuntimeError as error:
        raise BackboneError(f"no device {device!r}: wanted auto, cpu, cuda or cuda:N") from error
    there = kind.type == "cpu" or (kind.type == "cuda" and (kind.index or 0) < torch.cuda.device_count())
    if not there:
        raise BackboneError(f"no device {device!r} on this machine: say --device cpu")
    return device


def choose_precision(precision: Precision | Literal["auto"], device: str) -> Precision:
    """The fast precision where the hardware has matrix products in it, else float32.

    A processor with AVX512-BF16 or AMX, or a CUDA device, computes bfloat16 products at a multiple of the
    float32 rate; on others bfloat16 is emulated and slower.
    """
    if precision != "auto":
        return precision
    if device.startswith("cuda"):
        # is_bf16_supported() counts emulation in: a T4 would say yes, and be slow.
        fast = bool(torch.version.hip) or torch.cuda.get_device_capability(device)[0] >= 8
        return "bfloat16" if fast else "float16"
    capabilities = torch.cpu.get_capabilities()
    return "bfloat16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "float32"


def choose_runtime(runtime: Runtime | Literal["auto"], device: str) -> Runtime:
    """OpenVINO on a processor, torch elsewhere, unless named.

    Raises:
        BackboneError: OpenVINO is named for a device that it would leave idle.
    """
    if runtime == "openvino" and device != "cpu":
        raise BackboneError(f"OpenVINO runs on the processor, not on {device}: say --device cpu, or --runtime torch")
    if runtime != "auto":
        return runtime
    return "openvino" if device == "cpu" else "torch"


def choose_batch_size(batch_size: int | None, device: str) -> int:
    """Images that a network sees at once: few on a processor, whose cache they then fit; many on an accelerator."""
    return batch_size or (8 if device == "cpu" else 64)


def choose_streams(runtime: Runtime, device: str, threads: int) -> int:
    """How many batches are best under way at once.

    OpenVINO: some, each on threads of its own, so that a core that decodes for a moment holds up one of them and not
    all. CUDA: two, so that one's pixels travel while the other computes. Torch on a processor spreads the images of
    one batch over all threads.
    """
    if device != "cpu":
        return 2
    return 1 if runtime == "torch" else min(threads, max(2, threads // 4))


def compile_forward(
    backbone: Backbone,
    batch_size: int,
    *,
    runtime: Runtime,
    precision: Precision,
    device: str,
    threads: int | None = None,
) -> Forward:
    """Make the function that runs a backbone on batches of one fixed size.

    Args:
        backbone: the network; it is moved to the device.
        batch_size: B; every batch has it, padded where needed.
        runtime: what runs it.
        precision: the type it computes in; features come back as float32.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        threads: threads of a processor; None for all.

    Raises:
        BackboneError: the runtime cannot take this network; the other one can.
        OutOfMemoryError: the device has no room for it. What is returned may raise it too.
    """
    threads = threads or os.cpu_count() or 1
    if runtime == "openvino":
        return _openvino(backbone, batch_size, precision, threads)
    return _torch(backbone, batch_size, precision, device, threads)


def _torch(backbone: Backbone, batch_size: int, precision: Precision, device: str, threads: int) -> Forward:
    low = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
    with _explained_memory():
        network = backbone.network.to(device).to(memory_format=torch.channels_last)

    def features_of(images: torch.Tensor) -> torch.Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast(images.device.type, low, enabled=low is not None):
            features: torch.Tensor = network(images).float()
        return features

    if device != "cpu":
        return _on_cuda(features_of, (batch_size, 3, *[backbone.preprocessing.image_size] * 2), device)
    # Several threads on one image would cut oneDNN's sums by their number, and change the last bits with it.
    pool = ThreadPoolExecutor(threads, "network", torch.set_num_threads, (1,))

    def image_a_thread(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        with _explained_memory():
            return np.concatenate(
                list(pool.map(lambda one: features_of(torch.from_numpy(one)).numpy(), pixels[:, None]))
            )

    return image_a_thread


def _on_cuda(features_of: Callable[[torch.Tensor], torch.Tensor], shape: tuple[int, ...], device: str) -> Forward:
    """Batches through CUDA streams of their own: while one computes, another's pixels travel from pinned memory."""
    streams: queue.SimpleQueue[tuple[torch.cuda.Stream, torch.Tensor]] = queue.SimpleQueue()
    with _explained_memory():
        for _ in range(choose_streams("torch", device, 1)):
            stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch has no types for it
            streams.put((stream, torch.empty(shape, dtype=torch.uint8, pin_memory=True)))

    def forward(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        stream, pinned = streams.get()
        try:
            with _explained_memory(), torch.cuda.stream(stream):
                pinned.copy_(torch.from_numpy(pixels))
                features: NDArray[np.float32] = features_of(pinned.to(device, non_blocking=True)).cpu().numpy()
            return features
        finally:
            streams.put((stream, pinned))

    return forward


def _openvino(backbone: Backbone, batch_size: int, precision: Precision, threads: int) -> Forward:
    side = backbone.preprocessing.image_size
    example = torch.zeros((batch_size, 3, side, side), dtype=torch.uint8)
    streams = choose_streams("openvino", "cpu", threads)
    with _quiet_conversion(), _without_telemetry():
        # Through the frontend and not openvino.convert_model, which would report what it converts.
        import openvino
        from openvino.frontend import FrontEndManager
        from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

        try:
            with torch.inference_mode(), _explained_memory():
                program = torch.export.export(backbone.network, (example,), strict=False)
                decoder = TorchFXPythonDecoder.from_exported_program(program)
                frontend = FrontEndManager().load_by_framework("pytorch")
                model = frontend.convert(frontend.load(decoder))
                compiled = openvino.Core().compile_model(model, "CPU", _openvino_settings(precision, threads, streams))
        except OutOfMemoryError:
            raise
        except Exception as error:
            # Both libraries raise types of their own making for what they cannot convert.
            raise BackboneError(
                f"OpenVINO cannot take {backbone.name} ({type(error).__name__}: {str(error).splitlines()[0][:150]}): "
                "say --runtime torch"
            ) from error
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for _ in range(streams):
        requests.put(compiled.create_infer_request())

    def forward(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        request = requests.get()
        try:
            with _explained_memory():
                return np.array(request.infer([pixels], share_inputs=True)[0], np.float32)
        finally:
            requests.put(request)

    return forward


def _openvino_settings(precision: Precision, threads: int, streams: int) -> dict[str, str]:
    hint = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[precision]
    settings = {"INFERENCE_PRECISION_HINT": hint, "ENABLE_CPU_PINNING": "NO"}
    return {**settings, "NUM_STREAMS": str(streams), "INFERENCE_NUM_THREADS": str(threads)}


NO_MEMORY = re.compile(r"out of memory|bad_?alloc|bad allocation|can(no|')t allocate|not enough memory", re.IGNORECASE)
"""How torch, CUDA, oneDNN and OpenVINO say in words that memory is lacking; only some have a type for it."""


@contextlib.contextmanager
def _explained_memory() -> Iterator[None]:
    """Turn what the libraries raise for want of memory into one type."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise OutOfMemoryError(f"out of memory: {error}") from error
    except RuntimeError as error:
        if NO_MEMORY.search(str(error)):
            raise OutOfMemoryError(f"out of memory: {str(error).splitlines()[0][:200]}") from error
        raise


@contextlib.contextmanager
def _quiet_conversion() -> Iterator[None]:
    """Silence what export and conversion say of their own insides; failures still raise."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _without_telemetry() -> Iterator[None]:
    """Keep ``import openvino`` from telling its maker, unasked and from a forked process, that it was imported.

    It does without where the package that sends cannot be imported.
    """
    modules: dict[str, Any] = sys.modules
    hidden = modules.setdefault("openvino_telemetry", None) is None
    try:
        yield
    finally:
        if hidden:
            del modules["openvino_telemetry"]
