"""``cxr serve``: a page on which radiographs are dropped, and the same for programs."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Annotated

import typer

from cxr.options import (
    AveragedViews,
    BundleFolder,
    Cache,
    Config,
    Data,
    Device,
    HeadNumber,
    Json,
    NetworkWeights,
    OperatingRule,
    OwnNetworks,
    RowName,
    RunId,
    Select,
    TableFile,
)
from cxr.terminal import note, print_json
from featcache.errors import BackboneError, CxrError, UsageError
from featcache.settings import Settings, load_settings, usable_cores

if TYPE_CHECKING:
    from cxr.serving.limits import Limits
    from cxr.serving.service import Service
    from heads.prediction.asked import Asked

LEAST_TOKEN = 16
TOKEN = re.compile(rf"[\x21-\x7e]{{{LEAST_TOKEN},}}")
"""What a browser can send, in full, and nobody guesses."""

PUBLIC_NAME = re.compile(r"[A-Za-z0-9.-]+(:\d{1,5})?")

EXTRA = "cxr serve needs FastAPI, uvicorn and what goes with them: pip install 'cxr[serve]'"


def serve(
    bundle: BundleFolder = None,
    run: RunId = None,
    head: HeadNumber = None,
    row: RowName = None,
    operating_point: OperatingRule = None,
    views: AveragedViews = None,
    view_mean: Annotated[bool, typer.Option("--view-mean", help="Of as many as the head was trained on.")] = False,
    host: Annotated[str, typer.Option("--host", help="Where to listen; all but loopback want --token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: a free one.")] = 8000,
    token: Annotated[str | None, typer.Option("--token", envvar="CXR_TOKEN", help="What requests must bring.")] = None,
    public_name: Annotated[
        str | None, typer.Option("--public-name", help="Of a proxy in front, as films.example or films.example:8443.")
    ] = None,
    queue: Annotated[int, typer.Option("--queue", min=1, help="Films under way; more are answered 503.")] = 128,
    max_bytes: Annotated[str, typer.Option("--max-bytes", help="Of an upload.")] = "32MiB",
    max_pixels: Annotated[int, typer.Option("--max-pixels", min=1, help="Of a film.")] = 40_000_000,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, max=3600, help="Seconds a request.")] = 30.0,
    weights: NetworkWeights = None,
    backbone: OwnNetworks = None,
    device: Device = None,
    select: Select = None,
    data: Data = None,
    table: TableFile = None,
    cache: Cache = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Serve a fitted head on a page in the browser and as an API; Ctrl-C finishes what is under way, and stops."""
    try:
        from cxr.serving.lifecycle import bind, is_loopback, url_of
        from cxr.serving.lifecycle import run as answer
    except ImportError as error:
        raise CxrError(EXTRA) from error
    if not is_loopback(host) and not token:
        raise UsageError(
            f"--host {host} is open to other machines: give what requests must bring by --token or CXR_TOKEN"
        )
    if token and not TOKEN.fullmatch(token):
        raise UsageError(
            f"the token is not {LEAST_TOKEN} or more visible characters of ASCII: nobody could send it, or all guess it"
        )
    if public_name is not None and not PUBLIC_NAME.fullmatch(public_name):
        raise UsageError(f"--public-name is {public_name!r}, wanted a name as films.example, or with a port")
    limits = _limits(max_bytes, max_pixels, queue, timeout)
    flags = {"data": data, "table": table, "cache": cache, "device": device, "select": select}
    settings = load_settings(flags, config)
    # Before anything is loaded: a port in use is told at once.
    with bind(host, port) as bound:
        from cxr.serving.app import build_app
        from cxr.serving.guard import LOOPBACK
        from heads.prediction.asked import Asked

        asked = Asked(
            bundle=bundle,
            code=tuple(backbone or ()),
            run=run,
            head=head,
            row=row,
            operating_rule=operating_point,
            views=views,
            view_mean=view_mean,
            weights=tuple(weights or ()),
        )
        service = _service(settings, asked, limits)
        # On loopback by whichever of its names; elsewhere the token tells whom it may answer.
        names = (*LOOPBACK, f"[{host}]" if ":" in host else host.lower()) if is_loopback(host) else None
        app = build_app(service, token=token or None, hosts=names, public_name=public_name)

        def tell() -> None:
            url, name = url_of(bound), service.name
            if as_json:
                print_json({"url": url, "model": name.model_dump(), "limits": dataclasses.asdict(limits)})
            note(f"{name.name} ({service.predictor.model.origin}): {url} (Ctrl-C stops)")
            if not is_loopback(host):
                note("films and the token travel in clear: put a proxy with TLS in front (docs/serving.md)")
            note(name.research_use)

        ended = answer(app, bound, drain=limits.timeout, on_start=tell)
    films = "1 film was" if service.answered == 1 else f"{service.answered} films were"
    note(f"stopped: {films} answered")
    if ended.cut_off:
        note(f"cut off after {limits.timeout:g} s, unanswered or unread: {ended.cut_off} connections")
    if not ended.whole:
        raise KeyboardInterrupt


def _service(settings: Settings, asked: Asked, limits: Limits) -> Service:
    """The model, with whatever is at hand of evidence, known films and their pictures."""
    from cxr.serving.service import Service
    from featcache.workspace import compute_of, dataset_folder, films_folder
    from heads.prediction.asked import asked_predictor
    from heads.prediction.known_films import KnownFilms, Thumbnails
    from heads.prediction.look_at_test import measured_on_test
    from heads.prediction.saliency import Explainer

    compute, root = compute_of(settings), films_folder(settings)
    predictor = asked_predictor(settings, asked, compute, note, measure=measured_on_test)
    try:
        explainer = Explainer(predictor.model, predictor.backbones, compute)
    except BackboneError as error:
        note(f"no saliency maps: {error}")
        explainer = None
    # A bundle does not hold the films that its heads were fitted on.
    known = KnownFilms.of_run(dataset_folder(settings), predictor.model) if asked.bundle is None else None
    if known is None and asked.bundle is None:
        note("no nearest known cases: the films that the head was fitted on are more than memory is meant for")
    return Service(
        predictor,
        limits,
        decoders=settings.threads or max(2, usable_cores()),
        explainer=explainer,
        known=known,
        thumbnails=None if root is None else Thumbnails(root),
    )


def _limits(max_bytes: str, max_pixels: int, queue: int, timeout: float) -> Limits:
    from pydantic import ByteSize, TypeAdapter, ValidationError

    from cxr.serving.limits import Limits

    try:
        size = TypeAdapter(ByteSize).validate_python(max_bytes)
    except ValidationError as error:
        raise UsageError(f"--max-bytes is {max_bytes!r}, wanted a size as 32MiB or 10MB") from error
    try:
        return Limits(max_bytes=int(size), max_pixels=max_pixels, queue=queue, timeout=timeout)
    except ValueError as error:
        raise UsageError(
            f"--max-bytes {max_bytes}, --max-pixels {max_pixels}, --timeout {timeout:g}: {error}"
        ) from error
