"""Pretrained weights against a stand-in of the hub on loopback.

The hub's client reads its environment once, when it is imported: so it runs in processes of their own, which take
orders line by line and outlive single tests, since starting torch costs seconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from featcache import weights
from featcache.errors import BackboneError

COMMIT = "0123456789abcdef0123456789abcdef01234567"

STUDY = {
    "resnet50": ("resnet50.tv_in1k", 2048),
    "vgg19": ("vgg19.tv_in1k", 512),
    "inception_v3": ("inception_v3.tf_in1k", 2048),
    "efficientnet_b4": ("tf_efficientnet_b4.aa_in1k", 1792),
}

WAY_OUT = (
    "get that file on a connected machine and pass it with --weights model.safetensors, set HF_ENDPOINT to a mirror, "
    "or say --weights random"
)

DRIVER = """
import json, sys, time
import huggingface_hub
import torch
from safetensors.torch import load_file
from featcache.backbones import load_backbone
from featcache.errors import CxrError

time.sleep = lambda seconds: None  # the client waits between its attempts; a test need not
for line in sys.stdin:
    order = json.loads(line)
    huggingface_hub.constants.HF_HUB_OFFLINE = order["offline"]  # as the variable of that name has it
    try:
        backbone = load_backbone(order["name"])
        state, wanted = backbone.network.model.state_dict(), load_file(order["wanted"])
        answer = {
            "dim": backbone.dim,
            "sha256": backbone.weights_sha256,
            "equal": state.keys() == wanted.keys() and all(torch.equal(state[key], wanted[key]) for key in wanted),
        }
        del backbone, state, wanted
    except CxrError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    except Exception as error:
        answer = {"error": type(error).__name__, "message": "not a CxrError: " + str(error)}
    print(json.dumps(answer), flush=True)
"""


@dataclass
class StandIn:
    """What the loopback server offers, and what it was asked for.

    Attributes:
        files: path below the server → file, or (status, the hub's code for the error).
        short: paths whose transfer breaks off after half the bytes.
        asked: (method, path) of every request.
        address: where it listens.
    """

    files: dict[str, Path | tuple[int, str]] = field(default_factory=dict)
    short: set[str] = field(default_factory=set)
    asked: list[tuple[str, str]] = field(default_factory=list)
    address: str = ""

    def offer(self, repository: str, held: Path | tuple[int, str]) -> str:
        """Serve a file, or an error, as the ``model.safetensors`` of a repository; returns its path."""
        path = f"/{repository}/resolve/main/model.safetensors"
        self.files[path] = held
        return path


def handler_of(offered: StandIn) -> type[BaseHTTPRequestHandler]:
    """The part of the hub's protocol that a download of one file needs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(whole=False)

        def do_GET(self) -> None:
            self.answer(whole=True)

        def answer(self, *, whole: bool) -> None:
            offered.asked.append((self.command, self.path))
            held = offered.files.get(self.path, (404, "RepoNotFound"))
            if isinstance(held, tuple):
                self.send_response(held[0])
                self.send_header("X-Error-Code", held[1])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            size, start = held.stat().st_size, 0
            asked_range = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
            if asked_range:
                start = int(asked_range[1])
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            else:
                self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(str(held).encode()).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(size - start))
            self.end_headers()
            if not whole:
                return
            with held.open("rb") as file:
                file.seek(start)
                if self.path in offered.short:
                    self.wfile.write(file.read((size - start) // 2))
                    self.close_connection = True
                else:
                    shutil.copyfileobj(file, self.wfile, 2**20)

        def log_message(self, *_: object) -> None:
            """Stay silent."""

    return Handler


@contextmanager
def serving(offered: StandIn) -> Iterator[None]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler_of(offered)) as server:
        offered.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield
        server.shutdown()
        thread.join()


Load = Callable[..., dict[str, Any]]
"""``(name, wanted=file, *, offline=False)`` → what the driver answers."""


@contextmanager
def driving(folder: Path, address: str) -> Iterator[Load]:
    """A process that loads backbones with the hub at ``address`` and its cache in ``folder``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "CXR_"))}
    kept["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), kept.get("PYTHONPATH", "")])
    said = folder / f"stderr-{len(list(folder.glob('stderr-*')))}"
    with (
        said.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, "-c", DRIVER],
            env={**kept, "HOME": str(folder), "HF_HOME": str(folder / "hf"), "HF_ENDPOINT": address},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        orders, answers = process.stdin, process.stdout

        def load(name: str, wanted: Path | str = "", *, offline: bool = False) -> dict[str, Any]:
            orders.write(json.dumps({"name": name, "wanted": str(wanted), "offline": offline}) + "\n")
            orders.flush()
            line = answers.readline()
            assert line, f"the driver ended: {said.read_text()[-2000:]}"
            answer: dict[str, Any] = json.loads(line)
            return answer

        yield load
        orders.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where checkpoints, the hub's cache and logs lie."""
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def hub() -> Iterator[StandIn]:
    offered = StandIn()
    with serving(offered):
        yield offered


@pytest.fixture(scope="module")
def online(hub: StandIn, folder: Path) -> Iterator[Load]:
    with driving(folder, hub.address) as load:
        yield load


def checkpoint(folder: Path, full_name: str, **changes: torch.Tensor) -> Path:
    """Write a file of weights with the names and shapes of a timm network; zeros where a tensor is enormous."""
    file = folder / f"{full_name}.safetensors"
    with torch.device("meta"):
        shapes = timm.create_model(full_name, pretrained=False).state_dict()
    torch.manual_seed(17)
    state = {
        # Positive, as variances must be, and of a size that keeps deep networks finite.
        name: torch.zeros(value.shape, dtype=value.dtype)
        if not value.is_floating_point() or value.numel() > 2**23
        else torch.empty(value.shape).uniform_(0.01, 0.03 if value.ndim > 1 else 1.0)
        for name, value in shapes.items()
    }
    save_file({**state, **changes}, file)
    return file


# --- the four backbones of the study ---


@pytest.mark.parametrize("name", STUDY)
def test_pretrained_weights_come_from_the_hub(name: str, hub: StandIn, online: Load, folder: Path) -> None:
    full_name, dim = STUDY[name]
    file = checkpoint(folder, full_name)
    path = hub.offer(f"timm/{full_name}", file)
    try:
        answer = online(name, wanted=file)
    finally:
        # Half a GB, which pytest would keep for days.
        file.unlink()
        shutil.rmtree(folder / "hf" / "hub" / f"models--timm--{full_name}", ignore_errors=True)
    assert answer == {"dim": dim, "sha256": answer["sha256"], "equal": True}
    asked = [request for request in hub.asked if full_name in request[1]]
    assert asked == [("HEAD", path), ("GET", path)]


@pytest.fixture(scope="module")
def unreachable(folder: Path) -> Iterator[Load]:
    """A driver with the cache of ``online``, and nobody listening where it looks for the hub."""
    with driving(folder, "http://127.0.0.1:9") as load:
        yield load


def test_a_second_run_without_the_hub_uses_its_cache(
    hub: StandIn, online: Load, unreachable: Load, folder: Path
) -> None:
    file = checkpoint(folder, "test_resnet.r160_in1k")
    hub.offer("timm/test_resnet.r160_in1k", file)
    first = online("test_resnet.r160_in1k", wanted=file)
    assert first["equal"]
    requests = len(hub.asked)
    assert unreachable("test_resnet.r160_in1k", wanted=file) == first
    assert unreachable("test_resnet", wanted=file) == first  # timm's default tag is the same checkpoint
    assert unreachable("test_resnet", wanted=file, offline=True) == first
    assert len(hub.asked) == requests


@pytest.mark.parametrize("offline", [False, True])
def test_what_is_not_cached_and_cannot_be_fetched_is_named_with_how_to_pass_it(
    unreachable: Load, offline: bool
) -> None:
    assert unreachable("resnet18", offline=offline) == {
        "error": "BackboneError",
        "message": "the weights of resnet18: model.safetensors of timm/resnet18.a1_in1k is not cached and the hub "
        f"cannot be reached; {WAY_OUT}",
    }


# --- a hub that has not what is wanted ---


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (404, "EntryNotFound", "cannot be had from the hub (RemoteEntryNotFoundError 404 Client Error"),
        (404, "RepoNotFound", "cannot be had from the hub (RepositoryNotFoundError 404 Client Error"),
        (403, "GatedRepo", "cannot be had from the hub (GatedRepoError 403 Client Error"),
        (500, "", "is not cached and the hub cannot be reached"),
    ],
)
def test_an_error_of_the_hub_is_told_with_the_way_out(
    hub: StandIn, online: Load, status: int, code: str, reason: str
) -> None:
    hub.offer("timm/test_vit.r160_in1k", (status, code))
    answer = online("test_vit.r160_in1k")
    assert answer["error"] == "BackboneError"
    wanted = "the weights of test_vit.r160_in1k: model.safetensors of timm/test_vit.r160_in1k "
    assert answer["message"].startswith(wanted + reason)
    assert answer["message"].endswith(WAY_OUT)
    assert "\n" not in answer["message"]


def test_a_served_file_that_does_not_fit_is_refused_and_the_tensor_named(
    hub: StandIn, online: Load, folder: Path
) -> None:
    file = checkpoint(folder, "test_efficientnet.r160_in1k", **{"classifier.bias": torch.zeros(7)})
    hub.offer("timm/test_efficientnet.r160_in1k", file)
    answer = online("test_efficientnet.r160_in1k")
    assert answer["error"] == "BackboneError"
    assert re.search(
        r"/model\.safetensors does not fit test_efficientnet\.r160_in1k: size mismatch for classifier\.bias",
        answer["message"],
    )


def test_a_page_served_in_place_of_the_file_is_refused(hub: StandIn, online: Load, folder: Path) -> None:
    page = folder / "login.html"
    page.write_text("<html>please log in</html>")
    hub.offer("timm/test_nfnet.r160_in1k", page)
    answer = online("test_nfnet.r160_in1k")
    assert answer["error"] == "BackboneError"
    assert re.search(r"/model\.safetensors cannot be read as weights \(SafetensorError ", answer["message"])


def test_a_download_that_breaks_off_is_told_and_never_taken_for_the_file(
    hub: StandIn, online: Load, folder: Path
) -> None:
    file = checkpoint(folder, "test_byobnet.r160_in1k")
    path = hub.offer("timm/test_byobnet.r160_in1k", file)
    hub.short.add(path)
    answer = online("test_byobnet.r160_in1k", wanted=file)
    assert answer["error"] == "BackboneError"
    assert "model.safetensors of timm/test_byobnet.r160_in1k cannot be had from the hub (" in answer["message"]
    assert answer["message"].endswith(WAY_OUT)
    hub.short.clear()
    assert online("test_byobnet.r160_in1k", wanted=file)["equal"]


# --- weights that a library names by address ---


@pytest.fixture
def squeezenet(tmp_path: Path) -> Path:
    """A checkpoint as torchvision publishes them: the file's name ends with its hash."""
    torch.manual_seed(4)
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), tmp_path / "new.pth")
    digest = hashlib.sha256((tmp_path / "new.pth").read_bytes()).hexdigest()
    return (tmp_path / "new.pth").rename(tmp_path / f"squeezenet-{digest[:8]}.pth")


def test_weights_named_by_address_are_fetched_once_and_kept(
    hub: StandIn, squeezenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    hub.files[f"/{squeezenet.name}"] = squeezenet
    for _ in range(2):
        model = torchvision.models.squeezenet1_1(weights=None)
        weights.load_from_address(model, "torchvision:squeezenet1_1", f"{hub.address}/{squeezenet.name}")
        wanted = torch.load(squeezenet, weights_only=True)
        assert all(torch.equal(model.state_dict()[name], value) for name, value in wanted.items())
    assert [request for request in hub.asked if squeezenet.name in request[1]] == [("GET", f"/{squeezenet.name}")]


def test_an_address_that_gives_another_file_or_none_is_told_with_the_way_out(
    hub: StandIn, squeezenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    changed = tmp_path / "changed.pth"
    changed.write_bytes(squeezenet.read_bytes() + b" ")
    hub.files[f"/{squeezenet.name}"] = changed
    for address in (f"{hub.address}/{squeezenet.name}", f"http://127.0.0.1:9/{squeezenet.name}"):
        with pytest.raises(BackboneError) as caught:
            weights.load_from_address(torchvision.models.squeezenet1_1(weights=None), "torchvision:net", address)
        assert str(caught.value).startswith(
            f"the weights of torchvision:net: {squeezenet.name} is not cached and cannot be fetched ("
        )
        assert str(caught.value).endswith(f"pass it with --weights {squeezenet.name}, or say --weights random")
    assert not list((tmp_path / "torch").rglob("*.pth"))


def test_cached_weights_of_another_network_are_refused(
    squeezenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "torch" / "hub" / "checkpoints").mkdir(parents=True)
    shutil.copy(squeezenet, tmp_path / "torch" / "hub" / "checkpoints")
    address = f"http://127.0.0.1:9/{squeezenet.name}"
    with pytest.raises(BackboneError, match=rf"^{address} does not fit torchvision:alexnet: Missing key"):
        weights.load_from_address(torchvision.models.AlexNet(10), "torchvision:alexnet", address)
