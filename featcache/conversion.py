"""No image is rendered while a network is converted: conversion changes how torch computes, for the whole process.

Found by a view that differed by one grey level of one pixel where a network was compiled in the meantime
(docs/log.md, 2026-11-25); a feature would have hung on when its image was read.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class Gate:
    """Lets many render, or one convert; whoever wants to convert goes before those who come to render."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.rendering = self.wanted = 0
        self.converting = False

    @contextlib.contextmanager
    def render(self) -> Iterator[None]:
        """Wait for conversions to end, and hold off the next."""
        with self.changed:
            self.changed.wait_for(lambda: not self.converting and not self.wanted)
            self.rendering += 1
        try:
            yield
        finally:
            with self.changed:
                self.rendering -= 1
                self.changed.notify_all()

    @contextlib.contextmanager
    def convert(self) -> Iterator[None]:
        """Wait for all that is rendered and for another conversion, and hold both off."""
        with self.changed:
            self.wanted += 1
            try:
                self.changed.wait_for(lambda: not self.converting and not self.rendering)
                self.converting = True
            finally:
                self.wanted -= 1
                self.changed.notify_all()
        try:
            yield
        finally:
            with self.changed:
                self.converting = False
                self.changed.notify_all()


GATE = Gate()
"""The process's."""
