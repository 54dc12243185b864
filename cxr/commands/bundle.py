"""``cxr bundle``: a fitted head, or an ensemble, in a folder that can be handed on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from cxr.options import (
    Cache,
    Config,
    Data,
    HeadNumber,
    Json,
    NetworkWeights,
    OperatingRule,
    RowName,
    RunId,
    Select,
    TableFile,
)
from cxr.terminal import note, show
from featcache.settings import load_settings


def bundle(
    folder: Annotated[Path, typer.Option("--out", metavar="DIR", help="The bundle's folder; it must not exist.")],
    run: RunId = None,
    head: HeadNumber = None,
    row: RowName = None,
    operating_point: OperatingRule = None,
    include_weights: Annotated[
        bool, typer.Option("--include-weights", help="The networks' weights too: it then needs nothing else.")
    ] = False,
    licence: Annotated[str, typer.Option("--license", help="Of the heads, for the model card.")] = "unknown",
    weights: NetworkWeights = None,
    select: Select = None,
    data: Data = None,
    table: TableFile = None,
    cache: Cache = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Write a head with all that it needs, and a model card, to a folder that can be handed on."""
    settings = load_settings({"data": data, "table": table, "cache": cache, "select": select}, config)
    from featcache.workspace import dataset_folder, films_folder
    from heads.prediction.asked import Asked, asked_row
    from heads.prediction.bundle import write_bundle
    from heads.prediction.card import card_of
    from heads.prediction.from_run import model_of_row
    from heads.prediction.look_at_test import look_at_test
    from heads.prediction.networks import backbones_of

    asked, root = Asked(run=run, head=head, row=row, operating_rule=operating_point), films_folder(settings)
    chosen = asked_row(settings, asked)
    model = model_of_row(dataset_folder(settings), chosen, root, note)
    if operating_point is not None:
        model = model.led_by(operating_point)
    for line in model.notes:
        note(line)
    networks = backbones_of(model, settings, weights or ()) if include_weights else None
    tested = look_at_test(chosen, model, root)
    card = card_of(model, chosen, tested, licence, by_hand=asked.by_hand)
    digest = write_bundle(folder, dataclasses.replace(model, measured=tested.measured), card, networks)
    said = {"bundle": str(folder), "sha256": digest, "name": model.name, "run": model.provenance["run"]}
    words = f"{model.name} ({model.origin}) in {folder}; SHA-256 over all of it {digest}"
    show(as_json, {**said, "fingerprint": model.fingerprint, "weights": include_weights}, [words])
