"""Groups that run side by side."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import pytest
import torch

from heads.training.workers import run_groups

Tell = Callable[[int], None]


def count(number: int, done: list[int], tell: Tell) -> None:
    for epoch in range(3):
        tell(10 * number + epoch)
    done.append(number)


@pytest.mark.parametrize("threads", [1, 2, 9])
def test_every_group_is_run_once_and_all_that_it_tells_is_heard_in_its_order(threads: int) -> None:
    done: list[int] = []
    heard = list(run_groups([partial(count, number, done) for number in range(4)], threads))
    assert sorted(done) == [0, 1, 2, 3]
    assert sorted(heard) == [10 * number + epoch for number in range(4) for epoch in range(3)]
    for number in range(4):
        assert [news for news in heard if news // 10 == number] == [10 * number + epoch for epoch in range(3)]


@pytest.mark.parametrize(("groups", "threads", "each"), [(1, 4, 4), (2, 4, 2), (3, 4, 1), (8, 4, 1)])
def test_threads_that_are_left_over_go_to_the_groups(groups: int, threads: int, each: int) -> None:
    before = torch.get_num_threads()

    def group(tell: Tell) -> None:
        tell(torch.get_num_threads())

    assert list(run_groups([group] * groups, threads)) == [each] * groups
    assert torch.get_num_threads() == before
    late: list[int] = []
    thread = threading.Thread(target=lambda: late.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert late == [before]


def test_what_a_group_raises_reaches_the_caller_and_ends_the_others() -> None:
    begun, ended = threading.Event(), threading.Event()

    def fails(_: Tell) -> None:
        begun.wait(10)
        raise LookupError("nothing here")

    def goes_on(tell: Tell) -> None:
        try:
            begun.set()
            while True:
                tell(1)
        finally:
            ended.set()

    never: list[int] = []
    groups: list[Callable[[Tell], None]] = [fails, goes_on, partial(count, 0, never)]
    with pytest.raises(LookupError, match="nothing here"):
        list(run_groups(groups, 2))
    assert ended.is_set()
    assert never in ([], [0])  # not half


def test_caller_who_stops_listening_ends_the_groups() -> None:
    ended = threading.Event()

    def goes_on(tell: Tell) -> None:
        try:
            while True:
                tell(1)
        finally:
            ended.set()

    heard = run_groups([goes_on], 1)
    assert next(heard) == 1
    heard.close()
    assert ended.is_set()
