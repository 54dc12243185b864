"""Weights of the configured backbones, for ``cxr doctor``: here, or to be had from the hub."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from featcache.doctor.finding import Finding, first_line, guarded
from featcache.errors import BackboneError
from featcache.settings import Settings, weights_of

HUB_SECONDS = 5.0
"""How long the hub may take to answer, for all backbones together."""

HUB_FILE = "model.safetensors"

OWN_WEIGHTS = "take --backbone efficientnet_lite0, whose weights come with its package"


def weights(settings: Settings, sizes: dict[str, int]) -> Iterator[Finding]:
    """A finding a backbone: local files are loaded, the hub is asked for what is in no cache.

    Args:
        settings: name the backbones and their weights.
        sizes: D by backbone, filled in here.

    Raises:
        SettingsError: another number of weights than of backbones.
    """
    pairs = list(zip(settings.backbone, weights_of(settings), strict=True))
    wanted = {hub_repository(name) for name, file in pairs if file == "pretrained"} - {None}
    answers = ask_hub([repository for repository in sorted(map(str, wanted)) if cached(repository) is None])
    other = f"pass weights that belong to the backbone with --weights FILE, or {OWN_WEIGHTS}"
    for name, file in pairs:
        yield from guarded("weights", other, partial(_weights, name, file, settings.image_size, answers, sizes))


def _weights(
    name: str, file: str, image_size: int | None, answers: Mapping[str, str], sizes: dict[str, int]
) -> Iterator[Finding]:
    """Where the weights of one backbone are; its name is tried first.

    Raises:
        BackboneError: no such backbone, or its weights are damaged, do not fit, or cannot be had.
    """
    from featcache.backbones import load_backbone

    sizes[name] = feature_size(name, image_size)
    found = f"{name}, {sizes[name]:,} features an image"
    repository = hub_repository(name) if file == "pretrained" else None
    if file == "random":
        yield Finding(checked="weights", found=f"{found}: random weights, as asked for")
    elif repository is not None:
        yield Finding(checked="weights", found=f"{found}: {_from_hub(repository, answers)}")
    elif file == "pretrained" and name.startswith("torchvision:"):
        yield _from_torchvision(name, found)
    else:
        load_backbone(name, None if file == "pretrained" else file, image_size)
        own = "its own code makes them" if ":" in name else "its weights come with a package"
        yield Finding(checked="weights", found=f"{found}: {own if file == 'pretrained' else f'{file} fits'}")


def _from_hub(repository: str, answers: Mapping[str, str]) -> str:
    """Where a repository's weights are, in words.

    Raises:
        BackboneError: what is cached is damaged, or nothing is cached and the hub does not give it.
    """
    from featcache.weights import read_record

    wanted = f"{HUB_FILE} of {repository}"
    path = cached(repository)
    if path is not None:
        try:
            read_record(str(path))  # Finds a file that was cut off.
        except BackboneError as error:
            raise BackboneError(f"{error}; delete it, and 'cxr extract' fetches it anew") from error
        return f"{wanted} is cached"
    if answers[repository]:
        raise BackboneError(
            f"{wanted} is not cached, and {answers[repository]}; get that file on a connected machine and pass it with "
            f"--weights {HUB_FILE}, set HF_ENDPOINT to a mirror, or {OWN_WEIGHTS}"
        )
    return f"the hub has {wanted}, which 'cxr extract' will fetch"


def _from_torchvision(name: str, found: str) -> Finding:
    """Whether torchvision's weights are in torch's cache; their address is not tried."""
    import torch
    import torchvision

    model = name.partition("@")[0].removeprefix("torchvision:")
    address: str = torchvision.models.get_model_weights(model).DEFAULT.url
    file = address.rsplit("/", 1)[-1]
    if Path(torch.hub.get_dir(), "checkpoints", file).is_file():
        return Finding(checked="weights", found=f"{found}: {file} is cached")
    return Finding(
        checked="weights",
        state="warning",
        found=f"{found}: {file} is not cached, and whether it can be fetched was not tried",
        remedy=f"where there is no connection, get that file elsewhere and pass it with --weights {file}",
    )


def hub_repository(name: str) -> str | None:
    """The hub's repository that holds the pretrained weights of a backbone; None where they come from elsewhere."""
    import timm

    from featcache.backbones import SHORT_NAMES
    from featcache.weights import PACKAGED

    architecture = name.partition("@")[0]
    full = SHORT_NAMES.get(architecture, architecture)
    if full in PACKAGED or not timm.is_model(full):
        return None
    config = timm.get_pretrained_cfg(full)
    repository = config.hf_hub_id if config else None
    return f"timm/{full}" if repository == "timm/" else repository


def cached(repository: str) -> Path | None:
    """The weights of a repository in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repository, HUB_FILE)
    return Path(path) if isinstance(path, str) else None


def ask_hub(repositories: Sequence[str]) -> dict[str, str]:
    """Ask the hub for the weights of each repository: what is wrong, or an empty string where it has them.

    The hub's own client asks, since it knows the user's mirror, proxy and certificates; in threads, since looking up a
    name cannot be told to give up.
    """
    from huggingface_hub import constants, get_session, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        return dict.fromkeys(repositories, "HF_HUB_OFFLINE is set, so that the hub is not asked")
    answers: dict[str, str] = {}

    def ask(repository: str) -> None:
        try:
            status = get_session().head(hf_hub_url(repository, HUB_FILE), timeout=HUB_SECONDS).status_code
            answers[repository] = "" if status < 400 else f"{constants.ENDPOINT} answers {status}"
        except Exception as error:  # noqa: BLE001 - the client passes on those of the HTTP library below it
            answers[repository] = f"{constants.ENDPOINT} cannot be reached ({first_line(error)})"

    threads = [threading.Thread(target=ask, args=(repository,), daemon=True) for repository in repositories]
    until = time.monotonic() + HUB_SECONDS
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    late = f"{constants.ENDPOINT} does not answer in {HUB_SECONDS:.0f} s"
    return {repository: answers.get(repository, late) for repository in repositories}


def feature_size(name: str, image_size: int | None = None) -> int:
    """D of a backbone, without its weights.

    Raises:
        BackboneError: there is no such backbone, or it cannot run on images of that size.
    """
    import timm
    import torch

    from featcache.backbones import SHORT_NAMES, load_backbone
    from featcache.networks import PooledNetwork, Preprocessing

    full = SHORT_NAMES.get(name, name)
    if timm.is_model(full):
        # On the meta device a network is its shapes alone; the few that cannot live there are built in earnest.
        with contextlib.suppress(Exception), torch.device("meta"), torch.inference_mode():
            config = timm.get_pretrained_cfg(full)
            side = image_size or (config.input_size[-1] if config else 224)
            third = (0.5, 0.5, 0.5)
            preprocessing = Preprocessing(
                image_size=side, resize_side=side, interpolation="bilinear", mean=third, std=third
            )
            network = PooledNetwork(timm.create_model(full).eval(), preprocessing)
            return int(network(torch.zeros((1, 3, side, side), dtype=torch.uint8)).shape[1])
    return load_backbone(name, "random", image_size).dim
