"""Which places of a film speak for the positive class and which against, for a whole model: exact, as for one head.

The evidence of one head is a sum over the cells of the map (``heads.evidence.contributions``). The logits of an
ensemble are means of its members' divided by their scales, and a head on joined features takes each feature from its
own map: both are linear, so the model's evidence is the sum over the cells of all its sources' maps, and one constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featcache.backbones import Backbone
from featcache.decode import Pixels
from featcache.maps import FilmMap, FilmMapper
from featcache.runtime import Compute
from featcache.views import Window
from heads.evidence.contributions import linear_part
from heads.evidence.overlays import laid_over
from heads.prediction.model import Model


@dataclass(frozen=True, kw_only=True, eq=False)
class Saliency:
    """The evidence for the positive class of one film, place by place.

    Attributes:
        pixels: the whole film, upright, [H, W] or [H, W, 3] uint8.
        cells: of each source [h, w] float64, what each cell of its map adds to the evidence, in logits.
        windows: what each map covers, in the film's pixels.
        constant: what belongs to no cell.
    """

    pixels: Pixels
    cells: tuple[NDArray[np.float64], ...]
    windows: tuple[Window, ...]
    constant: float

    @property
    def evidence(self) -> float:
        """Logit of the positive class less the mean of the others': all cells and the constant."""
        return float(sum(one.sum() for one in self.cells) + self.constant)

    def over(self, height: int, width: int) -> NDArray[np.float32]:
        """[height, width]: evidence of a film that were everywhere as it is here; NaN where no network looked.

        Args:
            height: of the film as it is shown, in pixels.
            width: the same across.
        """
        down, across = height / self.pixels.shape[0], width / self.pixels.shape[1]
        total = np.full((height, width), self.constant, np.float32)
        for cells, window in zip(self.cells, self.windows, strict=True):
            shown = Window(
                top=window.top * down,
                left=window.left * across,
                height=window.height * down,
                width=window.width * across,
            )
            total += laid_over(cells * cells.size, shown, height, width)
        return total


class Explainer:
    """Makes saliency maps of films for a model; one caller at a time.

    Args:
        model: whose evidence is shown: of the clean view, whatever it averages.
        backbones: the network of each of its sources; see ``networks.backbones_of``.
        compute: device and threads.

    Raises:
        BackboneError: a network is not that of its spec, does not run here, or has no map of places.
    """

    def __init__(self, model: Model, backbones: Sequence[Backbone], compute: Compute | None = None) -> None:
        self.model = model
        self.mappers = [
            FilmMapper(source, backbone, compute) for source, backbone in zip(model.sources, backbones, strict=True)
        ]

    def explain(self, data: bytes) -> Saliency:
        """Take the model's evidence on one film apart.

        Args:
            data: the film's file.

        Raises:
            UnreadableImageError: it is no image that we read.
            BackboneError: a map is not finite.
        """
        return saliency(self.model, [mapper.film_of(data) for mapper in self.mappers])


def saliency(model: Model, films: Sequence[FilmMap]) -> Saliency:
    """The model's evidence on a film of which each source's map is given."""
    features = [film.last_map.mean((1, 2), dtype=np.float64) for film in films]
    gradients = [np.zeros_like(feature) for feature in features]
    constant = 0.0
    alone = len(model.members) == 1 and len(model.members[0].heads) == 1
    for member in model.members:
        side_by_side = np.concatenate([features[source] for source in member.sources])
        edges = np.cumsum([features[source].size for source in member.sources])[:-1]
        # As in Model.logits: a single head's logits are not scaled.
        share = 1.0 if alone else 1 / (len(model.members) * len(member.heads) * member.scale["clean"])
        for head in member.heads:
            gradient, of_none = linear_part(head, side_by_side, model.positive)
            constant += share * of_none
            for source, piece in zip(member.sources, np.split(gradient, edges), strict=True):
                gradients[source] += share * piece
    cells = [
        np.tensordot(gradient, film.last_map.astype(np.float64), 1) / film.last_map[0].size
        for gradient, film in zip(gradients, films, strict=True)
    ]
    return Saliency(
        pixels=films[0].pixels,
        cells=tuple(cells),
        windows=tuple(film.window for film in films),
        constant=constant,
    )
