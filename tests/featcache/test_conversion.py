"""Rendering and converting keep apart, and neither waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

from featcache.conversion import GATE, Gate
from featcache.views import Geometry, render


def started(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_nothing_is_rendered_while_a_network_is_converted() -> None:
    pixels = np.zeros((40, 40), np.uint8)
    geometry = Geometry(image_size=32, resize_side=32, interpolation="bilinear")
    with GATE.convert():
        thread = started(lambda: render(pixels, "0" * 64, [0], geometry))
        thread.join(0.2)
        assert thread.is_alive()
    thread.join(10)
    assert not thread.is_alive()


def test_who_converts_waits_for_what_is_rendered_and_goes_before_what_comes() -> None:
    gate, order = Gate(), list[str]()

    def convert() -> None:
        with gate.convert():
            order.append("converted")

    def again() -> None:
        with gate.render():
            order.append("rendered")

    with gate.render(), gate.render():
        first = started(convert)
        while not gate.wanted:
            pass
        second = started(again)
        second.join(0.1)
        order.append("first rendered")
    first.join(10)
    second.join(10)
    assert order == ["first rendered", "converted", "rendered"]


def test_a_failed_conversion_or_rendering_holds_nobody_up() -> None:
    gate = Gate()
    for enter in (gate.convert, gate.render):
        with pytest.raises(ValueError, match="failed"), enter():
            raise ValueError("failed")
    with gate.convert():
        pass
    with gate.render():
        pass
