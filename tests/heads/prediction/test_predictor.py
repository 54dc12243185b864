"""A model's word on films is the run's own, whoever asks, however many at once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal, localcontext
from pathlib import Path

import numpy as np
import pytest
from test_cli import cxr, done

from featcache.films import load_film
from featcache.runtime import Compute
from featcache.settings import load_settings
from featcache.store import open_store, store_folders
from heads.choosing.decision import decide
from heads.experiments.runs import load_logits, run_folders
from heads.experiments.split_logits import read_logits
from heads.prediction.bundle import load_bundle
from heads.prediction.from_run import model_of_run
from heads.prediction.model import Model, ModelChoices
from heads.prediction.networks import backbones_of
from heads.prediction.predictor import ImageFile, Predictor
from prediction.conftest import QUICK


@pytest.fixture
def dataset(place: Path) -> Path:
    return place / "cache" / "films"


def predictor_of(model: Model, *, views: int = 1, rule: str | None = None, batch_size: int | None = None) -> Predictor:
    compute = Compute(device="cpu", threads=2, batch_size=batch_size)
    return Predictor(model, backbones_of(model, load_settings()), compute, rule=rule, views=views)


def val_films(place: Path) -> list[Path]:
    (run,) = run_folders(place / "cache" / "films")
    return [place / "films" / name for name in load_logits(run).image_id]


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("number", [0, 3, 5, 10])
def test_features_and_logits_of_an_image_of_the_data_set_are_those_that_store_and_run_keep(
    place: Path, dataset: Path, number: int, views: int
) -> None:
    model = model_of_run(dataset, head=number)
    (run,) = run_folders(dataset)
    kept = load_logits(run)
    predictions = list(predictor_of(model, views=views).stream(val_films(place)))
    stores = [open_store(source.path) for source in model.sources]
    stored = np.concatenate([store.features(kept.image_id) for store in stores], axis=1)
    np.testing.assert_array_equal(np.stack([one.features for one in predictions if one.features is not None]), stored)
    wanted = kept.of("view_mean" if views > 1 else "clean")[number]
    found = np.stack([one.logits for one in predictions if one.logits is not None])
    np.testing.assert_array_equal(found, wanted)


def test_an_ensembles_logits_are_those_that_its_row_was_chosen_by(place: Path, dataset: Path) -> None:
    rows = [row for row in decide(dataset, ensembles=True).rows if row.ensemble is not None]
    assert {row.ensemble.kind for row in rows if row.ensemble} == {"seeds", "backbones"}
    for row in rows:
        model = model_of_run(dataset, row=row.name)
        assert model.name == row.name
        for views, kind in ((1, "clean"), (3, "view_mean")):
            predictions = list(predictor_of(model, views=views).stream(val_films(place)))
            found = np.stack([one.logits for one in predictions if one.logits is not None])
            wanted = row.val.logits[0] if kind == "clean" else row.val.logits_view_mean[0]
            np.testing.assert_array_equal(found, wanted)


def test_probability_and_decision_are_by_temperature_and_threshold_of_val(place: Path, dataset: Path) -> None:
    decision = decide(dataset, ensembles=False)
    row = decision.selected[0]
    model = model_of_run(dataset)
    temperature = row.choices["clean"].temperature
    logits = row.val.logits[row.best].astype(np.float64)
    against = logits[:, 0] - logits[:, 1]
    for rule in ("youden", "sensitivity>=0.95", "f1", "0.5"):
        predictor = predictor_of(model, rule=rule)
        predictions = list(predictor.stream(val_films(place)))
        assert predictor.point is not None
        assert predictor.point.rule == rule
        points = row.choices["clean"].operating_points
        threshold = 0.5 if rule == "0.5" else points[rule][row.best].threshold
        assert predictor.point.threshold == threshold
        probability = [one.probability or 0.0 for one in predictions]
        np.testing.assert_allclose(probability, 1 / (1 + np.exp(against / temperature)), rtol=1e-5)
        decided = [one.decision == "PNEUMONIA" for one in predictions]
        np.testing.assert_array_equal(decided, 1 / (1 + np.exp(against)) >= threshold)
        # What is shown beside the probability tells the same.
        shown = model.choices["clean"].scaled(threshold)
        np.testing.assert_array_equal(decided, np.array(probability) >= shown)
    assert predictor_of(model).point == points["youden"][row.best]


def test_an_answer_hangs_on_neither_neighbours_nor_order_nor_how_the_film_was_given(place: Path, dataset: Path) -> None:
    predictor = predictor_of(model_of_run(dataset, row=decide(dataset, ensembles=True).rows[-1].name))
    paths = val_films(place)
    together = list(predictor.stream(paths))
    backwards = list(predictor.stream(reversed(paths)))[::-1]
    files = [ImageFile(name=str(path), data=path.read_bytes()) for path in paths]
    alone = [predictor.predict([file])[0] for file in files[:5]]
    for one, other in [*zip(together, backwards, strict=True), *zip(together, alone, strict=False)]:
        assert one.name == other.name
        assert one.logits is not None
        assert other.logits is not None
        assert one.logits.tobytes() == other.logits.tobytes()
        assert one.probability == other.probability


def test_a_file_that_cannot_be_read_is_an_answer_with_a_reason_in_its_place(
    place: Path, dataset: Path, tmp_path: Path
) -> None:
    good = val_films(place)[0]
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.jpeg").write_bytes(good.read_bytes()[:300])
    bad = [tmp_path / "none.jpeg", tmp_path / "empty.png", tmp_path / "cut.jpeg", tmp_path]
    predictor = predictor_of(model_of_run(dataset))
    said = list(predictor.stream([bad[0], good, *bad[1:], good]))
    assert [bool(one.reason) for one in said] == [True, False, True, True, True, False]
    assert [one.reason for one in said[:3:2]] == ["no such file", "empty file"]
    assert said[4].reason == "not a plain file"
    assert [one.probability is None for one in said] == [True, False, True, True, True, False]
    assert said[1].probability == said[5].probability
    # None readable at all.
    assert [bool(one.reason) for one in predictor.stream(bad)] == [True] * 4
    assert predictor.predict([]) == []


def test_files_are_asked_for_no_sooner_than_needed(place: Path, dataset: Path) -> None:
    paths, asked = val_films(place), 0

    def endless() -> Iterator[Path]:
        nonlocal asked
        while True:
            asked += 1
            yield paths[asked % len(paths)]

    stream = predictor_of(model_of_run(dataset)).stream(endless())
    for _ in range(500):
        next(stream)
    stream.close()
    assert 500 <= asked < 500 + 300


def test_a_stream_left_early_lets_the_next_one_in(place: Path, dataset: Path) -> None:
    predictor = predictor_of(model_of_run(dataset))
    stream = predictor.stream(val_films(place))
    next(stream)
    stream.close()
    assert len(list(predictor.stream(val_films(place)[:3]))) == 3


def test_links_are_followed_wherever_they_lead(place: Path, dataset: Path, tmp_path: Path) -> None:
    film = val_films(place)[0]
    (tmp_path / "link.jpeg").symlink_to(film)
    direct, linked = predictor_of(model_of_run(dataset)).stream([film, tmp_path / "link.jpeg"])
    assert (direct.probability, direct.sha256) == (linked.probability, linked.sha256)


def test_the_stores_are_found_by_their_specs(dataset: Path) -> None:
    by_spec = {open_store(folder).fingerprint: folder for folder in store_folders(dataset)}
    for number in range(12):
        model = model_of_run(dataset, head=number)
        assert [source.path for source in model.sources] == [
            by_spec[source.spec.fingerprint] for source in model.sources
        ]
    assert {len(model_of_run(dataset, head=number).sources) for number in range(12)} == {1, 2}


def test_films_that_were_rendered_elsewhere_are_answered_alike_by_several_callers_at_a_time(
    place: Path, dataset: Path
) -> None:
    predictor = predictor_of(model_of_run(dataset, head=3), views=3, batch_size=4)
    paths = val_films(place)
    wanted = list(predictor.stream(paths))
    renderings = frozenset(predictor.renderings)
    films = [load_film(path, renderings) for path in paths]
    cuts = [films[start : start + 3] for start in range(0, len(films), 3)]
    with ThreadPoolExecutor(4) as pool:
        found = [one for some in pool.map(predictor.predict_loaded, cuts) for one in some]
    assert [one.name for one in found] == [one.name for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one.logits is not None
        assert other.logits is not None
        assert one.logits.tobytes() == other.logits.tobytes()


@pytest.mark.parametrize("threshold", [1e-300, 1e-9, 0.2, 0.5, 1 - 1e-12])
@pytest.mark.parametrize("temperature", [0.05, 1.0, 20.0])
def test_a_threshold_is_shown_where_the_temperature_moves_it_however_small_both_are(
    threshold: float, temperature: float
) -> None:
    with localcontext(prec=50):
        exact, heat = Decimal(threshold), Decimal(temperature)
        wanted = float(1 / (1 + ((1 - exact) / exact) ** (1 / heat)))
    found = ModelChoices(temperature=temperature, operating_points={}).scaled(threshold)
    assert found == pytest.approx(wanted, rel=1e-9, abs=1e-300)


@pytest.mark.real
@pytest.mark.parametrize("views", [1, 2])
def test_real_films_get_the_features_of_the_store_and_the_logits_of_test(real_place: Path, views: int) -> None:
    dataset = real_place / "cache" / "films"
    model = model_of_run(dataset)
    (run,) = run_folders(dataset)
    kept = read_logits(run / "test.npz")
    said = list(predictor_of(model, views=views).stream([real_place / "films" / name for name in kept.image_id]))
    stored = open_store(model.sources[0].path).features(kept.image_id)
    np.testing.assert_array_equal(np.stack([one.features for one in said if one.features is not None]), stored)
    wanted = kept.of("view_mean" if views > 1 else "clean")[0]
    found = np.stack([one.logits for one in said if one.logits is not None])
    np.testing.assert_array_equal(found, wanted)


def test_of_three_classes_the_likeliest_is_decided_and_there_is_no_threshold(phantoms: Path, tmp_path: Path) -> None:
    for number, film in enumerate(sorted(phantoms.glob("*/*/*"))):
        of_class = "OTHER" if number % 3 == 0 else film.parent.name
        target = tmp_path / "films" / film.parent.parent.name / of_class
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(film, target)
    quick = {**QUICK, "CXR_BACKBONE": "tiny_network:tiny"}
    done("extract", "--data", "films", cwd=tmp_path, **quick)
    done("fit-head", "--data", "films", "--hidden", "0", "--epochs", "2", cwd=tmp_path, **quick)
    rows = done("predict", "films/test", "--data", "films", "--json", cwd=tmp_path).json
    assert {row["operating_point"] for row in rows} == {None}
    for row in rows:
        assert row["decision"] == max(row["probabilities"], key=row["probabilities"].get)
    for rule in ("0.5", "youden"):
        asked = cxr("predict", "films/test", "--data", "films", "--operating-point", rule, cwd=tmp_path)
        assert f"--operating-point {rule}: " in asked.line_of_exit(2)
        assert "tells 3 classes apart and decides for the likeliest" in asked.err
    done("bundle", "--data", "films", "--out", "model", cwd=tmp_path, **quick)
    # Nor does what goes with it speak of one.
    measured = load_bundle(tmp_path / "model", code=["tiny_network:tiny"]).measured
    assert measured is not None
    assert {one.rule for of_kind in measured.figures.values() for one in of_kind} == {""}
    assert "at threshold 0.5" not in (tmp_path / "model" / "README.md").read_text().split("\n---\n")[0]
    own = ("--backbone", "tiny_network:tiny")
    assert done("predict", "films/test", "--bundle", "model", *own, "--json", cwd=tmp_path).json == rows
    refused = cxr("predict", "films/test", "--bundle", "model", *own, "--operating-point", "0.5", cwd=tmp_path)
    assert "tells 3 classes apart" in refused.line_of_exit(2)
    done("export", "--bundle", "model", *own, "--onnx", "model.onnx", cwd=tmp_path)
