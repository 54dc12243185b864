"""SIGINT, as Ctrl-C sends it: one clean line, exit 130, and the same command again goes on."""

from __future__ import annotations

import dataclasses
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stores import bytes_below, parts_of, unfinished

from faults.conftest import (
    INSTANTS,
    CarryOut,
    Phantoms,
    computed,
    environment,
    lines_without_bars,
    processes_of,
    repeated,
)
from faults.plans import PART_IMAGES, Blow, Plan
from faults.watched_network import NOTES, SECONDS

SAID = "cxr: interrupted; finished parts, heads and runs are kept, the same command again goes on from there"
AT_ONCE = 5


def stores_of(plan: Plan) -> list[Path]:
    """The folders of the stores that a typed plan has made."""
    return list((Path(plan.cache) / "phantoms").glob("*/"))


@repeated(-(-INSTANTS // AT_ONCE))
def test_an_interrupt_at_a_random_instant_is_one_line_and_the_same_command_again_ends_with_the_same_bytes(
    typed_plan: Phantoms, carry_out: CarryOut, undisturbed: dict[str, bytes], chance: random.Random
) -> None:
    plans = [typed_plan(f"cache-{number}") for number in range(AT_ONCE)]
    # One before the first image is done, while arguments are parsed or files are hashed; the others at any time.
    moments = [(0, chance.uniform(0, 0.2)), *((chance.randint(1, 36), chance.uniform(0, 0.02)) for _ in plans[1:])]
    blows = [Blow(images=images, wait=wait, signal=signal.SIGINT) for images, wait in moments]
    statuses = []
    struck = carry_out(*(dataclasses.replace(plan, blows=(blow,)) for plan, blow in zip(plans, blows, strict=True)))
    for ending, blow in zip(struck, blows, strict=True):
        statuses.append(ending.status)
        if ending.status != 0:  # It was not done before the signal came.
            assert (ending.status, lines_without_bars(ending.said)) == (130, [SAID]), blow
    assert statuses.count(130) > AT_ONCE // 2, blows
    assert not [path for plan in plans for path in Path(plan.cache).rglob("*") if unfinished(path)]
    parts = [{name: part for store in stores_of(plan) for name, part in parts_of(store).items()} for plan in plans]
    for plan, before, ending in zip(plans, parts, carry_out(*plans), strict=True):
        assert ending.status == 0
        assert bytes_below(Path(plan.cache) / "phantoms") == undisturbed
        (store,) = stores_of(plan)
        assert before.items() <= parts_of(store).items(), "a finished part has been written again"


def test_an_interrupt_before_the_arguments_are_read_is_one_line_too(typed_plan: Phantoms, carry_out: CarryOut) -> None:
    """typer turns it into an exit, but not yet while it reads the commands' signatures."""
    (ending,) = carry_out(typed_plan(blows=(Blow(signal=signal.SIGINT),)))
    assert (ending.status, ending.said) == (130, f"{SAID}\n")


@pytest.fixture
def interruptible() -> None:
    """Processes to be started heed SIGINT, though this one may have been started in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_of_a_run_on_two_devices_is_one_line_and_ends_every_process(
    typed_plan: Phantoms, carry_out: CarryOut, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """As the program is started from a shell, and not forked; only its parts are small."""
    small = f"from featcache.extraction import extract; extract.__kwdefaults__['part_images'] = {PART_IMAGES}"
    plan, cache = typed_plan(), tmp_path / "cache"
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"{small}; import cli; cli.main()",
            *typed_plan(where=("--devices", "cpu,cpu")).arguments,
        ],
        env=environment(**{NOTES: f"{cache}.computed", SECONDS: "0.05"}),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        until = time.monotonic() + 120
        while computed(cache) < 40 and running.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        workers = len(processes_of(cache)) - 1
        running.send_signal(signal.SIGINT)
        running.wait(60)
        # At once: left alone they would end too, when they have done what they have in hand.
        left = processes_of(cache)
        out, err = running.communicate()
    assert (workers, left) == (2, []), err
    assert (running.returncode, out) == (130, "")
    assert lines_without_bars(err) == [SAID]
    (store,) = stores_of(plan)
    assert (kept := parts_of(store))
    assert carry_out(plan)[0].status == 0
    assert kept.items() <= parts_of(store).items()
    assert bytes_below(cache / "phantoms") == undisturbed
