"""``cxr serve``: a page on which radiographs are dropped, and the same for programs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from cxr.options import Cache, Config, Data, Device, Json, Select, TableFile
from cxr.terminal import note, print_json
from featcache.errors import BackboneError, CxrError, UsageError
from featcache.settings import load_settings, usable_cores

if TYPE_CHECKING:
    from cxr.serving.limits import Limits
    from featcache.backbones import Backbone
    from featcache.runtime import Compute
    from heads.prediction.model import Model
    from heads.prediction.saliency import Explainer

EXTRA = "cxr serve needs FastAPI and uvicorn: pip install 'cxr[serve]'"


def serve(
    run: Annotated[str | None, typer.Option("--run", help="The run (default: the newest).")] = None,
    head: Annotated[int | None, typer.Option("--head", min=0, help="Its head (default: as val selects).")] = None,
    row: Annotated[str | None, typer.Option("--row", help="A row of the report by name, ensembles too.")] = None,
    operating_point: Annotated[
        str | None,
        typer.Option(metavar="RULE", help="Decide at this threshold: youden (default), f1, sensitivity>=X, …, or 0.5."),
    ] = None,
    views: Annotated[int | None, typer.Option("--views", min=1, help="Average the logits of so many views.")] = None,
    view_mean: Annotated[bool, typer.Option("--view-mean", help="Of as many as the head was trained on.")] = False,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; any but loopback wants a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: a free one.")] = 8000,
    token: Annotated[
        str | None, typer.Option("--token", envvar="CXR_TOKEN", show_envvar=True, help="What a request must bring.")
    ] = None,
    queue: Annotated[int, typer.Option("--queue", min=1, help="Films under way; more are answered 503.")] = 128,
    max_bytes: Annotated[str, typer.Option("--max-bytes", help="Of an upload.")] = "32MiB",
    max_pixels: Annotated[int, typer.Option("--max-pixels", min=1, help="Of a film.")] = 40_000_000,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds a request.")] = 30.0,
    weights: Annotated[
        list[str] | None, typer.Option("--weights", help="The networks', where they were files; one each.")
    ] = None,
    device: Device = None,
    select: Select = None,
    data: Data = None,
    table: TableFile = None,
    cache: Cache = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Serve a fitted head on a page in the browser and as an API; Ctrl-C finishes what is under way, and stops."""
    if head is not None and row is not None:
        raise UsageError("--head and --row each name what is asked: give one of them")
    try:
        from cxr.serving.lifecycle import bind, is_loopback, url_of
        from cxr.serving.lifecycle import run as answer
    except ImportError as error:
        raise CxrError(EXTRA) from error
    if not is_loopback(host) and not token:
        raise UsageError(
            f"--host {host} is open to other machines: give a secret with --token or in CXR_TOKEN, which requests must "
            "bring"
        )
    limits = _limits(max_bytes, max_pixels, queue, timeout)
    settings = load_settings({"data": data, "table": table, "cache": cache, "device": device, "select": select}, config)
    with bind(host, port) as bound:
        from featcache.workspace import compute_of, dataset_folder
        from heads.prediction.from_run import model_of_run
        from heads.prediction.networks import backbones_of
        from heads.prediction.predictor import Predictor

        rules = [] if operating_point in (None, "0.5") else [_known_rule(operating_point)]
        dataset = dataset_folder(settings)
        model = model_of_run(dataset, run, head=head, row=row, rule=settings.select, operating_rules=rules)
        networks, compute = backbones_of(model, settings, weights or ()), compute_of(settings)
        from cxr.serving.app import build_app
        from cxr.serving.guard import LOOPBACK
        from cxr.serving.service import Service
        from heads.prediction.known_films import KnownFilms, Thumbnails

        root = settings.data if settings.table is None or settings.data is not None else settings.table.parent
        service = Service(
            Predictor(model, networks, compute, rule=operating_point, views=views or (model.views if view_mean else 1)),
            limits,
            decoders=settings.threads or max(2, usable_cores()),
            explainer=_explainer(model, networks, compute),
            known=KnownFilms.of_run(dataset, model),
            thumbnails=None if root is None else Thumbnails(root),
        )
        app = build_app(service, token=token, hosts=LOOPBACK if is_loopback(host) else None)

        def tell() -> None:
            url, name = url_of(bound), service.name
            if as_json:
                print_json({"url": url, "model": name.model_dump(), "limits": dataclasses.asdict(limits)})
            note(f"{name.name}: {url} (Ctrl-C stops)")
            note(name.research_use)

        whole = answer(app, bound, drain=limits.timeout, on_start=tell)
    note(f"stopped: {service.answered} films were answered")
    if not whole:
        raise KeyboardInterrupt


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
        raise UsageError(f"--max-pixels or --max-bytes: {error}") from error


def _explainer(model: Model, networks: list[Backbone], compute: Compute) -> Explainer | None:
    from heads.prediction.saliency import Explainer

    try:
        return Explainer(model, networks, compute)
    except BackboneError as error:
        note(f"no saliency maps: {error}")
        return None


def _known_rule(rule: str) -> str:
    """Check an operating point's rule.

    Raises:
        UsageError: there is no such rule.
    """
    from heads.statistics.operating_point import parse_rule

    try:
        parse_rule(rule)
    except ValueError as error:
        raise UsageError(f"--operating-point: {error}") from error
    return rule
