"""What tests share: a clean environment, the real data where they are, phantoms, and stores of a tiny network."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from featcache.check import Scan, scan
from featcache.images import discover
from featcache.phantom import write_phantoms

if TYPE_CHECKING:
    from featcache.backbones import Backbone

# As cli.main does, and for the same reason; torch is not loaded yet.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Backbones are named ``module:callable``: ``tiny_network:tiny`` lies beside this file.
sys.path.insert(0, str(Path(__file__).parent))

# On a busy machine a slow example is no finding.
settings.register_profile("cxr", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("cxr")

REAL_DATA = Path(os.environ["CXR_DATA"]).resolve() if os.environ.get("CXR_DATA") else None
"""Taken before any test removes the variable or leaves the folder it is relative to."""

BROWSER_REQUIRED = os.environ.get("BROWSER_TESTS") == "required"
"""Whether a browser must be here: .ci/run, which installs one, says so."""

ExtractPhantoms = Callable[..., Path]
"""``(cache, *, views=1, part_images=256, backbone="tiny_network:tiny")`` → the store's folder."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where the real data are, a test of theirs that is skipped has failed; so has one of the browser's in CI."""
    report = yield
    if REAL_DATA is not None and report.skipped and item.get_closest_marker("real"):
        report.outcome = "failed"
        report.longrepr = f"CXR_DATA is set, so this test may not be skipped: {report.longrepr}"
    if BROWSER_REQUIRED and report.skipped and item.get_closest_marker("browser"):
        report.outcome = "failed"
        report.longrepr = f"BROWSER_TESTS is 'required', so this test may not be skipped: {report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the user's reaches a test, and torch keeps to two threads."""
    for name in list(os.environ):
        if name.startswith("CXR_"):
            monkeypatch.delenv(name)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(2)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The real radiographs; tests that use them are marked ``real``."""
    if REAL_DATA is None:
        pytest.skip("CXR_DATA is not set: it names the folder of the real radiographs")
    if not REAL_DATA.is_dir():
        pytest.fail(f"CXR_DATA names no folder: {REAL_DATA}")
    return REAL_DATA


@pytest.fixture(scope="session")
def real_scan(real_data: Path) -> Scan:
    """The real radiographs' image table, hashed."""
    return scan(discover(real_data), real_data)


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small phantom data set of 48 + 16 + 24 images; read it, never write to it."""
    return write_phantoms(tmp_path_factory.mktemp("data") / "phantoms", train=48, val=16, test=24, size=64)


@pytest.fixture(scope="session")
def scanned_phantoms(phantoms: Path) -> Scan:
    """The phantoms' image table, hashed."""
    return scan(discover(phantoms), phantoms)


@pytest.fixture(scope="session")
def tiny() -> Backbone:
    """A network that takes a millisecond."""
    # Imported here, so that tests which need no torch start without it.
    from featcache.backbones import load_backbone

    return load_backbone("tiny_network:tiny")


@pytest.fixture(scope="session")
def extract_phantoms(phantoms: Path, scanned_phantoms: Scan) -> ExtractPhantoms:
    """A function that extracts the phantoms with the tiny network below a cache folder; returns the store's folder."""

    def build(cache: Path, *, views: int = 1, part_images: int = 256, backbone: str = "tiny_network:tiny") -> Path:
        # As above.
        from featcache.backbones import load_backbone
        from featcache.extraction import extract
        from featcache.runtime import Compute

        compute = Compute(device="cpu", runtime="torch", precision="float32", batch_size=8, threads=2)
        (summary,) = extract(
            scanned_phantoms,
            phantoms,
            cache / "phantoms",
            [load_backbone(backbone)],
            views=views,
            compute=compute,
            part_images=part_images,
        )
        return Path(summary.store)

    return build


@pytest.fixture(scope="session")
def phantom_store(extract_phantoms: ExtractPhantoms, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store of the phantoms: 3 views in parts of 32 images; read it, never write to it."""
    return extract_phantoms(tmp_path_factory.mktemp("cache"), views=3, part_images=32)
