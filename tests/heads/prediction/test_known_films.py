"""The nearest train films are those that a plain search over all of them finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featcache.store import open_store
from heads.choosing.decision import decide
from heads.experiments.runs import load_run, run_folders
from heads.known_cases.neighbours import use_of
from heads.prediction import known_films
from heads.prediction.from_run import model_of_run
from heads.prediction.known_films import KnownFilms, Thumbnails
from heads.prediction.model import Model


@pytest.fixture
def dataset(place: Path) -> Path:
    return place / "cache" / "films"


def plainly(model: Model, train: list[str], name: str) -> dict[str, float]:
    """Mean over the model's networks of the cosine distance of signed square roots, to each train film but itself."""
    found = {other: 0.0 for other in train if other != name}
    for source in model.sources:
        store = open_store(source.path)
        one = np.sqrt(store.features([name])[0].astype(np.float64))
        for other in found:
            two = np.sqrt(store.features([other])[0].astype(np.float64))
            found[other] += (1 - one @ two / np.linalg.norm(one) / np.linalg.norm(two)) / len(model.sources)
    return found


def test_they_are_the_nearest_of_train_by_all_networks_and_never_the_film_itself(dataset: Path) -> None:
    (folder,) = run_folders(dataset)
    run = load_run(folder)
    rows = [row.name for row in decide(dataset, ensembles=True).rows]
    models = [model_of_run(dataset, head=0), *(model_of_run(dataset, row=name) for name in rows)]
    for model in (models[0], next(one for one in models if len(one.sources) > 1)):
        known = KnownFilms.of_run(dataset, model)
        assert known is not None
        stores = [open_store(source.path) for source in model.sources]
        table = stores[0].image_table
        use = use_of(table, run.split_rule, run.split_seed)
        train = table.image_id[use == "train"].tolist()
        assert known.image_id.tolist() == train
        for name in (train[0], train[-1], table.image_id[use == "test"].tolist()[0]):
            feature = np.concatenate([store.features([name])[0] for store in stores])
            digest = str(table.sha256[table.image_id == name][0])
            found = known.nearest_to(feature, digest, 4)
            wanted = plainly(model, train, name)
            assert [one.distance for one in found] == pytest.approx(sorted(wanted.values())[:4], abs=1e-5)
            for one in found:
                assert one.distance == pytest.approx(wanted[one.image_id], abs=1e-5)
                assert one.label == one.image_id.split("/")[1]


def test_more_films_than_memory_is_meant_for_are_not_held(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_films, "MOST_BYTES", 1000)
    assert KnownFilms.of_run(dataset, model_of_run(dataset, head=0)) is None


def test_a_film_that_is_gone_has_no_thumbnail(place: Path) -> None:
    drawn = Thumbnails(place / "films")
    there = next((place / "films").rglob("*.jpeg")).relative_to(place / "films")
    picture = drawn(str(there))
    assert picture is not None
    assert picture.startswith(b"\xff\xd8\xff")
    assert drawn(str(there)) is picture
    assert drawn("train/NORMAL/gone.jpeg") is None
    assert drawn("../../../etc/passwd") is None
