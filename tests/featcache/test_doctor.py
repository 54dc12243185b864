"""Every check of ``cxr doctor`` says ok where the thing works, and what to do where it is broken."""

from __future__ import annotations

import errno
import functools
import importlib.metadata
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import filelock
import h5py
import huggingface_hub
import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from safetensors.torch import save_file
from tiny_network import tiny

from featcache import atomic, decode, forward, runtime
from featcache.backbones import load_backbone
from featcache.doctor import examine
from featcache.doctor import weights as doctor_weights
from featcache.doctor.cache import cache_folder, in_units, space
from featcache.doctor.devices import devices, torch_pair
from featcache.doctor.examination import data_set, decoder, interpreter
from featcache.doctor.finding import Finding, guarded
from featcache.doctor.weights import feature_size, weights
from featcache.errors import BackboneError, DataError
from featcache.settings import Settings, load_settings
from featcache.store import store_bytes

Check = Callable[[], Iterator[Finding]]


def settings(**flags: Any) -> Settings:
    """Settings as flags make them."""
    return load_settings(flags)


def only(check: Check) -> Finding:
    """The one finding of a check, run as ``examine`` runs it."""
    (finding,) = guarded("it", "the remedy", check)
    return finding


def named(findings: Iterator[Finding] | list[Finding], checked: str) -> Finding:
    """The one finding of that name."""
    (finding,) = (finding for finding in findings if finding.checked == checked)
    return finding


def raising(error: BaseException) -> Callable[..., Any]:
    """A function that takes anything and raises."""

    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


# --- a finding, and a check that breaks


def test_what_a_check_raises_is_its_last_finding_with_the_way_out_of_the_message() -> None:
    def check() -> Iterator[Finding]:
        yield Finding(checked="first", found="well")
        raise DataError("no such folder: films; name it with --data DIR")

    first, last = guarded("data", "the remedy", check)
    assert first.state == "ok"
    wanted = Finding(checked="data", state="failed", found="no such folder: films", remedy="name it with --data DIR")
    assert last == wanted


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (DataError("nothing there"), "nothing there"),
        (OSError(errno.EIO, "Input/output error"), "OSError: [Errno 5] Input/output error"),
        (RuntimeError("first\nsecond"), "RuntimeError: first"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_an_error_that_names_no_way_out_gets_that_of_its_check(error: Exception, found: str) -> None:
    wanted = Finding(checked="it", state="failed", found=found, remedy="the remedy")
    assert only(raising(error)) == wanted


def test_a_package_that_is_missing_is_named_unless_the_check_knows_the_command() -> None:
    missing = ModuleNotFoundError("No module named 'h5py'", name="h5py")
    assert only(raising(missing)).remedy == "install h5py anew, or cxr with all that it needs"
    (finding,) = guarded("torch", "pip install torch torchvision", raising(missing))
    assert finding.remedy == "pip install torch torchvision"


def test_a_bug_that_ends_the_program_ends_it_here_too() -> None:
    with pytest.raises(KeyboardInterrupt):
        list(guarded("it", "the remedy", raising(KeyboardInterrupt())))


def test_a_finding_in_words_has_its_state_first_and_its_way_out_below() -> None:
    assert Finding(checked="cache", found="fine").in_words() == "ok       cache    fine"
    broken = Finding(checked="cache", state="failed", found="full", remedy="free some")
    assert broken.in_words() == "failed   cache    full\n         → free some"


# --- interpreter


def test_an_interpreter_as_required_is_ok() -> None:
    finding = only(interpreter)
    assert finding.state == "ok"
    assert sys.version.split()[0] in finding.found


def test_an_interpreter_older_than_required_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "metadata", lambda _: {"Requires-Python": ">=4.2"})
    finding = only(interpreter)
    assert (finding.state, finding.remedy) == ("failed", "make the environment anew with a Python >=4.2")
    assert finding.found.endswith(", wanted >=4.2")


def test_running_without_installation_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "metadata", raising(importlib.metadata.PackageNotFoundError("cxr")))
    finding = only(interpreter)
    assert (finding.state, "pip install ." in finding.remedy) == ("warning", True)


# --- torch and torchvision


def test_a_pair_that_fits_is_named_with_its_versions() -> None:
    finding = only(torch_pair)
    assert finding.state == "ok"
    assert torch.__version__ in finding.found
    assert torchvision.__version__ in finding.found


def test_a_pair_that_does_not_fit_fails_with_the_command_that_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.ops, "nms", raising(RuntimeError("operator torchvision::nms does not exist")))
    finding = only(torch_pair)
    assert finding.state == "failed"
    assert finding.found.endswith("were not built for one another (operator torchvision::nms does not exist)")
    assert finding.remedy.endswith("pip install --upgrade torch torchvision")


def test_an_operator_that_computes_something_else_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.ops, "nms", lambda boxes, *_: torch.arange(len(boxes)))
    assert only(torch_pair).state == "failed"


def test_without_torchvision_what_needs_it_is_not_looked_at_and_the_rest_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    findings = list(examine(settings(cache=tmp_path / "cache")))
    assert named(findings, "torch").state == "failed"
    assert "pip install" in named(findings, "torch").remedy
    assert named(findings, "networks").state == "warning"
    assert named(findings, "decoder").state == named(findings, "cache").state == named(findings, "space").state == "ok"
    assert not {"cpu", "weights"} & {finding.checked for finding in findings}


# --- devices


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without accelerators."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda _: None)


@pytest.mark.usefixtures("no_cuda")
def test_a_processor_runs_a_network_by_openvino_as_torch_does() -> None:
    findings = list(guarded("device", "the remedy", lambda: devices(settings())))
    assert [finding.checked for finding in findings] == ["cpu", "cuda"]
    assert {finding.state for finding in findings} == {"ok"}
    assert f"'cxr extract' takes it, with openvino {importlib.metadata.version('openvino')} in " in findings[0].found


@pytest.mark.usefixtures("no_cuda")
def test_a_runtime_that_cannot_be_imported_fails_unless_the_other_one_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    broken = named(devices(settings()), "cpu")
    assert broken.state == "failed"
    assert "openvino" in broken.found
    assert broken.remedy.startswith("set runtime to torch (cxr.toml, CXR_RUNTIME, ")
    assert "torch 2" in named(devices(settings(runtime="torch")), "cpu").found


@pytest.mark.usefixtures("no_cuda")
def test_a_runtime_that_computes_something_else_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "compile_forward", lambda *_, **__: lambda pixels: np.zeros((len(pixels), 4)))
    finding = named(devices(settings()), "cpu")
    assert finding.state == "failed"
    assert re.search(r" computes 0 where -\d\.\d+ is right$", finding.found)


@pytest.mark.usefixtures("no_cuda")
def test_a_device_that_is_not_here_fails_and_the_others_are_told() -> None:
    for flags in ({"device": "cuda:7"}, {"devices": ["cuda:7"]}):
        findings = list(guarded("device", "the remedy", lambda: devices(settings(**flags, runtime="torch"))))  # noqa: B023
        missing = named(findings, "device")
        assert (missing.state, "no device 'cuda:7' on this machine" in missing.found) == ("failed", True)
        assert "it would run networks with" in named(findings, "cpu").found


@pytest.mark.usefixtures("no_cuda")
def test_slow_bfloat16_on_a_processor_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    finding = named(devices(settings(runtime="torch", precision="bfloat16")), "cpu")
    assert (finding.state, finding.remedy.startswith("set precision to float32")) == ("warning", True)


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A CUDA device that is not there: its networks run on the processor; ``broken`` makes them fail."""
    device = SimpleNamespace(name="NVIDIA T4", major=7, minor=5, precision="float16", broken=False)
    real = forward.compile_forward

    def compile_forward(*given: Any, device: str, **others: Any) -> Callable[..., NDArray[np.float32]]:
        if device != "cpu" and pretended.broken:
            raise RuntimeError("CUDA error: no kernel image is available for execution on the device")
        return real(*given, device="cpu", **others)

    pretended = device
    monkeypatch.setattr(forward, "compile_forward", compile_forward)
    # OpenVINO's conversion would talk to the driver.
    monkeypatch.setattr(runtime, "choose_runtime", lambda *_: "torch")
    monkeypatch.setattr(runtime, "choose_precision", lambda _, where: "float32" if where == "cpu" else device.precision)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: device)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (device.major, device.minor))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (14 * 2**30, 15 * 2**30))
    return device


def test_an_accelerator_is_told_with_its_memory_and_precision(accelerator: SimpleNamespace) -> None:
    findings = list(devices(settings()))
    assert [(finding.checked, finding.state) for finding in findings] == [("cpu", "ok"), ("cuda:0", "ok")]
    version = importlib.metadata.version("torch")
    assert findings[1].found == (
        "NVIDIA T4, 14.0 of 15.0 GiB free, compute capability 7.5, no fast bfloat16; "
        f"'cxr extract' takes it, with torch {version} in float16"
    )
    accelerator.major, accelerator.precision = 8, "bfloat16"
    assert named(devices(settings()), "cuda:0").state == "ok"


def test_an_accelerator_that_only_emulates_bfloat16_is_a_warning(accelerator: SimpleNamespace) -> None:
    accelerator.precision = "bfloat16"
    finding = named(devices(settings()), "cuda:0")
    assert finding.state == "warning"
    assert finding.found.endswith("in bfloat16, which is emulated and slow")
    assert finding.remedy.startswith("set precision to float16")


@pytest.mark.parametrize(
    ("flags", "state"),
    [
        ({"device": "auto"}, "failed"),
        ({"device": "cuda"}, "failed"),
        ({"devices": "all"}, "failed"),
        ({"devices": "cuda:0"}, "failed"),
        ({"device": "cpu"}, "warning"),
        ({"devices": "cpu,cpu"}, "warning"),
    ],
)
def test_an_accelerator_that_cannot_run_fails_only_where_it_would_be_taken(
    accelerator: SimpleNamespace, flags: dict[str, str], state: str
) -> None:
    accelerator.broken = True
    finding = named(devices(settings(**flags)), "cuda:0")
    assert finding.state == state
    assert "no kernel image is available" in finding.found
    assert finding.remedy.startswith("set device to cpu")


@pytest.mark.usefixtures("no_cuda")
@pytest.mark.parametrize(
    ("hidden", "built", "said", "why"),
    [
        ("", "13.2", "", "CUDA_VISIBLE_DEVICES is ''"),
        ("0", None, "", "is built without CUDA"),
        ("0", "13.2", "The NVIDIA driver on your system is too old", "driver on your system is too old"),
        ("0", "13.2", "", "sees none"),
    ],
)
def test_an_accelerator_that_torch_cannot_use_is_a_warning_that_says_why(
    monkeypatch: pytest.MonkeyPatch, hidden: str, built: str | None, said: str, why: str
) -> None:
    def is_available() -> bool:
        if said:
            warnings.warn(said, stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(shutil, "which", lambda program: f"/usr/bin/{program}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    finding = named(devices(settings(runtime="torch")), "cuda")
    assert finding.state == "warning"
    assert why in finding.found


# --- decoder and data set

REAL_DECODE = decode.decode


def test_the_decoders_give_a_picture_back() -> None:
    assert only(decoder).state == "ok"


@pytest.mark.parametrize(
    "broken",
    [
        raising(decode.UnreadableImageError("damaged or truncated: decoder jpeg not available")),
        lambda data: 255 - REAL_DECODE(data),
        lambda data: REAL_DECODE(data)[::-1],
        lambda data: REAL_DECODE(data)[:-1],
    ],
)
def test_a_decoder_that_fails_or_gives_another_picture_fails(
    monkeypatch: pytest.MonkeyPatch, broken: Callable[..., Any]
) -> None:
    monkeypatch.setattr(decode, "decode", broken)
    assert only(decoder).state == "failed"


def test_a_data_set_is_counted_and_none_is_no_fault(phantoms: Path, tmp_path: Path) -> None:
    found = only(lambda: data_set(settings(data=phantoms)))
    assert (found.state, found.found.startswith(f"88 images of 2 classes in {phantoms}")) == ("ok", True)
    none = only(lambda: data_set(settings()))
    assert (none.state, none.found) == ("ok", "no data set named; with --data DIR it is looked at too")
    missing = only(lambda: data_set(settings(data=tmp_path / "films")))
    assert (missing.state, missing.remedy) == ("failed", "name the data set's folder with --data DIR")


# --- weights


def weights_of(backbone: str, *files: str, **others: Any) -> Finding:
    """The finding for the weights of one backbone."""
    asked_for = settings(backbone=[backbone], weights=list(files), **others)
    return only(lambda: weights(asked_for, {}))


def test_weights_of_a_package_and_of_own_code_are_there() -> None:
    packaged, own = weights_of("efficientnet_lite0"), weights_of("tiny_network:tiny")
    assert packaged.state == own.state == "ok"
    assert packaged.found == "efficientnet_lite0, 1,280 features an image: its weights come with a package"
    assert own.found == "tiny_network:tiny, 16 features an image: its own code makes them"
    assert weights_of("test_resnet", "random").state == "ok"


def test_a_file_of_weights_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "tiny.safetensors"
    save_file(tiny().state_dict(), file)
    assert weights_of("tiny_network:tiny", str(file)).found.endswith(f": {file} fits")
    misfit = weights_of("test_resnet", str(file))
    assert misfit.state == "failed"
    assert f"{file} does not fit backbone test_resnet: Missing key" in misfit.found
    assert misfit.remedy.startswith("pass weights that belong to the backbone with --weights FILE")
    file.write_bytes(file.read_bytes()[:-1])
    assert "is not a safetensors file" in weights_of("tiny_network:tiny", str(file)).found
    missing = weights_of("test_resnet", str(tmp_path / "none.pth"))
    assert (missing.state, missing.found) == ("failed", f"no weights file {tmp_path / 'none.pth'}")


def test_an_unknown_backbone_fails_with_the_nearest() -> None:
    finding = weights_of("resnt50")
    assert (finding.state, finding.found) == ("failed", "unknown backbone 'resnt50'")
    assert finding.remedy.startswith("did you mean resnet50")


def test_an_image_size_that_the_backbone_cannot_take_fails() -> None:
    finding = weights_of("test_vit", "random", image_size=50)
    assert finding.state == "failed"
    assert "cannot run on 50×50 pixels" in finding.found


def test_one_backbone_that_fails_does_not_hide_the_others() -> None:
    sizes: dict[str, int] = {}
    found = list(weights(settings(backbone=["resnt50", "efficientnet_lite0"]), sizes))
    assert [finding.state for finding in found] == ["failed", "ok"]
    assert sizes == {"efficientnet_lite0": 1280}


def test_another_number_of_weights_than_of_backbones_fails() -> None:
    finding = weights_of("resnet50", "a.pth", "b.pth")
    assert finding.state == "failed"
    assert finding.found.startswith("1 backbones but 2 weights: give one --weights for each --backbone")


def test_weights_of_torchvision_are_looked_for_in_torchs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    missing = weights_of("torchvision:squeezenet1_1")
    assert missing.state == "warning"
    file = missing.remedy.rsplit(" ", 1)[-1]
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / file).touch()
    there = weights_of("torchvision:squeezenet1_1")
    assert (there.state, there.found.endswith(f"{file} is cached")) == ("ok", True)


@pytest.mark.parametrize(
    ("name", "dim"), [("resnet50", 2048), ("vgg19", 512), ("inception_v3", 2048), ("efficientnet_b4", 1792)]
)
def test_the_study_backbones_sizes_are_known_without_weights(
    monkeypatch: pytest.MonkeyPatch, name: str, dim: int
) -> None:
    # By their shapes alone: built in earnest they take seconds.
    monkeypatch.setattr("featcache.backbones.load_backbone", raising(AssertionError("was built")))
    assert feature_size(name) == dim


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_mambaout", "mobilenetv3_small_050@pad_type=same"])
def test_a_size_known_without_weights_is_that_of_the_features(name: str) -> None:
    assert feature_size(name) == load_backbone(name, "random").dim
    assert feature_size(name, 160) == load_backbone(name, "random", 160).dim


# --- the hub

WANTED = "model.safetensors of timm/test_resnet.r160_in1k"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's client."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def look_for_the_hub_at(port: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """Set the endpoint, as HF_ENDPOINT does at the start of a program."""
    endpoint = f"http://127.0.0.1:{port}"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    return endpoint


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def keep_in(hub_cache: Path, data: bytes) -> Path:
    """Lay weights into the hub's cache as its client does."""
    repository, commit = hub_cache / "models--timm--test_resnet.r160_in1k", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    file = repository / "snapshots" / commit / "model.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(data)
    return file


def test_cached_weights_are_found_and_the_hub_is_not_asked(
    hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(tiny().state_dict(), tmp_path / "any.safetensors")
    file = keep_in(hub_cache, (tmp_path / "any.safetensors").read_bytes())
    monkeypatch.setattr(huggingface_hub, "get_session", raising(AssertionError("the hub was asked")))
    finding = weights_of("test_resnet")
    assert (finding.state, finding.found.endswith(f"{WANTED} is cached")) == ("ok", True)
    file.write_bytes(file.read_bytes()[:-1])
    cut = weights_of("test_resnet")
    assert (cut.state, cut.remedy) == ("failed", "delete it, and 'cxr extract' fetches it anew")
    assert cut.found.startswith(f"{file} is not a safetensors file")


@pytest.mark.usefixtures("hub_cache")
def test_a_hub_that_cannot_be_reached_fails_at_once_with_the_ways_out(
    closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = look_for_the_hub_at(closed_port, monkeypatch)
    start = time.monotonic()
    finding = weights_of("test_resnet")
    assert time.monotonic() - start < doctor_weights.HUB_SECONDS
    assert finding.state == "failed"
    assert finding.found.startswith(f"{WANTED} is not cached, and {endpoint} cannot be reached (Connect")
    for way_out in ("--weights model.safetensors", "HF_ENDPOINT", "--backbone efficientnet_lite0"):
        assert way_out in finding.remedy


@pytest.mark.usefixtures("hub_cache")
def test_a_client_told_to_stay_offline_does_not_ask_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    finding = weights_of("test_resnet")
    assert finding.state == "failed"
    assert finding.found == f"{WANTED} is not cached, and HF_HUB_OFFLINE is set, so that the hub is not asked"


@pytest.mark.usefixtures("hub_cache")
def test_a_hub_that_does_not_answer_is_waited_for_once_for_all_backbones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_weights, "HUB_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        endpoint = look_for_the_hub_at(int(mute.getsockname()[1]), monkeypatch)
        asked_for = settings(backbone=["test_resnet", "test_vit", "test_byobnet"])
        sizes: dict[str, int] = {}
        start = time.monotonic()
        answers = doctor_weights.ask_hub(["timm/a", "timm/b", "timm/c"])
        assert time.monotonic() - start < 2
        assert len(answers) == 3
        assert all(answer.startswith(endpoint) for answer in answers.values())
        assert {finding.state for finding in weights(asked_for, sizes)} == {"failed"}
    # What is not here has a size all the same.
    assert sizes.keys() == set(asked_for.backbone)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What a stand-in of the hub was asked; it has the weights of test_resnet, and those of test_vit behind a link."""
    requests: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            requests.append(self.path)
            self.send_response(next((status for word, status in answers.items() if word in self.path), 404))
            self.send_header("Location", "/storage/file")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Stay silent."""

    answers = {"test_resnet": 200, "test_vit": 302, "storage": 200}
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        look_for_the_hub_at(server.server_port, monkeypatch)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield requests
        huggingface_hub.close_session()
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("hub_cache")
def test_a_hub_that_has_the_weights_is_ok_and_nothing_is_fetched(asked: list[str]) -> None:
    for name in ("test_resnet", "test_vit"):
        finding = weights_of(name)
        assert finding.state == "ok"
        assert "the hub has model.safetensors of timm/" in finding.found
    assert asked[0] == "/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"
    missing = weights_of("test_byobnet")
    assert missing.state == "failed"
    assert missing.found.endswith(" answers 404")


# --- the cache's folder


def test_a_cache_that_is_not_there_yet_can_be_made_and_is_not_left_behind(tmp_path: Path) -> None:
    findings = list(cache_folder(tmp_path / "deep" / "cache"))
    assert [(finding.checked, finding.state) for finding in findings] == [
        ("cache", "ok"),
        ("locks", "ok"),
        ("hdf5", "ok"),
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_cache_in_use_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "phantoms" / "store" / "parts").mkdir(parents=True)
    (tmp_path / "phantoms" / "store" / "features.h5").write_bytes(b"something")
    before = contents(tmp_path)
    assert {finding.state for finding in cache_folder(tmp_path)} == {"ok"}
    assert contents(tmp_path) == before


def test_a_file_in_the_caches_place_fails(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    finding = only(lambda: cache_folder(tmp_path / "cache"))
    assert (finding.state, finding.found) == ("failed", f"{tmp_path / 'cache'} cannot be written: File exists")
    below = only(lambda: cache_folder(tmp_path / "cache" / "deeper"))
    assert (below.state, "Not a directory" in below.found) == ("failed", True)
    assert below.remedy == "name another place with --cache DIR, or make this one writable"


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_cache_that_may_not_be_written_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(os, "mkdir", raising(OSError(code, os.strerror(code))))
    finding = only(lambda: cache_folder(tmp_path / "cache"))
    assert finding.state == "failed"
    assert finding.found == f"{tmp_path / 'cache'} cannot be written: {os.strerror(code)}"


@pytest.mark.parametrize("options", ["ro", "size=32k"])
def test_a_read_only_and_a_full_file_system_fail(tmp_path: Path, options: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", options, "cxr-test", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mounting, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a disk; the tests beside this one stand for it")
    try:
        findings = list(guarded("cache", "the remedy", lambda: cache_folder(disk)))
        left = list(disk.iterdir())
    finally:
        subprocess.run(["umount", str(disk)], check=True)  # noqa: S607 - wherever the system has it
    assert [finding.state for finding in findings] == ["failed"]
    assert ("Read-only file system" if options == "ro" else "No space left on device") in findings[0].found
    assert left == []


def test_a_disk_that_fills_up_fails_and_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", raising(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    finding = only(lambda: cache_folder(tmp_path / "cache"))
    assert (finding.state, finding.found.endswith("No space left on device")) == ("failed", True)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_reads_back_as_another_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "write_bytes", lambda path, data: path.write_bytes(bytes(len(data))))
    finding = only(lambda: cache_folder(tmp_path))
    assert (finding.state, "reads back as something else" in finding.found) == ("failed", True)


def test_a_lock_that_keeps_nobody_out_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Open:
        def __init__(self, *_: object, **__: object) -> None: ...

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(filelock, "FileLock", Open)
    finding = named(cache_folder(tmp_path), "locks")
    assert (finding.state, finding.remedy.startswith("run one extraction at a time")) == ("warning", True)


def test_a_file_system_without_locks_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filelock, "FileLock", raising(OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))))
    findings = list(cache_folder(tmp_path))
    assert named(findings, "locks").state == "failed"
    assert "No locks available" in named(findings, "locks").found
    assert named(findings, "hdf5").state == "ok"


@pytest.mark.parametrize(("mode", "state"), [("r", "failed"), ("r+", "warning")])
def test_locks_that_hdf5_cannot_take_fail_only_where_we_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, state: str
) -> None:
    real = h5py.File

    def refusing(name: object, how: str, **others: Any) -> h5py.File:
        if how == mode:
            raise OSError(errno.ENOLCK, "Unable to open file (unable to lock file)")
        return real(name, how, **others)

    monkeypatch.setattr(h5py, "File", refusing)
    finding = named(cache_folder(tmp_path), "hdf5")
    assert finding.state == state
    assert "unable to lock file" in finding.found
    assert finding.remedy.startswith("export HDF5_USE_FILE_LOCKING=FALSE")


def test_hdf5_without_locks_is_a_warning_unless_they_are_off_on_purpose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HDF5_USE_FILE_LOCKING", raising=False)
    monkeypatch.setattr(h5py, "File", functools.partial(h5py.File, locking=False))
    finding = named(cache_folder(tmp_path), "hdf5")
    assert (finding.state, "hold nobody back" in finding.found) == ("warning", True)
    # The library reads the variable once, at its start.
    program = (
        "import sys, pathlib\n"
        "from featcache.doctor.cache import cache_folder\n"
        "print([(f.checked, f.state, f.found) for f in cache_folder(pathlib.Path(sys.argv[1]))][-1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env={**os.environ, "HDF5_USE_FILE_LOCKING": "FALSE"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("('hdf5', 'ok', ")
    assert "its locks are off (HDF5_USE_FILE_LOCKING=FALSE)" in done.stdout


# --- space


def free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=2**50, used=2**50 - size, free=size))


def test_a_disk_too_small_for_the_stores_fails(phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for = settings(data=phantoms, cache=tmp_path / "cache", views=4)
    sizes = {"resnet50": 2048, "vgg19": 512}
    floor = 88 * 4 * (2048 + 512) * 2
    free(monkeypatch, floor)
    finding = only(lambda: space(asked_for, sizes))
    assert finding.state == "failed"
    assert finding.found.startswith(f"{in_units(floor)} free, ")
    assert "(88 images × 4 views × 2,560 features)" in finding.found
    assert "--cache DIR" in finding.remedy
    free(monkeypatch, 2 * floor)
    assert only(lambda: space(asked_for, sizes)).state == "ok"
    # What is there already was counted in, so that the same disk may well do.
    free(monkeypatch, floor)
    (tmp_path / "cache" / phantoms.name / "resnet50-0123" / "parts").mkdir(parents=True)
    assert only(lambda: space(asked_for, sizes)).state == "warning"


def test_without_a_data_set_the_space_of_one_image_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 3 * 2**30)
    asked_for = settings(cache=tmp_path / "not" / "yet")
    assert only(lambda: space(asked_for, {"resnet50": 2048})).found == (
        "3.0 GiB free; an image will take 5.0 KiB (1 view × 2,048 features)"
    )
    assert only(lambda: space(asked_for, {})).found == "3.0 GiB free"


def test_the_estimate_is_enough_for_a_store_and_not_much_more(phantom_store: Path, phantoms: Path) -> None:
    asked_for = settings(data=phantoms, cache=phantom_store.parent.parent, views=3)
    with pytest.MonkeyPatch.context() as patch:
        # 88 images of 16 features: the smallest store there is, and in parts of 32 images at that.
        free(patch, store_bytes(phantom_store))
        assert only(lambda: space(asked_for, {"tiny": 16})).state == "warning"
        free(patch, 4 * store_bytes(phantom_store))
        assert only(lambda: space(asked_for, {"tiny": 16})).state == "ok"


@pytest.mark.parametrize(
    ("size", "words"), [(5120, "5.0 KiB"), (2**20, "1.0 MiB"), (2**30 - 1, "1024.0 MiB"), (5 * 2**29, "2.5 GiB")]
)
def test_sizes_are_told_as_people_read_them(size: int, words: str) -> None:
    assert in_units(size) == words


# --- all together


def test_on_a_machine_in_order_all_is_ok_and_everything_stays_as_it_was(phantoms: Path, tmp_path: Path) -> None:
    asked_for = settings(data=phantoms, cache=tmp_path / "cache", backbone=["tiny_network:tiny"], device="cpu")
    findings = list(examine(asked_for))
    wanted = ["python", "torch", "cpu", "decoder", "data", "weights", "cache", "locks", "hdf5", "space"]
    assert [finding.checked for finding in findings if finding.checked[:4] != "cuda"] == wanted
    assert {finding.state for finding in findings if finding.checked in wanted} == {"ok"}
    assert list(tmp_path.iterdir()) == []


def test_everything_that_is_not_ok_has_a_remedy_and_nothing_else_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "decode", raising(RuntimeError()))
    monkeypatch.setitem(sys.modules, "openvino", None)
    (tmp_path / "cache").touch()
    asked_for = settings(data=tmp_path / "films", cache=tmp_path / "cache", backbone=["resnt50"], weights=["a", "b"])
    findings = list(examine(asked_for))
    assert sum(finding.state == "failed" for finding in findings) >= 5
    assert [finding for finding in findings if (finding.state == "ok") == bool(finding.remedy)] == []


NETWORK = """
import json, sys
import featcache.backbones, featcache.store, huggingface_hub  # what the libraries do at import is not ours
LEAVING = {"socket.connect", "socket.getaddrinfo", "socket.sendto", "os.fork", "os.posix_spawn", "subprocess.Popen"}
left = []
sys.addaudithook(lambda event, given: left.append(f"{event} {given[1:]}") if event in LEAVING else None)
from featcache.doctor import examine
from featcache.settings import load_settings
findings = {finding.checked: finding.state for finding in examine(load_settings())}
print(json.dumps([left, findings]))
"""


def test_nothing_leaves_the_machine_but_the_question_to_the_hub_and_nothing_is_written_at_home(
    tmp_path: Path, closed_port: int
) -> None:
    home, scratch, work = (tmp_path / name for name in ("home", "scratch", "work"))
    for folder in (home, scratch, work):
        folder.mkdir()
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    variables = {"HOME": str(home), "TMPDIR": str(scratch), "PYTHONPATH": path, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-B", "-c", NETWORK],
        env={**variables, "HF_ENDPOINT": f"http://127.0.0.1:{closed_port}"},
        cwd=work,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    left, findings = json.loads(done.stdout.splitlines()[-1])
    assert findings["weights"] == "failed"
    assert [line for line in left if str(closed_port) not in line] == []
    assert any(line.startswith("socket.connect") for line in left)
    assert [*home.iterdir(), *work.iterdir()] == []


def test_a_backbone_of_the_users_that_cannot_be_made_fails() -> None:
    finding = weights_of("tiny_network:absent")
    assert finding.state == "failed"
    assert "cannot be made: AttributeError" in finding.found
    with pytest.raises(BackboneError):
        feature_size("tiny_network:absent")
