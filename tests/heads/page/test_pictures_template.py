"""The section of pictures as markup: names stay text, pictures are described, and empty lists say so."""

from __future__ import annotations

from dataclasses import replace

import pytest
from synthetic import fitted
from test_rendering import HOSTILE, Parsed, parsed

from heads.page.page import Page, build_page
from heads.page.pictures import (
    DoubtedLabel,
    DuplicatePair,
    FoundFilm,
    KnownCase,
    NearFilm,
    PictureCard,
    Pictures,
)
from heads.page.rendering import render
from heads.page.row_evidence import Overlay
from heads.page.thumbnails import Picture
from heads.reporting.report import build_report
from heads.training.config import HeadConfig

SOURCE = "data:image/gif;base64,R0lGODlhAQABAAAAACw="
SCRIPT, IMAGE, COMMENT, EVENT = HOSTILE


def shown(alt: str) -> Picture:
    return Picture(source=SOURCE, width=160, height=120, alt=alt)


def film(name: str) -> FoundFilm:
    return FoundFilm(image_id=name, label=COMMENT, split=EVENT, patient_id=SCRIPT, thumbnail=shown(name))


CARD = PictureCard(
    image_id=SCRIPT,
    label=IMAGE,
    decision=COMMENT,
    of_class=EVENT,
    probability=0.875,
    thumbnail=shown(IMAGE),
    overlay=Overlay(picture=shown(SCRIPT), evidence=1.9, probability=0.75),
    apart=True,
)

PICTURES = Pictures(
    row=SCRIPT,
    split="",
    threshold=0.25,
    images=30,
    wrong=7,
    evidence=IMAGE,
    near_by=COMMENT,
    worst=(CARD,),
    least_sure=(CARD, replace(CARD, image_id="other", overlay=None)),
    known_cases=(
        KnownCase(
            image_id=SCRIPT,
            nearest=(
                NearFilm(image_id=EVENT, label=SCRIPT, distance=0.0123, same_patient=True, thumbnail=shown(COMMENT)),
            ),
        ),
    ),
    duplicates=(DuplicatePair(films=(film(SCRIPT), film(IMAGE)), distance=0.01, relative_distance=0.5, remark=IMAGE),),
    duplicates_found=3,
    label_errors=(DoubtedLabel(film=film(EVENT), rather=SCRIPT, self_confidence=0.0123),),
    label_errors_found=9,
    notes=(COMMENT,),
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """A small page without pictures of its own."""
    folder = tmp_path_factory.mktemp("cache") / "films"
    fitted(folder, HeadConfig())
    return build_page(build_report(folder), folder)


def elements(page: Page, pictures: Pictures | None) -> Parsed:
    return parsed(render(page, pictures))


def test_names_of_films_and_classes_stay_text(page: Page) -> None:
    plain, with_pictures = elements(page, None), elements(page, PICTURES)
    assert [name for name, _ in with_pictures.elements].count("script") == [name for name, _ in plain.elements].count(
        "script"
    )
    for name, attributes in with_pictures.elements:
        assert not any(attribute.startswith("on") for attribute in attributes), (name, attributes)
        # The content policy knows no inline style.
        assert "style" not in attributes
    for words in HOSTILE:
        assert words in with_pictures.words


def test_every_picture_has_its_description_and_its_size_and_lies_in_the_page(page: Page) -> None:
    drawn, every = (
        [attributes for name, attributes in elements(page, pictures).elements if name == "img"]
        for pictures in (None, PICTURES)
    )
    images = [attributes for attributes in every if attributes not in drawn]
    # Film and map of a card twice, and one without; a near film at the known card twice; a pair; a doubted label.
    assert len(images) == 2 + 2 + 1 + 2 + 2 + 1
    assert {one["src"] for one in images} == {SOURCE}
    assert {(one["width"], one["height"]) for one in images} == {("160", "120")}
    assert {one["alt"] for one in images} == set(HOSTILE)


def test_figures_are_told_rounded(page: Page) -> None:
    words = " ".join(elements(page, PICTURES).words.split())
    assert "judges them, at threshold 0.25." in words
    assert "1 of the 7 that are decided wrongly, of 30 films" in words
    assert "87.5 %" in words
    assert "the map's head: 75.0 %" in words
    assert ", 0.012, same patient" in words
    assert "distance 0.0100, 0.50 of that around" in words
    assert "(1.2 %), rather" in words
    assert "Of 3 pairs" in words
    assert "Of 9 films" in words


def test_empty_lists_say_so(page: Page) -> None:
    nothing = replace(
        PICTURES, wrong=0, worst=(), least_sure=(), known_cases=(), duplicates=(), label_errors=(), notes=()
    )
    words = " ".join(elements(page, replace(nothing, duplicates_found=0, label_errors_found=0)).words.split())
    assert "None of the 30 films of test is decided wrongly." in words
    assert "No pairs to show: none was found." in words
    assert "No labels to show: none was doubted." in words
    words = " ".join(elements(page, replace(nothing, wrong=2)).words.split())
    assert "None of the 2 films that are decided wrongly can be shown." in words
    assert "No pairs to show." in words
    assert "coloured by its own strongest place" not in words


def test_several_classes_have_no_threshold(page: Page) -> None:
    words = " ".join(elements(page, replace(PICTURES, threshold=None)).words.split())
    assert "judges them, at threshold" not in words
    assert "for the class that was decided for" in words


def test_a_page_has_the_section_and_its_link_only_with_pictures(page: Page) -> None:
    for pictures, wanted in ((None, False), (PICTURES, True)):
        found = elements(page, pictures).elements
        assert any(name == "section" and held.get("id") == "pictures" for name, held in found) == wanted
        assert any(held.get("href") == "#pictures" for _, held in found) == wanted
