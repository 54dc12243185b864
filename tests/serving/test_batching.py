"""Films that come together go together, each with its own answer."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest
from served import make_service

from cxr.serving import batching
from cxr.serving.batching import MicroBatcher
from cxr.serving.limits import Limits
from cxr.serving.problems import Overloaded, Problem
from cxr.serving.uploads import Admission
from featcache.films import load_film
from heads.prediction.predictor import ImageFile, Predictor


@pytest.fixture
def predictor(place: Path) -> Iterator[Predictor]:
    """A predictor that nobody else uses; the network sees four films at once."""
    service = make_service(place)
    service.batcher.close()
    yield service.predictor
    service.aside.shutdown()
    service.predictor.close()
    service.blas.restore_original_limits()


class Gate:
    """Lets a predictor answer when the test says so, and notes what it saw together."""

    def __init__(self, predictor: Predictor) -> None:
        self.open, self.entered, self.seen = threading.Event(), threading.Event(), list[list[str]]()
        answer = predictor.predict_loaded

        def gated(films: Any) -> Any:
            self.seen.append([film.sha256 for film in films])
            self.entered.set()
            assert self.open.wait(30)
            return answer(films)

        predictor.predict_loaded = gated  # type: ignore[method-assign]


def test_films_that_wait_for_a_busy_network_share_full_batches(predictor: Predictor, films: list[bytes]) -> None:
    gate, sizes = Gate(predictor), list[int]()
    batcher = MicroBatcher(predictor, Limits(), decoders=2, on_batch=sizes.append)
    first = [batcher.submit(films[0])]
    assert gate.entered.wait(30)
    rest = [batcher.submit(film) for film in films[1:13]]
    # One stream: all the others are decoded and wait.
    while batcher.ready.qsize() < 12:
        pass
    gate.open.set()
    found = [future.result(30) for future in [*first, *rest]]
    batcher.close()
    assert predictor.encoder.streams == 1
    assert sizes == [1, 4, 4, 4]
    wanted = [ImageFile(name="", data=film).sha256 for film in films[:13]]
    assert [one.sha256 for one in found] == wanted
    assert sorted(itertools.chain(*gate.seen)) == sorted(wanted)


def test_a_film_that_nobody_waits_for_is_not_shown_to_the_network(predictor: Predictor, films: list[bytes]) -> None:
    gate = Gate(predictor)
    batcher = MicroBatcher(predictor, Limits(), decoders=1)
    first = batcher.submit(films[0])
    assert gate.entered.wait(30)
    given_up, kept = batcher.submit(films[1]), batcher.submit(films[2])
    while batcher.ready.qsize() < 2:
        pass
    assert given_up.cancel()
    gate.open.set()
    assert first.result(30).sha256
    assert kept.result(30).sha256 == ImageFile(name="", data=films[2]).sha256
    with pytest.raises(CancelledError):
        given_up.result()
    batcher.close()
    assert ImageFile(name="", data=films[1]).sha256 not in itertools.chain(*gate.seen)


def test_films_that_are_given_up_are_let_go_of_at_once_but_for_those_being_decoded(
    predictor: Predictor, films: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go, decode = threading.Semaphore(0), threading.Event(), load_film

    def slow(*given: Any) -> Any:
        entered.release()
        assert go.wait(30)
        return decode(*given)

    monkeypatch.setattr(batching, "load_film", slow)
    batcher = MicroBatcher(predictor, Limits(), decoders=2)
    sent = films[:20]
    sizes = [len(film) for film in sent]
    before = [sys.getrefcount(film) for film in sent]
    futures = [batcher.submit(film) for film in sent[:2]]
    for _ in range(2):
        assert entered.acquire(timeout=30)
    futures += [batcher.submit(film) for film in sent[2:]]
    assert batcher.given_up() == 0
    assert all(after > count for after, count in zip([sys.getrefcount(film) for film in sent], before, strict=True))
    assert all(future.cancel() for future in futures)
    held = [after - count for after, count in zip([sys.getrefcount(film) for film in sent], before, strict=True)]
    assert [count > 0 for count in held] == [True] * 2 + [False] * 18
    assert batcher.given_up() == sum(sizes[:2])
    admission = Admission(Limits(max_bytes=sum(sizes[:2]) // 8 + 1), batcher.given_up)
    with admission.request() as room, pytest.raises(Overloaded):
        room.take_bytes(16)
    go.set()
    batcher.close()
    assert batcher.given_up() == 0
    with admission.request() as room:
        room.take_bytes(16)
    assert not batcher.decoding


def test_closing_answers_what_was_submitted(predictor: Predictor, films: list[bytes]) -> None:
    batcher = MicroBatcher(predictor, Limits(), decoders=2)
    futures = [batcher.submit(film) for film in films[:20]]
    batcher.close()
    assert all(future.done() for future in futures)
    assert [future.result().sha256 for future in futures] == [
        ImageFile(name="", data=film).sha256 for film in films[:20]
    ]
    with pytest.raises(RuntimeError):
        batcher.submit(films[0])


def test_what_befalls_the_network_is_heard_by_each_that_waits_and_the_next_batch_goes_on(
    predictor: Predictor, films: list[bytes]
) -> None:
    answer = predictor.predict_loaded

    def failing(_films: Any) -> Any:
        raise MemoryError("no room")

    predictor.predict_loaded = failing  # type: ignore[assignment, method-assign]
    batcher = MicroBatcher(predictor, Limits(), decoders=2)
    futures = [batcher.submit(film) for film in films[:5]]
    for future in futures:
        with pytest.raises(MemoryError):
            future.result(30)
    predictor.predict_loaded = answer  # type: ignore[method-assign]
    assert batcher.submit(films[0]).result(30).probability is not None
    with pytest.raises(Problem, match="not a JPEG"):
        batcher.submit(b"no film").result(30)
    batcher.close()
