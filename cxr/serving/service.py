"""From the files of a request to its answer, within its time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

from cxr.serving.answers import (
    LimitsAnswer,
    ModelAnswer,
    ModelName,
    PredictionAnswer,
    PredictionsAnswer,
    RefusedAnswer,
    operating_point_answer,
    prediction_answer,
    refused,
)
from cxr.serving.batching import MicroBatcher
from cxr.serving.limits import Limits
from cxr.serving.metrics import Metrics
from cxr.serving.model_card import card_of, model_sha256
from cxr.serving.pictures import Explanation, data_uri, draw
from cxr.serving.problems import Problem
from cxr.serving.uploads import Admission
from featcache.films import Film
from heads.prediction.known_films import KnownFilm, KnownFilms, Thumbnails
from heads.prediction.predictor import Prediction, Predictor
from heads.prediction.saliency import Explainer

T = TypeVar("T")


class Service:
    """A model that answers requests.

    Args:
        predictor: the model with its networks.
        limits: what is taken.
        decoders: threads that decode.
        explainer: makes saliency maps; None where the networks have none.
        known: the films to look for neighbours in, where they are known.
        thumbnails: their pictures, where the data set is at hand.

    Attributes:
        ready: whether the network has answered once.
        answered: films that were.
    """

    def __init__(
        self,
        predictor: Predictor,
        limits: Limits,
        *,
        decoders: int,
        explainer: Explainer | None = None,
        known: KnownFilms | None = None,
        thumbnails: Thumbnails | None = None,
    ) -> None:
        self.predictor, self.limits = predictor, limits
        self.explainer, self.known, self.thumbnails = explainer, known, thumbnails
        self.card = card_of(predictor.model, predictor.kind, predictor.point, predictor.views)
        self.admission = Admission(limits, lambda: self.batcher.given_up())
        self.metrics = Metrics(lambda: self.admission.films)
        self.batcher = MicroBatcher(predictor, limits, decoders=decoders, on_batch=self.metrics.batches.observe)
        # Maps and searches one after the other: they are looked at by people, and predictions are not to wait for them.
        self.aside = ThreadPoolExecutor(1, "aside")
        # The networks want the cores; products this small are done before threads have met.
        self.blas = ThreadpoolController().limit(limits=1, user_api="blas")
        self.ready = threading.Event()
        self.answered = 0
        self.name = self._name()

    def warm_up(self) -> None:
        """Have each network see one batch, of a black film; then the service is ready.

        Raises:
            BackboneError: a network does not run.
        """
        renderings = self.predictor.renderings
        shapes = {one: (len(one.views), 1, one.geometry.image_size, one.geometry.image_size) for one in renderings}
        black = Film(name="", sha256="0" * 64, views={one: np.zeros(shape, np.uint8) for one, shape in shapes.items()})
        self.predictor.predict_loaded([black])
        self.ready.set()

    def close(self) -> None:
        """Finish what is under way, and stop the networks."""
        self.ready.clear()
        self.batcher.close()
        self.aside.shutdown(cancel_futures=True)
        self.predictor.close()
        self.blas.restore_original_limits()

    async def answer(self, files: Sequence[bytes], *, explain: bool, neighbours: int) -> PredictionsAnswer:
        """What is answered for the films of one request.

        Raises:
            Problem: the only film cannot be answered, or what was asked for cannot be had.
        """
        if explain and self.explainer is None:
            raise Problem(422, "this model's network has no map of places: ask without explain")
        if neighbours and self.known is None:
            raise Problem(
                422, "this server does not hold the films that the heads were fitted on: ask without neighbours"
            )
        said = [asyncio.wrap_future(self.batcher.submit(data)) for data in files]
        try:
            found = await asyncio.gather(
                *(self._one(data, one, explain, neighbours) for data, one in zip(files, said, strict=True))
            )
        finally:
            # Who went away, or waited too long, takes the films along.
            for one in said:
                one.cancel()
        if len(found) == 1 and isinstance(found[0], Problem):
            raise found[0]
        answers: list[PredictionAnswer | RefusedAnswer] = [
            refused(one) if isinstance(one, Problem) else one for one in found
        ]
        good = sum(isinstance(one, PredictionAnswer) for one in answers)
        self.answered += good
        self.metrics.images.inc(good)
        return PredictionsAnswer(model=self.name, predictions=answers)

    async def _one(
        self, data: bytes, said: asyncio.Future[Prediction], explain: bool, neighbours: int
    ) -> PredictionAnswer | Problem:
        try:
            prediction = await said
        except Problem as problem:
            return problem
        if prediction.reason:
            return Problem(422, prediction.reason)
        known = await self._aside(lambda: self._known(prediction, neighbours)) if neighbours else None
        explanation = await self._aside(lambda: self._explained(data)) if explain else None
        return prediction_answer(prediction, self.predictor.model, explanation, known)

    async def _aside(self, call: Callable[[], T]) -> T:
        held = [call]
        try:
            return await asyncio.get_running_loop().run_in_executor(self.aside, lambda: held[0]())
        finally:
            # What was given up waits in the executor all the same; the film that it is about need not.
            held.clear()

    def _explained(self, data: bytes) -> Explanation:
        assert self.explainer is not None
        return draw(self.explainer.explain(data))

    def _known(self, prediction: Prediction, count: int) -> list[tuple[KnownFilm, str | None]]:
        assert self.known is not None
        assert prediction.features is not None
        found = self.known.nearest_to(prediction.features, prediction.sha256, count)
        return [(one, self._picture(one)) for one in found]

    def _picture(self, film: KnownFilm) -> str | None:
        drawn = None if self.thumbnails is None else self.thumbnails(film.image_id)
        return None if drawn is None else data_uri("image/jpeg", drawn)

    def _name(self) -> ModelName:
        model = self.predictor.model
        return ModelName(
            name=model.name,
            fingerprint=model.fingerprint,
            sha256=model_sha256(model),
            dataset=model.dataset,
            positive=model.classes[model.positive],
            operating_point=operating_point_answer(self.predictor),
        )

    def about(self) -> ModelAnswer:
        """The model behind this server."""
        model, limits = self.predictor.model, self.limits
        return ModelAnswer(
            **dict(self.name),
            classes=list(model.classes),
            backbones=[source.spec.backbone for source in model.sources],
            views=self.predictor.views,
            temperature=model.choices[self.predictor.kind].temperature,
            figures=list(self.card.figures),
            provenance=dict(model.provenance),
            notes=[*model.notes, *self.card.notes],
            tells_distance=model.distance is not None,
            draws_evidence=self.explainer is not None,
            knows_cases=self.known is not None,
            limits=LimitsAnswer(
                max_bytes=limits.max_bytes,
                max_pixels=limits.max_pixels,
                max_files=limits.files_at_once,
                timeout=limits.timeout,
            ),
        )
