"""A model behind an application in this process; read its films, never write to them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from served import films_of, make_place, make_service
from starlette.testclient import TestClient

from cxr.serving.app import build_app
from cxr.serving.service import Service


@pytest.fixture(scope="session")
def place(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Films, a store and a run; see ``served.make_place``."""
    return make_place(tmp_path_factory.mktemp("served"), phantoms)


@pytest.fixture(scope="session")
def films(place: Path) -> list[bytes]:
    """The films of the data set, as files."""
    return [path.read_bytes() for path in films_of(place)]


@pytest.fixture(scope="module")
def service(place: Path) -> Service:
    """The service behind ``client``, which closes it."""
    return make_service(place)


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[TestClient]:
    """What asks it, without a network."""
    with TestClient(build_app(service), base_url="http://localhost") as asking:
        assert service.ready.wait(30)
        yield asking
