"""A sheet of small pictures with captions, to look at what a list names."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from featcache.decode import UnreadableImageError
from featcache.thumbnails import thumbnail

SIDE, CAPTION, MARGIN, COLUMNS = 240, 34, 8, 6
"""Pixels of a picture, of the text above it and between two; pictures a row."""

MAX_PICTURES = 120
"""A sheet of more could not be looked at, nor need it be bounded otherwise."""


def contact_sheet(root: Path, image_ids: Sequence[str], captions: Sequence[str]) -> bytes:
    """Draw images in rows of six, each below its caption of up to two lines: a PNG, at most some 5 MB.

    Args:
        root: the folder that the ids are relative to.
        image_ids: up to 120; an image that cannot be read is a frame with the reason in it.
        captions: a text each; what does not fit is cut.
    """
    if not 0 < len(image_ids) <= MAX_PICTURES or len(captions) != len(image_ids):
        raise ValueError(f"wanted 1 to {MAX_PICTURES} images, a caption each: got {len(image_ids)} and {len(captions)}")
    font = ImageFont.load_default(11)
    columns, lines = min(COLUMNS, len(image_ids)), -(-len(image_ids) // COLUMNS)
    sheet = Image.new("RGB", (columns * (SIDE + MARGIN), lines * (SIDE + CAPTION + MARGIN)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (image_id, caption) in enumerate(zip(image_ids, captions, strict=True)):
        left, top = number % COLUMNS * (SIDE + MARGIN), number // COLUMNS * (SIDE + CAPTION + MARGIN)
        for place, text in enumerate(caption.splitlines()[:2]):
            pen.text((left + 2, top + 2 + 15 * place), _fitted(text, font), fill="black", font=font)
        try:
            with Image.open(io.BytesIO(thumbnail(root, image_id, SIDE)), formats=["JPEG"]) as picture:
                sheet.paste(picture.convert("RGB"), (left, top + CAPTION))
        except UnreadableImageError as error:
            pen.rectangle((left, top + CAPTION, left + SIDE - 1, top + CAPTION + SIDE - 1), outline="grey")
            pen.text((left + 4, top + CAPTION + 4), _fitted(str(error), font), fill="black", font=font)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The end of a text that is too wide: file names differ there."""
    cut = text
    while font.getlength(cut) > SIDE - 4:
        cut = f"…{cut.lstrip('…')[1:]}"
    return cut
