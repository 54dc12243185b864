"""Grids of heads: which heads are fitted on the features of which store."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from featcache.errors import SettingsError
from featcache.joined import FeatureSource
from featcache.naming import every_store, named_sources
from featcache.settings import Settings
from heads.training.config import HeadConfig, grid

MOST_HEADS = 100_000


@dataclass(frozen=True, kw_only=True, eq=False)
class StoreGrid:
    """The heads to be fitted on the features of one store, or of several joined.

    Attributes:
        source: the features.
        views: views an image to train on.
        configs: the heads, each once.
    """

    source: FeatureSource
    views: int
    configs: tuple[HeadConfig, ...]

    @classmethod
    def of(cls, source: FeatureSource, configs: Sequence[HeadConfig], views: int | None = None) -> Self:
        """Take the first ``views`` views, or all that every image has."""
        return cls(source=source, views=source.view_count if views is None else views, configs=tuple(configs))


@dataclass(frozen=True, kw_only=True)
class HeadTable:
    """One ``[[head]]``.

    Attributes:
        backbones: names of stores; every store of the data set where there is none.
        views: views an image, None for all that there are.
        configs: the heads of each backbone and number of views.
    """

    backbones: tuple[str, ...]
    views: tuple[int | None, ...]
    configs: tuple[HeadConfig, ...]


@dataclass(frozen=True, kw_only=True)
class DeclaredGrid:
    """What a grid file declares.

    Attributes:
        settings: those that were given, with what the file says of the whole: split, split_seed and positive.
        tables: its heads.
    """

    settings: Settings
    tables: tuple[HeadTable, ...]

    def over(self, dataset: Path) -> list[StoreGrid]:
        """Bring the tables together: the heads of each store and number of views, each head once.

        Args:
            dataset: ``cache/<dataset>``, whose stores the backbones name.

        Raises:
            StoreError: a backbone has no store; all that have none are named.
            SettingsError: more than ``MOST_HEADS`` heads.
        """
        names = dict.fromkeys(name for table in self.tables for name in table.backbones)
        named = named_sources(dataset, list(names)) if names else {}
        every = every_store(dataset) if not all(table.backbones for table in self.tables) else []
        grids: dict[tuple[str, int], StoreGrid] = {}
        for table in self.tables:
            sources = [one for name in table.backbones for one in named[name]] if table.backbones else every
            for source, views in itertools.product(sources, table.views):
                new = StoreGrid.of(source, table.configs, views)
                key = source.fingerprint, new.views
                before = grids[key].configs if key in grids else ()
                grids[key] = StoreGrid.of(source, tuple(dict.fromkeys((*before, *new.configs))), new.views)
        bounded(sum(len(grid.configs) for grid in grids.values()), "the tables")
        return list(grids.values())


def configs_of(settings: Settings) -> tuple[HeadConfig, ...]:
    """The grid that the settings declare."""
    return grid(
        hidden=settings.hidden,
        l2=settings.l2,
        lr=settings.learning_rate,
        seeds=range(settings.seeds),
        epochs=settings.epochs,
        patience=settings.patience,
        batch_size=settings.batch_size,
        class_weights=settings.class_weights,
        view_policy=settings.view_policy,
        standardise=settings.standardise,
        precision=settings.head_precision,
    )


def bounded(count: int, what: str) -> None:
    """Refuse a number of heads that nobody means.

    Raises:
        SettingsError: more than ``MOST_HEADS``.
    """
    if count > MOST_HEADS:
        raise SettingsError(f"{what} declare {count:,} heads, and {MOST_HEADS:,} at most are trained: take values away")
