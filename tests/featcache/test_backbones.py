from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision import models

from featcache.backbones import Backbone, load_backbone, weights_sha256
from featcache.decode import Pixels
from featcache.errors import BackboneError
from featcache.forward import compile_forward
from featcache.networks import PooledNetwork, Preprocessing, TorchvisionFeatures
from featcache.views import Geometry, render

TOLERANCE = 1e-3
"""Of a golden feature, absolute. Float32 sums in another order (vector width, threads, library) differ by some 1e-6
here, and pixels that differ by one grey level by 0.3 and more: wrong weights or a wrong mean cannot hide below it."""

GOLDEN = {
    "efficientnet_lite0": [0.00577, 0.0, 0.20100, 0.0, 0.0, 0.0, 0.43692, 1.48139],
    "efficientnet_lite2": [0.01799, 0.06900, 0.19676, 0.38233, 0.00800, 2.18456, 0.0, 0.04323],
}


def still_card(side: int) -> Pixels:
    """A picture made by integer arithmetic, the same everywhere: slopes, discs, curved stripes."""
    row, column = np.mgrid[:side, :side]
    card = (row * 255 // side + column * 255 // side) // 2
    for y, x, radius, level in ((80, 90, 50, 230), (150, 190, 45, 40), (120, 150, 20, 255)):
        card[(row - y) ** 2 + (column - x) ** 2 < radius**2] = level
    return np.array((card * 3 + row * column // 8 % 256) // 4, np.uint8)


def feature_of(backbone: Backbone, pixels: Pixels) -> NDArray[np.float32]:
    """The feature [D] of an image's view 0, by torch in float32."""
    wanted = backbone.preprocessing
    geometry = Geometry(
        image_size=wanted.image_size, resize_side=wanted.resize_side, interpolation=wanted.interpolation
    )
    view = render(pixels, "0" * 64, [0], geometry).expand(1, 3, -1, -1).contiguous()
    forward = compile_forward(backbone, 1, runtime="torch", precision="float32", device="cpu")
    return np.array(forward(view.numpy())[0])


def noise(side: int) -> torch.Tensor:
    """Two images of noise, [2, 3, side, side] uint8."""
    return torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def normalised(pixels: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """As every tutorial writes it: scale to 0..1, subtract the mean, divide by the deviation."""
    mean, std = (torch.tensor(row).view(1, 3, 1, 1) for row in (preprocessing.mean, preprocessing.std))
    return (pixels.float() / 255 - mean) / std


def same_features(backbone: Backbone, reference: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor) -> None:
    """Assert that the backbone's features are the reference's, which is given normalised pixels."""
    with torch.inference_mode():
        wanted = reference(normalised(pixels, backbone.preprocessing))
        torch.testing.assert_close(backbone.network(pixels), wanted, rtol=1e-4, atol=1e-5)


# --- the weights that come with packages ---


@pytest.mark.parametrize("name", GOLDEN)
def test_a_fixed_image_has_the_features_it_always_had(name: str) -> None:
    backbone = load_backbone(name)
    # The card has the side that view 0 is resized to, so that no processor's way of rounding a resize comes in.
    features = feature_of(backbone, still_card(backbone.preprocessing.resize_side))
    assert features.shape == (1280,)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features[:8], GOLDEN[name], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "side", "resized"), [("efficientnet_lite0", 224, 256), ("efficientnet_lite2", 260, 292)]
)
def test_packaged_weights_bring_their_preprocessing_and_are_frozen(name: str, side: int, resized: int) -> None:
    backbone = load_backbone(name)
    assert backbone.name == name
    assert backbone.preprocessing == Preprocessing(
        image_size=side, resize_side=resized, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )
    assert not any(module.training for module in backbone.network.modules())
    assert not any(weight.requires_grad for weight in backbone.network.parameters())


# --- the real files of weights ---


@pytest.fixture(scope="session")
def real_weights(real_data: Path) -> Path:
    """The folder of weights that lies beside the real radiographs."""
    folder = real_data.parent.parent / "weights"
    assert folder.is_dir(), f"no weights in {folder}"
    return folder


@pytest.fixture(scope="session")
def radiographs(real_data: Path) -> torch.Tensor:
    """Two real radiographs, [2, 3, 224, 224] uint8."""
    files = [sorted((real_data / "test" / label).iterdir())[0] for label in ("NORMAL", "PNEUMONIA")]
    films = [np.asarray(Image.open(file).convert("RGB").resize((224, 224))) for file in files]
    return torch.from_numpy(np.stack(films).transpose(0, 3, 1, 2).copy())


@pytest.mark.real
def test_the_squeezenet_file_fits_and_brings_its_mean_and_std(real_weights: Path, radiographs: torch.Tensor) -> None:
    file = real_weights / "squeezenet1_1.safetensors"
    backbone = load_backbone("torchvision:squeezenet1_1", str(file))
    assert (backbone.dim, backbone.name) == (512, "torchvision:squeezenet1_1")
    assert backbone.preprocessing.mean == (0.485, 0.456, 0.406)
    assert backbone.preprocessing.std == (0.229, 0.224, 0.225)
    reference: Any = models.squeezenet1_1().eval()
    reference.load_state_dict(load_file(file))
    same_features(backbone, lambda pixels: reference.features(pixels).mean((2, 3)), radiographs)


@pytest.mark.real
def test_the_mobilenet_file_brings_its_padding_which_changes_every_feature(
    real_weights: Path, radiographs: torch.Tensor
) -> None:
    file = real_weights / "mobilenetv2_100_same.safetensors"
    backbone = load_backbone("mobilenetv2_100", str(file))
    assert (backbone.dim, backbone.name) == (1280, "mobilenetv2_100@pad_type=same")
    assert backbone.preprocessing.mean == (0.5, 0.5, 0.5)
    assert backbone.preprocessing.std == (0.5, 0.5, 0.5)
    references: dict[str, Any] = {}
    for padding in ("same", ""):
        model: Any = timm.create_model("mobilenetv2_100", pretrained=False, pad_type=padding).eval()
        model.load_state_dict(load_file(file))
        references[padding] = model
    same_features(backbone, lambda pixels: references["same"].forward_features(pixels).mean((2, 3)), radiographs)
    with pytest.raises(AssertionError, match="not close"):
        same_features(backbone, lambda pixels: references[""].forward_features(pixels).mean((2, 3)), radiographs)


@pytest.mark.real
@pytest.mark.parametrize(
    ("file", "asked", "offered"),
    [
        ("squeezenet1_1.safetensors", "squeezenet1_1", "use --backbone torchvision:squeezenet1_1"),
        ("squeezenet1_1.safetensors", "torchvision:squeezenet1_0", "use --backbone torchvision:squeezenet1_1"),
        ("mobilenetv2_100_same.safetensors", "efficientnet_lite0", "use --backbone mobilenetv2_100"),
    ],
)
def test_the_real_files_are_refused_for_other_backbones(
    real_weights: Path, file: str, asked: str, offered: str
) -> None:
    with pytest.raises(BackboneError, match=offered):
        load_backbone(asked, str(real_weights / file))


# --- files of weights, and what can be wrong with them ---


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """The state of timm's smallest ResNet, random weights."""
    torch.manual_seed(3)
    model: nn.Module = timm.create_model("test_resnet", pretrained=False)
    return dict(model.state_dict())


def test_a_file_without_a_record_leaves_the_preprocessing_alone(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    file = tmp_path / "plain.safetensors"
    save_file(state, file)
    backbone = load_backbone("test_resnet", str(file))
    assert backbone.preprocessing == load_backbone("test_resnet", "random").preprocessing
    reference: Any = timm.create_model("test_resnet", pretrained=False).eval()
    reference.load_state_dict(state)
    same_features(backbone, lambda pixels: reference.forward_features(pixels).mean((2, 3)), noise(160))


def test_mean_and_std_come_from_the_files_record(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    file = tmp_path / "recorded.safetensors"
    save_file(state, file, {"architecture": "timm test_resnet", "mean": "0.1 0.2 0.3", "std": "0.4 0.5 0.6"})
    backbone = load_backbone("test_resnet", str(file))
    assert backbone.preprocessing.mean == (0.1, 0.2, 0.3)
    assert backbone.preprocessing.std == (0.4, 0.5, 0.6)
    reference: Any = timm.create_model("test_resnet", pretrained=False).eval()
    reference.load_state_dict(state)
    same_features(backbone, lambda pixels: reference.forward_features(pixels).mean((2, 3)), noise(160))


@pytest.mark.parametrize("mean", ["0.1 0.2", "0.1 0.2 0.3 0.4", "a b c", ""])
def test_a_record_whose_mean_is_not_three_numbers_is_refused(
    tmp_path: Path, state: dict[str, torch.Tensor], mean: str
) -> None:
    file = tmp_path / "odd.safetensors"
    save_file(state, file, {"mean": mean})
    with pytest.raises(BackboneError, match=r"odd\.safetensors: mean and std in its record are not three numbers each"):
        load_backbone("test_resnet", str(file))


@pytest.mark.parametrize(
    ("record", "asked", "offered"),
    [
        ("timm test_vit", "test_resnet", "test_vit"),
        ("torchvision resnet18", "resnet18", "torchvision:resnet18"),
        ("timm resnet18", "torchvision:resnet18", "resnet18"),
        ("timm tf_efficientnet_lite0.in1k", "efficientnet_lite2", "tf_efficientnet_lite0.in1k"),
    ],
)
def test_a_file_of_another_architecture_is_refused_and_the_right_name_offered(
    tmp_path: Path, state: dict[str, torch.Tensor], record: str, asked: str, offered: str
) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(state, file, {"architecture": record})
    with pytest.raises(BackboneError) as caught:
        load_backbone(asked, str(file))
    assert str(caught.value) == f"{file} holds weights of {record!r}, not of {asked}: use --backbone {offered}"


def test_options_of_the_record_are_part_of_the_name(tmp_path: Path) -> None:
    file = tmp_path / "padded.safetensors"
    model: Any = timm.create_model("test_efficientnet", pretrained=False, pad_type="same").eval()
    save_file(model.state_dict(), file, {"architecture": "timm test_efficientnet, pad_type='same'"})
    backbone = load_backbone("test_efficientnet", str(file))
    assert backbone.name == "test_efficientnet@pad_type=same"
    assert load_backbone("test_efficientnet@pad_type=same", str(file)).weights_sha256 == backbone.weights_sha256
    same_features(backbone, lambda pixels: model.forward_features(pixels).mean((2, 3)), noise(160))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda state: state.pop("fc.bias"), 'Missing key(s) in state_dict: "fc.bias"'),
        (lambda state: state.update(spare=torch.zeros(1)), 'Unexpected key(s) in state_dict: "spare"'),
        (
            lambda state: state.update({"fc.bias": torch.zeros(7)}),
            "size mismatch for fc.bias: copying a param with shape torch.Size([7]) from checkpoint",
        ),
    ],
    ids=["missing", "extra", "misshaped"],
)
def test_a_file_whose_tensors_do_not_fit_is_refused_and_the_tensor_named(
    tmp_path: Path,
    state: dict[str, torch.Tensor],
    suffix: str,
    change: Callable[[dict[str, torch.Tensor]], object],
    complaint: str,
) -> None:
    file = tmp_path / f"weights{suffix}"
    changed = dict(state)
    change(changed)
    if suffix == ".pth":
        torch.save(changed, file)
    else:
        save_file(changed, file)
    with pytest.raises(BackboneError) as caught:
        load_backbone("test_resnet", str(file))
    assert str(caught.value).startswith(f"{file} does not fit backbone test_resnet: {complaint}")


@pytest.mark.parametrize(
    "wrap", [dict, lambda state: {"state_dict": state}, lambda state: {"epoch": 3, "model": state}]
)
def test_a_pth_of_tensors_loads_as_the_same_safetensors_does(
    tmp_path: Path, state: dict[str, torch.Tensor], wrap: Callable[[dict[str, torch.Tensor]], dict[str, Any]]
) -> None:
    torch.save(wrap(state), tmp_path / "weights.pth")
    save_file(state, tmp_path / "weights.safetensors")
    loaded = [load_backbone("test_resnet", str(tmp_path / f"weights{suffix}")) for suffix in (".pth", ".safetensors")]
    assert loaded[0].weights_sha256 == loaded[1].weights_sha256


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pth_that_holds_an_object_is_refused_and_nothing_of_it_is_executed(
    tmp_path: Path, state: dict[str, torch.Tensor], zipped: bool
) -> None:
    marker, file = tmp_path / "executed", tmp_path / "hostile.pth"
    pickle.loads(pickle.dumps(Trap(marker)))  # noqa: S301 - shows that the trap works
    assert marker.exists()
    marker.unlink()
    torch.save({**state, "trap": Trap(marker)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(BackboneError, match=r"hostile\.pth holds more than tensors and is refused: convert it to"):
        load_backbone("test_resnet", str(file))
    assert not marker.exists()


def test_a_pth_that_holds_a_whole_network_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "network.pth")
    with pytest.raises(BackboneError, match="holds more than tensors and is refused"):
        load_backbone("test_resnet", str(tmp_path / "network.pth"))


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.safetensors", b"", "is not a safetensors file: "),
        ("a.safetensors", b"<html>not found</html>", "is not a safetensors file: "),
        ("a.pth", b"", r"cannot be read as weights \(EOFError\)"),
        ("a.pth", b"hello world", "cannot be read as weights"),
        ("a.pth", b"PK\x03\x04 cut", "cannot be read as weights"),
    ],
)
def test_a_file_that_holds_no_weights_is_one_clear_message(
    tmp_path: Path, name: str, content: bytes, complaint: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BackboneError, match=complaint) as caught:
        load_backbone("test_resnet", str(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("held", [[1, 2], {"epoch": 3}, {"a": torch.zeros(1), "epoch": 3}])
def test_a_pth_without_named_tensors_is_refused(tmp_path: Path, held: object) -> None:
    torch.save(held, tmp_path / "odd.pth")
    with pytest.raises(BackboneError, match=r"odd\.pth holds no state of tensors by name"):
        load_backbone("test_resnet", str(tmp_path / "odd.pth"))


def test_a_missing_weights_file_says_what_weights_takes(tmp_path: Path) -> None:
    with pytest.raises(BackboneError) as caught:
        load_backbone("test_resnet", str(tmp_path / "absent.safetensors"))
    assert str(caught.value) == (
        f"no weights file {tmp_path / 'absent.safetensors'}; --weights takes a .safetensors or .pth file, "
        "or the word random"
    )


# --- names ---


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet5", "unknown backbone 'resnet5'; did you mean resnet50, "),
        ("efficientnet_lite1x", "unknown backbone 'efficientnet_lite1x'; did you mean efficientnet_lite"),
        ("qqq", "unknown backbone 'qqq' ('cxr extract --help' tells the spellings)"),
        ("torchvision:resnet19", "unknown backbone 'torchvision:resnet19'; did you mean resnet18, "),
        ("torchvision:inception_v3", "torchvision's inception_v3 rescales its own input: use timm's inception_v3"),
        ("torchvision:shufflenet_v2_x0_5", "torchvision's ShuffleNetV2 has no last map to average; use timm's model"),
        ("test_resnet@wide", "backbone 'test_resnet@wide': option 'wide' is not key=value, as in mobilenetv2_100@"),
        ("test_resnet@wide=", "backbone 'test_resnet@wide=': option 'wide=' is not key=value"),
        ("test_resnet@nonsense=1", "backbone test_resnet: timm refuses the options {'nonsense': '1'}: "),
        ("test_resnet.nonsense", "backbone test_resnet.nonsense: timm refuses the options {}: Invalid pretrained tag"),
    ],
)
def test_a_wrong_name_is_answered_with_the_way_out(name: str, message: str) -> None:
    with pytest.raises(BackboneError) as caught:
        load_backbone(name, "random")
    assert str(caught.value).startswith(message)


def test_a_network_without_pretrained_weights_is_refused_unless_they_are_given() -> None:
    with pytest.raises(BackboneError) as caught:
        load_backbone("mobilenetv2_075")
    assert str(caught.value) == (
        "timm has no pretrained weights for mobilenetv2_075: pass --weights FILE, or --weights random"
    )


# --- random weights ---


@pytest.mark.parametrize(
    ("name", "dim", "side", "resized"),
    [
        ("resnet50", 2048, 224, 256),
        ("vgg19", 512, 224, 256),
        ("inception_v3", 2048, 299, 341),
        ("efficientnet_b4", 1792, 380, 412),
    ],
)
def test_the_studys_backbones_run_on_random_weights(name: str, dim: int, side: int, resized: int) -> None:
    backbone = load_backbone(name, "random")
    assert (backbone.name, backbone.dim) == (name, dim)
    assert (backbone.preprocessing.image_size, backbone.preprocessing.resize_side) == (side, resized)
    features = feature_of(backbone, still_card(300))
    assert features.shape == (dim,)
    assert np.isfinite(features).all()
    assert features.std() > 0


def test_random_weights_are_the_same_each_time_whatever_the_programs_seed() -> None:
    torch.manual_seed(1)
    first = load_backbone("test_resnet", "random")
    torch.manual_seed(2)
    second = load_backbone("test_resnet", "random")
    assert first.weights_sha256 == second.weights_sha256
    assert torch.equal(first.network(noise(160)), second.network(noise(160)))


def test_loading_a_backbone_leaves_the_programs_random_numbers_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(4)
    torch.manual_seed(5)
    load_backbone("test_resnet", "random")
    assert torch.equal(torch.rand(4), wanted)


# --- pooling ---


def test_tokens_are_averaged_without_the_class_token() -> None:
    backbone = load_backbone("test_vit", "random")
    model: Any = backbone.network.model
    pixels = noise(backbone.preprocessing.image_size)
    with torch.inference_mode():
        tokens = model.forward_features(normalised(pixels, backbone.preprocessing))
        assert tokens.shape == (2, 1 + 10 * 10, 64)
        features = backbone.network(pixels)
        with_class_token = tokens.mean(1)
    torch.testing.assert_close(features, torch.stack([tokens[:, 1 + n] for n in range(100)]).mean(0))
    assert (features - with_class_token).abs().max() > 1e-3


def test_a_map_with_channels_last_is_averaged_over_its_pixels() -> None:
    # A narrow Swin: the same layout, a sixteenth of the weights.
    backbone = load_backbone("swin_tiny_patch4_window7_224@embed_dim=24", "random")
    assert backbone.dim == 192
    model: Any = backbone.network.model
    pixels = noise(224)
    with torch.inference_mode():
        last = model.forward_features(normalised(pixels, backbone.preprocessing))
        assert last.shape == (2, 7, 7, 192)
        by_hand = sum(last[:, y, x] for y in range(7) for x in range(7)) / 49
        torch.testing.assert_close(backbone.network(pixels), by_hand, rtol=1e-4, atol=1e-5)


# Small ones of each kind of torchvision network, and the name of what its average is given to.
TORCHVISION: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "ResNet": (lambda: models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1]), "fc"),
    "DenseNet": (lambda: models.DenseNet(4, (2, 2), 8), "classifier"),
    "MobileNetV3": (lambda: models.mobilenet_v3_small(width_mult=0.25), "classifier"),
    "SwinTransformer": (lambda: models.SwinTransformer([4, 4], 16, [1, 1], [1, 2], [7, 7]), "head"),
}


@pytest.mark.parametrize("kind", TORCHVISION)
def test_a_torchvision_feature_is_what_its_classifier_is_given(kind: str) -> None:
    make, head = TORCHVISION[kind]
    model = make().eval()
    given: list[torch.Tensor] = []
    getattr(model, head).register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    preprocessing = load_backbone("tiny_network:tiny").preprocessing
    with torch.inference_mode():
        model(normalised(noise(64), preprocessing))
        features = PooledNetwork(TorchvisionFeatures(model).eval(), preprocessing)(noise(64))
    assert features.shape == (2, given[0].shape[1])
    torch.testing.assert_close(features, given[0], rtol=1e-4, atol=1e-5)


def test_a_torchvision_name_is_a_backbone() -> None:
    backbone = load_backbone("torchvision:resnet18", "random")
    assert (backbone.name, backbone.dim) == ("torchvision:resnet18", 512)
    assert backbone.preprocessing.interpolation == "bilinear"


def test_torchvisions_own_state_loads_into_its_backbone(tmp_path: Path) -> None:
    torch.manual_seed(11)
    reference: Any = models.squeezenet1_1(weights=None).eval()
    torch.save(reference.state_dict(), tmp_path / "squeezenet.pth")
    backbone = load_backbone("torchvision:squeezenet1_1", str(tmp_path / "squeezenet.pth"))
    same_features(backbone, lambda pixels: reference.features(pixels).mean((2, 3)), noise(224))


def test_a_map_of_bfloat16_is_averaged_in_float32() -> None:
    class Half(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels.bfloat16()

    plain = Preprocessing(image_size=64, resize_side=64, interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1))
    features = PooledNetwork(Half(), plain)(noise(64))
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, (noise(64).float() / 255).bfloat16().float().mean((2, 3)))


# --- the user's own networks ---


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """A function that puts source into a module which can be imported, and returns its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(source: str) -> str:
        name = f"own_networks_{abs(hash(tmp_path))}"
        (tmp_path / f"{name}.py").write_text(f"import torch\nfrom torch import nn\n\n{source}\n")
        return name

    return write


def test_an_own_network_brings_its_size_mean_and_std() -> None:
    backbone = load_backbone("tiny_network:tiny")
    assert (backbone.name, backbone.dim) == ("tiny_network:tiny", 16)
    assert backbone.preprocessing == Preprocessing(
        image_size=32, resize_side=32, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
    )
    model: Any = backbone.network.model
    same_features(backbone, lambda pixels: model(pixels).mean((2, 3)), noise(32))


def test_an_own_network_without_attributes_gets_224_pixels_and_imagenets_statistics(
    write_module: Callable[[str], str],
) -> None:
    backbone = load_backbone(f"{write_module('def net(): return nn.Conv2d(3, 5, 7, stride=7)')}:net")
    assert backbone.dim == 5
    assert backbone.preprocessing == Preprocessing(
        image_size=224,
        resize_side=224,
        interpolation="bilinear",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )


def test_an_own_network_that_draws_its_weights_draws_the_same_each_time(write_module: Callable[[str], str]) -> None:
    name = f"{write_module('def net(): return nn.Conv2d(3, 5, 7, stride=7)')}:net"
    assert load_backbone(name).weights_sha256 == load_backbone(name).weights_sha256


def test_an_own_network_may_give_vectors(write_module: Callable[[str], str]) -> None:
    source = "def net(): return nn.Sequential(nn.Conv2d(3, 5, 7, stride=7), nn.AdaptiveAvgPool2d(1), nn.Flatten())"
    backbone = load_backbone(f"{write_module(source)}:net")
    model: Any = backbone.network.model
    same_features(backbone, model, noise(224))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "'{name}:net' cannot be made: AttributeError: module '{name}' has no attribute 'net'"),
        (
            "import no_such_library",
            "'{name}:net' cannot be made: ModuleNotFoundError: No module named 'no_such_library'",
        ),
        (
            "def net(depth): pass",
            "'{name}:net' cannot be made: TypeError: net() missing 1 required positional argument: 'depth'",
        ),
        ("def net(): return {}", "'{name}:net' made a dict, wanted a torch.nn.Module"),
        ("def net(): return nn.Unflatten(1, (1, 1, 3))", "{name}:net gives (1, 1, 1, 3, 224, 224), wanted a map"),
        ("def net(): return nn.Linear(7, 7)", "{name}:net cannot run on 224×224 pixels: "),
        (
            "class net(nn.Module):\n    def forward(self, pixels): return [pixels]",
            "{name}:net cannot run on 224×224 pixels: its last map is a list, wanted one tensor",
        ),
        (
            "class net(nn.Conv2d):\n    mean = (0.5, 0.5)\n    def __init__(self): super().__init__(3, 5, 7)",
            "'{name}:net': its image_size is not a number, or its mean or std are not three: not enough values",
        ),
    ],
    ids=["absent", "import", "argument", "no module", "shape", "size", "list", "mean"],
)
def test_an_own_network_that_cannot_serve_is_one_clear_message(
    write_module: Callable[[str], str], source: str, message: str
) -> None:
    name = write_module(source)
    with pytest.raises(BackboneError) as caught:
        load_backbone(f"{name}:net")
    assert str(caught.value).startswith("backbone " + message.format(name=name))
    assert "\n" not in str(caught.value)


def test_a_module_that_does_not_exist_is_named() -> None:
    with pytest.raises(
        BackboneError,
        match="'no_such_module:net' cannot be made: ModuleNotFoundError: No module named 'no_such_module'",
    ):
        load_backbone("no_such_module:net")


# --- image size ---


@pytest.mark.parametrize(
    ("name", "side", "resized"),
    [("torchvision:squeezenet1_1", 112, 128), ("test_resnet", 80, 84), ("tiny_network:tiny", 48, 48)],
)
def test_another_image_size_keeps_the_share_that_the_centre_crop_leaves(name: str, side: int, resized: int) -> None:
    backbone = load_backbone(name, "random", image_size=side)
    assert (backbone.preprocessing.image_size, backbone.preprocessing.resize_side) == (side, resized)
    assert backbone.weights_sha256 == load_backbone(name, "random").weights_sha256


def test_an_image_size_that_the_network_cannot_take_is_refused() -> None:
    with pytest.raises(BackboneError, match=r"^backbone test_vit cannot run on 100×100 pixels: "):
        load_backbone("test_vit", "random", image_size=100)


# --- the weights' hash ---


def test_the_hash_follows_every_weight_and_its_name_type_and_shape(state: dict[str, torch.Tensor]) -> None:
    class Holder(nn.Module):
        def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
            super().__init__()
            for name, tensor in tensors.items():
                self.register_buffer(name, tensor)

    def digest(**tensors: torch.Tensor) -> str:
        return weights_sha256(Holder(tensors))

    a, b = torch.arange(6.0).view(2, 3), torch.ones(2)
    nudged = a.clone()
    nudged[1, 2] = torch.nextafter(nudged[1, 2], torch.tensor(9.0))
    different = [
        digest(a=a, b=b),
        digest(a=nudged, b=b),
        digest(c=a, b=b),
        digest(a=a.view(3, 2), b=b),
        digest(a=a.view(torch.int32), b=b),
        digest(a=a),
    ]
    assert len(set(different)) == len(different)
    assert digest(b=b.clone(), a=a.T.contiguous().T) == different[0]
    model: Any = timm.create_model("test_resnet", pretrained=False)
    model.load_state_dict(state)
    first = weights_sha256(model)
    with torch.no_grad():
        model.fc.bias[3] += 1e-6
    assert weights_sha256(model) != first
