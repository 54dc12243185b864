"""What runs a frozen network, and in which precision: OpenVINO on processors, torch on accelerators.

Measured on two cores without AVX-512 (docs/log.md): OpenVINO gives EfficientNet-Lite0 some four times torch's
eager rate. Features of one runtime do not depend on the place in the batch or on the number of threads (tests
hold both to it), but two runtimes differ in the last bits: the runtime is part of the spec.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from featcache.errors import BackboneError
from featcache.settings import usable_cores
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
        elsewhere: the device is another machine's, and not looked for here.
    """

    device: str = "auto"
    runtime: Runtime | Literal["auto"] = "auto"
    precision: Precision | Literal["auto"] = "auto"
    batch_size: int | None = None
    threads: int = dataclasses.field(default_factory=usable_cores)
    elsewhere: bool = False


Forward = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Pixels [B, 3, S, S] uint8, B fixed, to features [B, D] float32. May be called from several threads at once."""


class OutOfMemoryError(BackboneError):
    """The device has no room for a batch of this size."""


BFLOAT16 = ("avx512_bf16", "amx_bf16")
"""What a processor computes bfloat16 with, as torch calls it."""


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


def device_of(compute: Compute) -> str:
    """The device to compute on.

    Raises:
        BackboneError: torch knows no such device here.
    """
    return compute.device if compute.elsewhere else choose_device(compute.device)


def choose_precision(precision: Precision | Literal["auto"], device: str) -> Precision:
    """The fast precision where the hardware has matrix products in it, else float32.

    A processor with AVX512-BF16 or AMX, or a CUDA device, computes bfloat16 products at a multiple of the
    float32 rate; on others bfloat16 is emulated and slower.
    """
    if precision != "auto":
        return precision
    if has_fast_bfloat16(device):
        return "bfloat16"
    return "float16" if device.startswith("cuda") else "float32"


def has_fast_bfloat16(device: str) -> bool:
    """Whether a device computes bfloat16 products itself, and does not emulate them.

    An AMD GPU does, NVIDIA's from compute capability 8.0 on, and a processor with one of ``BFLOAT16``.
    """
    if device.startswith("cuda"):
        # is_bf16_supported() counts emulation in: a T4 would say yes, and be slow.
        return bool(torch.version.hip) or torch.cuda.get_device_capability(device)[0] >= 8
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in BFLOAT16)


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


def keep_to_one_thread() -> None:
    """Make this thread compute torch's operations alone, whatever others are set to: a sum's last bits hang on it.

    A thread takes the process's number at its first operation, over what was set in it before. So it is asked first.
    """
    torch.get_num_threads()
    torch.set_num_threads(1)
