"""Predictions as text that is written as they come: CSV, JSON, and lines for a person."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from featcache.errors import printable
from heads.prediction.predictor import Prediction, Predictor
from heads.statistics.operating_point import OperatingPoint

COLUMNS = (
    "path",
    "probability",
    "decision",
    "distance_percentile",
    "flagged",
    "reason",
    "warning",
    "projection",
    "head",
    "sha256",
)
"""Those of the CSV, and the first keys of the JSON."""


@dataclass(kw_only=True)
class Tally:
    """What came of all files.

    Attributes:
        decided: images by decided class.
        flagged: of them, those past the limit of the distance.
        unreadable: files that could not be read.
        reason: the first of these, and why.
    """

    decided: dict[str, int] = field(default_factory=dict)
    flagged: int = 0
    unreadable: int = 0
    reason: str = ""

    @property
    def files(self) -> int:
        """Files so far."""
        return self.images + self.unreadable

    @property
    def images(self) -> int:
        """Images that have an answer."""
        return sum(self.decided.values())

    def count(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        """Pass predictions on, counted."""
        for one in predictions:
            if one.decision is None:
                self.unreadable += 1
                self.reason = self.reason or f"{one.name}: {one.reason}"
            else:
                self.decided[one.decision] = self.decided.get(one.decision, 0) + 1
                self.flagged += bool(one.flagged)
            yield one

    def in_words(self) -> str:
        """The same, in a line."""
        said = [f"{count} {decision}" for decision, count in sorted(self.decided.items())]
        said += [f"{self.flagged} flagged"] if self.flagged else []
        said += [f"{self.unreadable} not read"] if self.unreadable else []
        return f"{self.files} {'file' if self.files == 1 else 'files'}: {', '.join(said)}"


def who_says(predictor: Predictor) -> list[str]:
    """Which head answers, and how its decisions are made, a line each."""
    model, point = predictor.model, predictor.point
    chosen = model.choices[predictor.kind]
    lines = [f"by {model.name} ({model.origin}), temperature {chosen.temperature:.2f} (fitted on val)"]
    if point is not None:
        lines.append(f"{model.classes[model.positive]} {_from(point, chosen.scaled(point.threshold))}")
    if predictor.views > 1:
        lines.append(f"mean over {predictor.views} views")
        if predictor.views != model.views:
            lines.append(f"temperature and threshold are those that val chose for the mean over {model.views} views")
    return [*lines, *model.notes]


def _from(point: OperatingPoint, shown: float) -> str:
    chosen = f" (operating point {point.rule}, chosen on {point.split})" if point.split else ""
    return f"is decided from {100 * shown:.1f} % on{chosen}"


def as_text(predictions: Iterable[Prediction], predictor: Predictor, form: str) -> Iterator[str]:
    """Pieces of text that together are the file: one a prediction, and what ends it.

    Args:
        predictions: the predictor's, as they come.
        predictor: whose they are.
        form: ``table``, ``csv`` or ``json``.
    """
    return {"table": _lines, "csv": _csv, "json": _json}[form](predictions, predictor)


def _row(one: Prediction, predictor: Predictor) -> dict[str, Any]:
    return {
        "path": one.name,
        "probability": one.probability,
        "decision": one.decision,
        "distance_percentile": one.distance_percentile,
        "flagged": one.flagged,
        "reason": one.reason or None,
        "warning": (one.verdict and one.verdict.words) or None,
        "projection": one.projection or None,
        "head": predictor.model.name,
        "sha256": one.sha256 or None,
    }


def _csv(predictions: Iterable[Prediction], predictor: Predictor) -> Iterator[str]:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for one in predictions:
        row = _row(one, predictor)
        flagged = row["flagged"]
        writer.writerow({**row, "flagged": None if flagged is None else str(flagged).lower()})
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
    yield buffer.getvalue()


def _json(predictions: Iterable[Prediction], predictor: Predictor) -> Iterator[str]:
    model, point = predictor.model, predictor.point
    same = {
        "positive": model.classes[model.positive],
        "operating_point": None if point is None else point.rule,
        "threshold": None if point is None else model.choices[predictor.kind].scaled(point.threshold),
        "views": predictor.views,
    }
    before = "["
    for one in predictions:
        row = {**_row(one, predictor), "probabilities": None, "logits": None, **same}
        if one.probabilities is not None and one.logits is not None:
            row["probabilities"] = dict(zip(model.classes, one.probabilities.tolist(), strict=True))
            row["logits"] = one.logits.tolist()
        yield f"{before}\n{json.dumps(row, allow_nan=False)}"
        before = ","
    yield "[]\n" if before == "[" else "\n]\n"


def _lines(predictions: Iterable[Prediction], predictor: Predictor) -> Iterator[str]:
    """Columns of fixed width and the name last: what comes next need not be known."""
    positive = predictor.model.classes[predictor.model.positive]
    width = max(map(len, (*predictor.model.classes, "Decision")))
    first = max(len(positive), 8)
    head = f"{positive:>{first}}  {'Decision':<{width}}  Distance  Image\n"
    for one in predictions:
        if one.decision is None or one.probability is None:
            line = f"{'–':>{first}}  {'–':<{width}}  {'–':>8}  {printable(one.name)}: {one.reason}\n"
        else:
            far = "–" if one.distance_percentile is None else f"{one.distance_percentile:.1f} %"
            remarks = [one.projection] if one.projection else []
            remarks += [one.verdict.words] if one.verdict is not None and one.verdict.flagged else []
            said = f"{printable(one.name)}{': ' * bool(remarks)}{'; '.join(remarks)}"
            line = f"{100 * one.probability:>{first - 2}.1f} %  {one.decision:<{width}}  {far:>8}  {said}\n"
        yield head + line
        head = ""
    yield head
