"""Torch, and what networks run on, for ``cxr doctor``."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.doctor.finding import Finding, guarded
from featcache.errors import BackboneError
from featcache.hardware import device_in_words
from featcache.settings import Settings

if TYPE_CHECKING:
    from torch import nn

    from featcache.spec import Precision, Runtime


def setting(name: str, value: str) -> str:
    """How to change a setting that ``cxr doctor`` has no flag for."""
    return f"set {name} to {value} (cxr.toml, CXR_{name.upper()}, or --{name} of 'cxr extract')"


def torch_pair() -> Iterator[Finding]:
    """Torch and torchvision, which must have been built for one another: a compiled operator of the latter runs."""
    version = importlib.metadata.version
    try:
        import torch
        import torchvision

        boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0], [5.0, 5.0, 6.0, 6.0]])
        kept = torchvision.ops.nms(boxes, torch.tensor([0.5, 0.9, 0.7]), 0.5).tolist()
    except RuntimeError as error:
        pair = f"torch {version('torch')} and torchvision {version('torchvision')}"
        raise BackboneError(
            f"{pair} were not built for one another ({str(error).splitlines()[0]}); install both in one command, so "
            "that pip picks a pair: pip install --upgrade torch torchvision"
        ) from error
    if kept != [1, 2]:
        raise BackboneError(f"torchvision's nms keeps boxes {kept}, wanted [1, 2]")
    yield Finding(
        checked="torch", found=f"torch {torch.__version__} and torchvision {torchvision.__version__} fit together"
    )


def devices(settings: Settings) -> Iterator[Finding]:
    """The processor and every CUDA device: each runs a small network as ``extract`` would.

    Raises:
        BackboneError: the device asked for is not here.
    """
    import torch

    from featcache.runtime import choose_device

    with warnings.catch_warnings(record=True) as said:
        # A driver too old for torch is told by a warning, and then by having no devices.
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    cuda = [f"cuda:{number}" for number in range(count)]
    asked = settings.devices or [settings.device]
    first = {"auto": cuda[:1] or ["cpu"], "cuda": cuda[:1], "all": cuda}
    taken = {device for name in asked for device in first.get(name, [name])}
    for device in ("cpu", *cuda):
        remedy = f"{setting('runtime', 'torch')}, or install OpenVINO anew: pip install --upgrade openvino"
        if device != "cpu":
            remedy = f"{setting('device', 'cpu')}, or install the torch that is built for this device and its driver"
        for finding in guarded(device, remedy, partial(_computes, settings, device, device in taken)):
            # What extract would not run on does not stop it.
            spare = finding.state == "failed" and device not in taken
            yield replace(finding, state="warning") if spare else finding
    if not cuda:
        yield _without_cuda([str(warning.message) for warning in said])
    for name in asked:
        if name != "auto":
            choose_device("cuda" if name == "all" else name)


def _computes(settings: Settings, device: str, taken: bool) -> Iterator[Finding]:
    from featcache.runtime import choose_precision, choose_runtime, has_fast_bfloat16

    runtime = choose_runtime(settings.runtime if taken else "auto", device)
    precision = choose_precision(settings.precision if taken else "auto", device)
    _run_small_network(runtime, precision, device)
    native = has_fast_bfloat16(device)
    described = f"{_processor() if device == 'cpu' else _accelerator(device)}{'' if native else ', no fast bfloat16'}"
    version = importlib.metadata.version(runtime)
    use = "'cxr extract' takes it, " if taken else "it would run networks "
    found = f"{described}; {use}with {runtime} {version} in {precision}"
    if precision == "bfloat16" and not native:
        remedy = setting("precision", "float32" if device == "cpu" else "float16")
        yield Finding(checked=device, state="warning", found=f"{found}, which is emulated and slow", remedy=remedy)
    else:
        yield Finding(checked=device, found=found)


def _processor() -> str:
    """The processor in words."""
    import torch

    from featcache.runtime import BFLOAT16

    capable: dict[str, Any] = dict(torch.cpu.get_capabilities())
    names = [name.replace("_", "-").upper() for name in ("avx2", "avx512_f", *BFLOAT16) if capable.get(name)]
    return ", ".join([device_in_words("cpu"), *names])


def _accelerator(device: str) -> str:
    """A CUDA device in words."""
    import torch

    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    memory = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    capability = f"compute capability {properties.major}.{properties.minor}"
    return f"{properties.name}, {memory}, {capability}"


def _run_small_network(runtime: Runtime, precision: Precision, device: str) -> None:
    """Run one convolution by the runtime, and compare with what plain torch computes on the processor.

    Raises:
        BackboneError: the runtime cannot run it, or computes something else.
    """
    import torch

    from featcache.backbones import load_backbone
    from featcache.forward import compile_forward

    backbone = load_backbone(f"{__name__}:{small_network.__name__}")
    shape = (2, 3, *[backbone.preprocessing.image_size] * 2)
    pixels = (np.arange(np.prod(shape)) % 251).astype(np.uint8).reshape(shape)
    with torch.inference_mode():
        wanted = backbone.network(torch.from_numpy(pixels)).numpy()
    got = compile_forward(backbone, len(pixels), runtime=runtime, precision=precision, device=device)(pixels)
    if not np.allclose(got, wanted, rtol=0.05, atol=0.05):
        raise BackboneError(f"{runtime} in {precision} computes {got[0, 0]:.4g} where {wanted[0, 0]:.4g} is right")


def small_network() -> nn.Module:
    """One convolution, spelled as a user's own backbone: normalised pixels [B, 3, S, S] → maps [B, 4, S-2, S-2]."""
    import torch

    layer = torch.nn.Conv2d(3, 4, 3, bias=False).requires_grad_(False)
    layer.weight.copy_(torch.linspace(-1, 1, layer.weight.numel()).view_as(layer.weight))
    return layer


def _without_cuda(said: list[str]) -> Finding:
    import torch

    if shutil.which("nvidia-smi") is None:
        return Finding(checked="cuda", found="no CUDA device on this machine")
    why = said[0].splitlines()[0] if said else f"torch {torch.__version__} sees none"
    if torch.version.cuda is None:
        why = f"torch {torch.__version__} is built without CUDA"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden in ("", "-1"):
        why = f"CUDA_VISIBLE_DEVICES is {hidden!r}"
    return Finding(
        checked="cuda",
        state="warning",
        found=f"this machine has nvidia-smi, but torch cannot use its device: {why}",
        remedy="install the torch that is built for the driver that nvidia-smi shows, or update the driver",
    )
