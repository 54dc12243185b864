"""The map before the average, of one film: the stored feature is its mean, and its place on the film is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from dicom_files import dicom
from PIL import Image
from torch import nn

from featcache.backbones import Backbone, load_backbone
from featcache.check import scan
from featcache.decode import DICOM, decode
from featcache.errors import BackboneError, UnreadableImageError
from featcache.extraction import extract
from featcache.images import discover
from featcache.maps import FilmMapper
from featcache.networks import LastMap, PooledNetwork, Preprocessing
from featcache.runtime import Compute
from featcache.store import FeatureStore, open_store
from featcache.views import Geometry, clean_window, render

PREPROCESSING = Preprocessing(
    image_size=32, resize_side=32, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
)


@pytest.fixture(scope="module")
def store(phantom_store: Path) -> FeatureStore:
    return open_store(phantom_store)


@pytest.fixture(scope="module")
def mapper(store: FeatureStore, tiny: Backbone) -> FilmMapper:
    return FilmMapper(store, tiny, Compute(device="cpu", threads=1))


def test_the_mean_of_a_films_map_is_its_stored_feature(store: FeatureStore, mapper: FilmMapper, phantoms: Path) -> None:
    ids = store.image_table.image_id.tolist()[::7]
    films = [mapper.film(phantoms / image_id) for image_id in ids]
    assert {film.last_map.shape for film in films} == {(16, 8, 8)}
    made = np.stack([film.last_map.mean((1, 2)) for film in films])
    # Half a unit in the last place of float16, which has eleven bits.
    np.testing.assert_allclose(made, store.features(ids), rtol=2.0**-11, atol=1e-6)
    np.testing.assert_allclose(np.stack([film.feature for film in films]), made, rtol=1e-6)


def test_the_map_is_the_networks_own(mapper: FilmMapper, tiny: Backbone, phantoms: Path) -> None:
    film = mapper.film(next((phantoms / "test").glob("*/*")))
    square = render(film.pixels, film.sha256, [0], mapper.geometry)
    with torch.inference_mode():
        assert isinstance(tiny.network, PooledNetwork)
        network = tiny.network
        wanted = network.model((square.repeat(1, 3, 1, 1).float() - network.mean) / network.std)[0]
    np.testing.assert_allclose(film.last_map, wanted.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("size", "resize"), [(32, 32), (28, 32), (48, 60)])
@pytest.mark.parametrize(("height", "width"), [(256, 256), (200, 251), (253, 120), (97, 64)])
def test_the_window_says_which_pixels_of_the_film_the_square_shows(
    size: int, resize: int, height: int, width: int
) -> None:
    geometry = Geometry(image_size=size, resize_side=resize, interpolation="bilinear")
    window = clean_window(height, width, geometry)
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    middles = (np.arange(size) + 0.5) / size
    for ramp, first, length, axis in ((rows, window.top, window.height, 1), (columns, window.left, window.width, 0)):
        # Pixel r holds r, and its middle is at r + 0.5. At the rim resizing has fewer neighbours to average.
        seen = render(ramp, "0" * 64, [0], geometry)[0, 0].numpy().astype(float).mean(axis)
        np.testing.assert_allclose(seen[2:-2], (first + middles * length - 0.5)[2:-2], atol=0.75)


def test_what_the_user_names_may_be_a_link_and_what_cannot_be_read_says_why(
    mapper: FilmMapper, phantoms: Path, tmp_path: Path
) -> None:
    film = next((phantoms / "test").glob("*/*"))
    (tmp_path / "link.jpeg").symlink_to(film)
    np.testing.assert_array_equal(mapper.film(tmp_path / "link.jpeg").last_map, mapper.film(film).last_map)
    (tmp_path / "half.jpeg").write_bytes(film.read_bytes()[:700])
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    reasons = {
        "half.jpeg": "damaged|truncated",
        "none.jpeg": "no such file",
        ".": "not a plain file",
        "circle": "link|no such file",
    }
    for name, reason in reasons.items():
        with pytest.raises(UnreadableImageError, match=reason):
            mapper.film(tmp_path / name)


def test_a_dicom_films_map_averages_to_its_stored_feature_and_the_film_is_as_it_is_decoded(
    phantoms: Path, tiny: Backbone, tmp_path: Path
) -> None:
    films = {}
    for number, path in enumerate(sorted(phantoms.rglob("*.jpeg"))[::9]):
        place = tmp_path / "films" / path.relative_to(phantoms).with_suffix(".dcm")
        place.parent.mkdir(parents=True, exist_ok=True)
        # Stored bright for dark or dark for bright, a film looks the same.
        stored = decode(path.read_bytes())
        stored = stored[:, : 64 - number]
        turned = number % 2 == 1
        kind = "MONOCHROME1" if turned else "MONOCHROME2"
        place.write_bytes(dicom(255 - stored if turned else stored, PhotometricInterpretation=kind))
        films[place.relative_to(tmp_path / "films").as_posix()] = stored
    root, compute = tmp_path / "films", Compute(device="cpu", runtime="torch", precision="float32", threads=1)
    (summary,) = extract(scan(discover(root), root), root, tmp_path / "cache", [tiny], compute=compute)
    store = open_store(summary.store)
    assert DICOM in store.spec.decoder
    mapper = FilmMapper(store, tiny, compute)
    for name, kept in zip(films, store.features(list(films)), strict=True):
        film = mapper.film(root / name)
        np.testing.assert_array_equal(film.pixels, films[name])
        np.testing.assert_allclose(film.feature, kept, rtol=2.0**-10, atol=1e-6)
    # A store of such films takes others too.
    Image.fromarray(films[name]).save(png := tmp_path / "film.png")
    np.testing.assert_array_equal(mapper.film(png).last_map, film.last_map)


def test_another_network_than_the_stores_is_refused(store: FeatureStore) -> None:
    with pytest.raises(BackboneError, match="cannot be computed again with this tiny_network:other"):
        FilmMapper(store, load_backbone("tiny_network:other"), Compute(device="cpu"))


class Ending(nn.Module):
    """A network that ends as it is told to."""

    num_features = 5

    def __init__(self, shape: tuple[int, ...], prefix: int = 0) -> None:
        super().__init__()
        self.num_prefix_tokens = prefix
        self.last = torch.arange(float(np.prod(shape))).reshape(shape)

    def forward_features(self, _: torch.Tensor) -> torch.Tensor:
        return self.last


@pytest.mark.parametrize(
    ("shape", "prefix", "index"),
    [
        ((1, 5, 2, 3), 0, np.s_[0, :, 1, 2]),
        ((1, 2, 3, 5), 0, np.s_[0, 1, 2, :]),
        ((1, 1 + 9, 5), 1, np.s_[0, 1 + 5, :]),  # a token for the class, then three rows of three
    ],
)
def test_channels_last_and_tokens_are_maps_too(shape: tuple[int, ...], prefix: int, index: tuple[int, ...]) -> None:
    ending = Ending(shape, prefix)
    network = PooledNetwork(ending, PREPROCESSING)
    pixels = torch.zeros((1, 3, 32, 32), dtype=torch.uint8)
    last_map = LastMap(network)(pixels)
    np.testing.assert_allclose(last_map.mean((2, 3)), network(pixels))
    np.testing.assert_array_equal(last_map[0, :, 1, 2], ending.last[index])


@pytest.mark.parametrize("shape", [(1, 5), (1, 7, 5)])
def test_a_network_that_ends_in_no_square_of_places_has_no_map(shape: tuple[int, ...]) -> None:
    network = PooledNetwork(Ending(shape), PREPROCESSING)
    pixels = torch.zeros((1, 3, 32, 32), dtype=torch.uint8)
    assert network(pixels).shape == (1, 5)
    with pytest.raises(BackboneError, match="no map of places"):
        network.last_map(pixels)
