from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from featcache.backbones import Backbone
from featcache.check import Scan, scan
from featcache.estimate import Estimate, estimate
from featcache.extraction import extract
from featcache.images import discover
from featcache.runtime import Compute
from featcache.sharing import Share

COMPUTE = Compute(device="cpu", runtime="torch", precision="float32", batch_size=8, threads=2)


def expected(scanned_phantoms: Scan, root: Path, cache: Path, tiny: Backbone, **settings: Any) -> Estimate:
    return estimate(
        scanned_phantoms, root, cache, [tiny], **{"compute": COMPUTE, "part_images": 30, "views": 3, **settings}
    )


def test_an_estimate_names_what_an_extraction_then_writes(
    scanned_phantoms: Scan, phantoms: Path, tmp_path: Path, tiny: Backbone
) -> None:
    before = expected(scanned_phantoms, phantoms, tmp_path, tiny)
    assert (before.images, before.to_do, before.unreadable, before.views) == (88, 88, 0, 3)
    (each,) = before.backbones
    assert (each.missing, each.parts, each.damaged) == (88, 3, 0)
    assert before.images_per_second > 0
    assert before.seconds == pytest.approx(88 / before.images_per_second)
    (summary,) = extract(scanned_phantoms, phantoms, tmp_path, [tiny], views=3, compute=COMPUTE, part_images=30)
    assert (each.store, each.fingerprint, each.backbone) == (summary.store, summary.fingerprint, summary.backbone)
    written = sorted(Path(summary.store).glob("parts/*.h5"))
    assert len(written) == each.parts
    assert sum(path.stat().st_size for path in written) == pytest.approx(each.bytes, rel=0.25)


def test_an_estimate_writes_nothing_and_moves_nothing(
    scanned_phantoms: Scan, phantoms: Path, tmp_path: Path, tiny: Backbone
) -> None:
    expected(scanned_phantoms, phantoms, tmp_path / "cache", tiny)
    assert not (tmp_path / "cache").exists()
    (summary,) = extract(scanned_phantoms, phantoms, tmp_path, [tiny], views=3, compute=COMPUTE, part_images=30)
    part = next(Path(summary.store).glob("parts/*.h5"))
    part.write_bytes(b"damaged")
    (each,) = expected(scanned_phantoms, phantoms, tmp_path, tiny).backbones
    assert (each.parts, each.damaged) == (1, 1)
    assert part.read_bytes() == b"damaged"
    assert not (Path(summary.store) / "damaged").exists()


def test_what_is_there_is_not_estimated_again(
    scanned_phantoms: Scan, phantoms: Path, tmp_path: Path, tiny: Backbone
) -> None:
    extract(scanned_phantoms, phantoms, tmp_path, [tiny], views=1, compute=COMPUTE, part_images=30)
    more = expected(scanned_phantoms, phantoms, tmp_path, tiny)
    whole = expected(scanned_phantoms, phantoms, tmp_path / "empty", tiny)
    # Of three views the clean one is there: D = 16 features of two bytes an image less.
    assert whole.backbones[0].bytes - more.backbones[0].bytes == 88 * 16 * 2
    done = expected(scanned_phantoms, phantoms, tmp_path, tiny, views=1)
    assert (done.to_do, done.images_per_second, done.seconds) == (0, 0.0, 0.0)
    assert done.in_words()[-1] == "nothing to do"


def test_a_share_is_estimated_alone(scanned_phantoms: Scan, phantoms: Path, tmp_path: Path, tiny: Backbone) -> None:
    shares = [
        expected(scanned_phantoms, phantoms, tmp_path, tiny, share=Share(index=index, count=2)) for index in (1, 2)
    ]
    assert [share.to_do for share in shares] == [58, 30]


def test_words_and_json_say_the_same(phantoms: Path, tmp_path: Path, tiny: Backbone) -> None:
    root = tmp_path / "films"
    shutil.copytree(phantoms, root)
    next(root.glob("train/NORMAL/*")).write_bytes(b"")
    found = expected(scan(discover(root), root), root, tmp_path / "cache", tiny)
    told = found.to_json()
    assert told["unreadable"] == 1
    assert told["backbones"][0]["parts"] == 3
    first, second, third = found.in_words()
    assert first.startswith("tiny_network:tiny: 87 of 87 images to compute, 3 parts, 0.0 MiB in ")
    assert second == "1 images are unreadable; 'cxr data check' lists them"
    assert third.startswith("87 images × 3 views at ")
