"""What the server answers is the model's own word, whoever asks at the same time."""

from __future__ import annotations

import base64
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import SECRET, dicom
from PIL import Image
from served import ROOT, films_of, make_service
from starlette.testclient import TestClient

from cxr.serving.app import build_app
from cxr.serving.model_card import card_of
from cxr.serving.service import Service
from featcache.named_images import find_images
from featcache.store import open_store
from heads.experiments.split_logits import KINDS, Kind
from heads.known_cases.neighbours import neighbours, use_of
from heads.prediction.from_run import chosen_row, model_of_row
from heads.prediction.look_at_test import measured_on_test
from heads.prediction.predictor import ImageFile
from heads.reporting.report import build_report


def asked(client: TestClient, film: bytes, query: str = "") -> dict[str, Any]:
    """The answer to one film that can be answered."""
    response = client.post(f"/predict{query}", content=film, headers={"Content-Type": "image/jpeg"})
    assert response.status_code == 200, response.text
    (prediction,) = response.json()["predictions"]
    assert isinstance(prediction, dict)
    return prediction


def picture(uri: str, kind: str) -> Image.Image:
    """The picture that a data URI carries."""
    head, _, data = uri.partition(",")
    assert head == f"data:{kind};base64"
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


def test_each_of_many_at_once_is_answered_as_if_it_were_alone(
    client: TestClient, service: Service, films: list[bytes]
) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda film: asked(client, film), films))
    # One after the other, through the way that has its own reading ahead.
    alone = [service.predictor.predict([ImageFile(name="", data=film)])[0] for film in films]
    for answer, said in zip(answers, alone, strict=True):
        assert answer["sha256"] == said.sha256
        assert answer["probability"] == said.probability
        assert said.probabilities is not None
        assert list(answer["probabilities"].values()) == said.probabilities.tolist()
        assert answer["decision"] == said.decision
        assert answer["distance_percentile"] == said.distance_percentile
        assert answer["flagged"] == said.flagged
        assert (answer["warning"] is not None) == said.flagged


def test_the_decision_is_that_of_probability_and_threshold_as_they_are_shown(
    client: TestClient, films: list[bytes]
) -> None:
    point = client.get("/model").json()["operating_point"]
    decided = set()
    for film in films:
        answer = asked(client, film)
        assert (answer["decision"] == "PNEUMONIA") == (answer["probability"] >= point["threshold"])
        decided.add(answer["decision"])
    assert decided == {"NORMAL", "PNEUMONIA"}


def test_views_are_averaged_as_the_predictor_averages_them(place: Path, films: list[bytes]) -> None:
    averaging = make_service(place, views=3)
    with TestClient(build_app(averaging), base_url="http://localhost") as client:
        found = [asked(client, film)["probability"] for film in films[:6]]
        said = [averaging.predictor.predict([ImageFile(name="", data=film)])[0].probability for film in films[:6]]
    assert found == said


def test_a_film_sent_by_curl_as_the_documents_show_it_is_answered(client: TestClient, films: list[bytes]) -> None:
    lines = [line for name in ("serving.md", "guide.md") for line in (ROOT / "docs" / name).read_text().splitlines()]
    shown = [line for line in lines if line.startswith("curl --data-binary @film.")]
    assert len(shown) >= 2
    assert not [line for line in shown if " -H " in line]  # so curl says what it says by itself
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    response = client.post("/predict", content=films[0], headers=kind)
    assert response.json()["predictions"] == [asked(client, films[0])]
    assert client.post("/predict", content=b"name=value", headers=kind).status_code == 415


def test_films_of_a_form_are_answered_in_their_order_and_a_bad_one_spoils_no_other(
    client: TestClient, films: list[bytes]
) -> None:
    sent = [films[0], b"<html></html>", films[1], films[0][:200]]
    parts = [("file", (f"{number}.jpeg", data, "image/jpeg")) for number, data in enumerate(sent)]
    response = client.post("/predict", files=parts)
    assert response.status_code == 200
    first, page, second, cut = response.json()["predictions"]
    assert first == asked(client, films[0])
    assert second == asked(client, films[1])
    assert (page["status"], cut["status"]) == (415, 422)
    assert page["reason"].startswith("not a JPEG, PNG or DICOM file")
    # A field of the form that is no file is passed over.
    alone = client.post("/predict", data={"note": "hello"}, files=[("any", ("x", films[1], "text/plain"))])
    assert alone.json()["predictions"] == [second]


@pytest.mark.parametrize("head", [0, 1])
def test_the_evidence_adds_up_to_the_logit_and_is_drawn_over_the_whole_film(
    place: Path, films: list[bytes], head: int
) -> None:
    service = make_service(place, head=head)
    with TestClient(build_app(service), base_url="http://localhost") as client:
        for film in films[:4]:
            (said,) = service.predictor.predict([ImageFile(name="", data=film)])
            assert said.logits is not None
            shown = asked(client, film, "?explain=true")["explanation"]
            assert shown["evidence"] == pytest.approx(said.logits[1] - said.logits[0], abs=0.02)
            drawn, overlay = picture(shown["film"], "image/jpeg"), picture(shown["overlay"], "image/png")
            assert drawn.size == overlay.size == (shown["width"], shown["height"]) == Image.open(io.BytesIO(film)).size
            assert overlay.mode == "RGBA"
            alpha = np.asarray(overlay)[:, :, 3]
            # Clear where there is no evidence, never so dense that the film is hidden.
            assert 100 < alpha.max() <= 0.75 * 255 + 1
            # The film itself, but for what JPEG loses.
            truth = np.asarray(Image.open(io.BytesIO(film)).convert("L"), np.float64)
            assert np.abs(np.asarray(drawn.convert("L"), np.float64) - truth).mean() < 4


def test_a_large_film_is_shown_no_larger_than_a_screen(client: TestClient, films: list[bytes]) -> None:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(films[0])).convert("L").resize((2400, 1200)).save(buffer, "JPEG")
    shown = asked(client, buffer.getvalue(), "?explain=true")["explanation"]
    assert (shown["width"], shown["height"]) == (1024, 512)
    assert picture(shown["film"], "image/jpeg").size == (1024, 512)
    assert picture(shown["overlay"], "image/png").size == (384, 192)


def test_neighbours_are_those_of_cxr_neighbours_and_their_thumbnails_are_theirs(
    client: TestClient, place: Path, films: list[bytes]
) -> None:
    (store,) = [open_store(path) for path in (place / "cache" / "films").glob("tiny_network*")]
    table = store.image_table
    use = use_of(table, "patient", 0)
    paths = films_of(place)
    for number in (0, 1, -1, -2):
        (image,) = find_images([str(paths[number])], table, place / "films")
        (wanted,) = neighbours(
            [image], store.features([str(table.image_id[image.row])]), store, np.flatnonzero(use == "train"), use, k=5
        )
        found = asked(client, films[number], "?neighbours=5")["neighbours"]
        assert [one["image_id"] for one in found] == [one.image_id for one in wanted.neighbours]
        assert [one["label"] for one in found] == [one.label for one in wanted.neighbours]
        np.testing.assert_allclose(
            [one["distance"] for one in found], [one.distance for one in wanted.neighbours], atol=1e-6
        )
        assert str(paths[number].relative_to(place / "films")) not in {one["image_id"] for one in found}
        for one in found:
            original = Image.open(place / "films" / one["image_id"]).convert("L")
            small = picture(one["thumbnail"], "image/jpeg").convert("L")
            reference = original.resize(small.size, Image.Resampling.LANCZOS)
            assert np.abs(np.asarray(small, np.float64) - np.asarray(reference, np.float64)).mean() < 6


def test_a_dicom_film_is_answered_with_its_projection_and_nothing_of_its_patient(
    client: TestClient, films: list[bytes]
) -> None:
    pixels = np.asarray(Image.open(io.BytesIO(films[0])).convert("L"))
    film = dicom(pixels)
    assert SECRET.encode() in film
    response = client.post("/predict?explain=true&neighbours=2", content=film)
    assert response.status_code == 200
    assert response.json()["predictions"][0]["projection"] == "PA"
    assert SECRET not in response.text
    cut = client.post("/predict", content=film[: len(film) // 2])
    assert cut.status_code == 422
    assert SECRET not in cut.text


def test_the_model_is_told_with_the_figures_of_the_report(client: TestClient, place: Path) -> None:
    told = client.get("/model").json()
    assert told["classes"] == ["NORMAL", "PNEUMONIA"]
    assert told["backbones"] == ["tiny_network:tiny"]
    assert told["tells_distance"]
    assert told["knows_cases"]
    assert told["draws_evidence"]
    assert told["research_use"] == "Research use only. Not a medical device."
    report = build_report(place / "cache" / "films").to_json()
    (row,) = [one for one in report["rows"] if one["head"]["hidden"] == 8]
    figures = {one["name"]: one for one in told["figures"]}
    assert len(figures) == 5 + 4
    for name, wanted in (("test AUC", "auc"), ("test sensitivity at threshold 0.5", "sensitivity")):
        assert figures[name] == {"name": name, **row["test"][wanted]}


@pytest.mark.parametrize("kind", KINDS)
def test_figures_are_of_the_threshold_and_the_views_that_decide_and_test_flagged_is_told(
    place: Path, kind: Kind
) -> None:
    dataset, root = place / "cache" / "films", place / "films"
    row = chosen_row(dataset, head=1)
    model = model_of_row(dataset, row, root)
    measured = measured_on_test(row, model, root)
    model, point = replace(model, measured=measured), model.point(kind, "youden")
    card = card_of(model, kind, point, model.views if kind == "view_mean" else 1)
    told = {one.name: one for one in card.figures}
    (report,) = [one for one in build_report(dataset).rows if one.row.records[0].config.hidden == 8]
    for name, rule in (("sensitivity", "youden"), ("specificity", None)):
        wanted = report.test[kind].interval(name, rule)
        assert wanted is not None
        found = told[f"test {name} at {'the threshold for youden' if rule else 'threshold 0.5'}"]
        assert (found.value, found.low, found.high) == (wanted.value, wanted.low, wanted.high)
    assert len(told) == 5 + 4
    assert measured.flagged is not None
    assert ("mean over 3 views" in card.notes[0]) == (kind == "view_mean")
    assert f"Of the test films {100 * measured.flagged:.1f} % are flagged" in card.notes[1]
    assert "another hospital" in card.notes[2]
    notes = card_of(model, kind, point, 2).notes
    assert ("Answers average 2 views of a film." in notes) == (kind == "view_mean")


def test_a_model_without_a_map_of_places_says_so_and_answers_all_else(place: Path, films: list[bytes]) -> None:
    service = make_service(place)
    service.explainer = None
    with TestClient(build_app(service), base_url="http://localhost") as client:
        assert client.get("/model").json()["draws_evidence"] is False
        assert asked(client, films[0])["explanation"] is None
        assert client.post("/predict?explain=true", content=films[0]).status_code == 422


def test_metrics_count_what_was_answered_and_how_full_batches_were(place: Path, films: list[bytes]) -> None:
    service = make_service(place)
    with TestClient(build_app(service), base_url="http://localhost") as client:
        for film in films[:5]:
            asked(client, film)
        assert client.post("/predict", content=b"nothing of a film").status_code == 415
        response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    lines = dict(line.rsplit(" ", 1) for line in response.text.splitlines() if not line.startswith("#"))
    assert lines['cxr_requests_total{status="200"}'] == "5.0"
    assert lines['cxr_requests_total{status="415"}'] == "1.0"
    assert lines["cxr_images_total"] == "5.0"
    assert lines["cxr_batch_images_sum"] == "5.0"
    assert lines['cxr_request_seconds_count{status="200"}'] == "5.0"
    assert lines["cxr_queue_images"] == "0.0"
