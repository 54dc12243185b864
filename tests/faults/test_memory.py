"""Out of memory on a batch: it goes on with half the batch, says so, and records it in the part."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from stores import bytes_below, rows_of

from faults.conftest import COMPUTE, CarryOut, ExtractHere, command
from faults.plans import BACKBONE, IMAGES, Plan
from featcache import making
from featcache.backbones import Backbone
from featcache.batches import Runner
from featcache.errors import BackboneError
from featcache.forward import compile_forward
from featcache.phantom import write_phantoms
from featcache.runtime import Forward, OutOfMemoryError
from featcache.store import verify_store


def note(size: int) -> str:
    return f"{BACKBONE}: out of memory for {size} images at once, went on with {size // 2}"


def batch_sizes(store: str | Path) -> list[int]:
    """What each part says of the batches that it was computed in, by name."""
    sizes = []
    for part in sorted((Path(store) / "parts").glob("part-*.h5")):
        with h5py.File(part) as file:
            sizes.append(int(file.attrs["provenance_batch_size"]))
    return sizes


@dataclasses.dataclass
class Device:
    """Stands for one whose memory is short.

    Attributes:
        fits: (number of the batch, images) → whether it runs.
        compiles: images → whether a network for so many at once is made; told each time.
        ran: images of each batch that ran.
    """

    fits: Callable[[int, int], bool] = lambda _, __: True
    compiles: Callable[[int], bool] = lambda _: True
    ran: list[int] = dataclasses.field(default_factory=list)
    numbers: Iterator[int] = dataclasses.field(default_factory=itertools.count)

    def compile_forward(self, backbone: Backbone, batch_size: int, **settings: Any) -> Forward:
        """As ``runtime.compile_forward``."""
        if not self.compiles(batch_size):
            raise OutOfMemoryError(f"out of memory: no room for {batch_size}")
        plain = compile_forward(backbone, batch_size, **settings)

        def forward(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            assert len(pixels) == batch_size
            if not self.fits(next(self.numbers), batch_size):
                raise OutOfMemoryError(f"out of memory: no room for {batch_size}")
            self.ran.append(batch_size)
            return plain(pixels)

        return forward


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """A device that everything is computed on, three batches at once."""
    device = Device()
    monkeypatch.setattr(making, "compile_forward", device.compile_forward)
    monkeypatch.setattr(making, "choose_streams", lambda *_: 3)
    return device


@pytest.mark.parametrize("when", ["compile", "run"])
@pytest.mark.parametrize(
    ("batch_size", "room", "tried"), [(8, 5, [8]), (8, 1, [8, 4, 2]), (7, 2, [7, 3]), (88, 8, [88, 44, 22, 11])]
)
def test_what_does_not_fit_is_halved_until_it_does_which_is_said_and_recorded(
    when: str,
    batch_size: int,
    room: int,
    tried: list[int],
    device: Device,
    extract_here: ExtractHere,
    tmp_path: Path,
    store: Path,
) -> None:
    if when == "compile":
        device.compiles = lambda size: size <= room
    else:
        device.fits = lambda _, size: size <= room
    summary = extract_here(tmp_path / "cache", compute=dataclasses.replace(COMPUTE, batch_size=batch_size))
    assert summary.notes == tuple(map(note, tried))
    assert (summary.images, summary.extracted) == (IMAGES, IMAGES)
    fitting = tried[-1] // 2
    assert set(device.ran) == set(batch_sizes(summary.store)) == {fitting}
    assert rows_of(summary.store) == rows_of(store)
    assert verify_store(Path(summary.store)) == []


@pytest.mark.parametrize("when", ["compile", "run"])
def test_what_a_failed_try_holds_is_let_go_before_the_next(when: str) -> None:
    """A batch on the device lies in the frames of the error, which may be a circle of their own."""
    held: list[weakref.ref[Held]] = []

    def fail(size: int) -> None:
        assert [one() for one in held] == [None] * len(held)
        if size > 2:
            holder = Held()
            holder.error = OutOfMemoryError(f"out of memory: no room for {size}")
            holder.error.holder = holder  # type: ignore[attr-defined]
            held.append(weakref.ref(holder))
            raise holder.error

    def compile_for(size: int) -> Forward:
        if when == "compile":
            fail(size)

        def forward(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            fail(size)
            return np.zeros((len(pixels), 1), np.float32)

        return forward

    gc.disable()  # No collection may come in between by chance.
    try:
        runner = Runner("net", compile_for, 16, 1)
        features, size = runner.submit([np.zeros((1, 4, 4), np.uint8)] * 3).result()
        runner.close()
    finally:
        gc.enable()
    assert (features.shape, size, len(held)) == ((3, 1), 2, 3)


class Held:
    """Stands for what lies on a device."""

    error: OutOfMemoryError


def test_several_batches_that_fail_at_once_are_halved_and_told_of_once(
    device: Device, extract_here: ExtractHere, tmp_path: Path, store: Path
) -> None:
    together = threading.Barrier(3)

    def fits(number: int, size: int) -> bool:
        if number < 3:
            together.wait(30)
        return size <= 4

    device.fits = fits
    summary = extract_here(tmp_path / "cache")
    assert summary.notes == (note(8),)
    assert set(device.ran) == {4}
    assert rows_of(summary.store) == rows_of(store)


def test_a_part_records_the_batches_that_it_was_computed_in(
    device: Device, extract_here: ExtractHere, tmp_path: Path, store: Path
) -> None:
    """Two batches make a part. The first part's second one is under way when the second part's first one fails."""
    halved = threading.Event()

    def compiles(size: int) -> bool:
        if size == 4:
            halved.set()
        return True

    def fits(number: int, size: int) -> bool:
        if number == 1:
            assert halved.wait(30)
            return True
        return number == 0 or size == 4

    device.fits, device.compiles = fits, compiles
    summary = extract_here(tmp_path / "cache")
    assert summary.notes == (note(8),)
    assert sorted(device.ran, reverse=True) == [8, 8, *[4] * 16]
    sizes = batch_sizes(summary.store)
    assert (sizes.count(8), sizes.count(4)) == (1, 4)
    assert rows_of(summary.store) == rows_of(store)


def test_a_part_computed_in_batches_of_two_sizes_records_the_smaller(
    device: Device, extract_here: ExtractHere, tmp_path: Path, store: Path
) -> None:
    device.fits = lambda number, size: number < 5 or size <= 4
    summary = extract_here(tmp_path / "cache", part_images=IMAGES)
    assert set(device.ran) == {8, 4}
    assert batch_sizes(summary.store) == [4]
    assert rows_of(summary.store) == rows_of(store)


def test_no_room_for_a_single_image_is_one_clear_error_and_finished_parts_stay(
    device: Device, extract_here: ExtractHere, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    device.fits = lambda number, _: number < 6
    with pytest.raises(BackboneError) as caught:
        extract_here(tmp_path / "cache")
    assert str(caught.value) == (
        f"{BACKBONE} has no room for a single image (out of memory: no room for 1): free memory, or use a smaller "
        "--image-size"
    )
    device.fits = lambda *_: True
    again = extract_here(tmp_path / "cache")
    assert (again.reused, again.notes) == (3 * 8, ())
    assert bytes_below(tmp_path / "cache") == undisturbed


# --- the real thing ---


def test_a_batch_that_memory_does_not_suffice_for_is_halved_in_earnest(carry_out: CarryOut, tmp_path: Path) -> None:
    """The pixels of 4,096 images take 192 MiB at this size; half of that is there."""
    root = write_phantoms(tmp_path / "few", train=8, val=2, test=4, size=64)

    def plan(cache: str, batch_size: str, **fate: Any) -> Plan:
        flags = ("--image-size", "128", "--extract-batch-size", batch_size, "--device", "cpu", "--threads", "1")
        arguments = (*command(root, tmp_path / cache, *flags), "--json")
        return Plan(root=str(root), cache=str(tmp_path / cache), arguments=arguments, **fate)

    ample, short = carry_out(plan("ample", "8"), plan("short", "4096", memory=100 * 2**20))
    assert (ample.status, short.status) == (0, 0), short.said
    told = json.loads(short.said[short.said.index("{\n") : short.said.rindex("}") + 1])
    assert told["notes"][0] == note(4096)
    assert f"{note(4096)}\n" in short.said
    assert len(told["notes"]) == len(set(told["notes"]))
    stores = [next((tmp_path / cache / "few").iterdir()) for cache in ("ample", "short")]
    assert max(batch_sizes(stores[1])) < 4096
    assert rows_of(stores[0]) == rows_of(stores[1])
