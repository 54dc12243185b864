"""Which model it is, to the byte, and how good it was on films that were kept apart."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cxr.serving.answers import FigureAnswer
from featcache.errors import RunError
from heads.choosing.rows import Row
from heads.prediction.card import METRICS, look_at_test
from heads.prediction.manifest import CARD_NAME
from heads.prediction.model import Model
from heads.reporting.figures import DECIDED

NAMES = {"accuracy": "accuracy", "auc": "AUC", "sensitivity": "sensitivity", "specificity": "specificity", "f1": "F1"}
MISSED = (
    "The warning finds photographs, other parts of the body, negatives and turned films. It does not find that a chest "
    "film is of another hospital or age, and an answer without it may be wrong all the same."
)

AT_HALF = " at threshold 0.5"

INTERVAL = "95 % interval"

CARD_LINE = re.compile(
    r'      value: ([\d.]+)\n      name: "(\w+)(?: at threshold 0\.5)?, 95 % interval ([\d.]+) to ([\d.]+)"'
)
"""A figure as ``heads.prediction.card`` writes it."""


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What is told of a model beside its answers.

    Attributes:
        figures: of test, with intervals.
        notes: what a user must know.
    """

    figures: tuple[FigureAnswer, ...] = ()
    notes: tuple[str, ...] = ()


def card_of_run(row: Row, model: Model, root: Path | None = None, *, rule: str | None = None) -> ModelCard:
    """The figures of a finished row, as a report shows them: what is shown here chooses nothing.

    Args:
        row: of ``from_run.chosen_row``.
        model: of that row.
        root: the data set's folder, for how often test films are flagged.
        rule: of the operating point that decides; its figures stand beside those at 0.5. None: 0.5.

    Raises:
        RunError: the logits of test are missing or damaged.
        StoreError: a store is damaged.
    """
    tested = look_at_test(row, model, root)
    found = {name: tested.figures.interval(name) for name in METRICS}
    figures = [_figure(name, one.value, one.low, one.high) for name, one in found.items() if one is not None]
    if rule is not None:
        # As the answers decide; without an operating point of that name there is nothing to add.
        ruled = {name: tested.figures.interval(name, rule) for name in DECIDED}
        figures += [
            FigureAnswer(name=f"test {NAMES[name]} at {rule}'s threshold", value=one.value, low=one.low, high=one.high)
            for name, one in ruled.items()
            if one is not None
        ]
    notes = [f"Figures are of {tested.n} test films of {tested.patients} patients, clean view; intervals by patient."]
    if tested.flagged is not None:
        notes.append(f"Of the test films {100 * tested.flagged:.1f} % are flagged as unlike those the heads know.")
    if model.distance is not None:
        notes.append(MISSED)
    return ModelCard(figures=tuple(figures), notes=tuple(notes))


def card_of_bundle(folder: Path) -> ModelCard:
    """The same, from the model card of a bundle that has been loaded, and so is whole.

    Raises:
        RunError: its card has figures that are not understood.
    """
    text = (folder / CARD_NAME).read_text(encoding="utf-8")
    head = text.split("\n---\n", 1)[0]
    found = CARD_LINE.findall(head)
    if len(found) != head.count(INTERVAL):
        raise RunError(
            f"{folder / CARD_NAME}: its figures are written otherwise than this cxr does: bundle the model again"
        )
    figures = [
        _figure(name, float(value), float(low), float(high)) for value, name, low, high in found if name in NAMES
    ]
    return ModelCard(figures=tuple(figures))


def _figure(name: str, value: float, low: float, high: float) -> FigureAnswer:
    where = "" if name == "auc" else AT_HALF
    return FigureAnswer(name=f"test {NAMES[name]}{where}", value=value, low=low, high=high)


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
