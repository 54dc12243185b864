"""Grids of heads over several backbones, declared in a TOML file.

Each ``[[head]]`` is a product: every value of every key with every other, on every backbone that it names. The keys are
those of the settings, and what a table leaves unsaid is as the settings have it. Heads that two tables declare are one.
"""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from featcache.errors import SettingsError, UsageError, nearest
from featcache.settings import Settings
from heads.experiments.grids import DeclaredGrid, HeadTable, bounded
from heads.training.config import HeadConfig

PAPER_L2 = 1e-4
"""The study says that two of its rows have L2, and not how much."""

PAPER_SEEDS = 3

SETTING_OF = {
    "hidden": "hidden",
    "l2": "l2",
    "lr": "learning_rate",
    "epochs": "epochs",
    "patience": "patience",
    "batch_size": "batch_size",
    "class_weights": "class_weights",
    "view_policy": "view_policy",
    "standardise": "standardise",
    "precision": "head_precision",
    "seed": "seeds",
}
"""Field of a head's configuration → what it is called among the settings, and in a table."""


def preset_file(preset: str | None, flags: Mapping[str, Any]) -> str:
    """The file of a preset: for ``paper``, the six rows of the study's table.

    Args:
        preset: its name.
        flags: ``l2``, the strengths of the rows that have a penalty, and ``seeds``, where they were given.

    Raises:
        UsageError: there is no such preset.
    """
    if preset != "paper":
        raise UsageError(f"--preset is {preset!r}, wanted paper: the six rows of the study's table")
    strengths, seeds = ", ".join(map(str, flags.get("l2", [PAPER_L2]))), flags.get("seeds", PAPER_SEEDS)
    return f"""\
# The six rows of the study's table: four backbones without a penalty, two of them also with L2.
# The study does not say how strong its L2 is, nor how wide its Dense layer: hidden, epochs and the other settings are
# those of cxr.toml unless a table says them. A list is an axis: every value of it with every value of the others.

[[head]]
backbone = ["inception_v3", "vgg19", "efficientnet_b4", "resnet50"]
l2 = 0
seeds = {seeds}

[[head]]
backbone = ["efficientnet_b4", "resnet50"]
l2 = [{strengths}]
seeds = {seeds}
"""


def declared_grid(file: Path | None, preset: str | None, settings: Settings, flags: Mapping[str, Any]) -> DeclaredGrid:
    """Read a grid file or a preset; see ``parse_grid``.

    Args:
        file: the file, if it is one.
        preset: or else the preset's name.
        settings: what the file leaves unsaid.
        flags: the settings that were given as flags; of a preset, ``l2`` and ``seeds`` take the place of its own.

    Raises:
        SettingsError: the file is not there, or wrong.
        UsageError: neither or both, no such preset, or a flag would change nothing.
    """
    if (file is None) == (preset is None):
        raise UsageError("wanted either --file GRID.toml or --preset paper")
    if file is None:
        left = {key: value for key, value in flags.items() if key not in ("l2", "seeds")}
        return parse_grid(preset_file(preset, flags), "the preset", settings, left)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise SettingsError(f"no grid file {file}: 'cxr grid --preset paper --show > {file}' writes one") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} cannot be read: {error}") from error
    return parse_grid(text, str(file), settings, flags)


def parse_grid(text: str, where: str, settings: Settings, flags: Mapping[str, Any]) -> DeclaredGrid:
    """Parse a grid file strictly.

    Args:
        text: TOML.
        where: what messages call it.
        settings: what is not said in it.
        flags: the settings that were given as flags, ``backbone`` for tables that name none. What the file says holds,
            so that a flag which it leaves no room for is refused instead of being ignored.

    Raises:
        SettingsError: no TOML, an unknown key, a wrong value, no heads or too many; the message says which table.
        UsageError: a flag would change nothing.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{where} is not TOML: {error}") from error
    tables = content.pop("head", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise SettingsError(f"{where}: head is no table of a list: write [[head]] above it, with two brackets")
    for key in content:
        if key in _TABLE.model_fields:
            raise SettingsError(f"{where}: {key} stands outside the tables: it belongs below a [[head]]")
    if not tables:
        raise SettingsError(f"{where} declares no heads: write a [[head]] as 'cxr grid --preset paper --show' does")
    whole = _parsed(_WHOLE, content, where, "head")
    said = [_parsed(_TABLE, _spelled(table), f"{where}, head {n}") for n, table in enumerate(tables, 1)]
    for flag in flags:
        if flag in whole or all(flag in table for table in said):
            raise UsageError(f"--{flag.replace('_', '-')} would change nothing: {where} says {flag}; say it once")
    read: list[HeadTable] = []
    count = 0
    for number, table in enumerate(said, 1):
        axes = {field: _axis_of(name, table.get(name, getattr(settings, name))) for field, name in SETTING_OF.items()}
        names = tuple(dict.fromkeys(table.get("backbone", flags.get("backbone", ()))))
        views = table.get("views", [settings.views if "views" in settings.model_fields_set else None])
        count += math.prod(map(len, axes.values())) * len(views) * max(1, len(names))
        bounded(count, f"{where}: its tables up to head {number}")
        configs = [HeadConfig(**dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())]
        read.append(
            HeadTable(backbones=names, views=tuple(dict.fromkeys(views)), configs=tuple(dict.fromkeys(configs)))
        )
    return DeclaredGrid(settings=settings.model_copy(update=whole), tables=tuple(read))


def _value_of(name: str) -> Any:  # noqa: ANN401 - a type
    """The type of one value of a setting, with the bounds that it has there."""
    field = Settings.model_fields[name]
    if get_origin(field.annotation) is list:
        return get_args(field.annotation)[0]
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


def _axis(value: Any) -> Any:  # noqa: ANN401 - a type
    """A value, or a list of them."""
    listed = BeforeValidator(lambda given: given if isinstance(given, list) else [given])
    return Annotated[list[value], listed, Field(min_length=1)]


def _strict(name: str, **types: Any) -> type[BaseModel]:  # noqa: ANN401 - types
    config = ConfigDict(extra="forbid", strict=True, frozen=True)
    keys: dict[str, Any] = {key: (kind, None) for key, kind in types.items()}
    return create_model(name, __config__=config, **keys)


_TABLE = _strict(
    "Table",
    backbone=_axis(Annotated[str, Field(min_length=1)]),
    views=_axis(_value_of("views")),
    # As the setting: how many; or which.
    seeds=_value_of("seeds") | Annotated[list[Annotated[int, Field(ge=0, lt=2**63)]], Field(min_length=1)],
    **{name: _axis(_value_of(name)) for name in SETTING_OF.values() if name != "seeds"},
)
_WHOLE = _strict("Whole", split=_value_of("split"), split_seed=_value_of("split_seed"), positive=str)


def _parsed(model: type[BaseModel], values: dict[str, Any], where: str, *others: str) -> dict[str, Any]:
    """The keys that are said, checked.

    Args:
        model: what they may be.
        values: as the file has them.
        where: what a message begins with.
        others: known keys that are dealt with elsewhere.
    """
    for key in values.keys() - model.model_fields.keys():
        raise SettingsError(f"{where}: unknown key {key!r}{nearest(key, [*model.model_fields, *others], 1)}")
    try:
        return model.model_validate(values).model_dump(exclude_unset=True)
    except ValidationError as error:
        # Of the two kinds of seeds the one that was meant: its error lies deeper.
        first = max(error.errors(), key=lambda one: len(one["loc"]))
        said = first["msg"].removeprefix("Value error, ").lower()
        raise SettingsError(f"{where}: {first['loc'][0]} is {first['input']!r}: {said}") from error


def _spelled(table: dict[str, Any]) -> dict[str, Any]:
    """``lr`` is ``learning_rate``, as on the command line."""
    return {"learning_rate" if key == "lr" and "learning_rate" not in table else key: table[key] for key in table}


def _axis_of(name: str, value: Any) -> Sequence[Any]:  # noqa: ANN401 - of any setting
    """The values of a setting; a number of seeds counts them from 0."""
    if name == "seeds" and isinstance(value, int):
        return range(value)
    return value if isinstance(value, list) else [value]
