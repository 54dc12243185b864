from __future__ import annotations

import dataclasses
import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from featcache.decode import Pixels, decode
from featcache.phantom import phantom
from featcache.views import Geometry, _exposed, render

GEOMETRY = Geometry(image_size=64, resize_side=72, interpolation="bilinear")
SHA256 = hashlib.sha256(b"a film").hexdigest()


@pytest.fixture(scope="module")
def film() -> Pixels:
    """A chest that is wider than high, [160, 192]."""
    return np.array(phantom(3, size=192, lesion=True)[0][16:176])


def step(height: int = 96, width: int = 120) -> Pixels:
    """A slope with an edge: every crop, mirror and turn of it looks different."""
    row, column = np.mgrid[:height, :width]
    return np.array(row * 2 + (column > 70) * 40, np.uint8)


# --- what a view depends on ---


def test_a_view_is_the_same_whichever_views_are_asked_with_it(film: Pixels) -> None:
    every = render(film, SHA256, range(6), GEOMETRY)
    for view in range(6):
        assert torch.equal(render(film, SHA256, [view], GEOMETRY)[0], every[view])
    assert torch.equal(render(film, SHA256, [5, 0, 3], GEOMETRY), every[[5, 0, 3]])


def test_a_view_is_the_same_whatever_the_programs_random_numbers_are(film: Pixels) -> None:
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - the state that must not matter
    first = render(film, SHA256, range(4), GEOMETRY)
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002 - the same
    assert torch.equal(render(film, SHA256, range(4), GEOMETRY), first)


def test_augmented_views_follow_content_hash_number_and_seed_and_the_clean_view_none_of_them(film: Pixels) -> None:
    views = render(film, SHA256, range(8), GEOMETRY)
    other_hash = render(film, hashlib.sha256(b"another film").hexdigest(), range(8), GEOMETRY)
    other_half = render(film, SHA256[:32] + 32 * "0", range(8), GEOMETRY)
    other_seed = render(film, SHA256, range(8), dataclasses.replace(GEOMETRY, recipe_seed=1))
    for others in (other_hash, other_half, other_seed):
        assert torch.equal(others[0], views[0])
    seen = {view.numpy().tobytes() for group in (views, other_hash, other_half, other_seed) for view in group}
    assert len(seen) == 1 + 4 * 7


def test_views_of_an_image_differ_from_each_other_by_more_than_noise(film: Pixels) -> None:
    views = render(film, SHA256, range(10), GEOMETRY).float()
    apart = (views[:, None] - views[None]).abs().flatten(2).mean(2)
    assert apart[~torch.eye(10, dtype=torch.bool)].min() > 3


def test_the_recipe_standard_draws_what_it_always_drew() -> None:
    # Mean level of the four quarters of views 0 to 5. The recipe's name is in the spec and its code is not: whoever
    # changes what it draws must give it another name.
    wanted = [
        [52.3, 82.0, 137.7, 167.3],
        [116.9, 87.1, 191.5, 161.9],
        [55.0, 21.7, 171.2, 125.6],
        [56.9, 80.7, 136.8, 163.8],
        [88.2, 40.3, 209.5, 165.9],
        [30.7, 50.6, 92.7, 119.0],
    ]
    views = render(step(), "ab" * 32, range(6), GEOMETRY).float()
    quarters = views.reshape(6, 2, 32, 2, 32).mean((2, 4)).reshape(6, 4)
    np.testing.assert_allclose(quarters, wanted, rtol=0, atol=0.6)


# --- the clean view ---


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(160, 192), (192, 160), (40, 50)])
def test_the_clean_view_is_torchvisions_resize_and_centre_crop(
    film: Pixels, interpolation: str, height: int, width: int
) -> None:
    pixels = np.array(Image.fromarray(film).resize((width, height)))
    geometry = dataclasses.replace(GEOMETRY, interpolation=interpolation)
    reference = v2.Compose([v2.Resize(72, v2.InterpolationMode(interpolation)), v2.CenterCrop(64)])
    view = render(pixels, SHA256, [0], geometry)[0]
    assert torch.equal(view, reference(torch.from_numpy(pixels)[None]))
    # The weights were made with Pillow's resize; tensors are rounded another way, by a level.
    by_pillow = np.asarray(reference(Image.fromarray(pixels)))
    assert np.abs(view[0].numpy().astype(int) - by_pillow).max() <= 1


def test_the_clean_view_of_a_square_of_the_right_size_is_the_image_itself() -> None:
    pixels = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)
    view = render(pixels, SHA256, [0], dataclasses.replace(GEOMETRY, resize_side=64))
    np.testing.assert_array_equal(view[0, 0].numpy(), pixels)


# --- channels and shapes ---


def test_a_grey_image_and_its_copy_with_three_equal_channels_have_the_same_views(film: Pixels) -> None:
    views = []
    for mode in ("L", "RGB"):
        file = io.BytesIO()
        Image.fromarray(film).convert(mode).save(file, "PNG")
        views.append(render(decode(file.getvalue()), SHA256, range(5), GEOMETRY))
    assert views[0].shape == (5, 1, 64, 64)
    assert torch.equal(*views)


def test_channels_of_the_clean_view_do_not_mix(film: Pixels) -> None:
    channels = [film, film[::-1], film[:, ::-1]]
    colour = render(np.stack(channels, axis=-1), SHA256, [0], GEOMETRY)
    grey = [render(np.ascontiguousarray(channel), SHA256, [0], GEOMETRY)[0] for channel in channels]
    assert torch.equal(colour[0], torch.cat(grey))


def test_a_colour_image_keeps_three_channels_in_every_view(film: Pixels) -> None:
    colour = np.stack([film, film // 2, film // 3], axis=-1)
    views = render(colour, SHA256, range(6), GEOMETRY)
    assert views.shape == (6, 3, 64, 64)
    assert views.dtype == torch.uint8
    brightness = views.float().mean((2, 3))
    assert (brightness[:, 0] > brightness[:, 1]).all()
    assert (brightness[:, 1] > brightness[:, 2]).all()


def test_rendering_leaves_the_decoded_pixels_as_they_were(film: Pixels) -> None:
    before = film.copy()
    render(film, SHA256, range(5), GEOMETRY)
    np.testing.assert_array_equal(film, before)


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    view=st.integers(0, 5000),
    seed=st.integers(0, 2**32),
    content=st.binary(max_size=4),
)
def test_any_view_of_any_image_is_a_full_square(height: int, width: int, view: int, seed: int, content: bytes) -> None:
    geometry = Geometry(image_size=16, resize_side=18, interpolation="bicubic", recipe_seed=seed)
    sha256 = hashlib.sha256(content).hexdigest()
    views = render(step(height, width), sha256, [view], geometry)
    assert views.shape == (1, 1, 16, 16)
    assert views.dtype == torch.uint8
    assert torch.equal(views, render(step(height, width), sha256, [view], geometry))


@pytest.mark.real
def test_native_size_radiographs_have_all_their_views(real_data: Path) -> None:
    files = sorted((real_data.parent / "native_size").rglob("*.jpeg"))
    largest = max(files, key=lambda file: file.stat().st_size)
    geometry = Geometry(image_size=224, resize_side=256, interpolation="bicubic")
    data = largest.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    whole = render(decode(data), sha256, range(4), geometry).float()
    shrunk = render(decode(data, 512), sha256, range(4), geometry).float()
    assert whole.shape == (4, 1, 224, 224)
    assert min(whole.flatten(1).std(1)) > 10
    # Decoding at a fraction of the size is another average of the same pixels: nearer than one view is to another.
    assert (whole - shrunk).abs().flatten(1).mean(1).max() < 4
    assert (whole[0] - whole[1]).abs().mean() > 8


@given(brightness=st.floats(0.5, 2), gamma=st.floats(0.5, 2), channels=st.sampled_from([1, 3]))
@settings(deadline=None)
def test_exposure_looked_up_by_value_equals_torchvisions_own_of_the_pixels(
    brightness: float, gamma: float, channels: int
) -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (channels, 16, 16), np.uint8))
    wanted = v2.functional.adjust_gamma(v2.functional.adjust_brightness(pixels, brightness), gamma)
    assert torch.equal(_exposed(pixels, brightness, gamma), wanted)
