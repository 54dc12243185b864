"""A film and the evidence on it as two pictures of one shape, for a page that lays one over the other."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from heads.evidence.overlays import colours
from heads.prediction.saliency import Saliency

FILM_SIDE, OVERLAY_SIDE = 1024, 384
"""Pixels of the longer side: what a screen shows of a film, and more than enough for a map of few cells."""

QUALITY = 88
"""Of the JPEG: no artefact that could be taken for a finding."""


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """A film and what is laid over it.

    Attributes:
        film: JPEG.
        overlay: PNG with transparency, of the same shape in fewer pixels.
        width: of the film.
        height: of the film.
        evidence: log-odds of the positive class.
        strongest: log-odds at the strongest colour.
    """

    film: bytes
    overlay: bytes
    width: int
    height: int
    evidence: float
    strongest: float

    def as_fields(self) -> dict[str, Any]:
        """The fields of the answer."""
        return {
            "film": data_uri("image/jpeg", self.film),
            "overlay": data_uri("image/png", self.overlay),
            "width": self.width,
            "height": self.height,
            "evidence": self.evidence,
            "strongest": self.strongest,
        }


def draw(of: Saliency) -> Explanation:
    """Draw the film, and the evidence in the colours of ``cxr explain``."""
    shown = Image.fromarray(of.pixels)
    shown.thumbnail((FILM_SIDE, FILM_SIDE), Image.Resampling.LANCZOS)
    scale = min(1.0, OVERLAY_SIDE / max(shown.size))
    width, height = (max(1, round(side * scale)) for side in shown.size)
    local = of.over(height, width)
    strongest = float(np.nanmax(np.abs(local))) or 1.0
    # From AGAINST at -1 to FOR at 1; what no network saw stays clear.
    painted = (colours()(np.nan_to_num((local / strongest + 1) / 2, nan=0.5)) * 255).round().astype(np.uint8)
    painted[np.isnan(local)] = 0
    return Explanation(
        film=_saved(shown, "JPEG", quality=QUALITY),
        overlay=_saved(Image.fromarray(painted, "RGBA"), "PNG"),
        width=shown.width,
        height=shown.height,
        evidence=of.evidence,
        strongest=strongest,
    )


def data_uri(kind: str, data: bytes) -> str:
    """Bytes as an address that carries them."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _saved(picture: Image.Image, form: str, **options: Any) -> bytes:  # noqa: ANN401 - what Pillow's writers take
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()
