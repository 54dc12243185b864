"""What stores hold, for comparing one with another."""

from __future__ import annotations

from pathlib import Path

from featcache.atomic import TEMPORARY_PREFIX
from featcache.index import PARTS_NAME
from featcache.parts import read_features, read_header


def bytes_below(cache: Path) -> dict[str, bytes]:
    """Path → content of each file below a cache, but for locks, notes of workers and what a kill left half-written."""
    files = (path for path in sorted(cache.rglob("*")) if path.is_file() and path.suffix not in (".lock", ".json"))
    return {str(path.relative_to(cache)): path.read_bytes() for path in files if not unfinished(path)}


def unfinished(path: Path) -> bool:
    """Whether a file bears the name of one that is being written."""
    return path.name.startswith(TEMPORARY_PREFIX)


def parts_of(store: str | Path) -> dict[str, tuple[bytes, int, int]]:
    """Name → content, time of change and inode of each part: equal where it has been left alone."""
    parts = [path for path in sorted((Path(store) / PARTS_NAME).glob("*")) if not unfinished(path)]
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) for path in parts}


def rows_of(store: str | Path) -> dict[tuple[str, int], bytes]:
    """(content hash, view) → the bytes of the stored feature; fails where a row is held twice."""
    rows: dict[tuple[str, int], bytes] = {}
    for path in sorted((Path(store) / PARTS_NAME).glob("part-*.h5")):
        header = read_header(path)
        features = read_features(header)
        for number, digest in enumerate(header.image_sha256):
            for position, view in enumerate(header.views):
                assert (digest, view) not in rows, f"{digest}, view {view} is held twice"
                rows[digest, view] = features[number, position].tobytes()
    return rows
