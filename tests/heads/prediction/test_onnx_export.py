"""An exported graph says what torch and ``cxr predict`` say, and how it is to be asked."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from test_cli import cxr, done

from featcache.errors import BackboneError
from featcache.films import load_film
from featcache.loading import Rendering
from featcache.making import geometry_of
from featcache.settings import load_settings
from heads.choosing.decision import decide
from heads.prediction import onnx_export
from heads.prediction.from_run import model_of_run
from heads.prediction.model import Model
from heads.prediction.networks import backbones_of
from heads.prediction.onnx_export import Judge, export_onnx, onnx_session
from heads.prediction.predictor import Predictor
from prediction.conftest import QUICK


def pixels_of(model: Model, files: list[Path]) -> list[NDArray[np.uint8]]:
    """The pixels of each input, [N, 3, S, S], made as the metadata of the graph says."""
    made = []
    for spec in {geometry_of(source.spec): source.spec for source in model.sources}.values():
        clean = Rendering(geometry=geometry_of(spec), floor=spec.decode_floor, views=range(1))
        views = [load_film(file, frozenset([clean])).views[clean][0] for file in files]
        made.append(np.stack([np.broadcast_to(view, (3, *view.shape[1:])) for view in views]))
    return made


def answers(path: Path, pixels: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    session = onnx_session(path)
    names = [one.name for one in session.get_inputs()]
    found: NDArray[np.float32] = session.run(["probabilities"], dict(zip(names, pixels, strict=True)))[0]
    return found


@pytest.mark.parametrize("head", [0, 2, 8, 10])
def test_a_heads_graph_agrees_with_torch_and_predict_for_any_number_of_films(
    place: Path, tmp_path: Path, head: int
) -> None:
    model = model_of_run(place / "cache" / "films", head=head)
    networks = backbones_of(model, load_settings())
    files = sorted((place / "films" / "test").glob("*/*"))
    said = [one.probabilities for one in Predictor(model, networks).stream(files)]
    export_onnx(tmp_path / "model.onnx", model, networks)
    pixels = pixels_of(model, files)
    found = answers(tmp_path / "model.onnx", pixels)
    with torch.inference_mode():
        wanted = Judge(model, networks)(*map(torch.from_numpy, pixels))[0].numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    # Features rounded to float16 lie between.
    np.testing.assert_allclose(found, np.stack([one for one in said if one is not None]), atol=1e-3)
    alone = [answers(tmp_path / "model.onnx", [one[row : row + 1] for one in pixels]) for row in range(3)]
    np.testing.assert_allclose(np.concatenate(alone), found[:3], atol=1e-6)


def test_an_ensembles_graph_is_the_ensemble(place: Path, tmp_path: Path) -> None:
    row = decide(place / "cache" / "films", ensembles=True).rows[-1]
    assert len(row.members) > 1
    model = model_of_run(place / "cache" / "films", row=row.name)
    networks = backbones_of(model, load_settings())
    files = sorted((place / "films" / "test").glob("*/*"))[:5]
    said = [one.probabilities for one in Predictor(model, networks).stream(files)]
    export_onnx(tmp_path / "model.onnx", model, networks)
    found = answers(tmp_path / "model.onnx", pixels_of(model, files))
    np.testing.assert_allclose(found, np.stack([one for one in said if one is not None]), atol=1e-3)


def test_the_graph_says_how_it_is_to_be_asked_and_what_its_answers_mean(place: Path, tmp_path: Path) -> None:
    said = done("export", "--data", "films", "--onnx", tmp_path / "m.onnx", "--json", cwd=place, **QUICK).json
    graph = onnx.load(tmp_path / "m.onnx")
    (kept,) = [json.loads(one.value) for one in graph.metadata_props if one.key == "cxr"]
    assert kept == {name: value for name, value in said.items() if name not in ("onnx", "agreement")}
    assert kept["classes"] == ["NORMAL", "PNEUMONIA"]
    assert kept["inputs"] == {
        "pixels": {
            "image_size": 32,
            "resize_side": 32,
            "interpolation": "bilinear",
            "antialias": True,
            "crop": "centre",
            "pixels": "uint8 RGB, NCHW",
            "grey": "the same in each of the three channels",
            "normalised_in_graph": True,
        }
    }
    assert 0 <= said["agreement"] <= 1e-4
    (asked,) = graph.graph.input
    assert asked.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    model = model_of_run(place / "cache" / "films", rule=None)
    files = sorted((place / "films" / "test").glob("*/*"))
    predictor = Predictor(model, backbones_of(model, load_settings()))
    positive = answers(tmp_path / "m.onnx", pixels_of(model, files))[:, 1]
    decided = ["PNEUMONIA" if one >= kept["thresholds"][kept["default_rule"]] else "NORMAL" for one in positive]
    assert decided == [one.decision for one in predictor.stream(files)]


def test_a_bundle_is_exported_as_its_run(place: Path, tmp_path: Path) -> None:
    done("bundle", "--data", "films", "--head", "0", "--out", tmp_path / "b", "--include-weights", cwd=place, **QUICK)
    own = ("--backbone", "tiny_network:tiny")
    done("export", "--bundle", tmp_path / "b", *own, "--onnx", tmp_path / "b.onnx", cwd=tmp_path, **QUICK)
    done("export", "--data", "films", "--head", "0", "--onnx", tmp_path / "r.onnx", cwd=place, **QUICK)
    model = model_of_run(place / "cache" / "films", head=0)
    pixels = pixels_of(model, sorted((place / "films" / "test").glob("*/*")))
    np.testing.assert_array_equal(answers(tmp_path / "b.onnx", pixels), answers(tmp_path / "r.onnx", pixels))


def test_a_graph_that_differs_from_torch_is_not_written(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of_run(place / "cache" / "films", head=0)
    for difference in (2e-4, float("nan")):
        monkeypatch.setattr(onnx_export, "_difference", lambda *_, found=difference: found)
        with pytest.raises(BackboneError, match="differs from torch by"):
            export_onnx(tmp_path / "m.onnx", model, backbones_of(model, load_settings()))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [1, 3])
@pytest.mark.parametrize("off", [0.01, float("nan")])
def test_a_graph_that_is_right_for_the_traced_number_of_films_alone_is_not_written(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: int, off: float
) -> None:
    measured = onnx_export._difference

    def difference(graph: bytes, judge: Judge, examples: tuple[torch.Tensor, ...]) -> float:
        return measured(graph, judge, examples) + (off if len(examples[0]) == wrong else 0.0)

    monkeypatch.setattr(onnx_export, "_difference", difference)
    model = model_of_run(place / "cache" / "films", head=0)
    with pytest.raises(BackboneError, match="differs from torch by"):
        export_onnx(tmp_path / "m.onnx", model, backbones_of(model, load_settings()))
    assert list(tmp_path.iterdir()) == []


class Other:
    """A session that answers with a logit that is off."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    def get_inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="pixels")]

    def run(self, _names: None, given: dict[str, NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        with torch.inference_mode():
            probabilities, logits = (one.numpy() for one in self.judge(torch.from_numpy(given["pixels"])))
        return [probabilities, logits * np.float32(1.01)]


def test_a_logit_that_is_off_would_be_found_behind_a_probability_of_one(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of_run(place / "cache" / "films", head=0)
    judge = Judge(model, backbones_of(model, load_settings()))
    monkeypatch.setattr(onnx_export, "onnx_session", lambda *_: Other(judge))
    found = onnx_export._difference(b"", judge, [onnx_export._pixels(32)])
    assert 1e-4 < found < 0.02


def test_without_the_extra_one_line_tells_how_to_get_it(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    refused = cxr("export", "--data", "films", "--onnx", tmp_path / "m.onnx", cwd=place, **QUICK)
    assert refused.error == "ONNX export wants the extra: pip install 'cxr[onnx]'"


@pytest.mark.real
def test_on_real_films_onnxruntime_agrees_with_torch_within_a_ten_thousandth(real_place: Path, tmp_path: Path) -> None:
    model = model_of_run(real_place / "cache" / "films")
    networks = backbones_of(model, load_settings())
    files = sorted((real_place / "films" / "test").glob("*/*"))
    assert len(files) == 100
    said = [one.probabilities for one in Predictor(model, networks).stream(files)]
    export_onnx(tmp_path / "m.onnx", model, networks)
    pixels = pixels_of(model, files)
    found = np.concatenate([answers(tmp_path / "m.onnx", [pixels[0][row : row + 10]]) for row in range(0, 100, 10)])
    with torch.inference_mode():
        judge = Judge(model, networks)
        rows = [judge(torch.from_numpy(pixels[0][row : row + 10]))[0].numpy() for row in range(0, 100, 10)]
    assert np.abs(found - np.concatenate(rows)).max() < 1e-4
    assert np.abs(found - np.stack([one for one in said if one is not None])).max() < 2e-3
