"""A model as one ONNX graph, pixels to probabilities, for whatever runs such graphs.

The graph computes in float32 throughout, and its answer is on the feature before it is rounded to the float16 that a
store keeps. To round it in the graph too was tried: where two runtimes differ in the last bit of a feature they may
then round it to two neighbours, 2⁻¹¹ of it apart, and the graph agrees with torch twenty times worse (docs/log.md).
What the rounding does to a probability is in docs/benchmarks.md. Where features were extracted in bfloat16 or float16,
the network in the graph is more exact than the one that was fitted on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from featcache import atomic
from featcache.backbones import Backbone
from featcache.conversion import GATE
from featcache.errors import BackboneError
from featcache.forward import quiet_conversion
from featcache.making import geometry_of
from featcache.settings import usable_cores
from heads.prediction.model import Model
from heads.training.model import BATCHNORM_EPSILON, HeadWeights

OPSET = 18

TOLERANCE = 1e-4
"""Between the graph's probabilities and torch's: what an export is refused beyond."""

EXTRA = "ONNX export wants the extra: pip install 'cxr[onnx]'"


class Judge(nn.Module):
    """A model as one network: pixels of each geometry, [N, 3, S, S] uint8, to probabilities and logits [N, K] float32.

    Args:
        model: what is asked.
        backbones: the network of each of its sources.
    """

    def __init__(self, model: Model, backbones: Sequence[Backbone]) -> None:
        super().__init__()
        self.networks = nn.ModuleList([backbone.network for backbone in backbones])
        geometries = [geometry_of(source.spec) for source in model.sources]
        self.inputs = list(dict.fromkeys(geometries))
        self.input_of = [self.inputs.index(one) for one in geometries]
        self.sources = [member.sources for member in model.members]
        self.heads = nn.ModuleList([nn.ModuleList([Head(head) for head in one.heads]) for one in model.members])
        self.scales = [member.scale["clean"] for member in model.members]
        self.temperature = model.choices["clean"].temperature
        self.eval()

    def forward(self, *pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities by temperature, and logits, of pixels of each geometry."""
        features = [network(pixels[place]) for network, place in zip(self.networks, self.input_of, strict=True)]
        means = []
        for sources, heads, scale in zip(self.sources, self.heads, self.scales, strict=True):
            assert isinstance(heads, nn.ModuleList)
            x = torch.cat([features[source] for source in sources], dim=1)
            means.append(torch.stack([head(x) for head in heads]).mean(0) / scale)
        logits = torch.stack(means).mean(0)
        return torch.softmax(logits / self.temperature, dim=1), logits


class Head(nn.Module):
    """A fitted head in inference form; see ``heads.training.model.logits``."""

    def __init__(self, weights: HeadWeights) -> None:
        super().__init__()
        self.tensors = nn.ParameterDict(
            {name.replace(".", "_"): torch.from_numpy(np.array(one)) for name, one in weights.tensors().items()}
        ).requires_grad_(requires_grad=False)
        self.hidden = weights.hidden is not None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [N, K] of features [N, D]."""
        one = self.tensors
        if self.hidden:
            x = torch.relu(x @ one["hidden_kernel"] + one["hidden_bias"])
            scale = one["hidden_gamma"] / torch.sqrt(one["hidden_running_var"] + BATCHNORM_EPSILON)
            x = (x - one["hidden_running_mean"]) * scale + one["hidden_beta"]
        made: torch.Tensor = x @ one["kernel"] + one["bias"]
        return made


def export_onnx(path: Path, model: Model, backbones: Sequence[Backbone]) -> dict[str, Any]:
    """Write a model as an ONNX graph, whole or not at all, and compare it with torch before.

    Inputs: ``pixels`` [N, 3, S, S] uint8, RGB (a grey film thrice), as the clean view of the spec: the shorter side
    resized with antialiasing to ``resize_side``, the centre cut out. Networks of several geometries have one each,
    ``pixels_0``, ``pixels_1``, …, as ``inputs`` in the metadata says. Outputs: ``probabilities`` and ``logits``,
    [N, K]. What else is to be known (classes, thresholds, specs) stands in the metadata ``cxr``, as JSON.

    Args:
        path: the file.
        model: what is exported; its clean view.
        backbones: the network of each of its sources.

    Returns:
        The metadata, and under ``agreement`` the largest difference from torch's of a probability, and of a logit where
        that is more than 1 against the logit's size; on drawn pixels.

    Raises:
        BackboneError: the extra is not installed, the network cannot be exported, or its graph differs from torch or
            has more than 2 GiB.
        WriteError: the file cannot be written.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch's exporter wants it
    except ImportError as error:
        raise BackboneError(EXTRA) from error
    judge = Judge(model, backbones)
    names = [f"pixels_{number}" for number in range(len(judge.inputs))] if len(judge.inputs) > 1 else ["pixels"]
    sides = [geometry.image_size for geometry in judge.inputs]
    examples = tuple(_pixels(side) for side in sides)
    with GATE.convert(), quiet_conversion():
        try:
            program = torch.onnx.export(
                judge,
                examples,
                dynamo=True,
                input_names=names,
                output_names=["probabilities", "logits"],
                opset_version=OPSET,
                dynamic_shapes={"pixels": tuple({0: torch.export.Dim("N")} for _ in examples)},
                verbose=False,
            )
        except Exception as error:
            # The exporter raises types of its own making for what it cannot take.
            reason = str(error).strip().splitlines()[0][:150]
            raise BackboneError(
                f"{model.name} cannot be exported to ONNX ({type(error).__name__}: {reason}): use 'cxr bundle'"
            ) from error
        assert program is not None
        proto = program.model_proto
    metadata = _metadata(model, names, judge)
    entry = proto.metadata_props.add()
    entry.key, entry.value = "cxr", json.dumps(metadata, sort_keys=True)
    proto.producer_name, proto.producer_version = "cxr", version("cxr")
    if proto.ByteSize() >= 2**31:
        raise BackboneError(f"{model.name} has more than 2 GiB, which one ONNX file cannot hold: use 'cxr bundle'")
    content = proto.SerializeToString()
    onnx.checker.check_model(content)
    # The graph was traced with two films: it must not hang on that.
    batches = [tuple(_pixels(side, films) for side in sides) for films in (1, 2, 3)]
    agreement = float(np.max([_difference(content, judge, batch) for batch in batches]))
    if not agreement <= TOLERANCE:
        raise BackboneError(f"the ONNX graph of {model.name} differs from torch by {agreement:.2g} in probability")
    atomic.write_bytes(path, content)
    return {**metadata, "agreement": agreement}


def _difference(graph: bytes, judge: Judge, examples: Sequence[torch.Tensor]) -> float:
    """The largest difference between onnxruntime and torch; not a number where one of them gives none."""
    session = onnx_session(graph)
    names = [one.name for one in session.get_inputs()]
    found = session.run(None, {name: one.numpy() for name, one in zip(names, examples, strict=True)})
    with torch.inference_mode():
        wanted = [one.numpy() for one in judge(*examples)]
    # Probabilities of drawn pixels are mostly 0 or 1: a wrong logit would hide behind them.
    sizes = [1.0, np.maximum(np.abs(wanted[1]), 1.0)]
    differences = [np.abs((one - other) / size).max() for one, other, size in zip(found, wanted, sizes, strict=True)]
    return float(np.max(differences))


def onnx_session(graph: bytes | Path, threads: int | None = None) -> Any:  # noqa: ANN401 - onnxruntime has no types
    """A graph in onnxruntime, on the processor.

    Raises:
        BackboneError: the extra is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise BackboneError(EXTRA) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    source = graph if isinstance(graph, bytes) else str(graph)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _pixels(side: int, films: int = 2) -> torch.Tensor:
    """Noise, the last of it on a ramp, [films, 3, side, side]."""
    noise = torch.randint(0, 256, (films, 3, side, side), generator=torch.Generator().manual_seed(0))
    noise[-1] = noise[-1] // 16 + torch.linspace(0, 239, side).to(torch.int64)
    return noise.to(torch.uint8)


def _metadata(model: Model, names: Sequence[str], judge: Judge) -> dict[str, Any]:
    chosen, default = model.choices["clean"], model.point("clean", None)
    return {
        "name": model.name,
        "origin": model.origin,
        "classes": list(model.classes),
        "positive": model.classes[model.positive],
        "temperature": chosen.temperature,
        # On the probabilities that the graph gives, which are by temperature.
        "thresholds": {rule: chosen.scaled(point.threshold) for rule, point in chosen.operating_points.items()},
        # By which cxr predict decides; of more than two classes the likeliest is decided.
        "default_rule": None if default is None else default.rule,
        "inputs": {
            name: {
                "image_size": one.image_size,
                "resize_side": one.resize_side,
                "interpolation": one.interpolation,
                "antialias": True,
                "crop": "centre",
                "pixels": "uint8 RGB, NCHW",
                "grey": "the same in each of the three channels",
                "normalised_in_graph": True,
            }
            for name, one in zip(names, judge.inputs, strict=True)
        },
        "specs": [json.loads(source.spec.to_json()) for source in model.sources],
        "fingerprint": model.fingerprint,
        "use": "research only; not a medical device",
    }
