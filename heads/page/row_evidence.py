"""Whose evidence is laid over a row's films: its own head's, or a member's that is said to be one; or nobody's.

A row's evidence is exact where one head on one backbone judges each film alone. A mean of several heads has no map of
its own, so its best member speaks, by what val says; a head on joined features, or one that hangs on the other films
(transductive), has none, and its films are shown plain.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.errors import BackboneError, StoreError
from featcache.joined import JOINT, part_names
from featcache.settings import Settings
from featcache.store import FeatureStore, open_store, store_folders
from heads.choosing.selection import select
from heads.experiments.saved_heads import SavedHead, load_weights
from heads.page.thumbnails import PICTURE_SIDE, Picture, Thumbnails, picture
from heads.reporting.report import Report, ReportRow
from heads.statistics.metrics import probabilities

if TYPE_CHECKING:
    from featcache.maps import FilmMapper


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """The evidence for a class laid over a film.

    Attributes:
        picture: film and evidence.
        evidence: the class's logit less the mean of the others': of two classes the log-odds; of the clean view.
        probability: of the class, by the head whose evidence it is.
    """

    picture: Picture
    evidence: float
    probability: float


@dataclass(frozen=True, kw_only=True, eq=False)
class RowEvidence:
    """What is known of the films beside a row's logits.

    Attributes:
        store: whose features tell the nearest films.
        head: the head whose evidence is shown; None where there is none.
        mapper: makes its maps; None as well.
        said: whose evidence it is and what of, or why there is none; a sentence.
    """

    store: FeatureStore
    head: SavedHead | None
    mapper: FilmMapper | None
    said: str

    def overlay(self, image_id: str, films: Thumbnails, of_class: int, alt: str) -> Overlay | None:
        """The evidence for a class over a film; None where there is none to show.

        Raises:
            UnreadableImageError: the film cannot be read, or is another one than was judged.
        """
        if self.head is None or self.mapper is None:
            return None
        # Here, so that plain pictures need neither torch nor matplotlib.
        from heads.evidence.contributions import contributions
        from heads.evidence.explain import peak_of
        from heads.evidence.overlays import overlay_thumbnail
        from heads.training.model import logits

        film = self.mapper.film(films.root / image_id)
        films.require(image_id, film.sha256)
        parts = contributions(self.head.weights, film.last_map, of_class)
        name = self.head.run.classes[of_class]
        place = _in_words(peak_of(parts, film), (film.pixels.shape[0], film.pixels.shape[1]))
        jpeg = overlay_thumbnail(film.pixels, parts.local_evidence, film.window, PICTURE_SIDE)
        return Overlay(
            picture=picture(jpeg, f"{alt}, with the evidence for {name} laid over it: most of it {place}"),
            evidence=parts.evidence,
            probability=float(probabilities(logits(self.head.weights, film.feature[None]))[0, of_class]),
        )


def row_evidence(
    report: Report, row: ReportRow, dataset: Path, settings: Settings, weights: str | None = None
) -> RowEvidence:
    """Find out whose evidence can be shown, and load its network.

    Args:
        report: finished.
        row: whose films are shown.
        dataset: ``cache/<dataset>``.
        settings: say what computes, and which weights where none are given.
        weights: the store's, where they were a file.

    Raises:
        StoreError: the features that the row stands on are not there any more.
        BackboneError: ``weights`` are not the store's.
        RunError: the head's weights are damaged.
    """
    trained = report.trained(row)
    alone = [one for one in trained if not one.row.transductive and JOINT not in one.row.records[0].fingerprint]
    if not alone:
        record = trained[0].row.records[0]
        joined = JOINT in record.fingerprint
        why = "stands on the joined features of several backbones" if joined else "hangs on all films of its split"
        store = _store(dataset, *part_names(record.backbone, record.fingerprint)[0])
        return RowEvidence(store=store, head=None, mapper=None, said=f"{row.name} {why}: its films are shown plain.")
    best = alone[select([one.row.candidate for one in alone], report.decision.rule)]
    head = _saved_head(best)
    store = _store(dataset, head.record.backbone, head.record.fingerprint)
    said = f"The evidence is that of {head.name}, for the clean view."
    if row.row.ensemble is not None:
        said = (
            f"A mean of several heads has no map of its own: the evidence is that of one member, {head.name}, for the "
            "clean view; where the mean says something else, the two are told apart."
        )
    try:
        from featcache.maps import FilmMapper
        from featcache.reproduction import backbone_of
        from featcache.workspace import compute_of

        mapper = FilmMapper(store, backbone_of(store, settings, weights), compute_of(settings))
    except BackboneError as error:
        if weights is not None:
            raise
        return RowEvidence(store=store, head=None, mapper=None, said=f"The films are shown without evidence: {error}.")
    return RowEvidence(store=store, head=head, mapper=mapper, said=said)


def _saved_head(row: ReportRow) -> SavedHead:
    member, run = row.row.members[0], row.row.run
    number = member.heads[row.row.best]
    seed = f", seed {run.heads[number].config.seed}" if row.row.seeds > 1 else ""
    weights = load_weights(member.folder, number)
    return SavedHead(name=f"{row.name}{seed}", folder=member.folder, run=run, number=number, weights=weights)


def _store(dataset: Path, backbone: str, fingerprint: str) -> FeatureStore:
    for folder in store_folders(dataset):
        if folder.name.endswith(fingerprint[:12]):
            store = open_store(folder)
            if store.fingerprint == fingerprint:
                return store
    raise StoreError(
        f"the features of {backbone} (spec {fingerprint[:12]}) are not in {dataset}: leave out --pictures, or run 'cxr "
        "extract' and 'cxr fit-head' again"
    )


def _in_words(place: tuple[float, float], film: tuple[int, int]) -> str:
    """Row and column on a film as ``upper left``, ``middle``, ``lower right`` of the picture."""
    down, across = (min(max(int(3 * (at + 0.5) / length), 0), 2) for at, length in zip(place, film, strict=True))
    words = (("upper", "", "lower")[down], ("left", "", "right")[across])
    return f"in the {' '.join(filter(None, words)) or 'middle'} of the picture"
