"""The grid file that a page shows declares the run's heads: what ``cxr grid`` reads of it are the same ones."""

from __future__ import annotations

import itertools
import tomllib
from dataclasses import replace
from typing import Any

import pytest
from synthetic import head, run

from featcache.settings import Settings
from heads.experiments.grid_file import parse_grid
from heads.experiments.runs import HeadRecord, RunRecord
from heads.page.run_grid import grid_file
from heads.training.config import HeadConfig

BASE = HeadConfig(epochs=7, patience=3)


def heads(backbone: str, *configs: HeadConfig, views: int = 2) -> list[HeadRecord]:
    return [head(config, backbone=backbone, fingerprint=backbone * 8, views=views) for config in configs]


def declared(record: RunRecord) -> set[tuple[str, int | None, HeadConfig]]:
    """What ``cxr grid --file`` makes of the file."""
    nothing: dict[str, Any] = {}
    grid = parse_grid(grid_file(record), "grid.toml", Settings(**nothing), {})
    assert (grid.settings.split, grid.settings.split_seed) == (record.split_rule, record.split_seed)
    assert grid.settings.positive == record.classes[record.positive]
    return {
        (backbone, views, config)
        for table in grid.tables
        for backbone, views, config in itertools.product(table.backbones, table.views, table.configs)
    }


@pytest.mark.parametrize(
    "configs",
    [
        [BASE],
        [replace(BASE, l2=l2, seed=seed) for l2 in (0.0, 1e-4, 0.1) for seed in range(3)],
        [replace(BASE, hidden=0, standardise=True, seed=5), replace(BASE, lr=3e-4, class_weights="none"), BASE],
        [replace(BASE, l2=0.0, seed=1), replace(BASE, l2=1e-6, seed=2)],
    ],
    ids=["one", "a product", "several settings", "seeds of their own"],
)
def test_the_file_declares_the_runs_heads_and_no_others(configs: list[HeadConfig]) -> None:
    record = run(*heads("a", *configs), *heads("b", *configs), *heads("a", BASE, views=4), split_seed=3, positive=0)
    assert declared(record) == {(one.backbone, one.views, one.config) for one in record.heads}


def test_backbones_of_the_same_heads_share_a_table() -> None:
    configs = [replace(BASE, l2=l2, seed=seed) for l2 in (0.0, 1e-4) for seed in range(2)]
    held: dict[str, Any] = tomllib.loads(grid_file(run(*heads("a", *configs), *heads("b", *configs))))
    (table,) = held["head"]
    assert (table["backbone"], table["l2"], table["seeds"]) == (["a", "b"], [0.0, 1e-4], [0, 1])


def test_names_that_would_be_toml_come_back_as_they_are() -> None:
    names = ('"]\nsplit = "paper', "\\u0041\x7f\t", "é \u2028 \U0001f600")
    record = run(*[one for name in names for one in heads(name, BASE)], classes=(names[0], names[1]))
    assert {backbone for backbone, _, _ in declared(record)} == set(names)


def test_what_a_file_cannot_say_stands_in_a_comment() -> None:
    told = grid_file(run(head(replace(BASE, window=512), adapted=True)))
    assert "# read from the disk, shuffled in windows of 512 images" in told
    assert "# val and test were brought to the moments of train" in told
    assert "#" not in grid_file(run(head(BASE)))
