"""What is answered, as OpenAPI describes it."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cxr.serving.pictures import Explanation
from cxr.serving.problems import Problem
from heads.prediction.known_films import KnownFilm
from heads.prediction.model import Model
from heads.prediction.predictor import Prediction, Predictor

RESEARCH_ONLY = "Research use only. Not a medical device."


class Answer(BaseModel):
    """The ground of all answers: made here, so nothing is converted."""

    model_config = ConfigDict(frozen=True)


class OperatingPointAnswer(Answer):
    """Where probabilities become decisions."""

    rule: str = Field(description="what chose the threshold")
    split: str = Field(description="the images it was chosen on; empty for 0.5, which nobody chose")
    threshold: float = Field(
        description="positive is decided from this probability on, as probabilities are given here"
    )


class FigureAnswer(Answer):
    """A figure of the model with its 95 % interval."""

    name: str = Field(description="what of which split, as 'test AUC'")
    value: float
    low: float
    high: float


class LimitsAnswer(Answer):
    """What a request may bring."""

    max_bytes: int = Field(description="of a request's body")
    max_pixels: int = Field(description="of a film")
    max_files: int = Field(description="films a request")
    timeout: float = Field(description="seconds a request")


class ModelName(Answer):
    """Which model answered."""

    name: str = Field(description="as the comparison table calls it")
    fingerprint: str = Field(description="of its networks and what they see of a film")
    sha256: str = Field(description="over all that determines an answer: networks, heads, temperature, thresholds")
    dataset: str = Field(description="the data set that its heads were fitted on")
    positive: str = Field(description="the class whose probability is given")
    operating_point: OperatingPointAnswer | None = Field(description="null for more than two classes")
    research_use: str = Field(default=RESEARCH_ONLY, description="what the answer is for")


class ModelAnswer(ModelName):
    """The model behind this server."""

    classes: list[str]
    backbones: list[str] = Field(description="the frozen networks")
    views: int = Field(description="augmented views of a film whose logits are averaged; 1: the clean one alone")
    temperature: float = Field(description="by which logits are divided, fitted on val")
    figures: list[FigureAnswer] = Field(description="what is known of the model, with 95 % intervals")
    provenance: dict[str, str] = Field(description="what the model came from")
    notes: list[str]
    tells_distance: bool = Field(description="whether answers tell how far a film lies from those the heads know")
    draws_evidence: bool = Field(description="whether explain=true is answered")
    knows_cases: bool = Field(description="whether the nearest known cases can be had")
    limits: LimitsAnswer


class NeighbourAnswer(Answer):
    """A film that the heads were fitted on, near to the one asked about."""

    image_id: str
    label: str
    distance: float = Field(description="cosine distance of signed square roots of the features, 0 to 2")
    thumbnail: str | None = Field(description="a JPEG as a data URI; null where the data set's files are not at hand")


class ExplanationAnswer(Answer):
    """Which places speak for the positive class and which against."""

    film: str = Field(description="the film, upright and no larger than a screen, a JPEG as a data URI")
    overlay: str = Field(
        description="the evidence, to be laid over the whole film: a transparent PNG as a data URI, orange for the "
        "positive class, blue against, clear where no network looked"
    )
    width: int = Field(description="of film, in pixels; the overlay may have fewer")
    height: int
    evidence: float = Field(
        description="log-odds of the positive class before the temperature; all places add up to it"
    )
    strongest: float = Field(description="log-odds at the overlay's strongest colour")


class PredictionAnswer(Answer):
    """What the model says of one film."""

    sha256: str = Field(description="of the file, in hex")
    probability: float = Field(ge=0, le=1, description="of the positive class, temperature-scaled")
    probabilities: dict[str, float] = Field(description="of every class")
    decision: str = Field(description="the class decided at the operating point")
    distance_percentile: float | None = Field(
        description="how much of val lies nearer to the train films, in percent; null where that is not known"
    )
    flagged: bool | None = Field(description="true: the film is unlike those the heads know, do not trust the answer")
    warning: str | None = Field(description="why it is flagged, in a sentence")
    projection: str | None = Field(description="which way the rays went, of a DICOM file")
    explanation: ExplanationAnswer | None = Field(description="with explain=true")
    neighbours: list[NeighbourAnswer] | None = Field(description="with neighbours=k, nearest first")


class RefusedAnswer(Answer):
    """Why there is no answer for one film of several."""

    status: int = Field(description="what the film alone would have been answered with")
    reason: str


class PredictionsAnswer(Answer):
    """The answer to a request, its films in the order in which they were sent."""

    model: ModelName
    predictions: list[PredictionAnswer | RefusedAnswer]


class Health(Answer):
    """Whether films are answered."""

    status: str = Field(description="ready")


def prediction_answer(
    said: Prediction, model: Model, explanation: Explanation | None, known: list[tuple[KnownFilm, str | None]] | None
) -> PredictionAnswer:
    """What is answered for one film.

    Args:
        said: the model's word on it.
        model: the model.
        explanation: where it was asked for.
        known: the nearest films and their pictures, where they were asked for.
    """
    assert said.probabilities is not None
    assert said.probability is not None
    assert said.decision is not None
    return PredictionAnswer(
        sha256=said.sha256,
        probability=said.probability,
        probabilities=dict(zip(model.classes, np.asarray(said.probabilities).tolist(), strict=True)),
        decision=said.decision,
        distance_percentile=said.distance_percentile,
        flagged=said.flagged,
        warning=(said.verdict.words or None) if said.verdict else None,
        projection=said.projection or None,
        explanation=None if explanation is None else ExplanationAnswer(**explanation.as_fields()),
        neighbours=None
        if known is None
        else [
            NeighbourAnswer(image_id=one.image_id, label=one.label, distance=one.distance, thumbnail=picture)
            for one, picture in known
        ],
    )


def refused(problem: Problem) -> RefusedAnswer:
    """What is said of one film of several that cannot be answered."""
    return RefusedAnswer(status=problem.status, reason=problem.detail)


def operating_point_answer(predictor: Predictor) -> OperatingPointAnswer | None:
    """The operating point, its threshold among the temperature-scaled probabilities that are shown."""
    point = predictor.point
    if point is None:
        return None
    threshold = predictor.model.choices[predictor.kind].scaled(point.threshold)
    return OperatingPointAnswer(rule=point.rule, split=point.split, threshold=threshold)
