"""How far a pass over the images is, and what it waits for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the pass is, and where its time went.

    Attributes:
        images_done: of all that are to do.
        images_total: these.
        seconds: since the pass began.
        waited_for_images: of these seconds, those in which the networks waited.
        starting: of these seconds, those until the first images were done: networks are loaded and compiled then.
        images_at_start: how many were done then.
    """

    images_done: int
    images_total: int
    seconds: float
    waited_for_images: float
    starting: float = 0.0
    images_at_start: int = 0

    @property
    def images_per_second(self) -> float:
        """The rate since the first images were done."""
        if self.images_done > self.images_at_start:
            return (self.images_done - self.images_at_start) / max(self.seconds - self.starting, 1e-9)
        return self.images_done / max(self.seconds, 1e-9)

    @property
    def remark(self) -> str:
        """Rate and limit, for a person."""
        return f"{self.images_per_second:.0f} img/s, limited by {self.limited_by}"

    @property
    def limited_by(self) -> Literal["decode", "compute", "nothing to do"]:
        """What the pass waits for: images (decode) or the network (compute)."""
        if not self.images_total:
            return "nothing to do"
        return "decode" if self.waited_for_images > self.seconds / 2 else "compute"


class Clock:
    """Counts images and seconds, and tells the caller.

    Attributes:
        notes: mishaps that the user should be told of, a line each.
    """

    def __init__(self, total: int, on_progress: Callable[[Progress], None] | None = None, workers: int = 1) -> None:
        """``workers`` compute at once, and each of them waits."""
        self.total, self.on_progress, self.workers = total, on_progress, workers
        self.done, self.waited, self.started = 0, 0.0, time.perf_counter()
        self.starting, self.at_start = 0.0, 0
        self.notes: list[str] = []

    def tick(self, images: int, waited: float) -> None:
        """Count images, fewer than none where they must be done again, and the seconds that were waited for them."""
        self.done, self.waited = self.done + images, self.waited + waited
        if not self.starting:
            self.starting, self.at_start = time.perf_counter() - self.started, self.done
        if self.on_progress is not None:
            self.on_progress(self.progress())

    def progress(self) -> Progress:
        """Where the pass stands now."""
        return Progress(
            images_done=self.done,
            images_total=self.total,
            seconds=time.perf_counter() - self.started,
            waited_for_images=self.waited / self.workers,
            starting=self.starting,
            images_at_start=self.at_start,
        )
