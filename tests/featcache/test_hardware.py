"""What a computation ran on, also where the libraries and the scheduler know less."""

from __future__ import annotations

import os
import platform

import pytest
import torch

from featcache.hardware import device_in_words, processor_name


def test_a_torch_that_does_not_know_the_processor_leaves_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert processor_name() == platform.machine()


def test_the_threads_are_those_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7}, raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert device_in_words("cpu") == f"{processor_name()}, 3 threads"
