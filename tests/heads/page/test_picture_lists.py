"""The films that a page shows: by the report's logits; evidence, neighbours and findings as the commands have them."""

from __future__ import annotations

import base64
import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_network
import torch
from PIL import Image
from test_cli import done

from featcache.errors import BackboneError, DataError, StoreError, UnreadableImageError
from featcache.maps import FilmMap, FilmMapper
from featcache.settings import Settings, load_settings
from heads.experiments.runs import load_run, run_folders
from heads.experiments.split_logits import Kind
from heads.page.picture_lists import build_pictures
from heads.page.pictures import PictureCard, Pictures
from heads.page.row_evidence import row_evidence
from heads.page.thumbnails import Thumbnails
from heads.reporting.report import Report, build_report
from heads.reporting.tables import Shown
from heads.statistics.metrics import probabilities

QUICK = {"CXR_DEVICE": "cpu", "CXR_RUNTIME": "torch", "CXR_PRECISION": "float32", "CXR_DATA": "films"}
FIT = ("--hidden", "0", "--hidden", "8", "--seeds", "2", "--epochs", "2", "--batch-size", "16", "--lr", "0.02")


@pytest.fixture(scope="module")
def place(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with films, one of them in train and in test, their features, and a run; read it, never write to it."""
    folder = tmp_path_factory.mktemp("place")
    films = shutil.copytree(phantoms, folder / "films")
    shutil.copy(sorted((films / "train/PNEUMONIA").iterdir())[3], films / "test/NORMAL/copy.jpeg")
    done("extract", "-b", "tiny_network:tiny", "--views", "2", cwd=folder, **QUICK)
    done("fit-head", *FIT, cwd=folder, **QUICK)
    return folder


@pytest.fixture
def settings(place: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What the commands are told by variables."""
    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)
    return load_settings({"data": place / "films", "cache": place / "cache"})


@pytest.fixture
def report(place: Path) -> Report:
    return build_report(place / "cache/films", rule="clean")


def built(report: Report, settings: Settings, shown: Shown | None = None, weights: str | None = None) -> Pictures:
    return build_pictures(report, settings.cache / "films", settings, shown, weights=weights)


def pixels(source: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as image:
        return np.asarray(image.convert("RGB")).astype(int)


# ---- which films


@pytest.mark.parametrize("view_mean", [False, True])
@pytest.mark.parametrize("rule", [None, "sensitivity>=0.95"])
def test_the_worst_and_the_least_sure_are_those_of_the_reports_logits(
    report: Report, settings: Settings, view_mean: bool, rule: str | None
) -> None:
    pictures = built(report, settings, Shown(view_mean=view_mean, rule=rule))
    (row,) = report.selected
    kind: Kind = "view_mean" if view_mean else "clean"
    cut = 0.5 if rule is None else row.row.choices[kind].operating_points[rule][row.row.best].threshold
    assert pictures.threshold == cut
    test = row.test_logits
    logit = test.of(kind)[row.row.best].astype(float)
    towards = dict(zip(test.image_id, logit[:, 1] - logit[:, 0] - np.log(cut / (1 - cut)), strict=True))
    truth = dict(zip(test.image_id, test.label.tolist(), strict=True))
    wrong = [name for name, positive in towards.items() if (positive >= 0) != bool(truth[name])]
    assert (pictures.images, pictures.wrong) == (25, len(wrong))
    assert len(wrong) > 0
    assert [card.image_id for card in pictures.worst] == sorted(wrong, key=lambda name: -abs(towards[name]))[:12]
    unsure = sorted(towards, key=lambda name: abs(towards[name]))
    assert [card.image_id for card in pictures.least_sure] == unsure[:12]
    for card in (*pictures.worst, *pictures.least_sure):
        at = test.image_id.index(card.image_id)
        assert card.probability == pytest.approx(probabilities(logit[at : at + 1])[0, 1], abs=1e-6)
        assert card.label == ("NORMAL", "PNEUMONIA")[truth[card.image_id]]
        assert card.decision == ("PNEUMONIA" if towards[card.image_id] >= 0 else "NORMAL")
        assert card.of_class == "PNEUMONIA"
    assert all(card.decision != card.label for card in pictures.worst)


def test_a_threshold_of_zero_is_kept_and_calls_every_film_positive(report: Report, settings: Settings) -> None:
    (row,) = report.selected
    rule = "sensitivity>=0.95"
    choices = row.row.choices["clean"]
    points = {rule: tuple(replace(one, threshold=0.0) for one in choices.operating_points[rule])}
    zero = replace(row, row=replace(row.row, choices={"clean": replace(choices, operating_points=points)}))
    pictures = built(replace(report, rows=(zero,)), settings, Shown(rule=rule))
    assert pictures.threshold == 0
    assert pictures.wrong == sum(label == 0 for label in row.test_logits.label.tolist())
    assert pictures.worst
    assert {(card.decision, card.label) for card in pictures.worst} == {("PNEUMONIA", "NORMAL")}


# ---- evidence


def every(pictures: Pictures) -> list[PictureCard]:
    return [*pictures.worst, *pictures.least_sure]


def test_the_evidence_is_the_rows_own_and_sums_to_its_log_odds(report: Report, settings: Settings) -> None:
    pictures = built(report, settings)
    (row,) = report.selected
    assert (
        pictures.evidence
        == f"The evidence is that of {row.name}, seed {row.row.records[row.row.best].config.seed}, for the clean view."
    )
    for card in every(pictures):
        assert card.overlay is not None
        at = row.test_logits.image_id.index(card.image_id)
        logit = row.test_logits.logits[row.row.best, at]
        # The stored feature is rounded to float16.
        assert card.overlay.evidence == pytest.approx(float(logit[1] - logit[0]), abs=5e-3)
        assert card.overlay.probability == pytest.approx(card.probability, abs=2e-3)
        assert not card.apart
        assert card.overlay.picture.alt.startswith(
            f"Radiograph {card.image_id}, labelled {card.label}, with the evidence"
        )
        plain, covered = pixels(card.thumbnail.source), pixels(card.overlay.picture.source)
        assert plain.shape == covered.shape
        # The film is grey; what is laid over it is not.
        assert np.ptp(plain, axis=2).max() <= 2
        assert np.ptp(covered, axis=2).max() > 40


def test_of_the_view_mean_the_evidence_is_the_clean_views_and_the_difference_is_told(
    report: Report, settings: Settings
) -> None:
    cards = every(built(report, settings, Shown(view_mean=True)))
    (row,) = report.selected
    apart = set()
    for card in cards:
        assert card.overlay is not None
        at = row.test_logits.image_id.index(card.image_id)
        clean = probabilities(row.test_logits.logits[row.row.best, at : at + 1])[0, 1]
        assert card.overlay.probability == pytest.approx(clean, abs=2e-3)
        assert card.apart == (abs(card.overlay.probability - card.probability) >= 0.01)
        apart.add(card.apart)
    assert True in apart


def selecting(report: Report, name: str) -> Report:
    """The same report with another row marked."""
    rows = [replace(one, row=replace(one.row, selected=one.name == name)) for one in report.rows]
    assert sum(row.selected for row in rows) == 1
    return replace(report, rows=tuple(rows))


def test_of_a_mean_of_heads_a_members_evidence_is_shown_and_said_to_be_one(place: Path, settings: Settings) -> None:
    report = build_report(place / "cache/films", rule="clean", ensembles=True)
    member = min(
        (row for row in report.rows if row.row.ensemble is None), key=lambda row: row.row.candidate.scores["clean"]
    )
    pictures = built(selecting(report, f"{member.name}, mean of 2 seeds"), settings)
    assert pictures.evidence.startswith(
        "A mean of several heads has no map of its own: the evidence is that of one member"
    )
    assert (
        f"{member.name}, seed {member.row.records[member.row.best].config.seed}, for the clean view"
        in pictures.evidence
    )
    for card in every(pictures):
        assert card.overlay is not None
        at = member.test_logits.image_id.index(card.image_id)
        logit = member.test_logits.logits[member.row.best, at]
        assert card.overlay.evidence == pytest.approx(float(logit[1] - logit[0]), abs=5e-3)


@pytest.mark.parametrize(
    ("fit", "why"),
    [
        (("-b", "tiny_network:tiny+tiny_network:other"), "stands on the joined features of several backbones"),
        (("-b", "tiny_network:tiny", "--adapt"), "hangs on all films of its split"),
    ],
)
def test_joined_and_transductive_rows_have_plain_films(
    place: Path, tmp_path: Path, settings: Settings, fit: tuple[str, ...], why: str
) -> None:
    shutil.copytree(place / "films", tmp_path / "films")
    shutil.copytree(place / "cache", tmp_path / "cache")
    done("extract", "-b", "tiny_network:other", "--views", "2", cwd=tmp_path, **QUICK)
    run = done("fit-head", *fit, "--hidden", "0", "--epochs", "2", "--json", cwd=tmp_path, **QUICK).json["run"]
    report = build_report(tmp_path / "cache/films", [run], rule="clean")
    there = settings.model_copy(update={"data": tmp_path / "films", "cache": tmp_path / "cache"})
    pictures = built(report, there)
    assert pictures.evidence == f"{report.rows[0].name} {why}: its films are shown plain."
    assert [card.overlay for card in every(pictures)] == [None] * len(every(pictures))
    assert pictures.least_sure
    assert pictures.known_cases


def test_where_the_network_cannot_be_had_the_films_are_plain_and_it_is_said(
    place: Path, tmp_path: Path, settings: Settings
) -> None:
    shutil.copytree(place / "films", tmp_path / "films")
    torch.save(tiny_network.other().state_dict(), tmp_path / "w.pth")
    done("extract", "-b", "tiny_network:tiny", "--weights", "w.pth", cwd=tmp_path, **QUICK)
    done("fit-head", "--hidden", "0", "--epochs", "2", cwd=tmp_path, **QUICK)
    report = build_report(tmp_path / "cache/films", rule="clean")
    there = settings.model_copy(update={"data": tmp_path / "films", "cache": tmp_path / "cache"})
    plain = built(report, there)
    assert plain.evidence.startswith("The films are shown without evidence: ")
    assert "name the weights that made it with --weights FILE" in plain.evidence
    assert not any(card.overlay for card in every(plain))
    given = built(report, there, weights=str(tmp_path / "w.pth"))
    assert all(card.overlay for card in every(given))
    torch.save(tiny_network.tiny().state_dict(), tmp_path / "wrong.pth")
    with pytest.raises(BackboneError, match="cannot be computed again with this"):
        built(report, there, weights=str(tmp_path / "wrong.pth"))


# ---- known cases and findings


def test_the_nearest_films_are_those_that_the_command_finds(place: Path, report: Report, settings: Settings) -> None:
    pictures = built(report, settings)
    assert {case.image_id for case in pictures.known_cases} == {card.image_id for card in every(pictures)}
    names = [case.image_id for case in pictures.known_cases]
    asked = done("neighbours", *names, "-k", "3", "--json", cwd=place, **QUICK).json
    for case, one in zip(pictures.known_cases, asked, strict=True):
        assert [(near.image_id, near.label) for near in case.nearest] == [
            (near["image_id"], near["label"]) for near in one["neighbours"]
        ]
        assert [near.distance for near in case.nearest] == pytest.approx(
            [near["distance"] for near in one["neighbours"]]
        )
        counted = [
            f"{sum(near.label == name for near in case.nearest)} {name}"
            for name in {near.label for near in case.nearest}
        ]
        assert set(case.votes.split(", ")) == set(counted)


def test_pairs_and_labels_are_those_that_the_audit_finds(place: Path, report: Report, settings: Settings) -> None:
    pictures = built(report, settings)
    held = done("data", "audit", "--json", cwd=place, **QUICK).json
    pairs, doubted = held["near_duplicates"]["pairs"], held["label_candidates"]
    assert (pictures.duplicates_found, pictures.label_errors_found) == (len(pairs), len(doubted))
    assert [[film.image_id for film in pair.films] for pair in pictures.duplicates] == [
        pair["image_id"] for pair in pairs[:12]
    ]
    assert pictures.duplicates[0].remark == "same bytes, across splits, other label"
    assert [one.film.image_id for one in pictures.label_errors] == [one["image_id"] for one in doubted[:12]]
    assert [one.rather for one in pictures.label_errors] == [one["rather"] for one in doubted[:12]]


# ---- what is not there


def test_films_that_have_changed_or_gone_are_left_out_and_told(place: Path, tmp_path: Path, settings: Settings) -> None:
    films = shutil.copytree(place / "films", tmp_path / "films")
    report = build_report(place / "cache/films", rule="clean")
    there = settings.model_copy(update={"data": films})
    before = built(report, there)
    gone, changed = before.worst[0].image_id, before.worst[1].image_id
    (films / gone).unlink()
    (films / changed).write_bytes((films / before.worst[2].image_id).read_bytes())
    after = built(report, there)
    assert [card.image_id for card in after.worst] == [card.image_id for card in before.worst[2:]]
    assert after.wrong == before.wrong
    assert after.notes == (f"2 films cannot be shown, the first of them {gone}: no such file.",)


def test_films_that_were_extracted_anew_since_they_were_judged_are_refused(
    place: Path, tmp_path: Path, settings: Settings
) -> None:
    films = shutil.copytree(place / "films", tmp_path / "films")
    shutil.copytree(place / "cache", tmp_path / "cache")
    there = settings.model_copy(update={"data": films, "cache": tmp_path / "cache"})
    report = build_report(tmp_path / "cache/films", rule="clean")
    judged = built(report, there).worst[0]
    ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (256, 1)))
    ramp.save(films / judged.image_id, format="JPEG")
    done("extract", "-b", "tiny_network:tiny", "--views", "2", cwd=tmp_path, **QUICK)
    with pytest.raises(DataError, match=r"have changed since .* was fitted, so its films cannot be shown: run"):
        built(report, there)
    done("fit-head", *FIT, cwd=tmp_path, **QUICK)
    assert built(build_report(tmp_path / "cache/films", rule="clean"), there).images == 25


def test_a_film_that_changes_between_its_picture_and_its_evidence_has_none(report: Report, settings: Settings) -> None:
    evidence = row_evidence(report, report.selected[0], settings.cache / "films", settings)
    table = evidence.store.image_table
    name, digest = str(table.image_id[0]), str(table.sha256[0])
    assert settings.data is not None
    same, other = (Thumbnails(settings.data, {name: one}) for one in (digest, "0" * 64))
    assert evidence.overlay(name, same, 1, "a film") is not None
    with pytest.raises(UnreadableImageError, match="has changed since it was judged"):
        evidence.overlay(name, other, 1, "a film")


def test_a_film_without_evidence_is_shown_and_told_apart_from_one_that_is_not(
    report: Report, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = built(report, settings)
    lame, whole = before.worst[0].image_id, FilmMapper.film

    def film(mapper: FilmMapper, path: Path) -> FilmMap:
        if path.as_posix().endswith(lame):
            raise UnreadableImageError("no map of it")
        return whole(mapper, path)

    monkeypatch.setattr(FilmMapper, "film", film)
    after = built(report, settings)
    assert [card.image_id for card in after.worst] == [card.image_id for card in before.worst]
    assert [card.image_id for card in after.worst if card.overlay is None] == [lame]
    assert after.notes == (f"1 films are shown without their evidence, the first of them {lame}: no map of it.",)


def test_without_the_films_or_their_features_it_is_an_error_that_says_the_way_out(
    place: Path, tmp_path: Path, report: Report, settings: Settings
) -> None:
    with pytest.raises(DataError, match="--pictures wants the films; name their folder with --data"):
        built(report, settings.model_copy(update={"data": tmp_path / "films"}))
    for folder in run_folders(place / "cache/films"):
        assert load_run(folder).heads
        shutil.copytree(folder, tmp_path / "cache/films/runs" / folder.name)
    with pytest.raises(StoreError, match=r"the features of tiny_network:tiny .* are not in .*: leave out --pictures"):
        built(report, settings.model_copy(update={"cache": tmp_path / "cache"}))
