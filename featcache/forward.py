"""The function that runs a network on a batch: OpenVINO's, torch's on a processor, torch's on CUDA."""

from __future__ import annotations

import contextlib
import logging
import queue
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from featcache.backbones import Backbone
from featcache.conversion import GATE
from featcache.errors import BackboneError
from featcache.runtime import Forward, OutOfMemoryError, choose_streams, keep_to_one_thread
from featcache.settings import usable_cores
from featcache.spec import Precision, Runtime


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
    threads = threads or usable_cores()
    if runtime == "openvino":
        # It silences warnings, hides a module and changes how torch computes, all for the whole process.
        with GATE.convert():
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
    pool = ThreadPoolExecutor(threads, "network", keep_to_one_thread)

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
    with quiet_conversion(), _without_telemetry():
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


NO_MEMORY = re.compile(
    # A thread that cannot be started had no room for its stack.
    r"out of memory|bad_?alloc|bad allocation|can(no|')t (allocate|start new thread)|not enough memory",
    re.IGNORECASE,
)
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
def quiet_conversion() -> Iterator[None]:
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
