"""``cxr predict``: radiographs in, probabilities and decisions out."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated

import typer

from cxr.options import (
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
from cxr.terminal import Tell, bar, note, one_of, out
from featcache import atomic
from featcache.errors import DataError
from featcache.settings import load_settings


def predict(
    paths: Annotated[list[str], typer.Argument(metavar="PATH…", help="Files, folders, or patterns in quotes.")],
    bundle: BundleFolder = None,
    run: RunId = None,
    head: HeadNumber = None,
    row: RowName = None,
    operating_point: OperatingRule = None,
    views: Annotated[int | None, typer.Option("--views", min=1, help="Average the logits of so many views.")] = None,
    view_mean: Annotated[bool, typer.Option("--view-mean", help="Of as many as the head was trained on.")] = False,
    form: Annotated[str, typer.Option("--format", help="table, csv or json.")] = "table",
    file: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write there, whole or not.")] = None,
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
    """Judge radiographs by a fitted head: JPEG, PNG and DICOM; exits 1 where not one of them could be read."""
    one_of("--format", form, ("table", "csv", "json"))
    flags = {"data": data, "table": table, "cache": cache, "device": device, "select": select}
    settings = load_settings(flags, config)
    from featcache.film_paths import film_paths
    from featcache.workspace import compute_of, films_folder
    from heads.prediction.answers import Tally, as_text, who_says
    from heads.prediction.asked import asked_model
    from heads.prediction.networks import backbones_of
    from heads.prediction.predictor import Predictor

    root = films_folder(settings)
    total = sum(1 for _ in film_paths(paths, root))
    model = asked_model(
        settings,
        bundle=bundle,
        code=backbone or (),
        run=run,
        head=head,
        row=row,
        operating_rule=operating_point,
        tell=note,
    )
    networks, count = backbones_of(model, settings, weights or ()), views or (model.views if view_mean else 1)
    predictor = Predictor(model, networks, compute_of(settings), rule=operating_point, views=count)
    for line in who_says(model, predictor):
        note(line)
    tally, started = Tally(), time.perf_counter()
    with (
        _target(file) as target,
        _bar(file) as tell,
        contextlib.closing(predictor.stream(film_paths(paths, root))) as stream,
    ):
        for text in as_text(tally.count(stream), predictor, "json" if as_json else form):
            target.write(text)
            tell(tally.files, total, f"{tally.files / (time.perf_counter() - started):.0f} img/s")
    for line in (*predictor.encoder.notes, tally.in_words()):
        note(line)
    if not tally.images:
        raise DataError(f"none of {tally.files} files could be read ({tally.reason})")


@contextlib.contextmanager
def _target(file: Path | None) -> Iterator[IO[str]]:
    """Where answers go: a file that is whole or absent, or stdout as they come."""
    if file is None:
        yield sys.stdout
    else:
        with atomic.new_text(file) as target:
            yield target


def _bar(file: Path | None) -> contextlib.AbstractContextManager[Tell]:
    """A bar, but where a person sees the answers come: between them it would be in the way."""
    if file is None and out.is_terminal:
        return contextlib.nullcontext(lambda *_: None)
    return bar("predicting")
