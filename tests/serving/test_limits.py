"""Whatever is sent, it is answered soon, by a clean refusal, and the next film is answered as ever."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import struct
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from dicom_files import dicom
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian
from served import make_service
from starlette.testclient import TestClient

from cxr.serving.app import build_app
from cxr.serving.limits import Limits, require_film
from cxr.serving.problems import Problem
from cxr.serving.service import Service

NOISE = np.random.default_rng(0)


def encoded(pixels: Any, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def film(side: int = 96, form: str = "JPEG") -> bytes:
    return encoded(NOISE.integers(0, 255, (side, side), np.uint8), form)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, rows: bytes, depth: int = 8, colour: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [png_chunk(b"IHDR", header), png_chunk(b"IDAT", rows), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("film.jpeg", b"\0" * 10_000_000)
    return buffer.getvalue()


def jpeg_of_size(height: int, width: int) -> bytes:
    """A sound JPEG whose header says another size."""
    data = film()
    place = data.index(b"\xff\xc0")
    return data[: place + 5] + struct.pack(">HH", height, width) + data[place + 9 :]


def of_scans(count: int, height: int, width: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again, until there are so many."""
    data = encoded(np.zeros((height, width), np.uint8), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * (count - data.count(b"\xff\xda") + 1) + b"\xff\xd9"


def lying_dicom(**attributes: Any) -> bytes:
    return dicom(np.zeros((64, 64), np.uint16), **attributes)


HOSTILE: dict[str, tuple[Callable[[], bytes], int]] = {
    "nothing": (lambda: b"", 422),
    "one byte": (lambda: b"\xff", 415),
    "text": (lambda: b"a film, honestly", 415),
    "html": (lambda: b"<!doctype html><script>alert(1)</script>", 415),
    "svg": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', 415),
    "zip named jpeg": (zipped, 415),
    "gif": (lambda: encoded(np.zeros((64, 64), np.uint8), "GIF"), 415),
    "tiff": (lambda: encoded(np.zeros((64, 64), np.uint8), "TIFF"), 415),
    "webp": (lambda: encoded(np.zeros((64, 64, 3), np.uint8), "WEBP"), 415),
    "1x1 png": (lambda: film(1, "PNG"), 422),
    "1x1 jpeg": (lambda: film(1), 422),
    "a line of 20,000 pixels": (lambda: encoded(np.zeros((64, 20_000), np.uint8), "PNG"), 422),
    "20,000 x 20,000 png": (lambda: png(20_000, 20_000, zlib.compress(b"\0" * 20_001 * 2_000, 9)), 422),
    "20,000 x 20,000 jpeg": (lambda: jpeg_of_size(20_000, 20_000), 422),
    "65,535 x 65,535 jpeg": (lambda: jpeg_of_size(65_535, 65_535), 422),
    "png whose size is nought": (lambda: png(0, 0, zlib.compress(b"")), 422),
    "png that inflates without end": (lambda: png(64, 64, zlib.compress(b"\0" * 50_000_000, 9)), 200),
    "png of 7,000 x 7,000 in 16 bits of RGBA": (
        lambda: png(7_000, 7_000, zlib.compress(b"\0" * 1_000, 9), 16, 6),
        422,
    ),
    "png with a bomb for text": (
        lambda: (
            film(64, "PNG")[:33]
            + png_chunk(b"zTXt", b"k\0\0" + zlib.compress(b"\0" * 100_000_000, 9))
            + film(64, "PNG")[33:]
        ),
        422,
    ),
    "half a jpeg": (lambda: film()[:1500], 422),
    "half a png": (lambda: film(form="PNG")[:1500], 422),
    "a jpeg's first bytes": (lambda: film()[:20], 422),
    "jpeg and zip": (lambda: film() + zipped(), 422),
    "jpeg and html": (lambda: film() + b"<script>alert(1)</script>", 422),
    "png and zip": (lambda: film(form="PNG") + zipped(), 422),
    "jpeg of 200 scans": (lambda: of_scans(200, 6000, 6000), 422),
    "jpeg of 100 scans of 40 million pixels": (lambda: of_scans(100, 4000, 9999), 422),
    "dicom that is a program": (lambda: b"MZ" + lying_dicom()[2:], 422),
    "dicom of 60,000 x 60,000": (lambda: lying_dicom(Rows=60_000, Columns=60_000), 422),
    "dicom of no rows": (lambda: lying_dicom(Rows=0), 422),
    "dicom of 64 bits": (lambda: lying_dicom(BitsAllocated=64, BitsStored=64, HighBit=63), 422),
    "dicom of a thousand frames": (lambda: lying_dicom(NumberOfFrames=1000), 422),
    "dicom of a CT": (lambda: lying_dicom(Modality="CT", SOPClassUID="1.2.840.10008.5.1.4.1.1.2"), 422),
    "dicom that is deflated without end": (
        lambda: (
            dicom(np.zeros((64, 64), np.uint16), DeflatedExplicitVRLittleEndian)[:340] + zlib.compress(b"\0" * 10**8)
        ),
        422,
    ),
    "dicom's mark and noise": (lambda: b"\0" * 128 + b"DICM" + NOISE.bytes(5000), 422),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_upload_is_refused_within_two_seconds_and_the_next_film_is_answered(
    client: TestClient, films: list[bytes], name: str
) -> None:
    make, status = HOSTILE[name]
    data = make()
    began = time.monotonic()
    response = client.post("/predict", content=data, headers={"Content-Type": "image/jpeg"})
    assert time.monotonic() - began < 2
    assert response.status_code == status, response.text
    if status != 200:
        problem = response.json()
        assert response.headers["content-type"] == "application/problem+json"
        assert problem.keys() == {"type", "title", "status", "detail"}
        assert problem["status"] == status
        assert problem["detail"]
        for word in ("Traceback", "File ", ".py", "PIL", "0x"):
            assert word not in response.text
    assert client.post("/predict", content=films[0]).status_code == 200


def test_a_progressive_jpeg_of_as_many_scans_as_encoders_make_is_a_film() -> None:
    data = encoded(NOISE.integers(0, 255, (200, 200, 3), np.uint8), "JPEG", progressive=True)
    assert data.count(b"\xff\xda") > 5
    require_film(data, Limits())


def test_scans_are_bounded_by_the_pixels_that_all_of_them_pass_over() -> None:
    for height, width, most in ((4000, 9999, 15), (2000, 4000, 75), (100, 100, 100)):
        require_film(of_scans(most, height, width), Limits())
        with pytest.raises(Problem, match=f"more than {most} scans"):
            require_film(of_scans(most + 1, height, width), Limits())


def test_padding_behind_the_end_of_an_image_is_no_second_file() -> None:
    for data in (film(), film(form="PNG")):
        require_film(data + b"\0" * 511, Limits())
        with pytest.raises(Problem, match="behind the image's end"):
            require_film(data + b"\0" * 511 + b"PK", Limits())


def test_what_phones_put_behind_a_photograph_does_not_keep_it_from_being_judged(client: TestClient) -> None:
    first, second = Image.open(io.BytesIO(film())), Image.open(io.BytesIO(film(64)))
    buffer = io.BytesIO()
    first.save(buffer, "MPO", save_all=True, append_images=[second])
    pictures = buffer.getvalue()
    assert pictures.count(b"\xff\xd8\xff") >= 2
    trailer = film() + b"\0\0\x01\x0a\x08\0\0\0Image_UTC_Data0SEFHk\0\0\0\x01\0\0\0\x18\0\0\0SEFT"
    for data in (pictures, trailer):
        assert client.post("/predict?explain=true", content=data).status_code == 200
    # Pictures that nothing announced are something else.
    assert client.post("/predict", content=film() + film()).status_code == 422


def test_pixels_are_counted_before_any_is_decoded() -> None:
    require_film(film(100), Limits(max_pixels=10_000))
    with pytest.raises(Problem, match="100×100 pixels are too many"):
        require_film(film(100), Limits(max_pixels=9_999))


@pytest.mark.real
def test_every_film_of_the_data_set_is_taken(real_data: Path) -> None:
    paths = [path for path in real_data.rglob("*") if path.suffix == ".jpeg" and not path.name.startswith(".")]
    assert len(paths) > 5_000
    for path in paths:
        require_film(path.read_bytes(), Limits())


# ---- bytes


@pytest.fixture(scope="module")
def narrow(place: Path) -> Iterator[TestClient]:
    """A server that takes 100,000 bytes and three files."""
    service = make_service(place, Limits(max_bytes=100_000, max_files=3))
    with TestClient(build_app(service), base_url="http://localhost") as client:
        yield client


def pieces(data: bytes, size: int = 1000) -> Iterator[bytes]:
    """A body without a Content-Length."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


def padded(length: int) -> bytes:
    return film().ljust(length, b"\0")


@pytest.mark.parametrize("announced", [True, False])
def test_bytes_are_counted_as_they_come_whatever_was_announced(narrow: TestClient, announced: bool) -> None:
    for length, status in ((100_000, 200), (100_001, 413), (5_000_000, 413)):
        body: Any = padded(length) if announced else pieces(padded(length))
        response = narrow.post("/predict", content=body)
        assert response.status_code == status
    assert response.json()["detail"] == "more than 100,000 bytes"
    assert response.headers["connection"] == "close"


def test_a_form_is_bounded_in_bytes_and_files(narrow: TestClient) -> None:
    def sent(*files: bytes) -> httpx2.Response:
        return narrow.post("/predict", files=[("file", (f"{number}", data)) for number, data in enumerate(files)])

    assert sent(padded(50_000), padded(50_000)).status_code == 200
    assert sent(padded(50_000), padded(50_001)).status_code == 413
    assert sent(film(), film(), film()).status_code == 200
    refused = sent(film(), film(), film(), film())
    assert (refused.status_code, refused.json()["detail"]) == (413, "more than 3 files at once")
    # Fields that are no files count, too, and have a limit of their own.
    field = b'--x\r\nContent-Disposition: form-data; name="n"\r\n\r\n'
    file = b'--x\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n' + film() + b"\r\n--x--\r\n"
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    for count, status in ((100, 200), (500, 413)):
        body = (field + b"a\r\n") * count + file
        assert len(body) < 100_000
        assert narrow.post("/predict", content=pieces(body), headers=form).status_code == status
    assert narrow.post("/predict", data={"note": "x" * 200_000}, files={"file": film()}).status_code == 413


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", "multipart/form-data", 400),
        (b"", "multipart/form-data; boundary=x", 400),
        (b"--x\r\n", "multipart/form-data; boundary=x", 400),
        (b"no form", "multipart/form-data; boundary=x", 400),
        (
            b"--x\r\nContent-Disposition: form-data; filename=b\r\n\r\ncut",
            "multipart/form-data; boundary=x",
            400,
        ),
        (
            b"--x\r\nContent-Disposition: form-data\r\n\r\ntext\r\n--x--\r\n",
            "multipart/form-data; boundary=x",
            422,
        ),
        (b"--x\r\nnot a header\r\n\r\n\r\n--x--\r\n", "multipart/form-data; boundary=x", 400),
        (b"--x\r\n" + b"A: b\r\n" * 100 + b"\r\n\r\n--x--\r\n", "multipart/form-data; boundary=x", 400),
        (b"a=b", "application/x-www-form-urlencoded", 415),
        (b"{}", "application/json", 415),
        (b"x", "nonsense", 415),
    ],
)
def test_a_body_that_is_no_form_is_told_so(client: TestClient, body: bytes, kind: str, status: int) -> None:
    response = client.post("/predict", content=body, headers={"Content-Type": kind})
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"


def test_what_is_asked_beside_the_film_is_checked_and_not_repeated(client: TestClient) -> None:
    for query in ("neighbours=-1", "neighbours=21", "neighbours=SECRET", "explain=SECRET"):
        response = client.post(f"/predict?{query}", content=film())
        assert response.status_code == 422
        assert "SECRET" not in response.text
        assert response.json()["detail"].startswith(f"query.{query.partition('=')[0]}: ")


WRITES: list[str] = []
watching = threading.Event()


def _note_writes(event: str, arguments: tuple[Any, ...]) -> None:
    if watching.is_set() and event == "open" and isinstance(arguments[2], int) and arguments[2] & 0o3:
        WRITES.append(str(arguments[0]))


def test_nothing_of_an_upload_is_written_to_disk(client: TestClient) -> None:
    # An audit hook hears of every file that Python opens, temporary ones included, and stays for good.
    sys.addaudithook(_note_writes)
    large = encoded(NOISE.integers(0, 255, (2500, 2500), np.uint8), "PNG")
    assert len(large) > 5_000_000
    watching.set()
    try:
        raw = client.post("/predict?explain=true&neighbours=3", content=large)
        form = client.post("/predict", files={"file": large})
    finally:
        watching.clear()
    assert (raw.status_code, form.status_code) == (200, 200)
    assert WRITES == []


# ---- room and time


class Blocked:
    """A service whose network waits until it is let go."""

    def __init__(self, place: Path, limits: Limits) -> None:
        self.service = make_service(place, limits)
        self.go, self.running = threading.Event(), threading.Event()
        answer = self.service.predictor.predict_loaded

        def slow(films: Any) -> Any:
            self.running.set()
            assert self.go.wait(30)
            return answer(films)

        self.service.warm_up()
        self.service.predictor.predict_loaded = slow  # type: ignore[method-assign]
        self.service.warm_up = lambda: None  # type: ignore[method-assign]


def test_past_the_queue_films_are_refused_at_once_and_told_when_to_come_again(place: Path, films: list[bytes]) -> None:
    blocked = Blocked(place, Limits(queue=6))
    app = build_app(blocked.service)
    with TestClient(app, base_url="http://localhost") as client, ThreadPoolExecutor(6) as pool:
        waiting = [pool.submit(client.post, "/predict", content=films[0]) for _ in range(6)]
        while blocked.service.admission.films < 6:
            time.sleep(0.01)
        full = client.post("/predict", content=films[0])
        assert full.status_code == 503
        assert int(full.headers["retry-after"]) >= 1
        assert client.get("/healthz").status_code == 200
        blocked.go.set()
        assert [one.result().status_code for one in waiting] == [200] * 6
        assert client.post("/predict", content=films[0]).status_code == 200
        assert blocked.service.admission.films == blocked.service.admission.bytes == 0
        assert client.post("/predict", files=[("file", ("x", films[0]))] * 6).status_code == 200
        # There will never be room for more than the queue holds: it is of no use to come again.
        many = client.post("/predict", files=[("file", ("x", films[0]))] * 7)
        assert (many.status_code, many.json()["detail"]) == (413, "more than 6 files at once")
        assert client.get("/model").json()["limits"]["max_files"] == 6
        assert blocked.service.admission.films == 0


def test_a_form_takes_as_many_places_as_it_has_films(place: Path, films: list[bytes]) -> None:
    blocked = Blocked(place, Limits(queue=6))
    with TestClient(build_app(blocked.service), base_url="http://localhost") as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/predict", content=films[0])
        while blocked.service.admission.films < 1:
            time.sleep(0.01)
        assert client.post("/predict", files=[("file", ("x", films[0]))] * 6).status_code == 503
        blocked.go.set()
        assert first.result().status_code == 200
        assert blocked.service.admission.films == 0


def test_uploads_together_are_bounded_in_bytes(place: Path) -> None:
    blocked = Blocked(place, Limits(max_bytes=20_000, queue=100))
    with TestClient(build_app(blocked.service), base_url="http://localhost") as client, ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(client.post, "/predict", content=padded(20_000)) for _ in range(8)]
        while blocked.service.admission.bytes < 160_000:
            time.sleep(0.01)
        assert client.post("/predict", content=padded(20_000)).status_code == 503
        blocked.go.set()
        assert [one.result().status_code for one in waiting] == [200] * 8


def test_a_film_that_is_not_answered_in_its_time_is_given_up_cleanly(place: Path, films: list[bytes]) -> None:
    blocked = Blocked(place, Limits(timeout=0.3))
    with TestClient(build_app(blocked.service), base_url="http://localhost") as client:
        late = client.post("/predict", content=films[0])
        assert late.status_code == 503
        assert late.json()["detail"].startswith("no answer within 0.3 s")
        assert "retry-after" in late.headers
        assert blocked.service.admission.films == 0
        blocked.go.set()
        assert client.post("/predict", content=films[0]).status_code == 200


def test_a_film_that_does_not_arrive_in_its_time_is_given_up(place: Path) -> None:
    service = make_service(place, Limits(timeout=0.3))
    try:
        statuses, body = asyncio.run(_ask_by_hand(service, [b"\xff\xd8\xff"], hang=True))
    finally:
        service.close()
    assert statuses == [408]
    assert json.loads(body)["detail"] == "the film did not arrive within 0.3 s"


def test_who_goes_away_frees_his_place_and_costs_the_network_nothing(place: Path, films: list[bytes]) -> None:
    blocked = Blocked(place, Limits())
    service = blocked.service

    async def leave() -> None:
        # The network's threads, two at most, and what they hold, are busy; this film waits.
        first = [asyncio.wrap_future(service.batcher.submit(films[0])) for _ in range(8)]
        await asyncio.to_thread(blocked.running.wait)
        statuses, _ = await _ask_by_hand(service, [films[0]], gone_after=0.2)
        assert statuses == [499]
        assert service.admission.films == 0
        blocked.go.set()
        await asyncio.gather(*first)

    asyncio.run(leave())
    service.close()
    batches = service.metrics.exposition().decode()
    assert "cxr_batch_images_sum 8.0" in batches


def test_who_goes_away_while_he_sends_is_counted_with_those_who_did_not_wait(place: Path, films: list[bytes]) -> None:
    service = make_service(place)
    try:
        sent = _ask_by_hand(service, [films[0][:100]], hang=True, gone_after=0.05)
        assert asyncio.run(sent)[0] == [499]
        assert service.admission.films == service.admission.bytes == 0
        assert 'cxr_requests_total{status="499"} 1.0' in service.metrics.exposition().decode()
    finally:
        service.close()


async def _ask_by_hand(
    service: Service, chunks: list[bytes], *, hang: bool = False, gone_after: float | None = None
) -> tuple[list[int], bytes]:
    """Speak ASGI as a server does whose client is slow, or goes away."""
    app = build_app(service)
    left, statuses, body = list(chunks), [], b""

    async def receive() -> dict[str, Any]:
        if left:
            return {"type": "http.request", "body": left.pop(0), "more_body": bool(left) or hang}
        await asyncio.sleep(60 if gone_after is None else gone_after)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal body
        if message["type"] == "http.response.start":
            statuses.append(message["status"])
        else:
            body += message["body"]

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/predict",
        "raw_path": b"/predict",
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": [(b"host", b"localhost"), (b"content-type", b"image/jpeg")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)
    return statuses, body


# ---- our own failures


def test_a_failure_of_ours_is_a_plain_500_and_its_log_quotes_nothing(
    place: Path, films: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    service = make_service(place)
    answer = service.predictor.predict_loaded
    with TestClient(build_app(service), base_url="http://localhost") as client:
        assert service.ready.wait(30)

        def broken(_films: Any) -> Any:
            raise RuntimeError("SECRET of a patient")

        service.predictor.predict_loaded = broken  # type: ignore[assignment, method-assign]
        with caplog.at_level(logging.DEBUG):
            failed = client.post("/predict", files={"file": ("SECRET.jpeg", films[0])})
        service.predictor.predict_loaded = answer  # type: ignore[method-assign]
        assert client.post("/predict", content=films[0]).status_code == 200
    assert failed.status_code == 500
    assert failed.json()["detail"] == "the server failed; its log says where"
    assert [record.getMessage() for record in caplog.records if record.name == "cxr.serving"] == [
        f"a request failed: RuntimeError at test_limits.py:{broken.__code__.co_firstlineno + 1}"
    ]
    assert "SECRET" not in caplog.text


def test_a_network_that_does_not_start_is_not_ready(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    service = make_service(place)

    def broken() -> None:
        raise RuntimeError("no network")

    service.warm_up = broken  # type: ignore[method-assign]
    with TestClient(build_app(service), base_url="http://localhost") as client:
        health = client.get("/healthz")
    assert health.status_code == 503
    assert "retry-after" in health.headers
    assert "the network did not run: RuntimeError at test_limits.py" in caplog.text


def test_limits_that_bound_nothing_are_refused() -> None:
    for wrong in ({"max_bytes": 0}, {"queue": 0}, {"timeout": 0.0}, {"max_pixels": 10**9}):
        with pytest.raises(ValueError, match="Limits: wanted"):
            Limits(**wrong)
