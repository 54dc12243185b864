"""``cxr predict``: radiographs in, probabilities and decisions out."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated

import typer

from cxr.options import Cache, Config, Data, Device, Json, Select, TableFile
from cxr.terminal import Tell, bar, note, one_of, out
from featcache import atomic
from featcache.errors import DataError, UsageError
from featcache.settings import load_settings


def predict(
    paths: Annotated[list[str], typer.Argument(metavar="PATH…", help="Files, folders, or patterns in quotes.")],
    run: Annotated[str | None, typer.Option("--run", help="The run (default: the newest).")] = None,
    head: Annotated[int | None, typer.Option("--head", min=0, help="Its head (default: as val selects).")] = None,
    row: Annotated[str | None, typer.Option("--row", help="A row of the report by name, ensembles too.")] = None,
    operating_point: Annotated[
        str | None,
        typer.Option(metavar="RULE", help="Decide at this threshold: youden (default), f1, sensitivity>=X, …, or 0.5."),
    ] = None,
    views: Annotated[int | None, typer.Option("--views", min=1, help="Average the logits of so many views.")] = None,
    view_mean: Annotated[bool, typer.Option("--view-mean", help="Of as many as the head was trained on.")] = False,
    form: Annotated[str, typer.Option("--format", help="table, csv or json.")] = "table",
    file: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write there, whole or not at all.")
    ] = None,
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
    """Judge radiographs by a fitted head: JPEG, PNG and DICOM; exits 1 where not one of them could be read."""
    one_of("--format", form, ("table", "csv", "json"))
    if head is not None and row is not None:
        raise UsageError("--head and --row each name what is asked: give one of them")
    flags = {"data": data, "table": table, "cache": cache, "device": device, "select": select}
    settings = load_settings(flags, config)
    rules = [] if operating_point in (None, "0.5") else [known_rule(operating_point)]
    from featcache.film_paths import film_paths
    from featcache.workspace import compute_of, dataset_folder
    from heads.prediction.answers import Tally, as_text, who_says
    from heads.prediction.from_run import model_of_run
    from heads.prediction.networks import backbones_of
    from heads.prediction.predictor import Predictor

    root = settings.data if settings.table is None or settings.data is not None else settings.table.parent
    total = sum(1 for _ in film_paths(paths, root))
    model = model_of_run(
        dataset_folder(settings), run, head=head, row=row, rule=settings.select, operating_rules=rules, root=root
    )
    count = views or (model.views if view_mean else 1)
    networks = backbones_of(model, settings, weights or ())
    predictor = Predictor(model, networks, compute_of(settings), rule=operating_point, views=count)
    for line in who_says(model, predictor):
        note(line)
    tally = Tally()
    with (
        _target(file) as target,
        _bar(file) as tell,
        contextlib.closing(predictor.stream(film_paths(paths, root))) as stream,
    ):
        started = time.perf_counter()
        for text in as_text(tally.count(stream), predictor, "json" if as_json else form):
            target.write(text)
            tell(tally.files, total, f"{tally.files / (time.perf_counter() - started):.0f} img/s")
    for line in (*predictor.encoder.notes, tally.in_words()):
        note(line)
    if not tally.images:
        raise DataError(f"none of {tally.files} files could be read ({tally.reason})")


def known_rule(rule: str) -> str:
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
