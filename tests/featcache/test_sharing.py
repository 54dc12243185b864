from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.errors import SettingsError
from featcache.sharing import Share, parse_share, read_unreadable, share_from_environment, write_unreadable


@given(count=st.integers(1, 20), chunks=st.integers(0, 200))
def test_every_chunk_is_in_one_share_and_shares_differ_by_one_chunk_at_most(count: int, chunks: int) -> None:
    shares = [Share(index=index, count=count) for index in range(1, count + 1)]
    sizes = [sum(share.holds(chunk) for chunk in range(chunks)) for share in shares]
    assert all(sum(share.holds(chunk) for share in shares) == 1 for chunk in range(chunks))
    assert max(sizes) - min(sizes) <= 1


def test_a_share_is_read_as_it_is_written() -> None:
    assert parse_share("2/8") == Share(index=2, count=8)
    assert str(parse_share(" 3/3 ")) == "3/3"


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "-1/2", "a/b", "1/2/3", "", "1/9999999"])
def test_what_is_no_share_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"^wanted i/n with i from 1 to n, as in 2/8$"):
        parse_share(text)


@pytest.mark.parametrize(
    ("environment", "share", "variable"),
    [
        ({}, Share(), ""),
        ({"RANK": "3"}, Share(), ""),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Share(), "RANK"),
        ({"RANK": "3", "WORLD_SIZE": "4"}, Share(index=4, count=4), "RANK"),
        ({"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "3"}, Share(index=1, count=3), "SLURM_ARRAY_TASK_ID"),
        (
            {"SLURM_ARRAY_TASK_ID": "12", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "10"},
            Share(index=3, count=3),
            "SLURM_ARRAY_TASK_ID",
        ),
    ],
)
def test_slurm_and_torchrun_say_the_share(environment: dict[str, str], share: Share, variable: str) -> None:
    assert share_from_environment(environment) == (share, variable)


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "x", "WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "2"},
        # Counted in steps of two: guessing would leave chunks to nobody.
        {"SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "0"},
    ],
)
def test_variables_that_fit_no_share_are_refused_and_not_guessed(environment: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="say --worker i/n"):
        share_from_environment(environment)


def test_notes_of_all_workers_are_read_together_and_a_damaged_one_counts_as_none(tmp_path: Path) -> None:
    write_unreadable(tmp_path, Share(index=1, count=3), {"a": "empty file"})
    write_unreadable(tmp_path, Share(index=2, count=3), {"b": "truncated", "c": "empty file"})
    assert read_unreadable(tmp_path) == {"a": "empty file", "b": "truncated", "c": "empty file"}
    write_unreadable(tmp_path, Share(index=2, count=3), {})
    assert read_unreadable(tmp_path) == {"a": "empty file"}
    (tmp_path / "unreadable" / "worker-3-of-3.json").write_text("[" * 100_000)
    assert read_unreadable(tmp_path) == {"a": "empty file"}


def test_a_worker_that_read_everything_leaves_no_note(tmp_path: Path) -> None:
    write_unreadable(tmp_path, Share(index=1, count=2), {})
    assert list(tmp_path.iterdir()) == []
