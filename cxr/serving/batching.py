"""Films of many requests through one network, in batches: decoded ahead in threads, then gathered."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from cxr.serving.limits import Limits, require_film
from cxr.serving.problems import Problem
from featcache.decode import oversize_is_an_error
from featcache.films import Film, load_film
from heads.prediction.predictor import ImageFile, Prediction, Predictor

GATHERING = 0.004
"""Seconds that a film waits for others to share its batch: a tenth of what the smallest network takes for one."""

Waiting = tuple[Film, "Future[Prediction]"]


class MicroBatcher:
    """Answers films one by one, and has the network see them together.

    As many batches are under way as the network has streams. One thread at a time gathers, so that films that come
    together go together; while all streams are busy, films wait, and the next batch is the fuller.

    Args:
        predictor: the model with its networks; nobody else may use it meanwhile.
        limits: what is a film.
        decoders: threads that decode.
        on_batch: told the films of each batch.
    """

    def __init__(
        self, predictor: Predictor, limits: Limits, *, decoders: int, on_batch: Callable[[int], None] = lambda _: None
    ) -> None:
        self.predictor, self.limits, self.on_batch = predictor, limits, on_batch
        self.renderings = frozenset(predictor.renderings)
        # Views of a film fill a batch, too.
        self.at_once = max(1, predictor.encoder.batch_size // predictor.views)
        self.ready: queue.SimpleQueue[Waiting | None] = queue.SimpleQueue()
        self.gathering = threading.Lock()
        # Warning filters are one for all threads: set for as long as any of ours decodes.
        self.filters = oversize_is_an_error()
        self.filters.__enter__()
        self.decoders = ThreadPoolExecutor(decoders, "decode", initializer=torch.set_num_threads, initargs=(1,))
        # By thread: bytes of the film that it decodes, and whose future.
        self.decoding: dict[int, tuple[int, Future[Prediction]]] = {}
        self.workers = [
            threading.Thread(target=self._work, name=f"network-{number}", daemon=True)
            for number in range(predictor.encoder.streams)
        ]
        for worker in self.workers:
            worker.start()

    def submit(self, data: bytes) -> Future[Prediction]:
        """Start with one film; what becomes of it is the future's.

        A future that is cancelled before its batch begins costs the network nothing, and lets go of the bytes unless
        they are being decoded; see ``given_up``. It may raise ``Problem`` for what
        is no film, or whatever befell the network.
        """
        future: Future[Prediction] = Future()
        held = [data]
        # The executor keeps what was cancelled until a thread comes by it.
        future.add_done_callback(lambda _: held.clear())
        self.decoders.submit(self._decode, held, future)
        return future

    def given_up(self) -> int:
        """Bytes of films that nobody waits for and that are being decoded all the same: nothing stops a decoder."""
        return sum(size for size, future in list(self.decoding.values()) if future.cancelled())

    def close(self) -> None:
        """Finish what has been submitted, and stop."""
        self.decoders.shutdown()
        self.ready.put(None)
        for worker in self.workers:
            worker.join()
        self.filters.__exit__(None, None, None)

    def _decode(self, held: list[bytes], future: Future[Prediction]) -> None:
        try:
            data = held.pop()
        except IndexError:
            return
        self.decoding[threading.get_ident()] = len(data), future
        try:
            require_film(data, self.limits)
            film = load_film(ImageFile(name="", data=data), self.renderings)
            if film.reason:
                raise Problem(422, film.reason)
        except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
        else:
            self.ready.put((film, future))
        finally:
            del self.decoding[threading.get_ident()]

    def _work(self) -> None:
        while batch := self._next():
            films, futures = zip(*batch, strict=True)
            self.on_batch(len(films))
            try:
                predictions = self.predictor.predict_loaded(films)
            except BaseException as error:  # noqa: BLE001 - the same
                for future in futures:
                    future.set_exception(error)
            else:
                for future, prediction in zip(futures, predictions, strict=True):
                    future.set_result(prediction)

    def _next(self) -> list[Waiting]:
        """The films of the next batch; none when there will be no more."""
        batch: list[Waiting] = []
        with self.gathering:
            last = time.monotonic() + GATHERING
            while len(batch) < self.at_once:
                try:
                    one = self.ready.get(timeout=max(last - time.monotonic(), 0) if batch else None)
                except queue.Empty:
                    break
                if one is None:
                    # For the next thread, too.
                    self.ready.put(None)
                    break
                if one[1].set_running_or_notify_cancel():
                    last = last if batch else time.monotonic() + GATHERING
                    batch.append(one)
        return batch
