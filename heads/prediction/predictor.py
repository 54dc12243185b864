"""Films to answers: the networks once, then any number of files in bounded memory."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from featcache.backbones import Backbone
from featcache.encoder import FILMS_AT_ONCE, Encoder, FilmFeatures
from featcache.errors import RunError
from featcache.films import Film
from featcache.films import ImageFile as ImageFile
from featcache.loading import Rendering
from featcache.runtime import Compute
from heads.experiments.split_logits import Kind
from heads.prediction.distance import Verdict
from heads.prediction.model import Model


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """What a model says of one film; of one that could not be read, why not.

    Attributes:
        name: the file, as it was named.
        sha256: its content hash; empty where it could not be read.
        reason: why there is no answer; empty where there is one.
        logits: [K] float32, as a run keeps them; None without an answer, like all that follows.
        probabilities: [K] float64, temperature-scaled.
        probability: that of the positive class.
        decision: the decided class.
        verdict: how far the film lies from those of train, and in words whether the answer is to be trusted; None where
            that is not known.
        projection: PA, AP, lateral, oblique or not said, of a DICOM file; empty for others.
        features: [D] float32 of the clean view, all sources side by side.
    """

    name: str
    sha256: str = ""
    reason: str = ""
    logits: NDArray[np.float32] | None = None
    probabilities: NDArray[np.float64] | None = None
    probability: float | None = None
    decision: str | None = None
    verdict: Verdict | None = None
    projection: str = ""
    features: NDArray[np.float32] | None = None

    @property
    def distance_percentile(self) -> float | None:
        """How much of val lies nearer to the train images, in percent."""
        return None if self.verdict is None else self.verdict.percentile

    @property
    def flagged(self) -> bool | None:
        """Whether that is past the limit."""
        return None if self.verdict is None else self.verdict.flagged


class Predictor:
    """A model with its networks loaded.

    Calls from several threads wait for each other: a caller who has many films gives them at once.

    Args:
        model: what is asked.
        backbones: the network of each of its sources; see ``networks.backbones_of``.
        compute: device, batch size and threads; runtime and precision are the specs'.
        rule: the operating point's; None takes the first that val chose. See ``ModelChoices.point``.
        views: how many views' logits are averaged; 1 asks the clean view alone.

    Attributes:
        backbones: as given.
        point: the operating point; None for more than two classes.

    Raises:
        BackboneError: a network is not that of its spec, or does not run here.
        RunError: no such operating point, or heads that do not fit the networks.
    """

    def __init__(
        self,
        model: Model,
        backbones: Sequence[Backbone],
        compute: Compute | None = None,
        *,
        rule: str | None = None,
        views: int = 1,
    ) -> None:
        if views < 1:
            raise ValueError(f"Predictor: wanted one view or more, got {views}")
        _require_fit(model, [backbone.dim for backbone in backbones])
        self.model, self.backbones, self.views = model, backbones, views
        self.kind: Kind = "view_mean" if views > 1 else "clean"
        self.point = model.point(self.kind, rule)
        self.encoder = Encoder(model.sources, backbones, compute)
        self.lock = threading.Lock()
        self.pools = ThreadpoolController()

    def predict(self, images: Sequence[ImageFile]) -> list[Prediction]:
        """What the model says of some images, in order.

        Raises:
            BackboneError: a network has no room for a single image.
        """
        return list(self.stream(images))

    def stream(self, files: Iterable[Path | ImageFile]) -> Generator[Prediction]:
        """The same for any number of files, read ahead while the networks compute, in bounded memory.

        Close the iterator where it is left early (``contextlib.closing``): others wait for its end.

        Raises:
            BackboneError: a network has no room for a single image.
        """
        with self.lock, contextlib.closing(self.encoder.encode(files, self.views)) as encoded:
            while some := list(itertools.islice(encoded, FILMS_AT_ONCE)):
                yield from self._judged(some)

    @property
    def renderings(self) -> list[Rendering]:
        """What the networks want of a film; see ``featcache.films.load_film``."""
        return self.encoder.renderings(self.views)

    def predict_loaded(self, films: Sequence[Film]) -> list[Prediction]:
        """What the model says of films that are rendered already; several callers at a time may ask.

        Raises:
            BackboneError: a network has no room for a single image.
        """
        return list(self._judged(self.encoder.encode_loaded(films, self.views)))

    def close(self) -> None:
        """Stop the networks."""
        self.encoder.close()

    def _judged(self, films: Sequence[FilmFeatures]) -> Iterator[Prediction]:
        model = self.model
        good = [one for one in films if not one.reason]
        answers: Iterator[Prediction] = iter(())
        if good:
            features = [np.stack(of_source) for of_source in zip(*(one.features for one in good), strict=True)]
            # The networks want the cores; products this small are done before threads have met.
            with self.pools.limit(limits=1, user_api="blas"):
                clean, mean = model.logits(features)
            logits = mean if self.kind == "view_mean" else clean
            probability = model.probability(logits, self.kind)
            decided = model.decisions(logits, self.point)
            flat = np.concatenate([of_source[:, 0] for of_source in features], axis=1)
            outlines = np.stack([one.outline for one in good])
            verdicts = [None] * len(good) if model.distance is None else model.distance.judge(flat, outlines)
            answers = (
                Prediction(
                    name=one.film.name,
                    sha256=one.film.sha256,
                    logits=logits[row],
                    probabilities=probability[row],
                    probability=float(probability[row, model.positive]),
                    decision=model.classes[decided[row]],
                    verdict=verdicts[row],
                    projection=one.film.projection,
                    features=flat[row],
                )
                for row, one in enumerate(good)
            )
        for one in films:
            yield next(answers) if not one.reason else _without_answer(one)


def _without_answer(one: FilmFeatures) -> Prediction:
    film = one.film
    return Prediction(name=film.name, sha256=film.sha256, reason=one.reason, projection=film.projection)


def _require_fit(model: Model, dims: Sequence[int]) -> None:
    """Refuse heads and distances that are not of the networks' features; each network gives so many.

    Raises:
        RunError: they are not.
    """
    wanted = [(sum(dims[source] for source in one.sources), one.heads[0].layout.features) for one in model.members]
    wanted += [] if model.distance is None else [(sum(dims), len(model.distance.centre))]
    if any(given != taken for given, taken in wanted):
        raise RunError(f"{model.name} ({model.origin}) is damaged: its heads do not take its networks' features")
