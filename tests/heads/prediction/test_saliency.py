"""The evidence of a whole model adds up to its logit, whatever heads and networks it is made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featcache.runtime import Compute
from featcache.settings import load_settings
from heads.choosing.decision import decide
from heads.evidence.contributions import contributions
from heads.evidence.overlays import laid_over
from heads.prediction.from_run import model_of_run
from heads.prediction.model import Model
from heads.prediction.networks import backbones_of
from heads.prediction.predictor import ImageFile, Predictor
from heads.prediction.saliency import Explainer


@pytest.fixture
def dataset(place: Path) -> Path:
    return place / "cache" / "films"


def some_films(place: Path) -> list[ImageFile]:
    paths = sorted((place / "films").rglob("*.jpeg"))[::20]
    return [ImageFile(name=path.name, data=path.read_bytes()) for path in paths]


def evidence_and_logits(model: Model, films: list[ImageFile]) -> tuple[list[float], list[float]]:
    networks, compute = backbones_of(model, load_settings()), Compute(device="cpu", threads=1)
    predictor, explainer = Predictor(model, networks, compute), Explainer(model, networks, compute)
    logits = [one.logits for one in predictor.predict(films) if one.logits is not None]
    against = [float(one[model.positive] - one[1 - model.positive]) for one in logits]
    return [explainer.explain(film.data).evidence for film in films], against


def test_all_places_and_the_constant_are_the_log_odds_of_ensembles_and_of_joined_features(
    place: Path, dataset: Path
) -> None:
    films = some_films(place)
    rows = [row.name for row in decide(dataset, ensembles=True).rows]
    models = [model_of_run(dataset, row=name) for name in rows]
    assert any(len(model.members) > 1 for model in models)
    assert any(len(member.sources) > 1 for model in models for member in model.members)
    assert any(len(member.heads) > 1 for model in models for member in model.members)
    for model in models:
        evidence, against = evidence_and_logits(model, films)
        # Features are stored in float16, maps are not.
        np.testing.assert_allclose(evidence, against, atol=0.02)


@pytest.mark.parametrize("number", [0, 2])
def test_of_one_head_it_is_what_cxr_explain_shows(place: Path, dataset: Path, number: int) -> None:
    model = model_of_run(dataset, head=number)
    explainer = Explainer(model, backbones_of(model, load_settings()), Compute(device="cpu", threads=1))
    (head,) = model.members[0].heads
    for film in some_films(place):
        whole = explainer.mappers[0].film_of(film.data)
        wanted, found = contributions(head, whole.last_map, model.positive), explainer.explain(film.data)
        np.testing.assert_allclose(found.cells[0], wanted.cells, rtol=1e-9, atol=1e-12)
        assert found.constant == pytest.approx(wanted.constant)
        height, width = whole.pixels.shape[:2]
        np.testing.assert_allclose(
            found.over(height, width), laid_over(wanted.local_evidence, whole.window, height, width), atol=1e-4
        )
        # Shown at half its size, a place keeps its evidence: it is the mean of the four places that it was.
        of_four = found.over(height, width).reshape(height // 2, 2, width // 2, 2).mean((1, 3))
        half = found.over(height // 2, width // 2)
        np.testing.assert_allclose(half, of_four, atol=0.02 * float(np.nanmax(np.abs(of_four))))
