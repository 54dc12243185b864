from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featcache.decode import UnreadableImageError
from featcache.thumbnails import thumbnail


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=["JPEG"])


def test_a_thumbnail_is_the_image_made_small_and_keeps_its_shape(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 255, 2000).astype(np.uint8), (1000, 1))
    Image.fromarray(ramp).save(tmp_path / "ramp.jpeg")
    small = opened(thumbnail(tmp_path, "ramp.jpeg", 100))
    assert (small.size, small.mode) == ((100, 50), "L")
    expected = np.asarray(Image.fromarray(ramp).resize((100, 50), Image.Resampling.LANCZOS), np.int64)
    assert np.abs(np.asarray(small, np.int64) - expected).max() <= 4


def test_a_small_image_is_not_enlarged_and_colour_stays(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), (200, 30, 30)).save(tmp_path / "red.png")
    small = opened(thumbnail(tmp_path, "red.png", 160))
    assert (small.size, small.mode) == ((40, 30), "RGB")


def test_nothing_that_the_file_says_beside_its_pixels_comes_along(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "Jane Doe"
    Image.new("L", (300, 300)).save(tmp_path / "named.jpeg", exif=exif, comment=b"Jane Doe")
    assert b"Jane Doe" in (tmp_path / "named.jpeg").read_bytes()
    data = thumbnail(tmp_path, "named.jpeg")
    assert b"Jane Doe" not in data
    assert not opened(data).getexif()


@pytest.mark.parametrize("side", [16, 160, 320])
def test_even_noise_keeps_to_the_bound(tmp_path: Path, side: int) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (640, 640, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    assert len(thumbnail(tmp_path, "noise.png", side)) <= 3 * side**2 + 4096


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.jpeg").write_text("no image")
    for name, reason in (("text.jpeg", "not a JPEG"), ("absent.jpeg", "no such file")):
        with pytest.raises(UnreadableImageError, match=f"^{name}: {reason}"):
            thumbnail(tmp_path, name)
