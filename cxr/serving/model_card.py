"""Which model it is, to the byte, and how good it was on films that were kept apart."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

import numpy as np

from cxr.serving.answers import FigureAnswer
from heads.experiments.split_logits import Kind
from heads.prediction.measured import MeasuredFigure
from heads.prediction.model import HALF, Model
from heads.statistics.operating_point import OperatingPoint

NAMES = {"accuracy": "accuracy", "auc": "AUC", "sensitivity": "sensitivity", "specificity": "specificity", "f1": "F1"}
MISSED = (
    "The warning finds photographs, other parts of the body, negatives and turned films. It does not find that a chest "
    "film is of another hospital or age, and an answer without it may be wrong all the same."
)


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What is told of a model beside its answers.

    Attributes:
        figures: of test, with intervals.
        notes: what a user must know.
    """

    figures: tuple[FigureAnswer, ...] = ()
    notes: tuple[str, ...] = ()


def card_of(model: Model, kind: Kind, point: OperatingPoint | None, views: int) -> ModelCard:
    """What test said of a model: at 0.5, and as its answers decide.

    Args:
        model: whose ``measured`` is told; None where test was not opened.
        kind: of the logits that are answered with.
        point: the operating point that decides.
        views: over how many of them answers average.
    """
    measured = model.measured
    if measured is None:
        return ModelCard()
    rules = ("", HALF.rule, *([point.rule] if point is not None and point is not HALF else []))
    view = "clean view" if kind == "clean" else f"mean over {model.views} views"
    notes = [f"Figures are of {measured.n} test films of {measured.patients} patients, {view}; intervals by patient."]
    if kind == "view_mean" and views != model.views:
        notes.append(f"Answers average {views} views of a film.")
    if measured.flagged is not None:
        notes.append(f"Of the test films {100 * measured.flagged:.1f} % are flagged as unlike those the heads know.")
    if model.distance is not None:
        notes.append(MISSED)
    figures = tuple(_figure(one) for one in measured.figures[kind] if one.rule in rules)
    return ModelCard(figures=figures, notes=tuple(notes))


def _figure(one: MeasuredFigure) -> FigureAnswer:
    where = {"": "", HALF.rule: " at threshold 0.5"}.get(one.rule, f" at the threshold for {one.rule}")
    return FigureAnswer(name=f"test {NAMES[one.name]}{where}", value=one.value, low=one.low, high=one.high)


def model_sha256(model: Model) -> str:
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
        "specs": model.fingerprint,
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
