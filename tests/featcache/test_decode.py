from __future__ import annotations

import io
import random
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from featcache.decode import (
    MAX_PIXELS,
    ImageHeader,
    UnreadableImageError,
    decode,
    decode_for,
    oversize_is_an_error,
    read_header,
)
from featcache.phantom import phantom
from featcache.views import Geometry, render

GREY = phantom(3, size=96, lesion=True)[0]
"""A film, [96, 96] uint8."""


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def colours(height: int = 30, width: int = 50) -> NDArray[np.uint8]:
    """Pixels [H, W, 3] of a smooth gradient that differs in every channel and has no symmetry."""
    row, column = np.mgrid[:height, :width]
    return np.stack([4 * row, 4 * column, 2 * (row + column)], axis=-1).astype(np.uint8)


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")
    )


def with_exif(block: bytes, image: Image.Image | None = None) -> bytes:
    return encoded(image or Image.fromarray(GREY), "JPEG", exif=b"Exif\0\0" + block)


def why_not(data: bytes) -> str:
    with pytest.raises(UnreadableImageError) as caught:
        decode(data)
    return str(caught.value)


# --- what cannot be read


def test_a_zero_byte_file_is_called_empty() -> None:
    assert why_not(b"") == "empty file"


@pytest.mark.parametrize(
    "data",
    [
        b"hello",
        b"%PDF-1.7 a report",
        b"\xff\xd8\xff",
        b"DICM" * 20,
        encoded(Image.fromarray(GREY), "GIF"),
        encoded(Image.fromarray(GREY), "TIFF"),
        encoded(Image.fromarray(GREY), "BMP"),
    ],
)
def test_a_file_that_is_no_jpeg_or_png_is_refused_whatever_else_it_is(data: bytes) -> None:
    assert why_not(data) == "not a JPEG, PNG or DICOM image"


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
def test_a_truncated_image_is_refused_though_its_header_is_whole(kind: str, kept: float) -> None:
    data = encoded(Image.fromarray(GREY), kind)
    cut = data[: int(kept * len(data))]
    assert read_header(cut) == read_header(data)
    assert why_not(cut).startswith("damaged or truncated: ")


def test_a_decompression_bomb_is_refused_before_a_pixel_is_decoded() -> None:
    assert why_not(png_claiming(60_000, 60_000)) == "more than 89,478,485 pixels"


def test_an_oversized_image_is_refused_even_where_pillow_only_warns() -> None:
    just_too_large = png_claiming(10_000, 9_000)
    assert 10_000 * 9_000 > MAX_PIXELS > 10_000 * 8_900
    with oversize_is_an_error():
        assert why_not(just_too_large) == "more than 89,478,485 pixels"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        assert why_not(just_too_large) == "10000×9000 is more than 89,478,485 pixels"


def test_any_bytes_give_pixels_or_a_reason_and_nothing_else() -> None:
    """Random damage to files with metadata: no other exception, and no warning, escapes."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x8769] = 6, "hello", {0x9003: "2020"}
    rng = random.Random(0)  # noqa: S311 - no secret is made here
    readable = 0
    with oversize_is_an_error():
        for kind in ("JPEG", "PNG"):
            whole = encoded(Image.fromarray(GREY[:40, :60]), kind, exif=exif)
            for _ in range(700):
                data = bytearray(whole)
                for _ in range(rng.choice((1, 1, 2, 8))):
                    data[rng.randrange(min(len(data), 300))] = rng.randrange(256)
                try:
                    read_header(bytes(data))
                    assert decode(bytes(data), 10).dtype == np.uint8
                except UnreadableImageError as error:
                    assert str(error)  # noqa: PT017 - the claim is that it has a reason
                else:
                    readable += 1
    assert readable > 100


# --- what pixels come out


def test_a_grey_image_is_one_channel_and_so_is_a_grey_one_of_three() -> None:
    assert np.array_equal(decode(encoded(Image.fromarray(GREY), "PNG")), GREY)
    tripled = decode(encoded(Image.fromarray(np.stack([GREY] * 3, axis=-1)), "PNG"))
    assert np.array_equal(tripled, GREY)
    assert tripled.flags.c_contiguous
    jpeg = encoded(Image.fromarray(np.stack([GREY] * 3, axis=-1)), "JPEG", quality=90)
    assert decode(jpeg).shape == GREY.shape


def test_one_coloured_pixel_makes_three_channels() -> None:
    pixels = np.stack([GREY] * 3, axis=-1)
    pixels[-1, -1, 2] ^= 1
    assert np.array_equal(decode(encoded(Image.fromarray(pixels), "PNG")), pixels)


def test_sixteen_bits_are_scaled_from_their_full_range() -> None:
    wide = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    data = encoded(Image.fromarray(wide), "PNG")
    assert read_header(data).mode == "I;16"
    pixels = decode(data)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, wide // 257)
    assert (pixels.min(), pixels.max()) == (0, 255)


def test_a_black_and_white_image_becomes_grey() -> None:
    pixels = decode(encoded(Image.fromarray(GREY > 128), "PNG"))
    assert np.array_equal(pixels, np.where(GREY > 128, 255, 0))


def test_a_cmyk_jpeg_becomes_the_colours_it_shows() -> None:
    image = Image.fromarray(colours()).convert("CMYK")
    data = encoded(image, "JPEG", quality=100, subsampling=0)
    assert read_header(data).mode == "CMYK"
    pixels = decode(data)
    assert pixels.shape == (30, 50, 3)
    assert np.abs(pixels.astype(int) - np.asarray(image.convert("RGB"))).mean() < 2


@pytest.mark.parametrize("transparency", [None, 0, bytes(range(0, 200, 2))])
def test_a_palette_becomes_the_colours_it_names(transparency: int | bytes | None) -> None:
    image = Image.fromarray(colours()).quantize(64)
    options = {} if transparency is None else {"transparency": transparency}
    data = encoded(image, "PNG", **options)
    assert read_header(data).mode == "P"
    assert np.array_equal(decode(data), np.asarray(image.convert("RGB")))


def test_a_grey_palette_is_one_channel() -> None:
    image = Image.fromarray(GREY).convert("P")
    assert np.array_equal(decode(encoded(image, "PNG")), GREY)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_dropped_and_colours_stay(mode: str) -> None:
    image = Image.fromarray(colours()).convert(mode)
    image.putalpha(100)
    data = encoded(image, "PNG")
    assert read_header(data).mode == mode
    wanted = colours() if mode == "RGBA" else np.asarray(Image.fromarray(colours()).convert("L"))
    assert np.array_equal(decode(data), wanted)


# --- orientation


UPRIGHT = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}
"""EXIF 2.32, tag 0x0112: 6 says that the stored image's left edge is the top of the scene, and so on."""


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_image_rotated_by_exif_comes_out_upright(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(colours())
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    data = encoded(image, kind, exif=exif, **options)
    stored = decode(encoded(image, kind, **options))
    assert np.array_equal(decode(data), UPRIGHT[orientation](stored))
    assert read_header(data) == ImageHeader(width=50, height=30, mode="RGB", rotated=orientation != 1)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_means_nothing_is_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(GREY), "PNG", exif=exif)
    assert np.array_equal(decode(data), GREY)
    assert not read_header(data).rotated


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"MM",
        b"no TIFF header at all",
        b"MM\0*\0\0\0\x08",
        b"MM\0*\0\0\0\x08\0\xff",
        b"MM\0*\xff\xff\xff\xff",
        b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01",
        b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04abc\0\0\0\0\0",
        b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\xff\xff\xff\0\0\0\0\0\0\0\0",
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x05\0\x01\0\0\0\xf0\0\0\0\0\0\0\0",
    ],
)
def test_damaged_exif_says_nothing_about_the_pixels(block: bytes) -> None:
    with oversize_is_an_error():
        assert np.array_equal(decode(with_exif(block)), decode(encoded(Image.fromarray(GREY), "JPEG")))
        assert read_header(with_exif(block)) == ImageHeader(width=96, height=96, mode="L", rotated=False)


# --- shrinking while decoding


def large(height: int, width: int) -> Image.Image:
    """A film with detail at every scale, enlarged without new noise."""
    return Image.fromarray(phantom(5, size=256, lesion=True)[0]).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("height", "width", "floor", "shrunk"),
    [
        (1024, 1400, 512, 2),
        (1023, 1400, 512, 1),
        (1400, 1024, 512, 2),
        (2100, 2300, 512, 4),
        (1600, 1700, 200, 8),
        (512, 700, 512, 1),
        (300, 400, 512, 1),
        # Where floor / side · side falls just below the floor in binary fractions.
        (154, 400, 78, 1),
        (784, 1000, 99, 4),
    ],
)
def test_a_jpeg_is_shrunk_as_far_as_its_shorter_side_stays_at_the_floor(
    height: int, width: int, floor: int, shrunk: int
) -> None:
    data = encoded(large(height, width), "JPEG", quality=92)
    assert decode(data, floor).shape == (-(-height // shrunk), -(-width // shrunk))
    assert decode(data).shape == (height, width)


def test_the_shrunk_decode_is_near_the_full_one() -> None:
    data = encoded(large(1100, 1300), "JPEG", quality=92)
    full = Image.fromarray(decode(data)).resize((650, 550), Image.Resampling.BOX)
    difference = np.asarray(full, float) - decode(data, 512)
    assert np.abs(difference).mean() < 0.5
    assert np.abs(difference).max() < 12


def test_a_rotated_jpeg_is_shrunk_and_then_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = large(1100, 1300)
    turned = decode(encoded(image, "JPEG", quality=92, exif=exif), 512)
    assert np.array_equal(turned, np.rot90(decode(encoded(image, "JPEG", quality=92), 512), -1))


def test_a_png_is_never_shrunk() -> None:
    assert decode(encoded(large(600, 640), "PNG"), 100).shape == (600, 640)


# --- what the network sees of a shrunk film


def test_a_plain_jpeg_has_the_bytes_that_pillow_gives() -> None:
    for image in (large(300, 401), Image.fromarray(colours(301, 400))):
        data = encoded(image, "JPEG", quality=92)
        assert np.array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data))))


def test_a_shrunk_film_ends_within_its_last_pixel() -> None:
    film = decode_for(encoded(large(1101, 1303), "JPEG", quality=92), [512])[512]
    assert film.pixels.shape == (551, 652)
    assert (film.height, film.width) == (550.5, 651.5)


def test_floors_that_come_to_the_same_size_share_one_decode() -> None:
    films = decode_for(encoded(large(1101, 1303), "JPEG", quality=92), [300, 512, 520, 1024, None])
    assert films[512] is films[520]
    assert films[1024] is films[None]
    assert films[300].pixels.shape == (413, 489)


def test_a_shrunk_film_looks_like_the_whole_one_where_its_true_extent_is_known() -> None:
    data = encoded(large(1101, 1303), "JPEG", quality=92)
    geometry = Geometry(image_size=224, resize_side=256, interpolation="bicubic")
    whole = render(decode(data), "0" * 64, [0], geometry).numpy().astype(float)
    film = decode_for(data, [512])[512]
    off = {
        extent: np.abs(render(film.pixels, "0" * 64, [0], geometry, extent).numpy() - whole).mean()
        for extent in ((film.height, film.width), (551.0, 652.0))
    }
    assert off[550.5, 651.5] < 0.6 * off[551.0, 652.0]
