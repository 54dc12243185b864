"""``cxr`` where the clock stands at another time and folders list their files in another order.

``python -m faults.oddly SECONDS SEED ARGUMENTS…``: the time since 1970, the seed of the order, and a command.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Iterator
from typing import Any, Self

from faults.plans import PART_IMAGES


def disturb(seconds: float, seed: int) -> None:
    """Set the clock, and let every folder list its files in a random order."""
    started, order = time.perf_counter(), random.Random(seed)  # noqa: S311 - no secret is made here
    plain: dict[str, Any] = {"listdir": os.listdir, "scandir": os.scandir}

    class Entries:
        """What ``os.scandir`` gives, in another order."""

        def __init__(self, *path: Any) -> None:
            with plain["scandir"](*path) as entries:
                self.left = shuffled(list(entries))

        def __iter__(self) -> Iterator[Any]:
            return self

        def __next__(self) -> Any:
            if not self.left:
                raise StopIteration
            return self.left.pop()

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            self.close()

        def close(self) -> None:
            self.left.clear()

    def shuffled(names: list[Any]) -> list[Any]:
        names.sort(key=os.fspath, reverse=True)
        order.shuffle(names)
        return names

    odd: dict[Any, dict[str, Any]] = {
        time: {
            "time": lambda: seconds + time.perf_counter() - started,
            "time_ns": lambda: int((seconds + time.perf_counter() - started) * 1e9),
        },
        os: {"listdir": lambda *path: shuffled(plain["listdir"](*path)), "scandir": Entries},
    }
    for module, functions in odd.items():
        vars(module).update(functions)


def main() -> None:
    """Run the command."""
    seconds, seed, *arguments = sys.argv[1:]
    disturb(float(seconds), int(seed))
    import cli
    from featcache.extraction import extract

    assert extract.__kwdefaults__ is not None
    extract.__kwdefaults__["part_images"] = PART_IMAGES
    sys.argv = ["cxr", *arguments]
    cli.main()


if __name__ == "__main__":
    main()
