"""Why a head says so: a film's class activation map, as a picture and as numbers.

``contributions`` takes the logit apart, ``overlays`` draws it; here films are read one after the other, and for each
a picture and a file of numbers are written.
"""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featcache import atomic
from featcache.check import Quarantined
from featcache.errors import DataError, UnreadableImageError
from featcache.maps import FilmMap, FilmMapper
from heads.evidence.contributions import Contributions, contributions
from heads.evidence.overlays import overlay_png
from heads.experiments.saved_heads import SavedHead
from heads.statistics.metrics import probabilities
from heads.training.model import logits

LONGEST_NAME = 40
"""Letters of a file's name that are kept: of four bytes each, they and what is added fit what file systems take."""


@dataclass(frozen=True, kw_only=True)
class ExplainedFilm:
    """What came of one film.

    Attributes:
        image: as it was named.
        png: the picture.
        npz: the numbers; see ``explain_films``.
        evidence: logit of the explained class less the mean of the others'.
        constant: the part of it that belongs to no place.
        probability: by class.
        decision: the class of the highest probability.
        peak: row and column of the middle of the cell that adds most, in the film's pixels.
    """

    image: str
    png: Path
    npz: Path
    evidence: float
    constant: float
    probability: dict[str, float]
    decision: str
    peak: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Explained:
    """All films of one call.

    Attributes:
        head: the head that was asked.
        of_class: the class whose evidence is shown.
        films: those that could be read, in the order asked for.
        unreadable: the others, with the reason.
    """

    head: SavedHead
    of_class: str
    films: tuple[ExplainedFilm, ...]
    unreadable: tuple[Quarantined, ...]

    def to_json(self) -> dict[str, Any]:
        """What ``cxr explain --json`` prints."""
        record = self.head.record
        head = {"run": self.head.run.run_id, "head": self.head.number, "name": self.head.name}
        head |= {"backbone": record.backbone, "fingerprint": record.fingerprint, "class": self.of_class}
        rest = {"images": list(map(asdict, self.films)), "unreadable": list(map(asdict, self.unreadable))}
        return {**head, **rest}

    def in_words(self) -> list[str]:
        """The same, a line a film."""
        lines = [
            f"{film.image}: {100 * film.probability[self.of_class]:.1f} % {self.of_class}, decision {film.decision}, "
            f"in {film.png}"
            for film in self.films
        ]
        return [*lines, f"evidence for {self.of_class} by {self.head.name} (run {self.head.run.run_id})"]


def explain_films(
    paths: Sequence[Path],
    head: SavedHead,
    mapper: FilmMapper,
    of_class: int,
    folder: Path,
    *,
    root: Path | None = None,
    on_film: Callable[[int, int], None] = lambda *_: None,
) -> Explained:
    """Explain a head's word on each of some films; a film that cannot be read is listed and the others go on.

    Each gives ``<name>.png`` and ``<name>.npz`` in ``folder``; of two films of one name the second has ``-2`` added.
    The npz holds ``map`` [h, w] float32 (what each cell adds to the evidence, in logits), ``constant``, ``evidence``
    (their sum), ``logits`` [K], ``probability`` [K], ``classes`` [K], ``explained_class``, ``film`` (height, width) and
    ``window`` (top, left, height, width of what the map covers, in the film's pixels).

    Args:
        paths: image files.
        head: the head.
        mapper: of the store that the head was fitted on.
        of_class: index of the class whose evidence is shown.
        folder: where the files go; it is made.
        root: where a file is looked for that is not there: names may be those of the image table.
        on_film: told films done and in all.

    Raises:
        DataError: none could be read.
        WriteError: the folder cannot be written.
    """
    films: list[ExplainedFilm] = []
    unreadable: list[Quarantined] = []
    taken: set[str] = set()
    for number, path in enumerate(paths):
        beside = root is not None and not path.exists() and (root / path).exists()
        try:
            film = mapper.film(root / path if root is not None and beside else path)
        except UnreadableImageError as error:
            unreadable.append(Quarantined(image_id=str(path), reason=str(error)))
        else:
            films.append(_explained(film, str(path), head, of_class, folder / _free_name(path, taken)))
        on_film(number + 1, len(paths))
    if not films:
        what = f"{unreadable[0].image_id}: {unreadable[0].reason}" if unreadable else "no image was named"
        raise DataError(f"none of {len(paths)} images could be read ({what})")
    shown = head.run.classes[of_class]
    return Explained(head=head, of_class=shown, films=tuple(films), unreadable=tuple(unreadable))


def _explained(film: FilmMap, image: str, head: SavedHead, of_class: int, stem: Path) -> ExplainedFilm:
    classes = head.run.classes
    parts = contributions(head.weights, film.last_map, of_class)
    logit = logits(head.weights, film.feature[None])[0]
    probability = probabilities(logit)
    decision, shown = classes[int(probability.argmax())], classes[of_class]
    png, npz = (stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "npz"))
    sure = 100 * probability[of_class]
    against = "log-odds" if len(classes) == 2 else "logit less the others' mean"
    unit = f"{against} of a film that were like this place; their mean is {parts.evidence:+.2f}"
    lines = [
        f"{Path(image).name[-60:]}: {shown} {sure:.1f} %, decision {decision}",
        f"{head.name}, run {head.run.run_id}",
    ]
    picture = overlay_png(film.pixels, parts.local_evidence, film.window, of_class=shown, unit=unit, lines=lines)
    atomic.write_bytes(png, picture)
    atomic.write_bytes(npz, _npz(film, parts, logit, classes, of_class))
    return ExplainedFilm(
        image=image,
        png=png,
        npz=npz,
        evidence=parts.evidence,
        constant=parts.constant,
        probability=dict(zip(classes, probability.tolist(), strict=True)),
        decision=decision,
        peak=peak_of(parts, film),
    )


def peak_of(parts: Contributions, film: FilmMap) -> tuple[float, float]:
    """Row and column of the middle of the cell that adds most, in the film's pixels, the first pixel's middle at 0."""
    (row, column), (h, w), window = parts.peak, parts.cells.shape, film.window
    down, across = (row + 0.5) / h, (column + 0.5) / w
    return window.top + down * window.height - 0.5, window.left + across * window.width - 0.5


def _free_name(path: Path, taken: set[str]) -> str:
    """A name for a film's files that no other film of the call has, and that leads nowhere else."""
    plain = re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFC", path.stem)).strip(".-")[:LONGEST_NAME] or "film"
    name, number = plain, 1
    # Some file systems take capitals and small letters for the same.
    while name.casefold() in taken:
        number += 1
        name = f"{plain}-{number}"
    taken.add(name.casefold())
    return name


def _npz(
    film: FilmMap, parts: Contributions, logit: np.ndarray[Any, Any], classes: Sequence[str], of_class: int
) -> bytes:
    window, buffer = film.window, io.BytesIO()
    np.savez(
        buffer,
        map=parts.cells.astype(np.float32),
        constant=np.float64(parts.constant),
        evidence=np.float64(parts.evidence),
        logits=logit,
        probability=probabilities(logit),
        classes=np.array(classes, np.str_),
        explained_class=np.array(classes[of_class], np.str_),
        film=np.array(film.pixels.shape[:2], np.int64),
        window=np.array([window.top, window.left, window.height, window.width], np.float64),
    )
    return buffer.getvalue()
