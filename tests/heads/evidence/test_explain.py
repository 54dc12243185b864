"""``cxr explain``: files that say what the head said, and maps that point to the lesion."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import matplotlib.colors
import numpy as np
import pytest
import tiny_network
import torch
from PIL import Image
from safetensors.numpy import load_file
from test_cli import Result, cxr, done

from featcache.backbones import load_backbone
from featcache.check import scan
from featcache.extraction import extract
from featcache.images import discover
from featcache.maps import FilmMap, FilmMapper
from featcache.phantom import Lesion, phantom, write_phantoms
from featcache.store import FeatureStore, open_store
from featcache.views import Window
from heads.evidence.contributions import contributions
from heads.evidence.explain import _free_name, peak_of
from heads.evidence.overlays import AGAINST, FOR, MOST_OPAQUE, colours, laid_over, overlay_png, overlay_thumbnail
from heads.experiments.runs import load_logits
from heads.experiments.saved_heads import choose_head
from heads.training.model import HeadWeights, logits

HEADS = Path(__file__).parents[2] / "data" / "heads"
QUICK = {"CXR_DEVICE": "cpu", "CXR_BACKBONE": "tiny_network:tiny", "CXR_RUNTIME": "torch", "CXR_PRECISION": "float32"}


@pytest.fixture(scope="module")
def place(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with films, their features, and a run of two linear and two hidden heads on standardised features."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(phantoms, folder / "films")
    done("extract", "--data", "films", cwd=folder, **QUICK)
    flags = ("--hidden", "0", "--hidden", "8", "--seeds", "2", "--epochs", "3", "--batch-size", "16", "--standardise")
    done("fit-head", "--data", "films", *flags, cwd=folder, **QUICK)
    return folder


def explain(place: Path, *flags: str | Path) -> Result:
    return done("explain", "--data", "films", "--json", *flags, cwd=place)


def films(place: Path, count: int) -> list[Path]:
    return sorted((place / "films" / "test").glob("*/*"))[::6][:count]


# ---- what is written


@pytest.mark.parametrize("head", [0, 3])
def test_numbers_and_words_are_those_of_the_head(place: Path, tmp_path: Path, head: int) -> None:
    paths = films(place, 4)
    said = explain(place, *paths, "--out", tmp_path, "--head", str(head)).json
    assert (said["head"], said["class"], said["unreadable"]) == (head, "PNEUMONIA", [])
    chosen = choose_head(place / "cache" / "films", number=head)
    store = open_store(next((place / "cache" / "films").glob("tiny*")))
    features = store.features([path.relative_to(place / "films").as_posix() for path in paths])
    for film, logit in zip(said["images"], logits(chosen.weights, features), strict=True):
        with np.load(film["npz"], allow_pickle=False) as saved:
            numbers = {name: saved[name] for name in saved.files}
        assert numbers["map"].shape == (8, 8)
        assert numbers["map"].dtype == np.float32
        assert numbers["map"].sum() + numbers["constant"] == pytest.approx(film["evidence"], abs=1e-5)
        # The stored feature is rounded to float16.
        assert film["evidence"] == pytest.approx(float(logit[1] - logit[0]), abs=5e-3)
        assert film["probability"]["PNEUMONIA"] == pytest.approx(1 / (1 + np.exp(-film["evidence"])), abs=1e-5)
        assert film["decision"] == ("PNEUMONIA" if film["evidence"] > 0 else "NORMAL")
        assert numbers["classes"].tolist() == ["NORMAL", "PNEUMONIA"]
        np.testing.assert_allclose(numbers["probability"], list(film["probability"].values()))
        assert (numbers["film"].tolist(), numbers["window"].tolist()) == ([64, 64], [0, 0, 64, 64])
        with Image.open(film["png"]) as picture:
            assert picture.width > 1.5 * picture.height
    assert len(list(tmp_path.iterdir())) == 8


@pytest.mark.parametrize("head", [1, 2])
def test_the_evidence_is_that_of_the_logits_that_the_run_keeps(place: Path, tmp_path: Path, head: int) -> None:
    chosen = choose_head(place / "cache" / "films", number=head)
    assert chosen.record.config.standardise
    kept = load_logits(chosen.folder)
    said = explain(place, *kept.image_id[:3], "--out", tmp_path, "--head", str(head)).json["images"]
    wanted = kept.logits[head, :3, 1] - kept.logits[head, :3, 0]
    np.testing.assert_allclose([film["evidence"] for film in said], wanted, atol=5e-3)


def test_the_other_class_is_the_same_evidence_with_the_other_sign(place: Path, tmp_path: Path) -> None:
    (path,) = films(place, 1)
    maps = {}
    for name in ("NORMAL", "PNEUMONIA"):
        (film,) = explain(place, path, "--out", tmp_path / name, "--class", name).json["images"]
        maps[name] = np.load(film["npz"], allow_pickle=False)["map"]
    np.testing.assert_allclose(maps["NORMAL"], -maps["PNEUMONIA"], rtol=1e-5)


def test_the_head_is_the_one_that_the_report_marks(place: Path, tmp_path: Path) -> None:
    (marked,) = [row for row in done("report", "--data", "films", "--json", cwd=place).json["rows"] if row["selected"]]
    said = explain(place, *films(place, 1), "--out", tmp_path).json
    record = choose_head(place / "cache" / "films", said["run"], said["head"]).record
    assert {**record.config.to_json(), "seed": 0} == {**marked["head"], "seed": 0}
    assert said["name"].startswith(marked["name"])
    assert said["head"] in marked["heads"]


def test_two_films_of_one_name_and_names_that_lead_elsewhere_stay_apart_in_the_folder(
    place: Path, tmp_path: Path
) -> None:
    first, second, third = films(place, 3)
    for folder, film in (("a", first), ("b", second)):
        (tmp_path / folder).mkdir()
        shutil.copy(film, tmp_path / folder / "film.jpeg")
    shutil.copy(third, tmp_path / "a" / "film-2.jpeg")
    odd = tmp_path / "a" / "..%2f$x^2$ ‮肺.jpeg"
    shutil.copy(third, odd)
    named = [tmp_path / "a" / "film.jpeg", tmp_path / "a" / "film-2.jpeg", tmp_path / "b" / "film.jpeg", odd]
    said = explain(place, *named, "--out", tmp_path / "out").json["images"]
    names = [Path(film["png"]).name for film in said]
    assert names == ["film.png", "film-2.png", "film-3.png", "2f-x-2-肺.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [*names, *(name.replace("png", "npz") for name in names)]
    )
    contents = {np.load(film["npz"], allow_pickle=False)["map"].tobytes() for film in said}
    assert len(contents) == 3  # the last is the second's content


def test_names_that_differ_in_capitals_alone_and_long_ones_fit_every_file_system() -> None:
    taken: set[str] = set()
    names = [_free_name(Path(name), taken) for name in ("Film.png", "film.jpeg", "...", "肺" * 200 + ".png", "/..")]
    assert names[:3] == ["Film", "film-2", "film-3"]
    assert len({name.casefold() for name in names}) == len(names)
    assert all(0 < len(name.encode()) < 200 and "/" not in name and name.strip(".") for name in names)


def test_a_name_of_the_image_table_is_found_and_what_cannot_be_read_is_told(place: Path, tmp_path: Path) -> None:
    known = films(place, 1)[0].relative_to(place / "films")
    (tmp_path / "empty.jpeg").touch()
    said = explain(place, known, tmp_path / "empty.jpeg", tmp_path / "no.png", "--out", tmp_path / "out")
    assert [film["image"] for film in said.json["images"]] == [str(known)]
    assert [row["reason"] for row in said.json["unreadable"]] == ["empty file", "no such file"]
    assert f"not read: {tmp_path / 'empty.jpeg'}: empty file" in said.err
    refused = cxr("explain", tmp_path / "empty.jpeg", "--data", "films", "--out", tmp_path / "none", cwd=place)
    assert refused.error == f"none of 1 images could be read ({tmp_path / 'empty.jpeg'}: empty file)"
    assert not (tmp_path / "none").exists()


def test_in_words_a_line_a_film_and_the_head(place: Path, tmp_path: Path) -> None:
    said = done("explain", *films(place, 2), "--data", "films", "--out", tmp_path, cwd=place).out.splitlines()
    assert len(said) == 3
    assert all(" % PNEUMONIA, decision " in line for line in said[:2])
    assert said[2].startswith("evidence for PNEUMONIA by tiny_network:tiny")


def test_wrong_heads_classes_and_weights_are_one_line(place: Path, tmp_path: Path) -> None:
    def refused(*flags: str) -> str:
        return cxr("explain", *films(place, 1), "--data", "films", "--out", tmp_path, *flags, cwd=place).error

    assert "no head 9 in run" in refused("--head", "9")
    assert "no run other" in refused("--run", "other")
    assert "no class 'TUBERCULOSIS'" in refused("--class", "TUBERCULOSIS")
    assert "no weights file none.pth" in refused("--weights", "none.pth")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_were_a_file_are_given_again_by_flag_or_settings(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "films", tmp_path / "films")
    torch.save(tiny_network.other().state_dict(), tmp_path / "w.pth")
    done("extract", "--data", "films", "--weights", "w.pth", cwd=tmp_path, **QUICK)
    done("fit-head", "--data", "films", "--hidden", "0", "--epochs", "2", "--batch-size", "16", cwd=tmp_path, **QUICK)
    film: list[str | Path] = ["explain", *films(tmp_path, 1), "--data", "films", "--out", tmp_path / "out"]
    assert "name the weights that made it with --weights FILE" in cxr(*film, cwd=tmp_path).error
    by_flag = done(*film, "--weights", "w.pth", "--json", cwd=tmp_path).json
    (tmp_path / "cxr.toml").write_text('backbone = "tiny_network:tiny"\nweights = "w.pth"\n')
    assert done(*film, "--json", cwd=tmp_path).json == by_flag


# ---- the picture


@pytest.mark.parametrize(("height", "width"), [(64, 64), (50, 71)])
def test_a_map_over_the_whole_film_is_what_torch_interpolates(height: int, width: int) -> None:
    local = np.random.default_rng(0).standard_normal((7, 5))
    window = Window(top=0, left=0, height=height, width=width)
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(local)[None, None], (height, width), mode="bilinear", align_corners=False
    )[0, 0]
    np.testing.assert_allclose(laid_over(local, window, height, width), wanted, atol=1e-5)


@pytest.mark.parametrize(("sign", "colour"), [(1, FOR), (-1, AGAINST)])
def test_a_small_overlay_is_film_and_colour_mixed_where_the_network_saw_and_film_elsewhere(
    sign: int, colour: tuple[float, float, float]
) -> None:
    film = np.full((400, 800), 100, np.uint8)
    jpeg = overlay_thumbnail(film, sign * np.ones((2, 2)), Window(top=100, left=200, height=200, width=400), 160)
    with Image.open(io.BytesIO(jpeg)) as image:
        assert (image.format, image.size) == ("JPEG", (160, 80))
        shown = np.asarray(image).astype(float)
    mixed = 100 * (1 - MOST_OPAQUE) + 255 * MOST_OPAQUE * np.array(colour)
    # JPEG blurs eight pixels beside an edge.
    np.testing.assert_allclose(shown[32:48, 56:104], np.broadcast_to(mixed, (16, 48, 3)), atol=4)
    np.testing.assert_allclose(shown[:8], 100, atol=4)
    np.testing.assert_allclose(shown[:, :24], 100, atol=4)


def test_a_small_overlay_of_no_evidence_is_the_film() -> None:
    film = np.tile(np.arange(0, 200, 2, dtype=np.uint8), (100, 1))
    whole = Window(top=0, left=0, height=100, width=100)
    with Image.open(io.BytesIO(overlay_thumbnail(film, np.zeros((3, 3)), whole))) as image:
        np.testing.assert_allclose(np.asarray(image.convert("L")).astype(float), film, atol=5)


def test_outside_the_networks_square_the_film_stays_plain() -> None:
    local = np.ones((3, 3))
    over = laid_over(local, Window(top=10, left=20, height=30, width=40), 60, 80)
    seen = np.zeros((60, 80), bool)
    seen[10:40, 20:60] = True
    np.testing.assert_array_equal(np.isfinite(over), seen)
    np.testing.assert_allclose(over[seen], 1)


def test_evidence_for_and_against_differ_without_red_or_green_and_none_is_clear() -> None:
    table = colours()
    against, none, for_ = table(0.0), table(0.5), table(1.0)
    assert none[3] == pytest.approx(0, abs=1e-6)
    assert against[3] == for_[3] == pytest.approx(0.75)
    # Who sees no red or green sees blue against yellow, and light against dark.
    assert against[2] - against[0] > 0.6
    assert for_[0] - for_[2] > 0.6
    lightness = [matplotlib.colors.rgb_to_hsv(colour[:3])[2] for colour in (against, for_)]
    assert lightness[1] - lightness[0] > 0.1


def picture(cell: tuple[int, int], value: float) -> bytes:
    """The picture of a grey film with evidence in one of four by four cells."""
    local = np.zeros((4, 4))
    local[cell] = value
    window = Window(top=0, left=0, height=64, width=64)
    film = np.full((64, 64), 128, np.uint8)
    return overlay_png(film, local, window, of_class="PNEUMONIA", unit="$", lines=["a", "b"])


def test_the_picture_shows_the_evidence_where_it_is_in_the_colour_that_it_has() -> None:
    centres = []
    for cell in ((0, 0), (0, 3), (3, 0)):
        speaks_for, against = (
            np.asarray(Image.open(io.BytesIO(picture(cell, value))).convert("RGB")).astype(int) for value in (1, -1)
        )
        # Film, scale and words are the same in both.
        rows, columns = np.nonzero(np.abs(speaks_for - against).max(axis=2) > 40)
        centres.append((rows.mean(), columns.mean()))
        red_less_blue = [(image[rows, columns, 0] - image[rows, columns, 2]).mean() for image in (speaks_for, against)]
        assert red_less_blue[0] > 40
        assert red_less_blue[1] < -40
    (top, left), (row_of_second, right), (bottom, column_of_third) = centres
    assert right - left > 200
    assert bottom - top > 200
    assert abs(row_of_second - top) + abs(column_of_third - left) < 10


def test_the_same_film_gives_the_same_picture() -> None:
    assert picture((1, 2), 1) == picture((1, 2), 1)


# ---- where it points


@pytest.fixture(scope="module")
def lite(tmp_path_factory: pytest.TempPathFactory) -> tuple[FilmMapper, FeatureStore, Path]:
    """EfficientNet-Lite0 with its ImageNet weights, and a small store that it made of the films in a folder."""
    folder = write_phantoms(tmp_path_factory.mktemp("lite") / "phantoms", train=8, val=2, test=4)
    backbone = load_backbone("efficientnet_lite0")
    (summary,) = extract(scan(discover(folder), folder), folder, folder.parent / "cache", [backbone])
    store = open_store(summary.store)
    return FilmMapper(store, backbone), store, folder


def test_a_real_networks_map_averages_to_the_stored_feature(lite: tuple[FilmMapper, FeatureStore, Path]) -> None:
    mapper, store, folder = lite
    names = store.image_table.image_id.tolist()
    films = [mapper.film(folder / name) for name in names]
    assert {film.last_map.shape for film in films} == {(1280, 7, 7)}
    # float16 has eleven bits; below its least normal number it keeps steps of 2^-24.
    made = np.stack([film.last_map.mean((1, 2)) for film in films])
    np.testing.assert_allclose(made, store.features(names), rtol=2.0**-10, atol=2.0**-20)


@pytest.fixture(scope="module")
def ill(lite: tuple[FilmMapper, FeatureStore, Path]) -> list[tuple[FilmMap, tuple[Lesion, ...]]]:
    """Eighty ill phantoms that no head was fitted on, as the real network sees them, and their lesions."""
    mapper, _, folder = lite
    films = []
    for seed in range(900_000_000, 900_000_080):
        pixels, lesions = phantom(seed, lesion=True)
        Image.fromarray(pixels).save(folder.parent / "film.png")
        films.append((mapper.film(folder.parent / "film.png"), lesions))
    return films


def points_to_a_lesion(weights: HeadWeights, film: FilmMap, lesions: tuple[Lesion, ...]) -> bool:
    """Whether the middle of the peak's cell lies in a lesion or less than half a cell beside: a map knows no better."""
    row, column = peak_of(contributions(weights, film.last_map, 1), film)
    half = film.window.height / film.last_map.shape[1] / 2
    return any(np.hypot(row - one.row, column - one.column) < one.radius + half for one in lesions)


def shuffled(weights: HeadWeights, seed: int) -> HeadWeights:
    """The same numbers in other places (Adebayo et al. 2018, "Sanity Checks for Saliency Maps")."""
    rng = np.random.default_rng(seed)
    return HeadWeights.from_tensors(
        {name: rng.permutation(array.ravel()).reshape(array.shape) for name, array in weights.tensors().items()}
    )


@pytest.mark.parametrize("hidden", [0, 16])
def test_the_peak_lies_in_the_lesion_and_a_randomised_head_loses_it(
    ill: list[tuple[FilmMap, tuple[Lesion, ...]]], hidden: int
) -> None:
    weights = HeadWeights.from_tensors(load_file(HEADS / f"phantoms-hidden{hidden}.safetensors"))
    found = [pair for pair in ill if contributions(weights, pair[0].last_map, 1).evidence > 0]
    assert len(found) >= 60
    share = np.mean([points_to_a_lesion(weights, *pair) for pair in found])
    lost = [np.mean([points_to_a_lesion(shuffled(weights, seed), *pair) for pair in found]) for seed in range(20)]
    assert share >= 0.8
    # A quarter of all cells are as near a lesion.
    assert np.mean(lost) < share / 2
    assert max(lost) < share
