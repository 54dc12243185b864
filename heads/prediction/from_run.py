"""A model from a run: the head that is asked for, or a whole row of the table, with what val chose for it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from featcache.errors import RunError, nearest
from featcache.store import FeatureStore
from heads.choosing.decision import decide
from heads.choosing.rows import Member, Row
from heads.choosing.selection import OPERATING_RULES, settle
from heads.experiments.runs import RunRecord, load_run
from heads.experiments.saved_heads import choose_row, load_weights, name_of, require_alone, stores_behind
from heads.experiments.split_logits import KINDS
from heads.prediction.model import Model, ModelChoices, ModelMember, Source
from heads.prediction.reference import reference_of


def model_of_run(
    dataset: Path,
    run_id: str | None = None,
    *,
    head: int | None = None,
    row: str | None = None,
    rule: str | None = "clean",
    operating_rules: Sequence[str] = (),
    root: Path | None = None,
) -> Model:
    """The model of a fitted head, or of a row of the table; see ``chosen_row`` and ``model_of_row``."""
    found = chosen_row(dataset, run_id, head=head, row=row, rule=rule, operating_rules=operating_rules)
    return model_of_row(dataset, found, root)


def chosen_row(
    dataset: Path,
    run_id: str | None = None,
    *,
    head: int | None = None,
    row: str | None = None,
    rule: str | None = "clean",
    operating_rules: Sequence[str] = (),
) -> Row:
    """A row of one head, or of an ensemble, with what val chose for it; nothing here can reach the logits of test.

    Args:
        dataset: ``cache/<dataset>``.
        run_id: the run; None takes the newest, and for a row all of them.
        head: index of the head in the run; None takes the one that ``cxr explain`` takes, which val selects.
        row: name of a row as ``cxr report --ensembles`` calls it: of a row of several seeds the one that stands for it,
            of an ensemble all its heads.
        rule: by which val selects; see ``heads.choosing.decision.decide``.
        operating_rules: whose thresholds are chosen on val beside ``heads.choosing.selection.OPERATING_RULES``.

    Raises:
        RunError: no such run, head or row, a damaged one, or a head that can judge no film alone.
        ValueError: an unknown rule, or a head and a row.
    """
    if row is None:
        found, number = choose_row(dataset, run_id, head, rule=rule, operating_rules=operating_rules)
        return _alone(found, number, operating_rules)
    if head is not None:
        raise ValueError("chosen_row: wanted a head or a row, got both")
    run_ids = [] if run_id is None else [run_id]
    decision = decide(dataset, run_ids, rule=rule, ensembles=True, operating_rules=operating_rules)
    matching = [one for one in decision.rows if one.name == row]
    if not matching:
        names = [one.name for one in decision.rows]
        raise RunError(f"no row {row!r} in the report{nearest(row, names)} ('cxr report --ensembles' shows them)")
    found = matching[0]
    if found.ensemble is None:
        return _alone(found, found.members[0].heads[found.best], operating_rules)
    return found


def _alone(row: Row, number: int, operating_rules: Sequence[str]) -> Row:
    """The row of one of a row's heads, whichever stands for that; temperature and thresholds are the head's own."""
    require_alone(row.run, number)
    place = row.members[0].heads.index(number)
    rules, positive = tuple(dict.fromkeys((*OPERATING_RULES, *operating_rules))), row.run.positive
    val = replace(row.val, logits=row.val.logits[[place]], logits_view_mean=row.val.logits_view_mean[[place]])
    return replace(
        row,
        name=name_of(row, number),
        members=(Member(folder=row.members[0].folder, heads=(number,)),),
        records=(row.records[place],),
        val=val,
        metrics={kind: (one[place],) for kind, one in row.metrics.items()},
        best=0,
        choices={kind: settle(val.of(kind), val.label, positive=positive, best=0, rules=rules) for kind in KINDS},
    )


def model_of_row(
    dataset: Path, row: Row, root: Path | None = None, tell: Callable[[str], None] = lambda _: None
) -> Model:
    """The model of a row that ``chosen_row`` gave.

    Args:
        dataset: ``cache/<dataset>``.
        row: of one head, or of an ensemble.
        root: the data set's folder, where it is at hand; see ``reference.reference_of``.
        tell: see there too.

    Raises:
        RunError: a run is damaged, or a head can judge no film alone.
        StoreError: the features that it was fitted on are not there any more.
    """
    load = functools.cache(load_run)
    sources: dict[str, FeatureStore] = {}
    members: list[ModelMember] = []
    said: list[str] = []
    for member in row.members:
        run = load(member.folder)
        for number in member.heads:
            require_alone(run, number)
        # Heads of a member differ in the seed alone: they stand on the same stores.
        stores = stores_behind(dataset, run, member.heads[0])
        sources |= {store.fingerprint: store for store in stores}
        order = list(sources)
        members.append(
            ModelMember(
                sources=tuple(order.index(store.fingerprint) for store in stores),
                heads=tuple(load_weights(member.folder, number) for number in member.heads),
                scale=dict(member.scale),
            )
        )
        said.append(f"{run.run_id}: {', '.join(map(str, member.heads))}")
    distance, remark = reference_of(dataset, row.run, tuple(sources.values()), root, tell)
    return Model(
        name=row.name,
        dataset=dataset.name,
        classes=row.run.classes,
        positive=row.run.positive,
        views=_views(row.members, load),
        sources=tuple(Source(spec=store.spec, path=store.path) for store in sources.values()),
        members=tuple(members),
        choices={
            kind: ModelChoices(
                temperature=chosen.temperature,
                operating_points={rule: points[0] for rule, points in chosen.operating_points.items()},
            )
            for kind, chosen in row.choices.items()
        },
        distance=distance,
        notes=(remark,) if remark else (),
        provenance={
            "run": row.run.run_id,
            "heads": "; ".join(said),
            "created": row.run.created,
            "split": f"{row.run.split_rule} {row.run.split_seed}",
            **{f"fitted with {name}": version for name, version in row.run.provenance.items()},
        },
    )


def _views(members: Sequence[Member], load: functools._lru_cache_wrapper[RunRecord]) -> int:
    """Views that every member was trained on, and whose mean its val logits are."""
    return min(load(member.folder).heads[member.heads[0]].views for member in members)
