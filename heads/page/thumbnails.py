"""Films as small pictures inside a page: data URIs, each checked to be of the very bytes that were judged."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from featcache.check import read_file
from featcache.errors import UnreadableImageError
from featcache.thumbnails import thumbnail_of

PICTURE_SIDE = 160
"""Pixels of a picture's longer side: a hundred and fifty of them take about a megabyte."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture that needs no file beside the page.

    Attributes:
        source: a ``data:`` URI.
        width: pixels.
        height: pixels.
        alt: what it shows, for those who do not see it.
    """

    source: str
    width: int
    height: int
    alt: str


class Thumbnails:
    """The films of a data set as pictures.

    Args:
        root: the folder that image ids are relative to.
        sha256: content hash by image id, of the films that were judged.

    Attributes:
        lost: why films that were asked for cannot be shown, by image id.
    """

    def __init__(self, root: Path, sha256: Mapping[str, str]) -> None:
        self.root = root
        self.lost: dict[str, str] = {}
        self._sha256 = sha256
        self._made: dict[str, Picture | None] = {}

    def of(self, image_id: str, alt: str) -> Picture | None:
        """A film; None where it cannot be read, or is another one than was judged."""
        if image_id not in self._made:
            try:
                data = read_file(self.root, image_id)
                self.require(image_id, hashlib.sha256(data).hexdigest())
                self._made[image_id] = picture(thumbnail_of(data, PICTURE_SIDE), alt)
            except UnreadableImageError as error:
                self.lost[image_id], self._made[image_id] = str(error), None
        made = self._made[image_id]
        return made and replace(made, alt=alt)

    def require(self, image_id: str, sha256: str) -> None:
        """Check that bytes that were read are those that were judged.

        Raises:
            UnreadableImageError: they are others.
        """
        if sha256 != self._sha256.get(image_id):
            raise UnreadableImageError("its content has changed since it was judged")


def picture(jpeg: bytes, alt: str) -> Picture:
    """A JPEG as a picture."""
    with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
        width, height = image.size
    return Picture(
        source=f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}", width=width, height=height, alt=alt
    )
