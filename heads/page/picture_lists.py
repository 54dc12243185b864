"""Gathers the films that a page shows: reads them, lays evidence over them, and looks up what is near."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featcache.errors import DataError, UnreadableImageError
from featcache.named_images import NamedImage
from featcache.settings import Settings
from featcache.store import FeatureStore
from featcache.workspace import data_root
from heads.experiments.identity import images_sha256
from heads.experiments.split_logits import Kind
from heads.known_cases.label_errors import LabelCandidate, label_candidates
from heads.known_cases.near_duplicates import FilmPair, near_duplicates
from heads.known_cases.neighbours import neighbours, use_of
from heads.page.hard_films import least_sure, margins, most_wrong
from heads.page.pictures import DoubtedLabel, DuplicatePair, FoundFilm, KnownCase, NearFilm, PictureCard, Pictures
from heads.page.row_evidence import Overlay, RowEvidence, row_evidence
from heads.page.rows import split_words
from heads.page.thumbnails import Thumbnails
from heads.reporting.report import Report, ReportRow
from heads.reporting.tables import Shown
from heads.statistics.metrics import probabilities

SHOWN = 12
"""Films a list."""

NEAREST = 3
"""Train films beside each."""

MOST_AUDITED = 50_000
"""Films: to compare more of them with one another takes minutes."""

APART = 0.01
"""From such a difference of probability on, row and overlay are said to differ."""


def build_pictures(
    report: Report,
    dataset: Path,
    settings: Settings,
    shown: Shown | None = None,
    *,
    weights: str | None = None,
    on_step: Callable[[int, int], None] = lambda *_: None,
) -> Pictures:
    """Gather the films of the selected row; of several splits, of the first.

    Args:
        report: finished.
        dataset: ``cache/<dataset>``.
        settings: name the data set and what computes.
        shown: as for the table: logits of the clean view or of the mean, and the operating point.
        weights: those of the row's backbone, where they were a file.
        on_step: told films done, and in all; the audit counts as one more.

    Raises:
        DataError: the films are not here, or their features are not those of the films that the row was judged on.
        StoreError: the features that the row stands on are not there any more, or damaged.
        BackboneError: ``weights`` are not the store's.
    """
    shown, row, root = shown or Shown(), report.selected[0], films_root(settings)
    evidence = row_evidence(report, row, dataset, settings, weights)
    table = evidence.store.image_table
    if images_sha256(table) != row.row.run.images_sha256:
        raise DataError(
            f"images, labels or patients have changed since {row.name} was fitted, so its films cannot be shown: run "
            "'cxr extract' and 'cxr fit-head' again, or leave out --pictures"
        )
    films = Thumbnails(root, dict(zip(table.image_id.tolist(), table.sha256.tolist(), strict=True)))
    judged = _Judged(row, shown)
    hard, unsure = most_wrong(judged.margin, SHOWN), least_sure(judged.margin, SHOWN)
    cards: dict[int, PictureCard] = {}
    wanted = list(dict.fromkeys([*hard.tolist(), *unsure.tolist()]))
    for number, place in enumerate(wanted):
        if card := judged.card(place, evidence, films):
            cards[place] = card
        on_step(number + 1, len(wanted) + 1)
    known = tuple(_known_cases([card.image_id for card in cards.values()], row, evidence.store, films))
    pairs, doubted, notes = _audit(evidence.store)
    on_step(len(wanted) + 1, len(wanted) + 1)
    duplicates = [_pair(pair, films) for pair in pairs[:SHOWN]]
    label_errors = [_doubted(candidate, films) for candidate in doubted[:SHOWN]]
    for lost, fate in ((films.lost, "cannot be shown"), (judged.unmapped, "are shown without their evidence")):
        if lost:
            first, why = next(iter(lost.items()))
            notes.append(f"{len(lost)} films {fate}, the first of them {first}: {why}.")
    return Pictures(
        row=row.name,
        split=split_words(*row.row.split) if len(report.selected) > 1 else "",
        threshold=judged.threshold,
        images=len(judged.margin),
        wrong=int((judged.margin < 0).sum()),
        evidence=evidence.said,
        near_by=evidence.store.backbone,
        worst=tuple(cards[place] for place in hard.tolist() if place in cards),
        least_sure=tuple(cards[place] for place in unsure.tolist() if place in cards),
        known_cases=known,
        duplicates=tuple(pair for pair in duplicates if pair),
        duplicates_found=len(pairs),
        label_errors=tuple(one for one in label_errors if one),
        label_errors_found=len(doubted),
        notes=tuple(notes),
    )


def films_root(settings: Settings) -> Path:
    """The folder that the films lie in.

    Raises:
        DataError: it is not there.
    """
    root = data_root(settings)
    if not root.is_dir():
        raise DataError(f"{root} is not there: --pictures wants the films; name their folder with --data DIR")
    return root


class _Judged:
    """What a row says of the films of test: its logits as the report opened them, of the head that stands for it."""

    def __init__(self, row: ReportRow, shown: Shown) -> None:
        kind: Kind = "view_mean" if shown.view_mean else "clean"
        self.classes, self.positive, test = row.row.run.classes, row.row.run.positive, row.test_logits
        self.image_id, self.label = test.image_id, test.label
        logits = test.of(kind)[row.row.best]
        self.probability = probabilities(logits)
        self.threshold: float | None = None
        if len(self.classes) == 2:
            points = row.row.choices[kind].operating_points
            ruled = shown.rule is not None and shown.rule in points
            self.threshold = points[shown.rule][row.row.best].threshold if ruled and shown.rule else 0.5
        self.margin = margins(logits, self.label, self.positive, 0.5 if self.threshold is None else self.threshold)
        self.unmapped: dict[str, str] = {}

    def card(self, place: int, evidence: RowEvidence, films: Thumbnails) -> PictureCard | None:
        """One film of test; None where it cannot be shown."""
        image_id, label = self.image_id[place], self.classes[self.label[place]]
        alt = _alt(image_id, label)
        thumbnail = films.of(image_id, alt)
        if thumbnail is None:
            return None
        probability = self.probability[place]
        if self.threshold is None:
            decided = of_class = int(probability.argmax())
        else:
            of_class = self.positive
            decided = of_class if probability[of_class] >= self.threshold else 1 - of_class
        overlay: Overlay | None = None
        try:
            overlay = evidence.overlay(image_id, films, of_class, alt)
        except UnreadableImageError as error:
            self.unmapped[image_id] = str(error)
        said = float(probability[of_class])
        return PictureCard(
            image_id=image_id,
            label=label,
            decision=self.classes[decided],
            of_class=self.classes[of_class],
            probability=said,
            thumbnail=thumbnail,
            overlay=overlay,
            apart=overlay is not None and abs(overlay.probability - said) >= APART,
        )


def _known_cases(
    image_ids: Sequence[str], row: ReportRow, store: FeatureStore, films: Thumbnails
) -> Iterator[KnownCase]:
    """The train films nearest to some films of test, by the split that the row's heads were fitted with."""
    if not image_ids:
        return
    table = store.image_table
    place = {name: number for number, name in enumerate(table.image_id.tolist())}
    named = [
        NamedImage(name=name, sha256=str(table.sha256[place[name]]), row=place[name], data=None) for name in image_ids
    ]
    use = use_of(table, row.row.run.split_rule, row.row.run.split_seed)
    features = store.features(list(image_ids))
    for found in neighbours(named, features, store, np.flatnonzero(use == "train"), use, k=NEAREST):
        shown = [(one, films.of(one.image_id, _alt(one.image_id, one.label))) for one in found.neighbours]
        yield KnownCase(
            image_id=found.image,
            nearest=tuple(
                NearFilm(
                    image_id=one.image_id,
                    label=one.label,
                    distance=one.distance,
                    same_patient=one.same_patient,
                    thumbnail=thumbnail,
                )
                for one, thumbnail in shown
                if thumbnail is not None
            ),
        )


def _audit(store: FeatureStore) -> tuple[Sequence[FilmPair], Sequence[LabelCandidate], list[str]]:
    """Near-duplicates and doubtful labels of all folders, and what of it could not be done."""
    table = store.image_table
    if len(table) > MOST_AUDITED:
        return (), (), [f"{len(table)} films are too many to compare with one another here: 'cxr data audit' does it."]
    features: NDArray[np.float32] = store.features(table.image_id.tolist())
    pairs = near_duplicates(table, features).pairs
    try:
        return pairs, label_candidates(table, features), []
    except DataError as error:
        return pairs, (), [f"Labels were not audited: {error}."]


def _found(image_id: str, label: str, split: str, patient_id: str, films: Thumbnails) -> FoundFilm | None:
    thumbnail = films.of(image_id, _alt(image_id, label))
    if thumbnail is None:
        return None
    return FoundFilm(image_id=image_id, label=label, split=split, patient_id=patient_id, thumbnail=thumbnail)


def _pair(pair: FilmPair, films: Thumbnails) -> DuplicatePair | None:
    one, other = (
        _found(*film, films) for film in zip(pair.image_id, pair.label, pair.split, pair.patient_id, strict=True)
    )
    if one is None or other is None:
        return None
    return DuplicatePair(
        films=(one, other), distance=pair.distance, relative_distance=pair.relative_distance, remark=pair.remark
    )


def _doubted(one: LabelCandidate, films: Thumbnails) -> DoubtedLabel | None:
    film = _found(one.image_id, one.label, one.split, one.patient_id, films)
    return None if film is None else DoubtedLabel(film=film, rather=one.rather, self_confidence=one.self_confidence)


def _alt(image_id: str, label: str) -> str:
    return f"Radiograph {image_id}, labelled {label}"
