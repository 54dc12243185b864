"""``cxr export``: a model for what is not cxr."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cxr.options import (
    BundleFolder,
    Cache,
    Config,
    Data,
    HeadNumber,
    Json,
    NetworkWeights,
    OwnNetworks,
    RowName,
    RunId,
    Select,
    TableFile,
)
from cxr.terminal import note, show
from featcache.settings import load_settings


def export(
    onnx: Annotated[Path, typer.Option("--onnx", metavar="FILE", help="Pixels to probabilities, as an ONNX graph.")],
    bundle: BundleFolder = None,
    run: RunId = None,
    head: HeadNumber = None,
    row: RowName = None,
    weights: NetworkWeights = None,
    backbone: OwnNetworks = None,
    select: Select = None,
    data: Data = None,
    table: TableFile = None,
    cache: Cache = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Write network and head as one graph, which is compared with torch first; what it wants is in its metadata."""
    settings = load_settings({"data": data, "table": table, "cache": cache, "select": select}, config)
    from heads.prediction.asked import Asked, asked_model
    from heads.prediction.networks import backbones_of
    from heads.prediction.onnx_export import export_onnx

    asked = Asked(bundle=bundle, code=tuple(backbone or ()), run=run, head=head, row=row)
    model = asked_model(settings, asked, note)
    written = export_onnx(onnx, model, backbones_of(model, settings, weights or ()))
    sides = {name: one["image_size"] for name, one in written["inputs"].items()}
    inputs = ", ".join(f"{name} [N, 3, {side}, {side}]" for name, side in sides.items())
    outputs = f"probabilities [N, {len(model.classes)}]"
    agrees = f"agrees with torch within {written['agreement']:.1e}"
    words = f"{model.name} ({model.origin}) in {onnx}: {inputs} uint8 → {outputs}; {agrees}"
    show(as_json, {"onnx": str(onnx), **written}, [words])
