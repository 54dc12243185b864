"""How far a pass over the images is, and what it waits for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from featcache.loading import ImageViews


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the pass is: images done of all to do, and where its time went, in seconds."""

    images_done: int
    images_total: int
    seconds: float
    waited_for_images: float

    @property
    def remark(self) -> str:
        """Rate and limit, for a person."""
        return f"{self.images_done / max(self.seconds, 1e-9):.0f} img/s, limited by {self.limited_by}"

    @property
    def limited_by(self) -> Literal["decode", "compute", "nothing to do"]:
        """What the pass waits for: images (decode) or the network (compute)."""
        if not self.images_total:
            return "nothing to do"
        return "decode" if self.waited_for_images > self.seconds / 2 else "compute"


class Clock:
    """Counts images and seconds, and tells the caller."""

    def __init__(self, total: int, on_progress: Callable[[Progress], None] | None) -> None:
        self.total, self.on_progress = total, on_progress
        self.done, self.waited, self.started = 0, 0.0, time.perf_counter()

    def awaited(self, images: Iterator[ImageViews]) -> ImageViews:
        """The next image; the time until it is there is what decoding costs the pass."""
        before = time.perf_counter()
        image = next(images)
        self.waited += time.perf_counter() - before
        return image

    def tick(self) -> None:
        """Count an image."""
        self.done += 1
        if self.on_progress is not None:
            self.on_progress(self.progress())

    def progress(self) -> Progress:
        """Where the pass stands now."""
        return Progress(
            images_done=self.done,
            images_total=self.total,
            seconds=time.perf_counter() - self.started,
            waited_for_images=self.waited,
        )
