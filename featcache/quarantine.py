"""Images that could not be used, and why: never dropped in silence."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable

ALIKE = 3
"""More images than this with the same reason share a line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quarantined:
    """An image that could not be used, and why; it is listed everywhere and never dropped in silence."""

    image_id: str
    reason: str


def in_lines(rows: Iterable[Quarantined], most: int) -> list[str]:
    """Images and reasons in words: a line each, or one for all that have the same reason, where they are many.

    Beyond ``most`` lines only their number is told; '--json' lists all.
    """
    alike: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        alike[row.reason].append(row.image_id)
    lines = [
        line
        for reason, names in alike.items()
        for line in (
            [f"{names[0]} and {len(names) - 1} more: {reason}"]
            if len(names) > ALIKE
            else [f"{name}: {reason}" for name in names]
        )
    ]
    return [*lines[:most], f"… and {len(lines) - most} more lines ('--json' lists all)"] if len(lines) > most else lines
