"""``cxr fit-head`` and ``cxr grid``: features to heads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cxr.options import (
    L2,
    Backbones,
    Cache,
    Config,
    Data,
    Device,
    Json,
    Positive,
    Seeds,
    Select,
    SplitName,
    SplitSeed,
    TableFile,
    Views,
)
from cxr.terminal import bar, note, show
from featcache.settings import Settings, load_settings

if TYPE_CHECKING:
    from heads.experiments.grids import StoreGrid


def fit_head(
    backbone: Backbones = None,
    l2: L2 = None,
    lr: Annotated[list[float] | None, typer.Option("--lr", "--learning-rate", help="Adam's step.")] = None,
    hidden: Annotated[list[int] | None, typer.Option(help="Hidden units; 0 is a linear head.")] = None,
    seeds: Seeds = None,
    split: SplitName = None,
    split_seed: SplitSeed = None,
    select: Select = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs at most.")] = None,
    patience: Annotated[int | None, typer.Option(help="Epochs without improvement before a head stops.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Features a training step.")] = None,
    class_weights: Annotated[str | None, typer.Option(help="balanced or none.")] = None,
    view_policy: Annotated[str | None, typer.Option(help="random or clean.")] = None,
    standardise: Annotated[
        bool | None, typer.Option("--standardise/--no-standardise", help="Standardise features by the train split.")
    ] = None,
    adapt: Annotated[
        bool | None, typer.Option("--adapt/--no-adapt", help="Bring val and test to train's moments (transductive).")
    ] = None,
    head_precision: Annotated[str | None, typer.Option(help="float32, or bfloat16 where it is fast.")] = None,
    views: Views = None,
    positive: Positive = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="For features at most, as 512MiB or 2GB; the rest stays on disk.")
    ] = None,
    device: Device = None,
    data: Data = None,
    table: TableFile = None,
    cache: Cache = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Fit heads on cached features: every value of every flag, on every store, trained together.

    A backbone may be several joined by +, as in resnet50+vgg19: heads on the features of both.
    """
    flags: dict[str, Any] = {"l2": l2, "learning_rate": lr, "hidden": hidden, "seeds": seeds, "split": split}
    flags |= {"split_seed": split_seed, "device": device, "cache": cache, "data": data, "table": table}
    flags |= {"epochs": epochs, "patience": patience, "batch_size": batch_size, "class_weights": class_weights}
    flags |= {"view_policy": view_policy, "standardise": standardise, "adapt": adapt}
    flags |= {"head_precision": head_precision}
    flags |= {"views": views, "positive": positive, "memory": memory, "select": select}
    settings = load_settings(flags, config)
    from featcache.workspace import open_sources
    from heads.experiments.grids import StoreGrid, configs_of

    configs, count = configs_of(settings), settings.views if "views" in settings.model_fields_set else None
    _fit(settings, [StoreGrid.of(store, configs, count) for store in open_sources(settings, backbone or ())], as_json)


def grid(
    file: Annotated[Path | None, typer.Option("--file", help="TOML: [[head]] tables; a list is an axis.")] = None,
    preset: Annotated[str | None, typer.Option(help="paper: the six rows of the study's table.")] = None,
    show: Annotated[bool, typer.Option("--show", help="Print the preset's file, to start one of your own.")] = False,
    backbone: Backbones = None,
    l2: L2 = None,
    seeds: Seeds = None,
    split: SplitName = None,
    split_seed: SplitSeed = None,
    select: Select = None,
    device: Device = None,
    data: Data = None,
    table: TableFile = None,
    cache: Cache = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Fit the grids of heads that a file declares, over several backbones, as one run; interrupted, it goes on.

    What the file leaves unsaid is as flags, CXR_* variables and cxr.toml have it.
    """
    given = {"backbone": backbone, "l2": l2, "seeds": seeds, "split": split, "split_seed": split_seed}
    given = {key: value for key, value in given.items() if value not in (None, [])}
    settings = load_settings(
        {**given, "data": data, "table": table, "cache": cache, "device": device, "select": select}, config
    )
    from featcache.workspace import dataset_folder
    from heads.experiments.grid_file import declared_grid, preset_file

    if show:
        print(preset_file(preset, given), end="")
        return
    declared = declared_grid(file, preset, settings, given)
    _fit(declared.settings, declared.over(dataset_folder(settings)), as_json)


def _fit(settings: Settings, grids: Sequence[StoreGrid], as_json: bool) -> None:
    """Train, save the run, and say what val selects of it."""
    from featcache.runtime import choose_device
    from featcache.workspace import dataset_folder, present_table
    from heads.choosing.decision import decide
    from heads.experiments.experiment import run_grids

    images, remark = present_table(settings, [grid.source for grid in grids])
    if remark:
        note(remark)
    with bar("fitting") as tell:
        outcome = run_grids(
            grids,
            dataset_folder(settings),
            table=images,
            rule=settings.split,
            split_seed=settings.split_seed,
            positive=settings.positive,
            device=choose_device(settings.device),
            memory=settings.memory,
            select=settings.select,
            adapt=settings.adapt,
            on_progress=tell,
        )
    for head in {head.backbone: head for head in outcome.record.heads if head.config.window}.values():
        note(f"{head.backbone}: shuffled in windows of {head.config.window:,} images, which are read from the disk")
    chosen = decide(dataset_folder(settings), [outcome.record.run_id], rule=settings.select).selected[0]
    result = {**outcome.to_json(), "selected": chosen.name, "val_loss": chosen.metrics["clean"][chosen.best].loss}
    show(as_json, result, [f"{outcome.in_words()}; selected: {chosen.name}", "'cxr report' shows the table"])
