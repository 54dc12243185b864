"""Running the groups of a fit side by side: one thread a group, its kernels on that thread alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

import torch

Told = TypeVar("Told")


class _Cancelled(Exception):  # noqa: N818 - no error: another group's was raised
    """The fit is over; the group's work is of no more use."""


def run_groups(
    groups: Sequence[Callable[[Callable[[Told], None]], None]], threads: int, *, at_once: int | None = None
) -> Generator[Told]:
    """Run the groups, as many at once as there are threads or as may be, and yield what they tell meanwhile.

    A thread that walks through one group's cache-sized memory alone, never waiting for another at a barrier, is
    what makes many heads fast: torch's kernels release the interpreter's lock. Threads that are left over, where
    there are fewer groups than threads, go to the groups' own kernels.

    Args:
        groups: each is called once with a function to tell with, which ends the group where the fit is over.
        threads: processor threads to keep busy.
        at_once: groups at a time at most; None for one a thread.

    Raises:
        Exception: what the first group to fail raised; the others end at their next telling.
    """
    told: SimpleQueue[tuple[Told] | Future[None]] = SimpleQueue()
    over = threading.Event()

    def tell(news: Told) -> None:
        if over.is_set():
            raise _Cancelled
        told.put((news,))

    at_once = max(1, min(threads, len(groups), threads if at_once is None else at_once))
    before = torch.get_num_threads()
    # torch keeps the number a thread: the caller's stays as it is, but for threads that it starts later.
    pool = ThreadPoolExecutor(at_once, "heads", torch.set_num_threads, (max(1, threads // at_once),))
    try:
        for group in groups:
            pool.submit(group, tell).add_done_callback(told.put)
        left = len(groups)
        while left:
            news = told.get()
            if isinstance(news, Future):
                news.result()
                left -= 1
            else:
                yield news[0]
    finally:
        over.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)
