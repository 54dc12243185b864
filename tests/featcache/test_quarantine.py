from __future__ import annotations

from featcache.quarantine import ALIKE, Quarantined, in_lines


def rows(*reasons: str) -> list[Quarantined]:
    return [Quarantined(image_id=f"{number}.png", reason=reason) for number, reason in enumerate(reasons)]


def test_images_have_a_line_each_and_many_of_one_reason_share_one() -> None:
    assert in_lines(rows("a", "b", "a"), 20) == ["0.png: a", "2.png: a", "1.png: b"]
    assert in_lines(rows(*["a"] * (ALIKE + 1), "b"), 20) == [f"0.png and {ALIKE} more: a", f"{ALIKE + 1}.png: b"]
    assert in_lines([], 20) == []


def test_lines_beyond_the_most_are_counted() -> None:
    lines = in_lines(rows(*map(str, range(23))), 20)
    assert lines[:20] == [f"{number}.png: {number}" for number in range(20)]
    assert lines[20:] == ["… and 3 more lines ('--json' lists all)"]
