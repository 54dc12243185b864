"""``cxr predict``: radiographs in, probabilities and decisions out."""

from __future__ import annotations

import codecs
import contextlib
import io
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated

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
from cxr.terminal import Tell, bar, note, one_of, out, spell
from featcache import atomic
from featcache.errors import DataError, UsageError
from featcache.settings import load_settings


def predict(
    paths: Annotated[list[str], typer.Argument(metavar="PATH…", help="Files, folders, or patterns in quotes.")],
    bundle: BundleFolder = None,
    run: RunId = None,
    head: HeadNumber = None,
    row: RowName = None,
    operating_point: OperatingRule = None,
    views: AveragedViews = None,
    view_mean: Annotated[bool, typer.Option("--view-mean", help="Of as many as the head was trained on.")] = False,
    form: Annotated[str | None, typer.Option("--format", help="table (default), csv or json.")] = None,
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
    form = form or ("json" if as_json else "table")
    one_of("--format", form, ("table", "csv", "json"))
    if as_json and form != "json":
        raise UsageError(f"--json and --format {form} exclude each other: give one of them")
    flags = {"data": data, "table": table, "cache": cache, "device": device, "select": select}
    settings = load_settings(flags, config)
    from featcache.film_paths import film_paths
    from featcache.workspace import compute_of, films_folder
    from heads.prediction.answers import Tally, as_text, who_says
    from heads.prediction.asked import Asked, asked_predictor

    root = films_folder(settings)
    total = sum(1 for _ in film_paths(paths, root))
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
    predictor = asked_predictor(settings, asked, compute_of(settings), note)
    for line in who_says(predictor):
        note(line)
    tally, started = Tally(), time.perf_counter()
    with (
        _target(file) as target,
        _bar(file) as tell,
        contextlib.closing(predictor.stream(film_paths(paths, root))) as stream,
    ):
        for text in as_text(tally.count(stream), predictor, form):
            target.write(text)
            tell(tally.files, total, f"{tally.files / (time.perf_counter() - started):.0f} img/s")
    rate = f"{tally.files / (time.perf_counter() - started):.1f} files/s"
    for line in (*predictor.encoder.notes, f"{tally.in_words()}; {rate}"):
        note(line)
    if not tally.images:
        raise DataError(f"none of {tally.files} files could be read ({tally.reason})")


@contextlib.contextmanager
def _target(file: Path | None) -> Iterator[IO[str]]:
    """Where answers go: a file that is whole or absent, or stdout as they come."""
    if file is None:
        codecs.register_error("cxr.bytes", _bytes_of_names)
        # Elsewhere names are spelled; in a CSV each must lead back to its file, as in one that --out writes.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="cxr.bytes")
        yield sys.stdout
    else:
        with atomic.new_text(file) as target:
            yield target


def _bytes_of_names(error: UnicodeError) -> tuple[str | bytes, int]:
    """An error handler of ``codecs``: of a file's name that is no UTF-8 the bytes; for the rest see ``spell``."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return spell(error)


def _bar(file: Path | None) -> contextlib.AbstractContextManager[Tell]:
    """A bar, but where a person sees the answers come: between them it would be in the way."""
    if file is None and out.is_terminal:
        return contextlib.nullcontext(lambda *_: None)
    return bar("predicting")
