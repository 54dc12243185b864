"""The films that a page shows: what the selected row gets wrong or is unsure of, films like these, and odd findings.

What is wrong is taken from the finished report's logits of test, and chooses nothing. Of a film stands here what the
image table has of it (id, label, split, patient id), and its pixels.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from heads.page.row_evidence import Overlay
from heads.page.thumbnails import Picture


@dataclass(frozen=True, kw_only=True)
class PictureCard:
    """A film of test, and what the row says of it.

    Attributes:
        image_id: which.
        label: the class that it is of.
        decision: the class that the row decides for.
        of_class: the class that probability and evidence are for: of two the positive one, else the decision.
        probability: of that class.
        thumbnail: the film.
        overlay: the evidence laid over it; None where there is none.
        apart: whether the head whose evidence is shown says otherwise than the row by a hundredth or more.
    """

    image_id: str
    label: str
    decision: str
    of_class: str
    probability: float
    thumbnail: Picture
    overlay: Overlay | None
    apart: bool


@dataclass(frozen=True, kw_only=True)
class NearFilm:
    """One of the films nearest to another; ``distance`` is the cosine distance of signed square roots, 0 to 2."""

    image_id: str
    label: str
    distance: float
    same_patient: bool
    thumbnail: Picture


@dataclass(frozen=True, kw_only=True)
class KnownCase:
    """A film of test and the train films nearest to it."""

    image_id: str
    nearest: tuple[NearFilm, ...]

    @property
    def votes(self) -> str:
        """How many there are of each class, the most first."""
        counted = Counter(film.label for film in self.nearest).most_common()
        return ", ".join(f"{count} {label}" for label, count in counted)


@dataclass(frozen=True, kw_only=True)
class FoundFilm:
    """A film that an audit lists."""

    image_id: str
    label: str
    split: str
    patient_id: str
    thumbnail: Picture


@dataclass(frozen=True, kw_only=True)
class DuplicatePair:
    """Two films that are nearly the same; see ``heads.known_cases.near_duplicates.FilmPair``."""

    films: tuple[FoundFilm, FoundFilm]
    distance: float
    relative_distance: float
    remark: str


@dataclass(frozen=True, kw_only=True)
class DoubtedLabel:
    """A film whose label others contradict; see ``heads.known_cases.label_errors.LabelCandidate``."""

    film: FoundFilm
    rather: str
    self_confidence: float


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What the section shows.

    Attributes:
        row: whose decisions these are.
        split: on which val chose the row, where others chose others on theirs; else empty.
        threshold: at which it decides, of two classes.
        images: of test.
        wrong: how many of them it decides wrongly.
        evidence: whose evidence is shown, or why none is.
        near_by: the backbone by whose features films are near.
        worst: the most confidently wrong.
        least_sure: those nearest to being decided otherwise.
        known_cases: each of these with the nearest train films.
        duplicates: films that are nearly the same across splits or patients.
        duplicates_found: how many pairs the audit lists.
        label_errors: labels that films of other patients contradict.
        label_errors_found: how many the audit lists.
        notes: what could not be shown, and why.
    """

    row: str
    split: str
    threshold: float | None
    images: int
    wrong: int
    evidence: str
    near_by: str
    worst: tuple[PictureCard, ...]
    least_sure: tuple[PictureCard, ...]
    known_cases: tuple[KnownCase, ...]
    duplicates: tuple[DuplicatePair, ...]
    duplicates_found: int
    label_errors: tuple[DoubtedLabel, ...]
    label_errors_found: int
    notes: tuple[str, ...]

    def known(self, image_id: str) -> KnownCase | None:
        """The train films nearest to one that is shown."""
        return next((case for case in self.known_cases if case.image_id == image_id), None)
