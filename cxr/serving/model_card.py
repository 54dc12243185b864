"""Which model it is, to the byte, and what is known of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

import numpy as np

from cxr.serving.answers import FigureAnswer
from heads.prediction.model import Model


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What is told of a model beside its answers.

    Attributes:
        figures: with intervals.
        notes: what a user must know.
    """

    figures: tuple[FigureAnswer, ...] = ()
    notes: tuple[str, ...] = ()


def model_fingerprint(model: Model) -> str:
    """SHA-256 over all that determines an answer but the software: specs, heads, temperature, thresholds."""
    choices = {
        kind: {
            "temperature": chosen.temperature,
            "points": {rule: asdict(one) for rule, one in chosen.operating_points.items()},
        }
        for kind, chosen in model.choices.items()
    }
    members = [{"sources": member.sources, "scale": sorted(member.scale.items())} for member in model.members]
    facts = {
        "specs": [source.spec.fingerprint for source in model.sources],
        "classes": model.classes,
        "positive": model.positive,
        "members": members,
        "choices": choices,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for member in model.members:
        for head in member.heads:
            for name, tensor in sorted(head.tensors().items()):
                digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
                digest.update(np.ascontiguousarray(tensor).tobytes())
    return digest.hexdigest()
