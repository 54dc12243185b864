"""Which share of the work is this process's, where many are started by hand, by SLURM or by torchrun.

Shares are fixed by the image table alone, so workers need not talk: worker i of n makes every n-th chunk. What one of
them could not read it writes down beside the parts, for whoever writes the index last.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from featcache import atomic
from featcache.errors import SettingsError

FOLDER = "unreadable"


@dataclass(frozen=True, kw_only=True)
class Share:
    """The ``index``-th of ``count`` equal shares, counted from 1."""

    index: int = 1
    count: int = 1

    def holds(self, chunk: int) -> bool:
        """Whether a chunk of this number is in the share."""
        return chunk % self.count == self.index - 1

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def parse_share(text: str) -> Share:
    """Read ``i/n``.

    Raises:
        ValueError: it is not that, or i is not one of 1..n.
    """
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text.strip())
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError("wanted i/n with i from 1 to n, as in 2/8")
    return Share(index=int(found[1]), count=int(found[2]))


def share_from_environment(environment: Mapping[str, str]) -> tuple[Share, str]:
    """The share that a SLURM array or torchrun gives this process, and the variable that says so.

    ``SLURM_ARRAY_TASK_ID`` counts from ``SLURM_ARRAY_TASK_MIN`` in steps of one; ``RANK`` counts from 0. Without
    either, all of the work is this process's.

    Raises:
        SettingsError: the variables are no such numbers.
    """
    for index_name, count_name, first_name in (
        ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN"),
        ("RANK", "WORLD_SIZE", ""),
    ):
        if index_name in environment and count_name in environment:
            try:
                first = int(environment.get(first_name, "0"))
                share = Share(index=int(environment[index_name]) - first + 1, count=int(environment[count_name]))
            except ValueError as error:
                raise SettingsError(f"{index_name} and {count_name} are no numbers: say --worker i/n") from error
            if not 1 <= share.index <= share.count:
                raise SettingsError(
                    f"{index_name}={environment[index_name]} is not one of {share.count} in a row: say --worker i/n"
                )
            return share, index_name
    return Share(), ""


def write_unreadable(store: Path, share: Share, reasons: Mapping[str, str]) -> None:
    """Note what this worker could not read, content hash → reason, in place of what it noted before.

    Raises:
        WriteError: the folder cannot be written.
    """
    path = store / FOLDER / f"worker-{share.index}-of-{share.count}.json"
    if reasons or path.exists():
        atomic.write_text(path, json.dumps(dict(sorted(reasons.items())), indent=1))


def read_unreadable(store: Path) -> dict[str, str]:
    """What all workers together could not read; a note that is damaged counts as none."""
    reasons: dict[str, str] = {}
    for path in sorted((store / FOLDER).glob("worker-*.json")):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            reasons |= {key: value for key, value in found.items() if isinstance(value, str)}
    return reasons
